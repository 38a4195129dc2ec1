"""``voxel_pool`` against what people write in stock torch, and against the kernels of conch and BEVDet."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import ours, peers
from benchmarks.case import Arguments, Entry, Inputs, Preset, Rival
from benchmarks.inputs import CAMERAS, HALF_HIGH, HALF_WIDE, normal, uniform
from mim4d import ops

CPU, CUDA = ("cpu",), ("cuda",)
VS0075 = {"pixels": (15, 25), "depths": 118, "grid": (5, 180, 180)}

PRESETS = {
    "mim4d_lift_32ch": Preset(
        "MIM4D at 0.075 m: 6 x 15 x 25 pixels, 118 depths, one frame, an eighth of the channels",
        {**VS0075, "frames": 1, "channels": 32},
        devices=CPU,
    ),
    "uniform_lift_32ch": Preset(
        "as many points anywhere", {**VS0075, "frames": 1, "channels": 32, "uniform": True}, devices=CPU
    ),
    "mim4d_lift_128ch": Preset(
        "MIM4D at 0.1 m: 6 x 15 x 25 pixels, 118 depths, one frame, 128 channels, 5 x 128 x 128 cells",
        {"pixels": (15, 25), "depths": 118, "grid": (5, 128, 128), "frames": 1, "channels": 128},
        devices=(),
    ),
    "mim4d_lift_4x256ch": Preset(
        "MIM4D at 0.075 m: 6 x 15 x 25 pixels, 118 depths, 4 frames, 256 channels",
        {**VS0075, "frames": 4, "channels": 256},
        devices=CUDA,
    ),
    "bevdet_lift_80ch": Preset(
        "BEVDet: 6 x 16 x 44 pixels, 59 depths, 80 channels, 128x128 cells",
        {"pixels": (16, 44), "depths": 59, "grid": (1, 128, 128), "frames": 1, "channels": 80},
        devices=CUDA,
    ),
    "uniform_lift_1x256ch": Preset(
        "one frame, points anywhere", {**VS0075, "frames": 1, "channels": 256, "uniform": True}, devices=CUDA
    ),
    "tiny": Preset("for CI", {"pixels": (2, 3), "depths": 4, "grid": (2, 6, 5), "frames": 2, "channels": 3}),
}


def inputs(sizes: Mapping[str, Any], g: torch.Generator) -> Inputs:
    B, D, C = sizes["frames"], sizes["depths"], sizes["channels"]
    (H, W), (Z, Y, X) = sizes["pixels"], sizes["grid"]
    shape = (B, CAMERAS, D, H, W)
    if "uniform" in sizes:
        cell = (uniform(g, *shape) * Z * Y * X).floor()
        cells = torch.where(uniform(g, *shape) < 0.6, cell, -1).int()
    else:
        cells = rig_cells(D, H, W, Z, Y, X).expand(shape).contiguous()
    depth = normal(g, *shape).softmax(2)
    args = {"depth_probs": depth, "features": normal(g, B, CAMERAS, C, H, W), "cells": cells, "grid_shape": (Z, Y, X)}
    return Inputs(args, ("depth_probs", "features"), ("depth_probs", "features"))


def rig_cells(D: int, H: int, W: int, Z: int, Y: int, X: int) -> Tensor:
    """(6, D, H, W) int32: where pixels of six cameras fall at depths from 1 to 60 m, in the box of the model."""
    yaw = torch.arange(CAMERAS, dtype=torch.float64).view(-1, 1, 1, 1) * (2 * math.pi / CAMERAS)
    ahead = (1 + 59 * (torch.arange(D, dtype=torch.float64) + 0.5) / D).view(-1, 1, 1)
    left = -math.tan(HALF_WIDE) * ((2 * torch.arange(W) + 1) / W - 1)
    up = -math.tan(HALF_HIGH) * ((2 * torch.arange(H) + 1) / H - 1).unsqueeze(1)
    x = (yaw.cos() - left * yaw.sin()) * ahead
    y = (yaw.sin() + left * yaw.cos()) * ahead
    z = 1.6 + up * ahead
    column = ((x + 51.2) / 102.4 * X).floor().expand(-1, D, H, W)
    row = ((y + 51.2) / 102.4 * Y).floor().expand(-1, D, H, W)
    layer = ((z + 3.0) / 8.0 * Z).floor().expand(CAMERAS, D, H, W)
    inside = (column >= 0) & (column < X) & (row >= 0) & (row < Y) & (layer >= 0) & (layer < Z)
    return torch.where(inside, (layer * Y + row) * X + column, -1).int()


def exact(depth_probs: Tensor, features: Tensor, cells: Tensor, grid_shape: Sequence[int]) -> list[Tensor]:
    """A camera at a time, every channel scattered by itself."""
    B, N = depth_probs.shape[:2]
    C, volume = features.shape[2], math.prod(grid_shape)
    out = features.new_zeros(B, C, volume + 1)  # the last one takes what is dropped
    for n in range(N):
        product = (depth_probs[:, n, None] * features[:, n].unsqueeze(2)).flatten(2)  # (B, C, D*H*W)
        where = torch.where(cells[:, n] < 0, volume, cells[:, n]).long().flatten(1)
        out = out.scatter_add(2, where[:, None].expand_as(product), product)
    return [out[..., :volume].reshape(B, C, *grid_shape)]


def index_add(depth_probs: Tensor, features: Tensor, cells: Tensor, grid_shape: Sequence[int]) -> Tensor:
    """The outer product of all points, added up by ``index_add``: the short way in stock torch."""
    rows, where = _outer(depth_probs, features, cells, grid_shape)
    out = rows.new_zeros(depth_probs.shape[0] * math.prod(grid_shape) + 1, rows.shape[1]).index_add(0, where, rows)
    return _volume(out[:-1], depth_probs.shape[0], grid_shape)


def sort_cumsum(depth_probs: Tensor, features: Tensor, cells: Tensor, grid_shape: Sequence[int]) -> Tensor:
    """Lift, Splat, Shoot: sort the outer product by cell and take differences of its running sum (in float64: those of
    float32 are too far off to pass)."""
    rows, where = _outer(depth_probs, features, cells, grid_shape)
    order = where.argsort()
    where, total = where[order], rows[order].double().cumsum(0)
    last = torch.ones_like(where, dtype=torch.bool)
    last[:-1] = where[1:] != where[:-1]
    ends = total[last]
    sums = torch.cat([ends[:1], ends[1:] - ends[:-1]]).to(rows.dtype)
    out = rows.new_zeros(depth_probs.shape[0] * math.prod(grid_shape) + 1, rows.shape[1])
    return _volume(out.index_copy(0, where[last], sums)[:-1], depth_probs.shape[0], grid_shape)


def _outer(depth: Tensor, features: Tensor, cells: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(points, C) in float32 or wider, and the row of each point; dropped points go to a row behind the last."""
    wide = torch.promote_types(features.dtype, torch.float32)
    product = depth.to(wide).unsqueeze(-1) * features.to(wide).permute(0, 1, 3, 4, 2).unsqueeze(2)
    volume, B = math.prod(grid), cells.shape[0]
    base = torch.arange(B, device=cells.device).view(-1, 1, 1, 1, 1) * volume
    where = torch.where(cells < 0, B * volume, cells + base)
    return product.flatten(0, 4), where.flatten()


