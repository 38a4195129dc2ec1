"""Oracles of reading a volume: ``grid_sample``, and for the other modes a dense product of one kernel per axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MODES = ("trilinear", "smoothstep", "bicubic", "tricubic")
PADDINGS = ("zeros", "border")


def read(volume: Tensor, u: Tensor, mode: str, padding_mode: str, align: bool) -> Tensor:
    """volume (C,Z,Y,X) at u (P,3) -> (P,C): no taps, every voxel is weighted."""
    weights = []
    for axis, size in enumerate(reversed(volume.shape[1:])):
        position = (u[:, axis] + 1) / 2 * (size - 1) if align else ((u[:, axis] + 1) * size - 1) / 2
        cubic = mode == "tricubic" or (mode == "bicubic" and axis < 2)
        if padding_mode == "border" and not cubic:
            position = position.clamp(0, size - 1)
        margin = 4 if padding_mode == "border" else 0
        cells = torch.arange(-margin, size + margin, dtype=u.dtype)
        dense = kernel(position[:, None].clamp(-3, size + 2) - cells, mode, axis)  # (P, margin + size + margin)
        if margin:  # the border cell stands for all cells beyond it
            first = dense[:, : margin + 1].sum(1, keepdim=True)
            last = dense[:, margin + size - 1 :].sum(1, keepdim=True)
            inner = dense[:, margin + 1 : margin + size - 1]
            dense = torch.cat([first, inner, last], 1) if size > 1 else dense.sum(1, keepdim=True)
        weights.append(dense)
    return torch.einsum("px,py,pz,czyx->pc", *weights, volume)


def kernel(distance: Tensor, mode: str, axis: int) -> Tensor:
    """Weight of a cell at a distance (in cells) from the point."""
    x = distance.abs()
    if mode == "tricubic" or (mode == "bicubic" and axis < 2):  # Keys 1981, a = -0.75
        a = -0.75
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    hat = F.relu(1 - x)
    return hat * hat * (3 - 2 * hat) if mode == "smoothstep" else hat


def read_batch(volume: Tensor, points: Tensor, mode: str, padding_mode: str, align: bool) -> Tensor:
    """volume (B,C,Z,Y,X) at points (B,...,3) -> (B,...,C), all modes."""
    flat = points.flatten(1, -2) if points.dim() > 2 else points.unsqueeze(1)
    if not len(flat):
        channels = volume.sum((2, 3, 4)).reshape(0, *(1,) * (points.dim() - 2), volume.shape[1])
        return 0 * (points.sum(-1, keepdim=True) + channels)
    rows = [read(v, u, mode, padding_mode, align) for v, u in zip(volume, flat, strict=True)]
    found = torch.stack(rows)
    return found.reshape(*points.shape[:-1], volume.shape[1])


def by_grid_sample(volume: Tensor, points: Tensor, padding_mode: str, align: bool) -> Tensor:
    """The same for trilinear alone, by torch."""
    at = points.reshape(points.shape[0], -1, 1, 1, 3)
    return (
        F.grid_sample(volume, at, "bilinear", padding_mode, align)[..., 0, 0]
        .transpose(1, 2)
        .reshape(*points.shape[:-1], volume.shape[1])
    )
