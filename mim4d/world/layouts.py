"""What kinds of streets there are: how the main road bends, how wide it is, what joins it."""

from __future__ import annotations

import numpy as np

from mim4d.world.roads import LANE, PARKING, UV, Roads, make_roads

CURVES = ("arc", "s", "spiral", "into")
LANES, SHARES = (1, 2, 3), (0.45, 0.35, 0.2)
BACK_STREETS: tuple[tuple[int, ...], ...] = ((), (1,), (-1,), (1, -1))


def bends(rng: np.random.Generator, curve: str, k: float) -> tuple[float, tuple[tuple[float, float], ...]]:
    """Curvature and turns of a Bend whose tightest arc has curvature ``k``: one arc; two in opposite directions; arcs
    that tighten and ease like a spiral; straight on and then an arc.
    """
    at = float(rng.uniform(-35.0, 35.0))
    if curve == "s":
        return k, ((at, -k * float(rng.uniform(0.7, 1.0))),)
    if curve == "spiral":
        shares = ((-75.0, 0.5), (-50.0, 0.75), (-25.0, 1.0), (25.0, 0.75), (50.0, 0.5), (75.0, 0.25))
        return 0.25 * k, tuple((at + u, share * k) for u, share in shares)
    if curve == "into":
        return 0.0, ((at, k),)
    return k, ()


def beside(u: float, crossings: list[float]) -> float:
    """The u itself, or where it falls into a cross street the street's side: no lane widens on one half only."""
    half = LANE + PARKING
    for c in crossings:
        if abs(u - c) < half:
            return c + half if u > c else c - half
    return u


def lay_out(rng: np.random.Generator, plan: str, centre: UV) -> Roads:
    """The streets of a scene about ``centre`` in which the ego follows its ``plan``: "bend" along the main road, or
    "left" or "right" around the corner at the middle one of three crossings.
    """
    if plan == "bend":
        k, reach = float(rng.uniform(1 / 260, 1 / 170)), 85.0
    else:  # cross streets that are long enough to drive along
        k, reach = float(rng.uniform(1 / 1500, 1 / 700)), 150.0
    curve = CURVES[int(rng.integers(len(CURVES)))]
    curvature, turns = bends(rng, curve, float(rng.choice([-1, 1])) * k)
    first = float(rng.uniform(-12, 12))
    crossings = [first - float(rng.uniform(70, 95)), first, first + float(rng.uniform(70, 95))]
    return make_roads(
        rng,
        centre,
        curvature=curvature,
        turns=tuple((beside(u, crossings), k) for u, k in turns),
        lanes_each_way=int(rng.choice(LANES, p=SHARES)),
        reach=reach,
        crossings_u=crossings,
        bays=bool(rng.random() < 0.7),
        back=BACK_STREETS[int(rng.integers(len(BACK_STREETS)))],
    )
