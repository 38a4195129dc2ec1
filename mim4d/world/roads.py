"""The streets of one scene: a main road along a bend, cross streets, blocks with walkways, lanes, markings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.geometry import Bend, outlines

Array = NDArray[np.float64]

LANE = 3.5  # lane width, metres
PARKING = 2.4  # width of the parking strip beside the kerb
BAY = 6.2  # length of a parking bay
WALKWAY = 3.6
TILE_SIZE = 480.0  # side of the square of map that a scene owns
CHORD = 6.0  # longest straight piece of a bent edge
UNPAINTED = 5.2  # markings end this far before a junction, where the crossing is

STREET_U = 170.0  # the main road runs from -STREET_U to STREET_U

UV = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Divider:
    """A painted line between lanes. ``paint`` is nuScenes' name for what is painted."""

    line: Array  # (P, 2) map coordinates
    paint: str


@dataclass(frozen=True)
class Lane:
    """One lane between two junctions. Traffic runs from ``start`` to ``end`` (street coordinates, centre line)."""

    name: str
    start: UV
    end: UV
    outline: Array  # (P, 2) map coordinates
    index: int  # 0: the innermost
    outermost: bool
    left: Divider  # what is painted to the left and to the right of its traffic
    right: Divider


@dataclass(frozen=True)
class Carriageway:
    """The lanes of one direction between two junctions: the map's road block."""

    outline: Array  # (P, 2) map coordinates
    start: Array  # (2, 2) its edge across where traffic begins, map coordinates
    end: Array  # (2, 2) and where it ends
    segment: int  # index of the road segment


@dataclass(frozen=True)
class Crossing:
    outline: Array  # (P, 2) map coordinates
    segment: int


@dataclass(frozen=True)
class StopLine:
    outline: Array  # (P, 2) map coordinates
    crossing: int  # index of the crossing that it keeps free
    carriageway: int  # whose traffic it stops


@dataclass(frozen=True)
class Carpark:
    """A row of parking bays along the kerb."""

    outline: Array  # (P, 2) map coordinates
    heading: float  # of the cars in it
    carriageway: int  # beside which it lies


