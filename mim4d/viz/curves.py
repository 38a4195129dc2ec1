"""Curves over training steps: which entries of ``metrics.jsonl`` belong together, and how they are drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mim4d.viz.style import DIRECT, INK, MUTED, OTHER, PAPER, RECONSTRUCTED, dress, new_figure

# optional losses, by the name of their plain value: title, unit of the axis, what it is
_OPTIONAL = {
    "eikonal_error": ("Slope error", "mean square", "How far the distance field's slope is from 1, along all rays."),
    "free_space_m": ("Free-space error", "metres", "How wrong the field is where LiDAR looked through."),
    "truncation_m": ("Error near surfaces", "metres", "How wrong the field is close to LiDAR returns."),
    "sparse_point_m": ("Distance at LiDAR returns", "metres", "The field where LiDAR hit a surface: 0 is right."),
    "ssim_error": ("Structural dissimilarity", "0 to 1", "Rendered patches beside the camera's: 0 is equal."),
}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Panel:
    """One pair of axes: curves of one quantity over the same steps."""

    key: str  # short, usable as an id
    title: str
    unit: str  # label of the vertical axis
    note: str  # what a reader should know, one or two sentences
    series: dict[str, np.ndarray]  # label -> (rows,)
    score: str = ""  # the entry of summary.json's results that is the same quantity, if there is one


@dataclass(frozen=True)
class Mark:
    """A measured value to set beside the curves: an error on held-out data at a step."""

    step: float
    value: float
    label: str


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over ``window`` rows, cut off at both ends; (rows,) -> (rows,). NaN rows are passed over.

    A centred mean has no lag, so a drop stands where it happened; a constant or a straight line in the middle is kept.
    """
    if window <= 1 or len(values) < 2:
        return values
    known = np.isfinite(values)
    reach = window // 2
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    rows = np.arange(len(values))
    low, high = np.maximum(rows - reach, 0), np.minimum(rows + reach + 1, len(values))
    with np.errstate(invalid="ignore"):
        return np.where(count[high] > count[low], (total[high] - total[low]) / (count[high] - count[low]), np.nan)


