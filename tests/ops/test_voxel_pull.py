"""``voxel_pull``: what is true of it alone. ``test_contract.py`` has the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.infos.voxel_pull import INFO
from helpers.memory import peak_bytes
from helpers.simt import emulated
from torch import Tensor

import mim4d.ops as ops
from mim4d import _library

RAW = torch.ops.mim4d.voxel_pull.default


def by_wrapper(features: list[Tensor], depth: list[Tensor], uvd: Tensor) -> Tensor:
    with ops.use_backend("reference"):
        return ops.voxel_pull(features, depth, uvd)


def raw(features: list[Tensor], depth: list[Tensor], uvd: Tensor) -> Tensor:
    return RAW(features, depth, uvd)


PATHS = pytest.mark.parametrize("run", [by_wrapper, raw], ids=["reference", "dispatcher"])


@PATHS
def test_only_strictly_inside_counts(run: Callable[..., Tensor]) -> None:
    """On the very border nothing is seen, a hair inside half a cell's weight is; NaN and far away are nothing."""
    inside = 1 - 2**-20
    places = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0), (inside, 0.0, 0.0)]
    places += [(0.0, 0.0, -inside), (float("nan"), 0.0, 0.0), (0.0, 1e30, 0.0), (0.0, 0.0, float("-inf"))]
    uvd = torch.tensor(places).view(1, 1, -1, 3).requires_grad_()
    features, depth = [torch.full((1, 1, 2, 4, 4), 3.0)], [torch.full((1, 1, 4, 4, 4), 0.5)]
    out = run(features, depth, uvd)
    # At a face both readings keep half of their weight in x or y; the depth bin alone in depth.
    want = torch.tensor([1.5, 0, 0, 0, 1.5 / 4, 1.5 / 2, 0, 0, 0]).expand(1, 2, -1)
    torch.testing.assert_close(out, want, rtol=1e-4, atol=0)
    (slope,) = torch.autograd.grad(out.sum(), uvd)
    assert slope.isfinite().all()
    assert not slope[0, 0, [1, 2, 3, 6, 7, 8]].any()


@PATHS
def test_cameras_and_levels_add(run: Callable[..., Tensor]) -> None:
    features, depth, uvd = INFO.sample("", {}).args
    parts = [
        run([f[:, n : n + 1]], [d[:, n : n + 1]], uvd[:, n : n + 1])
        for n in range(3)
        for f, d in zip(features, depth, strict=True)
    ]
    torch.testing.assert_close(run(features, depth, uvd), torch.stack(parts).sum(0), rtol=1e-12, atol=1e-12)


@PATHS
def test_result_is_a_volume_without_a_copy(run: Callable[..., Tensor]) -> None:
    features, depth, uvd = INFO.sample("", {"V": 24}).args
    volume = run(features, depth, uvd).view(2, 4, 2, 3, 4)
    assert volume.is_contiguous(memory_format=torch.channels_last_3d)


# ---- the C++ kernels


def scene() -> tuple[list[Tensor], list[Tensor], Tensor]:
    sizes = {"V": 300, "C": 40, "sizes": ((17, 9), (8, 5)), "reach": 1.1}
    features, depth, uvd = INFO.cast(INFO.sample("", sizes), torch.float32).values()
    return [f.requires_grad_() for f in features], [d.requires_grad_() for d in depth], uvd.requires_grad_()


@pytest.mark.skipif(("voxel_pull", "cpu") in _library.absent, reason="ops_cpu is not built")
def test_the_number_of_threads_changes_no_bit() -> None:
    """More threads share out bands of rows: places that reach over their edges are computed twice."""
    features, depth, uvd = scene()
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5, 16):
            torch.set_num_threads(n)
            out = ops.voxel_pull(features, depth, uvd)
            found.append([out.detach(), *torch.autograd.grad(out.square().sum(), (*features, *depth, uvd))])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(other, found[0], strict=True))


@pytest.mark.skipif(("voxel_pull", "cpu") in _library.absent, reason="ops_cpu is not built")
def test_nothing_of_the_size_of_all_views_is_made() -> None:
    """Fresh memory of a call: its results, and copies of the features and their gradients as rows of channels."""
    features, depth, uvd = scene()
    rows, bins = sum(f.nbytes for f in features), sum(d.nbytes for d in depth)
    out = ops.voxel_pull(features, depth, uvd)
    grad = torch.ones(2, 300, 40).transpose(1, 2)
    forward = peak_bytes(lambda: ops.voxel_pull(features, depth, uvd))
    backward = peak_bytes(lambda: torch.autograd.grad(out, (*features, *depth), grad, retain_graph=True))
    slack = 1 << 14  # what autograd and the profiler note themselves
    assert out.nbytes <= forward <= out.nbytes + rows + slack
    assert rows + bins <= backward <= 3 * rows + bins + slack


@pytest.mark.skipif(("voxel_pull", "cpu") in _library.absent, reason="ops_cpu is not built")
def test_any_number_of_levels(request: pytest.FixtureRequest) -> None:
    """The CUDA kernels have theirs as parameters: they take 16, and say so."""
    features, depth, uvd = INFO.sample("", {"sizes": ((2, 3),) * 17}).args
    torch.testing.assert_close(ops.voxel_pull(features, depth, uvd), by_wrapper(features, depth, uvd))
    with emulated(request.config.getoption("--simt")):
        torch.testing.assert_close(
            ops.voxel_pull(features[:16], depth[:16], uvd), by_wrapper(features[:16], depth[:16], uvd)
        )
        with pytest.raises(RuntimeError, match="17 levels, and the CUDA kernels take at most 16"):
            ops.voxel_pull(features, depth, uvd)


def test_forty_wrong_calls_are_named() -> None:
    """``test_contract.py`` makes each of them."""
    calls = INFO.wrong()
    assert len({call.name for call in calls}) == len(calls) >= 40
