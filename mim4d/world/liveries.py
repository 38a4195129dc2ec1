"""What vehicles, people and the things along a street look like."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mim4d.world.exact import atan2, hypot, sin
from mim4d.world.materials import Material
from mim4d.world.painting import RGB, Painter


def _body_side(p: Painter) -> None:
    """A car's flank from sill to belt, rear at the left; wheels stand at 0.19 and 0.81 of its length."""
    p.fill((0.82, 0.82, 0.82), 1.0).gradient(0.72, 1.06).box(0, 1, 0, 0.1, (0.04, 0.04, 0.04))
    p.box(0, 1, 0.6, 0.625, (0.55, 0.55, 0.55), 1.0).box(0, 1, 0.585, 0.6, (1.0, 1.0, 1.0), 1.0)
    for x in (0.3, 0.52, 0.71):
        p.box(x, x + 0.009, 0.1, 1.0, (0.12, 0.12, 0.12), 0.5)
    for x in (0.44, 0.64):
        p.box(x, x + 0.05, 0.76, 0.81, (0.3, 0.3, 0.3), 0.6).box(x, x + 0.05, 0.75, 0.76, (0.08, 0.08, 0.08))
    for x in (0.19, 0.81):  # a flank is about six times as long as high
        p.where(hypot((p.x - x) * 6, p.y + 0.02) < 0.52, (0.015, 0.015, 0.016))
    p.box(0.0, 0.035, 0.62, 0.9, (0.45, 0.03, 0.02), 0, 0.6).box(0.965, 1.0, 0.6, 0.84, (0.8, 0.8, 0.76), 0, 1.0)


def _front(p: Painter) -> None:
    p.fill((0.8, 0.8, 0.8), 1.0).gradient(0.85, 1.05).box(0, 1, 0, 0.2, (0.03, 0.03, 0.03))
    p.box(0.24, 0.76, 0.56, 0.8, (0.03, 0.03, 0.03)).box(0.16, 0.84, 0.12, 0.34, (0.03, 0.03, 0.032))
    for y in (0.6, 0.66, 0.72):
        p.box(0.26, 0.74, y, y + 0.02, (0.25, 0.25, 0.25))
    p.box(0.47, 0.53, 0.62, 0.74, (0.5, 0.5, 0.5)).box(0.38, 0.62, 0.38, 0.5, (0.75, 0.75, 0.72))
    for x in (0.03, 0.77):
        p.box(x, x + 0.2, 0.6, 0.86, (0.12, 0.12, 0.13)).box(x + 0.03, x + 0.17, 0.64, 0.83, (0.9, 0.9, 0.86), 0, 1.0)


def _rear(p: Painter) -> None:
    p.fill((0.78, 0.78, 0.78), 1.0).gradient(0.85, 1.05).box(0, 1, 0, 0.22, (0.03, 0.03, 0.03))
    p.box(0.36, 0.64, 0.4, 0.54, (0.75, 0.75, 0.7)).box(0.1, 0.9, 0.34, 0.36, (0.1, 0.1, 0.1), 0.5)
    for x in (0.03, 0.76):
        p.box(x, x + 0.21, 0.6, 0.9, (0.4, 0.02, 0.015), 0, 1.0).box(x + 0.06, x + 0.15, 0.62, 0.7, (0.6, 0.55, 0.5))


def _side_glass(p: Painter) -> None:
    """A car's side windows in their painted frame, a pillar between them."""
    p.fill((0.8, 0.8, 0.8), 1.0).box(0.05, 0.95, 0.06, 0.9, (0.03, 0.035, 0.04), 0, 1)
    p.box(0.46, 0.52, 0, 0.92, (0.03, 0.03, 0.03)).box(0.05, 0.95, 0.02, 0.06, (0.1, 0.1, 0.1))


def _glass(p: Painter) -> None:
    p.fill((0.035, 0.04, 0.045))
    p.tile[..., 4] = 1.0
    for x in (0.0, 0.955):
        p.box(x, x + 0.045, 0, 1, (0.03, 0.03, 0.03), 0, 0.3)
    p.box(0.12, 0.34, 0.05, 0.4, (0.06, 0.055, 0.05), 0, 1).box(
        0.62, 0.84, 0.05, 0.4, (0.06, 0.055, 0.05), 0, 1
    )  # seats


def _tyre(p: Painter) -> None:
    p.fill((0.02, 0.02, 0.022)).noise(0.2)
    x, y = p.x - 0.5, p.y - 0.5
    hub = hypot(x, y)
    p.where(hub < 0.32, (0.42, 0.42, 0.44))
    spokes = int(p.rng.integers(4, 8))
    p.where((hub < 0.29) & (hub > 0.09) & (sin(spokes * atan2(y, x)) > 0.1), (0.05, 0.05, 0.05))


