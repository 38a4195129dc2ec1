"""``voxel_pool`` in Triton. docs/ops/voxel_pool.md derives the formulas in the same symbols.

Forward a program owns a tile of BLOCK_N voxels x BLOCK_C channels: it walks through the sorted points of its voxels,
all at once, up to the longest of their intervals, keeps the sums in registers and writes each voxel once, the empty
ones too. Backward it owns a tile of pixels with all their channels and walks through the depths of their rays: one row
of the gradient gives both the derivative by the depth (a product with the pixel's feature, which stays in registers)
and a summand of that by the feature. A pixel and a voxel are rows of channels, read by wide loads. Nothing is added to
by two programs, so there are no atomics and the bits are the same every time.

An index is never followed out of its table: a wrong cell counts as dropped, a wrong point as none. Arithmetic is done
in the wider of both dtypes, at least float32, in which the gradients are written too: torch rounds them while it turns
rows of channels into maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED, OPTIONS, Variant, check_devices

SIZES = ["rows", "P", "D", "HW"]  # these change from call to call and compile nothing anew


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    out, depth, features, points, starts, rows, P, D, HW,
    C: tl.constexpr, WIDE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out (rows,C) from depth (P,), P points in the order (b,n,d,h,w), and features (pixels,C); the points of row r
    stand in `points` from starts[r] to starts[r+1]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = row < rows
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (channel < C)[None, :]
    first = tl.maximum(tl.load(starts + row, mask=there, other=0), 0)
    count = tl.minimum(tl.load(starts + row + 1, mask=there, other=0), P) - first
    total = tl.zeros([BLOCK_N, BLOCK_C], WIDE)
    for k in range(tl.max(count, axis=0)):
        point = tl.load(points + first + k, mask=k < count, other=-1).to(tl.int64)
        good = (point >= 0) & (point < P)
        point = tl.where(good, point, 0)
        pixel = point // (D * HW) * HW + point % HW
        weight = tl.load(depth + point, mask=good, other=0.0).to(WIDE)
        at = (pixel * C)[:, None] + channel[None, :]
        total += weight[:, None] * tl.load(features + at, mask=good[:, None] & inside, other=0.0).to(WIDE)
    at = (row * C)[:, None] + channel[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=there[:, None] & inside)


BACKWARD_SIZES = ["pixels", "N", "volume", "D", "HW"]


@triton.jit(do_not_specialize=BACKWARD_SIZES)
def backward_kernel(
    grad_depth, grad_features, grad, depth, features, cells, pixels, N, volume, D, HW,
    C: tl.constexpr, WIDE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    DEPTH: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """grad_depth (P,) if DEPTH and grad_features (pixels,C) if FEATURES, from grad (B*volume,C): `volume` voxels and N
    cameras an item."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = pixel < pixels
    pixel = tl.where(there, pixel, 0)
    camera = pixel // HW
    item = camera // N
    channel = tl.arange(0, BLOCK_C)
    inside = (channel < C)[None, :]
    own = (pixel * C)[:, None] + channel[None, :]
    f = tl.zeros([BLOCK_N, BLOCK_C], WIDE)
    if DEPTH:
        f = tl.load(features + own, mask=there[:, None] & inside, other=0.0).to(WIDE)
    total = tl.zeros([BLOCK_N, BLOCK_C], WIDE)
    for d in range(D):
        point = (camera * D + d) * HW + pixel % HW
        cell = tl.load(cells + point, mask=there, other=-1).to(tl.int64)
        kept = there & (cell >= 0) & (cell < volume)
        at = ((item * volume + tl.where(kept, cell, 0)) * C)[:, None] + channel[None, :]
        g = tl.load(grad + at, mask=kept[:, None] & inside, other=0.0).to(WIDE)
        if DEPTH:
            by_depth = tl.where(kept, tl.sum(f * g, axis=1), 0.0)
            tl.store(grad_depth + point, by_depth, mask=there)
        if FEATURES:
            total += tl.load(depth + point, mask=kept, other=0.0).to(WIDE)[:, None] * g
    if FEATURES:
        tl.store(grad_features + own, total, mask=there[:, None] & inside)


# ---- launch

WIDE = {torch.float32: tl.float32, torch.float64: tl.float64}


