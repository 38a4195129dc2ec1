"""Raster pictures: depth in colours, LiDAR over a photograph, a rig of cameras. Arrays in, RGB arrays out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from mim4d.viz.style import NOTHING

DEPTH_RANGE = (2.0, 60.0)  # metres; the same in every picture of every run, so that pictures compare
DEPTH_TICKS = (2, 5, 10, 20, 40, 60)  # metres
DEPTH_COLOURS = "turbo_r"  # near is red, far is violet

# Where a camera of the usual six-camera rig looks: degrees to the left of straight ahead, by its name.
_DIRECTIONS = {
    "FRONT": 0.0,
    "FRONT_LEFT": 55.0,
    "LEFT": 90.0,
    "BACK_LEFT": 110.0,
    "BACK": 180.0,
    "BACK_RIGHT": -110.0,
    "RIGHT": -90.0,
    "FRONT_RIGHT": -55.0,
}
_READING_ORDER = ("FRONT_LEFT", "FRONT", "FRONT_RIGHT", "LEFT", "RIGHT", "BACK_LEFT", "BACK", "BACK_RIGHT")


def plain_name(camera: str) -> str:
    """``CAM_FRONT_LEFT`` -> ``front left``."""
    return camera.removeprefix("CAM_").replace("_", " ").strip().lower() or camera


def camera_direction(camera: str) -> float | None:
    """Rough viewing direction by the camera's name: degrees to the left of straight ahead; None when unknown."""
    return _DIRECTIONS.get(camera.removeprefix("CAM_"))


def reading_order(cameras: Sequence[str]) -> list[int]:
    """Indices that put a rig in reading order, front row before back row and left before right; unknown names last."""
    rank = {name: index for index, name in enumerate(_READING_ORDER)}
    return sorted(range(len(cameras)), key=lambda i: (rank.get(cameras[i].removeprefix("CAM_"), len(rank)), i))


def depth_fraction(depth: np.ndarray, depth_range: tuple[float, float] = DEPTH_RANGE) -> np.ndarray:
    """Position on the colour bar in [0, 1]: logarithmic, since the nearest ten metres hold most of an image.

    ``depth`` in metres, any shape; clipped to ``depth_range``. NaN stays NaN.
    """
    near, far = depth_range
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = np.log(np.asarray(depth, dtype=np.float64) / near) / np.log(far / near)
    return np.clip(fraction, 0.0, 1.0)


def depth_to_rgb(
    depth: np.ndarray, valid: np.ndarray | None = None, depth_range: tuple[float, float] = DEPTH_RANGE
) -> np.ndarray:
    """Colours of depths in metres, on one fixed logarithmic scale.

    Args:
        depth: (...) metres.
        valid: (...) bool; False, or a depth that is not finite, is drawn in the neutral grey of "nothing here".
        depth_range: metres at the two ends of the scale.

    Returns:
        (..., 3) uint8 RGB.
    """
    depth = np.asarray(depth)
    shown = np.isfinite(depth) if valid is None else np.isfinite(depth) & valid  # (...)
    fraction = np.where(shown, depth_fraction(np.where(shown, depth, depth_range[1]), depth_range), 0.0)
    rgb = np.asarray(colormaps[DEPTH_COLOURS](fraction, bytes=True))[..., :3]  # (..., 3)
    return np.where(shown[..., None], rgb, np.array(NOTHING, dtype=np.uint8))


def depth_bar(width: int = 256) -> np.ndarray:
    """The colour bar that belongs to :func:`depth_to_rgb`: (1, width, 3) uint8, near on the left."""
    near, far = DEPTH_RANGE
    return depth_to_rgb(near * (far / near) ** np.linspace(0.0, 1.0, width))[None]


def fit_width(image: np.ndarray, width: int) -> np.ndarray:
    """Resize an RGB image (H, W, 3) uint8 to ``width`` pixels, keeping its shape; smooth, for photographs."""
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.LANCZOS))


def lidar_overlay(image: np.ndarray, points: np.ndarray, *, width: int = 560, radius: float = 2.4) -> np.ndarray:
    """LiDAR hits in depth colours over a faded grey version of the photograph they fall on.

    Args:
        image: (H, W, 3) uint8 RGB.
        points: (P, 3) float: u, v in pixels of ``image`` (corner (0, 0)), ray depth in metres.
        width: of the result in pixels.
        radius: of a dot, in pixels of the result.

    Returns:
        (H', width, 3) uint8 RGB; nearer hits lie on top.
    """
    fine = 2  # drawn larger, then reduced: smooth dots
    grey = fit_width(image, width * fine).mean(axis=-1, keepdims=True)  # (H'', W'', 1)
    canvas = Image.fromarray(np.repeat(45 + 0.38 * grey, 3, axis=-1).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    points = points[np.isfinite(points).all(axis=-1)]
    points = points[np.argsort(-points[:, 2], kind="stable")]  # far first
    scale, reach = canvas.width / image.shape[1], radius * fine
    colours = depth_to_rgb(points[:, 2])  # (P, 3)
    for (u, v, _), colour in zip(points * [scale, scale, 1.0], colours, strict=True):
        draw.ellipse((u - reach, v - reach, u + reach, v + reach), fill=tuple(int(c) for c in colour))
    return np.asarray(canvas.resize((width, canvas.height // fine), Image.Resampling.LANCZOS))


def camera_grid(images: Sequence[np.ndarray], cameras: Sequence[str], *, columns: int = 3, gap: int = 6) -> np.ndarray:
    """All cameras of a rig in one picture, in reading order, each with its name.

    Args:
        images: N pictures (H, W, 3) uint8 RGB of one size.
        cameras: N camera names.
        columns: pictures per row.
        gap: white pixels between pictures.

    Returns:
        one RGB picture, uint8.
    """
    if len(images) != len(cameras) or not images:
        raise ValueError(f"camera_grid: wanted one name per picture, got {len(images)} pictures, {len(cameras)} names")
    height, width = images[0].shape[:2]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=max(10, height // 20))
    for place, index in enumerate(reading_order(cameras)):
        left, top = (place % columns) * (width + gap), (place // columns) * (height + gap)
        sheet.paste(Image.fromarray(np.ascontiguousarray(images[index])), (left, top))
        label = plain_name(cameras[index])
        box = draw.textbbox((left + 6, top + 4), label, font=font)
        draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=(20, 24, 30))
        draw.text((left + 6, top + 4), label, fill=(245, 247, 250), font=font)
    return np.asarray(sheet)
