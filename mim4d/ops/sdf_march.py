"""``sdf_march`` and ``sdf_sample``: a signed distance field rendered along rays. All that torch knows of both."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from .._library import define, define_triton
from ..reference import sdf_march as reference
from ..reference._autograd import as_kernel
from . import _check
from ._formula import like, like_volume, needed, wanted
from ._modes import mode_id, padding_id


class March(NamedTuple):
    """What :func:`sdf_march` returns, for B scenes, R rays each and S samples on each ray; scaled scene units."""

    rgb: Tensor  # (B, R, 3) sum w c, without background
    depth: Tensor  # (B, R) sum w t / (sum w + 1e-10), along the ray, unclipped
    opacity: Tensor  # (B, R) sum w
    sdf: Tensor  # (B, R, S) at the samples
    gradient: Tensor  # (B, R, S, 3) total derivative of sdf by the position, not normalised
    weights: Tensor  # (B, R, S) w


def sdf_march(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    edges: Tensor,
    sdf_weights: Sequence[Tensor],
    rgb_weights: Sequence[Tensor],
    inv_s: Tensor,
    *,
    aabb: Sequence[float],
    mode: str = "trilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    cos_anneal: float = 1.0,
) -> March:
    """Render a signed distance field (SDF) that two small networks read from a voxel volume, along rays.

    Section i of a ray reaches from ``edges[i]`` to ``edges[i+1]``; the field is read at its start t_i. A sample is read
    from the volume, decoded to an SDF and its total derivative, the normal, and to a colour; opacities follow NeuS
    (Wang et al. 2021, eq. 13, with the sharpness ``inv_s``) and are composited front to back. All lengths are in scaled
    scene units (metres times the scene's scale), all positions in the frame of the volume.

    Args:
        volume: (B, C, Z, Y, X) features over the box ``aabb``: float64, or float32, float16, bfloat16.
        origins, directions: (B, R, 3), directions of unit length: float64 for a float64 volume, else float32.
        edges: (B, R, S+1) distances along the rays, ascending, dtype as the origins. They carry no gradient.
        sdf_weights: the SDF decoder, ``[fc_p.weight (H,3), fc_p.bias (H,), then for each of at least two layers
            lin.weight (O,H), lin.bias (O,), fc_c.weight (H,C), fc_c.bias (H,)]``; O = H, in the last layer 1 + G: the
            SDF, then G geometry features. Softplus(beta=100) after all layers but the last.
        rgb_weights: the colour decoder, in the same order; its condition is [direction 3, feature C, normal 3,
            geometry G], its last layer has O = 3; ReLU between layers, sigmoid at the end.
        inv_s: 0-dim tensor, the sharpness s of the logistic opacity, 1 / scaled unit.
        aabb: xmin, ymin, zmin, xmax, ymax, zmax of the volume.
        mode, padding_mode, align_corners: how the volume is read, as :func:`voxel_sample`.
        cos_anneal: a in [0, 1]; 1: only surfaces that face the ray are opaque, 0: the start of training in NeuS.

    Returns:
        :class:`March`, in the dtype of the origins. Differentiable once in all tensors but the edges: the gradients
        contain the second-order terms that come with the normal, without ``create_graph``.

    Raises:
        TypeError, ValueError: an argument of a wrong type, dtype, shape, device or range.
    """
    op = "sdf_march"
    origins, directions = _check_rays(op, volume, origins, directions)
    B, R = origins.shape[:2]
    _check.tensor(op, "edges", edges, B, R, "S + 1")
    if edges.shape[2] == 0:
        raise ValueError(f"mim4d.ops.{op}: edges has shape {tuple(edges.shape)}, wanted (B, R, S + 1) with S >= 0")
    edges = _check.coordinates(op, "edges", edges, origins.dtype, "as origins")
    _check.device(op, "edges", edges, volume.device, "the volume")
    sdf_weights = _check_decoder(op, "sdf_weights", sdf_weights, volume, volume.shape[1], None)
    geometry = sdf_weights[-4].shape[0] - 1
    rgb_weights = _check_decoder(op, "rgb_weights", rgb_weights, volume, 6 + volume.shape[1] + geometry, 3)
    _check.tensor(op, "inv_s", inv_s)
    _check.floating(op, "inv_s", inv_s)
    _check.device(op, "inv_s", inv_s, volume.device, "the volume")
    cos_anneal = _check.converted(op, "cos_anneal", cos_anneal, float, "a number in [0, 1]")
    if not 0 <= cos_anneal <= 1:
        raise ValueError(f"mim4d.ops.{op}: cos_anneal is {cos_anneal}, wanted a number in [0, 1]")
    box = _check_aabb(op, aabb)
    options = (box, mode_id(op, mode), padding_id(op, padding_mode), bool(align_corners), cos_anneal)
    args = (volume, origins, directions, edges, sdf_weights, rgb_weights, inv_s, *options)
    backend = backends.choose(op, device=volume.device, dtype=volume.dtype, mode=mode)
    if backend == "reference":
        return March(*reference.sdf_march(*args))
    if backend == "triton":
        return March(*torch.ops.mim4d_triton.sdf_march.default(*args))
    return March(*torch.ops.mim4d.sdf_march.default(*args))


def sdf_sample(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    sdf_weights: Sequence[Tensor],
    *,
    aabb: Sequence[float],
    jitter: Tensor | None = None,
    n_uniform: int = 72,
    n_importance: int = 24,
    sharpness: float = 64.0,
    mode: str = "trilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """Choose where along its rays :func:`sdf_march` reads the field: equal sections, and more of them near surfaces.

    ``n_uniform`` equal sections of [near, far] are weighted by the opacity that their SDF gives them at a fixed
    sharpness; the inverse of the distribution of that weight places ``n_importance`` further samples (one round of the
    sampler of NeuS, section 6 of the method). A pure function without gradient.

    Args:
        volume, origins, directions, sdf_weights, aabb, mode, padding_mode, align_corners: as :func:`sdf_march`.
        near, far: (B, R) scaled scene units, dtype as the origins. far < near is taken as far = near.
        jitter: (B, R, 2) in [0, 1): moves the equal sections of a ray, and its importance samples. None: evaluation, no
            random numbers.
        n_uniform: at least 1. n_importance: at least 0.
        sharpness: of the opacity in this search, 1 / scaled unit.

    Returns:
        edges (B, R, n_uniform + n_importance + 1), ascending, in the dtype of the origins.

    Raises:
        TypeError, ValueError: an argument of a wrong type, dtype, shape, device or range.
    """
    op = "sdf_sample"
    origins, directions = _check_rays(op, volume, origins, directions)
    B, R = origins.shape[:2]
    limits = []
    for name, limit in (("near", near), ("far", far)):
        _check.tensor(op, name, limit, B, R)
        _check.device(op, name, limit, volume.device, "the volume")
        limits.append(_check.coordinates(op, name, limit, origins.dtype, "as origins"))
    sdf_weights = _check_decoder(op, "sdf_weights", sdf_weights, volume, volume.shape[1], None)
    if jitter is not None:
        _check.tensor(op, "jitter", jitter, B, R, 2)
        _check.floating(op, "jitter", jitter)
        _check.device(op, "jitter", jitter, volume.device, "the volume")
    for name, count, least in (("n_uniform", n_uniform, 1), ("n_importance", n_importance, 0)):
        if _check.converted(op, name, count, operator.index, "a whole number") < least:
            raise ValueError(f"mim4d.ops.{op}: {name} is {count}, wanted at least {least}")
    sharpness = _check.converted(op, "sharpness", sharpness, float, "a positive number")
    if not sharpness > 0:
        raise ValueError(f"mim4d.ops.{op}: sharpness is {sharpness}, wanted a positive number")
    rays = (volume, origins, directions, *limits, sdf_weights, _check_aabb(op, aabb), jitter)
    options = (n_uniform, n_importance, sharpness, mode_id(op, mode), padding_id(op, padding_mode))
    args: tuple[Any, ...] = (*rays, *options, bool(align_corners))
    backend = backends.choose(op, device=volume.device, dtype=volume.dtype, mode=mode)
    if backend == "reference":
        return reference.sdf_sample(*args)
    if backend == "triton":
        return torch.ops.mim4d_triton.sdf_sample.default(*args)
    return torch.ops.mim4d.sdf_sample.default(*args)


# ---- checks: refuse what no backend can run


def _check_rays(op: str, volume: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    _check.tensor(op, "volume", volume, "B", "C", "Z", "Y", "X")
    if 0 in volume.shape[1:]:
        raise ValueError(f"mim4d.ops.{op}: volume has shape {tuple(volume.shape)}, wanted C, Z, Y and X of at least 1")
    _check.floating(op, "volume", volume)
    wide = torch.float64 if volume.dtype == torch.float64 else torch.float32
    rays = []
    for name, t in (("origins", origins), ("directions", directions)):
        _check.tensor(op, name, t, volume.shape[0], "R" if name == "origins" else origins.shape[1], 3)
        _check.device(op, name, t, volume.device, "the volume")
        rays.append(_check.coordinates(op, name, t, wide, f"with a volume of {volume.dtype}"))
    return rays[0], rays[1]


def _check_decoder(op: str, name: str, value: object, volume: Tensor, condition: int, out: int | None) -> list[Tensor]:
    weights = _check.tensors(op, name, value)
    if len(weights) < 10 or (len(weights) - 2) % 4:
        raise ValueError(
            f"mim4d.ops.{op}: {name} holds {len(weights)} tensors, wanted 2 + 4 per layer, 2 layers or more"
        )
    _check.tensor(op, f"{name}[0]", weights[0], "H", 3)
    H = weights[0].shape[0]
    for i, t in enumerate(weights):
        last = i >= len(weights) - 4
        O: int | str = H if not last else out or "1 + G"
        shape = ((O, H), (O,), (H, condition), (H,))[(i - 2) % 4] if i >= 2 else ((H, 3), (H,))[i]
        _check.tensor(op, f"{name}[{i}]", t, *shape)
        _check.floating(op, f"{name}[{i}]", t, torch.float64 if volume.dtype == torch.float64 else torch.float32)
        _check.device(op, f"{name}[{i}]", t, volume.device, "the volume")
    if weights[-3].shape[0] != weights[-4].shape[0] or weights[-4].shape[0] == 0:
        got = tuple(weights[-4].shape), tuple(weights[-3].shape)
        raise ValueError(
            f"mim4d.ops.{op}: {name}[-4] and [-3] have shapes {got[0]} and {got[1]}, wanted (O, H) and (O,)"
        )
    return weights


def _check_aabb(op: str, aabb: Sequence[float]) -> list[float]:
    box = _check.converted(op, "aabb", aabb, _check.floats, "six numbers")
    ordered = len(box) == 6 and all(-math.inf < a < b < math.inf for a, b in zip(box[:3], box[3:], strict=True))
    if not ordered:
        raise ValueError(f"mim4d.ops.{op}: aabb is {box}, wanted xmin, ymin, zmin < xmax, ymax, zmax")
    return box


# ---- fakes


def _fake(volume: Tensor, origins: Tensor, directions: Tensor, edges: Tensor, *_: Any) -> tuple[Tensor, ...]:
    B, R, S = edges.shape[0], edges.shape[1], edges.shape[2] - 1
    shapes = (B, R, 3), (B, R), (B, R), (B, R, S), (B, R, S, 3), (B, R, S)
    return tuple(origins.new_empty(shape) for shape in shapes)


def _fake_backward(*args: Any) -> tuple[Any, ...]:
    volume, origins, directions, _edges, sdf_weights, rgb_weights, inv_s, *_options, mask = args[6:]
    return (
        like_volume(volume, mask[0]),
        like(origins, mask[1]),
        like(directions, mask[2]),
        [like(t, mask[3]) for t in sdf_weights],
        [like(t, mask[4]) for t in rgb_weights],
        like(inv_s, mask[5]),
    )


def _fake_sample(volume: Tensor, origins: Tensor, *args: Any) -> Tensor:
    n_uniform, n_importance = args[6], args[7]
    return origins.new_empty(*origins.shape[:2], n_uniform + n_importance + 1)


# ---- autograd


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    volume, origins, directions, edges, sdf_weights, rgb_weights, inv_s, *ctx.options = inputs
    ctx.count = len(sdf_weights)
    ctx.save_for_backward(volume, origins, directions, edges, inv_s, *sdf_weights, *rgb_weights)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    return _first_order(torch.ops.mim4d.sdf_march_backward.default, ctx, grads)


def _backward_triton(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    return _first_order(torch.ops.mim4d_triton.sdf_march_backward.default, ctx, grads)


def _first_order(op: Any, ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    volume, origins, directions, edges, inv_s, *weights = ctx.saved_tensors
    sdf_weights, rgb_weights = weights[: ctx.count], weights[ctx.count :]
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 2, 4, 5, 6)]
    inputs = (volume, origins, directions, edges, sdf_weights, rgb_weights, inv_s)
    mask = [needed(n) for n in needs]
    found = op(*grads, *inputs, *ctx.options, mask)
    by_ray, by_net = [wanted(f, n) for f, n in zip(found[:3], needs[:3], strict=True)], wanted(found[3:], needs[3:])
    return (*by_ray, None, *by_net, *(None for _ in ctx.options))


def _setup_sample(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mark_non_differentiable(output)
    ctx.lists = [[None] * len(x) if isinstance(x, (list, tuple)) and isinstance(x[0], Tensor) else None for x in inputs]


def _backward_sample(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    return tuple(ctx.lists)


_OPTIONS = "int mode, int padding_mode, bool align_corners"
_ARGS = (
    "Tensor volume, Tensor origins, Tensor directions, Tensor edges, Tensor[] sdf_weights, Tensor[] rgb_weights,"
    f" Tensor inv_s, float[] aabb, {_OPTIONS}, float cos_anneal"
)

_MARCH = f"sdf_march({_ARGS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
_MARCH_BACKWARD = (
    "sdf_march_backward(Tensor? grad_rgb, Tensor? grad_depth, Tensor? grad_opacity, Tensor? grad_sdf,"
    f" Tensor? grad_gradient, Tensor? grad_weights, {_ARGS}, bool[6] mask)"
    " -> (Tensor, Tensor, Tensor, Tensor[], Tensor[], Tensor)"
)
_SAMPLE = (
    "sdf_sample(Tensor volume, Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor[] sdf_weights,"
    f" float[] aabb, Tensor? jitter, int n_uniform, int n_importance, float sharpness, {_OPTIONS}) -> Tensor"
)

define(_MARCH, reference=reference.sdf_march, fake=_fake, backward=_backward, setup_context=_setup)
define(_MARCH_BACKWARD, reference=reference.sdf_march_backward, fake=_fake_backward)
define(
    _SAMPLE, reference=reference.sdf_sample, fake=_fake_sample, backward=_backward_sample, setup_context=_setup_sample
)


# ---- Triton: its backward is the reference, which computes the forward anew, in whatever mode


def _triton(*args: Any) -> tuple[Tensor, ...]:
    from ..kernels import sdf_march as kernels

    return kernels.sdf_march(*args)


def _triton_sample(*args: Any) -> Tensor:
    from ..kernels import sdf_march as kernels

    return kernels.sdf_sample(*args)


define_triton(_MARCH, kernel=_triton, fake=_fake, backward=_backward_triton, setup_context=_setup)
define_triton(_MARCH_BACKWARD, kernel=as_kernel(reference.sdf_march_backward), fake=_fake_backward)
define_triton(_SAMPLE, kernel=_triton_sample, fake=_fake_sample, backward=_backward_sample, setup_context=_setup_sample)


# ---- backends


for _op in ("sdf_march", "sdf_sample"):
    for _backend in ("cpu", "cuda", "triton"):
        backends.register(_op, _backend, backends.reads_floats)
