"""Pictures of a driving scene: boxes over a photograph, the surroundings from above, surface normals as colours.

Arrays in, RGB arrays out. Boxes wear the colours that nuScenes' own pictures have made customary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mim4d.viz.style import NOTHING

RGB = tuple[int, int, int]

CLASS_COLOURS: dict[str, RGB] = {
    "car": (255, 158, 0),
    "truck": (255, 99, 71),
    "bus": (255, 69, 0),
    "trailer": (255, 140, 0),
    "construction_vehicle": (233, 150, 70),
    "pedestrian": (0, 0, 230),
    "motorcycle": (255, 61, 99),
    "bicycle": (220, 20, 60),
    "traffic_cone": (47, 79, 79),
    "barrier": (112, 128, 144),
}
# Of the map, lowest first: what lies later in the list is drawn over what lies before it.
AREA_COLOURS: dict[str, RGB] = {
    "drivable_area": (201, 207, 215),
    "carpark_area": (186, 196, 214),
    "walkway": (226, 214, 192),
    "ped_crossing": (137, 186, 226),
    "stop_line": (224, 150, 150),
}
LINE_COLOURS: dict[str, RGB] = {"lane_divider": (255, 255, 255), "road_divider": (214, 150, 20)}
EARTH: RGB = (238, 240, 243)  # where the map says nothing
ECHO: RGB = (108, 116, 130)  # a LiDAR point from above
EGO: RGB = (20, 24, 30)

NEAR = 0.2  # metres before a camera at which boxes are cut off
FINE = 2  # drawn so many times larger, then reduced: smooth lines
_EGO_OUTLINE = np.array([(3.6, 0.9), (3.9, 0.0), (3.6, -0.9), (-1.0, -0.9), (-1.0, 0.9)])  # about the rear axle, metres
_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))


@dataclass(frozen=True)
class LocalMap:
    """A map in the coordinates of the picture's ego: metres, x forward, y left."""

    areas: Sequence[tuple[str, np.ndarray, Sequence[np.ndarray]]]  # layer, outline (P, 2), holes (P', 2) each
    lines: Sequence[tuple[str, np.ndarray]]  # layer, (P, 2)


def corners(pose: np.ndarray, size: Sequence[float]) -> np.ndarray:
    """The corners (8, 3) of a box: the four of its front face, then the four of its rear face, each in a ring.

    ``pose`` (4, 4) of its centre, heading along x; ``size`` width, length, height in metres, as nuScenes orders them.
    """
    w, l, h = (value / 2 for value in size)
    face = [(w, h), (-w, h), (-w, -h), (w, -h)]
    local = np.array([(x, y, z) for x in (l, -l) for y, z in face])  # (8, 3)
    return local @ pose[:3, :3].T + pose[:3, 3]


def _halo(colour: RGB) -> RGB:
    """What sets a thin line of a colour off any photograph."""
    bright = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 110
    return (16, 18, 22) if bright else (240, 242, 245)


def _segment(a: np.ndarray, b: np.ndarray, intrinsics: np.ndarray) -> list[tuple[float, float]] | None:
    """The part of a camera-frame segment that lies before the camera, as image points; None where there is none."""
    if max(a[2], b[2]) <= NEAR:
        return None
    if min(a[2], b[2]) < NEAR:
        cut = a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2]))
        a, b = (cut, b) if a[2] < NEAR else (a, cut)
    ends = np.stack([a, b]) @ intrinsics.T
    return [(float(u), float(v)) for u, v in ends[:, :2] / ends[:, 2:]]


