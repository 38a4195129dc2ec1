"""The pooling calls of BEVFusion and BEVDet over :func:`mim4d.ops.voxel_pool`: for code that is written for them.

Both take points that their caller has sorted already; the sort is done once more here, so that code which can change
does better with ``voxel_pool`` and a :class:`mim4d.ops.PoolIndex` that it keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mim4d import ops
from mim4d.ops import _check


def bev_pool(feats: Tensor, coords: Tensor, B: int, D: int, H: int, W: int) -> Tensor:
    """BEVFusion's call form: rows of features, each with the cell it falls into, summed by cell.

        out[b, :, d, i, j] = sum of feats[p] over the p with coords[p] = (i, j, d, b)

    Args:
        feats: (P, C), floating.
        coords: (P, 4) int32 or int64: along H, along W, along D, item of the batch.
        B, D, H, W: sizes of the result.

    Returns:
        (B, C, D, H, W), differentiable once in ``feats``.

    Raises:
        TypeError, ValueError: wrong shapes or dtypes; on the CPU (or under ``MIM4D_CHECK=1``) a cell outside the grid.
            On a GPU such a row is dropped.
    """
    if feats.dim() != 2 or coords.shape != (feats.shape[0], 4):
        got = f"{tuple(feats.shape)} and {tuple(coords.shape)}"
        raise ValueError(f"bev_pool: feats and coords wanted (P, C) and (P, 4), got {got}")
    if coords.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"bev_pool: coords wanted int32 or int64, got {coords.dtype}")
    i, j, d, b = coords.long().unbind(1)
    inside = (i >= 0) & (i < H) & (j >= 0) & (j < W) & (d >= 0) & (d < D) & (b >= 0) & (b < B)
    # What is outside must not land in another row or item: a number that the op refuses, or drops.
    cells = torch.where(inside, ((b * D + d) * H + i) * W + j, B * D * H * W).int()
    rows = feats.t()[None, None, :, None]  # (1, 1, C, 1, P): every point is a pixel of one bin
    weight = feats.new_ones(1, 1, 1, 1, feats.shape[0])
    volume = ops.voxel_pool(weight, rows, cells.view(1, 1, 1, 1, -1), (B * D, H, W))  # (1, C, B*D, H, W)
    return volume[0].unflatten(1, (B, D)).transpose(0, 1)


def bev_pool_v2(
    depth: Tensor,
    feat: Tensor,
    ranks_depth: Tensor,
    ranks_feat: Tensor,
    ranks_bev: Tensor,
    bev_feat_shape: Sequence[int],
    interval_starts: Tensor | None = None,
    interval_lengths: Tensor | None = None,
) -> Tensor:
    """BEVDet's call form: depth weights and features are read by rank.

        out.flat[ranks_bev[p]] += depth.flat[ranks_depth[p]] * feat.rows[ranks_feat[p]]

    Args:
        depth: (B, N, D, h, w) weights, floating.
        feat: (B, N, h, w, C), floating.
        ranks_depth: (P,) index of each point in ``depth``; no point twice.
        ranks_feat: (P,) index of its pixel in ``feat``: that of ``ranks_depth``, which says it already.
        ranks_bev: (P,) index of its cell in (B, Z, Y, X).
        bev_feat_shape: (B, Z, Y, X, C).
        interval_starts, interval_lengths: not read: the points are sorted here.

    Returns:
        (B, C, Z, Y, X), differentiable once in ``depth`` and ``feat``.

    Raises:
        ValueError: sizes that do not agree; on the CPU, and on a GPU with MIM4D_CHECK=1, a rank outside, a point twice,
            or a pixel of another point (never while torch traces).
    """
    B, N, D, h, w = depth.shape
    size, Z, Y, X, C = bev_feat_shape
    if feat.shape != (B, N, h, w, C) or size != B:
        wanted = f"{(B, N, h, w, C)} for bev_feat_shape {tuple(bev_feat_shape)}"
        raise ValueError(f"bev_pool_v2: feat has shape {tuple(feat.shape)}, wanted {wanted}")
    if not ranks_depth.shape == ranks_feat.shape == ranks_bev.shape == (ranks_depth.numel(),):
        raise ValueError("bev_pool_v2: ranks_depth, ranks_feat and ranks_bev wanted vectors of one length")
    point = ranks_depth.long()
    if _check.readable(point) and point.numel():
        if int(point.min()) < 0 or int(point.max()) >= depth.numel() or len(point.unique()) < len(point):
            raise ValueError(f"bev_pool_v2: ranks_depth wanted each of [0, {depth.numel()}) at most once")
        if not torch.equal(ranks_feat.long(), point // (D * h * w) * (h * w) + point % (h * w)):
            raise ValueError("bev_pool_v2: ranks_feat wanted the pixels of ranks_depth")
    # Where nobody looks at the ranks, those outside go to one more place, which is cut off.
    point = torch.where((point >= 0) & (point < depth.numel()), point, depth.numel())
    cells = torch.full((depth.numel() + 1,), -1, dtype=torch.int32, device=depth.device)
    cells = cells.scatter(0, point, ranks_bev.clamp(-2, 2**31 - 1).int())[:-1]  # int64 beyond int32 is no other cell
    # The items of the batch are layers of one grid, for ranks_bev counts through all of them.
    volume = ops.voxel_pool(
        depth.flatten(0, 1)[None],
        feat.permute(0, 1, 4, 2, 3).flatten(0, 1)[None],
        cells.view(1, B * N, D, h, w),
        (B * Z, Y, X),
    )  # (1, C, B*Z, Y, X)
    return volume[0].unflatten(1, (B, Z)).transpose(0, 1)
