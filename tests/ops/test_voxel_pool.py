"""``voxel_pool`` and its index: what is true of them alone. ``test_contract.py`` has the rest."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers.infos.voxel_pool import INFO, oracle
from helpers.memory import peak_bytes
from helpers.simt import emulated
from torch import Tensor

import mim4d.ops as ops
from mim4d import _library

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


# ---- the C++ kernels


def scene(C: int = 40, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    depth, features, cells, _ = INFO.sample("", {"B": 3, "N": 2, "D": 37, "H": 5, "W": 9, "C": C}).args
    return depth.to(dtype).requires_grad_(), features.to(dtype).requires_grad_(), cells


@pytest.mark.skipif(("voxel_pool", "cpu") in _library.absent, reason="ops_cpu is not built")
def test_the_number_of_threads_changes_no_bit() -> None:
    depth, features, cells = scene()
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            index = ops.build_pool_index(cells, GRID)
            out = ops.voxel_pool(depth, features, index, GRID)
            grads = torch.autograd.grad(out.square().sum(), (depth, features))
            found.append([index.points, index.starts, out.detach(), *grads])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(other, found[0], strict=True))


@pytest.mark.skipif(("voxel_pool", "cpu") in _library.absent, reason="ops_cpu is not built")
def test_no_outer_product_is_made() -> None:
    """Fresh memory of a call: its results, and copies of the features and their gradient as rows of channels."""
    depth, features, cells = scene(C=64)
    index = ops.build_pool_index(cells, (4, 20, 20))
    volume = 3 * 4 * 20 * 20 * 64 * 4
    out = ops.voxel_pool(depth, features, index, (4, 20, 20))
    grad = torch.ones_like(out)
    forward = peak_bytes(lambda: ops.voxel_pool(depth, features, index, (4, 20, 20)))
    backward = peak_bytes(lambda: torch.autograd.grad(out, (depth, features), grad, retain_graph=True))
    given = depth.nbytes + features.nbytes
    slack = 1 << 14  # what autograd and the profiler note themselves
    assert volume <= forward <= volume + features.nbytes + slack
    assert given <= backward <= given + 2 * features.nbytes + slack
    assert forward + given + index.points.nbytes + index.starts.nbytes + cells.nbytes < (
        1.2 * (given + volume + index.points.nbytes + index.starts.nbytes + cells.nbytes)
    )


@pytest.mark.skipif(("voxel_pool", "cpu") in _library.absent, reason="ops_cpu is not built")
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_half_volume_is_no_float32_one_first(half: torch.dtype) -> None:
    """It is summed in float32 in slabs of some thousand cells; their ends are nowhere to be seen."""
    grid = (4, 60, 60)
    depth, features, cells = scene(C=64)
    narrow, spread = features.detach().to(half), torch.where(cells < 0, -1, cells * 599)
    index = ops.build_pool_index(spread, grid)
    found = ops.voxel_pool(depth, narrow, index, grid)
    want = by_reference(depth, narrow, index, grid)
    torch.testing.assert_close(found, want, rtol=torch.finfo(half).eps, atol=1e-5)  # one unit in the last place
    assert peak_bytes(lambda: ops.voxel_pool(depth, narrow, index, grid)) < 1.25 * found.nbytes


def by_reference(*args: object) -> Tensor:
    with ops.use_backend("reference"):
        return ops.voxel_pool(*args)


@pytest.mark.skipif(("voxel_pool", "cpu") in _library.absent, reason="ops_cpu is not built")
@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_an_index_of_nonsense_is_not_followed(backend: str, request: pytest.FixtureRequest) -> None:
    """Below the wrapper: points and intervals that no sort could give read nothing out of bounds."""
    depth, features, cells = scene()
    index = ops.build_pool_index(cells, GRID)
    wild = torch.tensor([-5, 2**31 - 1, 2**30]).int().repeat(len(index.points))[: len(index.points)]
    starts = torch.where(torch.arange(len(index.starts)) % 2 == 0, -(2**31), 2**31 - 1).int()
    with emulated(request.config.getoption("--simt")) if backend == "simt" else nullcontext():
        assert not RAW(depth, features, cells, wild, index.starts, list(GRID)).any()
        assert RAW(depth, features, cells, index.points, starts, list(GRID)).shape == (3, 40, *GRID)  # of whatever
        grads = torch.autograd.grad(
            RAW(depth, features, cells.fill_(2**30), index.points, index.starts, list(GRID)).sum(), (depth, features)
        )
        assert not any(g.any() for g in grads)
        for bad in (index.points[1:], index.points.long(), index.points[None]):
            with pytest.raises(RuntimeError, match="points and starts"):
                RAW(depth, features, cells, bad, index.starts, list(GRID))


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 375, 44250, 2**16 - 1, 2**20, 2**30 + 1, 2**31 - 1])
def test_division_by_a_product(divisor: int, divide: ctypes.CDLL) -> None:
    """Quotients change at multiples of the divisor: these and their neighbours, up to the largest number of points."""
    top = 2**31 - 1
    multiples = {k * divisor for k in (0, 1, 2, 3, 1000, top // divisor // 2, top // divisor)}
    for x in sorted({m + step for m in multiples for step in (-1, 0, 1)} | {top}):
        if 0 <= x <= top:
            assert divide.quotient(ctypes.c_int64(x), ctypes.c_int64(divisor)) == x // divisor, x


@pytest.fixture(scope="module")
def divide(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """csrc/math/divide.h behind a C function."""
    folder = tmp_path_factory.mktemp("divide")
    source = folder / "divide.cpp"
    source.write_text(
        '#include "math/divide.h"\n'
        'extern "C" int64_t quotient(int64_t x, int64_t by) { return mim4d::math::Divider(by)(x); }\n'
    )
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler is not None, "a C++ compiler is not installed"
    options = ["-std=c++20", "-O2", "-shared", "-fPIC", f"-I{Path(__file__).parents[2] / 'csrc'}"]
    subprocess.run([compiler, *options, str(source), "-o", str(folder / "divide.so")], check=True)
    library = ctypes.CDLL(str(folder / "divide.so"))
    library.quotient.restype = ctypes.c_int64
    return library


def test_forty_wrong_calls_are_named() -> None:
    """``test_contract.py`` makes each of them."""
    calls = INFO.wrong()
    assert len({call.name for call in calls}) == len(calls) >= 40
