"""Shapes of the things that nuScenes annotates, of boxes and round bars. Origin: the box's centre, x forward, z up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mim4d.world.exact import cos, sin
from mim4d.world.materials import Material as M
from mim4d.world.mesh import RGB, Builder, Mesh, Vec

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


TROUSERS: list[RGB] = [
    (0.06, 0.08, 0.16),
    (0.05, 0.05, 0.055),
    (0.25, 0.21, 0.15),
    (0.12, 0.13, 0.14),
    (0.1, 0.13, 0.25),
    (0.3, 0.3, 0.32),
]


@dataclass(frozen=True)
class Kind:
    """A class of thing: its nuScenes category, mean size (width, length, height) in metres, and how to build it."""

    category: str
    size: tuple[float, float, float]
    spread: float  # relative standard deviation of the size
    build: Callable[[np.random.Generator, float, float, float], Mesh]  # (rng, width, length, height)


SKIRT = 0.96  # a body's width over its box's: the wheels stand out a little


@dataclass(frozen=True)
class Shape:
    """A car's outline seen from the side: x over its length from -0.5 (rear) to 0.5, z over its height from 0."""

    belt: tuple[tuple[float, float], ...]  # upper edge of the lower body from the rear to the nose
    cabin: tuple[tuple[float, float], ...]  # foot of the rear window, roof's rear, roof's front, foot of the windscreen


SHAPES = (
    Shape(  # saloon
        ((-0.5, 0.55), (-0.47, 0.62), (-0.33, 0.65), (0.2, 0.62), (0.42, 0.54), (0.5, 0.46)),
        ((-0.36, 0.64), (-0.24, 0.97), (0.02, 1.0), (0.22, 0.61)),
    ),
    Shape(  # hatchback
        ((-0.5, 0.56), (-0.48, 0.63), (-0.4, 0.64), (0.2, 0.62), (0.42, 0.55), (0.5, 0.47)),
        ((-0.47, 0.63), (-0.38, 0.95), (0.0, 1.0), (0.23, 0.61)),
    ),
    Shape(  # estate
        ((-0.5, 0.55), (-0.49, 0.62), (-0.46, 0.63), (0.2, 0.62), (0.43, 0.54), (0.5, 0.46)),
        ((-0.49, 0.62), (-0.42, 0.97), (0.02, 1.0), (0.22, 0.61)),
    ),
    Shape(  # van
        ((-0.5, 0.5), (-0.495, 0.54), (-0.45, 0.55), (0.3, 0.55), (0.44, 0.48), (0.5, 0.4)),
        ((-0.495, 0.53), (-0.47, 0.99), (0.2, 1.0), (0.34, 0.54)),
    ),
)
SILL = 0.15  # of a car's body over the road, in heights


def _wheels(b: Builder, length: float, width: float, height: float, radius: float, at: tuple[float, ...]) -> None:
    thick = 0.22
    for x in at:
        for y in (-1, 1):
            place = (x * length, y * (width / 2 - thick / 2 - 0.005), -height / 2 + radius)
            b.wheel(place, radius, thick, float(y), M.TYRE)


def _pick(rng: np.random.Generator, colours: list[RGB]) -> RGB:
    return colours[int(rng.integers(len(colours)))]


def _skin(rng: np.random.Generator) -> RGB:
    tone = float(rng.uniform(0.35, 1.25))
    return (min(1.0, 1.1 * tone), tone, 0.92 * tone)


