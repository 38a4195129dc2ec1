"""The call forms of BEVFusion and BEVDet against the formulas that they were published with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mim4d.nn import bev_pool, bev_pool_v2

B, N, D, H, W, C = 2, 3, 5, 2, 4, 6
Z, Y, X = 2, 5, 7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sorted_rows(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows in the order of their cells, as BEVFusion's caller has them: feats (P, C), coords (P, 4)."""
    g = generator()
    sizes = torch.tensor([Y, X, Z, B])
    coords = (torch.rand(200, 4, generator=g) * sizes).long()
    rank = ((coords[:, 0] * X + coords[:, 1]) * Z + coords[:, 2]) * B + coords[:, 3]
    order = rank.argsort()
    return torch.randn(200, C, generator=g, dtype=dtype)[order].requires_grad_(), coords[order]


@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bev_pool(dtype: torch.dtype, integers: torch.dtype) -> None:
    feats, coords = sorted_rows(dtype)
    i, j, d, b = coords.unbind(1)
    wanted = torch.zeros(B, Z, Y, X, C, dtype=torch.float64)
    wanted = wanted.index_put((b, d, i, j), feats.double(), accumulate=True).permute(0, 4, 1, 2, 3)
    found = bev_pool(feats, coords.to(integers), B, Z, Y, X)
    assert found.shape == (B, C, Z, Y, X)
    assert found.dtype == dtype
    bound = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found.double(), wanted, rtol=bound, atol=bound)
    seed = torch.randn(wanted.shape, generator=generator(1), dtype=torch.float64)
    (got,), (want,) = (torch.autograd.grad(v, feats, seed.to(v)) for v in (found, wanted))
    torch.testing.assert_close(got.double(), want.double(), rtol=bound, atol=bound)


def ranks() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As BEVDet's caller has them: points in the order of their cells, first and number of points of each cell."""
    points = torch.randperm(B * N * D * H * W, generator=generator(2))[:150]
    item = points // (N * D * H * W)
    cell = torch.randint(0, Z * Y * X, (150,), generator=generator(3)) + item * Z * Y * X
    order = cell.argsort(stable=True)
    points, cell = points[order], cell[order]
    pixel = points // (D * H * W) * (H * W) + points % (H * W)
    _, lengths = torch.unique_consecutive(cell, return_counts=True)
    starts = lengths.cumsum(0) - lengths
    return points.int(), pixel.int(), cell.int(), starts.int(), lengths.int()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bev_pool_v2(dtype: torch.dtype) -> None:
    depth = torch.rand(B, N, D, H, W, generator=generator(), dtype=dtype).requires_grad_()
    feat = torch.randn(B, N, H, W, C, generator=generator(1), dtype=dtype).requires_grad_()
    points, pixels, cells, starts, lengths = ranks()
    rows = []
    for first, count in zip(starts.tolist(), lengths.tolist(), strict=True):  # an interval at a time, as published
        part = slice(first, first + count)
        weight = depth.double().flatten()[points[part].long()]
        rows.append((weight[:, None] * feat.double().reshape(-1, C)[pixels[part].long()]).sum(0))
    volume = torch.zeros(B * Z * Y * X, C, dtype=torch.float64)
    volume = volume.index_put((cells[starts.long()].long(),), torch.stack(rows))
    wanted = volume.view(B, Z, Y, X, C).permute(0, 4, 1, 2, 3)
    found = bev_pool_v2(depth, feat, points, pixels, cells, (B, Z, Y, X, C), starts, lengths)
    assert found.shape == (B, C, Z, Y, X)
    bound = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found.double(), wanted, rtol=bound, atol=bound)
    seed = torch.randn(wanted.shape, generator=generator(4), dtype=torch.float64)
    for got, want in zip(*(torch.autograd.grad(v, (depth, feat), seed.to(v)) for v in (found, wanted)), strict=True):
        torch.testing.assert_close(got.double(), want.double(), rtol=bound, atol=bound)


def test_wrong_calls_are_named() -> None:
    feats, coords = sorted_rows(torch.float32)
    with pytest.raises(ValueError, match=r"bev_pool: feats and coords wanted \(P, C\) and \(P, 4\)"):
        bev_pool(feats, coords[:, :3], B, Z, Y, X)
    with pytest.raises(TypeError, match="bev_pool: coords wanted int32 or int64"):
        bev_pool(feats, coords.float(), B, Z, Y, X)
    for column in range(4):  # beyond one size, and not into the next row, layer or item
        wrong = coords.clone()
        wrong[0, column] = (Y, X, Z, B)[column]
        with pytest.raises(ValueError, match="cells lie in"):
            bev_pool(feats, wrong, B, Z, Y, X)
    depth, feat = torch.rand(B, N, D, H, W), torch.randn(B, N, H, W, C)
    points, pixels, cells, _, _ = ranks()
    shape = (B, Z, Y, X, C)
    with pytest.raises(ValueError, match="bev_pool_v2: feat has shape"):
        bev_pool_v2(depth, feat[..., 1:], points, pixels, cells, shape)
    with pytest.raises(ValueError, match="vectors of one length"):
        bev_pool_v2(depth, feat, points[1:], pixels, cells, shape)
    with pytest.raises(ValueError, match="ranks_depth wanted each of"):
        bev_pool_v2(depth, feat, torch.zeros_like(points), pixels, cells, shape)
    with pytest.raises(ValueError, match="ranks_depth wanted each of"):
        bev_pool_v2(depth, feat, points + depth.numel(), pixels, cells, shape)
    with pytest.raises(ValueError, match="ranks_feat wanted the pixels of ranks_depth"):
        bev_pool_v2(depth, feat, points, pixels.flip(0), cells, shape)
    with pytest.raises(ValueError, match="cells lie in"):
        bev_pool_v2(depth, feat, points, pixels, cells + B * Z * Y * X, shape)
    for far in (2**32, -(2**32)):  # as an int32 it would be a cell
        with pytest.raises(ValueError, match="cells lie in"):
            bev_pool_v2(depth, feat, points, pixels, cells.long() + far, shape)


def test_bev_pool_v2_is_one_graph() -> None:
    """What is traced looks at no values."""
    depth, feat = torch.rand(B, N, D, H, W, generator=generator()), torch.randn(B, N, H, W, C, generator=generator(1))
    points, pixels, cells, _, _ = ranks()
    compiled = torch.compile(bev_pool_v2, backend="eager", fullgraph=True)
    found = compiled(depth, feat, points, pixels, cells, (B, Z, Y, X, C))
    torch.testing.assert_close(found, bev_pool_v2(depth, feat, points, pixels, cells, (B, Z, Y, X, C)), rtol=0, atol=0)
