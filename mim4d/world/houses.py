"""Houses: shops, entries and lobbies below, floors with windows and balconies, flat roofs and gables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mim4d.world.exact import atan2, norm
from mim4d.world.furniture import DARK
from mim4d.world.geometry import KERB_HEIGHT, yaw_matrix
from mim4d.world.materials import Material as M
from mim4d.world.mesh import RGB, WHITE, Builder, colour
from mim4d.world.roads import Roads
from mim4d.world.styles import Style

Array = NDArray[np.float64]
Span = tuple[float, float]

HOUSES_WITHIN, FINE_HOUSES_WITHIN = 105.0, 48.0  # metres from the ego's way
ROOFS: tuple[RGB, ...] = ((0.62, 0.27, 0.2), (0.35, 0.33, 0.33), (0.5, 0.36, 0.28))


class Houses:
    """Builds houses on streets near the ego's way, and knows what stands where."""

    def __init__(
        self,
        rng: np.random.Generator,
        roads: Roads,
        style: Style,
        way: Array,
        occupied: Array,
        origin: Array,
        ruled: Sequence[bool],
    ) -> None:
        """``way`` (T, 2): where the ego goes. The mesh's coordinates count from ``origin`` (3,).

        ``occupied`` (A, 4): x, y, radius and height of standing actors. ``ruled``: which junctions need lights."""
        self.rng, self.roads, self.style, self.way, self.occupied = rng, roads, style, way, occupied
        self.ruled = ruled
        self.b = Builder(origin)
        self.signals: dict[int, Builder] = {}  # traffic lights, by the numbers of Scene.signal
        self.feet: list[Array] = []  # outlines (P, 2) of houses, map coordinates
        self.lamps: list[Array] = []  # (2,) where lamps shine, map coordinates

    def _near(self, xy: Array, reach: float) -> bool:
        return bool(norm(self.way - xy).min() < reach)

    def _free(self, xy: Array, radius: float, above: float = 0.0) -> bool:
        """Whether a disc touches no standing actor that is taller than ``above``."""
        other = self.occupied[self.occupied[:, 3] > above]
        return bool((norm(other[:, :2] - xy) > other[:, 2] + radius).all())

    def _corners(self, u: Span, v: Span) -> Array:
        return self.roads.bend.point(np.array([(u[0], v[0]), (u[1], v[0]), (u[1], v[1]), (u[0], v[1])]))

    def house(self, u: Span, v: Span, taller: int = 0) -> None:
        s, rng = self.style, self.rng
        base = self._corners(u, v)
        floors = int(rng.integers(s.floors[0], s.floors[1] + 1)) + taller
        wall = s.walls[int(rng.integers(len(s.walls)))]
        tint = colour(
            np.array(s.tints[int(rng.integers(len(s.tints)))]) * rng.uniform(0.8, 1.05) * rng.uniform(0.96, 1.04, 3)
        )
        shop, height, roof = rng.random() < s.shops, float(rng.uniform(2.8, 3.5)), float(rng.random())
        loud = rng.uniform(0.08, 0.75, 3)
        second = colour(0.45 * loud + 0.55 * loud.mean())
        awning, balconies = rng.random() < 0.45, rng.random() < 0.35
        if not self._near(base.mean(0), HOUSES_WITHIN):
            return
        self.feet.append(base)
        z, fine = KERB_HEIGHT, self._near(base.mean(0), FINE_HOUSES_WITHIN)
        if shop:
            self.b.prism(base, z, z + 3.8, M.SHOP, M.BLANK, second, metres=4.5)
            if awning and fine:
                self._awnings(base, z + 2.75, second)
            z += 3.8
        elif wall in (M.CURTAIN, M.OFFICE):  # a lobby
            self.b.prism(base, z, z + 4.4, M.CURTAIN, M.BLANK, (0.75, 0.72, 0.68), metres=4.0)
            z += 4.4
        elif wall not in (M.CORRUGATED, M.BLANK):
            self.b.prism(base, z, z + 3.3, M.ENTRY, M.BLANK, colour(0.92 * np.array(tint)), metres=4.5)
            z += 3.3
            floors = max(1, floors - 1)
        top = z + floors * height
        self.b.prism(base, z, top, wall, M.GRAVEL, tint, up=floors, metres=3.0, top_tint=WHITE)
        middle = base.mean(0)
        if z > 1.0 and fine:  # a cornice over the ground floor
            self.b.prism(
                middle + (base - middle) * 1.012, z - 0.18, z + 0.05, M.BLANK, M.BLANK, (0.75, 0.74, 0.7), metres=3.0
            )
        if balconies and fine and wall in (M.PLASTER, M.BRICK, M.SHUTTERS):
            self._balconies(base, z, floors, height)
        if s.gables:
            self._gable(u, v, top, ROOFS[int(roof * 3)], tint)
            if fine:
                spot = base[0] * 0.62 + base[2] * 0.38
                self.b.box((*spot, top + 0.24 * (v[1] - v[0])), (0.7, 0.7, 1.8), M.BRICK, (0.5, 0.35, 0.3))
            return
        self.b.prism(
            middle + (base - middle) * 1.02, top - 0.1, top + 0.5, M.BLANK, M.GRAVEL, (0.7, 0.7, 0.7), metres=3.0
        )
        if roof < 0.5:
            hut = middle + (base - middle) * 0.3
            self.b.prism(hut, top, top + 2.4, M.BLANK, M.METAL, (0.8, 0.8, 0.8), metres=3.0)
        elif roof < 0.7 and fine:
            self.b.pole(middle, top, top + 4.5, 0.04, M.METAL, sides=3)

    def _faces_seen(self, base: Array) -> list[tuple[Array, Array, Array]]:
        """Sides of a house that look at the ego's way: their ends (2,), (2,) and outward unit normal (2,)."""
        out = []
        for i in range(len(base)):
            a, b = base[i], base[(i + 1) % len(base)]
            along = (b - a) / norm(b - a)
            normal = np.array([along[1], -along[0]])
            to = self.way - (a + b) / 2
            if (to[np.argmin(norm(to))] * normal).sum() > 0:
                out.append((a, b, normal))
        return out

    def _awnings(self, base: Array, z: float, tint: RGB) -> None:
        for a, b, normal in self._faces_seen(base):
            n = max(1, round(float(norm(b - a)) / 4.5))
            for i in range(n):
                p, q = a + (b - a) * ((i + 0.06) / n), a + (b - a) * ((i + 0.68) / n)
                front, back = (0.95 * normal, z - 0.45), (0.02 * normal, z)
                corners = [(*(p + front[0]), front[1]), (*(q + front[0]), front[1]), (*(q + back[0]), back[1])]
                self.b.quad([*corners, (*(p + back[0]), back[1])], M.AWNING, tint, (1, 1))

    def _balconies(self, base: Array, z: float, floors: int, height: float) -> None:
        """On every other column of windows of the sides that are seen."""
        for a, b, normal in self._faces_seen(base):
            n = max(1, round(float(norm(b - a)) / 3.0))
            yaw = float(atan2(normal[1], normal[0]))
            part = Builder()
            part.box((0.45, 0, 0.0), (0.9, 1.9, 0.14), M.BLANK, (0.7, 0.7, 0.68))
            part.box((0.86, 0, 0.95), (0.05, 1.9, 0.06), M.METAL, DARK)
            for y in (-0.92, -0.46, 0.0, 0.46, 0.92):
                part.box((0.86, y, 0.5), (0.03, 0.03, 0.9), M.METAL, DARK)
            mesh = part.mesh()
            for floor in range(1, min(floors, 4)):
                for i in range(0, n, 2):
                    place = a + (b - a) * ((i + 0.5) / n)
                    self.b.add(mesh, yaw_matrix(yaw), (*place, z + floor * height + 0.1))

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
