"""``voxel_sample`` in Triton, all modes. docs/ops/voxel_sample.md derives the formulas in the same symbols.

A program takes a tile of BLOCK_N points x BLOCK_C channels of one batch item. A voxel is a row of C channels, so that
neighbouring threads read neighbouring channels by wide loads; what depends on the point alone is computed once per row
of the tile. Arithmetic is done in the dtype of the points: float32, or float64 for a float64 volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.voxel_sample import BICUBIC, BORDER, SMOOTHSTEP, TRICUBIC, TRILINEAR, ZEROS
from . import INTERPRETED, OPTIONS, Variant, check_devices
from ._reading import interpolate, locate, tap, taps

# ---- a tile


@triton.jit
def tile(points, N, tiles, BLOCK_N: tl.constexpr):
    """The batch item of this program, its points as rows of `points`, whether there are such, whether one is NaN, and
    their x, y, z: 0 where there is none, or a NaN."""
    item = (tl.program_id(0) // tiles).to(tl.int64)
    n = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = n < N
    point = item * N + n
    x = tl.load(points + 3 * point, mask=there, other=0.0)
    y = tl.load(points + 3 * point + 1, mask=there, other=0.0)
    z = tl.load(points + 3 * point + 2, mask=there, other=0.0)
    lost = (x != x) | (y != y) | (z != z)
    return item, point, there, lost, tl.where(lost, 0.0, x), tl.where(lost, 0.0, y), tl.where(lost, 0.0, z)


@triton.jit
def scatter(
    grad_volume, g, channel, valid, C, item, x, y, z, X, Y, Z,
    CUBIC_XY: tl.constexpr, CUBIC_Z: tl.constexpr, SMOOTH: tl.constexpr, BORDER: tl.constexpr,
):  # fmt: skip
    """dV += w_k g for every tap k."""
    for kz in tl.range(0, 4 if CUBIC_Z else 2, loop_unroll_factor=1 if CUBIC_Z else 2):
        cz, in_z, wz, _ = tap(z, kz, Z, CUBIC_Z, SMOOTH, BORDER)
        for ky in tl.static_range(4 if CUBIC_XY else 2):
            cy, in_y, wy, _ = y[ky]
            for kx in tl.static_range(4 if CUBIC_XY else 2):
                cx, in_x, wx, _ = x[kx]
                voxel = (((item * Z + cz) * Y + cy) * X + cx) * C
                inside = (in_x & in_y & in_z)[:, None] & valid
                add = (wx * (wy * wz))[:, None] * g
                tl.atomic_add(grad_volume + voxel[:, None] + channel[None, :], add, mask=inside, sem="relaxed")


# ---- kernels

RUN_TIME = ["N", "tiles", "X", "Y", "Z"]  # sizes that change from call to call compile nothing anew


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    out, volume, points, N, tiles, X, Y, Z,
    C: tl.constexpr, CUBIC_XY: tl.constexpr, CUBIC_Z: tl.constexpr, SMOOTH: tl.constexpr, BORDER: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out (B,N,C) from volume (B,Z,Y,X,C) and points (B,N,3); one program for BLOCK_N points of one item."""
    item, point, there, lost, cx, cy, cz = tile(points, N, tiles, BLOCK_N)
    x = locate(cx, X, CUBIC_XY, BORDER, ALIGN)
    y = locate(cy, Y, CUBIC_XY, BORDER, ALIGN)
    z = locate(cz, Z, CUBIC_Z, BORDER, ALIGN)
    xs, ys = taps(x, X, CUBIC_XY, SMOOTH, BORDER), taps(y, Y, CUBIC_XY, SMOOTH, BORDER)
    for start in range(0, C, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        valid = there[:, None] & (channel < C)[None, :]
        f, _, _, _ = interpolate(
            volume, channel, valid, C, item, xs, ys, z, X, Y, Z, CUBIC_XY, CUBIC_Z, SMOOTH, BORDER, False
        )  # fmt: skip
        f = tl.where(lost[:, None], float("nan"), f)
        tl.store(out + (point * C)[:, None] + channel[None, :], f.to(out.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=RUN_TIME)
def backward_kernel(
    grad_volume, grad_points, grad, volume, points, N, tiles, X, Y, Z,
    C: tl.constexpr, CUBIC_XY: tl.constexpr, CUBIC_Z: tl.constexpr, SMOOTH: tl.constexpr, BORDER: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    VOLUME: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """grad_volume (B,Z,Y,X,C) is added to if VOLUME, grad_points (B,N,3) is written if POINTS; both in the dtype of the
    points."""
    item, point, there, lost, cx, cy, cz = tile(points, N, tiles, BLOCK_N)
    x = locate(cx, X, CUBIC_XY, BORDER, ALIGN)
    y = locate(cy, Y, CUBIC_XY, BORDER, ALIGN)
    z = locate(cz, Z, CUBIC_Z, BORDER, ALIGN)
    xs, ys = taps(x, X, CUBIC_XY, SMOOTH, BORDER), taps(y, Y, CUBIC_XY, SMOOTH, BORDER)
    px = tl.zeros([BLOCK_N], cx.dtype)
    py, pz = px, px
    for start in range(0, C, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        valid = (there & (lost == 0))[:, None] & (channel < C)[None, :]
        g = tl.load(grad + (point * C)[:, None] + channel[None, :], mask=valid, other=0.0).to(cx.dtype)
        if VOLUME:
            scatter(grad_volume, g, channel, valid, C, item, xs, ys, z, X, Y, Z, CUBIC_XY, CUBIC_Z, SMOOTH, BORDER)
        if POINTS:
            _, fx, fy, fz = interpolate(
                volume, channel, valid, C, item, xs, ys, z, X, Y, Z, CUBIC_XY, CUBIC_Z, SMOOTH, BORDER, True
            )  # fmt: skip
            px += tl.sum(g * fx, axis=1)
            py += tl.sum(g * fy, axis=1)
            pz += tl.sum(g * fz, axis=1)
    if POINTS:
        # Nothing depends on a clamped coordinate, whatever the voxels are: 0 times infinity would be NaN.
        tl.store(grad_points + 3 * point, tl.where(x[2] == 0, 0.0, px * x[2]), mask=there)
        tl.store(grad_points + 3 * point + 1, tl.where(y[2] == 0, 0.0, py * y[2]), mask=there)
        tl.store(grad_points + 3 * point + 2, tl.where(z[2] == 0, 0.0, pz * z[2]), mask=there)


# ---- launch


def constants(
    C: int, dtype: torch.dtype, mode: int, padding_mode: int, align_corners: bool, *, most: int
) -> dict[str, Any]:
    """What a kernel is compiled for. Each of 128 threads holds 16 bytes of voxels, at most `most` channels; in the
    interpreter, whose cost is per program, tiles are large."""
    elements = 2**14 if INTERPRETED else 128 * min(16 // dtype.itemsize, most)
    block = min(triton.next_power_of_2(C), 128)
    return {
        "C": C,
        "CUBIC_XY": mode in (BICUBIC, TRICUBIC),
        "CUBIC_Z": mode == TRICUBIC,
        "SMOOTH": mode == SMOOTHSTEP,
        "BORDER": padding_mode == BORDER,
        "ALIGN": align_corners,
        "BLOCK_N": max(1, elements // block),
        "BLOCK_C": block,
    }


def forward_constants(C: int, dtype: torch.dtype, *options: Any) -> dict[str, Any]:
    return constants(C, dtype, *options, most=8)


def backward_constants(C: int, dtype: torch.dtype, *options: Any, mask: Sequence[bool]) -> dict[str, Any]:
    # With 8 halves a thread, the sums for the points take so many registers that few warps fit on a multiprocessor.
    return {**constants(C, dtype, *options, most=4), "VOLUME": mask[0], "POINTS": mask[1]}


def voxel_sample(volume: Tensor, points: Tensor, mode: int, padding_mode: int, align_corners: bool) -> Tensor:
    """As ``mim4d.reference.voxel_sample``."""
    _check(volume, points)
    B, C, Z, Y, X = volume.shape
    out = volume.new_empty(*points.shape[:-1], C)
    if out.numel():
        compiled = forward_constants(C, volume.dtype, mode, padding_mode, align_corners)
        volume, points = volume.contiguous(memory_format=torch.channels_last_3d), points.contiguous()
        N = points.numel() // (3 * B)
        tiles = triton.cdiv(N, compiled["BLOCK_N"])
        with torch.cuda.device_of(volume):
            forward_kernel[(B * tiles,)](out, volume, points, N, tiles, X, Y, Z, **compiled, **OPTIONS)
    return out


def voxel_sample_backward(
    grad: Tensor, volume: Tensor, points: Tensor, mode: int, padding_mode: int, align_corners: bool, mask: list[bool]
) -> tuple[Tensor, Tensor]:
    """As ``mim4d.reference.voxel_sample_backward``."""
    _check(volume, points, grad)
    B, C, Z, Y, X = volume.shape
    rows = torch.channels_last_3d
    # Sums are kept in the dtype of the arithmetic: adding thousands of halves one by one would lose them.
    grad_volume = torch.zeros_like(volume, dtype=points.dtype, memory_format=rows) if mask[0] else volume.new_empty(0)
    grad_points = torch.zeros_like(points, memory_format=torch.contiguous_format) if mask[1] else points.new_empty(0)
    if any(mask) and grad.numel():
        compiled = backward_constants(C, volume.dtype, mode, padding_mode, align_corners, mask=mask)
        volume, points = volume.contiguous(memory_format=rows) if mask[1] else volume, points.contiguous()
        N = points.numel() // (3 * B)
        tiles = triton.cdiv(N, compiled["BLOCK_N"])
        with torch.cuda.device_of(volume):
            backward_kernel[(B * tiles,)](
                grad_volume, grad_points, grad.contiguous(), volume, points, N, tiles, X, Y, Z, **compiled, **OPTIONS
            )
    return grad_volume.to(volume.dtype), grad_points


def _check(volume: Tensor, points: Tensor, grad: Tensor | None = None) -> None:
    """What a kernel takes for granted. The public function has asked already; the op of the dispatcher has not."""
    wide = torch.float64 if volume.dtype == torch.float64 else torch.float32
    given = (volume, points) if grad is None else (volume, points, grad)
    torch._check(
        volume.dim() == 5 and points.dim() > 1 and points.shape[-1] == 3 and points.shape[0] == volume.shape[0],
        lambda: f"mim4d_triton::voxel_sample: volume {tuple(volume.shape)} and points {tuple(points.shape)}",
    )
    torch._check(
        grad is None or grad.shape == (*points.shape[:-1], volume.shape[1]),
        lambda: "mim4d_triton::voxel_sample_backward: grad has not the shape of the result",
    )
    torch._check(
        volume.is_floating_point() and points.dtype == wide and (grad is None or grad.dtype == volume.dtype),
        lambda: f"mim4d_triton::voxel_sample: dtypes {[t.dtype for t in given]}",
    )
    check_devices("voxel_sample", given)


# ---- what a test compiles for GPUs that are not there


def _variants() -> Iterator[Variant]:
    names = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}
    modes = {TRILINEAR: "trilinear", SMOOTHSTEP: "smoothstep", BICUBIC: "bicubic", TRICUBIC: "tricubic"}
    cases = [
        *((mode, torch.float32, 32) for mode in modes),
        *((mode, torch.float64, 32) for mode in (TRILINEAR, TRICUBIC)),
        (TRILINEAR, torch.bfloat16, 32),
        *((TRILINEAR, torch.float32, C) for C in (1, 5, 256)),
    ]
    for mode, dtype, C in cases:
        stored, wide = f"*{names[dtype]}", "*fp64" if dtype == torch.float64 else "*fp32"
        label = f"<{modes[mode]}, {names[dtype]}, {C}>"
        taken = {"volume": stored, "points": wide, **dict.fromkeys(RUN_TIME, "i32")}
        compiled = forward_constants(C, dtype, mode, ZEROS, False)
        yield Variant(f"voxel_sample_forward{label}", forward_kernel, {"out": stored, **taken}, compiled, OPTIONS)
        made = {"grad_volume": wide, "grad_points": wide, "grad": stored}
        compiled = backward_constants(C, dtype, mode, ZEROS, False, mask=(True, True))
        yield Variant(f"voxel_sample_backward{label}", backward_kernel, {**made, **taken}, compiled, OPTIONS)


VARIANTS = tuple(_variants())
