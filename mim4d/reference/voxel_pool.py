"""Lift-splat pooling in plain torch: the specification of ``mim4d::voxel_pool``.

A pixel (b,n,h,w) spreads its feature over D points of its ray by the weights ``depth_probs``; a voxel collects the
points that fall into it:

    out[b,:,cell] = sum over the (n,d,h,w) with cells[b,n,d,h,w] = cell of depth_probs[b,n,d,h,w] features[b,n,:,h,w]

Nobody ever holds the outer product of depth and feature. The points are sorted by cell once (:func:`pool_index`), so
the sum of a cell runs over one interval, in the same order every time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._autograd import vjp
from ._rows import Plan, plan, spread


def pool_index(cells: Tensor, grid_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """cells (B,N,D,H,W) int32 -> points (B*N*D*H*W,) int32: all points sorted by (b, cell), the dropped ones last;
    starts (B*Z*Y*X + 1,) int32: where the points of each cell begin, then where the dropped ones do."""
    order = plan(_rows_of(cells, grid_shape).flatten().unsqueeze(1), cells.shape[0] * _volume(grid_shape) + 1)
    return order.entry, order.start


def voxel_pool(
    depth_probs: Tensor,
    features: Tensor,
    cells: Tensor,
    points: Tensor,
    starts: Tensor,
    grid_shape: Sequence[int],
) -> Tensor:
    """depth_probs (B,N,D,H,W), features (B,N,C,H,W), cells (B,N,D,H,W) int32 with the points and starts of
    :func:`pool_index` -> (B,C,Z,Y,X), channels last, in the dtype of ``features``.

    Sums are kept in the wider of the two dtypes, at least float32.
    """
    B, _, D, H, W = depth_probs.shape
    C = features.shape[2]
    dtype = torch.promote_types(torch.promote_types(depth_probs.dtype, features.dtype), torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        pixels = features.permute(0, 1, 3, 4, 2).flatten(0, 3).to(dtype).contiguous()  # (B*N*H*W, C)
        weight = depth_probs.permute(0, 1, 3, 4, 2).flatten(0, 3).to(dtype)  # (B*N*H*W, D)
        index = _rows_of(cells, grid_shape).permute(0, 1, 3, 4, 2).flatten(0, 3)  # (B*N*H*W, D)
        n = B * _volume(grid_shape)
        weight = torch.where(index < n, weight, 0.0)  # so that no gradient asks what a dropped point would have brought
        # From the order (b,n,d,h,w) of the points to the order (b,n,h,w,d) of weight and index.
        pixel = points // (D * H * W) * (H * W) + points % (H * W)
        entry = pixel * D + points // (H * W) % D
        out = spread(pixels, index, weight, n + 1, Plan(entry, starts))[:n]  # (B*Z*Y*X, C), without the dropped
        out = out.to(features.dtype).reshape(B, *grid_shape, C).permute(0, 4, 1, 2, 3)
    return out.contiguous(memory_format=torch.channels_last_3d)


def voxel_pool_backward(
    grad: Tensor,
    depth_probs: Tensor,
    features: Tensor,
    cells: Tensor,
    points: Tensor,
    starts: Tensor,
    grid_shape: Sequence[int],
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of depth_probs and features; empty where ``mask`` is False."""
    return vjp(lambda d, f: voxel_pool(d, f, cells, points, starts, grid_shape), (depth_probs, features), grad, mask)


def _volume(grid_shape: Sequence[int]) -> int:
    Z, Y, X = grid_shape
    return Z * Y * X


def _rows_of(cells: Tensor, grid_shape: Sequence[int]) -> Tensor:
    """Row of the result (B*Z*Y*X of them) that each point falls into; one more row takes the dropped points."""
    n = _volume(grid_shape)
    base = torch.arange(cells.shape[0], device=cells.device, dtype=cells.dtype).view(-1, 1, 1, 1, 1) * n
    return torch.where((cells >= 0) & (cells < n), cells + base, cells.shape[0] * n)
