"""``ms_deform_attn``: multi-scale deformable attention. All that torch knows of the op is in this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._library import define, define_triton
from ..reference import ms_deform_attn as reference
from . import _check
from ._formula import like, wanted

_OP = "ms_deform_attn"
_MOST = 2**24  # cells along an axis, and one


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Add up what the heads of each query read at their points in several feature maps (Deformable DETR, eq. 3).

    Order of arguments and meaning are those of Deformable DETR and mmcv: maps are read bilinearly with
    ``align_corners=False``, a tap outside a map counts 0. The weights are used as they come: a level that is to be left
    out gets weight 0 (before the softmax: -inf) from the caller.

    Args:
        value: (B, S, M, D), S = sum of H*W over the levels, row-major in each: M heads of D channels; float64, or
            float32, float16, bfloat16.
        spatial_shapes: (L, 2) int64 tensor, on the device of ``value`` or on the CPU, or L pairs: (H, W) of each level.
        level_start_index: (L,) int64 tensor or L ints: where each level begins in S.
        sampling_locations: (B, Q, M, L, P, 2), (x, y) in [0, 1] over each map: float64 for a float64 value, else
            float32 (under autocast, half locations are widened).
        attention_weights: (B, Q, M, L, P), floating.

    Returns:
        (B, Q, M*D) in the dtype of ``value``, differentiable once in ``value``, ``sampling_locations`` and
        ``attention_weights``.

    Raises:
        TypeError, ValueError: an argument of a wrong type, dtype, shape or device; shapes or starts on the CPU that do
            not fit S. On a GPU nobody reads them (but under ``MIM4D_CHECK=1``): a tap that leaves S is dropped.
    """
    _check.tensor(_OP, "value", value, "B", "S", "M", "D")
    _check.floating(_OP, "value", value)
    B, _, M, _ = value.shape
    shapes, starts = _levels(value, spatial_shapes, level_start_index)
    L = shapes.shape[0]
    _check.tensor(_OP, "sampling_locations", sampling_locations, B, "Q", M, L, "P", 2)
    Q, P = sampling_locations.shape[1], sampling_locations.shape[4]
    _check.tensor(_OP, "attention_weights", attention_weights, B, Q, M, L, P)
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    _check.floating(_OP, "attention_weights", attention_weights, wide)
    locations = _check.coordinates(
        _OP, "sampling_locations", sampling_locations, wide, f"with a value of {value.dtype}"
    )
    for name, t in (("sampling_locations", locations), ("attention_weights", attention_weights)):
        _check.device(_OP, name, t, value.device, "value")
    args = (value, shapes, starts, locations, attention_weights)
    backend = backends.choose(_OP, device=value.device, dtype=value.dtype)
    if backend == "reference":
        return reference.ms_deform_attn(*args)
    if backend == "triton":
        return torch.ops.mim4d_triton.ms_deform_attn.default(*args)
    return torch.ops.mim4d.ms_deform_attn.default(*args)


