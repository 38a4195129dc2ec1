"""Procedural textures: one tile per material with its mip chain, all in one flat array that a pixel reads by index.

Colours are linear light in [0, 1]. The fourth channel says how far the surface's own tint colours the texel (1: paint,
0: glass, tyres, lamps). Row 0 of a tile is its lower edge. Everything is drawn from a seed; no image is shipped.
"""

from __future__ import annotations

import functools
import math
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact

Array = NDArray[np.float32]

TILE = 128  # texels on a side of every tile
LEVELS = 8  # 128, 64, ..., 1
NOISE = 512  # samples on a side of the large-scale noise


class Material(IntEnum):
    ASPHALT = 0
    CONCRETE = 1
    KERB = 2
    GRASS = 3
    PAVERS = 4
    BRICK = 5
    PLASTER = 6
    CURTAIN = 7
    SHOP = 8
    BLANK = 9
    CORRUGATED = 10
    GRAVEL = 11
    TILES = 12
    FOLIAGE = 13
    BARK = 14
    BODY_SIDE = 15
    BODY = 16
    GLASS = 17
    FRONT = 18
    REAR = 19
    TYRE = 20
    CONTAINER = 21
    BUS_SIDE = 22
    CLOTH = 23
    SKIN = 24
    METAL = 25
    STRIPES = 26
    POSTER = 27


# Width of a tile in metres: how many texels a metre has decides the mip level.
TILE_METRES = np.array(
    [3.0, 2.0, 2.0, 4.0, 2.0, 3.0, 3.0, 3.0, 4.0, 3.0, 3.0, 3.0, 2.0, 2.5, 0.8, 4.0, 1.5, 1.5, 1.8, 1.8, 0.7, 3.0, 4.0]
    + [0.6, 0.3, 0.5, 0.8, 2.5],
    np.float32,
)


def tileable_noise(rng: np.random.Generator, size: int, slope: float) -> Array:
    """(size, size) periodic noise with power falling as frequency**-slope, mean 0, standard deviation 1.

    ``size`` is a power of two.
    """
    re, im = exact.normal(rng, (2, size, size)) * _amplitudes(size, slope)
    out = exact.waves(re, im)
    return (out / out.std()).astype(np.float32)


