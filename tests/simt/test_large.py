"""Sizes that no other test has: offsets beyond 2^31 elements, in volumes of which only the read corners are in memory,
and more batch items than a grid has rows.

The operating system gives a page of such a tensor when it is first touched, so 8 GiB of addresses cost a few pages.
float32, because the reference and the CPU's kernel widen a half volume, all of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from helpers import simt
from torch import Tensor

from mim4d import ops

SIZES = {  # B, C, Z, Y, X
    "volume": (1, 8, 16, 4096, 4104),  # 2^31 + 4 Mi elements
    "slice": (1, 8, 2, 16384, 16400),  # so many in each z: the taps of one point lie that far apart
}


def far_volume(size: tuple[int, int, int, int, int]) -> Tensor:
    """Channels last, not initialised but for a few voxels around the last one and around the first."""
    B, C, Z, Y, X = size
    assert B * C * Z * Y * X > 2**31
    try:
        memory = torch.empty(B, Z, Y, X, C)
    except RuntimeError as error:
        pytest.skip(f"this machine gives no {B * C * Z * Y * X / 2**28:.1f} GiB of addresses: {error}")
    g = torch.Generator().manual_seed(0)
    for corner in (slice(0, 3), slice(-3, None)):
        memory[:, corner, corner, corner].normal_(generator=g)
    return memory.permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize("backend", ["simt", "cpu"])
@pytest.mark.parametrize("what", SIZES)
def test_voxel_sample_reads_beyond_two_to_the_31(request: pytest.FixtureRequest, what: str, backend: str) -> None:
    volume = far_volume(SIZES[what])
    sizes = torch.tensor(volume.shape[:1:-1])  # X, Y, Z
    corner = sizes.clamp(max=3)
    low = torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) * (corner - 1) * 0.95
    cells = torch.cat([low, sizes - corner + low])  # between the voxels of the two corners
    points = (2 * cells.double() / (sizes - 1) - 1).float()[None]

    def run(name: str) -> Tensor:
        with ops.use_backend(name):
            return ops.voxel_sample(volume, points, align_corners=True)

    emulator: AbstractContextManager[None] = nullcontext()
    if backend == "simt":
        emulator = simt.emulated(request.config.getoption("--simt"))
    with emulator:
        found = run("cpu")
    assert found.abs().mean() > 0.3  # the corners are not zero
    assert (found.double() - run("reference").double()).abs().max() < 2e-6  # measured 2.4e-7


def test_voxel_sample_with_more_items_than_a_grid_has_rows(request: pytest.FixtureRequest) -> None:
    """A grid has at most 65535 rows: its first blocks take a second item."""
    B, g = 65535 + 3, torch.Generator().manual_seed(0)
    volume = torch.randn(B, 1, 1, 1, 2, generator=g).requires_grad_()
    points = (torch.rand(B, 1, 3, generator=g) - 0.5).requires_grad_()

    def run(backend: str) -> tuple[Tensor, ...]:
        with ops.use_backend(backend):
            out = ops.voxel_sample(volume, points)
            return out.detach(), *torch.autograd.grad(out, (volume, points), torch.ones_like(out))

    with simt.emulated(request.config.getoption("--simt")):
        found = run("cpu")
    for got, want in zip(found, run("reference"), strict=True):
        assert (got - want).abs().max() < 2e-6  # measured 2.4e-7
