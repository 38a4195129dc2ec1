"""The strokes that textures are drawn with."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact

Array = NDArray[np.float32]
RGB = tuple[float, float, float]

TILE = 128  # texels on a side of every tile


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
        self.tile = np.zeros((TILE, TILE, 5), np.float32)  # red, green, blue, share of the tint, mask

    def pick(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def fill(self, rgb: RGB, tint: float = 0.0) -> Painter:
        self.tile[...] = (*rgb, tint, 0.0)
        return self

    def where(self, inside: NDArray[np.bool_], rgb: RGB, tint: float = 0.0, mask: float = 0.0) -> Painter:
        self.tile[inside] = (*rgb, tint, mask)
        return self

    def box(
        self, x0: float, x1: float, y0: float, y1: float, rgb: RGB, tint: float = 0.0, mask: float = 0.0
    ) -> Painter:
        inside = (self.x >= x0) & (self.x < x1) & (self.y >= y0) & (self.y < y1)
        return self.where(inside, rgb, tint, mask)

    def disc(self, x: float, y: float, radius: float, rgb: RGB, tint: float = 0.0, mask: float = 0.0) -> Painter:
        return self.where(exact.hypot(self.x - x, self.y - y) < radius, rgb, tint, mask)

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

    def pane(self, x0: float, x1: float, y0: float, y1: float) -> Painter:
        """Glass before a dark room, with a curtain at one side or a blind let down a little."""
        inside = (self.x >= x0) & (self.x < x1) & (self.y >= y0) & (self.y < y1)
        h = ((self.y - y0) / (y1 - y0))[inside, None]
        room = np.array([0.03, 0.035, 0.04]) * (1 - h) + np.array([0.07, 0.09, 0.11]) * h
        self.tile[inside] = np.concatenate([room, np.zeros_like(h), np.ones_like(h)], 1)
        what, much = self.rng.integers(3), self.pick(0.15, 0.4)
        cloth = (0.3, 0.28, 0.25)
        if what == 0:
            self.box(x0, x1, y1 - much * (y1 - y0), y1, cloth, 0.1, 0.5)
        elif what == 1:
            self.box(x0, x0 + 0.6 * much * (x1 - x0), y0, y1, cloth, 0.1, 0.6)
        return self

    def window(self, x0: float, x1: float, y0: float, y1: float, frame: RGB = (0.55, 0.55, 0.53)) -> Painter:
        """A pane in its frame, with a mullion, a sill and the shadow under the lintel."""
        dim = (0.6 * frame[0], 0.6 * frame[1], 0.6 * frame[2])
        self.box(x0 - 0.035, x1 + 0.035, y0 - 0.05, y1 + 0.04, frame)
        self.box(x0 - 0.05, x1 + 0.05, y0 - 0.075, y0 - 0.035, (0.5, 0.5, 0.47))
        self.box(x0 - 0.05, x1 + 0.05, y0 - 0.095, y0 - 0.075, (0.35, 0.35, 0.35), 1.0)
        self.pane(x0, x1, y0, y1)
        self.tile[(self.x >= x0) & (self.x < x1) & (self.y >= y1 - 0.035) & (self.y < y1), :3] *= 0.45
        self.box((x0 + x1) / 2 - 0.012, (x0 + x1) / 2 + 0.012, y0, y1, dim)
        self.box(x0, x1, y0 + 0.62 * (y1 - y0), y0 + 0.66 * (y1 - y0), dim)
        return self