@functools.cache
def _amplitudes(size: int, slope: float) -> NDArray[np.float64]:
    """(size, size) f**(-slope / 2) at every frequency of a periodic square, 0 for its mean."""
    k = np.minimum(np.arange(size), size - np.arange(size))
    squares = np.arange(1, size * size // 2 + 1, dtype=np.float64)
    table = np.concatenate([[0.0], exact.exp(-slope / 4 * exact.log(squares))])  # by f^2, a whole number
    return table[k[:, None] * k[:, None] + k * k]


class Painter:
    """Draws one tile. x runs along the wall or the street, y up or across; both in [0, 1)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        c = (np.arange(TILE, dtype=np.float32) + 0.5) / TILE
        self.y, self.x = np.meshgrid(c, c, indexing="ij")
        self.tile = np.zeros((TILE, TILE, 4), np.float32)

    def fill(self, rgb: tuple[float, float, float], tint: float = 0.0) -> Painter:
        self.tile[...] = (*rgb, tint)
        return self

    def box(
        self, x0: float, x1: float, y0: float, y1: float, rgb: tuple[float, float, float], tint: float = 0.0
    ) -> Painter:
        inside = (self.x >= x0) & (self.x < x1) & (self.y >= y0) & (self.y < y1)
        self.tile[inside] = (*rgb, tint)
        return self

    def grid(self, nx: int, ny: int, gap: float, shade: float, stagger: float = 0.0) -> Painter:
        """Darkens the joints of an nx x ny grid; ``gap`` in fractions of a cell."""
        row = np.floor(self.y * ny)
        fx, fy = (self.x * nx + stagger * row) % 1.0, (self.y * ny) % 1.0
        joint = (fx < gap) | (fy < gap * ny / nx)
        self.tile[..., :3][joint] *= shade
        return self

    def cells(self, nx: int, ny: int, amount: float, stagger: float = 0.0) -> Painter:
        """Gives every cell of a grid its own brightness."""
        row = np.floor(self.y * ny).astype(int)
        column = np.floor(self.x * nx + stagger * row).astype(int) % nx
        value = 1.0 + amount * exact.normal(self.rng, (ny, nx)).astype(np.float32)
        self.tile[..., :3] *= np.clip(value, 0.4, 1.8)[row, column][..., None]
        return self

    def noise(self, amount: float, slope: float = 1.5) -> Painter:
        self.tile[..., :3] *= np.clip(1.0 + amount * tileable_noise(self.rng, TILE, slope), 0.25, 2.5)[..., None]
        return self

    def gradient(self, low: float, high: float) -> Painter:
        self.tile[..., :3] *= (low + (high - low) * self.y)[..., None]
        return self

    def window(self, x0: float, x1: float, y0: float, y1: float) -> Painter:
        """A framed pane: sky reflected above, the dark room below."""
        self.box(x0 - 0.035, x1 + 0.035, y0 - 0.06, y1 + 0.04, (0.55, 0.55, 0.53))
        self.box(x0 - 0.05, x1 + 0.05, y0 - 0.075, y0 - 0.03, (0.42, 0.42, 0.4))
        inside = (self.x >= x0) & (self.x < x1) & (self.y >= y0) & (self.y < y1)
        h = ((self.y - y0) / (y1 - y0))[inside, None]
        pane = np.array([0.03, 0.04, 0.05]) * (1 - h) + np.array([0.16, 0.22, 0.3]) * h
        self.tile[inside] = np.concatenate([pane, np.zeros_like(h)], 1)
        self.box((x0 + x1) / 2 - 0.012, (x0 + x1) / 2 + 0.012, y0, y1, (0.5, 0.5, 0.48))
        return self


def _facades(new: dict[Material, Painter]) -> None:
    p = (
        new[Material.BRICK]
        .fill((0.62, 0.62, 0.62), 1.0)
        .noise(0.12)
        .cells(12, 40, 0.16, 0.5)
        .grid(12, 40, 0.1, 1.5, 0.5)
    )
    p.window(0.28, 0.72, 0.3, 0.84)
    p = new[Material.PLASTER].fill((0.75, 0.75, 0.75), 1.0).noise(0.1, 2.0)
    p.box(0, 1, 0, 0.05, (0.5, 0.5, 0.5), 0.8).window(0.1, 0.42, 0.28, 0.82).window(0.58, 0.9, 0.28, 0.82)
    p = new[Material.CURTAIN].fill((0.3, 0.34, 0.38), 0.7).gradient(0.6, 1.3).cells(2, 2, 0.18).noise(0.06, 2.5)
    p.box(0, 1, 0, 0.16, (0.32, 0.33, 0.34), 0.9)
    for x in (0.0, 0.48, 0.97):
        p.box(x, x + 0.03, 0, 1, (0.6, 0.6, 0.6))
    p = new[Material.SHOP].fill((0.4, 0.4, 0.4), 0.6).noise(0.08).box(0.05, 0.95, 0.06, 0.68, (0.07, 0.08, 0.09))
    p.box(0.05, 0.95, 0.45, 0.68, (0.12, 0.15, 0.19)).box(0.64, 0.67, 0.06, 0.68, (0.4, 0.4, 0.4))
    p.box(0.12, 0.3, 0.1, 0.4, (0.5, 0.34, 0.12)).box(0.36, 0.5, 0.1, 0.34, (0.3, 0.1, 0.1)).box(
        0.7, 0.9, 0.06, 0.6, (0.2, 0.13, 0.08)
    )
    p.box(0.0, 1.0, 0.74, 0.95, (0.85, 0.85, 0.85), 1.0)
    for i, x in enumerate(np.linspace(0.2, 0.74, 7)):
        p.box(x, x + 0.05, 0.79, 0.84 + 0.05 * (i % 3 == 0) + 0.02 * (i % 2), (0.05, 0.05, 0.06))
    new[Material.BLANK].fill((0.6, 0.6, 0.6), 1.0).noise(0.18, 1.8).cells(2, 4, 0.05).grid(2, 4, 0.02, 0.75)
    p = new[Material.CORRUGATED].fill((0.6, 0.6, 0.6), 1.0)
    p.tile[..., :3] *= (0.8 + 0.25 * exact.sin(2 * math.pi * 10 * p.x))[..., None]
    p.noise(0.1, 2.0).grid(1, 1, 0.02, 0.6)


def _grounds(new: dict[Material, Painter]) -> None:
    new[Material.ASPHALT].fill((0.155, 0.155, 0.16)).noise(0.22, 0.6).noise(0.1, 2.0)
    new[Material.CONCRETE].fill((0.36, 0.355, 0.34)).cells(2, 2, 0.09).noise(0.14, 1.4).grid(2, 2, 0.03, 0.6)
    new[Material.KERB].fill((0.46, 0.455, 0.44)).noise(0.12, 1.2).grid(2, 1, 0.03, 0.5)
    p = new[Material.GRASS].fill((0.1, 0.16, 0.045)).noise(0.35, 1.0)
    p.tile[..., 0] *= 1 + 0.35 * tileable_noise(p.rng, TILE, 1.5).clip(-1.5, 2)
    new[Material.PAVERS].fill((0.3, 0.25, 0.22), 0.7).cells(8, 16, 0.18, 0.5).noise(0.12).grid(8, 16, 0.12, 0.6, 0.5)
    new[Material.GRAVEL].fill((0.3, 0.29, 0.28), 0.5).noise(0.3, 0.8)
    new[Material.TILES].fill((0.5, 0.5, 0.5), 1.0).cells(8, 8, 0.14, 0.5).gradient(0.9, 1.1).grid(8, 8, 0.14, 0.5, 0.5)
    p = new[Material.FOLIAGE].fill((0.085, 0.15, 0.04), 0.6).noise(0.5, 0.9)
    p.tile[..., :3] *= np.where(tileable_noise(p.rng, TILE, 1.2) > 0.9, 0.3, 1.0)[..., None]
    p = new[Material.BARK].fill((0.16, 0.12, 0.09))
    p.tile[..., :3] *= (1 + 0.35 * exact.sin(2 * math.pi * (6 * p.x + 0.15 * tileable_noise(p.rng, TILE, 2))))[
        ..., None
    ]
    p.noise(0.25)


def _objects(new: dict[Material, Painter]) -> None:
    p = new[Material.BODY_SIDE].fill((0.8, 0.8, 0.8), 1.0).gradient(0.55, 1.1).noise(0.04, 2.0)
    p.box(0, 1, 0, 0.14, (0.05, 0.05, 0.05)).box(0, 1, 0.62, 0.66, (0.3, 0.3, 0.3), 0.5)
    for x in (0.3, 0.52, 0.74):
        p.box(x, x + 0.012, 0.14, 1.0, (0.06, 0.06, 0.06))
    for x in (0.45, 0.67):
        p.box(x, x + 0.05, 0.76, 0.82, (0.1, 0.1, 0.1))
    p.box(0.0, 0.05, 0.6, 0.85, (0.5, 0.05, 0.03)).box(0.95, 1.0, 0.6, 0.85, (0.85, 0.85, 0.8))
    new[Material.BODY].fill((0.8, 0.8, 0.8), 1.0).noise(0.06, 2.4).grid(1, 1, 0.04, 0.5)
    p = new[Material.GLASS].fill((0.1, 0.12, 0.14)).gradient(0.4, 2.2).noise(0.15, 2.6)
    for x in (0.0, 0.47, 0.94):
        p.box(x, x + 0.06, 0, 1, (0.03, 0.03, 0.03))
    p = new[Material.FRONT].fill((0.75, 0.75, 0.75), 1.0).noise(0.05, 2.0).box(0, 1, 0, 0.2, (0.04, 0.04, 0.04))
    p.box(0.25, 0.75, 0.28, 0.6, (0.05, 0.05, 0.05)).box(0.4, 0.6, 0.3, 0.42, (0.7, 0.7, 0.7))
    p.box(0.04, 0.22, 0.55, 0.8, (0.95, 0.95, 0.9)).box(0.78, 0.96, 0.55, 0.8, (0.95, 0.95, 0.9))
    p = new[Material.REAR].fill((0.75, 0.75, 0.75), 1.0).noise(0.05, 2.0).box(0, 1, 0, 0.2, (0.04, 0.04, 0.04))
    p.box(0.38, 0.62, 0.35, 0.5, (0.75, 0.75, 0.7)).box(0.04, 0.2, 0.5, 0.85, (0.55, 0.03, 0.02)).box(
        0.8, 0.96, 0.5, 0.85, (0.55, 0.03, 0.02)
    )
    p = new[Material.TYRE].fill((0.025, 0.025, 0.027)).noise(0.2)
    hub = exact.hypot(p.x - 0.5, p.y - 0.5)
    p.tile[hub < 0.28] = (0.4, 0.4, 0.42, 0)
    p.tile[(hub < 0.28) & (exact.sin(5 * exact.atan2(p.y - 0.5, p.x - 0.5)) > 0.4)] = (0.06, 0.06, 0.06, 0)
    p = new[Material.CONTAINER].fill((0.7, 0.7, 0.7), 1.0)
    p.tile[..., :3] *= (0.9 + 0.14 * np.sign(exact.sin(2 * math.pi * 8 * p.x)))[..., None]
    p.noise(0.12, 2.0).box(0, 1, 0, 0.06, (0.15, 0.15, 0.15)).box(0, 1, 0.94, 1, (0.3, 0.3, 0.3)).box(
        0.3, 0.7, 0.55, 0.75, (0.8, 0.8, 0.8), 0.2
    )
    p = new[Material.BUS_SIDE].fill((0.75, 0.75, 0.75), 1.0).noise(0.05, 2.0).box(0, 1, 0.45, 0.85, (0.05, 0.06, 0.08))
    p.box(0, 1, 0.65, 0.85, (0.14, 0.18, 0.22)).box(0.0, 0.04, 0.4, 0.9, (0.3, 0.3, 0.3), 0.5).box(
        0.5, 0.53, 0.4, 0.9, (0.3, 0.3, 0.3), 0.5
    )
    p.box(0, 1, 0.2, 0.28, (0.9, 0.9, 0.9)).box(0, 1, 0, 0.1, (0.05, 0.05, 0.05))
    new[Material.CLOTH].fill((0.6, 0.6, 0.6), 1.0).noise(0.25, 1.6).grid(2, 2, 0.06, 0.6)
    p = new[Material.SKIN].fill((0.6, 0.42, 0.33), 0.5).noise(0.1).box(0, 1, 0.6, 1.0, (0.08, 0.06, 0.05), 0.3)
    new[Material.METAL].fill((0.3, 0.31, 0.32), 0.6).noise(0.12, 1.6).grid(1, 2, 0.04, 0.6)
    p = new[Material.STRIPES].fill((0.85, 0.85, 0.82)).noise(0.06)
    orange = ((p.x + p.y) * 2) % 1.0 < 0.5
    p.tile[orange] = (0.75, 0.17, 0.02, 0)
    p = new[Material.POSTER].fill((0.7, 0.7, 0.7), 1.0)
    for _ in range(14):
        x, y, w, h = p.rng.uniform(0, 0.8), p.rng.uniform(0, 0.8), p.rng.uniform(0.05, 0.4), p.rng.uniform(0.05, 0.25)
        p.box(x, x + w, y, y + h, tuple(p.rng.uniform(0.03, 0.9, 3)), float(p.rng.uniform(0, 0.6)))
    p.box(0, 1, 0, 0.04, (0.1, 0.1, 0.1)).box(0, 1, 0.96, 1, (0.1, 0.1, 0.1)).box(0, 0.03, 0, 1, (0.1, 0.1, 0.1)).box(
        0.97, 1, 0, 1, (0.1, 0.1, 0.1)
    )


class Atlas:
    """Every material's mip chain, packed as 4 x uint8 in one flat array, and the large-scale noise.

    ``texels`` (M * stride,) uint32; level l of material m starts at ``m * stride + level_start[l]``, its side is
    ``TILE >> l``.
    """

    stride = sum((TILE >> l) * (TILE >> l) for l in range(LEVELS))
    level_start = np.cumsum([0] + [(TILE >> l) * (TILE >> l) for l in range(LEVELS)])[:LEVELS].astype(np.int32)

    def __init__(self, seed: int = 0) -> None:
        painters = {m: Painter(np.random.default_rng([seed, 11, int(m)])) for m in Material}
        for draw in (_facades, _grounds, _objects):
            draw(painters)
        chains = []
        for m in Material:
            tile = np.clip(painters[m].tile, 0.0, 1.0)
            for _ in range(LEVELS):
                chains.append(np.round(tile * 255).astype(np.uint8).reshape(-1, 4))
                tile = (
                    0.25 * (tile[::2, ::2] + tile[1::2, ::2] + tile[::2, 1::2] + tile[1::2, 1::2])
                    if len(tile) > 1
                    else tile
                )
        self.texels = np.ascontiguousarray(np.concatenate(chains)).view(np.uint32).ravel()
        self.noise = tileable_noise(np.random.default_rng([seed, 12]), NOISE, 2.2)  # (NOISE, NOISE)

    def sample(self, material: NDArray[np.uint8], u: Array, v: Array, level: NDArray[np.int32]) -> Array:
        """Bilinear texels, tiles repeating: material (P,), u and v (P,) in tiles, mip level (P,) -> (4, P)."""
        side = np.right_shift(TILE, level)  # (P,)
        base = material.astype(np.int32) * self.stride + self.level_start[level]
        wrap = side - 1  # sides are powers of two
        x0, x1, ax = _taps(u, side, wrap)
        y0, y1, ay = _taps(v, side, wrap)
        y0, y1 = y0 * side + base, y1 * side + base
        bx, by = (1 - ax) * np.float32(1 / 255), 1 - ay
        ax = ax * np.float32(1 / 255)
        out = np.zeros((4, len(u)), np.float32)
        for index, weight in ((y0 + x0, bx * by), (y0 + x1, ax * by), (y1 + x0, bx * ay), (y1 + x1, ax * ay)):
            texel = self.texels[index].view(np.uint8).reshape(-1, 4)
            for c in range(4):
                out[c] += texel[:, c] * weight
        return out

    def clouds(self, u: Array, v: Array, smooth: bool = False) -> Array:
        """Large-scale noise at u, v (P,) in periods: the nearest sample, or bilinear between samples, (P,)."""
        mask = NOISE - 1
        if not smooth:
            x, y = np.floor(u * NOISE).astype(np.int32) & mask, np.floor(v * NOISE).astype(np.int32) & mask
            return self.noise[y, x]
        x0, x1, ax = _taps(u, NOISE, mask)
        y0, y1, ay = _taps(v, NOISE, mask)
        low = self.noise[y0, x0] * (1 - ax) + self.noise[y0, x1] * ax
        high = self.noise[y1, x0] * (1 - ax) + self.noise[y1, x1] * ax
        return low * (1 - ay) + high * ay


Ints = NDArray[np.int32]


def _taps(u: Array, side: Ints | int, wrap: Ints | int) -> tuple[Ints, Ints, Array]:
    """The two samples around u (in periods) on a repeating row of ``side``, and the second one's weight."""
    f = (u - np.floor(u)) * side - np.float32(0.5)
    f = f.astype(np.float32, copy=False)
    low = np.floor(f)
    i = low.astype(np.int32)
    return i & wrap, (i + 1) & wrap, f - low


def mip_level(texels: Array, levels: int) -> Ints:
    """The level whose texels are as large as a pixel that covers so many of the finest ones: floor(log2), (P,)."""
    exponent = np.frexp(np.maximum(texels, np.float32(1)))[1] - 1
    return np.minimum(exponent, levels - 1).astype(np.int32)
