"""The three sparse products that the references stand on, against the gathered rows that they avoid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mim4d.reference._rows import combine, dot, narrow, plan, spread


def case(P: int, K: int, C: int, n: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rows (n,C), index (P,K) with repeated rows, weight (P,K), query (P,C)."""
    g = torch.Generator().manual_seed(P + K + C)

    def normal(*s: int) -> Tensor:
        return torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_()

    return normal(n, C), torch.randint(0, n - 1, (P, K), generator=g), normal(P, K), normal(P, C)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("P, K, C", [(5, 4, 3), (1, 4, 3), (5, 1, 3), (5, 4, 1), (1, 1, 1), (0, 4, 3), (5, 0, 3)])
def test_products_and_all_their_derivatives(P: int, K: int, C: int, dtype: torch.dtype) -> None:
    rows, index, weight, query = case(P, K, C)
    gathered, index = rows[index], index.to(dtype)
    torch.testing.assert_close(combine(rows, index, weight), (gathered * weight.unsqueeze(-1)).sum(1))
    torch.testing.assert_close(dot(rows, index, query), (gathered * query.unsqueeze(1)).sum(-1))
    brought = (weight.unsqueeze(-1) * query.unsqueeze(1)).reshape(P * K, C)
    want = torch.zeros(6, C, dtype=torch.float64).index_add(0, index.flatten().long(), brought)
    torch.testing.assert_close(spread(query, index, weight, 6), want)
    if P and K:
        for product, inputs in (
            (lambda r, w: combine(r, index, w), (rows, weight)),
            (lambda r, q: dot(r, index, q), (rows, query)),
            (lambda q, w: spread(q, index, w, 6), (query, weight)),
        ):
            assert torch.autograd.gradcheck(product, inputs)
            assert torch.autograd.gradgradcheck(product, inputs)


def test_plan_is_stable() -> None:
    index = torch.tensor([[2, 0], [2, 2], [0, 3]])
    entry, start = plan(index, 5)
    assert entry.tolist() == [1, 4, 0, 2, 3, 5]
    assert start.tolist() == [0, 2, 2, 5, 6]


def test_narrow_counts_rows_and_entries() -> None:
    index = torch.zeros(1, 1, dtype=torch.int64)
    assert narrow(index, 2**31 - 1).dtype == torch.int32
    assert narrow(index, 2**31).dtype == torch.int64
    assert narrow(index.expand(2**31, 1), 5).dtype == torch.int64
