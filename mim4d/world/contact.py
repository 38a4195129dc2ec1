"""Where the ground sees less of the sky: at the feet of walls and of things, and beneath them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[np.float32]
F = np.float32

CELL = 1 / 6  # metres
BLUR = 2.4  # cells, twice


class Contact:
    """A raster of how much what stands on the ground hides of the sky, by place: 0 in the open, 1 underneath."""

    def __init__(
        self,
        low: NDArray[np.float64],
        high: NDArray[np.float64],
        walls: Sequence[NDArray[np.float64]],
        things: Sequence[NDArray[np.float64]],
    ) -> None:
        """Outlines (P, 2) of houses and of standing things; the raster covers low..high. Metres in one frame."""
        self.low = np.asarray(low, F)
        w, h = (int(n) for n in np.ceil((np.asarray(high) - low) / CELL))
        image = Image.new("L", (w, h), 0)
        draw = ImageDraw.Draw(image)
        for outlines, value in ((walls, 255), (things, 235)):
            for outline in outlines:
                corners = (outline - low) / CELL - 0.5
                if corners.max(0).min() >= 0 and (corners.min(0) < (w, h)).all():
                    draw.polygon([tuple(c) for c in corners.tolist()], fill=value)
        soft = image.filter(ImageFilter.BoxBlur(BLUR)).filter(ImageFilter.BoxBlur(BLUR))
        self.cells = np.asarray(soft).ravel()
        self.shape = (h, w)

    def at(self, x: Array, y: Array) -> Array:
        """(P,) in [0, 1]; outside the raster 0."""
        h, w = self.shape
        fx, fy = (x - self.low[0]) * F(1 / CELL) - F(0.5), (y - self.low[1]) * F(1 / CELL) - F(0.5)
        inside = (fx >= 0) & (fy >= 0) & (fx < w - 1) & (fy < h - 1)
        ix = np.where(inside, fx, F(0)).astype(np.int32)
        iy = np.where(inside, fy, F(0)).astype(np.int32)
        ax, ay, i = fx - ix, fy - iy, iy * w + ix
        c = self.cells
        top = c[i] * (1 - ax) + c[i + 1] * ax
        value = top + (c[i + w] * (1 - ax) + c[i + w + 1] * ax - top) * ay
        return np.where(inside, value * F(1 / 255), F(0)).astype(F)


def under(x: Array, y: Array, centre: Array, ahead: Array, half: Array) -> Array:
    """(P,) as :class:`Contact` of one rectangle that moves: half (2,) its length and width, ahead (2,) its heading."""
    dx, dy = x - centre[0], y - centre[1]
    along = half[0] + F(0.25) - np.abs(dx * ahead[0] + dy * ahead[1])
    across = half[1] + F(0.25) - np.abs(dy * ahead[0] - dx * ahead[1])
    return np.clip(along * F(1.8), 0, 1) * np.clip(across * F(1.8), 0, 1)
