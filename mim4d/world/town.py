"""What stands still: the ground, kerbs and walkways, houses, trees, lamps, signs, hedges."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.geometry import KERB_HEIGHT, yaw_matrix
from mim4d.world.mesh import RGB, WHITE, Builder, Mesh, blob, colour
from mim4d.world.roads import WALKWAY, Block, Roads
from mim4d.world.styles import Style
from mim4d.world.textures import TILE_METRES
from mim4d.world.textures import Material as M

Array = NDArray[np.float64]
Span = tuple[float, float]

HOUSES_WITHIN, LAMPS_WITHIN, TREES_WITHIN, FINE_TREES_WITHIN = 105.0, 90.0, 75.0, 35.0  # metres from the ego's way
STRIP = 0.75  # trees, lamps and signs stand this far behind the kerb; people walk further in
ROOFS: tuple[RGB, ...] = ((0.62, 0.27, 0.2), (0.35, 0.33, 0.33), (0.5, 0.36, 0.28))


def _span(a: float, b: float) -> Span:
    return (a, b) if a < b else (b, a)


class Town:
    """Builds the still world of a scene near the ego's way."""

    def __init__(
        self, rng: np.random.Generator, roads: Roads, style: Style, way: Array, occupied: Array, origin: Array
    ) -> None:
        """``way`` (T, 2): where the ego goes. The mesh's coordinates count from ``origin`` (3,).

        ``occupied`` (A, 4): x, y, radius and height of standing actors."""
        self.rng, self.roads, self.style, self.way, self.occupied = rng, roads, style, way, occupied
        self.b = Builder(origin)

    def build(self) -> Mesh:
        self._ground()
        for block in self.roads.blocks:
            self._slab(block)
            self._houses(block)
            self._furniture(block)
        self._horizon()
        return self.b.mesh()

    def _near(self, xy: Array, reach: float) -> bool:
        return bool(exact.norm(self.way - xy).min() < reach)

    def _free(self, xy: Array, radius: float, above: float = 0.0) -> bool:
        """Whether a disc touches no standing actor that is taller than ``above``."""
        other = self.occupied[self.occupied[:, 3] > above]
        return bool((exact.norm(other[:, :2] - xy) > other[:, 2] + radius).all())

    def _corners(self, u: Span, v: Span) -> Array:
        return self.roads.bend.point(np.array([(u[0], v[0]), (u[1], v[0]), (u[1], v[1]), (u[0], v[1])]))

    # ---- the ground

    def _ground(self) -> None:
        x, y = self.roads.bend.origin
        r = 900.0
        tiles = 2 * r / float(TILE_METRES[M.ASPHALT])
        plane = [(x - r, y - r, 0.0), (x + r, y - r, 0.0), (x + r, y + r, 0.0), (x - r, y + r, 0.0)]
        self.b.quad(plane, M.ASPHALT, WHITE, (tiles, tiles))

    def _top(self, u: Span, v: Span, material: M, tint: RGB = WHITE, z: float = KERB_HEIGHT) -> None:
        """A level patch of street coordinates, cut along u so that it follows the bend."""
        metres = float(TILE_METRES[material])
        n = max(1, math.ceil((u[1] - u[0]) / 8.0))
        edges = np.linspace(*u, n + 1)
        for a, b in pairwise(edges):
            p = self._corners((a, b), v)
            size = ((b - a) / metres, (v[1] - v[0]) / metres)
            self.b.quad([(*q, z) for q in p], material, tint, size, (a / metres, v[0] / metres))

    def _kerb(self, a: tuple[float, float], b: tuple[float, float]) -> None:
        """The upright side of a slab; the slab lies to the left of a -> b."""
        length = exact.hypot(b[0] - a[0], b[1] - a[1])
        n = max(1, math.ceil(length / 8.0))
        t = np.linspace(0, 1, n + 1)[:, None]
        p = self.roads.bend.point(np.asarray(a) * (1 - t) + np.asarray(b) * t)
        for i in range(n):
            corners = [(*p[i], 0.0), (*p[i + 1], 0.0), (*p[i + 1], KERB_HEIGHT), (*p[i], KERB_HEIGHT)]
            self.b.quad(corners, M.KERB, WHITE, (length / n / 2, 1))

    def _slab(self, k: Block) -> None:
        """A block's raised floor: kerb stones and walkway along the streets, the rest inside."""
        stone = 0.25
        out = 1.0 if k.v0 > 0 else -1.0
        near, far = k.near, out * max(abs(k.v0), abs(k.v1))
        self._top((k.u0, k.u1), _span(near, near + out * stone), M.KERB)
        self._top((k.u0, k.u1), _span(near + out * stone, near + out * WALKWAY), M.CONCRETE)
        inner = _span(near + out * WALKWAY, far)
        u0, u1 = k.u0, k.u1
        if k.street_before:
            u0 += WALKWAY
            self._top((k.u0, u0), inner, M.CONCRETE)
        if k.street_after:
            u1 -= WALKWAY
            self._top((u1, k.u1), inner, M.CONCRETE)
        self._top((u0, u1), inner, self.style.inner, (0.9, 0.85, 0.8))
        corners = [(k.u0, k.v0), (k.u1, k.v0), (k.u1, k.v1), (k.u0, k.v1)]
        for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
            self._kerb(a, b)

    # ---- houses

    def _gap(self, chance: float, widest: float) -> float:
        """Between two houses: none worth the name, or a passage."""
        rng = self.rng
        return float(rng.uniform(1.5, widest)) if self.style.gables or rng.random() < chance else 0.15

    def _houses(self, k: Block) -> None:
        """A row along the main road, rows along the cross streets behind it, and some taller ones over the roofs."""
        s, rng = self.style, self.rng
        out = 1.0 if k.v0 > 0 else -1.0
        near = abs(k.near) + WALKWAY
        u, stop = k.u0 + WALKWAY + 0.3, k.u1 - WALKWAY - 0.3
        while u < stop - 7:
            width, depth, back = min(rng.uniform(8, 20), stop - u), rng.uniform(9, 15), rng.uniform(*s.setback)
            if rng.random() < 0.12:
                self._park((u, u + width), near + 1, near + 14, out)
            else:
                self._house((u, u + width), _span(out * (near + back), out * (near + back + depth)))
            u += width + self._gap(0.35, 6.0)
        for street, edge, inward in ((k.street_before, k.u0, 1.0), (k.street_after, k.u1, -1.0)):
            v = near + 24.0
            while street and v < self.roads.reach - 9:
                width, depth, back = rng.uniform(8, 18), rng.uniform(9, 14), rng.uniform(*s.setback)
                a = edge + inward * (WALKWAY + back)
                self._house(_span(a, a + inward * depth), _span(out * v, out * (v + width)))
                v += width + self._gap(0.4, 7.0)
        for _ in range(6):
            u, v = rng.uniform(k.u0 + 28, k.u1 - 14), rng.uniform(near + 28, near + 60)
            if u + 14 < k.u1 - 28 and v + 12 < self.roads.reach:
                self._house((u, u + 14), _span(out * v, out * (v + 12)), taller=2)

    def _house(self, u: Span, v: Span, taller: int = 0) -> None:
        s, rng = self.style, self.rng
        base = self._corners(u, v)
        floors = int(rng.integers(s.floors[0], s.floors[1] + 1)) + taller
        wall = s.walls[int(rng.integers(len(s.walls)))]
        tint = colour(np.array(s.tints[int(rng.integers(len(s.tints)))]) * rng.uniform(0.8, 1.1, 3))
        shop, height, roof = rng.random() < s.shops, float(rng.uniform(2.8, 3.5)), float(rng.random())
        second = colour(rng.uniform(0.15, 0.95, 3))
        if not self._near(base.mean(0), HOUSES_WITHIN):
            return
        z = KERB_HEIGHT
        if shop:
            self.b.prism(base, z, z + 3.8, M.SHOP, M.BLANK, second, metres=4.5)
            z += 3.8
        top = z + floors * height
        self.b.prism(base, z, top, wall, M.GRAVEL, tint, up=floors, metres=3.0, top_tint=WHITE)
        if s.gables:
            self._gable(u, v, top, ROOFS[int(roof * 3)], tint)
            return
        middle = base.mean(0)
        self.b.prism(
            middle + (base - middle) * 1.02, top - 0.1, top + 0.5, M.BLANK, M.GRAVEL, (0.7, 0.7, 0.7), metres=3.0
        )
        if roof < 0.5:
            hut = middle + (base - middle) * 0.3
            self.b.prism(hut, top, top + 2.4, M.CORRUGATED, M.METAL, (0.8, 0.8, 0.8), metres=3.0)

    def _gable(self, u: Span, v: Span, top: float, tiles: RGB, wall: RGB) -> None:
        over, middle, rise = 0.4, 0.5 * (v[0] + v[1]), 0.3 * (v[1] - v[0])
        wide, deep = (u[0] - over, u[1] + over), (v[0] - over, v[1] + over)
        e = [(*p, top - 0.15) for p in self._corners(wide, deep)]
        r = [(*p, top + rise) for p in self.roads.bend.point(np.array([(wide[0], middle), (wide[1], middle)]))]
        across = max(1.0, (u[1] - u[0]) / 2)
        self.b.quad([e[0], e[1], r[1], r[0]], M.TILES, tiles, (across, 3))
        self.b.quad([e[2], e[3], r[0], r[1]], M.TILES, tiles, (across, 3))
        for triangle in ([e[1], e[2], r[1]], [e[3], e[0], r[0]]):
            self.b.triangle(triangle, [(0, 0), (2, 0), (1, 1)], M.BLANK, wall)

    def _horizon(self) -> None:
        """A ring of tall blocks far out, so that no view ends in nothing."""
        rng, s = self.rng, self.style
        middle = self.way.mean(0)
        span = float(exact.norm(self.way - middle).max())
        square = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
        for i in range(44):
            a = 2 * math.pi * (i + rng.uniform(-0.3, 0.3)) / 44
            d, width = span + rng.uniform(235, 300), rng.uniform(16, 34)
            turn = yaw_matrix(a + rng.uniform(-0.4, 0.4))[:2, :2]
            sin, cos = exact.sincos(a)
            base = middle + d * np.array([cos, sin]) + width * exact.apply(turn, square)
            floors = int(rng.integers(5, 13))
            tint = colour(np.array(s.tints[i % len(s.tints)]) * 0.9)
            self.b.prism(base, 0.0, floors * 3.2, s.walls[i % 3], M.GRAVEL, tint, up=floors, metres=3.0)

    # ---- what stands along the street

    def _furniture(self, k: Block) -> None:
        """Trees, lamps and signs along the kerbs, between the parked cars and the people."""
        out = 1.0 if k.v0 > 0 else -1.0
        v = k.near + out * STRIP
        for u in self._stops(k.u0 + 6.0, k.u1 - 6.0):
            self._something(u, v, (0.0, -out))
        lo, hi = abs(k.near) + 8.0, self.roads.reach - 4.0
        for street, u, toward in (
            (k.street_before, k.u0 + STRIP, -1.0),
            (k.street_after, k.u1 - STRIP, 1.0),
        ):
            for w in self._stops(lo, hi) if street else []:
                self._something(u, out * w, (toward, 0.0))

    def _stops(self, lo: float, hi: float) -> list[float]:
        """Places along a kerb, unevenly spaced."""
        out = []
        at = lo
        while at < hi:
            out.append(at)
            at += float(self.rng.uniform(0.25, 0.75)) / self.style.trees
        return out

    def _something(self, u: float, v: float, road: tuple[float, float]) -> None:
        """A tree, a lamp or a sign; ``road`` points to the street in street coordinates."""
        what = self.rng.random()
        if what < 0.55:
            self._tree(u, v)
        elif what < 0.8:
            self._lamp(u, v, road)
        else:
            self._sign(u, v)

    def _park(self, u: Span, near: float, far: float, out: float) -> None:
        v = _span(out * near, out * far)
        self._top(u, v, M.GRASS, z=KERB_HEIGHT + 0.02)
        for _ in range(int((u[1] - u[0]) * (far - near) / 40)):
            self._tree(float(self.rng.uniform(u[0] + 1, u[1] - 1)), float(self.rng.uniform(v[0] + 1, v[1] - 1)))
        hedge = self._corners((u[0] + 0.5, u[1] - 0.5), _span(out * near, out * (near + 0.7)))
        height = float(self.rng.uniform(0.8, 1.5))
        if self._near(hedge.mean(0), TREES_WITHIN):
            leaves = self.style.leaves
            self.b.prism(hedge, KERB_HEIGHT, KERB_HEIGHT + height, M.FOLIAGE, M.FOLIAGE, leaves, metres=2.5)

    def _tree(self, u: float, v: float) -> None:
        rng = self.rng
        crown, yaw = float(rng.uniform(1.3, 2.3)), float(rng.uniform(0, 6.3))
        height = 2 * crown + float(rng.uniform(2.4, 4.0))
        tint = colour(np.array(self.style.leaves) * rng.uniform(0.75, 1.25, 3), limit=2.0)
        xy = self.roads.bend.point(np.array((u, v)))
        room = self._free(xy, 0.6) and self._free(xy, 1.3 * crown, above=2.2)
        if not (room and self._near(xy, TREES_WITHIN)):
            return
        self.b.pole(xy, KERB_HEIGHT, height - crown, 0.13 + 0.02 * height, M.BARK, scale=0.7)
        self.b.add(blob(rng, (crown, crown, 0.9 * crown), tint), np.eye(3), (*xy, height - crown))
        for angle in (yaw, yaw + 2.4) if self._near(xy, FINE_TREES_WITHIN) else ():
            sin, cos = exact.sincos(angle)
            place = (xy[0] + 0.6 * crown * cos, xy[1] + 0.6 * crown * sin, height - 1.25 * crown)
            self.b.add(blob(rng, (0.7 * crown,) * 3, tint), np.eye(3), place)

    def _lamp(self, u: float, v: float, road: tuple[float, float]) -> None:
        xy = self.roads.bend.point(np.array((u, v)))
        if not (self._free(xy, 0.4) and self._near(xy, LAMPS_WITHIN)):
            return
        grey = (0.8, 0.85, 0.8)
        self.b.pole(xy, KERB_HEIGHT, 7.5, 0.1, M.METAL, grey, scale=0.6)
        arm = self.roads.bend.point(np.array((u + 2.2 * road[0], v + 2.2 * road[1]))) - xy
        across = np.array([-arm[1], arm[0]]) / exact.norm(arm)  # to the left of the arm
        base = [xy - 0.05 * across, xy + arm - 0.1 * across, xy + arm + 0.1 * across, xy + 0.05 * across]
        self.b.prism(np.array(base), 7.4, 7.55, M.METAL, M.METAL, grey)

    def _sign(self, u: float, v: float) -> None:
        rng = self.rng
        xy, tint = self.roads.bend.point(np.array((u, v))), colour(rng.uniform(0.2, 1.0, 3))
        turn = yaw_matrix(float(self.roads.bend.yaw(u)) + math.pi / 2 * int(rng.integers(2)))
        if not (self._free(xy, 0.6) and self._near(xy, TREES_WITHIN)):
            return
        self.b.pole(xy, KERB_HEIGHT, 2.5, 0.05, M.METAL)
        part = Builder()
        part.box((0, 0, 2.2), (0.06, 0.9, 1.0), M.POSTER, tint)
        self.b.add(part.mesh(), turn, (*xy, 0.0))
