"""``voxel_pool`` and its index: what is true of them alone. ``test_contract.py`` has the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.infos.voxel_pool import INFO, oracle
from torch import Tensor

import mim4d.ops as ops

RAW = torch.ops.mim4d.voxel_pool.default
GRID = (2, 3, 4)
CELLS = 24


def by_wrapper(depth: Tensor, features: Tensor, cells: Tensor | ops.PoolIndex) -> Tensor:
    with ops.use_backend("reference"):
        return ops.voxel_pool(depth, features, cells, GRID)


def raw(depth: Tensor, features: Tensor, cells: Tensor | ops.PoolIndex) -> Tensor:
    index = cells if isinstance(cells, ops.PoolIndex) else ops.build_pool_index(cells, GRID)
    return RAW(depth, features, index.cells, index.points, index.starts, list(GRID))


PATHS = pytest.mark.parametrize("run", [by_wrapper, raw], ids=["reference", "dispatcher"])


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
def test_one_voxel_takes_everything(run: Callable[..., Tensor]) -> None:
    depth, features, cells, _ = INFO.sample("", {}).args
    out = run(depth, features, torch.full_like(cells, 17))
    total = (depth.sum(2, keepdim=True) * features).sum((1, 3, 4))  # (B, C)
    torch.testing.assert_close(out.flatten(2)[..., 17], total)
    assert out.count_nonzero() == total.numel()


@PATHS
def test_index_is_reused(run: Callable[..., Tensor]) -> None:
    depth, features, cells, _ = INFO.sample("", {}).args
    index = ops.build_pool_index(cells, GRID)
    assert index.grid_shape == GRID
    for seed in (0, 1):
        depth, features, *_ = INFO.sample("", {}, seed).args
        torch.testing.assert_close(run(depth, features, index), oracle(depth, features, cells, GRID))


def test_index_is_sorted() -> None:
    cells = INFO.sample("", {}).args[2]
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
    depth, features, cells = list(INFO.cast(INFO.sample("", {}), torch.float32).values())[:3]
    narrow = features.to(half)
    want = by_wrapper(depth, narrow.float(), cells).to(half)
    inputs = [depth.requires_grad_(), narrow.requires_grad_()]
    out = run(depth, narrow, cells)
    torch.testing.assert_close(out, want, rtol=0, atol=0)
    assert [g.dtype for g in torch.autograd.grad(out.sum(), inputs)] == [torch.float32, half]
    assert run(depth.to(half), narrow, cells).dtype == half
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(run(depth, narrow, cells), want, rtol=0, atol=0)


def test_second_order_through_the_reference() -> None:
    depth, features, cells, _ = INFO.sample("", {"B": 1, "N": 1, "D": 2, "H": 1, "W": 2, "C": 2}).args
    inputs = (depth.requires_grad_(), features.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda d, f: by_wrapper(d, f, cells), inputs)


def test_a_wrong_cell_is_dropped_where_nobody_checks() -> None:
    """Below the wrapper, as on a GPU: what lies outside the grid is not followed."""
    from mim4d.reference.voxel_pool import pool_index

    depth, features, cells, _ = INFO.sample("", {}).args
    wrong = torch.where(cells < 0, 10_000, cells)
    wrong[0, 0, 0] = -7
    right = cells.clone()
    right[0, 0, 0] = -1
    out = RAW(depth, features, wrong, *pool_index(wrong, GRID), list(GRID))
    torch.testing.assert_close(out, oracle(depth, features, right, GRID))
