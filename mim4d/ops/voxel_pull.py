"""``voxel_pull``: voxels that look themselves up in the images. All that torch knows of the op is in this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._library import define, define_triton
from ..reference import voxel_pull as reference
from . import _check
from ._formula import like, needed, wanted

_OP = "voxel_pull"


def voxel_pull(features: Sequence[Tensor], depth_probs: Sequence[Tensor], uvd: Tensor) -> Tensor:
    """Fill V voxels from N cameras: bilinear feature times trilinear depth probability, summed over cameras and levels.

    Args:
        features: one (B, N, C, H_l, W_l) for each level l, floating.
        depth_probs: one (B, N, D, H_l, W_l) for each level, floating: how much of a pixel stands in each depth bin.
        uvd: (B, N, V, 3) where each camera sees each voxel, (x, y, depth) in [-1, 1] over image and depth range
            (``align_corners=False``): float64 for float64 features, else float32 (under autocast, half is widened). A
            camera counts only where all three lie strictly inside (-1, 1); NaN does not.

    Returns:
        (B, C, V), stored as (B, V, C), in the dtype of the features, so that ``.view(B, C, Z, Y, X)`` is a volume that
        lies channels last. Taps outside count 0. Differentiable once in all three.

    Raises:
        TypeError, ValueError: an argument of a wrong type, dtype, shape or device.
    """
    features, depth_probs = _check.tensors(_OP, "features", features), _check.tensors(_OP, "depth_probs", depth_probs)
    if not features or len(features) != len(depth_probs):
        counts = f"{len(features)} and {len(depth_probs)}"
        raise ValueError(f"mim4d.ops.{_OP}: features and depth_probs have {counts} levels, wanted as many, at least 1")
    _check.tensor(_OP, "uvd", uvd, "B", "N", "V", 3)
    B, N = uvd.shape[:2]
    _check.tensor(_OP, "features[0]", features[0], B, N, "C", "H", "W")
    _check.tensor(_OP, "depth_probs[0]", depth_probs[0], B, N, "D", "H", "W")
    C, D = features[0].shape[2], depth_probs[0].shape[2]
    wide = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    for i, (image, probs) in enumerate(zip(features, depth_probs, strict=True)):
        _check.tensor(_OP, f"features[{i}]", image, B, N, C, "H", "W")
        _check.tensor(_OP, f"depth_probs[{i}]", probs, B, N, D, *image.shape[3:])
        if 0 in probs.shape[2:]:
            raise ValueError(
                f"mim4d.ops.{_OP}: depth_probs[{i}] has shape {tuple(probs.shape)}, wanted D, H and W >= 1"
            )
        _check.floating(_OP, f"depth_probs[{i}]", probs, wide)
        _check.device(_OP, f"depth_probs[{i}]", probs, uvd.device, "uvd")
        _check.device(_OP, f"features[{i}]", image, uvd.device, "uvd")
        _check.floating(_OP, f"features[{i}]", image)
        if image.dtype != features[0].dtype:
            raise TypeError(
                f"mim4d.ops.{_OP}: features[{i}] is {image.dtype}, wanted {features[0].dtype} as features[0]"
            )
    uvd = _check.coordinates(_OP, "uvd", uvd, wide, f"with features of {features[0].dtype}")
    backend = backends.choose(_OP, device=uvd.device, dtype=features[0].dtype)
    if backend == "reference":
        return reference.voxel_pull(features, depth_probs, uvd)
    if backend == "triton":
        return torch.ops.mim4d_triton.voxel_pull.default(features, depth_probs, uvd)
    return torch.ops.mim4d.voxel_pull.default(features, depth_probs, uvd)


def _fake(features: list[Tensor], depth_probs: list[Tensor], uvd: Tensor) -> Tensor:
    return features[0].new_empty(uvd.shape[0], uvd.shape[2], features[0].shape[2]).transpose(1, 2)


def _fake_backward(
    grad: Tensor, features: list[Tensor], depth_probs: list[Tensor], uvd: Tensor, mask: list[bool]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    return [like(t, mask[0]) for t in features], [like(t, mask[1]) for t in depth_probs], like(uvd, mask[2])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, depth_probs, uvd = inputs
    ctx.levels = len(features)
    ctx.save_for_backward(uvd, *features, *depth_probs)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    return _first_order(torch.ops.mim4d.voxel_pull_backward.default, ctx, grad)


def _backward_triton(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    return _first_order(torch.ops.mim4d_triton.voxel_pull_backward.default, ctx, grad)


def _first_order(op: Any, ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return [None] * ctx.levels, [None] * ctx.levels, None
    uvd, *maps = ctx.saved_tensors
    features, depth_probs = maps[: ctx.levels], maps[ctx.levels :]
    needs = ctx.needs_input_grad
    found = op(grad, features, depth_probs, uvd, [needed(n) for n in needs])
    return tuple(wanted(found, needs))


_ARGS = "Tensor[] features, Tensor[] depth_probs, Tensor uvd"

define(
    f"voxel_pull({_ARGS}) -> Tensor",
    reference=reference.voxel_pull,
    fake=_fake,
    backward=_backward,
    setup_context=_setup,
)
define(
    f"voxel_pull_backward(Tensor grad, {_ARGS}, bool[3] mask) -> (Tensor[], Tensor[], Tensor)",
    reference=reference.voxel_pull_backward,
    fake=_fake_backward,
)


# ---- Triton


def _triton(*args: Any) -> Tensor:
    from ..kernels import voxel_pull as kernels

    return kernels.voxel_pull(*args)


def _triton_backward(*args: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    from ..kernels import voxel_pull as kernels

    return kernels.voxel_pull_backward(*args)


define_triton(
    f"voxel_pull({_ARGS}) -> Tensor",
    kernel=_triton,
    fake=_fake,
    backward=_backward_triton,
    setup_context=_setup,
)
define_triton(
    f"voxel_pull_backward(Tensor grad, {_ARGS}, bool[3] mask) -> (Tensor[], Tensor[], Tensor)",
    kernel=_triton_backward,
    fake=_fake_backward,
)


# ---- backends


def _native_can_run(dtype: torch.dtype) -> str | None:
    return None  # all floating dtypes


for _backend in ("cpu", "cuda"):
    backends.register(_OP, _backend, _native_can_run)
backends.register(_OP, "triton", backends.adds_in_any_order)