@dataclass(frozen=True)
class Junction:
    """A rectangle of street coordinates in which lanes begin and end; its road segment is ``segment``."""

    u0: float
    u1: float
    v0: float
    v1: float
    segment: int

    def side(self, uv: UV) -> tuple[int, int] | None:
        """Outward direction of the side on which a place lies, None off the border."""
        (u, v), near = uv, 1e-6
        if self.v0 - near < v < self.v1 + near and min(abs(u - self.u0), abs(u - self.u1)) < near:
            return (1 if u > (self.u0 + self.u1) / 2 else -1, 0)
        if self.u0 - near < u < self.u1 + near and min(abs(v - self.v0), abs(v - self.v1)) < near:
            return (0, 1 if v > (self.v0 + self.v1) / 2 else -1)
        return None


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
    bays: bool = True  # the strip beside the kerb is divided into parking bays
    blocks: list[Block] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)  # u0, u1, v0, v1 of all that is road
    segments: list[tuple[Array, bool]] = field(default_factory=list)  # (polygon, is an intersection)
    junctions: list[Junction] = field(default_factory=list)
    carriageways: list[Carriageway] = field(default_factory=list)
    walkways: list[Array] = field(default_factory=list)
    ped_crossings: list[Crossing] = field(default_factory=list)
    stop_lines: list[StopLine] = field(default_factory=list)
    carparks: list[Carpark] = field(default_factory=list)
    bay_centres: list[UV] = field(default_factory=list)  # of the parking bays, street coordinates
    lane_dividers: list[Divider] = field(default_factory=list)
    road_dividers: list[tuple[Divider, int]] = field(default_factory=list)  # and the road segment's index
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

    @staticmethod
    def rectangle(u0: float, u1: float, v0: float, v1: float) -> Array:
        """A rectangle of street coordinates as a counter-clockwise polygon (P, 2), cut along u to follow the bend."""
        n = max(1, math.ceil((u1 - u0) / CHORD))
        u = np.linspace(u0, u1, n + 1)
        low = np.stack([u, np.full_like(u, v0)], -1)
        high = np.stack([u[::-1], np.full_like(u, v1)], -1)
        return np.concatenate([low, high])

    def outline(self, u0: float, u1: float, v0: float, v1: float) -> Array:
        """The same in map coordinates."""
        return self.bend.point(self.rectangle(u0, u1, v0, v1))

    def add_paint(self, markings: list[tuple[Array, str]]) -> None:
        """Adds painted polygons given in street coordinates, all in one go: there are hundreds of them."""
        if markings:
            points = self.bend.point(np.concatenate([ring for ring, _ in markings]))
            ends = np.cumsum([len(ring) for ring, _ in markings])
            rings = np.split(points, ends[:-1])
            self.paint += [(ring, colour) for ring, (_, colour) in zip(rings, markings, strict=True)]

    def junction(self, u0: float, u1: float, v0: float, v1: float) -> None:
        """Adds the rectangle in which streets meet."""
        self.junctions.append(Junction(u0, u1, v0, v1, len(self.segments)))
        self.segments.append((self.outline(u0, u1, v0, v1), True))
        self.boxes.append((u0, u1, v0, v1))

    def line(self, a: UV, b: UV) -> Array:
        """A straight line of street coordinates as a polyline (P, 2) in map coordinates."""
        n = max(1, math.ceil(exact.hypot(b[0] - a[0], b[1] - a[1]) / CHORD))
        t = np.linspace(0.0, 1.0, n + 1)[:, None]
        return self.bend.point(np.asarray(a) * (1 - t) + np.asarray(b) * t)

    def heading(self, start: UV, end: UV, u: float) -> float:
        """Heading at ``u`` of the way from ``start`` to ``end``, along u or along v."""
        along_u = abs(end[0] - start[0]) > abs(end[1] - start[1])
        turn = (0.0 if end[0] > start[0] else math.pi) if along_u else math.copysign(math.pi / 2, end[1] - start[1])
        return float(self.bend.yaw(u)) + turn

    def drivable(self) -> list[tuple[Array, list[Array]]]:
        """What one can drive on as polygons in map coordinates: (counter-clockwise ring, clockwise holes)."""
        rings = [self.bend.point(self._densely(ring)) for ring in outlines(self.boxes)]
        return [(rings[0], rings[1:])]

    @staticmethod
    def _densely(ring: Array) -> Array:
        """A ring (P, 2) of street coordinates with a vertex at least every CHORD along u."""
        out = []
        for a, b in zip(ring, np.roll(ring, -1, 0), strict=True):
            n = max(1, math.ceil(abs(b[0] - a[0]) / CHORD))
            t = np.arange(n)[:, None] / n
            out.append(a * (1 - t) + b * t)
        return np.concatenate(out)


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
    markings: list[tuple[Array, str]] = field(default_factory=list)  # paint in street coordinates, until it is built

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

    def _rectangle(self, s0: float, s1: float, t0: float, t1: float) -> Array:
        (s0, s1), (t0, t1) = sorted((s0, s1)), sorted((t0, t1))
        (u0, v0), (u1, v1) = self.point(s0, t0), self.point(s1, t1)
        return self.roads.rectangle(u0, u1, v0, v1)

    def box(self, s0: float, s1: float, t0: float, t1: float) -> Array:
        """A rectangle as a polygon (P, 2) in map coordinates."""
        return self.roads.bend.point(self._rectangle(s0, s1, t0, t1))

    def paint(self, s0: float, s1: float, t0: float, t1: float, colour: str = "white") -> None:
        self.markings.append((self._rectangle(s0, s1, t0, t1), colour))

    def _divider(self, s0: float, s1: float, t: float, paint: str) -> Divider:
        return Divider(self.roads.line(self.point(s0, t), self.point(s1, t)), paint)

    def _edge(self, s: float, t0: float, t1: float) -> Array:
        return self.roads.bend.point(np.array([self.point(s, t0), self.point(s, t1)]))

    def build(self) -> None:
        """Adds lanes, dividers, markings and crossings to the roads."""
        roads = self.roads
        segment = len(roads.segments)
        u0, u1, v0, v1 = self._bounds
        roads.boxes.append((u0, u1, v0, v1))
        roads.segments.append((self.box(self.lo, self.hi, -self.half, self.half), False))
        # Markings end where the crossings begin.
        ends = zip((self.lo, self.hi), (1, -1), self.meets, strict=True)
        lo, hi = (end + sign * UNPAINTED * met for end, sign, met in ends)
        middle = self._divider(lo, hi, 0.0, "SINGLE_SOLID_YELLOW")  # one such line on either side of it
        roads.road_dividers.append((middle, segment))
        blocks = {}
        for sign in (1, -1):
            self.paint(lo, hi, sign * 0.08, sign * 0.2, "yellow")
            side, (first, last) = sign * self.right, (self.lo, self.hi)[::sign]
            edge = side * self.each_way * LANE
            blocks[sign] = len(roads.carriageways)
            outline = self.box(self.lo, self.hi, 0.0, edge)
            way = Carriageway(outline, self._edge(first, 0.0, edge), self._edge(last, 0.0, edge), segment)
            roads.carriageways.append(way)
            left = middle
            for index in range(self.each_way):
                t, outermost = side * (index + 1) * LANE, index == self.each_way - 1
                if outermost:  # the lane's edge
                    self.paint(lo, hi, t - 0.06, t + 0.06)
                else:
                    for s in np.arange(lo, hi - 3.0, 7.0):
                        self.paint(s, s + 3.0, t - 0.07, t + 0.07)
                right = self._divider(lo, hi, t, "SINGLE_SOLID_WHITE" if outermost else "DOUBLE_DASHED_WHITE")
                roads.lane_dividers.append(right)
                inner = t - side * LANE
                begin, finish = self.point(first, (inner + t) / 2), self.point(last, (inner + t) / 2)
                lane = self.box(self.lo, self.hi, inner, t)
                name = f"{self.name}/{index}/{sign}"
                roads.lanes.append(Lane(name, begin, finish, lane, index, outermost, left, right))
                left = right
            self._bays(lo + 2.0, hi - 2.0, edge, side * self.half, sign, blocks[sign])
        for end, inward, junction in ((self.lo, 1, self.meets[0]), (self.hi, -1, self.meets[1])):
            if junction:
                self._crossing(end, inward, segment, blocks[-inward])
        roads.add_paint(self.markings)

    @property
    def _bounds(self) -> tuple[float, float, float, float]:
        (u0, v0), (u1, v1) = self.point(self.lo, -self.half), self.point(self.hi, self.half)
        return u0, u1, v0, v1

    def _bays(self, lo: float, hi: float, t0: float, t1: float, sign: int, carriageway: int) -> None:
        """Lines between parking bays, and the row of them."""
        cuts = np.arange(lo, hi, BAY)
        if not self.roads.bays or len(cuts) < 2:
            return
        for s in cuts:
            self.paint(s - 0.05, s + 0.05, t0, t1)
        self.roads.bay_centres += [self.point(float(a + b) / 2, (t0 + t1) / 2) for a, b in pairwise(cuts)]
        first, last = float(cuts[0]), float(cuts[-1])
        start, end = (self.point(s, t0) for s in (first, last)[::sign])
        heading = self.roads.heading(start, end, (start[0] + end[0]) / 2)
        self.roads.carparks.append(Carpark(self.box(first, last, t0, t1), heading, carriageway))

    def _crossing(self, end: float, inward: int, segment: int, carriageway: int) -> None:
        """A zebra crossing before a junction and the stop line of the traffic that arrives at it."""
        roads = self.roads
        s0, s1 = end + inward * 0.6, end + inward * 3.6
        for t in np.arange(-self.half + 0.35, self.half - 0.3, 0.95):
            self.paint(s0 + inward * 0.1, s1 - inward * 0.1, t, t + 0.5)
        side = -inward * self.right  # the right-hand side of those who drive outward
        stop = (end + inward * 4.2, end + inward * 4.6, side * 0.2, side * self.each_way * LANE)
        self.paint(*stop)
        roads.stop_lines.append(StopLine(self.box(*stop), len(roads.ped_crossings), carriageway))
        roads.ped_crossings.append(Crossing(self.box(s0, s1, -self.half, self.half), segment))