def draw_boxes(
    image: np.ndarray, boxes: Iterable[tuple[str, np.ndarray]], intrinsics: np.ndarray, *, thickness: float = 1.3
) -> np.ndarray:
    """Boxes as wire frames over a photograph, the front face bold, the nearest on top.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: class name and corners (8, 3) as of :func:`corners`, in camera coordinates (x right, y down, z ahead).
        intrinsics: (3, 3) of ``image``, whose top-left corner is (0, 0).
        thickness: of a line in pixels.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    canvas = Image.fromarray(np.ascontiguousarray(image)).resize(
        (width * FINE, height * FINE), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(canvas)
    line = max(1, round(thickness * FINE))
    ordered = sorted(boxes, key=lambda box: -float(np.square(box[1].mean(axis=0)).sum()))
    for name, box in ordered:
        colour = CLASS_COLOURS.get(name, NOTHING)
        segments = [(_segment(box[a], box[b], intrinsics), a < 4 and b < 4) for a, b in _EDGES]
        for paint, more in ((_halo(colour), 1), (colour, 0)):
            for ends, front in segments:
                if ends is not None:
                    at = [(u * FINE - 0.5, v * FINE - 0.5) for u, v in ends]
                    draw.line(at, fill=paint, width=line + more + (1 if front else 0))
    return np.asarray(canvas.resize((width, height), Image.Resampling.LANCZOS))


def from_above(
    side: int, reach: float, ground: LocalMap, points: np.ndarray, boxes: Iterable[tuple[str, np.ndarray, bool]]
) -> np.ndarray:
    """The surroundings of the ego car, which stands in the middle and drives upwards.

    Args:
        side: of the square picture in pixels.
        reach: metres from its middle to its edge.
        ground: the map around the ego.
        points: (P, 2 or more) LiDAR points in the ego frame, x forward and y left.
        boxes: class name, corners (8, 3) in the ego frame, and whether it is filled (seen by the LiDAR) or an outline.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    scale = side * FINE / (2 * reach)

    def place(xy: np.ndarray) -> list[tuple[float, float]]:
        """Ego coordinates (P, 2) -> pixels of the canvas."""
        flat = np.stack([reach - xy[:, 1], reach - xy[:, 0]], axis=-1) * scale - 0.5
        return [(float(u), float(v)) for u, v in flat]

    canvas = Image.new("RGB", (side * FINE, side * FINE), EARTH)
    draw = ImageDraw.Draw(canvas)
    for layer, colour in AREA_COLOURS.items():
        for name, outline, holes in ground.areas:
            if name == layer and holes:
                mask = Image.new("L", canvas.size)
                stencil = ImageDraw.Draw(mask)
                stencil.polygon(place(outline), fill=255)
                for hole in holes:
                    stencil.polygon(place(hole), fill=0)
                canvas.paste(colour, mask=mask)
            elif name == layer:
                draw.polygon(place(outline), fill=colour)
    for layer, colour in LINE_COLOURS.items():
        for name, line in ground.lines:
            if name == layer:
                draw.line(place(line), fill=colour, width=max(1, round(0.3 * scale)))
    near = points[(np.abs(points[:, :2]) < reach).all(axis=1)]
    dot = 0.5 + 0.03 * scale
    for u, v in place(near[:, :2]):
        draw.rectangle((u - dot, v - dot, u + dot, v + dot), fill=ECHO)
    for name, box, filled in boxes:
        colour = CLASS_COLOURS.get(name, NOTHING)
        front, rear = box[[1, 0], :2], box[[4, 5], :2]  # right and left end of the front, left and right of the rear
        draw.polygon(place(np.concatenate([front, rear])), outline=colour, fill=colour if filled else None, width=FINE)
        nose = np.stack([box[:4, :2].mean(axis=0), box[:, :2].mean(axis=0)])
        draw.line(place(nose), fill=_halo(colour) if filled else colour, width=FINE)
    draw.polygon(place(_EGO_OUTLINE), fill=EGO)
    return np.asarray(canvas.resize((side, side), Image.Resampling.LANCZOS))


def normals_to_rgb(normals: np.ndarray) -> np.ndarray:
    """Unit normals (..., 3) as colours (..., 3) uint8: red grows with x, green with y, blue with z; NaN is grey."""
    known = np.isfinite(normals).all(axis=-1, keepdims=True)
    rgb = np.round(127.5 + 127.5 * np.where(known, normals, 0.0)).astype(np.uint8)
    return np.where(known, rgb, np.array(NOTHING, np.uint8))


def film_frame(photo: np.ndarray, above: np.ndarray, *, gap: int = 4) -> np.ndarray:
    """A photograph beside a square picture from above, in one picture as high as the latter; the photograph is fitted
    into twice its width.
    """
    side = above.shape[0]
    height, width = photo.shape[:2]
    factor = min(side / height, 2 * side / width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    fitted = Image.fromarray(np.ascontiguousarray(photo)).resize(size, Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (size[0] + gap + side, side), EGO)
    sheet.paste(fitted, (0, (side - size[1]) // 2))
    sheet.paste(Image.fromarray(np.ascontiguousarray(above)), (size[0] + gap, 0))
    return np.asarray(sheet)


def legend(colours: dict[str, Any]) -> list[tuple[str, str]]:
    """Names in words and colours as CSS: ``[("traffic cone", "rgb(47,79,79)"), ...]``."""
    return [(name.replace("_", " "), "rgb({},{},{})".format(*rgb)) for name, rgb in colours.items()]