def _container(p: Painter) -> None:
    p.fill((0.7, 0.7, 0.7), 1.0)
    p.tile[..., :3] *= np.where((p.x * 8) % 1.0 < 0.5, 1.0, 0.8)[..., None]
    p.noise(0.1, 2.0).box(0, 1, 0, 0.06, (0.15, 0.15, 0.15)).box(0, 1, 0.94, 1, (0.3, 0.3, 0.3))
    p.box(0.3, 0.7, 0.55, 0.75, (0.8, 0.8, 0.8), 0.2)


def _bus_side(p: Painter) -> None:
    p.fill((0.78, 0.78, 0.78), 1.0).box(0, 1, 0.42, 0.84, (0.035, 0.04, 0.045), 0, 1)
    for x in (0.0, 0.5):
        p.box(x, x + 0.03, 0.42, 0.84, (0.03, 0.03, 0.03))
    p.box(0, 1, 0.2, 0.27, (0.9, 0.9, 0.9)).box(0, 1, 0, 0.1, (0.05, 0.05, 0.05)).box(
        0, 1, 0.88, 0.9, (0.4, 0.4, 0.4), 1
    )


def _bus_front(p: Painter) -> None:
    p.fill((0.78, 0.78, 0.78), 1.0).box(0.04, 0.96, 0.36, 0.82, (0.035, 0.04, 0.045))
    p.box(0.1, 0.9, 0.84, 0.97, (0.02, 0.02, 0.02)).box(0.49, 0.51, 0.36, 0.82, (0.03, 0.03, 0.03))
    for i in range(9):
        if p.rng.random() < 0.75:
            p.box(0.2 + 0.07 * i, 0.24 + 0.07 * i, 0.87, 0.94, (0.9, 0.5, 0.05), 0, 0.3)
    p.box(0.05, 0.2, 0.16, 0.26, (0.9, 0.9, 0.86), 0, 1).box(0.8, 0.95, 0.16, 0.26, (0.9, 0.9, 0.86), 0, 1)
    p.box(0.38, 0.62, 0.14, 0.22, (0.75, 0.75, 0.7)).box(0, 1, 0, 0.08, (0.05, 0.05, 0.05))


def _truck_front(p: Painter) -> None:
    p.fill((0.8, 0.8, 0.8), 1.0).box(0, 1, 0, 0.16, (0.04, 0.04, 0.04)).box(0.07, 0.93, 0.55, 0.93, (0.03, 0.04, 0.04))
    for y in (0.3, 0.36, 0.42):
        p.box(0.22, 0.78, y, y + 0.03, (0.08, 0.08, 0.08))
    p.box(0.04, 0.2, 0.18, 0.28, (0.9, 0.9, 0.86), 0, 1).box(0.8, 0.96, 0.18, 0.28, (0.9, 0.9, 0.86), 0, 1)
    p.box(0.38, 0.62, 0.17, 0.24, (0.75, 0.75, 0.7))


def _cloth(p: Painter) -> None:
    p.fill((0.6, 0.6, 0.6), 1.0).noise(0.16, 1.6)
    if p.rng.random() < 0.5:
        p.box(0, 1, 0.45, 0.6, (0.75, 0.75, 0.75), 0.5)


def _skin(p: Painter) -> None:
    """A head: the face looks along +x, which lies at a quarter of the way round from the left."""
    p.fill((0.55, 0.37, 0.28), 0.5).noise(0.06).box(0, 1, 0.62, 1.0, (0.07, 0.05, 0.04), 0.3)
    p.box(0.4, 1.0, 0.3, 1.0, (0.07, 0.05, 0.04), 0.3)


def _stripes(p: Painter) -> None:
    p.fill((0.85, 0.85, 0.82)).noise(0.06)
    p.where(((p.x + p.y) * 2) % 1.0 < 0.5, (0.75, 0.17, 0.02))


def _poster(p: Painter) -> None:
    p.fill((0.7, 0.7, 0.7), 1.0)
    for _ in range(14):
        x, y, w, h = p.pick(0, 0.8), p.pick(0, 0.8), p.pick(0.05, 0.4), p.pick(0.05, 0.25)
        rgb = (p.pick(0.03, 0.9), p.pick(0.03, 0.9), p.pick(0.03, 0.9))
        p.box(x, x + w, y, y + h, rgb, p.pick(0, 0.6))
    dark: RGB = (0.1, 0.1, 0.1)
    p.box(0, 1, 0, 0.04, dark).box(0, 1, 0.96, 1, dark).box(0, 0.03, 0, 1, dark).box(0.97, 1, 0, 1, dark)


