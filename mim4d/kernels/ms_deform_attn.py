"""``ms_deform_attn`` in Triton. docs/ops/ms_deform_attn.md derives the formulas in the same symbols.

A program takes a tile of BLOCK_N rows x BLOCK_D channels; a row is one query of one head of one item. The queries of a
head stand side by side, because neighbours among them read neighbouring cells (dense queries above all), which then
come from the cache of the multiprocessor. The channels of a head are one tile wide and read by wide loads, so that each
point of a row, whose place is computed once, is read once: forward into one sum, backward into three products with the
gradient. Sizes of levels and numbers of points are loop bounds of run time: nothing compiles anew for another pyramid.

Gradients of locations and weights have one owner, the row; that of the value is added to by atomics, in the dtype of
the locations, which is that of all arithmetic: float32, or float64 for a float64 value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED, OPTIONS, Variant, check_devices
from ._numbers import on_device

# ---- a tile


@triton.jit
def rows_of(pid, B, S, Q, M, BLOCK_N: tl.constexpr):
    """The rows of a program, in the order (b, m, q): whether they are there, where the results of each lie, and where
    the values of its head begin."""
    row = pid.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = row < B.to(tl.int64) * M * Q
    row = tl.where(there, row, 0)
    q = row % Q
    m = row // Q % M
    b = row // Q // M
    return there, (b * Q + q) * M + m, b * S * M + m


@triton.jit
def first_tap(location, size):
    """The first of an axis' two taps, the fraction towards the second, and whether any is inside: of NaN none is."""
    n = size.to(location.dtype)
    position = location * n - 0.5
    reach = (position > -1) & (position < n)
    position = tl.where(reach, position, 0.0)
    first = tl.floor(position)
    return first.to(tl.int64), position - first, reach


@triton.jit
def place_of(locations, point, there, l, shapes, starts):
    """The size (H, W) of level l and where it begins; the first tap (x, y) of a point in it, the fractions (tx, ty),
    and whether it reads anything."""
    H, W, start = tl.load(shapes + 2 * l), tl.load(shapes + 2 * l + 1), tl.load(starts + l)
    x, tx, x_reach = first_tap(tl.load(locations + 2 * point, mask=there, other=-2.0), W)
    y, ty, y_reach = first_tap(tl.load(locations + 2 * point + 1, mask=there, other=-2.0), H)
    return H, W, start, x, y, tx, ty, there & x_reach & y_reach


@triton.jit
def tap_of(x, y, H, W, start, S, M, head, reach):
    """The row of a tap in the value, and whether it is inside its level, and that inside S: sizes and starts that do
    not fit, whose values nobody has read, lead nowhere."""
    cell = start + y * W + x
    inside = reach & (x >= 0) & (x < W) & (y >= 0) & (y < H) & (cell >= 0) & (cell < S)
    return head + tl.where(inside, cell, 0) * M, inside


# ---- kernels