def _volume(rows: Tensor, B: int, grid: Sequence[int]) -> Tensor:
    return rows.view(B, *grid, -1).permute(0, 4, 1, 2, 3)


def sparse_product(features: Tensor, cells: Any, grid_shape: Sequence[int], depth_probs: Tensor) -> Tensor:
    """A sparse matrix (cells x pixels) of depth weights times the features, its pattern cached: forward alone."""
    starts, pixel, points = cells
    B, C = features.shape[0], features.shape[2]
    wide = torch.promote_types(features.dtype, torch.float32)
    rows = features.permute(0, 1, 3, 4, 2).reshape(-1, C).to(wide)
    weight = depth_probs.flatten()[points].to(wide)
    size = B * math.prod(grid_shape), len(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the layout a beta
        matrix = torch.sparse_csr_tensor(starts, pixel, weight, size, check_invariants=False)
    return _volume(matrix @ rows, B, grid_shape).to(features.dtype)


def with_pattern(args: Arguments) -> Arguments:
    index = ops.build_pool_index(args["cells"], args["grid_shape"])
    _, _, D, H, W = args["cells"].shape
    points = index.points[: int(index.starts[-1])]
    pixel = points // (D * H * W) * (H * W) + points % (H * W)
    return {**args, "cells": (index.starts, pixel, points)}


def with_index(args: Arguments) -> Arguments:
    return {**args, "cells": ops.build_pool_index(args["cells"], args["grid_shape"])}


def sorted_points(cells: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """For the peers: kept points in the order of their cells, where each cell's begin, how many it has."""
    volume = math.prod(grid)
    base = torch.arange(cells.shape[0], device=cells.device).view(-1, 1, 1, 1, 1) * volume
    kept = (cells >= 0).flatten().nonzero().flatten()
    where = (cells + base).flatten()[kept]
    order = where.argsort(stable=True)
    _, lengths = torch.unique_consecutive(where[order], return_counts=True)
    return kept[order], lengths.cumsum(0) - lengths, lengths


def rivals(device: str) -> list[Rival]:
    return [
        Rival("index_add", lambda device: index_add),
        Rival("sort and cumsum", lambda device: sort_cumsum),
        Rival("sparse product, cached index", lambda device: sparse_product, order=0, prepare=with_pattern),
        *ours.of("voxel_pool", 1)(device),
        *ours.of("voxel_pool", 1, prepare=with_index, note=", cached index")(device),
        ours.compiled("voxel_pool", prepare=with_index),
        peers.conch(sorted_points),
        peers.bev_pool_v2(sorted_points),
    ]


def flops(args: Arguments) -> int:
    return 2 * int((args["cells"] >= 0).sum()) * args["features"].shape[2]


ENTRIES = (Entry("voxel_pool", PRESETS, inputs, exact, rivals, flops, order=1),)
