"""What is painted on the road: two coverage rasters around the ego's way, with mip levels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mim4d.world.roads import Roads
from mim4d.world.textures import mip_level

Array = NDArray[np.float32]

RESOLUTION = 1 / 16  # metres a texel
LEVELS = 7
# Value in the white channel: 255 paint, 128 bare asphalt, less where it is darker.
WHITE_CHANNEL = {"white": 255, "patch": 100, "track": 117, "crack": 52, "cover": 62, "lid": 100}


class Ground:
    """Paint over the asphalt. ``paint`` (x, y, footprint) -> coverage of white and of yellow, both in [0, 1].

    The white channel holds 0.5 for bare asphalt, 1 for paint and less than 0.5 for dark patches.
    """

    def __init__(self, roads: Roads, low: tuple[float, float], high: tuple[float, float]) -> None:
        """Covers the rectangle low..high of map coordinates; beyond it lies bare asphalt."""
        self.low = np.asarray(low, np.float64)
        size = np.ceil((np.asarray(high) - self.low) / RESOLUTION).astype(int)
        align = 1 << (LEVELS - 1)
        width, height = (int(-(-s // align) * align) for s in size)
        white, yellow = Image.new("L", (width, height), 128), Image.new("L", (width, height), 0)
        draw_white, draw_yellow = ImageDraw.Draw(white), ImageDraw.Draw(yellow)
        for polygon, colour in roads.paint:
            # (P, 2) PIL fills what a polygon's outline touches: on the average over directions that grows it evenly.
            texels = (polygon - self.low) / RESOLUTION
            if texels.max(0).min() < 0 or (texels.min(0) > (width, height)).any():
                continue
            points = [tuple(p) for p in texels.tolist()]
            if colour == "yellow":
                draw_yellow.polygon(points, fill=255)
            else:
                draw_white.polygon(points, fill=WHITE_CHANNEL[colour])
        soft = ImageFilter.BoxBlur(0.8)  # polygons are drawn without smooth edges
        white, yellow = white.filter(soft), yellow.filter(soft)
        chain = []
        for level in range(LEVELS):
            layers = [np.asarray(im if level == 0 else im.reduce(1 << level)) for im in (white, yellow)]
            chain.append(np.stack(layers, -1))  # (h, w, 2) uint8
        self.texels = np.concatenate([pair.reshape(-1, 2) for pair in chain])  # (S, 2) uint8
        self._heights = np.array([len(pair) for pair in chain], np.int32)
        self._widths = np.array([pair.shape[1] for pair in chain], np.int32)
        ends = np.cumsum([pair.shape[0] * pair.shape[1] for pair in chain])
        self._starts = np.concatenate([[0], ends[:-1]]).astype(np.int32)

    def paint(self, x: Array, y: Array, footprint: Array) -> tuple[Array, Array]:
        """Map coordinates relative to ``low`` and the size of a pixel on the ground, metres (P,) -> two (P,)."""
        level = mip_level(footprint / np.float32(RESOLUTION), LEVELS)
        cell = np.ldexp(np.float32(RESOLUTION), level)
        w, h, start = self._widths[level], self._heights[level], self._starts[level]
        fx, fy = x / cell - np.float32(0.5), y / cell - np.float32(0.5)
        ix, iy = np.floor(fx).astype(np.int32), np.floor(fy).astype(np.int32)
        ax, ay = fx - ix, fy - iy
        outside = (ix < 0) | (iy < 0) | (ix >= w - 1) | (iy >= h - 1)
        at = np.where(outside, 0, start + iy * w + ix)
        step = np.where(outside, 0, w)
        one = np.where(outside, 0, 1)
        bx, by = 1 - ax, 1 - ay
        white, yellow = np.zeros_like(x), np.zeros_like(x)
        for index, weight in ((at, bx * by), (at + one, ax * by), (at + step, bx * ay), (at + step + one, ax * ay)):
            texel = self.texels[index]  # (P, 2)
            white += texel[:, 0] * weight
            yellow += texel[:, 1] * weight
        white[outside], yellow[outside] = 128, 0
        return white * np.float32(1 / 255), yellow * np.float32(1 / 255)
