"""Shapes of the things that nuScenes annotates, built of boxes. Origin: centre of the bounding box, x forward, z up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mim4d.world.mesh import RGB, Builder, Mesh
from mim4d.world.textures import Material as M

CAR_COLOURS: list[RGB] = [
    (0.75, 0.76, 0.78),
    (0.03, 0.03, 0.035),
    (0.35, 0.36, 0.38),
    (0.42, 0.03, 0.03),
    (0.04, 0.1, 0.35),
]
CAR_COLOURS += [(0.9, 0.88, 0.82), (0.05, 0.18, 0.1), (0.65, 0.4, 0.08), (0.25, 0.45, 0.55), (0.3, 0.2, 0.13)]
CLOTHES: list[RGB] = [
    (0.6, 0.1, 0.1),
    (0.1, 0.15, 0.45),
    (0.7, 0.65, 0.2),
    (0.1, 0.1, 0.12),
    (0.8, 0.8, 0.8),
    (0.1, 0.4, 0.25),
    (0.7, 0.35, 0.1),
]


@dataclass(frozen=True)
class Kind:
    """A class of thing: its nuScenes category, mean size (width, length, height) in metres, and how to build it."""

    category: str
    size: tuple[float, float, float]
    spread: float  # relative standard deviation of the size
    build: Callable[[np.random.Generator, float, float, float], Mesh]  # (rng, width, length, height)


SKIRT = 0.96  # a body's width over its box's: the wheels stand out a little


def _wheels(b: Builder, length: float, width: float, height: float, radius: float, at: tuple[float, ...]) -> None:
    thick = 0.24
    for x in at:
        for y in (-1, 1):
            yy = y * (width / 2 - thick / 2)
            b.box((x * length, yy, -height / 2 + radius), (2 * radius * 0.92, thick, 2 * radius), M.TYRE, front=M.TYRE)


def _pick(rng: np.random.Generator, colours: list[RGB]) -> RGB:
    return colours[int(rng.integers(len(colours)))]


def car(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b, c = Builder(), _pick(rng, CAR_COLOURS)
    van = rng.random() < 0.25
    belt = 0.58 * h
    b.box(
        (0, 0, -h / 2 + 0.17 * h + (belt - 0.17 * h) / 2),
        (l, SKIRT * w, belt - 0.17 * h),
        M.BODY_SIDE,
        c,
        top=M.BODY,
        front=M.FRONT,
        rear=M.REAR,
    )
    roof = h - belt
    length, shift = (0.74 * l, -0.1 * l) if van else (0.6 * l, -0.06 * l)
    inset = (0.14 * l, 0.03 * l, 0.09 * w) if van else (0.16 * l, 0.1 * l, 0.1 * w)
    b.box((shift, 0, h / 2 - roof / 2), (length, 0.9 * w, roof), M.GLASS, c, top=M.BODY, inset=inset)
    _wheels(b, l, w, h, 0.33, (-0.31, 0.31))
    return b.mesh()


def truck(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b, c = Builder(), _pick(rng, CAR_COLOURS)
    cab = min(2.2, 0.3 * l)
    b.box((l / 2 - cab / 2, 0, -0.06 * h), (cab, 0.92 * w, 0.7 * h), M.BODY_SIDE, c, top=M.BODY, front=M.FRONT)
    b.box((l / 2 - cab / 2, 0, 0.2 * h), (cab * 0.96, 0.88 * w, 0.2 * h), M.GLASS, c, top=M.BODY, inset=(0.35, 0, 0.05))
    load = l - cab - 0.25
    b.box(
        (-l / 2 + load / 2, 0, 0.11 * h),
        (load, SKIRT * w, 0.78 * h),
        M.CONTAINER,
        _pick(rng, CAR_COLOURS),
        tiles=max(1.0, round(load / 3)),
    )
    b.box((0, 0, -0.34 * h), (0.92 * l, 0.5 * w, 0.1 * h), M.METAL)
    _wheels(b, l, w, h, 0.45, (-0.36, -0.24, 0.36))
    return b.mesh()


def bus(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b, c = Builder(), _pick(rng, CAR_COLOURS)
    b.box(
        (0, 0, 0.06 * h),
        (l, SKIRT * w, 0.88 * h),
        M.BUS_SIDE,
        c,
        top=M.BODY,
        front=M.BUS_SIDE,
        rear=M.BUS_SIDE,
        tiles=max(2.0, round(l / 2)),
    )
    _wheels(b, l, w, h, 0.48, (-0.28, 0.34))
    return b.mesh()


def trailer(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b = Builder()
    b.box(
        (0, 0, 0.13 * h),
        (l, SKIRT * w, 0.74 * h),
        M.CONTAINER,
        _pick(rng, CAR_COLOURS),
        tiles=max(2.0, round(l / 3)),
    )
    b.box((0, 0, -0.3 * h), (0.9 * l, 0.4 * w, 0.12 * h), M.METAL)
    b.box((0.4 * l, 0, -0.4 * h), (0.15, 0.5 * w, 0.2 * h), M.METAL)
    _wheels(b, l, w, h, 0.45, (-0.42, -0.32, -0.22))
    return b.mesh()


def excavator(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b = Builder()
    yellow: RGB = (0.9, 0.55, 0.04)
    for y in (-1, 1):
        b.box((-0.12 * l, y * 0.4 * w, -0.36 * h), (0.7 * l, 0.2 * w, 0.28 * h), M.TYRE, inset=(0.1, 0.1, 0))
    b.box((-0.2 * l, 0, -0.06 * h), (0.6 * l, 0.9 * w, 0.32 * h), M.BODY_SIDE, yellow, top=M.BODY)
    b.box((0.02 * l, 0.22 * w, 0.2 * h), (0.26 * l, 0.4 * w, 0.36 * h), M.GLASS, yellow, top=M.BODY)
    b.box((0.22 * l, -0.15 * w, 0.34 * h), (0.4 * l, 0.14 * w, 0.3 * h), M.BODY, yellow, inset=(0, 0.25 * l, 0))
    b.box((0.44 * l, -0.15 * w, 0.05 * h), (0.08 * l, 0.12 * w, 0.6 * h), M.BODY, yellow)
    b.box((0.42 * l, -0.15 * w, -0.36 * h), (0.16 * l, 0.4 * w, 0.26 * h), M.METAL, (0.5, 0.5, 0.5))
    return b.mesh()


def pedestrian(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b, shirt, legs = Builder(), _pick(rng, CLOTHES), _pick(rng, CLOTHES)
    for i, y in enumerate((-1, 1)):
        b.box(((0.12 if i else -0.12) * l, y * 0.13 * w, -0.26 * h), (0.24 * l, 0.22 * w, 0.48 * h), M.CLOTH, legs)
        b.box(((-0.16 if i else 0.16) * l, y * 0.4 * w, 0.1 * h), (0.2 * l, 0.17 * w, 0.36 * h), M.CLOTH, shirt)
    b.box((0, 0, 0.14 * h), (0.5 * l, 0.62 * w, 0.36 * h), M.CLOTH, shirt, inset=(0, 0, 0.06 * w))
    b.pole((0, 0), 0.33 * h, 0.5 * h, 0.17 * w + 0.02, M.SKIN, sides=8, scale=0.8)
    return b.mesh()


def _two_wheeler(rng: np.random.Generator, w: float, l: float, h: float, engine: bool) -> Mesh:
    b, c = Builder(), _pick(rng, CAR_COLOURS)
    r = 0.17 * l
    for x in (-1, 1):
        b.box((x * (l / 2 - r), 0, -h / 2 + r), (2 * r, 0.08 + 0.08 * engine, 2 * r), M.TYRE, inset=(0.05, 0.05, 0))
    b.box((0, 0, -h / 2 + 1.7 * r), (0.6 * l, 0.08 + 0.3 * engine * w, 0.06 * h + 0.16 * engine * h), M.BODY, c)
    b.box((0.3 * l, 0, -h / 2 + 2.6 * r), (0.06, 0.9 * w, 0.06), M.METAL)
    b.box((-0.08 * l, 0, 0.1 * h), (0.22 * l, 0.7 * w, 0.4 * h), M.CLOTH, _pick(rng, CLOTHES), inset=(0, 0, 0.1 * w))
    for y in (-1, 1):
        b.box((0.02 * l, y * 0.22 * w, -0.16 * h), (0.16 * l, 0.2 * w, 0.34 * h), M.CLOTH, _pick(rng, CLOTHES))
    b.pole((-0.04 * l, 0), 0.32 * h, 0.5 * h, 0.14, M.BODY if engine else M.SKIN, c, sides=8, scale=0.8)
    return b.mesh()


def motorcycle(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    return _two_wheeler(rng, w, l, h, True)


def bicycle(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    return _two_wheeler(rng, w, l, h, False)


def cone(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b = Builder()
    b.box((0, 0, -0.47 * h), (l, w, 0.06 * h), M.TYRE)
    b.pole((0, 0), -0.44 * h, 0.5 * h, 0.38 * w, M.STRIPES, sides=8, scale=0.2)
    return b.mesh()


def barrier(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b = Builder()  # nuScenes measures a barrier's width along its face: the long side lies along y
    b.box((0, 0, 0.18 * h), (0.25 * l, w, 0.5 * h), M.STRIPES)
    b.box((0, 0, -0.14 * h), (0.2 * l, w, 0.16 * h), M.STRIPES)
    for y in (-0.4, 0.4):
        b.box((0, y * w, -0.15 * h), (l, 0.08, 0.7 * h), M.METAL, inset=(0.35 * l, 0.35 * l, 0))
    return b.mesh()


KINDS: dict[str, Kind] = {
    "car": Kind("vehicle.car", (1.9, 4.5, 1.6), 0.05, car),
    "truck": Kind("vehicle.truck", (2.4, 7.2, 3.0), 0.06, truck),
    "bus": Kind("vehicle.bus.rigid", (2.7, 11.0, 3.3), 0.04, bus),
    "trailer": Kind("vehicle.trailer", (2.5, 10.5, 3.4), 0.05, trailer),
    "construction_vehicle": Kind("vehicle.construction", (2.5, 6.2, 3.0), 0.05, excavator),
    "pedestrian": Kind("human.pedestrian.adult", (0.65, 0.7, 1.75), 0.05, pedestrian),
    "motorcycle": Kind("vehicle.motorcycle", (0.75, 2.1, 1.65), 0.04, motorcycle),
    "bicycle": Kind("vehicle.bicycle", (0.6, 1.75, 1.65), 0.04, bicycle),
    "traffic_cone": Kind("movable_object.trafficcone", (0.4, 0.4, 0.95), 0.08, cone),
    "barrier": Kind("movable_object.barrier", (2.2, 0.5, 1.0), 0.05, barrier),
}