def forward_constants(C: int, dtype: torch.dtype, wide: torch.dtype) -> dict[str, Any]:
    """What a kernel is compiled for. Each of 128 threads holds the channels that it reads at once: up to 16 bytes, as
    many as divide C; a tile has at most 128. In the interpreter, whose cost is per program, tiles are large."""
    elements = 2**14 if INTERPRETED else 128 * min(16 // dtype.itemsize, C & -C)
    block = min(triton.next_power_of_2(C), 128)
    return {"C": C, "WIDE": WIDE[wide], "BLOCK_N": max(1, elements // block), "BLOCK_C": block}


def backward_constants(C: int, dtype: torch.dtype, wide: torch.dtype, mask: Sequence[bool]) -> dict[str, Any]:
    """As above, but a tile has all channels: the derivative by a depth is a sum over them."""
    elements = 2**14 if INTERPRETED else 128 * min(16 // dtype.itemsize, C & -C)
    block = triton.next_power_of_2(C)
    tile = {"C": C, "WIDE": WIDE[wide], "BLOCK_N": max(1, elements // block), "BLOCK_C": block}
    return {**tile, "DEPTH": mask[0], "FEATURES": mask[1]}


def voxel_pool(
    depth_probs: Tensor, features: Tensor, cells: Tensor, points: Tensor, starts: Tensor, grid_shape: Sequence[int]
) -> Tensor:
    """As ``mim4d.reference.voxel_pool``."""
    wide = _check(depth_probs, features, cells, points, starts, grid_shape)
    B, _, D, H, W = depth_probs.shape
    C = features.shape[2]
    out = features.new_empty(B, *grid_shape, C)
    if out.numel():
        compiled = forward_constants(C, features.dtype, wide)
        rows = out.numel() // C
        grid = (triton.cdiv(rows, compiled["BLOCK_N"]), triton.cdiv(C, compiled["BLOCK_C"]))
        inputs = (depth_probs.contiguous(), _rows(features, 2), points.contiguous(), starts.contiguous())
        with torch.cuda.device_of(features):
            forward_kernel[grid](out, *inputs, rows, depth_probs.numel(), D, H * W, **compiled, **OPTIONS)
    return out.permute(0, 4, 1, 2, 3).contiguous(memory_format=torch.channels_last_3d)


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
    """As ``mim4d.reference.voxel_pool_backward``."""
    wide = _check(depth_probs, features, cells, points, starts, grid_shape, grad)
    B, N, D, H, W = depth_probs.shape
    C = features.shape[2]
    zeros = lambda wanted, *shape: features.new_zeros(shape if wanted else 0, dtype=wide)
    grad_depth, grad_features = zeros(mask[0], B, N, D, H, W), zeros(mask[1], B, N, H, W, C)
    if any(mask) and features.numel():
        compiled = backward_constants(C, features.dtype, wide, mask)
        pixels = B * N * H * W
        inputs = (_rows(grad, 1), depth_probs.contiguous(), _rows(features, 2), cells.contiguous())
        with torch.cuda.device_of(features):
            backward_kernel[(triton.cdiv(pixels, compiled["BLOCK_N"]),)](
                grad_depth, grad_features, *inputs, pixels, N, grad.shape[2:].numel(), D, H * W, **compiled, **OPTIONS
            )
    maps = features.new_empty(features.shape if mask[1] else 0)
    if mask[1]:
        maps.copy_(grad_features.movedim(-1, 2))
    return grad_depth.to(depth_probs.dtype), maps


def _rows(t: Tensor, channels: int) -> Tensor:
    """With the dimension of the channels at the end."""
    return t.movedim(channels, -1).contiguous()


def _check(
    depth_probs: Tensor,
    features: Tensor,
    cells: Tensor,
    points: Tensor,
    starts: Tensor,
    grid_shape: Sequence[int],
    grad: Tensor | None = None,
) -> torch.dtype:
    """What a kernel takes for granted. The public function has asked already; the op of the dispatcher has not. Returns
    the dtype of the sums."""
    given = (depth_probs, features, cells, points, starts, *(() if grad is None else (grad,)))
    ok = depth_probs.dim() == features.dim() == 5 and len(grid_shape) == 3
    if ok:
        B, N, _, H, W = depth_probs.shape
        Z, Y, X = grid_shape
        C = features.shape[2]
        ok = features.shape == (B, N, C, H, W) and cells.shape == depth_probs.shape
        ok = ok and points.shape == (depth_probs.numel(),) and starts.shape == (B * Z * Y * X + 1,)
        ok = ok and (grad is None or grad.shape == (B, C, Z, Y, X))
    torch._check(
        ok, lambda: f"mim4d_triton::voxel_pool: shapes {[tuple(t.shape) for t in given]}, grid {tuple(grid_shape)}"
    )
    torch._check(
        depth_probs.is_floating_point()
        and features.is_floating_point()
        and all(t.dtype == torch.int32 for t in (cells, points, starts))
        and (grad is None or grad.dtype == features.dtype),
        lambda: f"mim4d_triton::voxel_pool: dtypes {[t.dtype for t in given]}",
    )
    check_devices("voxel_pool", given)
    return torch.promote_types(torch.promote_types(depth_probs.dtype, features.dtype), torch.float32)


# ---- what a test compiles for GPUs that are not there


def _variants() -> Iterator[Variant]:
    names = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}
    for dtype, C in (*((dtype, 128) for dtype in names), (torch.float32, 5), (torch.float32, 256)):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        stored = f"*{names[dtype]}"
        label = f"<{names[dtype]}, {C}>"
        taken = {"depth": stored, "features": stored, "points": "*i32", "starts": "*i32", **dict.fromkeys(SIZES, "i32")}
        compiled = forward_constants(C, dtype, wide)
        yield Variant(f"voxel_pool_forward{label}", forward_kernel, {"out": stored, **taken}, compiled, OPTIONS)
        made = dict.fromkeys(("grad_depth", "grad_features"), "*fp64" if wide == torch.float64 else "*fp32")
        given = {**dict.fromkeys(("grad", "depth", "features"), stored), "cells": "*i32"}
        signature = {**made, **given, **dict.fromkeys(BACKWARD_SIZES, "i32")}
        compiled = backward_constants(C, dtype, wide, (True, True))
        yield Variant(f"voxel_pool_backward{label}", backward_kernel, signature, compiled, OPTIONS)


VARIANTS = tuple(_variants())
