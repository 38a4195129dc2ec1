"""What walls, grounds and leaves look like, a little different in every town."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mim4d.world.exact import sin
from mim4d.world.materials import Material
from mim4d.world.painting import RGB, TILE, Painter, tileable_noise

TURN = 2 * np.pi


def _frame(p: Painter) -> RGB:
    """Of a town's windows: white, grey, brown or dark green."""
    frames: list[RGB] = [(0.72, 0.72, 0.7), (0.5, 0.5, 0.5), (0.2, 0.13, 0.08), (0.08, 0.16, 0.12), (0.62, 0.56, 0.45)]
    return frames[int(p.rng.integers(len(frames)))]


def _brick(p: Painter) -> None:
    nx, ny, joint = int(p.rng.integers(10, 15)), int(p.rng.integers(34, 46)), p.pick(1.25, 1.6)
    p.fill((0.6, 0.6, 0.6), 1.0).noise(0.12).cells(nx, ny, 0.17, 0.5).grid(nx, ny, 0.1, joint, 0.5)
    wide = p.pick(0.18, 0.24)
    x0, x1, top = 0.5 - wide, 0.5 + wide, p.pick(0.8, 0.86)
    p.box(x0 - 0.07, x1 + 0.07, top + 0.04, top + 0.11, (0.66, 0.64, 0.6), 0.35)  # lintel
    p.window(x0, x1, 0.3, top, _frame(p))


def _plaster(p: Painter) -> None:
    p.fill((0.75, 0.75, 0.75), 1.0).noise(0.06, 2.0).noise(0.05, 0.6)
    p.box(0, 1, 0, 0.045, (0.55, 0.55, 0.55), 0.8).box(0, 1, 0.045, 0.06, (0.3, 0.3, 0.3), 0.8)
    frame, shift = _frame(p), p.pick(-0.02, 0.02)
    p.window(0.12, 0.4, 0.28, 0.82 + shift, frame).window(0.6, 0.88, 0.28, 0.82 + shift, frame)


def _shutters(p: Painter) -> None:
    p.fill((0.78, 0.78, 0.78), 1.0).noise(0.07, 2.0).noise(0.04, 0.6)
    wood: RGB = (p.pick(0.05, 0.3), p.pick(0.1, 0.25), p.pick(0.05, 0.25))
    p.box(0, 1, 0, 0.03, (0.5, 0.5, 0.5), 0.8)
    for x0, x1 in ((0.1, 0.29), (0.71, 0.9)):
        p.box(x0, x1, 0.16, 0.85, wood)
        slats = ((p.y * 26) % 1.0 < 0.3) & (p.x >= x0 + 0.02) & (p.x < x1 - 0.02) & (p.y >= 0.18) & (p.y < 0.83)
        p.tile[slats, :3] *= 0.5
    p.window(0.3, 0.7, 0.16, 0.85, _frame(p))
    rail = ((p.x * 22) % 1.0 < 0.28) & (p.x > 0.27) & (p.x < 0.73) & (p.y > 0.1) & (p.y < 0.4)
    p.where(rail, (0.05, 0.05, 0.05)).box(0.26, 0.74, 0.4, 0.43, (0.05, 0.05, 0.05))
    p.box(0.24, 0.76, 0.06, 0.11, (0.6, 0.6, 0.58), 0.3)


def _curtain(p: Painter) -> None:
    bars = int(p.rng.integers(2, 4))
    p.fill((0.06, 0.075, 0.09), 0.35).cells(bars, 2, 0.3).noise(0.05, 2.5)
    p.tile[..., 4] = 1.0
    p.box(0, 1, 0, 0.2, (0.3, 0.31, 0.32), 0.9).box(0, 1, 0.19, 0.21, (0.12, 0.12, 0.12)).box(
        0, 1, 0, 0.015, (0.12, 0.12, 0.12)
    )
    for i in range(bars):
        p.box(i / bars, i / bars + 0.028, 0, 1, (0.5, 0.5, 0.5), 0.3)


