"""Triangles with their looks: what the ray caster hits and the shader colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mim4d.world.textures import Material

Array = NDArray[np.float32]
Vec = Sequence[float]
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Mesh:
    """P triangles. Winding is counter-clockwise from outside; uv count tiles of the material's texture."""

    vertices: Array  # (P, 3, 3) metres
    uv: Array  # (P, 3, 2)
    material: NDArray[np.uint8]  # (P,)
    tint: Array  # (P, 3) linear RGB
    surface: NDArray[np.int32]  # (P,) the same number on triangles that form one smooth face
    owner: NDArray[np.int32]  # (P,) index of the actor, -1: the static world

    def __len__(self) -> int:
        return len(self.vertices)

    @property
    def normals(self) -> Array:
        """(P, 3) unit outward normals."""
        n = np.cross(self.vertices[:, 1] - self.vertices[:, 0], self.vertices[:, 2] - self.vertices[:, 0])
        return (n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    def moved(self, rotation: NDArray[np.floating], translation: Vec, owner: int | None = None) -> Mesh:
        vertices = (self.vertices @ np.asarray(rotation, np.float32).T + np.asarray(translation, np.float32)).astype(
            np.float32
        )
        return replace(
            self, vertices=vertices, owner=self.owner if owner is None else np.full(len(self), owner, np.int32)
        )


def join(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of many; the surface numbers stay distinct."""
    surface, base = [], 0
    for m in meshes:
        surface.append(m.surface + base)
        base += int(m.surface.max(initial=-1)) + 1
    cat = lambda name: np.concatenate([getattr(m, name) for m in meshes])
    return Mesh(cat("vertices"), cat("uv"), cat("material"), cat("tint"), np.concatenate(surface), cat("owner"))


class Builder:
    """Collects faces one by one."""

    def __init__(self) -> None:
        self._vertices: list[Array] = []
        self._uv: list[Array] = []
        self._material: list[int] = []
        self._tint: list[RGB] = []
        self._surface: list[int] = []
        self._parts: list[Mesh] = []
        self._faces = 0

    def triangle(
        self, p: Sequence[Vec], uv: Sequence[Vec], material: Material, tint: RGB, same_face: bool = False
    ) -> None:
        self._vertices.append(np.array(p, np.float32))
        self._uv.append(np.array(uv, np.float32))
        self._material.append(int(material))
        self._tint.append(tint)
        self._faces += not same_face
        self._surface.append(self._faces - 1)

    def quad(
        self,
        p: Sequence[Vec],
        material: Material,
        tint: RGB = (1, 1, 1),
        size: tuple[float, float] = (1, 1),
        uv0: tuple[float, float] = (0, 0),
    ) -> None:
        """Corners counter-clockwise from outside, starting at the lower left; uv runs over ``size`` tiles from ``uv0``."""
        (u0, v0), (u1, v1) = uv0, (uv0[0] + size[0], uv0[1] + size[1])
        uv = [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]
        self.triangle([p[0], p[1], p[2]], [uv[0], uv[1], uv[2]], material, tint)
        self.triangle([p[0], p[2], p[3]], [uv[0], uv[2], uv[3]], material, tint, same_face=True)

    def prism(
        self,
        base: Sequence[Vec],
        z0: float,
        z1: float,
        material: Material,
        top: Material,
        tint: RGB = (1, 1, 1),
        *,
        tiles: tuple[float, float] = (1, 1),
        metres: float = 0.0,
        top_tint: RGB | None = None,
        scale: float = 1.0,
    ) -> None:
        """Upright walls over a counter-clockwise polygon (x, y) and a lid, its top shrunk by ``scale`` about the middle.

        ``tiles``: texture tiles per wall (across, up); with ``metres`` > 0 one tile per that many metres across instead.
        """
        middle = np.mean(np.asarray(base, np.float64)[:, :2], axis=0)
        low = [(p[0], p[1], z0) for p in base]
        high = [(middle[0] + (p[0] - middle[0]) * scale, middle[1] + (p[1] - middle[1]) * scale, z1) for p in base]
        n = len(base)
        for i in range(n):
            j = (i + 1) % n
            across = tiles[0] if metres <= 0 else max(1.0, round(math.dist(low[i][:2], low[j][:2]) / metres))
            self.quad([low[i], low[j], high[j], high[i]], material, tint, (across, tiles[1]))
        roof = tint if top_tint is None else top_tint
        for i in range(1, n - 1):
            tri = [high[0], high[i], high[i + 1]]
            self.triangle(tri, [(q[0] / 3, q[1] / 3) for q in tri], top, roof, same_face=i > 1)

    def box(
        self,
        centre: Vec,
        size: Vec,
        side: Material,
        tint: RGB = (1, 1, 1),
        *,
        top: Material | None = None,
        front: Material | None = None,
        rear: Material | None = None,
        inset: tuple[float, float, float] = (0, 0, 0),
        tiles: tuple[float, float] = (1, 1),
    ) -> None:
        """A box of ``size`` (length x, width y, height z). ``inset``: how far the top recedes at (front, rear, sides)."""
        (cx, cy, cz), (l, w, h) = centre, size
        f, r, s = inset
        lo, hi = cz - h / 2, cz + h / 2
        a = [
            (cx - l / 2, cy - w / 2, lo),
            (cx + l / 2, cy - w / 2, lo),
            (cx + l / 2, cy + w / 2, lo),
            (cx - l / 2, cy + w / 2, lo),
        ]
        b = [
            (cx - l / 2 + r, cy - w / 2 + s, hi),
            (cx + l / 2 - f, cy - w / 2 + s, hi),
            (cx + l / 2 - f, cy + w / 2 - s, hi),
            (cx - l / 2 + r, cy + w / 2 - s, hi),
        ]
        self.quad([a[0], a[1], b[1], b[0]], side, tint, tiles)  # right: the texture runs from rear to front
        self.quad([a[2], a[3], b[3], b[2]], side, tint, (-tiles[0], tiles[1]), (tiles[0], 0.0))  # left, likewise
        self.quad([a[1], a[2], b[2], b[1]], side if front is None else front, tint, (1, tiles[1]))
        self.quad([a[3], a[0], b[0], b[3]], side if rear is None else rear, tint, (1, tiles[1]))
        self.quad([b[0], b[1], b[2], b[3]], side if top is None else top, tint)
        self.quad([a[3], a[2], a[1], a[0]], Material.TYRE)

    def pole(
        self,
        x: float,
        y: float,
        z0: float,
        z1: float,
        radius: float,
        material: Material,
        tint: RGB = (1, 1, 1),
        sides: int = 6,
        scale: float = 1.0,
    ) -> None:
        angle = 2 * math.pi * np.arange(sides) / sides
        self.prism(
            [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angle],
            z0,
            z1,
            material,
            material,
            tint,
            tiles=(1, max(1.0, (z1 - z0) / 2)),
            scale=scale,
        )

    def add(self, mesh: Mesh) -> None:
        self._parts.append(mesh)

    def mesh(self, owner: int = -1) -> Mesh:
        parts = list(self._parts)
        if self._vertices:
            n = len(self._vertices)
            parts.append(
                Mesh(
                    np.stack(self._vertices),
                    np.stack(self._uv),
                    np.array(self._material, np.uint8),
                    np.array(self._tint, np.float32),
                    np.array(self._surface, np.int32),
                    np.full(n, owner, np.int32),
                )
            )
        return join(parts)


def blob(
    rng: np.random.Generator, radius: Vec, tint: RGB, material: Material = Material.FOLIAGE, rough: float = 0.18
) -> Mesh:
    """A lumpy ellipsoid about the origin (80 triangles): an icosahedron split once, its corners pushed in and out."""
    g = (1 + math.sqrt(5)) / 2
    v = [
        (-1, g, 0),
        (1, g, 0),
        (-1, -g, 0),
        (1, -g, 0),
        (0, -1, g),
        (0, 1, g),
        (0, -1, -g),
        (0, 1, -g),
        (g, 0, -1),
        (g, 0, 1),
        (-g, 0, -1),
        (-g, 0, 1),
    ]
    faces = [
        (0, 11, 5),
        (0, 5, 1),
        (0, 1, 7),
        (0, 7, 10),
        (0, 10, 11),
        (1, 5, 9),
        (5, 11, 4),
        (11, 10, 2),
        (10, 7, 6),
        (7, 1, 8),
    ]
    faces += [
        (3, 9, 4),
        (3, 4, 2),
        (3, 2, 6),
        (3, 6, 8),
        (3, 8, 9),
        (4, 9, 5),
        (2, 4, 11),
        (6, 2, 10),
        (8, 6, 7),
        (9, 8, 1),
    ]
    points = [np.array(p, float) / math.sqrt(1 + g * g) for p in v]
    middle: dict[tuple[int, int], int] = {}

    def between(i: int, j: int) -> int:
        key = (min(i, j), max(i, j))
        if key not in middle:
            p = points[i] + points[j]
            points.append(p / np.linalg.norm(p))
            middle[key] = len(points) - 1
        return middle[key]

    split: list[tuple[int, int, int]] = []
    for a, b, c in faces:
        ab, bc, ca = between(a, b), between(b, c), between(c, a)
        split += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    p = (
        np.array(points)
        * (1 + rough * rng.standard_normal((len(points), 1)).clip(-1.5, 1.5))
        * np.asarray(radius, float)
    )
    tri = p[np.array(split)].astype(np.float32)  # (80, 3, 3)
    uv = (np.stack([tri[..., 0] + 0.6 * tri[..., 1], tri[..., 2] + 0.4 * tri[..., 1]], -1) / 2.5).astype(np.float32)
    n = len(tri)
    shade = (0.8 + 0.4 * rng.random((n, 1))) * np.array(tint)
    return Mesh(
        tri,
        uv,
        np.full(n, int(material), np.uint8),
        shade.astype(np.float32),
        np.zeros(n, np.int32),
        np.full(n, -1, np.int32),
    )
