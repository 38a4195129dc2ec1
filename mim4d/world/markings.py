"""What makes a road look driven on: arrows before stop lines, tyre tracks, cracks, sealed joints, manhole covers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mim4d.world.exact import cos, hypot, sin
from mim4d.world.roads import LANE, Lane, Roads

Array = NDArray[np.float64]

AHEAD = [(-1.6, -0.09), (0.4, -0.09), (0.4, -0.3), (1.7, 0.0), (0.4, 0.3), (0.4, 0.09), (-1.6, 0.09)]
RIGHT = [(-0.8, -0.09), (-0.16, -0.45), (-0.4, -0.45), (0.0, -0.95), (0.4, -0.45), (0.1, -0.45), (-0.6, -0.02)]
TRACK, TRACK_WIDTH = 0.78, 0.42  # of tyres: from the middle of a lane, metres


def _length(lane: Lane) -> float:
    return float(hypot(lane.end[0] - lane.start[0], lane.end[1] - lane.start[1]))


def _on_lane(lane: Lane, s: float, shape: list[tuple[float, float]]) -> Array:
    """(P, 2) street coordinates of a shape (ahead, to the left) at s metres along a lane."""
    (u0, v0), (u1, v1) = lane.start, lane.end
    length = _length(lane)
    ahead = np.array([(u1 - u0) / length, (v1 - v0) / length])
    left = np.array([-ahead[1], ahead[0]])
    p = np.array(shape, np.float64)
    return np.array([u0, v0]) + (s + p[:, :1]) * ahead + p[:, 1:] * left


def mark(rng: np.random.Generator, roads: Roads) -> None:
    """Adds to ``roads.paint``: what is worn below what is painted."""
    worn: list[tuple[Array, str]] = []
    for lane in roads.lanes:
        length = _length(lane)
        for side in (-TRACK, TRACK):
            lo, hi = side - TRACK_WIDTH / 2, side + TRACK_WIDTH / 2
            n = max(1, math.ceil(length / 8.0))
            at = np.linspace(-3.0, length + 3.0, n + 1)
            strip = [(s, lo) for s in at] + [(s, hi) for s in at[::-1]]
            worn.append((roads.bend.point(_on_lane(lane, 0.0, strip)), "track"))
        if length < 25 or not _meets(roads, lane):
            continue
        for back in (9.0, 30.0):
            if length > back + 15:
                roads.paint.append((roads.bend.point(_on_lane(lane, length - back, AHEAD)), "white"))
                if rng.random() < 0.5:
                    roads.paint.append((roads.bend.point(_on_lane(lane, length - back, RIGHT)), "white"))
    reach, half = max(abs(u) for u in roads.crossings_u) + 90.0, roads.half_main
    for _ in range(70):  # cracks: a few short pieces, each turning a little
        u, v, angle = rng.uniform(-reach, reach), rng.uniform(-half, half), rng.uniform(-math.pi, math.pi)
        for _ in range(int(rng.integers(3, 8))):
            step, wide = rng.uniform(0.3, 0.9), rng.uniform(0.02, 0.05)
            du, dv = step * float(cos(angle)), step * float(sin(angle))
            if abs(v + dv) > half - 0.2:
                break
            nu, nv = -dv / step * wide, du / step * wide
            piece = np.array(
                [(u - nu, v - nv), (u + du - nu, v + dv - nv), (u + du + nu, v + dv + nv), (u + nu, v + nv)]
            )
            worn.append((roads.bend.point(piece), "crack"))
            u, v, angle = u + du, v + dv, angle + rng.uniform(-0.7, 0.7)
    for _ in range(22):  # joints across the road, sealed with tar
        u, wide = rng.uniform(-reach, reach), rng.uniform(0.03, 0.06)
        worn.append((roads.outline(u, u + wide, -half, half), "crack"))
    turn = 2 * math.pi * np.arange(10) / 10
    disc = np.stack([cos(turn), sin(turn)], 1)
    for _ in range(34):  # manhole covers and drains
        u, lane_side = rng.uniform(-reach, reach), rng.choice([-1, 1])
        v = lane_side * rng.uniform(0.8, LANE)
        worn.append((roads.bend.point(np.array([u, v]) + 0.36 * disc), "cover"))
        worn.append((roads.bend.point(np.array([u, v]) + 0.29 * disc), "lid"))
        worn.append((roads.outline(u + 9.0, u + 9.5, *sorted((lane_side * (half - 0.4), lane_side * half))), "cover"))
    roads.paint[:0] = worn


def _meets(roads: Roads, lane: Lane) -> bool:
    """Whether a lane ends at a junction."""
    (u, v), (u0, _) = lane.end, lane.start
    if abs(u - u0) > 1e-6:  # along the main road
        return any(abs(abs(u - c) - roads.half_cross) < 0.5 for c in roads.crossings_u)
    return abs(abs(v) - roads.half_main) < 0.5
