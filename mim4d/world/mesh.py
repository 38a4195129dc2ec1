"""Triangles with their looks: what the ray caster hits and the shader colours."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.exact import apply, cos, norm, sin
from mim4d.world.materials import Material

Array = NDArray[np.float32]
Vec = Sequence[float] | NDArray[np.floating]
RGB = tuple[float, float, float]
UV = tuple[float, float]

WHITE: RGB = (1.0, 1.0, 1.0)


def colour(values: NDArray[np.floating], limit: float = 1.0) -> RGB:
    """Three numbers as a tint between black and ``limit``."""
    r, g, b = (float(min(max(x, 0.02), limit)) for x in values)
    return r, g, b


@dataclass(frozen=True)
class Mesh:
    """P triangles. Winding is counter-clockwise from outside; uv count tiles of the material's texture."""

    vertices: Array  # (P, 3, 3) metres
    uv: Array  # (P, 3, 2)
    material: NDArray[np.uint8]  # (P,)
    tint: Array  # (P, 3) linear RGB
    surface: NDArray[np.int32]  # (P,) the same number on triangles that form one smooth face
    owner: NDArray[np.int32]  # (P,) index of the actor, -1: the static world
    bend: Array  # (P, 3, 3) unit normals at the corners of rounded faces, for shading; zeros on flat ones

    def __len__(self) -> int:
        return len(self.vertices)

    @property
    def normals(self) -> Array:
        """(P, 3) unit outward normals."""
        n = np.cross(self.vertices[:, 1] - self.vertices[:, 0], self.vertices[:, 2] - self.vertices[:, 0])
        return (n / np.maximum(exact.norm(n, keepdims=True), 1e-12)).astype(np.float32)

    def moved(self, rotation: NDArray[np.floating], translation: Vec, owner: int | None = None) -> Mesh:
        turn = np.asarray(rotation, np.float32)
        vertices = (apply(turn, self.vertices) + np.asarray(translation, np.float32)).astype(np.float32)
        whose = self.owner if owner is None else np.full(len(self), owner, np.int32)
        return replace(self, vertices=vertices, owner=whose, bend=apply(turn, self.bend))


