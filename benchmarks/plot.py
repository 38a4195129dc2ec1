"""A picture of ratios: a line for each case, a mark for each rival, on a logarithmic axis around 1."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mim4d.viz import style

# What a rival is called -> its kind in the legend. The first that matches counts.
KINDS = (
    (r" @", "the base revision", "P", style.INK),
    (r"^mim4d (cpu|cuda)\b", "mim4d: native", "o", style.DIRECT),
    (r"^mim4d triton", "mim4d: Triton", "D", style.OTHER[0]),
    (r"^mim4d reference", "mim4d: reference", "o", style.OTHER[3]),
    (r"^compiled", "torch.compile", "s", style.OTHER[2]),
    (
        r"^(torch-interpol|scipy|cupyx|deformops|mmcv|conch|bev_pool|create_graph \+ nerfacc)",
        "a peer",
        "^",
        style.OTHER[1],
    ),
    (r"", "stock torch", "d", style.BEFORE),
)
LINE = 0.27  # inches for each case

Row = Mapping[str, Any]


def kind(rival: str) -> tuple[str, str, str]:
    """Name, marker and colour of a rival's kind."""
    return next((name, mark, colour) for pattern, name, mark, colour in KINDS if re.search(pattern, rival))


def plot(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ratios.png and ratios.svg of all rows into ``folder``."""
    figure = draw(rows)
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / "ratios.png", folder / "ratios.svg"
    png.write_bytes(style.png(figure))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ratios"}):
        figure.savefig(svg, format="svg", facecolor=style.PAPER, metadata={"Date": None})
    return [png, svg]


def case(row: Row) -> str:
    """What one line of the picture is called."""
    threads = "" if row["cuda"] else f", {row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    cold = ", cold" if row["cache"] == "cold" else ""
    short = "" if row["dtype"] == "float32" else f" {row['dtype']}"
    return f"{row['preset']}{short}, {row['direction']}{threads}{cold}"


def draw(rows: Sequence[Row]) -> Any:
    """The figure: a panel for each op, its cases from top to bottom as they were measured."""
    panels: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        panels.setdefault(row["op"], {}).setdefault(case(row), []).append(row)
    counts = [len(cases) for cases in panels.values()]
    figure = style.new_figure(9.6, LINE * sum(counts) + 0.55 * len(counts) + 1.0)
    axes = figure.subplots(len(counts), 1, squeeze=False, height_ratios=[n + 1 for n in counts], sharex=True)[:, 0]
    ratios = [row[name] for row in rows if row["status"] == "ok" for name in ("ratio", "ratio_p20", "ratio_p80")]
    low, high = min([0.5, *ratios]) / 1.6, max([2.0, *ratios]) * 1.3
    for panel, (op, cases) in zip(axes, panels.items(), strict=True):
        _panel(panel, op, cases, low, high)
    axes[-1].set_xlabel(
        "times as fast as the first rival of the table (best of all rounds; lines: 20th to 80th percentile)"
    )
    _legend(figure, rows)
    return figure


def _panel(axes: Axes, op: str, cases: Mapping[str, Sequence[Row]], low: float, high: float) -> None:
    style.dress(axes)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 300 * low else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.set_yticks(range(len(cases)), list(cases))
    axes.set_title(op, loc="left", fontsize=9.5, color=style.INK, fontweight="bold")
    axes.axvline(1, color=style.MUTED, linewidth=1.1, zorder=1)
    for line, found in enumerate(cases.values()):
        shown = [row for row in found if row["status"] != "absent"]
        for place, row in enumerate(shown):
            y = line + (0.0 if len(shown) == 1 else 0.44 * (place / (len(shown) - 1) - 0.5))
            _, mark, colour = kind(row["rival"])
            if row["status"] == "ok":
                axes.plot([row["ratio_p20"], row["ratio_p80"]], [y, y], color=colour, linewidth=0.8, alpha=0.55)
                axes.plot(row["ratio"], y, mark, color=colour, markersize=5, markeredgewidth=0, zorder=3)
            else:
                axes.plot(low * 1.12, y, "x", color=style.RECONSTRUCTED, markersize=6, markeredgewidth=1.8, zorder=3)
                axes.annotate(
                    f"{row['rival']}: wrong", (low * 1.12, y), (6, 0), textcoords="offset points", va="center",
                    fontsize=7, color=style.RECONSTRUCTED,
                )  # fmt: skip
        absent = list(dict.fromkeys(_short(row["rival"]) for row in found if row["status"] == "absent"))
        if absent:
            axes.annotate(
                "absent: " + ", ".join(absent), (1.0, line), (4, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", fontsize=6, color=style.MUTED, annotation_clip=False,
            )  # fmt: skip


def _short(rival: str) -> str:
    """A rival's name without its layout, for the margin."""
    short = rival.partition(",")[0].removeprefix("create_graph + ").removesuffix(" map_coordinates")
    return short.removesuffix(" reference") if short.startswith("compiled") else short


def _legend(figure: Any, rows: Sequence[Row]) -> None:
    present = {kind(row["rival"]) for row in rows if row["status"] == "ok"}
    marks = [
        Line2D([], [], marker=mark, color=colour, linestyle="", markersize=5.5, label=name)
        for _, name, mark, colour in reversed(KINDS)
        if (name, mark, colour) in present
    ]
    if any(row["status"] == "wrong" for row in rows):
        marks.append(
            Line2D(
                [], [], marker="x", color=style.RECONSTRUCTED, linestyle="", markeredgewidth=1.8, label="wrong: no time"
            )
        )
    figure.legend(handles=marks, loc="outside upper left", ncols=7, frameon=False, fontsize=8, labelcolor=style.INK)