RUN_TIME = ["B", "S", "Q", "M", "L", "P"]  # sizes that change from call to call compile nothing anew


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    out, value, shapes, starts, locations, weights, B, S, Q, M, L, P,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out (B,Q,M,D) from value (B,S,M,D), shapes (L,2), starts (L,), locations (B,Q,M,L,P,2), weights (B,Q,M,L,P)."""
    there, row, head = rows_of(tl.program_id(0), B, S, Q, M, BLOCK_N)
    channel = tl.arange(0, BLOCK_D)
    wide = (channel < D)[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_D], locations.dtype.element_ty)
    for l in range(L):
        for p in range(P):
            point = (row * L + l) * P + p
            H, W, start, x, y, tx, ty, reach = place_of(locations, point, there, l, shapes, starts)
            a = tl.load(weights + point, mask=there, other=0.0).to(total.dtype)
            for ky in tl.static_range(2):
                for kx in tl.static_range(2):
                    tap, inside = tap_of(x + kx, y + ky, H, W, start, S, M, head, reach)
                    at = (tap * D)[:, None] + channel[None, :]
                    v = tl.load(value + at, mask=inside[:, None] & wide, other=0.0)
                    w = (tx if kx else 1 - tx) * (ty if ky else 1 - ty)
                    total += (a * w)[:, None] * v.to(total.dtype)
    at = (row * D)[:, None] + channel[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=there[:, None] & wide)


@triton.jit(do_not_specialize=RUN_TIME)
def backward_kernel(
    grad_value, grad_locations, grad_weights, grad, value, shapes, starts, locations, weights, B, S, Q, M, L, P,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    VALUE: tl.constexpr, LOCATIONS: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """grad_value (B,S,M,D) is added to if VALUE, in the dtype of the locations; grad_locations (B,Q,M,L,P,2) and
    grad_weights (B,Q,M,L,P) are written if LOCATIONS and WEIGHTS."""
    there, row, head = rows_of(tl.program_id(0), B, S, Q, M, BLOCK_N)
    channel = tl.arange(0, BLOCK_D)
    wide = (channel < D)[None, :]
    dtype: tl.constexpr = locations.dtype.element_ty
    at = (row * D)[:, None] + channel[None, :]
    g = tl.load(grad + at, mask=there[:, None] & wide, other=0.0).to(dtype)
    for l in range(L):
        for p in range(P):
            point = (row * L + l) * P + p
            H, W, start, x, y, tx, ty, reach = place_of(locations, point, there, l, shapes, starts)
            a = tl.load(weights + point, mask=there, other=0.0).to(dtype)
            r = tl.zeros([BLOCK_N], dtype)
            rx, ry = r, r
            for ky in tl.static_range(2):
                for kx in tl.static_range(2):
                    tap, inside = tap_of(x + kx, y + ky, H, W, start, S, M, head, reach)
                    at, inside = (tap * D)[:, None] + channel[None, :], inside[:, None] & wide
                    wx, wy = (tx if kx else 1 - tx), (ty if ky else 1 - ty)
                    if VALUE:
                        tl.atomic_add(grad_value + at, (a * wx * wy)[:, None] * g, mask=inside, sem="relaxed")
                    if LOCATIONS or WEIGHTS:
                        v = tl.sum(tl.load(value + at, mask=inside, other=0.0).to(dtype) * g, axis=1)
                        r += wx * wy * v
                        rx += wy * (v if kx else -v)
                        ry += wx * (v if ky else -v)
            if LOCATIONS:
                tl.store(grad_locations + 2 * point, a * rx * W.to(dtype), mask=there)
                tl.store(grad_locations + 2 * point + 1, a * ry * H.to(dtype), mask=there)
            if WEIGHTS:
                tl.store(grad_weights + point, r.to(grad_weights.dtype.element_ty), mask=there)


# ---- launch


# Without a limit ptxas spills a few registers of some variants for one more block on a multiprocessor. These are the
# registers of 7 and of 3 blocks on one.
FORWARD, BACKWARD = {**OPTIONS, "maxnreg": 72}, {**OPTIONS, "maxnreg": 168}


def constants(D: int, dtype: torch.dtype, *, most: int) -> dict[str, Any]:
    """What a kernel is compiled for. Each of 128 threads holds the channels that it reads at once: up to 16 bytes, at
    most `most`, as many as divide D (more only where a head is wider than that). In the interpreter, whose cost is per
    program, tiles are large."""
    elements = 2**14 if INTERPRETED else 128 * min(16 // dtype.itemsize, most, D & -D)
    block = triton.next_power_of_2(D)
    return {"D": D, "BLOCK_N": max(1, elements // block), "BLOCK_D": block}


def forward_constants(D: int, dtype: torch.dtype) -> dict[str, Any]:
    return constants(D, dtype, most=8)


def backward_constants(D: int, dtype: torch.dtype, mask: Sequence[bool]) -> dict[str, Any]:
    return {**constants(D, dtype, most=4), **dict(zip(("VALUE", "LOCATIONS", "WEIGHTS"), mask, strict=True))}


def ms_deform_attn(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """As ``mim4d.reference.ms_deform_attn``."""
    _check(value, spatial_shapes, level_start_index, locations, weights)
    B, S, M, D = value.shape
    _, Q, _, L, P, _ = locations.shape
    out = value.new_empty(B, Q, M * D)
    if out.numel():
        compiled = forward_constants(D, value.dtype)
        levels = [on_device(t, value.device) for t in (spatial_shapes, level_start_index)]
        value, locations, weights = (t.contiguous() for t in (value, locations, weights))
        grid = (triton.cdiv(B * Q * M, compiled["BLOCK_N"]),)
        with torch.cuda.device_of(value):
            forward_kernel[grid](out, value, *levels, locations, weights, B, S, Q, M, L, P, **compiled, **FORWARD)
    return out


def ms_deform_attn_backward(
    grad: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``mim4d.reference.ms_deform_attn_backward``."""
    _check(value, spatial_shapes, level_start_index, locations, weights, grad)
    B, S, M, D = value.shape
    _, Q, _, L, P, _ = locations.shape
    # Sums are kept in the dtype of the arithmetic: adding thousands of halves one by one would lose them.
    grad_value = locations.new_zeros(value.shape) if mask[0] else locations.new_empty(0)
    grad_locations = locations.new_zeros(locations.shape) if mask[1] else locations.new_empty(0)
    grad_weights = weights.new_zeros(weights.shape) if mask[2] else weights.new_empty(0)
    if any(mask) and grad.numel():
        compiled = backward_constants(D, value.dtype, mask)
        levels = [on_device(t, value.device) for t in (spatial_shapes, level_start_index)]
        grad, value, locations, weights = (t.contiguous() for t in (grad, value, locations, weights))
        grid = (triton.cdiv(B * Q * M, compiled["BLOCK_N"]),)
        with torch.cuda.device_of(value):
            backward_kernel[grid](
                grad_value, grad_locations, grad_weights, grad, value, *levels, locations, weights,
                B, S, Q, M, L, P, **compiled, **BACKWARD,
            )  # fmt: skip
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _check(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, grad: Tensor | None = None
) -> None:
    """What a kernel takes for granted. The public function has asked already; the op of the dispatcher has not."""
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    given = (value, locations, weights) if grad is None else (value, locations, weights, grad)
    ok = value.dim() == 4 and locations.dim() == 6 and shapes.dim() == 2 and starts.dim() == 1
    if ok:
        B, _, M, _ = value.shape
        _, Q, _, L, P, _ = locations.shape
        ok = locations.shape == (B, Q, M, L, P, 2) and weights.shape == (B, Q, M, L, P)
        ok = ok and shapes.shape == (L, 2) and starts.shape == (L,)
        ok = ok and (grad is None or grad.shape == (B, Q, M * value.shape[3]))
    torch._check(
        ok, lambda: f"mim4d_triton::ms_deform_attn: shapes {[tuple(t.shape) for t in (*given, shapes, starts)]}"
    )
    torch._check(
        value.is_floating_point()
        and locations.dtype == wide
        and weights.is_floating_point()
        and weights.dtype.itemsize <= wide.itemsize
        and shapes.dtype == starts.dtype == torch.int64
        and (grad is None or grad.dtype == value.dtype),
        lambda: f"mim4d_triton::ms_deform_attn: dtypes {[t.dtype for t in (*given, shapes, starts)]}",
    )
    check_devices("ms_deform_attn", given)
    for t in (shapes, starts):
        torch._check(
            t.device in (value.device, torch.device("cpu")),
            lambda: f"mim4d_triton::ms_deform_attn: levels on {t.device}, value on {value.device}",  # noqa: B023
        )


