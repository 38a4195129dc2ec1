"""What stands still: the ground, kerbs and walkways, buildings, trees, lamps, hedges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim4d.world.geometry import KERB_HEIGHT
from mim4d.world.mesh import RGB, Builder, Mesh, blob
from mim4d.world.roads import WALKWAY, Block, Roads
from mim4d.world.textures import Material as M

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Style:
    """A town's character: what its houses are made of, how high they are, what grows there."""

    walls: tuple[M, ...]
    tints: tuple[RGB, ...]
    floors: tuple[int, int]
    shops: float  # share of houses with a shop on the ground floor
    gables: bool
    setback: tuple[float, float]
    trees: float  # along the kerb, per metre
    inner: M  # what covers the block behind the walkway
    leaves: RGB


STYLES: dict[str, Style] = {
    "brick": Style((M.BRICK, M.BRICK, M.PLASTER), ((0.62, 0.3, 0.22), (0.7, 0.42, 0.3), (0.5, 0.27, 0.24), (0.8, 0.68, 0.5)), (3, 6), 0.5, False, (0.2, 2.0), 0.06, M.PAVERS, (1.1, 1.0, 0.8)),
    "centre": Style((M.CURTAIN, M.PLASTER, M.CURTAIN), ((0.75, 0.85, 1.0), (0.9, 0.9, 0.85), (0.5, 0.65, 0.7), (0.95, 0.8, 0.62)), (5, 12), 0.7, False, (1.0, 4.0), 0.045, M.CONCRETE, (0.8, 1.1, 0.7)),
    "suburb": Style((M.PLASTER, M.BRICK, M.PLASTER), ((0.95, 0.92, 0.8), (0.75, 0.82, 0.88), (0.9, 0.7, 0.55), (0.72, 0.42, 0.34)), (2, 3), 0.0, True, (3.0, 7.0), 0.07, M.GRASS, (0.9, 1.15, 0.7)),
    "works": Style((M.CORRUGATED, M.BLANK, M.BRICK), ((0.6, 0.66, 0.72), (0.7, 0.62, 0.5), (0.42, 0.5, 0.48), (0.75, 0.36, 0.25)), (2, 4), 0.0, False, (2.0, 6.0), 0.03, M.GRAVEL, (1.2, 1.0, 0.6)),
    "old": Style((M.PLASTER, M.PLASTER, M.BRICK), ((0.95, 0.8, 0.5), (0.9, 0.6, 0.45), (0.7, 0.78, 0.6), (0.93, 0.88, 0.8)), (3, 5), 0.6, True, (0.0, 0.8), 0.03, M.PAVERS, (1.0, 0.95, 0.7)),
    "towers": Style((M.BLANK, M.CURTAIN, M.PLASTER), ((0.62, 0.58, 0.55), (0.8, 0.78, 0.74), (0.55, 0.62, 0.72), (0.72, 0.5, 0.42)), (6, 14), 0.4, False, (2.0, 6.0), 0.08, M.GRASS, (0.7, 1.0, 0.75)),
}  # fmt: skip
TRAIN_STYLES = ("brick", "centre", "suburb", "works")
VAL_STYLES = ("old", "towers")


