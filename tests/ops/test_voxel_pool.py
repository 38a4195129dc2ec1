"""``voxel_pool`` against the outer product that it avoids, summed with ``index_add`` in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mim4d.ops as ops

RAW = torch.ops.mim4d.voxel_pool.default
GRID = (2, 3, 4)
CELLS = 24


def case(
    B: int = 2,
    N: int = 3,
    D: int = 5,
    H: int = 2,
    W: int = 3,
    C: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """depth_probs, features, cells; a fifth of the points dropped, some voxels crowded, some empty."""
    g = torch.Generator().manual_seed(seed)
    depth = torch.rand(B, N, D, H, W, generator=g, dtype=torch.float64).to(dtype)
    features = torch.randn(B, N, C, H, W, generator=g, dtype=torch.float64).to(dtype)
    cells = torch.randint(0, CELLS, (B, N, D, H, W), generator=g).square() // CELLS
    dropped = torch.rand(B, N, D, H, W, generator=g) < 0.2
    return depth, features, torch.where(dropped, -1, cells).int()


def by_wrapper(depth: Tensor, features: Tensor, cells: Tensor | ops.PoolIndex) -> Tensor:
    with ops.use_backend("reference"):
        return ops.voxel_pool(depth, features, cells, GRID)


def raw(depth: Tensor, features: Tensor, cells: Tensor | ops.PoolIndex) -> Tensor:
    index = cells if isinstance(cells, ops.PoolIndex) else ops.build_pool_index(cells, GRID)
    return RAW(depth, features, index.cells, index.points, index.starts, list(GRID))


PATHS = pytest.mark.parametrize("run", [by_wrapper, raw], ids=["reference", "dispatcher"])


def dense(depth: Tensor, features: Tensor, cells: Tensor) -> Tensor:
    B, C = features.shape[0], features.shape[2]
    product = depth.double()[:, :, None] * features.double()[:, :, :, None]  # (B, N, C, D, H, W)
    out = torch.zeros(B, CELLS + 1, C, dtype=torch.float64)
    for b in range(B):
        where = torch.where(cells[b] < 0, CELLS, cells[b]).long().flatten()
        out[b] = out[b].index_add(0, where, product[b].transpose(0, 1).reshape(C, -1).t())
    return out[:, :CELLS].transpose(1, 2).reshape(B, C, *GRID)


@PATHS
@pytest.mark.parametrize(
    "sizes", [{}, {"C": 1}, {"C": 33, "D": 7}, {"B": 1, "N": 1, "H": 1, "W": 1}, {"D": 1}, {"H": 1, "W": 13}]
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_against_the_outer_product(
    run: Callable[..., Tensor], sizes: dict[str, int], dtype: torch.dtype, tolerance: float
) -> None:
    depth, features, cells = case(**sizes, dtype=dtype)
    inputs = [depth.requires_grad_(), features.requires_grad_()]
    got, want = run(depth, features, cells), dense(depth, features, cells)
    assert got.shape == want.shape
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    cotangent = torch.randn(want.shape, dtype=dtype)
    pairs = (torch.autograd.grad(o, inputs, cotangent.to(o.dtype)) for o in (got, want))
    for x, y in zip(*pairs, strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x, y, rtol=10 * tolerance, atol=10 * tolerance)


@PATHS
def test_gradcheck(run: Callable[..., Tensor]) -> None:
    depth, features, cells = case(B=2, N=1, D=3, H=1, W=2, C=2)
    assert torch.autograd.gradcheck(lambda d, f: run(d, f, cells), (depth.requires_grad_(), features.requires_grad_()))


@PATHS
def test_a_point_lands_in_its_voxel(run: Callable[..., Tensor]) -> None:
    """Cell (z*Y + y)*X + x is voxel [z, y, x], of its own item of the batch alone."""
    depth = torch.tensor([1.0, 0.25]).view(2, 1, 1, 1, 1)
    features = torch.tensor([[3.0, -1.0], [8.0, 4.0]]).view(2, 1, 2, 1, 1)
    cells = torch.tensor([(1 * 3 + 2) * 4 + 3, 0 * 12 + 1 * 4 + 2]).int().view(2, 1, 1, 1, 1)
    out = run(depth, features, cells)
    want = torch.zeros(2, 2, *GRID)
    want[0, :, 1, 2, 3] = torch.tensor([3.0, -1.0])
    want[1, :, 0, 1, 2] = torch.tensor([2.0, 1.0])
    assert torch.equal(out, want)


@PATHS
def test_all_dropped(run: Callable[..., Tensor]) -> None:
    depth, features, cells = case()
    inputs = [depth.requires_grad_(), features.requires_grad_()]
    out = run(depth, features, torch.full_like(cells, -1))
    assert not out.any()
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), inputs))


@PATHS
def test_one_voxel_takes_everything(run: Callable[..., Tensor]) -> None:
    depth, features, cells = case()
    out = run(depth, features, torch.full_like(cells, 17))
    total = (depth.sum(2, keepdim=True) * features).sum((1, 3, 4))  # (B, C)
    torch.testing.assert_close(out.flatten(2)[..., 17], total)
    assert out.count_nonzero() == total.numel()


@PATHS
@pytest.mark.parametrize("sizes", [{"B": 0}, {"N": 0}, {"D": 0}, {"H": 0}, {"C": 0}])
def test_empty(run: Callable[..., Tensor], sizes: dict[str, int]) -> None:
    depth, features, cells = case(**sizes)
    inputs = [depth.requires_grad_(), features.requires_grad_()]
    out = run(depth, features, cells)
    assert out.shape == (features.shape[0], features.shape[2], *GRID)
    assert not out.any()
    assert [g.shape for g in torch.autograd.grad(out.sum(), inputs)] == [depth.shape, features.shape]


@PATHS
def test_index_is_reused(run: Callable[..., Tensor]) -> None:
    depth, features, cells = case()
    index = ops.build_pool_index(cells, GRID)
    assert index.grid_shape == GRID
    for seed in (0, 1):
        depth, features, _ = case(seed=seed)
        torch.testing.assert_close(run(depth, features, index), dense(depth, features, cells))


def test_index_is_sorted() -> None:
    _, _, cells = case()
    index = ops.build_pool_index(cells, list(GRID))
    rows = torch.where(cells < 0, 2 * CELLS, cells + torch.arange(2).view(-1, 1, 1, 1, 1) * CELLS).flatten()
    ordered = rows[index.points.long()]
    assert (ordered.diff() >= 0).all()
    assert torch.equal(index.points.sort().values, torch.arange(cells.numel()).int())
    same = ordered.diff() == 0
    assert (index.points.diff()[same] > 0).all()  # stable: in the order of the points
    counts = torch.bincount(rows, minlength=2 * CELLS + 1)
    assert torch.equal(index.starts.long(), counts.cumsum(0) - counts)
    assert [index.points.dtype, index.starts.dtype] == [torch.int32, torch.int32]


@PATHS
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half(run: Callable[..., Tensor], half: torch.dtype) -> None:
    """Sums in float32 and rounds once; a float32 softmax may meet half features."""
    depth, features, cells = case(dtype=torch.float32)
    narrow = features.to(half)
    want = by_wrapper(depth, narrow.float(), cells).to(half)
    inputs = [depth.requires_grad_(), narrow.requires_grad_()]
    out = run(depth, narrow, cells)
    torch.testing.assert_close(out, want, rtol=0, atol=0)
    assert [g.dtype for g in torch.autograd.grad(out.sum(), inputs)] == [torch.float32, half]
    assert run(depth.to(half), narrow, cells).dtype == half
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(run(depth, narrow, cells), want, rtol=0, atol=0)


@PATHS
def test_layouts(run: Callable[..., Tensor]) -> None:
    depth, features, cells = case()
    want = run(depth, features, cells)
    depth = depth.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    features = features.transpose(0, 1).contiguous().transpose(0, 1)
    cells = cells.flip(1).contiguous().flip(1)
    torch.testing.assert_close(run(depth, features, cells), want, rtol=1e-12, atol=1e-12)


@PATHS
def test_same_bits_every_time(run: Callable[..., Tensor]) -> None:
    depth, features, cells = case(D=40, dtype=torch.float32)
    inputs = [depth.requires_grad_(), features.requires_grad_()]

    def once() -> tuple[Tensor, ...]:
        out = run(depth, features, cells)
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    assert all(torch.equal(x, y) for x, y in zip(once(), once(), strict=True))


# ---- contract with torch


def test_opcheck() -> None:
    depth, features, cells = case(dtype=torch.float32)
    index = ops.build_pool_index(cells, GRID)
    args = (depth.requires_grad_(), features.requires_grad_(), index.cells, index.points, index.starts, list(GRID))
    torch.library.opcheck(RAW, args)
    torch.library.opcheck(RAW, (depth.detach(), *args[1:]))


@pytest.mark.parametrize("mask", [[True, True], [False, True], [True, False]])
def test_opcheck_backward(mask: list[bool]) -> None:
    depth, features, cells = case(dtype=torch.float32)
    index = ops.build_pool_index(cells, GRID)
    grad = torch.randn(2, 4, *GRID)
    args = (grad, depth, features, index.cells, index.points, index.starts, list(GRID), mask)
    torch.library.opcheck(torch.ops.mim4d.voxel_pool_backward.default, args)


def test_second_order_through_the_op_is_refused_in_words() -> None:
    depth, features, cells = case()
    out = raw(depth.requires_grad_(), features.requires_grad_(), cells)
    (grad,) = torch.autograd.grad(out.sum(), [features], create_graph=True)
    with pytest.raises(RuntimeError, match="voxel_pool_backward has no derivative"):
        grad.sum().backward()


def test_second_order_through_the_reference() -> None:
    depth, features, cells = case(B=1, N=1, D=2, H=1, W=2, C=2)
    inputs = (depth.requires_grad_(), features.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda d, f: by_wrapper(d, f, cells), inputs)


def lift(depth: Tensor, features: Tensor, cells: Any) -> Tensor:
    return ops.voxel_pool(depth, features, cells, GRID).sin().sum()


@pytest.mark.parametrize("kept", [False, True], ids=["cells", "index"])
def test_compile(kept: bool) -> None:
    torch._dynamo.reset()
    depth, features, cells = case()
    given = ops.build_pool_index(cells, GRID) if kept else cells
    inputs = [depth.requires_grad_(), features.requires_grad_()]
    compiled = torch.compile(lift, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(depth, features, given), inputs) for f in (compiled, lift))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


DEPTH, FEATURES, INDEX = case()


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"depth_probs": DEPTH[0]}, ValueError, r"depth_probs has shape \(3, 5, 2, 3\), wanted \(B, N, D, H, W\)"),
        ({"features": FEATURES[:1]}, ValueError, r"features has shape \(1, 3, 4, 2, 3\), wanted \(2, 3, C, 2, 3\)"),
        ({"features": FEATURES.long()}, TypeError, r"features is torch\.int64, wanted a floating dtype"),
        ({"features": FEATURES.to("meta")}, ValueError, "features is on meta, wanted cpu as depth_probs"),
        ({"cells": INDEX.long()}, TypeError, r"cells is torch\.int64, wanted torch\.int32"),
        ({"cells": INDEX[:, :1]}, ValueError, r"cells has shape \(2, 1, 5, 2, 3\), wanted \(2, 3, 5, 2, 3\)"),
        ({"cells": INDEX + 3}, ValueError, r"cells lie in \[2, \d+\], wanted \[-1, 23\] for \(2, 3, 4\)"),
        ({"cells": INDEX - 1}, ValueError, r"cells lie in \[-2, \d+\], wanted \[-1, 23\] for \(2, 3, 4\)"),
        ({"cells": [1, 2]}, TypeError, "cells is list, wanted a Tensor"),
        ({"cells": ops.build_pool_index(INDEX, (4, 3, 2))}, ValueError, r"PoolIndex is for grid_shape \(4, 3, 2\)"),
        ({"grid_shape": (2, 3)}, ValueError, r"grid_shape is \(2, 3\), wanted three sizes"),
        ({"grid_shape": (0, 3, 4)}, ValueError, r"grid_shape is \(0, 3, 4\), wanted three sizes"),
        ({"grid_shape": (2048, 2048, 512)}, ValueError, r"wanted fewer than 2\^31 points and cells"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], words: str) -> None:
    INDEX[0, 0, 0, 0, 0], INDEX[0, 0, 0, 0, 1] = -1, 23
    args = {"depth_probs": DEPTH, "features": FEATURES, "cells": INDEX, "grid_shape": GRID}
    with pytest.raises(error, match=r"mim4d\.ops\.voxel_pool: .*" + words):
        ops.voxel_pool(**{**args, **change})


def test_errors_of_the_index() -> None:
    with pytest.raises(ValueError, match=r"mim4d\.ops\.build_pool_index: cells lie in \[-1, 24\]"):
        ops.build_pool_index(torch.tensor([-1, 24]).int().view(1, 1, 2, 1, 1), GRID)


def test_a_wrong_cell_is_dropped_where_nobody_checks() -> None:
    """Below the wrapper, as on a GPU: what lies outside the grid is not followed."""
    from mim4d.reference.voxel_pool import pool_index

    depth, features, cells = case()
    wrong = torch.where(cells < 0, 10_000, cells)
    wrong[0, 0, 0] = -7
    right = cells.clone()
    right[0, 0, 0] = -1
    out = RAW(depth, features, wrong, *pool_index(wrong, GRID), list(GRID))
    torch.testing.assert_close(out, dense(depth, features, right))


@PATHS
@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_a_dropped_point_asks_for_nothing(run: Callable[..., Tensor], odd: float) -> None:
    depth, features, cells = case(B=1)
    cells[0, 0], cells[0, 1, 2] = -1, -1
    features[0, 0], depth[0, 1, 2] = odd, odd
    depth.requires_grad_(), features.requires_grad_()
    out = run(depth, features, cells)
    by_depth, by_feature = torch.autograd.grad(out.sum(), (depth, features))
    assert all(t.isfinite().all() for t in (out, by_depth, by_feature))
    assert not by_depth[cells < 0].any()
