"""What stands along a street, each about the point of the ground it stands on and facing +x (towards the traffic)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mim4d.world.exact import cos, sin
from mim4d.world.materials import Material as M
from mim4d.world.mesh import RGB, WHITE, Builder, Mesh, blob

Array = NDArray[np.float64]

GREY: RGB = (0.75, 0.78, 0.75)
DARK: RGB = (0.16, 0.17, 0.17)
GREEN: RGB = (0.12, 0.3, 0.16)
# Corner of each sign's face in the tile of Material.SIGN.
STOP, YIELD, LIMIT, CROSSING = (0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)
SIDES = {STOP: 8, YIELD: 3, LIMIT: 10, CROSSING: 4}


def _face(b: Builder, at: tuple[float, float, float], size: float, sign: tuple[float, float]) -> None:
    """A flat sign of its own outline that looks along +x; its back is grey."""
    n = SIDES[sign]
    first = -math.pi / 2 if sign == YIELD else math.pi / n
    turn = first + 2 * math.pi * np.arange(n) / n
    y, z = cos(turn), sin(turn)
    points = [(at[0], at[1] + size * p, at[2] + size * q) for p, q in zip(y, z, strict=True)]
    scale = 0.245 / max(np.abs(y).max(), np.abs(z).max())
    lift = 0.25 if sign != YIELD else 0.29
    uv = [(sign[0] + 0.25 + scale * p, sign[1] + lift + scale * q) for p, q in zip(y, z, strict=True)]
    for i in range(1, n - 1):
        b.triangle([points[0], points[i], points[i + 1]], [uv[0], uv[i], uv[i + 1]], M.SIGN, WHITE, same_face=i > 1)
        back = [(x - 0.02, y_, z_) for x, y_, z_ in (points[0], points[i + 1], points[i])]
        b.triangle(back, [(0, 0), (1, 0), (1, 1)], M.METAL, GREY, same_face=i > 1)


def road_sign(sign: tuple[float, float]) -> Mesh:
    b = Builder()
    b.pole((0, 0), 0.0, 2.45, 0.035, M.METAL, GREY, sides=5)
    _face(b, (0.05, 0.0, 2.3), 0.42, sign)
    return b.mesh()


def traffic_light(arm: float) -> Mesh:
    """A post with a head; with ``arm`` > 0 a second head hangs so many metres out to the left, over the road.

    It shows the green half of its texture; the shader turns it to the red half.
    """
    b = Builder()

    def head(y: float, z: float) -> None:
        b.box((0.06, y, z), (0.24, 0.34, 0.95), M.METAL, DARK)
        face = [(0.185, y - 0.15, z - 0.44), (0.185, y + 0.15, z - 0.44), (0.185, y + 0.15, z + 0.44)]
        b.quad([*face, (0.185, y - 0.15, z + 0.44)], M.SIGNAL, WHITE, (0.5, 1.0), (0.5, 0.0))

    b.pole((-0.1, 0), 0.0, 3.5 if arm <= 0 else 5.6, 0.07, M.METAL, GREY, scale=0.8)
    head(0.0, 2.75)
    if arm > 0:
        b.limb((-0.1, 0, 5.4), (-0.1, arm, 5.75), 0.055, 0.04, M.METAL, GREY, sides=5)
        head(arm - 0.3, 5.2)
    return b.mesh()


def lamp_post(arm: float, height: float) -> Mesh:
    """A street lamp whose arm reaches out along +x."""
    b = Builder()
    b.pole((0, 0), 0.0, height - 0.5, 0.09, M.METAL, GREY, scale=0.6)
    b.limb((0, 0, height - 0.52), (arm * 0.35, 0, height), 0.05, 0.045, M.METAL, GREY, sides=5)
    b.limb((arm * 0.35, 0, height), (arm, 0, height + 0.1), 0.045, 0.04, M.METAL, GREY, sides=5)
    b.box((arm - 0.2, 0, height + 0.1), (0.7, 0.26, 0.1), M.METAL, GREY)
    low = height + 0.045
    lens = [(arm - 0.5, -0.1, low), (arm - 0.5, 0.1, low), (arm + 0.1, 0.1, low), (arm + 0.1, -0.1, low)]
    b.quad(lens, M.LAMP)
    return b.mesh()


def bus_stop(rng: np.random.Generator) -> Mesh:
    b = Builder()
    for y in (-1.7, 1.7):
        b.pole((-0.35, y), 0.0, 2.45, 0.04, M.METAL, DARK, sides=5)
    b.box((-0.1, 0, 2.5), (0.95, 4.0, 0.1), M.METAL, DARK)
    b.box((-0.38, 0, 1.25), (0.03, 3.3, 1.9), M.SIDE_GLASS, DARK, tiles=1)
    b.box((-0.15, -1.72, 1.2), (0.5, 0.08, 1.8), M.POSTER, (1, 1, 1))
    b.box((-0.2, 0.3, 0.45), (0.3, 2.2, 0.06), M.WOOD)
    b.pole((0.15, 2.4), 0.0, 2.6, 0.03, M.METAL, GREY, sides=5)
    b.box((0.15, 2.4, 2.45), (0.05, 0.5, 0.5), M.BODY, (0.05, 0.15, 0.5) if rng.random() < 0.5 else (0.7, 0.5, 0.03))
    return b.mesh()


def bench() -> Mesh:
    b = Builder()
    b.box((0, 0, 0.45), (0.42, 1.7, 0.06), M.WOOD)
    b.box((-0.2, 0, 0.72), (0.05, 1.7, 0.34), M.WOOD)
    for y in (-0.7, 0.7):
        b.box((0, y, 0.21), (0.4, 0.07, 0.42), M.METAL, DARK)
    return b.mesh()


def bin_() -> Mesh:
    b = Builder()
    b.limb((0, 0, 0.05), (0, 0, 0.85), 0.22, 0.25, M.METAL, GREEN, sides=8)
    b.limb((0, 0, 0.85), (0, 0, 0.97), 0.26, 0.12, M.METAL, DARK, sides=8)
    return b.mesh()


def bollard() -> Mesh:
    b = Builder()
    b.limb((0, 0, 0), (0, 0, 0.95), 0.07, 0.06, M.METAL, DARK, sides=6)
    b.limb((0, 0, 0.78), (0, 0, 0.86), 0.075, 0.075, M.BODY, (0.9, 0.9, 0.9), sides=6)
    return b.mesh()


def hydrant() -> Mesh:
    b = Builder()
    b.limb((0, 0, 0), (0, 0, 0.62), 0.13, 0.11, M.BODY, (0.6, 0.05, 0.04), sides=7)
    b.limb((0, -0.2, 0.42), (0, 0.2, 0.42), 0.06, 0.06, M.BODY, (0.6, 0.05, 0.04), sides=5)
    return b.mesh()


def cabinet() -> Mesh:
    b = Builder()
    b.box((0, 0, 0.6), (0.4, 0.9, 1.2), M.CONTAINER, (0.5, 0.55, 0.52))
    return b.mesh()


def hoarding(rng: np.random.Generator) -> Mesh:
    """A poster in its frame on a foot."""
    b = Builder()
    tint = (float(rng.uniform(0.4, 1.0)), float(rng.uniform(0.4, 1.0)), float(rng.uniform(0.4, 1.0)))
    b.box((0, 0, 0.3), (0.16, 0.5, 0.6), M.METAL, DARK)
    b.box((0, 0, 1.45), (0.14, 1.15, 1.75), M.POSTER, tint)
    return b.mesh()


def power_pole() -> Mesh:
    b = Builder()
    b.pole((0, 0), 0.0, 8.6, 0.13, M.BARK, scale=0.7)
    b.box((0, 0, 8.1), (0.12, 2.2, 0.12), M.BARK)
    return b.mesh()


def fence(length: float, tint: RGB) -> Mesh:
    """Along y, its middle at the origin: posts and three rails."""
    b = Builder()
    n = max(1, round(length / 2.2))
    for i in range(n + 1):
        b.box((0, (i / n - 0.5) * length, 0.55), (0.09, 0.09, 1.1), M.WOOD, tint)
    for z in (0.3, 0.62, 0.94):
        b.box((0.05, 0, z), (0.03, length, 0.14), M.WOOD, tint)
    return b.mesh()


def tree(rng: np.random.Generator, kind: int, crown: float, height: float, tint: RGB, fine: bool) -> Mesh:
    """Kinds: 0 round, 1 spreading, 2 columnar, 3 conifer. ``crown``: its radius; ``fine``: more than one clump."""
    b = Builder()
    lumps = rng.uniform(0, 1, (5, 2))
    trunk = height - 1.2 * crown if kind < 2 else 2.4
    b.limb((0, 0, 0), (0, 0, max(trunk, 0.6)), 0.11 + 0.018 * height, 0.09 + 0.01 * height, M.BARK, tiles=trunk / 1.5)
    if kind == 3:
        for k in range(3):
            z0 = 1.3 + 0.24 * k * height
            b.limb(
                (0, 0, z0),
                (0, 0, z0 + 0.45 * height),
                crown * (0.75 - 0.2 * k),
                0.03,
                M.FOLIAGE,
                tint,
                sides=9,
                tiles=1.2,
                around=3,
            )
        return b.mesh()
    if kind == 2:
        tall = 0.5 * height - 0.9
        b.add(blob(rng, (0.42 * crown, 0.42 * crown, tall), tint, rough=0.14), np.eye(3), (0, 0, height - tall))
        return b.mesh()
    low = 0.8 if kind == 0 else 0.6
    middle = height - low * crown
    core = 0.8 if fine else 1.0
    b.add(blob(rng, (core * crown, core * crown, low * core * crown), tint, rough=0.2), np.eye(3), (0, 0, middle))
    for k, (a, r) in enumerate(lumps if fine else ()):
        angle, size = 2 * math.pi * (k + 0.5 * float(a)) / len(lumps), (0.42 + 0.2 * float(r)) * crown
        out, lift = (crown - 0.75 * size) * (1.0 if kind == 0 else 1.25), (float(a) - 0.45) * low * crown
        place = (out * float(cos(angle)), out * float(sin(angle)), middle + lift)
        b.add(blob(rng, (size, size, 0.75 * size), tint, rough=0.22), np.eye(3), place)
    return b.mesh()