class Town:
    """Builds the still world of a scene near the ego's way."""

    def __init__(self, rng: np.random.Generator, roads: Roads, style: Style, way: Array, occupied: Array) -> None:
        """``way`` (T, 2): where the ego goes. ``occupied`` (A, 3): x, y and radius of standing actors to keep free."""
        self.rng, self.roads, self.style, self.way, self.occupied = rng, roads, style, way, occupied
        self.b = Builder()

    def _near(self, xy: Array, reach: float) -> bool:
        return bool(np.hypot(*(self.way - xy).T).min() < reach)

    def _free(self, xy: Array, radius: float) -> bool:
        if len(self.occupied) == 0:
            return True
        return bool((np.hypot(*(self.occupied[:, :2] - xy).T) > self.occupied[:, 2] + radius).all())

    def build(self) -> Mesh:
        self._ground()
        for block in self.roads.blocks:
            self._slab(block)
            self._houses(block)
            self._furniture(block)
        self._horizon()
        return self.b.mesh()

    def _ground(self) -> None:
        x, y = self.roads.bend.origin
        r = 900.0
        corners = [(x - r, y - r, 0.0), (x + r, y - r, 0.0), (x + r, y + r, 0.0), (x - r, y + r, 0.0)]
        self.b.quad(corners, M.ASPHALT, (1, 1, 1), (2 * r / 3, 2 * r / 3))

    def _top(
        self, u0: float, u1: float, v0: float, v1: float, material: M, tint: RGB, metres: float, z: float = KERB_HEIGHT
    ) -> None:
        """A level patch of street coordinates, cut along u so that it follows the bend."""
        n = max(1, math.ceil((u1 - u0) / 8.0))
        edges = np.linspace(u0, u1, n + 1)
        p = self.roads.bend.point(np.stack(np.meshgrid(edges, [v0, v1]), -1))  # (2, n+1, 2)
        for i in range(n):
            corners = [(*p[0, i], z), (*p[0, i + 1], z), (*p[1, i + 1], z), (*p[1, i], z)]
            size = ((edges[i + 1] - edges[i]) / metres, (v1 - v0) / metres)
            self.b.quad(corners, material, tint, size, (edges[i] / metres, v0 / metres))

    def _kerb(self, a: tuple[float, float], b: tuple[float, float]) -> None:
        """The upright side of a slab; the slab lies to the left of a -> b."""
        n = max(1, math.ceil(math.dist(a, b) / 8.0))
        t = np.linspace(0, 1, n + 1)[:, None]
        p = self.roads.bend.point(np.asarray(a) * (1 - t) + np.asarray(b) * t)
        for i in range(n):
            corners = [(*p[i], 0.0), (*p[i + 1], 0.0), (*p[i + 1], KERB_HEIGHT), (*p[i], KERB_HEIGHT)]
            self.b.quad(corners, M.KERB, (1, 1, 1), (math.dist(a, b) / n / 2, 1))

    def _slab(self, k: Block) -> None:
        ends = (k.u0 > -169, k.u1 < 169)
        kerb = 0.25
        near_low = k.v0 > 0
        inner = (k.v0 + WALKWAY, k.v1) if near_low else (k.v0, k.v1 - WALKWAY)
        edge = (k.v0, k.v0 + kerb) if near_low else (k.v1 - kerb, k.v1)
        walk = (k.v0 + kerb, k.v0 + WALKWAY) if near_low else (k.v1 - WALKWAY, k.v1 - kerb)
        grey: RGB = (1, 1, 1)
        self._top(k.u0, k.u1, *edge, M.KERB, grey, 2.0)
        self._top(k.u0, k.u1, *walk, M.CONCRETE, grey, 2.0)
        u0, u1 = k.u0 + WALKWAY * ends[0], k.u1 - WALKWAY * ends[1]
        if ends[0]:
            self._top(k.u0, k.u0 + WALKWAY, *inner, M.CONCRETE, grey, 2.0)
        if ends[1]:
            self._top(k.u1 - WALKWAY, k.u1, *inner, M.CONCRETE, grey, 2.0)
        tile = {M.GRASS: 4.0, M.GRAVEL: 3.0}.get(self.style.inner, 2.0)
        self._top(u0, u1, *inner, self.style.inner, (0.9, 0.85, 0.8), tile)
        corners = [(k.u0, k.v0), (k.u1, k.v0), (k.u1, k.v1), (k.u0, k.v1)]
        for i in range(4):
            self._kerb(corners[i], corners[(i + 1) % 4])

    def _houses(self, k: Block) -> None:
        """A row along the main road, then rows along the cross streets behind it."""
        s, rng = self.style, self.rng
        ends = (k.u0 > -169, k.u1 < 169)
        out = 1.0 if k.v0 > 0 else -1.0
        near = min(abs(k.v0), abs(k.v1)) + WALKWAY
        u, stop = k.u0 + WALKWAY + 0.3, k.u1 - WALKWAY - 0.3
        while u < stop - 7:
            width, depth, back = rng.uniform(8, 20), rng.uniform(9, 15), rng.uniform(*s.setback)
            width = min(width, stop - u)
            if rng.random() < 0.12:
                self._park(u, u + width, out * (near + 1), out * (near + 14))
            else:
                self._house(u, u + width, *sorted((out * (near + back), out * (near + back + depth))))
            u += width + (rng.uniform(1.5, 6.0) if s.gables or rng.random() < 0.35 else 0.15)
        for meets, u_edge, inward in ((ends[0], k.u0, 1.0), (ends[1], k.u1, -1.0)):
            v = near + 24.0
            while meets and v < self.roads.reach - 9:
                width, depth, back = rng.uniform(8, 18), rng.uniform(9, 14), rng.uniform(*s.setback)
                a = u_edge + inward * (WALKWAY + back)
                self._house(*sorted((a, a + inward * depth)), *sorted((out * v, out * (v + width))))
                v += width + (rng.uniform(1.5, 7.0) if s.gables or rng.random() < 0.4 else 0.15)
        for _ in range(6):  # taller ones behind, over the roofs
            u = rng.uniform(k.u0 + 20, max(k.u1 - 35, k.u0 + 21))
            v = rng.uniform(near + 28, max(self.roads.reach - 18, near + 30))
            if u + 15 < k.u1 - 22:
                self._house(u, u + 14, *sorted((out * v, out * (v + 12))), taller=2)

    def _house(self, u0: float, u1: float, v0: float, v1: float, taller: int = 0) -> None:
        s, rng = self.style, self.rng
        base = self.roads.bend.point(np.array([(u0, v0), (u1, v0), (u1, v1), (u0, v1)]))
        floors = int(rng.integers(s.floors[0], s.floors[1] + 1)) + taller
        wall = s.walls[int(rng.integers(len(s.walls)))]
        tint = np.array(s.tints[int(rng.integers(len(s.tints)))]) * rng.uniform(0.8, 1.1, 3)
        shop, height, roof = rng.random() < s.shops, float(rng.uniform(2.8, 3.5)), rng.random()
        second = tuple(rng.uniform(0.15, 0.95, 3))
        if not self._near(base.mean(0), 105.0):
            return
        colour: RGB = tuple(np.clip(tint, 0.05, 1.0))  # type: ignore[assignment]
        z = KERB_HEIGHT
        corners = [tuple(p) for p in base]
        if shop:
            self.b.prism(corners, z, z + 3.8, M.SHOP, M.BLANK, second, tiles=(1, 1), metres=4.5)  # type: ignore[arg-type]
            z += 3.8
        top = z + floors * height
        flat = not s.gables
        self.b.prism(corners, z, top, wall, M.GRAVEL, colour, tiles=(1, floors), metres=3.0, top_tint=(1, 1, 1))
        if flat:
            middle = base.mean(0)
            ring = [tuple(middle + (p - middle) * 1.02) for p in base]
            self.b.prism(ring, top - 0.1, top + 0.5, M.BLANK, M.GRAVEL, (0.7, 0.7, 0.7), metres=3.0)
            if roof < 0.5:
                hut = [tuple(middle + (p - middle) * 0.3) for p in base]
                self.b.prism(hut, top, top + 2.4, M.CORRUGATED, M.METAL, (0.8, 0.8, 0.8), metres=3.0)
            return
        rise, over = 0.3 * (v1 - v0), 0.4
        eave = self.roads.bend.point(
            np.array([(u0 - over, v0 - over), (u1 + over, v0 - over), (u1 + over, v1 + over), (u0 - over, v1 + over)])
        )
        ridge = self.roads.bend.point(np.array([(u0 - over, (v0 + v1) / 2), (u1 + over, (v0 + v1) / 2)]))
        e = [(*p, top - 0.15) for p in eave]
        r = [(*p, top + rise) for p in ridge]
        red: RGB = ((0.62, 0.27, 0.2), (0.35, 0.33, 0.33), (0.5, 0.36, 0.28))[int(roof * 3)]
        across = max(1.0, (u1 - u0) / 2)
        self.b.quad([e[0], e[1], r[1], r[0]], M.TILES, red, (across, 3))
        self.b.quad([e[2], e[3], r[0], r[1]], M.TILES, red, (across, 3))
        for tri in ([e[1], e[2], r[1]], [e[3], e[0], r[0]]):
            self.b.triangle(tri, [(0, 0), (2, 0), (1, 1)], M.BLANK, colour)

    def _park(self, u0: float, u1: float, v0: float, v1: float) -> None:
        lo, hi = sorted((v0, v1))
        self._top(u0, u1, lo, hi, M.GRASS, (1, 1, 1), 4.0, KERB_HEIGHT + 0.02)
        for _ in range(int((u1 - u0) * (hi - lo) / 40)):
            self._tree(float(self.rng.uniform(u0 + 1, u1 - 1)), float(self.rng.uniform(lo + 1, hi - 1)))
        near, sign = (lo, 1) if v0 < v1 else (hi, -1)
        self._hedge(u0 + 0.5, u1 - 0.5, near, near + sign * 0.7)

    def _hedge(self, u0: float, u1: float, v0: float, v1: float) -> None:
        lo, hi = sorted((v0, v1))
        height = float(self.rng.uniform(0.8, 1.5))
        base = self.roads.bend.point(np.array([(u0, lo), (u1, lo), (u1, hi), (u0, hi)]))
        if self._near(base.mean(0), 80.0) and u1 - u0 > 1:
            self.b.prism(
                [tuple(p) for p in base],
                KERB_HEIGHT,
                KERB_HEIGHT + height,
                M.FOLIAGE,
                M.FOLIAGE,
                self.style.leaves,
                metres=2.5,
            )

    def _tree(self, u: float, v: float) -> None:
        rng = self.rng
        height, crown, yaw = rng.uniform(4.5, 8.5), rng.uniform(1.3, 2.3), rng.uniform(0, 6.3)
        x, y = self.roads.bend.point(np.array((u, v)))
        tint = tuple(np.array(self.style.leaves) * rng.uniform(0.75, 1.25, 3))
        parts = [blob(rng, (crown, crown, crown * 0.9), tint)]  # type: ignore[arg-type]
        offsets = [(0.0, 0.0, height - crown)]
        for k in range(2):
            a = yaw + 2.4 * k
            parts.append(blob(rng, (crown * 0.7,) * 3, tint))  # type: ignore[arg-type]
            offsets.append((0.7 * crown * math.cos(a), 0.7 * crown * math.sin(a), height - 1.6 * crown))
        xy = np.array([x, y])
        if not (self._near(xy, 75.0) and self._free(xy, 0.6)):
            return
        self.b.pole(x, y, KERB_HEIGHT, height - crown, 0.13 + 0.02 * height, M.BARK, scale=0.7)
        for part, (dx, dy, dz) in zip(parts, offsets):
            self.b.add(part.moved(np.eye(3), (x + dx, y + dy, dz)))

    def _lamp(self, u: float, v: float, toward: float) -> None:
        x, y = self.roads.bend.point(np.array((u, v)))
        xy = np.array([x, y])
        if not (self._near(xy, 90.0) and self._free(xy, 0.4)):
            return
        self.b.pole(x, y, KERB_HEIGHT, 7.5, 0.1, M.METAL, (0.8, 0.85, 0.8), scale=0.6)
        ex, ey = self.roads.bend.point(np.array((u, v + toward)))
        dx, dy = (ey - y) * 0.05 / abs(toward), -(ex - x) * 0.05 / abs(toward)
        arm = [(x - dx, y - dy), (x + dx, y + dy), (ex + 2 * dx, ey + 2 * dy), (ex - 2 * dx, ey - 2 * dy)]
        area = sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(arm, arm[1:] + arm[:1]))
        self.b.prism(arm if area > 0 else arm[::-1], 7.4, 7.55, M.METAL, M.METAL, (0.8, 0.85, 0.8))

    def _sign(self, u: float, v: float) -> None:
        rng = self.rng
        x, y = self.roads.bend.point(np.array((u, v)))
        xy, colour = np.array([x, y]), tuple(rng.uniform(0.2, 1.0, 3))
        if not (self._near(xy, 70.0) and self._free(xy, 0.6)):
            return
        yaw = float(self.roads.bend.yaw(u)) + math.pi / 2 * int(rng.integers(2))
        self.b.pole(x, y, KERB_HEIGHT, 2.5, 0.05, M.METAL)
        part = Builder()
        part.box((0, 0, 2.2), (0.06, 0.9, 1.0), M.POSTER, colour)  # type: ignore[arg-type]
        c, s = math.cos(yaw), math.sin(yaw)
        self.b.add(part.mesh().moved(np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]), (x, y, 0.0)))

    def _furniture(self, k: Block) -> None:
        """Trees, lamps and signs in the strip between the kerb and the walkers."""
        rng, out = self.rng, (1.0 if k.v0 > 0 else -1.0)
        v = out * (min(abs(k.v0), abs(k.v1)) + 0.75)
        u = k.u0 + 6.0
        while u < k.u1 - 6.0:
            what = rng.random()
            if what < 0.55:
                self._tree(u, v)
            elif what < 0.8:
                self._lamp(u, v, -out * 2.2)
            else:
                self._sign(u, v)
            u += float(rng.uniform(0.5, 1.5)) * 0.5 / self.style.trees

    def _horizon(self) -> None:
        """A ring of tall blocks far out, so that no view ends in nothing."""
        rng = self.rng
        x, y = self.way.mean(0)
        span = float(np.hypot(*(self.way - (x, y)).T).max())
        for i in range(44):
            a = 2 * math.pi * (i + rng.uniform(-0.3, 0.3)) / 44
            d, w = span + rng.uniform(235, 300), rng.uniform(16, 34)
            cx, cy, yaw = x + d * math.cos(a), y + d * math.sin(a), a + rng.uniform(-0.4, 0.4)
            c, s = math.cos(yaw), math.sin(yaw)
            base = [
                (cx + c * p - s * q, cy + s * p + c * q)
                for p, q in ((-w / 2, -w / 2), (w / 2, -w / 2), (w / 2, w / 2), (-w / 2, w / 2))
            ]
            tint = tuple(np.array(self.style.tints[i % len(self.style.tints)]) * 0.9)
            floors = int(rng.integers(5, 13))
            self.b.prism(
                base, 0.0, floors * 3.2, self.style.walls[i % 3], M.GRAVEL, tint, tiles=(1, floors), metres=3.0
            )  # type: ignore[arg-type]
