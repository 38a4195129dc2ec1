"""Reading a grid in float64 for the oracles: tap by tap, with a weight that is a function of the distance to the tap.

It shares no code with :mod:`mim4d.reference` and does not call ``grid_sample``, which are both rivals.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def hat(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def keys(distance: Tensor) -> Tensor:
    """Cubic convolution with a = -0.75 (Keys 1981)."""
    x, a = distance.abs(), -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def smooth(distance: Tensor) -> Tensor:
    """The hat with s*s*(3-2s) in the place of its height s."""
    s = hat(distance)
    return s * s * (3 - 2 * s)


def read(table: Tensor, place: Tensor, *kernels: Callable[[Tensor], Tensor]) -> Tensor:
    """table (N, *sizes, C), place (N, P, d) in normalised coordinates, the last axis of the grid first
    (``align_corners=False``) -> (N, P, C); a tap outside counts 0. ``kernels``: of each axis of ``place``, :func:`hat`
    where none are given.

    Differentiable twice: the floor of a position is a constant, the distance to a tap is not.
    """
    N, *sizes, C = table.shape
    rows = table.reshape(-1, C)
    axes = []
    for axis, size in enumerate(reversed(sizes)):
        position = ((place[..., axis] + 1) * size - 1) / 2  # (N, P)
        start = position.detach().floor().long()
        kernel = kernels[axis] if kernels else hat
        steps = range(-1, 3) if kernel is keys else range(2)
        axes.append([(start + k, kernel(position - (start + k)), size) for k in steps])
    axes.reverse()  # in the order of the table
    item = torch.arange(N, device=table.device).unsqueeze(1)  # (N, 1)
    out: Tensor | None = None
    for taps in itertools.product(*axes):
        index, weight = item, torch.ones_like(place[..., 0])
        for cell, share, size in taps:
            inside = (cell >= 0) & (cell < size)
            index = index * size + cell.clamp(0, size - 1)
            weight = weight * torch.where(inside, share, torch.zeros_like(share))
        part = rows.index_select(0, index.flatten()).view(*place.shape[:-1], C) * weight.unsqueeze(-1)
        out = part if out is None else out + part
    assert out is not None
    return out


def layers(weights: Sequence[Tensor], point: Tensor, condition: Tensor, beta: float | None) -> Tensor:
    """A decoder of ``sdf_march``: point (P,3), condition (P,K) -> (P,O). ``beta``: softplus between layers, None:
    ReLU."""
    h = point @ weights[0].T + weights[1]
    count = (len(weights) - 2) // 4
    for i in range(count):
        A, b, U, c = weights[2 + 4 * i : 6 + 4 * i]
        h = (h + condition @ U.T + c) @ A.T + b
        if i + 1 < count:
            h = h.clamp(min=0) if beta is None else torch.logaddexp(beta * h, torch.zeros_like(h)) / beta
    return h
