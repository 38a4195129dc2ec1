"""The ways of traffic as arcs and straight lines: along the lanes, and through the junctions from lane to lane."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.geometry import Bend
from mim4d.world.roads import LANE, UV, Junction, Lane, Roads

Array = NDArray[np.float64]
Pose = tuple[float, float, float]  # x, y and heading in map coordinates

SAG = 0.02  # metres by which a chord of a way's outline may miss its arc


@dataclass(frozen=True)
class Arc:
    """A piece of a way, of one curvature (1/m, positive to the left, 0: straight) and ``length`` metres."""

    start: Pose
    end: Pose
    curvature: float
    length: float

    def sides(self, half: float) -> tuple[Array, Array]:
        """The lines (P, 2) at a distance ``half`` to its left and right."""
        turn = self.curvature * self.length
        n = max(1, math.ceil(abs(turn) / math.sqrt(8.0 * SAG * max(abs(self.curvature), 1e-6))))
        share = np.linspace(0.0, 1.0, n + 1)
        heading = self.start[2] + turn * share
        sin, cos = exact.sincos(heading)
        normal = np.stack([-sin, cos], -1)  # (P, 2)
        if turn == 0.0:
            middle = np.array(self.start[:2]) * (1 - share[:, None]) + np.array(self.end[:2]) * share[:, None]
        else:
            centre = np.array(self.start[:2]) + normal[0] / self.curvature
            middle = centre - normal / self.curvature
        return middle + half * normal, middle - half * normal


@dataclass(frozen=True)
class Connector:
    """The way through a junction from the end of a lane to the start of another."""

    before: Lane
    after: Lane
    arcs: list[Arc]

    @property
    def outline(self) -> Array:
        """(P, 2) a strip as wide as a lane, map coordinates, counter-clockwise."""
        left, right = zip(*(arc.sides(LANE / 2) for arc in self.arcs), strict=True)
        ring = np.concatenate([*right, np.concatenate(left)[::-1]])
        return ring[np.abs(ring - np.roll(ring, 1, 0)).max(1) > 1e-6]


def pose(roads: Roads, lane: Lane, at: UV) -> Pose:
    """Place and heading of a lane's traffic at its start or end."""
    x, y = roads.bend.point(np.array(at))
    return float(x), float(y), roads.heading(lane.start, lane.end, at[0])


def along(bend: Bend, start: UV, end: UV) -> list[Arc]:
    """The way between places with the same u (a straight line) or the same v (arcs about the bends' centres)."""
    (u0, v0), (u1, v1) = start, end

    def at(uv: UV, turn: float) -> Pose:
        x, y = bend.point(np.array(uv))
        return float(x), float(y), float(bend.yaw(uv[0])) + turn

    if abs(u1 - u0) < abs(v1 - v0):
        quarter = math.copysign(math.pi / 2, v1 - v0)
        return [Arc(at(start, quarter), at(end, quarter), 0.0, abs(v1 - v0))]
    inside = [float(c) for c in bend.cuts if min(u0, u1) < c < max(u0, u1)]
    sign = 1 if u1 > u0 else -1
    stops = [u0, *inside[::sign], u1]
    turn = 0.0 if sign > 0 else math.pi
    out = []
    for a, b in pairwise(stops):
        k = bend.bends((a + b) / 2)
        stretch = 1.0 - k * v0  # of a length at this distance from the centre line
        out.append(Arc(at((a, v0), turn), at((b, v0), turn), sign * k / stretch, abs(b - a) * stretch))
    return out


def around(start: Pose, end: Pose) -> list[Arc]:
    """From one heading to another that crosses it ahead: straight on, then one arc, or one arc, then straight on."""
    (s0, c0), (s1, c1) = exact.sincos(start[2]), exact.sincos(end[2])
    dx, dy = end[0] - start[0], end[1] - start[1]
    sine = c0 * s1 - s0 * c1  # of the turn
    ahead = (dx * s1 - dy * c1) / sine  # from the start to where the two headings cross
    behind = (c0 * dy - s0 * dx) / sine  # and from there to the end
    turn = exact.atan2(sine, c0 * c1 + s0 * s1)
    cut = min(ahead, behind)
    curvature = exact.tan(turn / 2) / cut
    first = (start[0] + (ahead - cut) * c0, start[1] + (ahead - cut) * s0, start[2])
    last = (end[0] - (behind - cut) * c1, end[1] - (behind - cut) * s1, end[2])
    out = [Arc(first, last, curvature, turn / curvature)]
    if ahead - cut > 1e-6:
        return [Arc(start, first, 0.0, ahead - cut), *out]
    return [*out, Arc(last, end, 0.0, behind - cut)] if behind - cut > 1e-6 else out


def connectors(roads: Roads) -> list[Connector]:
    """All ways through all junctions: straight on from lane to lane of the same number, to the right from outermost to
    outermost, to the left from innermost to innermost; nobody turns back.
    """
    return [c for junction in roads.junctions for c in _through(roads, junction)]


def _through(roads: Roads, junction: Junction) -> list[Connector]:
    arriving = [(lane, side) for lane in roads.lanes if (side := junction.side(lane.end))]
    leaving = [(lane, side) for lane in roads.lanes if (side := junction.side(lane.start))]
    out = []
    for before, (x, y) in arriving:
        for after, side in leaving:
            if side == (-x, -y):
                if before.index == after.index:
                    out.append(Connector(before, after, along(roads.bend, before.end, after.start)))
            elif side == (-y, x):  # arriving from the side (x, y) one heads for -(x, y); its right is (-y, x)
                if before.outermost and after.outermost:
                    out.append(_turn(roads, before, after))
            elif side == (y, -x) and before.index == after.index == 0:
                out.append(_turn(roads, before, after))
    return out


def _turn(roads: Roads, before: Lane, after: Lane) -> Connector:
    return Connector(before, after, around(pose(roads, before, before.end), pose(roads, after, after.start)))
