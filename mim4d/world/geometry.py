"""Curves and frames of the world: bent street coordinates, paths along them, rigid poses. float64, metres, radians."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact

Array = NDArray[np.float64]

KERB_HEIGHT = 0.15  # of a walkway over the road, metres
PATH_STEP = 0.25  # metres between the vertices of a path
RAMP = 0.4  # metres a walker needs to step up or down a kerb


@dataclass(frozen=True)
class Bend:
    """Street coordinates (u along the main road, v to its left) mapped to map coordinates along arcs.

    The main road's centre line (v = 0) goes through ``origin`` and is made of arcs that meet without a corner; lines of
    constant u are the straight lines perpendicular to it. On each arc the map is polar coordinates, so that angles
    between streets survive and a rectangle stays a (slightly wedge-shaped) block.
    """

    origin: tuple[float, float]  # map coordinates of (u, v) = (0, 0)
    heading: float  # of the main road at u = 0
    curvature: float = 0.0  # 1/m, positive bends to the left; up to the first of ``turns``
    turns: tuple[tuple[float, float], ...] = ()  # (u, the curvature from there on), u rising

    @cached_property
    def cuts(self) -> Array:
        """(C,) the u at which one arc ends and the next begins."""
        return np.array([u for u, _ in self.turns], np.float64)

    @cached_property
    def _arcs(self) -> Array:
        """(C + 1, 5) of each arc: u, x, y and heading of a place on its centre line, and its curvature."""
        bends = [self.curvature, *(k for _, k in self.turns)]
        first = int(np.searchsorted(self.cuts, 0.0, side="right"))
        rows = {first: (0.0, *self.origin, self.heading, bends[first])}
        for i in (*range(first + 1, len(bends)), *range(first - 1, -1, -1)):
            u, known = (self.turns[i - 1][0], rows[i - 1]) if i > first else (self.turns[i][0], rows[i + 1])
            x, y = _on_arc(np.array(known), np.array(u), np.array(0.0))
            rows[i] = (u, float(x), float(y), known[3] + known[4] * (u - known[0]), bends[i])
        return np.array([rows[i] for i in range(len(bends))])

    def _arc(self, u: Array) -> Array:
        return self._arcs[np.searchsorted(self.cuts, u, side="right")]

    def point(self, uv: Array) -> Array:
        """(..., 2) street coordinates -> (..., 2) map coordinates."""
        uv = np.asarray(uv, np.float64)
        return np.stack(_on_arc(self._arc(uv[..., 0]), uv[..., 0], uv[..., 1]), -1)

    def yaw(self, u: float | Array) -> float | Array:
        """Heading of the +u direction at u."""
        at, _, _, heading, curvature = np.moveaxis(self._arc(np.asarray(u, np.float64)), -1, 0)
        out = heading + curvature * (u - at)
        return out if np.ndim(u) else float(out)

    def bends(self, u: float) -> float:
        """Curvature of the main road at u, 1/m."""
        return float(self._arc(np.asarray(u, np.float64))[4])


def _on_arc(arc: Array, u: Array, v: Array) -> tuple[Array, Array]:
    """Map coordinates of street coordinates u, v (...) on arcs (..., 5)."""
    at, x0, y0, heading, curvature = np.moveaxis(arc, -1, 0)
    straight = np.abs(curvature) < 1e-9
    k = np.where(straight, 1.0, curvature)
    sin, cos = exact.sincos(k * (u - at))
    x = np.where(straight, u - at, (1.0 / k - v) * sin)
    y = np.where(straight, v, 1.0 / k - (1.0 / k - v) * cos)
    s, c = exact.sincos(heading)
    return x0 + c * x - s * y, y0 + s * x + c * y


class Path:
    """A curve sampled densely, addressed by the length travelled along it. Beyond its ends it goes straight on."""

    def __init__(self, points: Array) -> None:
        self.points = np.asarray(points, np.float64)  # (P, 3)
        step = np.diff(self.points[:, :2], axis=0)  # (P-1, 2)
        self.s = np.concatenate([[0.0], np.cumsum(exact.norm(step))])  # (P,)
        chord = np.unwrap(exact.atan2(step[:, 1], step[:, 0]))
        # A corner's heading is the mean of its two chords'; along a chord the heading turns evenly.
        yaw = np.concatenate([chord[:1], 0.5 * (chord[1:] + chord[:-1]), chord[-1:]])
        self._table = np.concatenate([self.points, yaw[:, None]], 1)  # (P, 4) x, y, z, yaw

    @property
    def length(self) -> float:
        return float(self.s[-1])

    def at(self, s: float | Array) -> tuple[Array, Array]:
        """Length s (...) -> position (..., 3) and heading (...)."""
        s = np.asarray(s, np.float64)
        inside = np.clip(s, 0.0, self.s[-1])
        i = np.clip(np.searchsorted(self.s, inside, side="right") - 1, 0, len(self.s) - 2)
        w = ((inside - self.s[i]) / (self.s[i + 1] - self.s[i]))[..., None]
        row = self._table[i] * (1.0 - w) + self._table[i + 1] * w  # (..., 4)
        xyz, yaw = row[..., :3], row[..., 3]
        over = s - inside
        if np.any(over):
            sin, cos = exact.sincos(yaw)
            xyz[..., 0] += over * cos
            xyz[..., 1] += over * sin
        return xyz, yaw


def street_path(
    bend: Bend, corners: list[tuple[float, float]], radius: float = 0.0, kerbs: Array | None = None
) -> Path:
    """A path through corners given in street coordinates, each inner corner rounded by an arc of ``radius``.

    ``kerbs`` (K, 2): lengths (in street coordinates) between which the path lies on the road at z = 0; everywhere else
    it runs on the walkway. None: on the road throughout.
    """
    pts = [np.asarray(c, np.float64) for c in corners]
    poly: list[Array] = [pts[0]]
    for a, b, c in zip(pts, pts[1:], pts[2:], strict=False):
        din, dout = (b - a) / exact.norm(b - a), (c - b) / exact.norm(c - b)
        turn = exact.atan2(float(din[0] * dout[1] - din[1] * dout[0]), float(exact.dot(din, dout)))
        cut = radius * exact.tan(abs(turn) / 2)
        left = np.array([-din[1], din[0]]) * math.copysign(1.0, turn)
        centre = b - din * cut + left * radius
        n = max(2, math.ceil(radius * abs(turn) / PATH_STEP))
        angle = exact.atan2(float(-left[1]), float(-left[0])) + np.linspace(0.0, turn, n + 1)
        sin, cos = exact.sincos(angle)
        poly.extend(centre + radius * np.stack([cos, sin], -1))
    poly.append(pts[-1])
    dense = []
    for a, b in pairwise(poly):
        n = max(1, math.ceil(float(exact.norm(b - a)) / PATH_STEP))
        dense.append(a + (b - a) * (np.arange(n)[:, None] / n))
    uv = np.concatenate([*dense, poly[-1:]])  # (P, 2)
    uv = uv[np.concatenate([[True], exact.norm(np.diff(uv, axis=0)) > 1e-9])]
    z = np.zeros(len(uv))
    if kerbs is not None:
        s = np.concatenate([[0.0], np.cumsum(exact.norm(np.diff(uv, axis=0)))])
        z += KERB_HEIGHT
        for lo, hi in kerbs:
            z -= KERB_HEIGHT * np.clip(np.minimum(s - lo, hi - s) / RAMP + 1.0, 0.0, 1.0)
    return Path(np.concatenate([bend.point(uv), z[:, None]], 1))


def yaw_matrix(yaw: float) -> Array:
    """Heading -> rotation (3, 3) about z."""
    s, c = exact.sincos(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def rigid(rotation: Array, translation: Array) -> Array:
    """Rotation (3, 3) and translation (3,) -> (4, 4)."""
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation, translation
    return out


def quaternion(rotation: Array) -> list[float]:
    """Rotation (3, 3) -> unit quaternion (w, x, y, z) with w >= 0 (Shepperd's method: the largest component first)."""
    m = rotation
    squares = np.array(
        [
            1 + m[0, 0] + m[1, 1] + m[2, 2],
            1 + m[0, 0] - m[1, 1] - m[2, 2],
            1 - m[0, 0] + m[1, 1] - m[2, 2],
            1 - m[0, 0] - m[1, 1] + m[2, 2],
        ]
    )
    i = int(squares.argmax())
    a, b, c = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    d, e, f = m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1]
    rows = [[squares[0], a, b, c], [a, squares[1], d, e], [b, d, squares[2], f], [c, e, f, squares[3]]]
    q = np.array(rows[i]) / (2.0 * math.sqrt(squares[i]))
    q = q if q[0] >= 0 else -q
    return [float(x) for x in q / exact.norm(q)]