# ---- what a test compiles for GPUs that are not there


def _variants() -> Iterator[Variant]:
    names = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16"}
    cases = [*((dtype, 32) for dtype in names), *((torch.float32, D) for D in (1, 5, 64, 256))]
    masks = {"": (True, True, True), ", no value": (False, True, True), ", value alone": (True, False, False)}
    for dtype, D in cases:
        stored, wide = f"*{names[dtype]}", "*fp64" if dtype == torch.float64 else "*fp32"
        label = f"{names[dtype]}, {D}"
        tensors = {"value": stored, "shapes": "*i64", "starts": "*i64", "locations": wide, "weights": stored}
        taken = {**tensors, **dict.fromkeys(RUN_TIME, "i32")}
        compiled = forward_constants(D, dtype)
        yield Variant(f"ms_deform_attn_forward<{label}>", forward_kernel, {"out": stored, **taken}, compiled, FORWARD)
        made = {"grad_value": wide, "grad_locations": wide, "grad_weights": stored, "grad": stored}
        for name, mask in masks.items() if (dtype, D) == (torch.float32, 32) else [("", masks[""])]:
            compiled = backward_constants(D, dtype, mask)
            label = f"{names[dtype]}, {D}{name}"
            yield Variant(f"ms_deform_attn_backward<{label}>", backward_kernel, {**made, **taken}, compiled, BACKWARD)


VARIANTS = tuple(_variants())