def car(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    """A body with flanks, bonnet and boot, a cabin that leans in, wheels, mirrors."""
    b, c = Builder(), _pick(rng, CAR_COLOURS)
    shape = SHAPES[int(rng.choice(len(SHAPES), p=(0.35, 0.3, 0.2, 0.15)))]
    point = lambda x, y, z: (x * l, y * w, (z - 0.5) * h)
    # Half width over the car's width: the ends are rounded off.
    half = [0.42 if abs(x) > 0.495 else 0.46 if abs(x) > 0.46 else 0.475 for x, _ in shape.belt]
    top = max(z for _, z in shape.belt)
    corners = [(x, z, y) for (x, z), y in zip(shape.belt, half, strict=True)]
    for n, ((x0, z0, y0), (x1, z1, y1)) in enumerate(pairwise(corners)):
        for side in (-1, 1):
            ends = [(x0, y0, z0), (x1, y1, z1)][::-side]
            low = [point(x, side * y, SILL) for x, y, _ in ends]
            high = [point(x, side * y, z) for x, y, z in ends]
            tile = [((x + 0.5), (z - SILL) / (top - SILL)) for x, _, z in ends]
            foot = [((x + 0.5), 0.0) for x, _, _ in ends]
            b.triangle([low[0], low[1], high[1]], [foot[0], foot[1], tile[1]], M.BODY_SIDE, c, same_face=n > 0)
            b.triangle([low[0], high[1], high[0]], [foot[0], tile[1], tile[0]], M.BODY_SIDE, c, same_face=True)
        b.quad([point(x1, -y1, z1), point(x1, y1, z1), point(x0, y0, z0), point(x0, -y0, z0)], M.BODY, c)
    (x0, z0, y0), (x1, z1, y1) = corners[0], corners[-1]
    rear = [point(x0, y0, SILL), point(x0, -y0, SILL), point(x0, -y0, z0), point(x0, y0, z0)]
    b.quad(rear, M.REAR, c)
    nose = [point(x1, -y1, SILL), point(x1, y1, SILL), point(x1, y1, z1), point(x1, -y1, z1)]
    b.quad(nose, M.FRONT, c)
    # The cabin: from its foot to the roof it leans in.
    (xa, za), (xb, zb), (xc, zc), (xd, zd) = shape.cabin
    base, roof = 0.46, 0.385
    b.quad([point(xd, -base, zd), point(xd, base, zd), point(xc, roof, zc), point(xc, -roof, zc)], M.GLASS, c)
    b.quad([point(xa, base, za), point(xa, -base, za), point(xb, -roof, zb), point(xb, roof, zb)], M.GLASS, c)
    b.quad([point(xc, -roof, zc), point(xc, roof, zc), point(xb, roof, zb), point(xb, -roof, zb)], M.BODY, c)
    right = [point(xa, -base, za), point(xd, -base, zd), point(xc, -roof, zc), point(xb, -roof, zb)]
    left = [point(xd, base, zd), point(xa, base, za), point(xb, roof, zb), point(xc, roof, zc)]
    b.quad(right, M.SIDE_GLASS, c)
    b.quad(left, M.SIDE_GLASS, c, (-1, 1), (1, 0))
    for side in (-1, 1):
        b.box(point(xd - 0.05, side * 0.475, zd + 0.04), (0.1, 0.05 * w, 0.14), M.BODY, c)
    _wheels(b, l, 0.985 * w, h, 0.2 * h, (-0.31, 0.31))
    return b.mesh()


def truck(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b, c = Builder(), _pick(rng, CAR_COLOURS)
    cab = min(2.2, 0.3 * l)
    x = l / 2 - cab / 2
    b.box((x, 0, 0.04 * h), (cab, 0.92 * w, 0.76 * h), M.BODY, c, front=M.TRUCK_FRONT, inset=(0.12, 0, 0.03))
    for side in (-1, 1):
        b.box((x + 0.1, side * 0.455 * w, 0.2 * h), (0.5 * cab, 0.02 * w, 0.24 * h), M.GLASS)
        b.box((l / 2 - 0.1, side * 0.485 * w, 0.2 * h), (0.1, 0.03 * w, 0.4), M.TYRE)
    load = l - cab - 0.25
    panels = max(1.0, round(load / 3))
    colour = _pick(rng, CAR_COLOURS)
    b.box((-l / 2 + load / 2, 0, 0.13 * h), (load, SKIRT * w, 0.74 * h), M.CONTAINER, colour, tiles=panels)
    b.box((0, 0, -0.3 * h), (0.94 * l, 0.5 * w, 0.12 * h), M.METAL)
    b.box((-l / 2 + 0.05, 0, -0.3 * h), (0.1, 0.9 * w, 0.06 * h), M.STRIPES, rear=M.REAR)
    _wheels(b, l, w, h, 0.46, (-0.36, -0.22, 0.36))
    return b.mesh()


def bus(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b, c = Builder(), _pick(rng, CAR_COLOURS)
    tiles = max(2.0, round(l / 2))
    b.box(
        (0, 0, 0.03 * h),
        (l, SKIRT * w, 0.86 * h),
        M.BUS_SIDE,
        c,
        top=M.BODY,
        front=M.BUS_FRONT,
        rear=M.BUS_SIDE,
        tiles=tiles,
        inset=(0.12, 0.05, 0.05),
    )
    b.box((-0.2 * l, 0, 0.48 * h), (0.25 * l, 0.6 * w, 0.04 * h), M.BODY)
    for x in (0.4, 0.05):  # doors, on the right
        b.box((x * l, -0.485 * w, -0.04 * h), (1.1, 0.02 * w, 0.62 * h), M.SIDE_GLASS, (0.25, 0.25, 0.25))
    for side in (-1, 1):
        b.box((0.49 * l, side * 0.49 * w, 0.16 * h), (0.1, 0.02 * w, 0.4), M.TYRE)
    _wheels(b, l, w, h, 0.48, (-0.28, 0.3))
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
        b.box(
            (-0.12 * l, y * 0.4 * w, -0.36 * h),
            (0.7 * l, 0.2 * w, 0.28 * h),
            M.METAL,
            (0.15, 0.15, 0.15),
            inset=(0.3, 0.3, 0),
        )
    b.box((-0.2 * l, 0, -0.06 * h), (0.6 * l, 0.9 * w, 0.32 * h), M.BODY_SIDE, yellow, top=M.BODY)
    b.box((0.02 * l, 0.22 * w, 0.2 * h), (0.26 * l, 0.4 * w, 0.36 * h), M.GLASS, yellow, top=M.BODY)
    b.box((0.22 * l, -0.15 * w, 0.34 * h), (0.4 * l, 0.14 * w, 0.3 * h), M.BODY, yellow, inset=(0, 0.25 * l, 0))
    b.box((0.44 * l, -0.15 * w, 0.05 * h), (0.08 * l, 0.12 * w, 0.6 * h), M.BODY, yellow)
    b.box((0.42 * l, -0.15 * w, -0.36 * h), (0.16 * l, 0.4 * w, 0.26 * h), M.METAL, (0.5, 0.5, 0.5))
    return b.mesh()


def _person(
    b: Builder, rng: np.random.Generator, hips: Vec, neck: Vec, top: float, w: float, shirt: RGB, helmet: RGB | None
) -> None:
    """Torso, neck and head, up to z = ``top`` at most; w is the width of the shoulders' box."""
    hips, neck = np.asarray(hips, np.float64), np.asarray(neck, np.float64)
    b.limb(hips, neck, 0.16 * w + 0.03, 0.2 * w + 0.02, M.CLOTH, shirt, sides=7, wide=1.45)
    up = neck + (0.0, 0.0, 0.02)
    head = min(0.115, (top - float(up[2])) / 2.1)  # a child's box has less room
    b.limb(
        up,
        up + (0.0, 0.0, 2.1 * head),
        head,
        head,
        M.SKIN if helmet is None else M.BODY,
        helmet or _skin(rng),
        sides=7,
        ball=True,
    )


def pedestrian(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    """In mid-stride, at a phase of its own; the arms swing against the legs."""
    b, shirt, legs = Builder(), _pick(rng, CLOTHES), _pick(rng, TROUSERS)
    stride, skirt = float(rng.choice([-1, 1]) * rng.uniform(0.45, 1)), rng.random() < 0.2
    floor, hip, shoulder = -h / 2, -0.02 * h, 0.31 * h
    reach = 0.5 * l - 0.18
    for side in (-1, 1):
        step = side * stride * reach
        y = side * 0.13 * w
        knee = np.array([0.55 * step + 0.05, y, floor + 0.28 * h])
        foot = np.array([step, y, floor + 0.06])
        b.limb(knee, (0, 0.8 * y, hip), 0.075, 0.095, M.CLOTH, legs, sides=4, lid=False)
        b.limb(
            foot,
            knee,
            0.05,
            0.07,
            M.CLOTH if not skirt else M.SKIN,
            legs if not skirt else _skin(rng),
            sides=5,
            lid=False,
        )
        b.box((step + 0.05, y, floor + 0.045), (0.25, 0.095, 0.09), M.TYRE, (0.5, 0.4, 0.3), inset=(0.08, 0.0, 0.015))
        hand = np.array([-0.75 * step, side * (0.5 * w - 0.06), floor + 0.46 * h])
        elbow = np.array([-0.35 * step - 0.05, side * (0.5 * w - 0.065), floor + 0.6 * h])
        b.limb(elbow, (0, side * 0.33 * w, shoulder), 0.045, 0.06, M.CLOTH, shirt, sides=4, lid=False)
        b.limb(hand, elbow, 0.035, 0.045, M.CLOTH, shirt, sides=4, lid=False)
    if skirt:
        b.limb((0, 0, floor + 0.27 * h), (0, 0, hip + 0.04), 0.19, 0.13, M.CLOTH, legs, sides=7, wide=1.1)
    _person(b, rng, (0, 0, hip - 0.06), (0, 0, 0.335 * h), h / 2, w, shirt, None)
    if rng.random() < 0.35:  # a rucksack
        thick = min(0.13, l / 2 - 0.105)
        place, size = (-0.105 - thick / 2, 0, 0.2 * h), (thick, 0.36 * w + 0.05, 0.22 * h)
        b.box(place, size, M.CLOTH, _pick(rng, CLOTHES), inset=(0, 0.03, 0.02))
    return b.mesh()


def _ring(b: Builder, centre: Vec, radius: float, thick: float, tint: RGB) -> None:
    """A tyre that rolls along x: eight pieces around, seen from both sides and from the front."""
    c = np.asarray(centre, np.float64)
    turn = 2 * np.pi * np.arange(9) / 8
    turn[-1] = 0.0
    spoke = np.stack([cos(turn), 0 * turn, sin(turn)], 1)
    out = np.array([0.0, thick / 2, 0.0])
    inner, outer = c + 0.84 * radius * spoke, c + radius * spoke
    flat = np.zeros((2, 9, 2), np.float32) + np.float32(0.04)
    # The tread looks outward, the flat of the ring to both sides: a face seen from behind is drawn all the same.
    b.grid(np.stack([outer + out, outer - out]), np.stack([spoke, spoke]), M.TYRE, tint, flat)
    aside = np.broadcast_to(np.array([0.0, 1.0, 0.0]), spoke.shape)
    b.grid(np.stack([inner, outer]), np.stack([aside, aside]), M.TYRE, tint, flat)


def _two_wheeler(rng: np.random.Generator, w: float, l: float, h: float, engine: bool) -> Mesh:
    """A frame on two wheels and who rides it."""
    b, c = Builder(), _pick(rng, CAR_COLOURS)
    r = 0.17 * l if engine else 0.19 * l
    floor = -h / 2
    rear, front = np.array([-l / 2 + r, 0, floor + r]), np.array([l / 2 - r, 0, floor + r])
    for x in (rear, front):
        if engine:
            b.wheel(x, r, 0.13, 0.0, M.TYRE)
        else:
            _ring(b, x, r, 0.05, (1, 1, 1))
    bars = np.array([0.27 * l, 0.0, floor + 0.62 * h])
    seat, crank = np.array([-0.13 * l, 0.0, floor + 0.53 * h]), np.array([-0.02 * l, 0.0, floor + 0.8 * r])
    thick = 0.045 if engine else 0.022
    b.limb(front, bars, thick, thick, M.METAL, sides=4, lid=False)
    if engine:
        b.box((0.0, 0, floor + 0.36 * h), (0.42 * l, 0.3 * w, 0.2 * h), M.BODY, c, inset=(0.1, 0.04, 0.04))
        b.box((0.1 * l, 0, floor + 0.5 * h), (0.26 * l, 0.36 * w, 0.13 * h), M.BODY, c, inset=(0.08, 0.05, 0.05))
        b.box((-0.22 * l, 0, floor + 0.5 * h), (0.34 * l, 0.3 * w, 0.07 * h), M.TYRE)
        b.box((0.3 * l, 0, floor + 0.55 * h), (0.1, 0.2, 0.16), M.LAMP, (1, 1, 1))
    else:
        for a, z in ((crank, seat), (crank, bars), (seat, bars - (0.03, 0, 0.06)), (rear, crank), (rear, seat)):
            b.limb(a, z, thick, thick, M.BODY, c, sides=4, lid=False)
        b.box(seat + (0, 0, 0.02), (0.24, 0.13, 0.05), M.TYRE)
    b.limb(bars - (0, 0.46 * w, 0), bars + (0, 0.46 * w, 0), 0.018, 0.018, M.METAL, sides=4, lid=False)
    shirt, legs = _pick(rng, CLOTHES), _pick(rng, TROUSERS)
    hips = seat + (0.02, 0, 0.08)
    neck = np.array([0.06 * l, 0.0, h / 2 - 0.27])
    helmet = _pick(rng, CAR_COLOURS) if engine or rng.random() < 0.6 else None
    _person(b, rng, hips - (0, 0, 0.04), neck, h / 2, min(w, 0.62), shirt, helmet)
    for side in (-1, 1):
        pedal = crank + (0.02 * l * side, side * 0.14, -0.02 * side)
        knee = np.array([0.13 * l, side * 0.17, floor + 0.5 * h + 0.03 * side * h])
        b.limb(knee, hips + (0, side * 0.1, 0), 0.065, 0.085, M.CLOTH, legs, sides=4, lid=False)
        b.limb(pedal, knee, 0.045, 0.065, M.CLOTH, legs, sides=4, lid=False)
        b.box(pedal + (0.05, 0, -0.02), (0.24, 0.09, 0.07), M.TYRE)
        elbow = np.array([0.12 * l, side * 0.36 * w, floor + 0.66 * h])
        b.limb(elbow, neck + (0.0, side * 0.16, -0.06), 0.042, 0.055, M.CLOTH, shirt, sides=4, lid=False)
        b.limb(bars + (0, side * 0.38 * w, 0), elbow, 0.034, 0.042, M.CLOTH, shirt, sides=4, lid=False)
    return b.mesh()


def motorcycle(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    return _two_wheeler(rng, w, l, h, True)


def bicycle(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    return _two_wheeler(rng, w, l, h, False)


def cone(rng: np.random.Generator, w: float, l: float, h: float) -> Mesh:
    b = Builder()
    b.box((0, 0, -0.47 * h), (l, w, 0.06 * h), M.TYRE)
    b.pole((0, 0), -0.44 * h, 0.5 * h, 0.38 * min(w, l), M.STRIPES, sides=8, scale=0.2)
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
