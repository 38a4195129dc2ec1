"""Maps from above, in metres, forward up and left on the left: features, distance to surfaces, boxes, motion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from mim4d.viz.images import camera_direction, plain_name
from mim4d.viz.style import MUTED, RULE, dress, new_figure

BEV_COLOURS = "viridis"
SDF_COLOURS = "RdBu"
SPEED_COLOURS = "plasma"
_ARROW: dict[str, Any] = {
    "angles": "xy",
    "scale_units": "xy",
    "scale": 1.0,
    "width": 0.004,
    "headwidth": 3.5,
    "headlength": 4,
}
_SIZE = (4.3, 4.75)  # inches: a square map, axis labels and a colour bar


def _map_axes(figure: Figure, bounds: Sequence[float], cameras: Sequence[str]) -> Axes:
    xmin, ymin, _, xmax, ymax, _ = bounds
    axes = figure.add_subplot()
    dress(axes, grid=False, size=8.5)
    axes.set_aspect("equal")
    axes.set_xlim(ymax, ymin)  # left of the car on the left of the page
    axes.set_ylim(xmin, xmax)
    axes.set_xlabel("to the left  ←  metres  →  to the right")
    axes.set_ylabel("behind  ←  metres  →  ahead")
    axes.locator_params(nbins=6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    for side in ("top", "right"):
        axes.spines[side].set(visible=True, color=RULE)
    _ego(axes, (xmax - xmin + ymax - ymin) / 2)
    _camera_names(axes, bounds, cameras)
    return axes


def _ego(axes: Axes, extent: float) -> None:
    """A small arrow head at the origin, pointing forward."""
    s = extent / 60
    axes.add_patch(
        Polygon(
            [(0, 2.2 * s), (1.3 * s, -1.6 * s), (0, -0.8 * s), (-1.3 * s, -1.6 * s)],
            fc="white",
            ec="black",
            lw=0.8,
            zorder=5,
        )
    )


def _camera_names(axes: Axes, bounds: Sequence[float], cameras: Sequence[str]) -> None:
    """Each camera's name near the edge of the map, in the direction it looks."""
    xmin, ymin, _, xmax, ymax, _ = bounds
    for camera in cameras:
        degrees = camera_direction(camera)
        if degrees is None:
            continue
        ahead, left = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        reach = min(
            (xmax if ahead > 0 else -xmin) / max(abs(ahead), 1e-9), (ymax if left > 0 else -ymin) / max(abs(left), 1e-9)
        )
        axes.annotate(
            plain_name(camera),
            (left * reach * 0.985, ahead * reach * 0.985),
            ha="center" if abs(left) < 0.3 else ("left" if left > 0 else "right"),
            va="center" if abs(ahead) < 0.3 else ("top" if ahead > 0 else "bottom"),
            fontsize=8,
            color="white",
            bbox={"boxstyle": "round,pad=0.25", "fc": "#14181e", "ec": "none", "alpha": 0.72},
            zorder=6,
        )


def _picture(axes: Axes, field: np.ndarray, bounds: Sequence[float], colours: str, norm: Normalize) -> ScalarMappable:
    """Draw a (Y, X) field with x up and y to the left."""
    xmin, ymin, _, xmax, ymax, _ = bounds
    extent = (ymin, ymax, xmin, xmax)
    return axes.imshow(field.T, origin="lower", extent=extent, cmap=colours, norm=norm, interpolation="none", zorder=1)