def _office(p: Painter) -> None:
    p.fill((0.62, 0.62, 0.6), 1.0).noise(0.08, 1.6).grid(2, 1, 0.012, 0.6)
    low = p.pick(0.32, 0.4)
    p.box(0, 1, low - 0.03, low, (0.4, 0.4, 0.4), 0.5)
    for i in range(3):
        p.pane(i / 3 + 0.012, (i + 1) / 3 - 0.012, low, 0.86)
        p.box(i / 3 - 0.012, i / 3 + 0.012, low, 0.86, (0.2, 0.2, 0.2)).box(0.99, 1, low, 0.86, (0.2, 0.2, 0.2))
    p.tile[(p.y > 0.82) & (p.y < 0.86), :3] *= 0.5


def _shop(p: Painter) -> None:
    p.fill((0.4, 0.4, 0.4), 0.6).noise(0.08).box(0.04, 0.96, 0.08, 0.7, (0.05, 0.05, 0.055), 0.0, 0.8)
    for _ in range(9):  # what is on show
        x, w, h = p.pick(0.06, 0.58), p.pick(0.03, 0.1), p.pick(0.06, 0.3)
        p.box(x, min(x + w, 0.64), 0.12, 0.12 + h, (p.pick(0.05, 0.6), p.pick(0.05, 0.5), p.pick(0.05, 0.4)), 0, 0.7)
    p.box(0.64, 0.66, 0.08, 0.7, (0.3, 0.3, 0.3)).box(0.34, 0.35, 0.08, 0.7, (0.3, 0.3, 0.3))
    p.box(0.7, 0.92, 0.05, 0.64, (0.2, 0.12, 0.07), 0.2).box(0.73, 0.89, 0.2, 0.6, (0.05, 0.06, 0.06), 0, 0.8)
    p.box(0.74, 0.755, 0.3, 0.36, (0.7, 0.65, 0.4)).box(0, 1, 0, 0.08, (0.22, 0.22, 0.22))
    p.box(0.0, 1.0, 0.74, 0.95, (0.85, 0.85, 0.85), 1.0).box(0, 1, 0.72, 0.74, (0.1, 0.1, 0.1))
    ink: RGB = (0.05, 0.05, 0.06) if p.rng.random() < 0.5 else (0.9, 0.9, 0.85)
    x = p.pick(0.14, 0.3)
    while x < 0.78:  # letters that mean nothing
        w = p.pick(0.02, 0.05)
        p.box(x, x + 0.014, 0.79, 0.9, ink)
        for y in p.rng.choice([0.79, 0.83, 0.885], 2, replace=False):
            p.box(x, x + w, float(y), float(y) + 0.018, ink)
        if p.rng.random() < 0.5:
            p.box(x + w - 0.014, x + w, 0.79, 0.9, ink)
        x += w + 0.018


def _entry(p: Painter) -> None:
    p.fill((0.66, 0.66, 0.66), 1.0).noise(0.07, 2.0).grid(3, 6, 0.02, 0.72, 0.5)
    p.box(0, 1, 0, 0.14, (0.42, 0.42, 0.41), 0.3)
    p.box(0.4, 0.62, 0.0, 0.74, (0.6, 0.58, 0.55), 0.2).box(0.42, 0.6, 0.02, 0.6, (p.pick(0.05, 0.3), 0.1, 0.07))
    p.box(0.42, 0.6, 0.62, 0.71, (0.06, 0.07, 0.08), 0, 1).box(0.445, 0.5, 0.3, 0.54, (0.05, 0.06, 0.07), 0, 0.8)
    p.box(0.525, 0.575, 0.3, 0.54, (0.05, 0.06, 0.07), 0, 0.8).box(0.57, 0.585, 0.24, 0.28, (0.7, 0.65, 0.4))
    frame = _frame(p)
    p.window(0.09, 0.3, 0.32, 0.74, frame).window(0.72, 0.93, 0.32, 0.74, frame)
    p.box(0.645, 0.67, 0.36, 0.43, (0.5, 0.5, 0.5)).box(0, 1, 0.96, 1, (0.5, 0.5, 0.48), 0.6)


