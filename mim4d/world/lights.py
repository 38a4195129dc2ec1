"""Light that people make: street lamps, shop fronts, and the head and tail lights of what drives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mim4d.world.actors import EGO_CENTRE, EGO_HALF
from mim4d.world.exact import cos, sin

if TYPE_CHECKING:
    from mim4d.world.scene import Moment

Array = NDArray[np.float32]
F = np.float32

LAMP_HEIGHT = 7.3  # metres
LAMP_COLOUR = (1.0, 0.74, 0.44)
HEAD_COLOUR, TAIL_COLOUR = (1.0, 0.96, 0.86), (1.0, 0.08, 0.04)
LAMP_POWER, HEAD_POWER, TAIL_POWER = 13.0, 30.0, 0.16
PLANE = 1.0  # height at which the lamps' light is tabulated, metres
CELL = 1.0  # metres a cell of the table
REACH = 45.0  # of headlights, metres
DRIVING = ("vehicle.moving", "cycle.with_rider")


class LampLight:
    """The light of all street lamps as one vector (its direction and strength) per cell of a raster."""

    def __init__(self, lamps: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
        """lamps (L, 2), and the corners of the raster, metres in one frame."""
        self.low = np.asarray(low, F)
        w, h = (int(n) + 2 for n in np.ceil((np.asarray(high) - low) / CELL))
        x, y = np.meshgrid(low[0] + CELL * np.arange(w), low[1] + CELL * np.arange(h))
        field = np.zeros((h, w, 3))
        up = LAMP_HEIGHT - PLANE
        for lx, ly in lamps:
            dx, dy = lx - x, ly - y
            square = dx * dx + dy * dy + up * up
            # It shines downwards: as the cosine from the vertical, and by the square of the distance.
            power = LAMP_POWER * up / (square * square)
            field += power[..., None] * np.stack([dx, dy, np.full_like(dx, up)], -1)
        self.field = field.reshape(-1, 3).astype(F)
        self.shape = (h, w)

    def at(self, points: Array, normals: Array) -> Array:
        """(P,) light on points (3, P) that face along normals (3, P)."""
        h, w = self.shape
        fx, fy = (points[0] - self.low[0]) * F(1 / CELL), (points[1] - self.low[1]) * F(1 / CELL)
        inside = (fx >= 0) & (fy >= 0) & (fx < w - 1) & (fy < h - 1)
        fx, fy = np.where(inside, fx, F(0)), np.where(inside, fy, F(0))
        ix, iy = fx.astype(np.int32), fy.astype(np.int32)
        ax, ay = (fx - ix)[:, None], (fy - iy)[:, None]
        i = iy * w + ix
        low = self.field[i] * (1 - ax) + self.field[i + 1] * ax
        high = self.field[i + w] * (1 - ax) + self.field[i + w + 1] * ax
        v = (low * (1 - ay) + high * ay).T  # (3, P)
        toward = v[0] * normals[0] + v[1] * normals[1] + v[2] * normals[2]
        size = np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
        # Little of it rises above the lamps.
        below = np.clip((F(LAMP_HEIGHT + 0.5) - points[2]) * F(0.5), F(0.03), 1)
        return np.where(inside, (np.maximum(toward, 0) * F(0.85) + size * F(0.15)) * below, F(0)).astype(F)


def beams(moment: Moment) -> list[tuple[Array, Array, float, float]]:
    """Per vehicle on its way: middle of the nose (3,), heading (2,), length of the vehicle, strength of its lights."""
    scene = moment.scene
    xyz, yaw = scene.ego.pose(moment.t)
    out = []

    def add(middle: NDArray[np.float64], yaw: float, half: float, strength: float) -> None:
        ahead = np.array([float(cos(yaw)), float(sin(yaw))])
        nose = middle[:2] + half * ahead - scene.origin[:2]
        out.append((np.array([*nose, 0.7], F), ahead.astype(F), 2 * half, strength))

    turned = np.array([float(cos(float(yaw))), float(sin(float(yaw)))])
    add(xyz[:2] + EGO_CENTRE * turned, float(yaw), EGO_HALF[0], 1.0)
    for k in np.flatnonzero(moment.present):
        actor = scene.actors[scene.moving[k]]
        if actor.attribute in DRIVING:
            add(moment.centre[k], float(moment.yaw[k]), actor.size[1] / 2, 1.0 if actor.size[0] > 1.2 else 0.4)
    return out


def vehicle_light(moment: Moment, points: Array, normals: Array) -> tuple[Array, Array]:
    """Light of headlights and of tail lights (P,), (P,) on points (3, P) relative to the scene's origin."""
    white, red = np.zeros(points.shape[1], F), np.zeros(points.shape[1], F)
    x, y, z = points
    for nose, ahead, length, strength in beams(moment):
        px, py = x - nose[0], y - nose[1]
        along = px * ahead[0] + py * ahead[1]
        # Headlights: a fan that opens by 1 to 2 and stays low.
        at = np.flatnonzero((along > F(0.05)) & (along < F(REACH)))
        if len(at):
            a, dx, dy = along[at], px[at], py[at]
            across = np.abs(dx * ahead[1] - dy * ahead[0])
            fan = np.clip((F(0.55) * a + F(0.9) - across) / (F(0.25) * a + F(0.5)), 0, 1)
            low = np.clip((F(1.0) + F(0.06) * a - z[at]) * F(1.2), F(0.04), 1)
            dz = nose[2] - z[at]
            square = a * a + across * across + dz * dz + F(6.0)
            facing = dz * normals[2, at] - dx * normals[0, at] - dy * normals[1, at]
            facing = np.maximum(facing, 0) / np.sqrt(square) + F(0.05)
            white[at] += fan * low * facing * (F(strength * HEAD_POWER) / square)
        behind = -(along + F(length))
        at = np.flatnonzero((behind > F(-0.2)) & (behind < F(6)))
        if len(at):
            dx, dy, dz = px[at] + length * ahead[0], py[at] + length * ahead[1], z[at] - nose[2]
            red[at] += F(strength * TAIL_POWER) / (dx * dx + dy * dy + dz * dz + F(0.5))
    return white, red
