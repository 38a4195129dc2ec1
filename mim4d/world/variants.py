"""What the common shapes leave out: cycles without a rider, people who sit or work. Axes as in models."""

from __future__ import annotations

import numpy as np

from mim4d.world.materials import Material as M
from mim4d.world.mesh import RGB, Builder, Mesh
from mim4d.world.models import CAR_COLOURS, CLOTHES, Kind, pedestrian
from mim4d.world.models import KINDS as COMMON


def pick(rng: np.random.Generator, colours: list[RGB]) -> RGB:
    return colours[int(rng.integers(len(colours)))]


def bare_motorcycle(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b, c = Builder(), pick(rng, CAR_COLOURS)
    r = 0.16 * l
    for x in (-1, 1):
        b.box((x * (l / 2 - r), 0, -h / 2 + r), (2 * r, 0.16, 2 * r), M.TYRE, inset=(0.05, 0.05, 0))
    b.box((0, 0, -0.08 * h), (0.5 * l, 0.34 * w, 0.4 * h), M.BODY, c, inset=(0.04, 0.04, 0.03))
    b.box((-0.16 * l, 0, 0.16 * h), (0.36 * l, 0.3 * w, 0.1 * h), M.TYRE)
    b.box((0.24 * l, 0, 0.32 * h), (0.08, 0.16 * w, 0.36 * h), M.METAL)
    b.box((0.2 * l, 0, 0.42 * h), (0.06, w, 0.06), M.METAL)
    return b.mesh()


def bare_bicycle(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b, c = Builder(), pick(rng, CAR_COLOURS)
    r = 0.19 * l
    for x in (-1, 1):
        b.box((x * (l / 2 - r), 0, -h / 2 + r), (2 * r, 0.07, 2 * r), M.TYRE, inset=(0.06, 0.06, 0))
    b.box((0, 0, 0.02 * h), (0.56 * l, 0.07, 0.07), M.BODY, c)
    b.box((0, 0, -0.18 * h), (0.4 * l, 0.06, 0.06), M.BODY, c)
    b.box((-0.16 * l, 0, 0.14 * h), (0.06, 0.06, 0.5 * h), M.BODY, c)
    b.box((-0.16 * l, 0, 0.42 * h), (0.26, 0.14, 0.08), M.TYRE)
    b.box((0.28 * l, 0, 0.2 * h), (0.06, 0.06, 0.5 * h), M.BODY, c)
    b.box((0.28 * l, 0, 0.46 * h), (0.06, w, 0.05), M.METAL)
    return b.mesh()


def worker(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b = Builder()
    vest: RGB = (0.85, 0.62, 0.02) if rng.random() < 0.5 else (0.9, 0.3, 0.03)
    for x, y in ((-0.2, -0.13), (0.2, 0.13)):
        b.box((x * l, y * w, -0.26 * h), (0.24 * l, 0.22 * w, 0.48 * h), M.CLOTH, (0.1, 0.12, 0.25))
        b.box((-x * l, 3 * y * w, 0.1 * h), (0.2 * l, 0.17 * w, 0.36 * h), M.CLOTH, vest)
    b.box((0, 0, 0.14 * h), (0.5 * l, 0.62 * w, 0.36 * h), M.CLOTH, vest, inset=(0, 0, 0.06 * w))
    b.pole((0, 0), 0.33 * h, 0.46 * h, 0.17 * w + 0.02, M.SKIN, sides=8, scale=0.8)
    b.pole((0, 0), 0.43 * h, 0.5 * h, 0.19 * w + 0.03, M.BODY, (0.9, 0.8, 0.1), sides=8, scale=0.7)
    return b.mesh()


def sitter(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    """Somebody on a bench, looking along +x."""
    b, shirt, legs = Builder(), pick(rng, CLOTHES), pick(rng, CLOTHES)
    b.box((-0.2 * l, 0, -0.33 * h), (0.5 * l, w, 0.34 * h), M.BARK)
    for y in (-0.16, 0.16):
        b.box((0.05 * l, y * w, -0.08 * h), (0.6 * l, 0.24 * w, 0.16 * h), M.CLOTH, legs)
        b.box((0.36 * l, y * w, -0.26 * h), (0.2 * l, 0.2 * w, 0.48 * h), M.CLOTH, legs)
    b.box((-0.24 * l, 0, 0.16 * h), (0.3 * l, 0.7 * w, 0.36 * h), M.CLOTH, shirt, inset=(0, 0, 0.06 * w))
    b.pole((-0.22 * l, 0), 0.34 * h, 0.5 * h, 0.13, M.SKIN, sides=8, scale=0.8)
    return b.mesh()


KINDS: dict[str, Kind] = {
    **COMMON,
    "child": Kind("human.pedestrian.child", (0.5, 0.52, 1.3), 0.06, pedestrian),
    "worker": Kind("human.pedestrian.construction_worker", (0.7, 0.7, 1.77), 0.04, worker),
    "officer": Kind("human.pedestrian.police_officer", (0.68, 0.68, 1.8), 0.03, pedestrian),
    "sitter": Kind("human.pedestrian.adult", (0.62, 0.95, 1.28), 0.04, sitter),
    "bare_motorcycle": Kind("vehicle.motorcycle", (0.75, 2.1, 1.15), 0.04, bare_motorcycle),
    "bare_bicycle": Kind("vehicle.bicycle", (0.55, 1.72, 1.08), 0.04, bare_bicycle),
}
