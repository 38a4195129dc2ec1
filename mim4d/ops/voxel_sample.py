"""``voxel_sample``: a voxel volume read at points. All that torch knows of the op is in this file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._library import define, define_triton
from ..reference import voxel_sample as reference
from . import _check
from ._formula import asked, like, like_volume, wanted
from ._layout import shared
from ._modes import mode_id, padding_id


def voxel_sample(
    volume: Tensor,
    points: Tensor,
    *,
    mode: str = "trilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """Read a voxel volume at points.

    Args:
        volume: (B, C, Z, Y, X), float16, bfloat16, float32 or float64. ``channels_last_3d`` is read as it lies;
            another layout is copied once per call, for all derivatives too.
        points: (B, ..., 3), (x, y, z) in [-1, 1] over the volume as in ``torch.nn.functional.grid_sample``; float64 for
            a float64 volume, else float32 (under autocast, half points are widened).
        mode: ``trilinear``; ``smoothstep`` (trilinear with the fraction t replaced by t*t*(3-2t)); ``bicubic`` (cubic
            in x and y, linear in z); ``tricubic``. Cubic convolution with a = -0.75, as in torch.
        padding_mode: ``zeros``: taps outside count 0. ``border``: linear axes clamp the coordinate, cubic axes the tap.
        align_corners: False: -1 and 1 are the outer faces of the outer voxels. True: their centres.

    Returns:
        (B, ..., C) in the volume's dtype. Differentiable twice in ``volume`` and ``points``. A NaN point gives a NaN
        row and has no gradient. The gradient of the volume lies ``channels_last_3d``.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, shape, device or name.
    """
    args = _checked("voxel_sample", volume, points, mode, padding_mode, align_corners)
    backend = backends.choose("voxel_sample", device=volume.device, dtype=volume.dtype, mode=mode)
    if backend == "reference":
        return reference.voxel_sample(*args)
    volume, points, *options = args
    volume = shared(volume, points)
    if backend == "triton":
        return torch.ops.mim4d_triton.voxel_sample.default(volume, points, *options)
    return torch.ops.mim4d.voxel_sample.default(volume, points, *options)


def voxel_sample_with_grad(
    volume: Tensor,
    points: Tensor,
    *,
    mode: str = "trilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> tuple[Tensor, Tensor]:
    """Read a voxel volume at points, and its derivative by the point: what the normal of a signed distance field needs.

    Arguments and errors as :func:`voxel_sample`. Returns features (B, ..., C) and their Jacobian (B, ..., C, 3) with
    respect to the normalised (x, y, z), both in the volume's dtype and differentiable in ``volume`` and ``points``.
    Where an axis is clamped (``border``) the derivative along it is 0; on a voxel centre, where trilinear reading has a
    kink, it is that of the side of the larger coordinate.
    """
    args = _checked("voxel_sample_with_grad", volume, points, mode, padding_mode, align_corners)
    if backends.choose("voxel_sample_with_grad", device=volume.device, dtype=volume.dtype, mode=mode) == "reference":
        return reference.voxel_sample_with_grad(*args)
    volume, points, *options = args
    return torch.ops.mim4d.voxel_sample_with_grad.default(shared(volume, points), points, *options)


def _checked(
    op: str, volume: Tensor, points: Tensor, mode: str, padding_mode: str, align_corners: bool
) -> tuple[Tensor, Tensor, int, int, bool]:
    """The arguments as the dispatcher takes them: points widened where autocast made them half, names as ints."""
    _check.tensor(op, "volume", volume, "B", "C", "Z", "Y", "X")
    if min(volume.shape[2:]) < 1:
        raise ValueError(f"mim4d.ops.{op}: volume has shape {tuple(volume.shape)}, wanted at least one voxel")
    if not isinstance(points, Tensor):
        raise TypeError(f"mim4d.ops.{op}: points is {type(points).__name__}, wanted a Tensor")
    if points.dim() < 2 or points.shape[-1] != 3 or points.shape[0] != volume.shape[0]:
        raise ValueError(f"mim4d.ops.{op}: points has shape {tuple(points.shape)}, wanted ({volume.shape[0]}, ..., 3)")
    _check.floating(op, "volume", volume)
    _check.device(op, "points", points, volume.device, "volume")
    wanted = torch.float64 if volume.dtype == torch.float64 else torch.float32
    points = _check.coordinates(op, "points", points, wanted, f"with a volume of {volume.dtype}")
    return volume, points, mode_id(op, mode), padding_id(op, padding_mode), bool(align_corners)


# ---- fakes: shapes, strides and dtypes of the results, without computing


def _fake(volume: Tensor, points: Tensor, *_: Any) -> Tensor:
    return volume.new_empty(*points.shape[:-1], volume.shape[1])


def _fake_backward(grad: Tensor, volume: Tensor, points: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    *_, mask = options
    return like_volume(volume, mask[0]), like(points, mask[1])


def _fake_double_backward(
    _ggv: Tensor | None, _ggp: Tensor | None, grad: Tensor, volume: Tensor, points: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *_, mask = options
    return like(grad, mask[0]), like_volume(volume, mask[1]), like(points, mask[2])


def _fake_with_grad(volume: Tensor, points: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (*points.shape[:-1], volume.shape[1])
    return volume.new_empty(shape), volume.new_empty(*shape, 3)


def _fake_with_grad_backward(
    _features: Tensor | None, _jacobian: Tensor | None, volume: Tensor, points: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    *_, mask = options
    return like_volume(volume, mask[0]), like(points, mask[1])


# ---- autograd: each formula calls the op of the next order


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    volume, points, *ctx.options = inputs
    ctx.save_for_backward(volume, points)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    return _first_order(torch.ops.mim4d.voxel_sample_backward.default, ctx, grad)


def _backward_triton(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    return _first_order(torch.ops.mim4d_triton.voxel_sample_backward.default, ctx, grad)


def _first_order(op: Any, ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    mask = asked(ctx, 2)
    if grad is None:
        return None, None, None, None, None
    found = op(grad, *ctx.saved_tensors, *ctx.options, mask)
    return *wanted(found, mask), None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, volume, points, *ctx.options, _ = inputs
    ctx.save_for_backward(grad, volume, points)
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, ggv: Tensor | None, ggp: Tensor | None) -> tuple[Any, ...]:
    mask = asked(ctx, 3)
    found = torch.ops.mim4d.voxel_sample_double_backward.default(ggv, ggp, *ctx.saved_tensors, *ctx.options, mask)
    return *wanted(found, mask), None, None, None, None


def _backward_with_grad(ctx: Any, features: Tensor | None, jacobian: Tensor | None) -> tuple[Any, ...]:
    mask = asked(ctx, 2)
    found = torch.ops.mim4d.voxel_sample_with_grad_backward.default(
        features, jacobian, *ctx.saved_tensors, *ctx.options, mask
    )
    return *wanted(found, mask), None, None, None


_ARGS = "Tensor volume, Tensor points, int mode, int padding_mode, bool align_corners"

define(
    f"voxel_sample({_ARGS}) -> Tensor",
    reference=reference.voxel_sample,
    fake=_fake,
    backward=_backward,
    setup_context=_setup,
)
define(
    f"voxel_sample_backward(Tensor grad, {_ARGS}, bool[2] mask) -> (Tensor, Tensor)",
    reference=reference.voxel_sample_backward,
    fake=_fake_backward,
    backward=_double_backward,
    setup_context=_setup_backward,
)
define(
    "voxel_sample_double_backward(Tensor? grad_grad_volume, Tensor? grad_grad_points, Tensor grad,"
    f" {_ARGS}, bool[3] mask) -> (Tensor, Tensor, Tensor)",
    reference=reference.voxel_sample_double_backward,
    fake=_fake_double_backward,
)
define(
    f"voxel_sample_with_grad({_ARGS}) -> (Tensor, Tensor)",
    reference=reference.voxel_sample_with_grad,
    fake=_fake_with_grad,
    backward=_backward_with_grad,
    setup_context=_setup,
)
define(
    f"voxel_sample_with_grad_backward(Tensor? grad_features, Tensor? grad_jacobian, {_ARGS}, bool[2] mask)"
    " -> (Tensor, Tensor)",
    reference=reference.voxel_sample_with_grad_backward,
    fake=_fake_with_grad_backward,
)


# ---- Triton: the second derivative is that of mim4d::voxel_sample_backward


def _triton(*args: Any) -> Tensor:
    from ..kernels import voxel_sample as kernels

    return kernels.voxel_sample(*args)


def _triton_backward(*args: Any) -> tuple[Tensor, Tensor]:
    from ..kernels import voxel_sample as kernels

    return kernels.voxel_sample_backward(*args)


define_triton(
    f"voxel_sample({_ARGS}) -> Tensor",
    kernel=_triton,
    fake=_fake,
    backward=_backward_triton,
    setup_context=_setup,
)
define_triton(
    f"voxel_sample_backward(Tensor grad, {_ARGS}, bool[2] mask) -> (Tensor, Tensor)",
    kernel=_triton_backward,
    fake=_fake_backward,
    backward=_double_backward,
    setup_context=_setup_backward,
)


# ---- backends


for _op in ("voxel_sample", "voxel_sample_with_grad"):
    backends.register(_op, "cpu", backends.reads_floats)
    backends.register(_op, "cuda", backends.reads_floats)
backends.register("voxel_sample", "triton", backends.adds_in_any_order)
