"""View transforms over more than 2^31 elements, of which only the rows that are read are in memory."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from helpers import simt
from torch import Tensor

from mim4d import ops

C = 512


def untouched(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:
        pytest.skip(f"this machine gives no such address space: {error}")


def running(request: pytest.FixtureRequest, backend: str) -> object:
    return simt.emulated(request.config.getoption("--simt")) if backend == "simt" else nullcontext()


@pytest.mark.parametrize("backend", ["simt", "cpu"])
def test_voxel_pool_gathers_beyond_two_to_the_31(request: pytest.FixtureRequest, backend: str) -> None:
    grid = (2, 1500, 1500)
    count = 2 * 1500 * 1500
    rows = untouched(1, *grid, C)
    assert rows.numel() > 2**31
    where = torch.tensor([0, 1, count // 2, count - 2, count - 1, -1])
    g = torch.Generator().manual_seed(0)
    given = torch.randn(6, C, generator=g)
    rows.view(-1, C)[where[:5]] = given[:5]
    depth, features = torch.rand(1, 1, 6, 1, 1, generator=g), torch.randn(1, 1, C, 1, 1, generator=g)
    index = where.int().view(1, 1, 6, 1, 1), torch.arange(6).int(), untouched(count + 1, dtype=torch.int32)
    with running(request, backend):
        found = torch.ops.mim4d.voxel_pool_backward(
            rows.permute(0, 4, 1, 2, 3), depth, features, *index, list(grid), [True, True]
        )
    given[5] = 0  # dropped
    torch.testing.assert_close(found[0].flatten(), given @ features.flatten(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[1].flatten(), depth.flatten() @ given, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", ["simt", "cpu"])
def test_voxel_pull_reads_beyond_two_to_the_31(request: pytest.FixtureRequest, backend: str) -> None:
    H, W = 2050, 2052
    rows, depth = untouched(1, 1, H, W, C), torch.ones(1, 1, 1, H, W)
    assert rows.numel() > 2**31
    corners = torch.randn(2, 2, 2, C, generator=torch.Generator().manual_seed(0))
    rows[0, 0, :2, :2], rows[0, 0, -2:, -2:] = corners
    # in the middle of the first four pixels, and of the last four
    place = torch.tensor([[2 / W - 1, 2 / H - 1, 0.0], [1 - 2 / W, 1 - 2 / H, 0.0]]).view(1, 1, 2, 3)
    with running(request, backend):
        found = ops.voxel_pull([rows.permute(0, 1, 4, 2, 3)], [depth], place)
    # a place near 1 is told to 2^-24: to 1e-4 of a pixel
    torch.testing.assert_close(found[0].T, corners.mean((1, 2)), rtol=1e-3, atol=2e-3)
