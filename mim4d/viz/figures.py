"""Every picture of a run: matplotlib figures and RGB arrays for the report, the notebook and `mim4d render`.

Figures are made without pyplot (no global state, no display). Arrays are uint8 RGB. Distances are metres along the
ray; maps have x (forward) up and y (left) to the left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mim4d.viz.curves import Mark, Panel, curve_figure, panels, smooth
from mim4d.viz.ground import bev_figure, box_corners, motion_figure, sdf_figure, shared_limit, velocity_figure
from mim4d.viz.images import (
    DEPTH_RANGE,
    camera_grid,
    depth_bar,
    depth_fraction,
    depth_to_rgb,
    lidar_overlay,
    plain_name,
    reading_order,
)
from mim4d.viz.run import Renders, load_renders
from mim4d.viz.style import BEFORE, DIRECT, INK, RECONSTRUCTED, dress, new_figure, png

__all__ = [
    "DEPTH_RANGE",
    "Mark",
    "Panel",
    "bev_figure",
    "box_corners",
    "camera_grid",
    "curve_figure",
    "depth_bar",
    "depth_error_figure",
    "depth_errors",
    "depth_fraction",
    "depth_to_rgb",
    "lidar_overlay",
    "motion_figure",
    "panels",
    "plain_name",
    "reading_order",
    "rendered_depth",
    "sdf_figure",
    "shared_limit",
    "smooth",
    "speed_limit",
    "velocity_figure",
    "write_pngs",
]

DISTANCE_EDGES = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0)  # metres
SOLID = 0.05  # a ray less opaque than this met nothing, so that its distance means nothing
_FEWEST = 5  # LiDAR hits that make a mean worth drawing


def rendered_depth(depth: np.ndarray, opacity: np.ndarray | None) -> np.ndarray:
    """Rendered depth (h, w) in metres as colours (h, w, 3) uint8; grey where the ray met nothing."""
    return depth_to_rgb(depth, None if opacity is None else opacity >= SOLID)


def depth_errors(renders: Renders, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """LiDAR distance and absolute error of the rendered one, over all cameras.

    Args:
        renders: the frame.
        depth: (N, h, w) rendered metres.

    Returns:
        distance (P,) and error (P,), metres. The rendered value is that of the nearest ray, so that beside an edge
        the error also holds the gap between rays.
    """
    pairs = [renders.at_lidar(camera, depth[camera]) for camera in range(len(renders.cameras))]
    distance = np.concatenate([pair[0] for pair in pairs])
    error = np.abs(np.concatenate([pair[1] for pair in pairs]) - distance)
    known = np.isfinite(distance) & np.isfinite(error)
    return distance[known], error[known]


def depth_error_figure(before: Renders, after: Renders | None, *, size: tuple[float, float] = (5.6, 2.7)) -> Figure:
    """Mean depth error over distance, untrained and trained, on the LiDAR hits of the pictured frame."""
    figure = new_figure(*size)
    axes = figure.add_subplot()
    dress(axes)
    lines = [("before training", before, before.depth_direct, BEFORE)]
    if after is not None:
        direct = "after training" if after.depth_reconstructed is None else "after, direct"
        lines.append((direct, after, after.depth_direct, DIRECT))
        if after.depth_reconstructed is not None:
            lines.append(("after, reconstructed", after, after.depth_reconstructed, RECONSTRUCTED))
    edges = np.array(DISTANCE_EDGES)
    for label, renders, depth, colour in lines:
        distance, error = depth_errors(renders, depth)
        place = np.digitize(distance, edges) - 1
        inside = [index for index in range(len(edges) - 1) if (place == index).sum() >= _FEWEST]
        middle = [float((edges[index] + edges[index + 1]) / 2) for index in inside]
        mean = [float(error[place == index].mean()) for index in inside]
        axes.plot(middle, mean, "o-", color=colour, linewidth=1.6, markersize=3.5, label=label)
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("distance by LiDAR, metres")
    axes.set_ylabel("mean depth error, metres")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left", handlelength=1.4)
    return figure


def speed_limit(renders: Renders) -> float:
    """Bright end of the speed scale that motion field and boxes share: m/s, at least 2."""
    boxes = None if renders.boxes is None else renders.boxes[:, 7:9]
    field = None if renders.motion is None else np.hypot(*renders.motion)
    return max(2.0, shared_limit(field, None if boxes is None else np.hypot(boxes[:, 0], boxes[:, 1])))


def write_pngs(npz: Path, folder: Path) -> list[Path]:
    """Write the pictures of one ``renders/*.npz`` as PNG files.

    Args:
        npz: the file `mim4d render` made.
        folder: made when missing; files of the same names are replaced.

    Returns:
        the files written.

    Raises:
        UserError: ``npz`` is missing, unreadable or lacks an entry.
    """
    renders = load_renders(npz)
    count = range(len(renders.cameras))
    sheets: dict[str, list[np.ndarray]] = {
        "camera": list(renders.image),
        "masked_input": list(renders.masked_image),
        "lidar_depth": [
            lidar_overlay(renders.image[i], renders.lidar_of(i), width=renders.image.shape[2]) for i in count
        ],
        "rgb_direct": list(renders.rgb_direct),
        "depth_direct": [rendered_depth(renders.depth_direct[i], renders.opacity_direct[i]) for i in count],
    }
    if renders.rgb_reconstructed is not None:
        sheets["rgb_reconstructed"] = list(renders.rgb_reconstructed)
    if renders.depth_reconstructed is not None:
        sheets["depth_reconstructed"] = [
            rendered_depth(depth, None if renders.opacity_reconstructed is None else renders.opacity_reconstructed[i])
            for i, depth in enumerate(renders.depth_reconstructed)
        ]
    maps: dict[str, Any] = {"boxes": renders.boxes, "cameras": renders.cameras}
    figures = {
        "bev_direct": bev_figure(renders.bev_direct, renders.bounds, limit=shared_limit(renders.bev_direct), **maps),
        "sdf_slice": sdf_figure(renders.sdf_slice, renders.bounds, limit=shared_limit(renders.sdf_slice), **maps),
    }
    if renders.bev_reconstructed is not None:
        limit = shared_limit(renders.bev_reconstructed)
        figures["bev_reconstructed"] = bev_figure(renders.bev_reconstructed, renders.bounds, limit=limit, **maps)
    if renders.motion is not None:
        limit = speed_limit(renders)
        figures["motion"] = motion_figure(renders.motion, renders.bounds, limit=limit, cameras=renders.cameras)

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, pictures in sheets.items():
        # Rendered pictures have one pixel per ray: enlarge them without inventing values in between.
        times = max(1, round(renders.image.shape[2] / pictures[0].shape[1]))
        sheet = camera_grid([picture.repeat(times, 0).repeat(times, 1) for picture in pictures], renders.cameras)
        Image.fromarray(sheet).save(folder / f"{name}.png")
        written.append(folder / f"{name}.png")
    for name, figure in figures.items():
        (folder / f"{name}.png").write_bytes(png(figure))
        written.append(folder / f"{name}.png")
    return written