def _blank(p: Painter) -> None:
    p.fill((0.6, 0.6, 0.6), 1.0).noise(0.13, 1.8).cells(2, 4, 0.05).grid(2, 4, 0.02, 0.75)


def _corrugated(p: Painter) -> None:
    p.fill((0.6, 0.6, 0.6), 1.0)
    p.tile[..., :3] *= (0.85 + 0.2 * sin(TURN * 10 * p.x))[..., None]
    p.noise(0.08, 2.0).grid(1, 1, 0.02, 0.6).window(0.2, 0.8, 0.62, 0.86)


def _asphalt(p: Painter) -> None:
    p.fill((0.135, 0.135, 0.14)).noise(0.2, 0.6).noise(0.08, 2.0)
    p.tile[..., :3] *= np.where(np.abs(tileable_noise(p.rng, TILE, 2.6)) < 0.012, 0.6, 1.0)[..., None]  # hair cracks


def _concrete(p: Painter) -> None:
    n = int(p.rng.integers(2, 5))
    p.fill((0.34, 0.335, 0.32)).cells(n, n, 0.08).noise(0.1, 1.4).noise(0.06, 0.5).grid(n, n, 0.016 * n, 0.6)


def _grass(p: Painter) -> None:
    p.fill((0.085, 0.14, 0.04)).noise(0.32, 0.9)
    p.tile[..., 0] *= 1 + 0.3 * tileable_noise(p.rng, TILE, 1.5).clip(-1.5, 2)


def _foliage(p: Painter) -> None:
    p.fill((0.09, 0.155, 0.045), 0.6).noise(0.45, 0.7).noise(0.2, 1.8)
    p.tile[..., :3] *= np.where(tileable_noise(p.rng, TILE, 1.0) > 0.8, 0.3, 1.0)[..., None]


def _bark(p: Painter) -> None:
    p.fill((0.14, 0.11, 0.085))
    p.tile[..., :3] *= (1 + 0.35 * sin(TURN * (6 * p.x + 0.15 * tileable_noise(p.rng, TILE, 2))))[..., None]
    p.noise(0.25)


def _pavers(p: Painter) -> None:
    nx = int(p.rng.integers(6, 11))
    p.fill((0.3, 0.25, 0.22), 0.7).cells(nx, 2 * nx, 0.18, 0.5).noise(0.1).grid(nx, 2 * nx, 0.12, 0.6, 0.5)


DRAWINGS: dict[Material, Callable[[Painter], object]] = {
    Material.ASPHALT: _asphalt,
    Material.CONCRETE: _concrete,
    Material.KERB: lambda p: p.fill((0.42, 0.415, 0.4)).noise(0.12, 1.2).grid(2, 1, 0.03, 0.5),
    Material.GRASS: _grass,
    Material.PAVERS: _pavers,
    Material.BRICK: _brick,
    Material.PLASTER: _plaster,
    Material.CURTAIN: _curtain,
    Material.SHOP: _shop,
    Material.BLANK: _blank,
    Material.CORRUGATED: _corrugated,
    Material.GRAVEL: lambda p: p.fill((0.3, 0.29, 0.28), 0.5).noise(0.3, 0.8),
    Material.TILES: lambda p: (
        p.fill((0.5, 0.5, 0.5), 1.0).cells(8, 8, 0.14, 0.5).gradient(0.9, 1.1).grid(8, 8, 0.14, 0.5, 0.5)
    ),
    Material.FOLIAGE: _foliage,
    Material.BARK: _bark,
    Material.SHUTTERS: _shutters,
    Material.OFFICE: _office,
    Material.ENTRY: _entry,
}