def _levels(
    value: Tensor, spatial_shapes: Tensor | Sequence[tuple[int, int]], level_start_index: Tensor | Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Both as int64 tensors; what comes as ints stays on the CPU, where a kernel can take it as arguments."""
    shapes, known_shapes = _ints("spatial_shapes", spatial_shapes, value, "L", 2)
    starts, known_starts = _ints("level_start_index", level_start_index, value, shapes.shape[0])
    S = value.shape[1]
    if shapes.shape[0] == 0 or S == 0:
        got = f"value has S = {S} and spatial_shapes {shapes.shape[0]} levels"
        raise ValueError(f"mim4d.ops.{_OP}: {got}, wanted at least 1 of both")
    if known_shapes is None:
        return shapes, starts
    if any(not 1 <= size < _MOST for pair in known_shapes for size in pair):  # more is not exact in float32
        raise ValueError(f"mim4d.ops.{_OP}: spatial_shapes is {known_shapes}, wanted sizes of 1 to {_MOST - 1}")
    cells = [h * w for h, w in known_shapes]
    if sum(cells) != S:
        raise ValueError(f"mim4d.ops.{_OP}: value has S = {S}, wanted {sum(cells)} for spatial_shapes {known_shapes}")
    if known_starts is not None:
        if any(not 0 <= first <= S - n for first, n in zip(known_starts, cells, strict=True)):
            got = f"level_start_index is {known_starts}"
            raise ValueError(f"mim4d.ops.{_OP}: {got}, wanted every level inside S = {S}")
        ends = [0] + [first + n for first, n in sorted(zip(known_starts, cells, strict=True))]
        if sorted(known_starts) != ends[:-1]:
            got = f"level_start_index is {known_starts} for spatial_shapes {known_shapes}"
            raise ValueError(f"mim4d.ops.{_OP}: {got}, wanted levels that do not overlap")
    return shapes, starts


def _ints(name: str, given: Any, value: Tensor, *shape: int | str) -> tuple[Tensor, list[Any] | None]:
    """As an int64 tensor, and as a list where its values may be read."""
    if not isinstance(given, Tensor):
        rows, words = (_pairs, "pairs of whole numbers (H, W)") if len(shape) == 2 else (_row, "whole numbers (L,)")
        listed: list[Any] = _check.converted(_OP, name, given, rows, words)
        found = torch.tensor(listed, dtype=torch.int64).view(-1, *[2] * (len(shape) - 1))
        _check.tensor(_OP, name, found, *shape)
        return found, listed
    if given.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"mim4d.ops.{_OP}: {name} is {given.dtype}, wanted torch.int64")
    _check.tensor(_OP, name, given, *shape)
    if given.device.type != "cpu":
        _check.device(_OP, name, given, value.device, "value, or the CPU")
    return given.long(), given.tolist() if _check.readable(given) else None


def _row(given: Any) -> list[int]:
    row = _check.ints(given)
    if any(not -(2**63) <= x < 2**63 for x in row):
        raise ValueError
    return row


def _pairs(given: Any) -> list[list[int]]:
    pairs = [_row(pair) for pair in given]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError
    return pairs


def _fake(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    B, _, M, D = value.shape
    return value.new_empty(B, locations.shape[1], M * D)


def _fake_backward(
    grad: Tensor, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return like(value, mask[0]), like(locations, mask[1]), like(weights, mask[2])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    return _first_order(torch.ops.mim4d.ms_deform_attn_backward.default, ctx, grad)


def _backward_triton(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    return _first_order(torch.ops.mim4d_triton.ms_deform_attn_backward.default, ctx, grad)


def _first_order(op: Any, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None
    needs = [ctx.needs_input_grad[i] for i in (0, 3, 4)]
    by_value, by_location, by_weight = wanted(op(grad, *ctx.saved_tensors, needs), needs)
    return by_value, None, None, by_location, by_weight


_ARGS = (
    "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, Tensor attention_weights"
)

define(
    f"ms_deform_attn({_ARGS}) -> Tensor",
    reference=reference.ms_deform_attn,
    fake=_fake,
    backward=_backward,
    setup_context=_setup,
)
define(
    f"ms_deform_attn_backward(Tensor grad, {_ARGS}, bool[3] mask) -> (Tensor, Tensor, Tensor)",
    reference=reference.ms_deform_attn_backward,
    fake=_fake_backward,
)


# ---- Triton


def _triton(*args: Any) -> Tensor:
    from ..kernels import ms_deform_attn as kernels

    return kernels.ms_deform_attn(*args)


def _triton_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from ..kernels import ms_deform_attn as kernels

    return kernels.ms_deform_attn_backward(*args)


define_triton(
    f"ms_deform_attn({_ARGS}) -> Tensor",
    kernel=_triton,
    fake=_fake,
    backward=_backward_triton,
    setup_context=_setup,
)
define_triton(
    f"ms_deform_attn_backward(Tensor grad, {_ARGS}, bool[3] mask) -> (Tensor, Tensor, Tensor)",
    kernel=_triton_backward,
    fake=_fake_backward,
)


# ---- backends


for _backend in ("cpu", "cuda"):
    backends.register(_OP, _backend, backends.reads_floats)
backends.register(_OP, "triton", backends.adds_in_any_order)