def boxes_overlap(
    centre_a: Array, yaw_a: Array, half_a: Array, centre_b: Array, yaw_b: Array, half_b: Array
) -> NDArray[np.bool_]:
    """Separating-axis test of rectangles, broadcast over the leading dimensions.

    centre (..., 2), yaw (...), half (..., 2) = (half length, half width). True where they overlap.
    """
    delta = centre_b - centre_a
    (sa, ca), (sb, cb) = exact.sincos(yaw_a), exact.sincos(yaw_b)
    cos, sin = np.abs(ca * cb + sa * sb), np.abs(sa * cb - ca * sb)  # of the angle between the two
    along_a = np.abs(delta[..., 0] * ca + delta[..., 1] * sa)
    across_a = np.abs(-delta[..., 0] * sa + delta[..., 1] * ca)
    along_b = np.abs(delta[..., 0] * cb + delta[..., 1] * sb)
    across_b = np.abs(-delta[..., 0] * sb + delta[..., 1] * cb)
    la, wa, lb, wb = half_a[..., 0], half_a[..., 1], half_b[..., 0], half_b[..., 1]
    return (
        (along_a < la + lb * cos + wb * sin)
        & (across_a < wa + lb * sin + wb * cos)
        & (along_b < lb + la * cos + wa * sin)
        & (across_b < wb + la * sin + wa * cos)
    )