def _bar(figure: Figure, axes: Axes, picture: ScalarMappable, label: str) -> None:
    bar = figure.colorbar(picture, ax=axes, location="bottom", aspect=34, shrink=0.82, pad=0.02)
    bar.set_label(label, color=MUTED, size=8.5)
    bar.ax.tick_params(colors=MUTED, labelsize=8.5, length=2.5, width=0.6)
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)  # type: ignore[union-attr]


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Outlines of boxes on the ground: (M, 9) [x, y, z, w, l, h, yaw, vx, vy] -> (M, 4, 2) metres x, y.

    Length lies along the heading ``yaw`` (radians from x towards y), width across it.
    """
    x, y, w, l, yaw = (boxes[:, i] for i in (0, 1, 3, 4, 6))
    ahead = np.array([1, 1, -1, -1]) * l[:, None] / 2  # (M, 4)
    left = np.array([1, -1, -1, 1]) * w[:, None] / 2  # (M, 4)
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    return np.stack([x[:, None] + ahead * cos - left * sin, y[:, None] + ahead * sin + left * cos], axis=-1)


def _outlines(axes: Axes, boxes: np.ndarray | None, colour: str) -> None:
    if boxes is not None and len(boxes):
        for corners in box_corners(boxes):
            axes.add_patch(Polygon(corners[:, ::-1], fc="none", ec=colour, lw=0.8, zorder=3))


def shared_limit(*fields: np.ndarray | None, percentile: float = 99.5) -> float:
    """One upper limit of magnitude for pictures that are compared: robust against single cells, never zero."""
    values = [np.abs(field[np.isfinite(field)]) for field in fields if field is not None]
    values = [value for value in values if value.size]
    return max([1e-6, *(float(np.percentile(value, percentile)) for value in values)])


def bev_figure(
    bev: np.ndarray,
    bounds: Sequence[float],
    *,
    limit: float,
    cameras: Sequence[str] = (),
    boxes: np.ndarray | None = None,
) -> Figure:
    """The volume from above.

    Args:
        bev: (Y, X) length of the feature vector, largest over height.
        bounds: xmin, ymin, zmin, xmax, ymax, zmax in metres.
        limit: value at the bright end of the colour bar (:func:`shared_limit`).
        cameras: names to write at the edge.
        boxes: (M, 9) outlined in white.
    """
    figure = new_figure(*_SIZE)
    axes = _map_axes(figure, bounds, cameras)
    picture = _picture(axes, bev, bounds, BEV_COLOURS, Normalize(0, limit))
    _outlines(axes, boxes, "white")
    _bar(figure, axes, picture, "length of the feature vector")
    return figure


def sdf_figure(
    sdf: np.ndarray,
    bounds: Sequence[float],
    *,
    limit: float,
    cameras: Sequence[str] = (),
    boxes: np.ndarray | None = None,
) -> Figure:
    """Signed distance to the nearest surface on one level: red inside things, blue in free space, a line at zero.

    Args:
        sdf: (Y, X) metres.
        bounds: xmin, ymin, zmin, xmax, ymax, zmax in metres.
        limit: metres at both ends of the colour bar.
        cameras: names to write at the edge.
        boxes: (M, 9) outlined in black.
    """
    figure = new_figure(*_SIZE)
    axes = _map_axes(figure, bounds, cameras)
    picture = _picture(axes, sdf, bounds, SDF_COLOURS, TwoSlopeNorm(0.0, -limit, limit))
    if np.nanmin(sdf, initial=0.0) < 0 < np.nanmax(sdf, initial=0.0):
        y, x = cell_centres(sdf.shape, bounds)
        axes.contour(y, x, sdf.T, levels=[0.0], colors="black", linewidths=0.9, zorder=2)
    _outlines(axes, boxes, "black")
    _bar(figure, axes, picture, "inside  ←  metres to the nearest surface  →  free")
    return figure


def cell_centres(shape: tuple[int, ...], bounds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Centres of a (Y, X) map's cells in metres: y (Y,), x (X,)."""
    xmin, ymin, _, xmax, ymax, _ = bounds
    rows, columns = shape
    y = ymin + (np.arange(rows) + 0.5) * (ymax - ymin) / rows
    x = xmin + (np.arange(columns) + 0.5) * (xmax - xmin) / columns
    return y, x


def motion_figure(
    motion: np.ndarray, bounds: Sequence[float], *, limit: float, cameras: Sequence[str] = (), arrows: int = 26
) -> Figure:
    """The motion field the decoder read between frames; an arrow is the way covered in one second.

    Args:
        motion: (2, Y, X) m/s, forward and left.
        bounds: xmin, ymin, zmin, xmax, ymax, zmax in metres.
        limit: m/s at the bright end of the colour bar.
        cameras: names to write at the edge.
        arrows: about how many per side; each is the mean of its block of cells.
    """
    figure = new_figure(*_SIZE)
    axes = _map_axes(figure, bounds, cameras)
    picture = _picture(axes, np.hypot(*motion), bounds, SPEED_COLOURS, Normalize(0, limit))
    block = max(1, min(-(-max(motion.shape[1:]) // arrows), *motion.shape[1:]))  # cells per arrow and side
    rows, columns = (n // block for n in motion.shape[1:])
    mean = motion[:, : rows * block, : columns * block].reshape(2, rows, block, columns, block).mean(axis=(2, 4))
    y, x = (
        centres[: count * block].reshape(count, block).mean(axis=1)
        for centres, count in zip(cell_centres(motion.shape[1:], bounds), (rows, columns), strict=True)
    )
    axes.quiver(*np.meshgrid(y, x), mean[1].T, mean[0].T, **_ARROW, color="white", zorder=4)
    _bar(figure, axes, picture, "speed, metres per second")
    return figure


def velocity_figure(boxes: np.ndarray, bounds: Sequence[float], *, limit: float, cameras: Sequence[str] = ()) -> Figure:
    """Annotated boxes and their velocities, on the map and the scales of :func:`motion_figure`.

    Args:
        boxes: (M, 9) [x, y, z, w, l, h, yaw, vx, vy]; a velocity that is NaN (unknown) gets no arrow and no colour.
        bounds: xmin, ymin, zmin, xmax, ymax, zmax in metres.
        limit: m/s at the bright end of the colour bar.
        cameras: names to write at the edge.
    """
    figure = new_figure(*_SIZE)
    axes = _map_axes(figure, bounds, cameras)
    colours = ScalarMappable(Normalize(0, limit), SPEED_COLOURS)
    paint = colormaps[SPEED_COLOURS]
    axes.set_facecolor(paint(0.0))
    speed = np.hypot(boxes[:, 7], boxes[:, 8])
    for corners, value in zip(box_corners(boxes), speed, strict=True):
        face = paint(min(value / limit, 1.0)) if np.isfinite(value) else "none"
        axes.add_patch(Polygon(corners[:, ::-1], fc=face, ec="white", lw=0.8, zorder=3))
    moving = speed > 0.2
    if moving.any():
        x, y, vx, vy = boxes[moving][:, [0, 1, 7, 8]].T
        axes.quiver(y, x, vy, vx, **_ARROW, color="white", zorder=4)
    _bar(figure, axes, colours, "speed, metres per second")
    return figure
