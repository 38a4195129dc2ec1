"""``voxel_pull`` in Triton. docs/ops/voxel_pull.md derives the formulas in the same symbols.

A program owns a tile of BLOCK_N voxels of one item with all their channels, and walks through cameras and levels: a
forward sum stays in registers and is written once. A camera that sees none of the tile's voxels is passed over; voxels
stand in the order of the grid, so that of six cameras one or two are left. The levels lie one behind another, as rows
of channels (a copy of the images, a few megabytes), and a small table says where: all of them are one launch.

Backward the same owner reads its row of the gradient once, and adds to features and depth probabilities by atomics, in
the dtype of the coordinates, which is that of all arithmetic; the gradient of a place has one owner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED, OPTIONS, Variant, check_devices
from ._numbers import note
from ._reading import locate, tap, taps

# ---- a tile


@triton.jit
def place(uvd, row, there):
    """Where a camera sees voxels, and whether it does: strictly inside (-1, 1), of NaN not."""
    x = tl.load(uvd + 3 * row, mask=there, other=2.0)
    y = tl.load(uvd + 3 * row + 1, mask=there, other=2.0)
    z = tl.load(uvd + 3 * row + 2, mask=there, other=2.0)
    seen = (tl.abs(x) < 1) & (tl.abs(y) < 1) & (tl.abs(z) < 1)
    return tl.where(seen, x, 0.0), tl.where(seen, y, 0.0), tl.where(seen, z, 0.0), seen


@triton.jit
def level_of(levels, l, camera, D, x, y, z):
    """The taps of level l along its axes, and the first pixel and the first depth cell of the camera in it."""
    H, W, first = tl.load(levels + 3 * l), tl.load(levels + 3 * l + 1), tl.load(levels + 3 * l + 2)
    at_x, at_y = locate(x, W, False, False, False), locate(y, H, False, False, False)
    xs, ys = taps(at_x, W, False, False, False), taps(at_y, H, False, False, False)
    pixel = first + camera * H * W
    return H, W, at_x, at_y, xs, ys, pixel, first * D + camera * D * H * W


@triton.jit
def belief_at(probs, cell, H, W, D, z, xs, ys, seen, DERIVATIVES: tl.constexpr):
    """The depth probability there, trilinearly, and with DERIVATIVES those by the position in cells."""
    p = tl.zeros(seen.shape, z[1].dtype)
    px, py, pz = p, p, p
    for kz in tl.static_range(2):
        cz, in_z, wz, dz = tap(z, kz, D, False, False, False)
        for ky in tl.static_range(2):
            cy, in_y, wy, dy = ys[ky]
            for kx in tl.static_range(2):
                cx, in_x, wx, dx = xs[kx]
                v = tl.load(probs + cell + (cz * H + cy) * W + cx, mask=seen & in_x & in_y & in_z, other=0.0)
                v = v.to(p.dtype)
                p += wz * wy * wx * v
                if DERIVATIVES:
                    px += wz * wy * dx * v
                    py += wz * dy * wx * v
                    pz += dz * wy * wx * v
    return p, px, py, pz


# ---- kernels

SIZES = ["B", "N", "V", "L", "D", "tiles"]  # these change from call to call and compile nothing anew


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    out, features, probs, uvd, levels, B, N, V, L, D, tiles,
    C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out (B,V,C) from the rows of all levels, features (pixels,C) and probs (pixels*D,), and uvd (B,N,V,3); levels
    (L,3): H, W and how many pixels stand before."""
    item = (tl.program_id(0) // tiles).to(tl.int64)
    voxel = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = voxel < V
    channel = tl.arange(0, BLOCK_C)
    inside = (channel < C)[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_C], uvd.dtype.element_ty)
    for n in range(N):
        camera = item * N + n
        x, y, z, seen = place(uvd, camera * V + voxel, there)
        if tl.max(seen.to(tl.int32), axis=0) > 0:
            at_z = locate(z, D, False, False, False)
            for l in range(L):
                H, W, _, _, xs, ys, pixel, cell = level_of(levels, l, camera, D, x, y, z)
                p, _, _, _ = belief_at(probs, cell, H, W, D, at_z, xs, ys, seen, False)
                for ky in tl.static_range(2):
                    cy, in_y, wy, _ = ys[ky]
                    for kx in tl.static_range(2):
                        cx, in_x, wx, _ = xs[kx]
                        at = ((pixel + cy * W + cx) * C)[:, None] + channel[None, :]
                        f = tl.load(features + at, mask=(seen & in_x & in_y)[:, None] & inside, other=0.0)
                        total += (wx * wy * p)[:, None] * f.to(total.dtype)
    at = ((item * V + voxel) * C)[:, None] + channel[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=there[:, None] & inside)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    grad_features, grad_probs, grad_uvd, grad, features, probs, uvd, levels, B, N, V, L, D, tiles,
    C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    FEATURES: tl.constexpr, PROBS: tl.constexpr, UVD: tl.constexpr,
):  # fmt: skip
    """grad_features (pixels,C) and grad_probs (pixels*D,) are added to if FEATURES and PROBS, grad_uvd (B,N,V,3) is
    written where a camera sees anything if UVD, and else stays."""
    item = (tl.program_id(0) // tiles).to(tl.int64)
    voxel = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = voxel < V
    channel = tl.arange(0, BLOCK_C)
    inside = (channel < C)[None, :]
    dtype: tl.constexpr = uvd.dtype.element_ty
    at = ((item * V + voxel) * C)[:, None] + channel[None, :]
    g = tl.load(grad + at, mask=there[:, None] & inside, other=0.0).to(dtype)
    for n in range(N):
        camera = item * N + n
        x, y, z, seen = place(uvd, camera * V + voxel, there)
        if tl.max(seen.to(tl.int32), axis=0) > 0:
            at_z = locate(z, D, False, False, False)
            gx = tl.zeros([BLOCK_N], dtype)
            gy, gz = gx, gx
            for l in range(L):
                H, W, at_x, at_y, xs, ys, pixel, cell = level_of(levels, l, camera, D, x, y, z)
                p, px, py, pz = belief_at(probs, cell, H, W, D, at_z, xs, ys, seen, UVD)
                f = tl.zeros([BLOCK_N], dtype)  # the feature there times the gradient, and its derivatives
                fx, fy = f, f
                for ky in tl.static_range(2):
                    cy, in_y, wy, dy = ys[ky]
                    for kx in tl.static_range(2):
                        cx, in_x, wx, dx = xs[kx]
                        at = ((pixel + cy * W + cx) * C)[:, None] + channel[None, :]
                        good = (seen & in_x & in_y)[:, None] & inside
                        if FEATURES:
                            tl.atomic_add(grad_features + at, (wx * wy * p)[:, None] * g, mask=good, sem="relaxed")
                        if PROBS or UVD:
                            v = tl.sum(tl.load(features + at, mask=good, other=0.0).to(dtype) * g, axis=1)
                            f += wx * wy * v
                            fx += dx * wy * v
                            fy += wx * dy * v
                if PROBS:
                    for kz in tl.static_range(2):
                        cz, in_z, wz, _ = tap(at_z, kz, D, False, False, False)
                        for ky in tl.static_range(2):
                            cy, in_y, wy, _ = ys[ky]
                            for kx in tl.static_range(2):
                                cx, in_x, wx, _ = xs[kx]
                                corner = cell + (cz * H + cy) * W + cx
                                within = seen & in_x & in_y & in_z
                                tl.atomic_add(grad_probs + corner, wz * wy * wx * f, mask=within, sem="relaxed")
                gx += (fx * p + f * px) * at_x[2]
                gy += (fy * p + f * py) * at_y[2]
                gz += f * pz * at_z[2]
            if UVD:
                row = grad_uvd + 3 * (camera * V + voxel)
                tl.store(row, gx, mask=seen)
                tl.store(row + 1, gy, mask=seen)
                tl.store(row + 2, gz, mask=seen)


# ---- launch

# Without a limit ptxas spills a few registers of the forward for one more block on a multiprocessor.
FORWARD = {**OPTIONS, "maxnreg": 128}


def constants(C: int, dtype: torch.dtype, *, most: int) -> dict[str, Any]:
    """What a kernel is compiled for. Each of 128 threads holds the channels that it reads at once: up to 16 bytes, at
    most `most`, as many as divide C (more only where there are more). In the interpreter, whose cost is per program,
    tiles are large."""
    elements = 2**14 if INTERPRETED else 128 * min(16 // dtype.itemsize, most, C & -C)
    block = triton.next_power_of_2(C)
    return {"C": C, "BLOCK_N": max(1, elements // block), "BLOCK_C": block}


def forward_constants(C: int, dtype: torch.dtype) -> dict[str, Any]:
    return constants(C, dtype, most=8)


def backward_constants(C: int, dtype: torch.dtype, mask: Sequence[bool]) -> dict[str, Any]:
    return {**constants(C, dtype, most=4), **dict(zip(("FEATURES", "PROBS", "UVD"), mask, strict=True))}


def voxel_pull(features: Sequence[Tensor], depth_probs: Sequence[Tensor], uvd: Tensor) -> Tensor:
    """As ``mim4d.reference.voxel_pull``."""
    _check(features, depth_probs, uvd)
    B, N, V, _ = uvd.shape
    C, D = features[0].shape[2], depth_probs[0].shape[2]
    out = features[0].new_empty(B, V, C)
    if out.numel():
        compiled = forward_constants(C, features[0].dtype)
        tiles = triton.cdiv(V, compiled["BLOCK_N"])
        maps = (*_rows(features, depth_probs), uvd.contiguous(), _table(features))
        with torch.cuda.device_of(uvd):
            forward_kernel[(B * tiles,)](out, *maps, B, N, V, len(features), D, tiles, **compiled, **FORWARD)
    return out.transpose(1, 2)


def voxel_pull_backward(
    grad: Tensor, features: Sequence[Tensor], depth_probs: Sequence[Tensor], uvd: Tensor, mask: Sequence[bool]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """As ``mim4d.reference.voxel_pull_backward``."""
    _check(features, depth_probs, uvd, grad)
    B, N, V, _ = uvd.shape
    C, D = features[0].shape[2], depth_probs[0].shape[2]
    # Sums are kept in the dtype of the arithmetic: adding thousands of halves one by one would lose them.
    pixels = [t[:, :, 0].numel() for t in depth_probs]
    grad_features = uvd.new_zeros(sum(pixels) if mask[0] else 0, C)
    grad_probs = uvd.new_zeros(sum(pixels) * D if mask[1] else 0)
    grad_uvd = uvd.new_zeros(uvd.shape if mask[2] else 0)
    if any(mask) and grad.numel():
        compiled = backward_constants(C, features[0].dtype, mask)
        tiles = triton.cdiv(V, compiled["BLOCK_N"])
        maps = (*_rows(features, depth_probs), uvd.contiguous(), _table(features))
        with torch.cuda.device_of(uvd):
            backward_kernel[(B * tiles,)](
                grad_features, grad_probs, grad_uvd, grad.transpose(1, 2).contiguous(), *maps,
                B, N, V, len(features), D, tiles, **compiled, **OPTIONS,
            )  # fmt: skip
    by_features, by_probs = (
        [t.new_empty(t.shape if wanted else 0) for t in given]
        for given, wanted in zip((features, depth_probs), mask, strict=False)
    )
    if mask[0]:
        for t, rows in zip(by_features, grad_features.split(pixels), strict=True):
            t.copy_(rows.view(B, N, *t.shape[3:], C).movedim(-1, 2))
    if mask[1]:
        for t, cells in zip(by_probs, grad_probs.split([n * D for n in pixels]), strict=True):
            t.copy_(cells.view(t.shape))
    return by_features, by_probs, grad_uvd


def _rows(features: Sequence[Tensor], depth_probs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The levels one behind another: rows of channels (pixels, C), and probabilities (pixels*D,) as they lie."""
    C = features[0].shape[2]
    return torch.cat([t.movedim(2, -1).reshape(-1, C) for t in features]), torch.cat(
        [t.reshape(-1) for t in depth_probs]
    )


def _table(features: Sequence[Tensor]) -> Tensor:
    """H and W of each level, and the pixels (of all cameras) before it."""
    numbers, first = [], 0
    for t in features:
        B, N, _, H, W = t.shape
        numbers += [H, W, first]
        first += B * N * H * W
    return note(numbers, features[0].device)


def _check(features: Sequence[Tensor], depth_probs: Sequence[Tensor], uvd: Tensor, grad: Tensor | None = None) -> None:
    """What a kernel takes for granted. The public function has asked already; the op of the dispatcher has not."""
    given = (*features, *depth_probs, uvd, *(() if grad is None else (grad,)))
    ok = uvd.dim() == 4 and uvd.shape[3] == 3 and 0 < len(features) == len(depth_probs)
    ok = ok and all(t.dim() == 5 and t.shape[:2] == uvd.shape[:2] for t in (*features, *depth_probs))
    ok = ok and all(a.shape[3:] == b.shape[3:] for a, b in zip(features, depth_probs, strict=True))
    ok = ok and len({t.shape[2] for t in features}) == len({t.shape[2] for t in depth_probs}) == 1
    ok = ok and (grad is None or grad.shape == (uvd.shape[0], features[0].shape[2], uvd.shape[2]))
    torch._check(ok, lambda: f"mim4d_triton::voxel_pull: shapes {[tuple(t.shape) for t in given]}")
    wide = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    torch._check(
        uvd.dtype == wide
        and all(t.dtype == features[0].dtype for t in (*features, *(() if grad is None else (grad,))))
        and all(t.is_floating_point() and t.dtype.itemsize <= wide.itemsize for t in (*features, *depth_probs)),
        lambda: f"mim4d_triton::voxel_pull: dtypes {[t.dtype for t in given]}",
    )
    check_devices("voxel_pull", given)


# ---- what a test compiles for GPUs that are not there


def _variants() -> Iterator[Variant]:
    names = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}
    for dtype, C in (*((dtype, 128) for dtype in names), (torch.float32, 5), (torch.float32, 256)):
        stored, wide = f"*{names[dtype]}", "*fp64" if dtype == torch.float64 else "*fp32"
        label = f"<{names[dtype]}, {C}>"
        tensors = {"features": stored, "probs": stored, "uvd": wide, "levels": "*i64"}
        taken = {**tensors, **dict.fromkeys(SIZES, "i32")}
        compiled = forward_constants(C, dtype)
        yield Variant(f"voxel_pull_forward{label}", forward_kernel, {"out": stored, **taken}, compiled, FORWARD)
        made = {**dict.fromkeys(("grad_features", "grad_probs", "grad_uvd"), wide), "grad": stored}
        compiled = backward_constants(C, dtype, (True, True, True))
        yield Variant(f"voxel_pull_backward{label}", backward_kernel, {**made, **taken}, compiled, OPTIONS)


VARIANTS = tuple(_variants())
