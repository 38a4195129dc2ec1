"""``SmoothSampler`` against the formula of the published package, in stock torch, and against ``grid_sample``."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mim4d import ops
from mim4d.nn import SmoothSampler

PADDINGS = ("zeros", "border", "reflection")
each_padding = pytest.mark.parametrize("padding", PADDINGS)
each_align = pytest.mark.parametrize("align", [False, True])
each_smooth = pytest.mark.parametrize("smooth", [False, True])


def published(volume: Tensor, grid: Tensor, padding: str, align: bool, smooth: bool) -> Tensor:
    """grid_sample's positions and corners, with t*t*(3-2t) in the place of the fraction t where asked. All of it is
    torch, so that autograd gives every derivative."""
    axes = []
    for coordinate, size in zip(grid.unbind(-1), volume.shape[:1:-1], strict=True):  # x, y, z
        p = (coordinate + 1) / 2 * (size - 1) if align else ((coordinate + 1) * size - 1) / 2
        if padding == "reflection":  # between the centres of the outer voxels, or between their outer faces
            low, span = (0.0, size - 1.0) if align else (-0.5, float(size))
            p = (p - low).abs()
            turns, rest = torch.div(p.detach(), span, rounding_mode="floor"), torch.fmod(p, span)
            p = torch.where(turns % 2 == 0, rest, span - rest) + low
        if padding != "zeros":
            p = p.clamp(0, size - 1)
        low = p.detach().floor()
        t = p - low
        s = t * t * (3 - 2 * t) if smooth else t
        axes.append([(low.long(), 1 - s), (low.long() + 1, s)])
    out = torch.zeros((), dtype=volume.dtype)
    batch = torch.arange(volume.shape[0]).view(-1, 1, 1, 1)
    for corner in itertools.product(*axes):
        (x, wx), (y, wy), (z, wz) = corner
        inside = torch.ones_like(x, dtype=torch.bool)
        for cell, size in zip((x, y, z), volume.shape[:1:-1], strict=True):
            inside = inside & (cell >= 0) & (cell < size)
        cell = [c.clamp(0, size - 1) for c, size in zip((x, y, z), volume.shape[:1:-1], strict=True)]
        voxels = volume.movedim(1, -1)[batch, cell[2], cell[1], cell[0]]  # (N, D_out, H_out, W_out, C)
        out = out + (wx * wy * wz * inside).unsqueeze(-1) * voxels
    return out.movedim(-1, 1)


def inputs() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    volume = torch.randn(2, 3, 3, 4, 5, generator=g, dtype=torch.float64)
    grid = torch.rand(2, 2, 3, 7, 3, generator=g, dtype=torch.float64) * 3.6 - 1.8  # in and around the volume
    return volume.requires_grad_(), grid.requires_grad_()


def derivatives(out: Tensor, volume: Tensor, grid: Tensor) -> tuple[Tensor, ...]:
    """First derivatives, and the second ones that a loss on the first has."""
    g = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out.shape, generator=g, dtype=out.dtype).requires_grad_()
    first = torch.autograd.grad(out, (volume, grid), cotangent, create_graph=True)
    loss = sum((torch.randn(f.shape, generator=g, dtype=f.dtype) * f).sum() for f in first)
    return *first, *torch.autograd.grad(loss, (cotangent, volume, grid))


@each_padding
@each_align
@each_smooth
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_same_result_and_derivatives_as_published(padding: str, align: bool, smooth: bool, backend: str) -> None:
    volume, grid = inputs()
    want = published(volume, grid, padding, align, smooth)
    wants = derivatives(want, volume, grid)
    if backend == "auto":
        got = SmoothSampler.apply(volume, grid, padding, align, smooth)
    else:
        with ops.use_backend(backend):
            got = SmoothSampler.apply(volume, grid, padding, align, smooth)
    assert got.shape == (2, 3, 2, 3, 7)
    assert got.is_contiguous()
    for found, expected in zip((got, *derivatives(got, volume, grid)), (want, *wants), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)  # measured 2e-14


@each_padding
@each_align
def test_without_smoothstep_it_is_grid_sample(padding: str, align: bool) -> None:
    volume, grid = inputs()
    ours = SmoothSampler.apply(volume, grid, padding, align, False)
    theirs = F.grid_sample(volume, grid, "bilinear", padding, align)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(ours)
    for got, want in zip(
        torch.autograd.grad(ours, (volume, grid), cotangent),
        torch.autograd.grad(theirs, (volume, grid), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_the_defaults_are_those_of_the_package() -> None:
    volume, grid = inputs()
    assert torch.equal(SmoothSampler.apply(volume, grid), SmoothSampler.apply(volume, grid, "zeros", True, False))


def test_an_unknown_padding_is_an_error_in_words() -> None:
    with pytest.raises(ValueError, match="padding_mode is 'wrap'"):
        SmoothSampler.apply(*inputs(), "wrap")


@each_smooth
def test_it_compiles_whole(smooth: bool) -> None:
    volume, grid = (t.detach() for t in inputs())
    compiled = torch.compile(lambda v, g: SmoothSampler.apply(v, g, "zeros", False, smooth), fullgraph=True)
    torch.testing.assert_close(compiled(volume, grid), SmoothSampler.apply(volume, grid, "zeros", False, smooth))