def _signal(p: Painter) -> None:
    """Traffic lights: red is lit in the left half of the tile, green in the right half."""
    p.fill((0.02, 0.02, 0.02))
    lamps = ((0.82, (0.9, 0.03, 0.02)), (0.5, (0.9, 0.5, 0.02)), (0.18, (0.05, 0.8, 0.35)))
    for half, lit in ((0.0, 0), (0.5, 2)):
        for i, (y, rgb) in enumerate(lamps):
            on = i == lit
            shown: RGB = rgb if on else (0.1 * rgb[0], 0.1 * rgb[1], 0.1 * rgb[2])
            p.where(hypot((p.x - half - 0.25) * 1.25, (p.y - y) * 0.85) < 0.125, shown, 0, float(on))


def _sign(p: Painter) -> None:
    """Four faces: stop and yield below, a speed limit and a crossing's triangle above."""
    red: RGB = (0.6, 0.03, 0.03)
    p.fill((0.8, 0.8, 0.8)).box(0, 0.5, 0, 0.5, red).box(0.06, 0.44, 0.2, 0.3, red)
    for x in (0.07, 0.17, 0.27, 0.37):
        p.box(x, x + 0.06, 0.19, 0.21, (0.9, 0.9, 0.9)).box(x, x + 0.02, 0.19, 0.31, (0.9, 0.9, 0.9))
        p.box(x, x + 0.06, 0.29, 0.31, (0.9, 0.9, 0.9))
    p.box(0.5, 1, 0, 0.5, red).where((np.abs(p.x - 0.75) * 1.9 < p.y - 0.09) & (p.y < 0.42), (0.85, 0.85, 0.85))
    p.disc(0.25, 0.75, 0.26, red).disc(0.25, 0.75, 0.185, (0.88, 0.88, 0.88))
    for x in (0.15, 0.27):
        p.box(x, x + 0.08, 0.68, 0.82, (0.03, 0.03, 0.03)).box(x + 0.025, x + 0.055, 0.7, 0.8, (0.88, 0.88, 0.88))
    blue: RGB = (0.03, 0.1, 0.45)
    p.box(0.5, 1, 0.5, 1, blue).where((p.y > 0.58) & (np.abs(p.x - 0.75) * 1.6 < 0.93 - p.y), (0.88, 0.88, 0.88))
    p.box(0.735, 0.765, 0.62, 0.78, (0.03, 0.03, 0.03)).disc(0.75, 0.8, 0.022, (0.03, 0.03, 0.03))
    p.where((np.abs(np.abs(p.x - 0.75) - (0.72 - p.y) * 0.4) < 0.02) & (p.y > 0.6) & (p.y < 0.7), (0.03, 0.03, 0.03))


def _lamp(p: Painter) -> None:
    p.fill((0.75, 0.75, 0.7))
    p.tile[..., 4] = 1.0


DRAWINGS: dict[Material, Callable[[Painter], object]] = {
    Material.BODY_SIDE: _body_side,
    Material.BODY: lambda p: p.fill((0.85, 0.85, 0.85), 1.0).grid(1, 1, 0.03, 0.6),
    Material.GLASS: _glass,
    Material.FRONT: _front,
    Material.REAR: _rear,
    Material.TYRE: _tyre,
    Material.CONTAINER: _container,
    Material.BUS_SIDE: _bus_side,
    Material.CLOTH: _cloth,
    Material.SKIN: _skin,
    Material.METAL: lambda p: p.fill((0.3, 0.31, 0.32), 0.6).noise(0.1, 1.6),
    Material.STRIPES: _stripes,
    Material.POSTER: _poster,
    Material.SIDE_GLASS: _side_glass,
    Material.BUS_FRONT: _bus_front,
    Material.LAMP: _lamp,
    Material.SIGNAL: _signal,
    Material.SIGN: _sign,
    Material.WOOD: lambda p: p.fill((0.3, 0.2, 0.12), 0.4).noise(0.15, 1.5).cells(1, 5, 0.12).grid(1, 5, 0.02, 0.4),
    Material.AWNING: lambda p: (
        p.fill((0.8, 0.8, 0.78), 1.0).where((p.x * 4) % 1.0 < 0.5, (0.85, 0.85, 0.82)).noise(0.05)
    ),
    Material.TRUCK_FRONT: _truck_front,
}