def make_roads(
    rng: np.random.Generator,
    origin: UV,
    *,
    curvature: float,
    lanes_each_way: int,
    reach: float,
    crossings_u: list[float],
    turns: tuple[tuple[float, float], ...] = (),
    bays: bool = True,
    back: tuple[int, ...] = (),
) -> Roads:
    """Lays the network out. ``rng`` decides the heading and the patches in the asphalt.

    ``curvature`` and ``turns`` bend the main road as Bend says. ``back``: on which sides (1: left, -1: right of +u) a
    back street joins the cross streets' far ends, with a T junction at each but the first and the last.
    """
    bend = Bend(origin, float(rng.uniform(-math.pi, math.pi)), curvature, turns)
    roads = Roads(bend, lanes_each_way, crossings_u, reach, bays)
    hm, hc = roads.half_main, roads.half_cross
    cuts = [-STREET_U] + [x for u in crossings_u for x in (u - hc, u + hc)] + [STREET_U]
    links = list(zip(cuts[::2], cuts[1::2], strict=True))
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
        roads.junction(u - hc, u + hc, -hm, hm)
        for name, v0, v1, meets in (("n", hm, reach, (True, 1 in back)), ("s", -reach, -hm, (-1 in back, True))):
            Link(roads, f"cross{i}{name}", False, u, v0, v1, 1, meets).build()
    for side in back:
        v0, v1 = sorted((side * reach, side * (reach + 2 * hc)))
        for u in crossings_u:
            roads.junction(u - hc, u + hc, v0, v1)
        for i, (lo, hi) in enumerate(links[1:-1]):
            Link(roads, f"back{i}{'s.n'[side + 1]}", True, (v0 + v1) / 2, lo, hi, 1, (True, True)).build()
    patches = []
    for _ in range(60):  # repaired asphalt, darker
        u, v = rng.uniform(-STREET_U, STREET_U), rng.uniform(-hm, hm)
        w, h = rng.uniform(0.6, 5.0), rng.uniform(0.5, 1.6)
        if abs(v) + h < hm:
            patches.append((roads.rectangle(u, u + w, v, v + h), "patch"))
    markings, roads.paint = roads.paint, []
    roads.add_paint(patches)
    roads.paint += markings  # over the patches
    return roads