def join(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of many; the surface numbers stay distinct."""
    surface, base = [], 0
    for m in meshes:
        surface.append(m.surface + base)
        base += int(m.surface.max(initial=-1)) + 1
    cat = lambda name: np.concatenate([getattr(m, name) for m in meshes])
    looks = (cat("material"), cat("tint"), np.concatenate(surface), cat("owner"), cat("bend"))
    return Mesh(cat("vertices"), cat("uv"), *looks)


NOTHING = Mesh(
    np.empty((0, 3, 3), np.float32),
    np.empty((0, 3, 2), np.float32),
    np.empty(0, np.uint8),
    np.empty((0, 3), np.float32),
    np.empty(0, np.int32),
    np.empty(0, np.int32),
    np.empty((0, 3, 3), np.float32),
)


class Builder:
    """Collects faces one by one."""

    def __init__(self, origin: Vec = (0.0, 0.0, 0.0)) -> None:
        """``origin`` is taken off every coordinate in float64, before it becomes float32."""
        self.origin = np.asarray(origin, np.float64)
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
        """Corners counter-clockwise from outside. ``same_face``: it continues the face of the triangle before."""
        self._vertices.append((np.array(p, np.float64) - self.origin).astype(np.float32))
        self._uv.append(np.array(uv, np.float32))
        self._material.append(int(material))
        self._tint.append(tint)
        self._faces += not same_face
        self._surface.append(self._faces - 1)

    def quad(
        self, p: Sequence[Vec], material: Material, tint: RGB = WHITE, size: UV = (1, 1), uv0: UV = (0, 0)
    ) -> None:
        """Corners counter-clockwise from outside, from the lower left on; uv runs over ``size`` tiles from ``uv0``."""
        (u0, v0), (u1, v1) = uv0, (uv0[0] + size[0], uv0[1] + size[1])
        self.triangle([p[0], p[1], p[2]], [(u0, v0), (u1, v0), (u1, v1)], material, tint)
        self.triangle([p[0], p[2], p[3]], [(u0, v0), (u1, v1), (u0, v1)], material, tint, same_face=True)

    def prism(
        self,
        base: NDArray[np.floating],
        z0: float,
        z1: float,
        side: Material,
        top: Material,
        tint: RGB = WHITE,
        *,
        up: float = 1.0,
        metres: float = 0.0,
        top_tint: RGB | None = None,
        scale: float = 1.0,
    ) -> None:
        """Upright walls over a counter-clockwise polygon (P, 2) and a lid, shrunk by ``scale`` about its middle.

        A wall's texture repeats ``up`` times upwards and once across, or once per ``metres`` across where that is > 0.
        """
        middle = base.mean(0)
        low = [(x, y, z0) for x, y in base]
        high = [(x, y, z1) for x, y in middle + (base - middle) * scale]
        n = len(base)
        for i in range(n):
            j = (i + 1) % n
            across = (
                1.0
                if metres <= 0
                else max(1.0, round(exact.hypot(low[i][0] - low[j][0], low[i][1] - low[j][1]) / metres))
            )
            self.quad([low[i], low[j], high[j], high[i]], side, tint, (across, up))
        for i in range(1, n - 1):
            corners = [high[0], high[i], high[i + 1]]
            uv = [((x - base[0, 0]) / 3, (y - base[0, 1]) / 3) for x, y, _ in corners]
            self.triangle(corners, uv, top, tint if top_tint is None else top_tint, same_face=i > 1)

    def box(
        self,
        centre: Vec,
        size: Vec,
        side: Material,
        tint: RGB = WHITE,
        *,
        top: Material | None = None,
        front: Material | None = None,
        rear: Material | None = None,
        inset: tuple[float, float, float] = (0, 0, 0),
        tiles: float = 1.0,
    ) -> None:
        """A box of ``size`` (length x, width y, height z) without an underside.

        ``inset``: how far the top recedes at (front, rear, sides). ``tiles``: repeats of the texture along a side.
        """
        half = np.asarray(size, np.float64) / 2
        front_in, rear_in, side_in = inset
        sign = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        xy = sign * half[:2]  # (4, 2)
        recede = np.stack([np.where(sign[:, 0] > 0, front_in, rear_in), np.full(4, side_in)], 1) * sign
        a = np.concatenate([xy, np.full((4, 1), -half[2])], 1) + centre
        b = np.concatenate([xy - recede, np.full((4, 1), half[2])], 1) + centre
        self.quad([a[0], a[1], b[1], b[0]], side, tint, (tiles, 1))  # right: the texture runs from rear to front
        self.quad([a[2], a[3], b[3], b[2]], side, tint, (-tiles, 1), (tiles, 0))  # left, likewise
        self.quad([a[1], a[2], b[2], b[1]], side if front is None else front, tint)
        self.quad([a[3], a[0], b[0], b[3]], side if rear is None else rear, tint)
        self.quad([b[0], b[1], b[2], b[3]], side if top is None else top, tint)

    def pole(
        self,
        xy: Vec,
        z0: float,
        z1: float,
        radius: float,
        material: Material,
        tint: RGB = WHITE,
        sides: int = 6,
        scale: float = 1.0,
    ) -> None:
        """An upright round post with a lid."""
        x, y = xy
        self.limb(
            (x, y, z0), (x, y, z1), radius, radius * scale, material, tint, sides=sides, tiles=max(1, (z1 - z0) / 2)
        )

    def grid(
        self,
        points: NDArray[np.floating],
        normals: NDArray[np.floating],
        material: Material,
        tint: RGB,
        uv: Array | None = None,
    ) -> None:
        """A rounded patch: points (R, C, 3), counter-clockwise from outside as (row, column) -> (y, x) of a picture,
        unit normals (R, C, 3), uv (R, C, 2) in tiles (default: once over the patch)."""
        rows, columns = points.shape[:2]
        if uv is None:
            across, along = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
            uv = np.stack([across, along], -1).astype(np.float32)

        def faces(a: NDArray[np.floating]) -> NDArray[np.float32]:
            low, right, high, left = a[:-1, :-1], a[:-1, 1:], a[1:, 1:], a[1:, :-1]
            both = np.stack([np.stack([low, right, high], -2), np.stack([low, high, left], -2)], 2)
            return both.reshape(-1, 3, a.shape[-1]).astype(np.float32)

        corners = faces(np.asarray(points, np.float64) - self.origin)
        real = (np.abs(corners - np.roll(corners, 1, 1)).max(2) > 1e-5).all(1)  # a pole's triangles close up
        n = int(real.sum())
        whole = (np.full(n, int(material), np.uint8), np.tile(np.array(tint, np.float32), (n, 1)))
        still = (np.zeros(n, np.int32), np.full(n, -1, np.int32))
        self._parts.append(Mesh(corners[real], faces(uv)[real], *whole, *still, faces(normals)[real]))

    def limb(
        self,
        a: Vec,
        b: Vec,
        ra: float,
        rb: float,
        material: Material,
        tint: RGB = WHITE,
        *,
        sides: int = 6,
        wide: float = 1.0,
        tiles: float = 1.0,
        around: float = 1.0,
        ball: bool = False,
        lid: bool = True,
    ) -> None:
        """A round bar from a to b, its radius going from ra to rb, ``wide`` times as thick along y where it stands up.

        It ends in a flat lid at b unless ``lid`` is false. With ``ball`` it swells between its ends instead: an
        ellipsoid of radius ra.
        """
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        length = float(norm(b - a))
        axis = (b - a) / length
        side = np.array([0.0, 1.0, 0.0]) if abs(axis[1]) < 0.9 else np.array([0.0, 0.0, 1.0])
        e1 = side - axis * exact.dot(side, axis)
        e1 /= norm(e1)
        e2 = np.array(
            [e1[1] * axis[2] - e1[2] * axis[1], e1[2] * axis[0] - e1[0] * axis[2], e1[0] * axis[1] - e1[1] * axis[0]]
        )
        turn = 2 * math.pi * np.arange(sides + 1) / sides
        turn[-1] = 0.0  # it closes exactly
        ring = -cos(turn)[:, None] * e1 * wide + sin(turn)[:, None] * e2  # (sides + 1, 3)
        if ball:
            lat = math.pi * (np.arange(4) / 3 - 0.5)
            at, radius = 0.5 + 0.5 * sin(lat), ra * np.maximum(cos(lat), 1e-9)
            lift = sin(lat)
        else:
            at, radius = np.array([0.0, 1.0]), np.array([ra, rb])
            lift = np.full(2, (ra - rb) / length)
        points = a + (b - a) * at[:, None, None] + ring * radius[:, None, None]
        normals = ring * (radius / ra if ball else np.ones(2))[:, None, None] + axis * lift[:, None, None]
        normals /= norm(normals, keepdims=True)
        u, v = np.meshgrid(np.linspace(0, around, sides + 1), at * tiles)
        self.grid(points, normals, material, tint, np.stack([u, v], -1).astype(np.float32))
        if lid and not ball:
            rim = points[1, :-1]
            for i in range(1, sides - 1):
                self.triangle(
                    [rim[0], rim[i], rim[i + 1]], [(0, 0), (0.5, 0), (0.5, 0.5)], material, tint, same_face=i > 1
                )

    def wheel(
        self, centre: Vec, radius: float, thick: float, outward: float, material: Material, sides: int = 8
    ) -> None:
        """A wheel that rolls along x; ``outward`` (1: to the left, -1) is where its hub looks, 0: a disc between."""
        c = np.asarray(centre, np.float64)
        radius = radius / float(cos(math.pi / sides))  # it stands on one of its flats
        turn = 2 * math.pi * (np.arange(sides + 1) + 0.5) / sides
        turn[-1] = turn[0]
        spoke = np.stack([cos(turn), 0 * turn, sin(turn)], 1)  # (sides + 1, 3)
        half = np.array([0.0, thick / 2, 0.0])
        rim = c + radius * spoke
        tread = np.stack([rim + half, rim - half])
        uv = np.zeros((2, sides + 1, 2), np.float32)
        self.grid(tread, np.stack([spoke, spoke]), material, WHITE, uv + np.float32(0.04))
        disc = rim[:-1] + outward * half
        flat = 0.5 + 0.5 * np.stack([cos(turn), sin(turn)], 1)
        order = lambda i: [0, i + 1, i] if outward > 0 else [0, i, i + 1]
        for i in range(1, sides - 1):
            self.triangle(disc[order(i)], flat[order(i)], material, WHITE, same_face=i > 1)

    def add(self, mesh: Mesh, rotation: NDArray[np.floating], place: Vec) -> None:
        """Puts a finished mesh at ``place``."""
        self._parts.append(mesh.moved(rotation, np.asarray(place, np.float64) - self.origin))

    def mesh(self, owner: int = -1) -> Mesh:
        n = len(self._vertices)
        own = Mesh(
            np.array(self._vertices, np.float32).reshape(n, 3, 3),
            np.array(self._uv, np.float32).reshape(n, 3, 2),
            np.array(self._material, np.uint8),
            np.array(self._tint, np.float32).reshape(n, 3),
            np.array(self._surface, np.int32),
            np.full(n, owner, np.int32),
            np.zeros((n, 3, 3), np.float32),
        )
        return join([own, *self._parts])


@functools.cache
def _sphere() -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """An icosahedron split once: corners (42, 3) on the unit sphere, faces (80, 3), counter-clockwise from outside."""
    g = (1 + math.sqrt(5)) / 2
    corners = [(s, t * g, 0.0) for t in (1, -1) for s in (-1, 1)]
    points = [np.roll(c, k) / math.sqrt(1 + g * g) for k in range(3) for c in corners]
    # Three corners form a face where they lie at the least distance from each other.
    p = np.array(points)
    near = exact.norm(p[:, None] - p[None]) < 1.1
    faces = []
    for a, b, c in itertools.combinations(range(12), 3):
        if near[a, b] and near[b, c] and near[a, c]:
            faces.append((a, b, c) if exact.dot(p[a], np.cross(p[b], p[c])) > 0 else (a, c, b))
    middle: dict[frozenset[int], int] = {}

    def between(i: int, j: int) -> int:
        key = frozenset((i, j))
        if key not in middle:
            middle[key] = len(points)
            points.append((points[i] + points[j]) / exact.norm(points[i] + points[j]))
        return middle[key]

    split = []
    for a, b, c in faces:
        ab, bc, ca = between(a, b), between(b, c), between(c, a)
        split += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    return np.array(points), np.array(split)


def blob(
    rng: np.random.Generator, radius: Vec, tint: RGB, material: Material = Material.FOLIAGE, rough: float = 0.18
) -> Mesh:
    """A lumpy ellipsoid about the origin, 80 triangles: a sphere whose corners are pushed in and out at random."""
    points, faces = _sphere()
    push = 1 + rough * exact.normal(rng, (len(points), 1)).clip(-1.5, 1.5)
    tri = (points * push * np.asarray(radius, np.float64))[faces].astype(np.float32)  # (80, 3, 3)
    uv = (np.stack([tri[..., 0] + 0.6 * tri[..., 1], tri[..., 2] + 0.4 * tri[..., 1]], -1) / 2.5).astype(np.float32)
    n = len(tri)
    round_ = (points / np.asarray(radius, np.float64))[faces]
    round_ /= norm(round_, keepdims=True)
    shade = (0.9 + 0.2 * rng.random((n, 1))) * np.array(tint)
    return Mesh(
        tri,
        uv,
        np.full(n, int(material), np.uint8),
        shade.astype(np.float32),
        np.zeros(n, np.int32),
        np.full(n, -1, np.int32),
        round_.astype(np.float32),
    )
