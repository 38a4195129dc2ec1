"""``voxel_pool``: lift-splat without the outer product. All that torch knows of the op is in this file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._library import define, define_triton
from ..reference import voxel_pool as reference
from . import _check
from ._formula import like, wanted

_LIMIT = 2**31 - 1  # points and rows are counted in int32


@dataclass(frozen=True, eq=False)
class PoolIndex:
    """The points of :func:`voxel_pool`, sorted by the voxel that they fall into: made by :func:`build_pool_index` and
    kept by the caller as long as calibration stands still."""

    cells: Tensor  # (B, N, D, H, W) int32 as given
    points: Tensor  # (B*N*D*H*W,) int32 points, flat as in ``cells``, sorted by (b, cell); the dropped ones last
    starts: Tensor  # (B*Z*Y*X + 1,) int32 where the points of each cell begin, then where the dropped ones do
    grid_shape: tuple[int, int, int]  # (Z, Y, X)


def build_pool_index(cells: Tensor, grid_shape: Sequence[int]) -> PoolIndex:
    """Sort the points of :func:`voxel_pool` by voxel. The sort is stable, so sums keep one order.

    Args:
        cells: (B, N, D, H, W) int32, linear cell ``(z*Y+y)*X+x`` of each point, or -1: dropped.
        grid_shape: (Z, Y, X).

    Raises:
        TypeError, ValueError: a wrong dtype or shape; on the CPU (or under ``MIM4D_CHECK=1``) a cell that is neither -1
            nor in the grid. On a GPU such a cell is dropped.
    """
    op = "build_pool_index"
    shape = _grid_shape(op, grid_shape)
    _check_cells(op, cells, shape)
    return _sorted(cells, shape, backends.choose(op, device=cells.device))


def voxel_pool(depth_probs: Tensor, features: Tensor, cells: Tensor | PoolIndex, grid_shape: Sequence[int]) -> Tensor:
    """Spread the features of pixels over the points of their rays and collect them in voxels (Lift, Splat, Shoot).

    Each point (b,n,d,h,w) brings ``depth_probs * features`` to its voxel; the product over all points is never made.

    Args:
        depth_probs: (B, N, D, H, W) weights of D depth bins for N cameras, floating.
        features: (B, N, C, H, W), floating; on the device of ``depth_probs``, possibly of another dtype.
        cells: (B, N, D, H, W) int32, linear cell ``(z*Y+y)*X+x`` of each point or -1 (dropped); or the
            :class:`PoolIndex` of it, which saves the sort.
        grid_shape: (Z, Y, X).

    Returns:
        (B, C, Z, Y, X), stored channels last, in the dtype of ``features``; summed in the wider of both dtypes, at
        least float32, in one fixed order. Differentiable once in ``depth_probs`` and ``features``.

    Raises:
        TypeError, ValueError: an argument of a wrong type, dtype, shape or device, or as :func:`build_pool_index`.
    """
    op = "voxel_pool"
    _check.tensor(op, "depth_probs", depth_probs, "B", "N", "D", "H", "W")
    B, N, _, H, W = depth_probs.shape
    _check.tensor(op, "features", features, B, N, "C", H, W)
    for name, t in (("depth_probs", depth_probs), ("features", features)):
        _check.floating(op, name, t)
        _check.device(op, name, t, depth_probs.device, "depth_probs")
    shape = _grid_shape(op, grid_shape)
    if isinstance(cells, PoolIndex):
        _check_index(op, cells, shape)
    else:
        _check_cells(op, cells, shape)
    given = cells.cells if isinstance(cells, PoolIndex) else cells
    _check.tensor(op, "cells", given, *depth_probs.shape)
    _check.device(op, "cells", given, depth_probs.device, "depth_probs")
    backend = backends.choose(op, device=features.device, dtype=features.dtype)
    index = cells if isinstance(cells, PoolIndex) else _sorted(cells, shape, backend)
    args = (depth_probs, features, index.cells, index.points, index.starts, list(shape))
    if backend == "reference":
        return reference.voxel_pool(*args)
    if backend == "triton":
        return torch.ops.mim4d_triton.voxel_pool.default(*args)
    return torch.ops.mim4d.voxel_pool.default(*args)


def _sorted(cells: Tensor, shape: tuple[int, int, int], backend: str) -> PoolIndex:
    sort = reference.pool_index if backend == "reference" else torch.ops.mim4d.build_pool_index.default
    points, starts = sort(cells, list(shape))
    return PoolIndex(cells, points, starts, shape)


def _check_index(op: str, index: PoolIndex, shape: tuple[int, int, int]) -> None:
    if index.grid_shape != shape:
        raise ValueError(f"mim4d.ops.{op}: the PoolIndex is for grid_shape {index.grid_shape}, wanted {shape}")
    Z, Y, X = shape
    _check.tensor(op, "PoolIndex.cells", index.cells, "B", "N", "D", "H", "W")
    _check.tensor(op, "PoolIndex.points", index.points, index.cells.numel())
    _check.tensor(op, "PoolIndex.starts", index.starts, index.cells.shape[0] * Z * Y * X + 1)
    for name, t in (("cells", index.cells), ("points", index.points), ("starts", index.starts)):
        if t.dtype != torch.int32:
            raise TypeError(f"mim4d.ops.{op}: PoolIndex.{name} is {t.dtype}, wanted torch.int32")
        _check.device(op, f"PoolIndex.{name}", t, index.cells.device, "its cells")


def _check_cells(op: str, cells: Tensor, shape: tuple[int, int, int]) -> None:
    _check.tensor(op, "cells", cells, "B", "N", "D", "H", "W")
    if cells.dtype != torch.int32:
        raise TypeError(f"mim4d.ops.{op}: cells is {cells.dtype}, wanted torch.int32")
    Z, Y, X = shape
    rows = cells.shape[0] * Z * Y * X
    if max(rows, cells.numel()) >= _LIMIT:
        raise ValueError(
            f"mim4d.ops.{op}: cells has shape {tuple(cells.shape)} and grid_shape is {shape}, wanted fewer than 2^31 "
            f"points and cells"
        )
    if _check.readable(cells) and cells.numel():
        low, high = (int(x) for x in cells.aminmax())
        if low < -1 or high >= Z * Y * X:
            raise ValueError(f"mim4d.ops.{op}: cells lie in [{low}, {high}], wanted [-1, {Z * Y * X - 1}] for {shape}")


def _grid_shape(op: str, grid_shape: Sequence[int]) -> tuple[int, int, int]:
    wanted = "three sizes (Z, Y, X) of at least 1"
    shape = _check.converted(op, "grid_shape", grid_shape, _check.ints, wanted)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"mim4d.ops.{op}: grid_shape is {tuple(shape)}, wanted {wanted}")
    Z, Y, X = shape
    return Z, Y, X


def _fake_index(cells: Tensor, grid_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    Z, Y, X = grid_shape
    return cells.new_empty(cells.numel()), cells.new_empty(cells.shape[0] * Z * Y * X + 1)


def _fake(
    depth_probs: Tensor, features: Tensor, cells: Tensor, points: Tensor, starts: Tensor, grid_shape: Sequence[int]
) -> Tensor:
    shape = (features.shape[0], features.shape[2], *grid_shape)
    return torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=torch.channels_last_3d)


def _fake_backward(grad: Tensor, depth_probs: Tensor, features: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    *_, mask = args
    return like(depth_probs, mask[0]), like(features, mask[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.grid_shape = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    return _first_order(torch.ops.mim4d.voxel_pool_backward.default, ctx, grad)


def _backward_triton(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    return _first_order(torch.ops.mim4d_triton.voxel_pool_backward.default, ctx, grad)


def _first_order(op: Any, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None, None
    needs = list(ctx.needs_input_grad[:2])
    found = op(grad, *ctx.saved_tensors, ctx.grid_shape, needs)
    return *wanted(found, needs), None, None, None, None


_ARGS = "Tensor depth_probs, Tensor features, Tensor cells, Tensor points, Tensor starts, SymInt[] grid_shape"

define(
    "build_pool_index(Tensor cells, SymInt[] grid_shape) -> (Tensor, Tensor)",
    reference=reference.pool_index,
    fake=_fake_index,
)
define(
    f"voxel_pool({_ARGS}) -> Tensor",
    reference=reference.voxel_pool,
    fake=_fake,
    backward=_backward,
    setup_context=_setup,
)
define(
    f"voxel_pool_backward(Tensor grad, {_ARGS}, bool[2] mask) -> (Tensor, Tensor)",
    reference=reference.voxel_pool_backward,
    fake=_fake_backward,
)


# ---- Triton


def _triton(*args: Any) -> Tensor:
    from ..kernels import voxel_pool as kernels

    return kernels.voxel_pool(*args)


def _triton_backward(*args: Any) -> tuple[Tensor, Tensor]:
    from ..kernels import voxel_pool as kernels

    return kernels.voxel_pool_backward(*args)


define_triton(
    f"voxel_pool({_ARGS}) -> Tensor",
    kernel=_triton,
    fake=_fake,
    backward=_backward_triton,
    setup_context=_setup,
)
define_triton(
    f"voxel_pool_backward(Tensor grad, {_ARGS}, bool[2] mask) -> (Tensor, Tensor)",
    kernel=_triton_backward,
    fake=_fake_backward,
)


# ---- backends


def _index_can_run() -> str | None:
    return None


def _native_can_run(dtype: torch.dtype) -> str | None:
    return None  # all floating dtypes


for _backend in ("cpu", "cuda"):
    backends.register("build_pool_index", _backend, _index_can_run)
    backends.register("voxel_pool", _backend, _native_can_run)
backends.register("build_pool_index", "triton", _index_can_run)  # the op of the dispatcher sorts: on a GPU, torch
backends.register("voxel_pool", "triton", backends.reads_floats)
