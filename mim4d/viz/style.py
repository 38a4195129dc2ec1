"""Colours, and how a picture becomes bytes: one figure serves the PNG on disk and the page in light and dark.

Figures are drawn in fixed colours. :func:`svg` replaces those of paper, text, axes and lines by the page's CSS
variables, so that they follow the reader's light or dark setting; colour scales and marks on maps stay as they are.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

INK = "#1b2430"  # text and marks
MUTED = "#66707f"  # tick labels, secondary text
RULE = "#d4d9e0"  # grid lines and frames
PAPER = "#fefefe"  # behind a figure; not pure white, which is a colour of marks on maps

# Okabe-Ito: told apart by colour-blind readers, and on white as on dark grey.
DIRECT = "#0072b2"
RECONSTRUCTED = "#d55e00"
OTHER = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9")
BEFORE = "#8a929e"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    DIRECT: "var(--direct)",
    RECONSTRUCTED: "var(--reconstructed)",
    BEFORE: "var(--before)",
}
NOTHING = (122, 128, 138)  # RGB of "no value here" in raster pictures: readable on light and dark paper


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` inches with its own Agg canvas, outside pyplot's global state."""
    figure = Figure(figsize=(width, height), facecolor=PAPER, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, *, grid: bool = True, size: float = 8.5) -> None:
    """Quiet axes: no top and right spines, muted ticks, light grid lines behind the data."""
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.tick_params(colors=MUTED, labelsize=size, length=3, width=0.6)
    axes.xaxis.label.set(color=MUTED, size=size)
    axes.yaxis.label.set(color=MUTED, size=size)
    if grid:
        axes.grid(True, color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)


def png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as PNG bytes, on white paper."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=PAPER)
    return buffer.getvalue()


def svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element to stand inside an HTML page.

    Text stays text (in the page's font), the colours of VARIABLES become CSS variables, ids get the prefix ``name`` so
    that several figures can share a page, and the page decides on the size (only ``viewBox`` is kept).
    """
    buffer = io.StringIO()
    # These two settings have no other door than rcParams; the context puts them back.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    head, body = text.split(">", 1)
    head = re.sub(r'\s(width|height|version|xmlns(:xlink)?)="[^"]*"', "", head)
    body = re.sub(r"font-family:[^;\"]*", "font-family: inherit", body)
    body = re.sub(r"font: (?:[a-z]+ )?([\d.]+px)[^;\"]*", r"font-size: \1", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, variable)
    return f"{head}>{body}".strip()


def raster_uri(image: np.ndarray, *, photo: bool, quality: int = 87) -> str:
    """``data:`` URI of an RGB image (H, W, 3) uint8: JPEG for photographs, PNG for flat colours and maps."""
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image))
    if photo:
        picture.save(buffer, format="JPEG", quality=quality, subsampling=0, optimize=True)
    else:
        picture.save(buffer, format="PNG", optimize=True)
    return _uri("jpeg" if photo else "png", buffer)


def film_uri(images: Sequence[np.ndarray], *, hertz: float, quality: int = 45) -> str:
    """``data:`` URI of an animated WebP that plays RGB images (H, W, 3) uint8 of one size over and over."""
    buffer = io.BytesIO()
    first, *rest = (Image.fromarray(np.ascontiguousarray(image)) for image in images)
    first.save(
        buffer,
        format="WEBP",
        save_all=True,
        append_images=rest,
        duration=round(1000 / hertz),
        loop=0,
        quality=quality,
        method=4,
    )
    return _uri("webp", buffer)


def _uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
