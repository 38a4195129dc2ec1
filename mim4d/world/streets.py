"""What traffic follows: lanes through the junctions, turns, stop lines and lights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.geometry import Path, street_path
from mim4d.world.motion import Route
from mim4d.world.roads import LANE, STREET_U, Roads

Array = NDArray[np.float64]
Heading = tuple[int, int]  # along (u, v) of the street coordinates

EAST, NORTH, WEST, SOUTH = (1, 0), (0, 1), (-1, 0), (0, -1)
MAIN, CROSS = (EAST, WEST), (NORTH, SOUTH)
HALT = 5.0  # a front stops this far before a junction's box: behind crossing and stop line, metres
RADIUS = {"right": 8.0, "left": 11.0}  # of the turns, metres
CLEAR = 2.0  # seconds during which a junction's lights are red for all
LATERAL = 2.0  # m/s^2 that drivers take in a turn


def right_of(h: Heading) -> Heading:
    return h[1], -h[0]


@dataclass(frozen=True)
class Light:
    """A junction's lights: green for the main road or the cross street, for the other from ``change`` + CLEAR on."""

    main_first: bool
    change: float = math.inf

    @property
    def rules(self) -> bool:
        """Whether it ever stops the main road. Where it does not, stop and yield signs say as much."""
        return not self.main_first or self.change < math.inf

    def green_from(self, main: bool) -> float:
        """From when on a road has green; -inf: from the start."""
        return -math.inf if main == self.main_first else self.change + CLEAR

    def green(self, main: bool, t: float) -> bool:
        return t < self.change if main == self.main_first else t >= self.change + CLEAR


@dataclass(frozen=True)
class Way:
    """A path along lanes. ``stops``: (junction, length at which a front stops before it)."""

    path: Path
    main: bool  # whether it begins on the main road
    stops: tuple[tuple[int, float], ...]
    arc: tuple[float, float] | None = None  # lengths between which it turns
    radius: float = 0.0

    @property
    def turning_speed(self) -> float:
        return math.sqrt(LATERAL * self.radius)


class Streets:
    """Ways through a scene's roads, by heading, junction and lane (0: the innermost)."""

    def __init__(self, roads: Roads) -> None:
        self.roads = roads
        self.made: dict[tuple[object, ...], Way] = {}

    def _side(self, h: Heading, junction: int, lane: int) -> float:
        """The coordinate across a lane: v on the main road, u on a cross street."""
        right = right_of(h)
        if h in MAIN:
            return right[1] * (lane + 0.5) * LANE
        return self.roads.crossings_u[junction] + right[0] * LANE / 2

    def _at(self, h: Heading, along: float, side: float) -> tuple[float, float]:
        return (along, side) if h in MAIN else (side, along)

    def stop(self, h: Heading, junction: int, lane: int) -> tuple[float, float]:
        """Street coordinates at which a front stops before a junction."""
        roads = self.roads
        sign = h[0] + h[1]
        along = (
            roads.crossings_u[junction] - sign * (roads.half_cross + HALT)
            if h in MAIN
            else -sign * (roads.half_main + HALT)
        )
        return self._at(h, along, self._side(h, junction, lane))

    def _length(self, path: Path, uv: tuple[float, float]) -> float:
        """Length along a path at the vertex next to a place."""
        d = path.points[:, :2] - self.roads.bend.point(np.array(uv))
        return float(path.s[exact.dot(d, d).argmin()])

    def straight(self, h: Heading, junction: int, lane: int) -> Way:
        """Along a whole street; the main road is the same for every junction."""
        key = (h, None if h in MAIN else junction, lane)
        if key not in self.made:
            roads, sign = self.roads, h[0] + h[1]
            end, side = STREET_U if h in MAIN else roads.reach, self._side(h, junction, lane)
            path = street_path(roads.bend, [self._at(h, -sign * end, side), self._at(h, sign * end, side)])
            met = range(len(roads.crossings_u)) if h in MAIN else (junction,)
            stops = sorted((self._length(path, self.stop(h, i, lane)), i) for i in met)
            self.made[key] = Way(path, h in MAIN, tuple((i, s) for s, i in stops))
        return self.made[key]

    def turn(self, h: Heading, junction: int, to: str) -> Way:
        """From the lane for it around a corner to the "right" or "left"."""
        key = (h, junction, to)
        if key not in self.made:
            roads, sign = self.roads, h[0] + h[1]
            out = right_of(h) if to == "right" else (-right_of(h)[0], -right_of(h)[1])
            outer = roads.lanes_each_way - 1 if to == "right" else 0
            lane, lane_out = (outer, 0) if h in MAIN else (0, outer)
            side, side_out = self._side(h, junction, lane), self._side(out, junction, lane_out)
            begin = self._at(h, -sign * (STREET_U if h in MAIN else roads.reach), side)
            corner = self._at(h, side_out, side)
            end = self._at(out, (out[0] + out[1]) * (roads.reach if h in MAIN else STREET_U), side_out)
            radius = RADIUS[to]
            path = street_path(roads.bend, [begin, corner, end], radius)
            before = (corner[0] - radius * h[0], corner[1] - radius * h[1])
            after = (corner[0] + radius * out[0], corner[1] + radius * out[1])
            arc = self._length(path, before), self._length(path, after)
            met = range(len(roads.crossings_u)) if h in MAIN else (junction,)
            stops = sorted((self._length(path, self.stop(h, i, lane)), i) for i in met)
            ahead = tuple((i, s) for s, i in stops if s < arc[0])
            self.made[key] = Way(path, h in MAIN, ahead, arc, radius)
        return self.made[key]


def lights(rng: np.random.Generator, roads: Roads, ego: Route, seconds: float) -> list[Light]:
    """Lights that let the ego pass as it does: it arrives on the main road, and where it waits, it waits at red."""
    times = np.arange(0.0, seconds + 0.05, 0.1)
    xy = ego.pose(times)[0][:, :2]
    still = np.asarray(ego.speed.at(times)) < 0.2
    out = []
    for u in roads.crossings_u:
        d = xy - roads.bend.point(np.array((u, 0.0)))
        inside = np.flatnonzero(exact.norm(d) < roads.half_cross + HALT)
        choice, change = rng.random(), float(rng.uniform(0.15, 0.6)) * seconds
        if len(inside) == 0:
            out.append(Light(bool(choice < 0.5), change if seconds > 4.0 and rng.random() < 0.6 else math.inf))
            continue
        enters, leaves = float(times[inside[0]]), float(times[inside[-1]])
        waited = np.flatnonzero(still & (times < enters + 1e-9))
        if len(waited):
            out.append(Light(False, max(float(times[waited[-1]]) - CLEAR, 0.0)))
        else:
            later = leaves + 0.5 + change
            out.append(Light(True, later if later < seconds - CLEAR else math.inf))
    return out
