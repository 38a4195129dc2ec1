"""Polygons and lines cut to an upright rectangle about (0, 0). float64, metres; no geometry library."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NO_AREA = 1e-9
"""A ring of less area (square metres) is no polygon: what only touches the rectangle's edge ends as one."""


@dataclass(frozen=True)
class Polygon:
    """A surface with holes. Rings (P, 2) are not closed (the first point is not repeated); metres."""

    exterior: Array  # counter-clockwise
    holes: tuple[Array, ...] = ()  # clockwise

    @property
    def rings(self) -> list[Array]:
        return [self.exterior, *self.holes]


def area(ring: Array) -> float:
    """Signed area of a ring (P, 2): positive where it runs counter-clockwise."""
    x, y = (ring - ring[0]).T
    return float(0.5 * (x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def oriented(ring: Array, counter_clockwise: bool) -> Array:
    """The ring (P, 2) without a repeated last point, running the way asked for."""
    if len(ring) > 1 and (ring[0] == ring[-1]).all():
        ring = ring[:-1]
    return ring if (area(ring) > 0) == counter_clockwise else ring[::-1]


def contains(ring: Array, point: Array) -> bool:
    """Whether the point (2,) lies in the ring (P, 2): a ray to its right crosses an odd number of edges."""
    a, b = ring, np.roll(ring, -1, 0)
    across = (a[:, 1] > point[1]) != (b[:, 1] > point[1])
    a, b = a[across], b[across]
    x = a[:, 0] + (point[1] - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
    return bool((x > point[0]).sum() % 2)


def crosses_itself(ring: Array) -> bool:
    """Whether two edges of the ring (P, 2) cross in their insides: then it is no outline of a surface."""
    a, b = ring, np.roll(ring, -1, 0)
    along = b - a

    def side(points: Array) -> Array:  # (P, P) of each point about each edge
        to = points[None] - a[:, None]
        return np.sign(along[:, None, 0] * to[..., 1] - along[:, None, 1] * to[..., 0])

    apart = side(a) * side(b) < 0  # the ends of edge j lie on different sides of edge i
    return bool((apart & apart.T).any())


def clip_polygon(polygon: Polygon, width: float, height: float) -> list[Polygon]:
    """The parts of a polygon within |x| <= width / 2, |y| <= height / 2; none where it only touches the edge."""
    rings = polygon.rings
    for limit in (width / 2, height / 2, width / 2, height / 2):  # right, top, left, bottom, each turned to the right
        rings = [np.stack([r[:, 1], -r[:, 0]], -1) for r in _left_of(rings, limit)]
    solid = [r for r in rings if area(r) > NO_AREA]
    holes = [r for r in rings if area(r) < -NO_AREA]
    if len(solid) == 1:
        return [Polygon(solid[0], tuple(holes))]
    return [Polygon(s, tuple(h for h in holes if contains(s, _inner_point(h)))) for s in solid]


def _inner_point(ring: Array) -> Array:
    """A point (2,) inside a ring: half-way between the first two crossings of a level that meets no vertex."""
    levels = np.unique(ring[:, 1])
    widest = int(np.diff(levels).argmax())
    y = 0.5 * (levels[widest] + levels[widest + 1])
    a, b = ring, np.roll(ring, -1, 0)
    across = (a[:, 1] > y) != (b[:, 1] > y)
    a, b = a[across], b[across]
    x = np.sort(a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1]))
    return np.array([0.5 * (x[0] + x[1]), y])


def _left_of(rings: list[Array], limit: float) -> list[Array]:
    """What of a surface, given by rings with the surface on their left, lies at x <= limit.

    Up along the cut, the rings leave and enter in turn, and between a leaving and the next entering lies the surface.
    So the k-th leaving, counted by height, goes on along the cut to the k-th entering. A vertex on the cut counts as
    left of it; what that gives of no area is dropped by the caller.
    """
    out: list[Array] = []
    chains: list[Array] = []  # pieces between an entering and a leaving
    for ring in rings:
        inside = ring[:, 0] <= limit
        if inside.all():
            out.append(ring)
            continue
        if not inside.any():
            continue
        first = int(np.flatnonzero(inside & ~np.roll(inside, 1))[0])
        ring, inside = np.roll(ring, -first, 0), np.roll(inside, -first)
        begins = np.flatnonzero(inside & ~np.roll(inside, 1))
        ends = np.flatnonzero(inside & ~np.roll(inside, -1))
        for i, j in zip(begins, ends, strict=True):
            into, onward = _cross(ring[i - 1], ring[i], limit), _cross(ring[j], ring[(j + 1) % len(ring)], limit)
            chains.append(np.concatenate([into[None], ring[i : j + 1], onward[None]]))
    by_entering = np.argsort([c[0, 1] for c in chains], kind="stable")
    by_leaving = np.argsort([c[-1, 1] for c in chains], kind="stable")
    following = dict(zip(by_leaving.tolist(), by_entering.tolist(), strict=True))
    while following:
        start, at = following.popitem()
        loop = [start]
        while at != start:
            loop.append(at)
            at = following.pop(at)
        out.append(_without_repeats(np.concatenate([chains[k] for k in loop])))
    return [r for r in out if len(r) > 2]


def _cross(a: Array, b: Array, limit: float) -> Array:
    """Where the edge a -> b (2,) meets x = limit; its ends lie on different sides."""
    return np.array([limit, a[1] + (b[1] - a[1]) * ((limit - a[0]) / (b[0] - a[0]))])


def _without_repeats(ring: Array) -> Array:
    return ring[np.abs(ring - np.roll(ring, 1, 0)).max(1) > 0]


def clip_line(line: Array, width: float, height: float) -> list[Array]:
    """The pieces (P, 2) of a polyline (P, 2) within |x| <= width / 2, |y| <= height / 2, in its own direction."""
    a, step = line[:-1], np.diff(line, axis=0)  # (S, 2)
    enter, leave = np.zeros(len(a)), np.ones(len(a))  # shares of each straight piece
    for axis, half in ((0, width / 2), (1, height / 2)):
        for sign in (1.0, -1.0):
            speed, room = sign * step[:, axis], half - sign * a[:, axis]  # inside while speed * t <= room
            with np.errstate(divide="ignore", invalid="ignore"):
                t = room / speed
            leave = np.where(speed > 0, np.minimum(leave, t), leave)
            enter = np.where(speed < 0, np.maximum(enter, t), enter)
            leave = np.where((speed == 0) & (room < 0), -1.0, leave)
    out: list[Array] = []
    piece: list[Array] = []
    for i in np.flatnonzero((enter < leave) & step.any(1)):
        if piece and enter[i] > 0:
            out.append(np.array(piece))
            piece = []
        piece = piece or [a[i] + enter[i] * step[i]]
        piece.append(line[i + 1] if leave[i] == 1 else a[i] + leave[i] * step[i])
        if leave[i] < 1:
            out.append(np.array(piece))
            piece = []
    return [*out, np.array(piece)] if piece else out