def outlines(boxes: list[tuple[float, float, float, float]]) -> list[Array]:
    """Outlines of the union of boxes (u0, u1, v0, v1) that hang together: first the outer one, counter-clockwise, then
    the holes, clockwise. Rings (P, 2) with a vertex wherever the side of any box goes through.
    """
    us, vs = (np.unique([b[i + j] for b in boxes for j in (0, 1)]) for i in (0, 2))
    full = np.zeros((len(us) + 1, len(vs) + 1), bool)  # with an empty border: cell (i, j) begins at us[i-1], vs[j-1]
    for u0, u1, v0, v1 in boxes:
        i, j = np.searchsorted(us, (u0, u1)) + 1, np.searchsorted(vs, (v0, v1)) + 1
        full[i[0] : i[1], j[0] : j[1]] = True
    steps = (
        ((0, -1), (-1, -1), (0, -1)),
        ((1, 0), (0, -1), (0, 0)),
        ((0, 1), (0, 0), (-1, 0)),
        ((-1, 0), (-1, 0), (-1, -1)),
    )
    onward = {  # border vertex -> the next, the road on the left
        (i + a[0], j + a[1]): (i + b[0], j + b[1])
        for i, j in np.argwhere(full).tolist()
        for beside, a, b in steps
        if not full[i + beside[0], j + beside[1]]
    }
    rings = []
    while onward:
        start = min(onward)  # the leftmost vertex of all lies on the outer ring
        ring = [start]
        while (at := onward.pop(ring[-1])) != start:
            ring.append(at)
        rings.append(np.array([(us[i], vs[j]) for i, j in ring]))
    return rings
