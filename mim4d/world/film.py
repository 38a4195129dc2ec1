"""From light to pixels: lens, exposure, tone curve, noise."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
F = np.float32

CORNER = 0.17  # of the light that the lens loses in the corners of an image
# Standard deviation of a pixel's brightness (0..255) at exposure 1; red and blue vary besides, against each other, by
# 0.6 of that.
NOISE = 1.1
BYTES = math.sqrt(4 * (256 * 256 - 1) / 12)  # standard deviation of the sum of four random bytes


@functools.cache
def falloff(height: int, width: int) -> Array:
    """(H * W,) share of the light that reaches a pixel: 1 in the middle, least in the corners."""
    y, x = (((np.arange(n, dtype=F) + F(0.5)) / F(n) - F(0.5)) * F(2) for n in (height, width))
    return (1 - F(CORNER / 2) * (y[:, None] * y[:, None] + x * x)).ravel()


def develop(linear: Array, gain: float) -> Array:
    """Linear light (3, P) -> brightness (3, P) in [0, 1]: exposure, a soft shoulder, square root, some contrast."""
    x = linear * F(gain)
    x = x * (1 + x * F(0.03)) / (1 + x * F(0.56))
    y = np.sqrt(np.clip(x, 0, 1))
    y *= F(0.62) + y * (F(1.14) - F(0.76) * y)  # 0 -> 0, 1 -> 1, steeper in between
    return y


def photograph(linear: Array, size: tuple[int, int], gain: float, noise: float, key: list[int]) -> NDArray[np.uint8]:
    """Linear light (3, H * W) -> an image (H, W, 3).

    ``noise`` scales the sensor's noise, drawn from the stream ``key``. It has one standard deviation everywhere: the
    number of photons counted varies as its square root, and the tone curve is a square root too.
    """
    height, width = size
    y = develop(linear * falloff(height, width), gain)
    y *= F(255)
    if noise > 0:
        # Four bytes add up to what is close to normally distributed, within 3.4 standard deviations.
        dice = np.random.default_rng(key).integers(0, 256, (2, 4, y.shape[1]), np.uint8).astype(F)
        grey, hue = (d[0] + d[1] + d[2] + d[3] - F(510) for d in dice)
        grey *= F(NOISE * noise / BYTES)
        hue *= F(0.6 * NOISE * noise / BYTES)
        y += grey
        y[0] += hue
        y[2] -= hue
        np.clip(y, 0, 255, y)
    return np.ascontiguousarray((y + F(0.5)).astype(np.uint8).T).reshape(height, width, 3)
