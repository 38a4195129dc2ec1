"""The streets of one scene: a main road along a bend, cross streets, blocks with walkways, lanes, markings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.geometry import Bend

Array = NDArray[np.float64]

LANE = 3.5  # lane width, metres
PARKING = 2.4  # width of the parking strip beside the kerb
WALKWAY = 3.6
TILE_SIZE = 480.0  # side of the square of map that a scene owns
CHORD = 6.0  # longest straight piece of a bent edge

STREET_U = 170.0  # the main road runs from -STREET_U to STREET_U


@dataclass(frozen=True)
class Lane:
    """One lane between two junctions. Traffic runs from ``start`` to ``end`` (street coordinates, centre line)."""

    name: str
    start: tuple[float, float]
    end: tuple[float, float]
    outline: Array  # (P, 2) map coordinates


@dataclass(frozen=True)
class Block:
    """A raised rectangle of street coordinates between the roads."""

    u0: float
    u1: float
    v0: float
    v1: float
    street_before: bool  # a cross street runs along u0
    street_after: bool

    @property
    def near(self) -> float:
        """The v of the edge along the main road."""
        return self.v0 if self.v0 > 0 else self.v1


@dataclass
class Roads:
    bend: Bend
    lanes_each_way: int
    crossings_u: list[float]  # where cross streets meet the main road
    reach: float  # cross streets run from -reach to reach
    blocks: list[Block] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    drivable: list[Array] = field(default_factory=list)  # polygons (P, 2), map coordinates
    segments: list[tuple[Array, bool]] = field(default_factory=list)  # (polygon, is an intersection)
    walkways: list[Array] = field(default_factory=list)
    ped_crossings: list[Array] = field(default_factory=list)
    stop_lines: list[Array] = field(default_factory=list)
    lane_dividers: list[Array] = field(default_factory=list)  # lines (P, 2)
    road_dividers: list[Array] = field(default_factory=list)
    paint: list[tuple[Array, str]] = field(default_factory=list)  # (polygon, "white" | "yellow" | "patch")

    @property
    def half_main(self) -> float:
        """From the centre line of the main road to its kerb."""
        return self.lanes_each_way * LANE + PARKING

    @property
    def half_cross(self) -> float:
        return LANE + PARKING

    def lane_v(self, index: int) -> float:
        """Centre of the main road's lane ``index`` (0: the innermost) that runs along +u; minus it: along -u."""
        return -(index + 0.5) * LANE

    def outline(self, u0: float, u1: float, v0: float, v1: float) -> Array:
        """A rectangle of street coordinates as a counter-clockwise polygon (P, 2) in map coordinates."""
        n = max(1, math.ceil((u1 - u0) / CHORD))
        u = np.linspace(u0, u1, n + 1)
        low = np.stack([u, np.full_like(u, v0)], -1)
        high = np.stack([u[::-1], np.full_like(u, v1)], -1)
        return self.bend.point(np.concatenate([low, high]))

    def line(self, a: tuple[float, float], b: tuple[float, float]) -> Array:
        """A straight line of street coordinates as a polyline (P, 2) in map coordinates."""
        n = max(1, math.ceil(exact.hypot(b[0] - a[0], b[1] - a[1]) / CHORD))
        t = np.linspace(0.0, 1.0, n + 1)[:, None]
        return self.bend.point(np.asarray(a) * (1 - t) + np.asarray(b) * t)


