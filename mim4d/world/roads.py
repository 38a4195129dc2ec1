"""The streets of one scene: a main road along a bend, cross streets, blocks with walkways, lanes, markings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
        n = max(1, math.ceil(math.dist(a, b) / CHORD))
        t = np.linspace(0.0, 1.0, n + 1)[:, None]
        return self.bend.point(np.asarray(a) * (1 - t) + np.asarray(b) * t)


def _stripe(
    roads: Roads,
    a: tuple[float, float],
    b: tuple[float, float],
    width: float,
    colour: str,
    dash: float = 0.0,
    gap: float = 0.0,
) -> None:
    """Paint along a line of constant u or constant v, dashed when ``dash`` > 0."""
    length = math.dist(a, b)
    starts = [0.0] if dash <= 0 else list(np.arange(0.0, max(length - dash, 0.0) + 1e-9, dash + gap))
    for s in starts:
        e = length if dash <= 0 else s + dash
        p, q = ((a[0] + (b[0] - a[0]) * t / length, a[1] + (b[1] - a[1]) * t / length) for t in (s, e))
        along_u = abs(b[0] - a[0]) > abs(b[1] - a[1])
        du, dv = (0.0, width / 2) if along_u else (width / 2, 0.0)
        polygon = roads.outline(min(p[0], q[0]) - du, max(p[0], q[0]) + du, min(p[1], q[1]) - dv, max(p[1], q[1]) + dv)
        roads.paint.append((polygon, colour))


def _zebra(roads: Roads, u0: float, u1: float, v0: float, v1: float, across_u: bool) -> None:
    """A crossing over the rectangle; its bars lie along u when people walk along v (``across_u`` False)."""
    roads.ped_crossings.append(roads.outline(u0, u1, v0, v1))
    lo, hi = (u0, u1) if across_u else (v0, v1)
    for c in np.arange(lo + 0.35, hi - 0.3, 0.95):
        bar = (c, c + 0.5, v0 + 0.1, v1 - 0.1) if across_u else (u0 + 0.1, u1 - 0.1, c, c + 0.5)
        roads.paint.append((roads.outline(*bar), "white"))


def _street(
    roads: Roads, name: str, along_u: bool, at: float, lo: float, hi: float, each_way: int, ends: tuple[bool, bool]
) -> None:
    """One link of road: lanes, dividers, paint, and crossings at those of its ends that meet a junction."""
    half = each_way * LANE + PARKING
    side = lambda a, b: (lambda s0, s1, t0, t1: (s0, s1, at + t0, at + t1) if along_u else (at + t0, at + t1, s0, s1))(
        a[0], a[1], b[0], b[1]
    )
    pt = lambda s, t: (s, at + t) if along_u else (at + t, s)
    roads.segments.append((roads.outline(*side((lo, hi), (-half, half))), False))
    for index in range(each_way):
        for sign in (1, -1):  # +1: traffic along +s keeps to the right: t < 0 when s is u, t > 0 when s is v
            t = (index + 0.5) * LANE * (-sign if along_u else sign)
            start, end = (lo, hi) if sign > 0 else (hi, lo)
            outline = roads.outline(*side((lo, hi), (t - LANE / 2, t + LANE / 2)))
            roads.lanes.append(Lane(f"{name}/{index}/{sign}", pt(start, t), pt(end, t), outline))
    stop_lo, stop_hi = lo + (5.2 if ends[0] else 0.0), hi - (5.2 if ends[1] else 0.0)
    for t in (-0.14, 0.14):
        _stripe(roads, pt(stop_lo, t), pt(stop_hi, t), 0.12, "yellow")
    roads.road_dividers.append(roads.line(pt(lo, 0.0), pt(hi, 0.0)))
    for sign in (1, -1):
        for index in range(1, each_way):
            _stripe(roads, pt(stop_lo, sign * index * LANE), pt(stop_hi, sign * index * LANE), 0.14, "white", 3.0, 4.0)
            roads.lane_dividers.append(roads.line(pt(lo, sign * index * LANE), pt(hi, sign * index * LANE)))
        edge = sign * each_way * LANE
        _stripe(roads, pt(stop_lo, edge), pt(stop_hi, edge), 0.12, "white")
        roads.lane_dividers.append(roads.line(pt(lo, edge), pt(hi, edge)))
        for s in np.arange(stop_lo + 2.0, stop_hi - 2.0, 6.2):  # parking bays
            _stripe(roads, pt(s, edge), pt(s, sign * half), 0.1, "white")
    for meets, s0, s1, stop in ((ends[0], lo + 0.6, lo + 3.6, lo + 4.4), (ends[1], hi - 3.6, hi - 0.6, hi - 4.4)):
        if not meets:
            continue
        u0, u1, v0, v1 = side((s0, s1), (-half, half))
        _zebra(roads, u0, u1, v0, v1, across_u=not along_u)
        arriving = 1 if stop > (lo + hi) / 2 else -1  # traffic that arrives at this end runs along this sign of s
        right = -arriving if along_u else arriving
        t0, t1 = sorted((0.2 * right, (each_way * LANE) * right))
        u0, u1, v0, v1 = side((stop - 0.2, stop + 0.2), (t0, t1))
        roads.paint.append((roads.outline(u0, u1, v0, v1), "white"))
        roads.stop_lines.append(roads.outline(u0, u1, v0, v1))


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
        ends = (i > 0, i < len(links) - 1)
        _street(roads, f"main{i}", True, 0.0, lo, hi, lanes_each_way, ends)
        for v0, v1 in ((hm, reach), (-reach, -hm)):
            block = Block(lo, hi, v0, v1, *ends)
            roads.blocks.append(block)
            near = block.near
            inner = near + math.copysign(WALKWAY, near)
            roads.walkways.append(roads.outline(lo, hi, *sorted((near, inner))))
            for meets, u0, u1 in ((ends[0], lo, lo + WALKWAY), (ends[1], hi - WALKWAY, hi)):
                if meets:
                    roads.walkways.append(roads.outline(u0, u1, *sorted((inner, math.copysign(reach, near)))))
    for i, u in enumerate(crossings_u):
        roads.segments.append((roads.outline(u - hc, u + hc, -hm, hm), True))
        for name, v0, v1, ends in (
            (f"cross{i}n", hm, reach, (True, False)),
            (f"cross{i}s", -reach, -hm, (False, True)),
        ):
            roads.drivable.append(roads.outline(u - hc, u + hc, v0, v1))
            _street(roads, name, False, u, v0, v1, 1, ends)
    for _ in range(60):  # repaired asphalt, darker
        u, v = rng.uniform(-STREET_U, STREET_U), rng.uniform(-hm, hm)
        w, h = rng.uniform(0.6, 5.0), rng.uniform(0.5, 1.6)
        if abs(v) + h < hm:
            roads.paint.insert(0, (roads.outline(u, u + w, v, v + h), "patch"))
    return roads
