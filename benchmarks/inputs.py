"""Inputs shaped as the models make them, in float64: a rig of six cameras, rays, bird's-eye queries; and uniform ones.

Linear interpolation has kinks, where derivatives jump: float32 may see a point on the other side than float64 does.
Inputs are moved by a thousandth of a cell off the kinks (:func:`clear`), so that a gradient has one right answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 1e-3  # cells
# Metres over the scene's scale of 51.2 m: x forward, y left, z up.
BOX = (-1.0, -1.0, -3.0 / 51.2, 1.0, 1.0, 5.0 / 51.2)
CAMERAS, HALF_WIDE, HALF_HIGH = 6, math.radians(35), math.radians(20)  # of a camera's field of view


def uniform(g: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=g, dtype=torch.float64)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def clear(value: Tensor, bad: Callable[[Tensor], Tensor], step: float) -> Tensor:
    """Move what is ``bad`` up, in steps that grow, until nothing is."""
    for tries in range(200):
        wrong = bad(value)
        if not wrong.any():
            return value
        value = torch.where(wrong, value + step * (1 + tries // 10), value)
    raise RuntimeError("the inputs cannot be moved off the kinks")


def near_kink(u: Tensor, size: int | Tensor) -> Tensor:
    """Whether normalised coordinates (-1..1, ``align_corners=False``) lie on a voxel centre, or nearly."""
    position = ((u + 1) * size - 1) / 2
    return (position - position.round()).abs() < MARGIN


def off_kinks(points: Tensor, sizes: Sequence[int]) -> Tensor:
    """points (..., d) in the order x, y, z; sizes of the axes in the same order."""
    axes = [
        clear(points[..., i], lambda u, size=size: near_kink(u, size), 5 * MARGIN / size)
        for i, size in enumerate(sizes)
    ]
    return torch.stack(axes, -1)


def camera_rays(g: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Origins and unit directions (count, 3): pixels drawn in six cameras around the car, camera by camera."""
    yaw = torch.arange(count, dtype=torch.float64) * CAMERAS // count * (2 * math.pi / CAMERAS)
    left = (2 * uniform(g, count) - 1) * math.tan(HALF_WIDE)
    up = (2 * uniform(g, count) - 1) * math.tan(HALF_HIGH)
    cos, sin = yaw.cos(), yaw.sin()
    directions = F.normalize(torch.stack([cos - left * sin, sin + left * cos, up], -1), dim=-1)
    height = torch.full_like(cos, 1.8 / 51.2)  # half way between two layers of voxels
    origins = torch.stack([0.02 * cos, 0.02 * sin, height], -1)
    return origins, directions


def random_rays(g: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """From anywhere in the box in any direction."""
    low, high = torch.tensor(BOX[:3], dtype=torch.float64), torch.tensor(BOX[3:], dtype=torch.float64)
    way = normal(g, count, 3)
    # None at right angles to an axis: along a kink, a ray would never leave it.
    way = torch.where(way.abs() < 0.02, way.sign() * 0.02, way)
    return low + (high - low) * (0.1 + 0.8 * uniform(g, count, 3)), F.normalize(way, dim=-1)


def exits(origins: Tensor, directions: Tensor) -> Tensor:
    """Where rays leave the box: (R,)."""
    low, high = torch.tensor(BOX[:3], dtype=torch.float64), torch.tensor(BOX[3:], dtype=torch.float64)
    return torch.where(directions > 0, (high - origins) / directions, (low - origins) / directions).amin(-1)


def to_box(points: Tensor) -> Tensor:
    """Scene units -> normalised coordinates of the box."""
    low, high = torch.tensor(BOX[:3], dtype=torch.float64), torch.tensor(BOX[3:], dtype=torch.float64)
    return 2 * (points - low) / (high - low) - 1


def ray_edges(g: torch.Generator, origins: Tensor, directions: Tensor, samples: int, volume: Sequence[int]) -> Tensor:
    """(R, samples + 1) from 0.02 to the end of the box, jittered; every sample reads the volume (Z,Y,X) off its
    kinks."""
    far = exits(origins, directions)
    place = (torch.arange(samples + 1) + 0.8 * uniform(g, len(far), samples + 1)) / (samples + 1)
    edges = torch.minimum(torch.full_like(far, 0.005), 0.1 * far)[:, None] + 0.9 * far[:, None] * place

    def bad(t: Tensor) -> Tensor:
        u = to_box(origins[:, None] + directions[:, None] * t[..., None])
        return torch.stack([near_kink(u[..., i], size) for i, size in enumerate(reversed(volume))]).any(0)

    # A ray along an axis moves by 1e-3 cells of 2/128 in a step; sections are hundreds of steps long.
    return clear(edges, bad, 2e-5).sort(-1).values


def decoder(g: torch.Generator, condition: int, out: int, hidden: int, count: int) -> list[Tensor]:
    """Weights of a decoder of ``sdf_march``, as ``torch.nn.Linear`` starts with them."""

    def linear(o: int, i: int) -> list[Tensor]:
        return [(2 * uniform(g, o, i) - 1) * i**-0.5, (2 * uniform(g, o) - 1) * i**-0.5]

    weights = linear(hidden, 3)
    for i in range(count):
        weights += linear(out if i == count - 1 else hidden, hidden) + linear(hidden, condition)
    return weights


def voxel_centres(grid: Sequence[int]) -> Tensor:
    """(Z*Y*X, 3) normalised x, y, z."""
    z, y, x = torch.meshgrid(*((2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in grid), indexing="ij")
    return torch.stack([x, y, z], -1).reshape(-1, 3)