@dataclass(frozen=True)
class Link:
    """A piece of road between two junctions, in its own coordinates: s along it, t across it.

    Along the main road (s, t) is (u, v) from ``at``; along a cross street it is (v, u), so that t then points to the
    right of +s and not to its left.
    """

    roads: Roads
    name: str
    along_u: bool
    at: float  # the other coordinate of the centre line
    lo: float
    hi: float
    each_way: int  # lanes
    meets: tuple[bool, bool]  # a junction at lo, at hi

    @property
    def half(self) -> float:
        return self.each_way * LANE + PARKING

    @property
    def right(self) -> int:
        """The sign of t on the right-hand side of traffic along +s."""
        return -1 if self.along_u else 1

    def point(self, s: float, t: float) -> tuple[float, float]:
        """Street coordinates (u, v)."""
        return (s, self.at + t) if self.along_u else (self.at + t, s)

    def box(self, s0: float, s1: float, t0: float, t1: float) -> Array:
        """A rectangle as a polygon (P, 2) in map coordinates."""
        (s0, s1), (t0, t1) = sorted((s0, s1)), sorted((t0, t1))
        (u0, v0), (u1, v1) = self.point(s0, t0), self.point(s1, t1)
        return self.roads.outline(u0, u1, v0, v1)

    def line(self, t: float) -> Array:
        """From end to end at a distance t from the centre line."""
        return self.roads.line(self.point(self.lo, t), self.point(self.hi, t))

    def paint(self, s0: float, s1: float, t0: float, t1: float, colour: str = "white") -> None:
        self.roads.paint.append((self.box(s0, s1, t0, t1), colour))

    def build(self) -> None:
        """Adds lanes, dividers, markings and crossings to the roads."""
        roads = self.roads
        roads.segments.append((self.box(self.lo, self.hi, -self.half, self.half), False))
        for index in range(self.each_way):
            for sign in (1, -1):
                t = (index + 0.5) * LANE * sign * self.right
                start, end = (self.lo, self.hi) if sign > 0 else (self.hi, self.lo)
                outline = self.box(self.lo, self.hi, t - LANE / 2, t + LANE / 2)
                name = f"{self.name}/{index}/{sign}"
                roads.lanes.append(Lane(name, self.point(start, t), self.point(end, t), outline))
        # Markings end where the crossings begin.
        lo, hi = (end + sign * 5.2 * m for end, sign, m in zip((self.lo, self.hi), (1, -1), self.meets, strict=True))
        roads.road_dividers.append(self.line(0.0))
        for sign in (1, -1):
            self.paint(lo, hi, sign * 0.08, sign * 0.2, "yellow")
            for index in range(1, self.each_way + 1):
                t = sign * index * LANE
                roads.lane_dividers.append(self.line(t))
                if index == self.each_way:  # the lane's edge, and the parking bays behind it
                    self.paint(lo, hi, t - 0.06, t + 0.06)
                    for s in np.arange(lo + 2.0, hi - 2.0, 6.2):
                        self.paint(s - 0.05, s + 0.05, t, sign * self.half)
                else:
                    for s in np.arange(lo, hi - 3.0, 7.0):
                        self.paint(s, s + 3.0, t - 0.07, t + 0.07)
        for end, inward, junction in ((self.lo, 1, self.meets[0]), (self.hi, -1, self.meets[1])):
            if junction:
                self._crossing(end, inward)

    def _crossing(self, end: float, inward: int) -> None:
        """A zebra crossing before a junction and the stop line of the traffic that arrives at it."""
        s0, s1 = end + inward * 0.6, end + inward * 3.6
        self.roads.ped_crossings.append(self.box(s0, s1, -self.half, self.half))
        for t in np.arange(-self.half + 0.35, self.half - 0.3, 0.95):
            self.paint(s0 + inward * 0.1, s1 - inward * 0.1, t, t + 0.5)
        side = -inward * self.right  # the right-hand side of those who drive outward
        stop = (end + inward * 4.2, end + inward * 4.6, side * 0.2, side * self.each_way * LANE)
        self.paint(*stop)
        self.roads.stop_lines.append(self.box(*stop))


def make_roads(
    rng: np.random.Generator,
    origin: tuple[float, float],
    *,
    curvature: float,
    lanes_each_way: int,
    reach: float,
    crossings_u: list[float],
) -> Roads:
    """Lays the network out. ``rng`` decides the heading and the patches in the asphalt."""
    roads = Roads(Bend(origin, float(rng.uniform(-math.pi, math.pi)), curvature), lanes_each_way, crossings_u, reach)
    hm, hc = roads.half_main, roads.half_cross
    cuts = [-STREET_U] + [x for u in crossings_u for x in (u - hc, u + hc)] + [STREET_U]
    links = list(zip(cuts[::2], cuts[1::2], strict=True))
    roads.drivable.append(roads.outline(-STREET_U, STREET_U, -hm, hm))
    for i, (lo, hi) in enumerate(links):
        meets = (i > 0, i < len(links) - 1)
        Link(roads, f"main{i}", True, 0.0, lo, hi, lanes_each_way, meets).build()
        for v0, v1 in ((hm, reach), (-reach, -hm)):
            block = Block(lo, hi, v0, v1, *meets)
            roads.blocks.append(block)
            inner = block.near + math.copysign(WALKWAY, block.near)
            roads.walkways.append(roads.outline(lo, hi, *sorted((block.near, inner))))
            for street, u0, u1 in ((meets[0], lo, lo + WALKWAY), (meets[1], hi - WALKWAY, hi)):
                if street:
                    roads.walkways.append(roads.outline(u0, u1, *sorted((inner, math.copysign(reach, inner)))))
    for i, u in enumerate(crossings_u):
        roads.segments.append((roads.outline(u - hc, u + hc, -hm, hm), True))
        for name, v0, v1, meets in (("n", hm, reach, (True, False)), ("s", -reach, -hm, (False, True))):
            roads.drivable.append(roads.outline(u - hc, u + hc, v0, v1))
            Link(roads, f"cross{i}{name}", False, u, v0, v1, 1, meets).build()
    for _ in range(60):  # repaired asphalt, darker
        u, v = rng.uniform(-STREET_U, STREET_U), rng.uniform(-hm, hm)
        w, h = rng.uniform(0.6, 5.0), rng.uniform(0.5, 1.6)
        if abs(v) + h < hm:
            roads.paint.insert(0, (roads.outline(u, u + w, v, v + h), "patch"))
    return roads
