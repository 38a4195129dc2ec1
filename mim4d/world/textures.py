"""Procedural textures: one tile per material with its mip chain, all in one flat array that a pixel reads by index.

Colours are linear light in [0, 1]. The fourth channel says how far the surface's own tint colours the texel (1: paint,
0: glass, tyres, lamps); a mask beside it says where glass mirrors and lamps shine. Row 0 of a tile is its lower edge.
Everything is drawn from a seed; no image is shipped.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from mim4d.world import liveries, surfaces
from mim4d.world.materials import Material
from mim4d.world.painting import TILE, Painter, tileable_noise

Array = NDArray[np.float32]

DRAWINGS = surfaces.DRAWINGS | liveries.DRAWINGS
LEVELS = 8  # 128, 64, ..., 1
NOISE = 512  # samples on a side of the large-scale noise


class Atlas:
    """Every material's mip chain, packed as 4 x uint8 in one flat array, and the large-scale noise.

    ``texels`` (M * stride,) uint32; level l of material m starts at ``m * stride + level_start[l]``, its side is
    ``TILE >> l``.
    """

    stride = sum((TILE >> l) * (TILE >> l) for l in range(LEVELS))
    level_start = np.cumsum([0] + [(TILE >> l) * (TILE >> l) for l in range(LEVELS)])[:LEVELS].astype(np.int32)

    def __init__(self, seed: int = 0, index: int = 0, validation: bool = False) -> None:
        """Every town has builders and painters of its own: ``index`` and ``validation`` are its scene's."""
        key = [seed, 11, index, int(validation)]
        chains, masks = [], []
        for m in Material:
            painter = Painter(np.random.default_rng([*key, int(m)]))
            DRAWINGS[m](painter)
            tile = np.clip(painter.tile, 0.0, 1.0)
            for _ in range(LEVELS):
                bytes_ = np.round(tile * 255).astype(np.uint8).reshape(-1, 5)
                chains.append(np.ascontiguousarray(bytes_[:, :4]))
                masks.append(bytes_[:, 4])
                if len(tile) > 1:
                    tile = 0.25 * (tile[::2, ::2] + tile[1::2, ::2] + tile[::2, 1::2] + tile[1::2, 1::2])
        self.texels = np.concatenate(chains).view(np.uint32).ravel()
        self.masks = np.concatenate(masks)  # (M * stride,) uint8
        last = self.texels.reshape(len(Material), self.stride)[:, -1:].copy().view(np.uint8)
        self.means = np.ascontiguousarray(
            last.T.astype(np.float32) / 255
        )  # (4, M) colour and tint share of a whole tile
        self.mean_masks = self.masks.reshape(len(Material), self.stride)[:, -1] * np.float32(1 / 255)  # (M,)
        self.noise = tileable_noise(np.random.default_rng([*key, 12]), NOISE, 2.2)  # (NOISE, NOISE)

    def mask(self, material: NDArray[np.uint8], u: Array, v: Array, level: NDArray[np.int32]) -> Array:
        """(P,) in [0, 1], the nearest texel's: how far glass mirrors there, or a lamp shines."""
        side = np.right_shift(TILE, level)
        x, y = (np.floor((w - np.floor(w)) * side).astype(np.int32) & (side - 1) for w in (u, v))
        at = material.astype(np.int32) * self.stride + self.level_start[level] + y * side + x
        return self.masks[at] * np.float32(1 / 255)

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


@functools.lru_cache(maxsize=4)
def town_atlas(seed: int, index: int, validation: bool) -> Atlas:
    """The atlas of a scene's town, drawn once a process."""
    return Atlas(seed, index, validation)


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