def smoothing_window(rows: int) -> int:
    """Rows averaged for the bold curve: a twentieth of the run, none below 20 rows."""
    return 1 if rows < 20 else max(3, rows // 20 | 1)


def _path(name: str) -> str:
    if "recon" in name:
        return "reconstructed"
    return "direct" if "direct" in name else ""


def _quantity(name: str) -> str:
    for optional in _OPTIONAL:
        if name.startswith(f"{optional}_"):
            return optional
    if "depth" in name:
        return "depth_m" if "m" in re.split(r"[^a-z0-9]+", name) else "depth_loss"
    if "rgb" in name or "colour" in name or "color" in name:
        return "rgb_l1" if "l1" in name else "rgb_loss"
    return ""


def panels(metrics: dict[str, np.ndarray]) -> list[Panel]:
    """Sort the columns of ``metrics.jsonl`` into pictures: colour, depth, total loss, the optional losses that were on,
    learning rate, step time.

    Errors in plain units (``*rgb_l1*``, ``*depth*_m``) are preferred; the weighted losses stand in where they are all
    there is. Columns that are none of these are left to the file.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, values in metrics.items():
        if _quantity(name):
            groups.setdefault(_quantity(name), {})[_path(name) or name] = values
    found: list[Panel] = []
    colour = groups.get("rgb_l1") or groups.get("rgb_loss")
    if colour:
        unit = "mean difference, 0 to 1" if "rgb_l1" in groups else "weighted loss"
        note = "How far a rendered pixel's colour is from the camera's, on the rays drawn for training."
        found.append(Panel("colour", "Colour error", unit, note, colour, "rgb_l1" if "rgb_l1" in groups else ""))
    depth = groups.get("depth_m") or groups.get("depth_loss")
    if depth:
        unit = "metres" if "depth_m" in groups else "weighted loss"
        note = "How far the rendered distance is from the LiDAR's, on the rays drawn for training."
        found.append(Panel("depth", "Depth error", unit, note, depth, "depth_l1_m" if "depth_m" in groups else ""))
    if "loss" in metrics:
        note = "The weighted sum that training makes small."
        found.append(Panel("loss", "Total loss", "weighted sum", note, {"": metrics["loss"]}))
    for key, (title, unit, note) in _OPTIONAL.items():
        if key in groups:
            found.append(Panel(key, title, unit, note, groups[key]))
    if "lr" in metrics:
        note = "Warm-up, then a slow decline to the end of the run."
        found.append(Panel("lr", "Learning rate", "step size", note, {"": metrics["lr"]}))
    if "seconds" in metrics and "step" in metrics:
        note = "Time of one step. The first ones start the data workers and warm up."
        time = step_time(metrics["step"], metrics["seconds"])
        found.append(Panel("seconds", "Step time", "seconds", note, {"": time}))
    return found


def step_time(steps: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Seconds per step out of the total training time that rows write down: steps, seconds (rows,) -> (rows,).

    NaN where the total does not grow.
    """
    elapsed = np.diff(seconds, prepend=0.0)
    done = np.diff(steps, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((elapsed > 0) & (done > 0), elapsed / done, np.nan)


def _label(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], align: str) -> None:
    """A small label beside a point, on a patch of paper so that curves do not run through it."""
    axes.annotate(
        text,
        at,
        xytext=offset,
        textcoords="offset points",
        ha=align,
        fontsize=8,
        color=INK,
        bbox={"boxstyle": "square,pad=0.1", "fc": PAPER, "ec": "none", "alpha": 0.75},
    )


def _power_of_ten(values: np.ndarray) -> int:
    """The exponent that brings small values between 1 and 10; 0 for values that read well as they are."""
    most = float(np.nanmax(values, initial=0.0))
    return int(np.floor(np.log10(most))) if 0 < most < 1e-2 else 0


def curve_figure(
    steps: np.ndarray,
    panel: Panel,
    marks: Sequence[Mark] = (),
    *,
    level: float | None = None,
    size: tuple[float, float] = (5.6, 2.7),
) -> Figure:
    """Curves of one panel: every row faintly, their centred mean boldly, held-out measurements as dots.

    Args:
        steps: (rows,) training steps.
        panel: what to draw; each series (rows,), NaN where a row has no value.
        marks: measurements to add, in the panel's unit.
        level: the trivial guess's error, drawn as a dotted line.
        size: inches.
    """
    figure = new_figure(*size)
    axes = figure.add_subplot()
    dress(axes)
    spare = iter(OTHER)
    window = smoothing_window(len(steps)) if panel.key != "lr" else 1
    top = 0.0
    for label, values in panel.series.items():
        colour = {"direct": DIRECT, "": DIRECT, "reconstructed": RECONSTRUCTED}.get(label) or next(spare, MUTED)
        known = np.isfinite(values)
        if not known.any():
            continue
        if window > 1:
            axes.plot(steps[known], values[known], color=colour, linewidth=0.7, alpha=0.4)
        bold = smooth(values, window)
        marker = "o" if known.sum() == 1 else None
        axes.plot(steps[known], bold[known], color=colour, linewidth=1.6, label=label, marker=marker, markersize=4)
        top = max(top, float(np.nanpercentile(values, 98)), float(np.nanmax(bold[known])))
    for mark in marks:
        if np.isfinite(mark.value):
            axes.plot(mark.step, mark.value, "o", markersize=5.5, color=INK, markerfacecolor="none", clip_on=False)
            late = len(steps) > 0 and mark.step > float(np.mean(steps[[0, -1]]))
            offset, align = ((-4, -12), "right") if late else ((8, 3), "left")
            _label(axes, mark.label, (mark.step, mark.value), offset, align)
            top = max(top, mark.value * 1.08)
    if level is not None and np.isfinite(level):
        axes.axhline(level, color=MUTED, linewidth=1.1, linestyle=(0, (1.5, 2)), zorder=1.5)
        _label(axes, "trivial guess", (float(steps[-1]) if len(steps) else 1.0, level), (0, 3), "right")
        top = max(top, level * 1.1)
    axes.set_xlabel("training step")
    power = min([_power_of_ten(values) for values in panel.series.values()], default=0)
    axes.set_ylabel(f"{panel.unit}, in 10{str(power).translate(_RAISED)}" if power else panel.unit)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / 10.0**power:.3g}")
    if top > 0:
        axes.set_ylim(0, top * 1.08)
    axes.locator_params(axis="y", nbins=5)
    axes.locator_params(axis="x", nbins=6, integer=True)
    if any(panel.series) and len(panel.series) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right", handlelength=1.4)
    return figure
