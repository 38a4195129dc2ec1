"""Weighted sums over rows of a table: the three sparse products that gathering references are made of.

With a table ``rows`` (n, C), an ``index`` (P, K) into it and a ``weight`` (P, K):

- :func:`combine`: out[p] = sum_k weight[p,k] rows[index[p,k]]                      (P, C)
- :func:`dot`: out[p,k] = rows[index[p,k]] . query[p]                               (P, K)
- :func:`spread`: out[i] = sum over the (p,k) with index[p,k] = i of weight[p,k] values[p]   (n, C)

The derivatives of each are the two others, so they are differentiable as often as one likes. None of them ever holds
the (P, K, C) tensor of gathered rows, which is what makes references over them fast: on a CPU most of the time of the
usual ``rows[index]`` goes into touching fresh memory. ``spread`` walks the entries of a row in the order of (p, k): it
adds in the same order every time, on every device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Plan(NamedTuple):
    """The entries (p, k) of an index, sorted by the row that they point at."""

    entry: Tensor  # (P*K,) position p*K + k
    start: Tensor  # (n,) where each row's entries begin; they end where the next row's begin


def plan(index: Tensor, n: int) -> Plan:
    """Sort an index (P, K) into a table of n rows. The sort is stable: equal rows keep the order of (p, k)."""
    key, entry = index.flatten().sort(stable=True)
    bounds = torch.arange(n, device=index.device, dtype=index.dtype)
    return Plan(entry.to(index.dtype), torch.searchsorted(key, bounds, out_int32=index.dtype == torch.int32))


def narrow(index: Tensor, n: int) -> Tensor:
    """The index in int32 where n rows and its own length allow it: half the traffic, and the faster kernels."""
    return index.to(torch.int32 if max(n, index.numel()) < 2**31 else torch.int64)


def elsewhere(rows: Tensor, index: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The table with one row of zeros behind it, and the index with the entries that are not ``inside`` pointing there.

    A weight of 0 is not enough for what must not be read: 0 * inf and 0 * NaN are NaN.
    """
    return F.pad(rows, (0, 0, 0, 1)), torch.where(inside, index, rows.shape[0])


def combine(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """rows (n, C), index (P, K), weight (P, K) -> (P, C)."""
    return _Combine.apply(rows, index, weight)


def dot(rows: Tensor, index: Tensor, query: Tensor) -> Tensor:
    """rows (n, C), index (P, K), query (P, C) -> (P, K)."""
    return _Dot.apply(rows, index, query)


def spread(values: Tensor, index: Tensor, weight: Tensor, n: int, order: Plan | None = None) -> Tensor:
    """values (P, C), index (P, K), weight (P, K) -> (n, C). ``order`` is ``plan(index, n)`` where the caller has it."""
    return _Spread.apply(values, index, weight, *(order or plan(index, n)))


def _starts(index: Tensor) -> Tensor:
    """(P,) where the entries of each point begin in the flattened index."""
    return torch.arange(index.shape[0], device=index.device, dtype=index.dtype) * index.shape[1]


def _bags(index: Tensor, rows: Tensor, starts: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of rows (n, C), a bag from each start to the next: (bags, C)."""
    if rows.shape[1] == 0:  # on some processors torch's kernel takes an empty row for an index out of range
        return rows.new_zeros(starts.shape[0], 0)
    return F.embedding_bag(index, rows, starts, per_sample_weights=weight, mode="sum")


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return _bags(index.flatten(), rows, _starts(index), weight.flatten())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, index, weight = ctx.saved_tensors
        wants_rows, _, wants_weight = ctx.needs_input_grad
        return (
            spread(grad, index, weight, rows.shape[0]) if wants_rows else None,
            None,
            dot(rows, index, grad) if wants_weight else None,
        )


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, index: Tensor, query: Tensor) -> Tensor:
        P, K = index.shape
        point = torch.arange(P, device=index.device, dtype=index.dtype)
        owner = point.unsqueeze(1).expand(P, K).contiguous().flatten()  # (P*K,)
        # Public torch has this product only as a derivative: of embedding_bag (mode 0: sum) by its weights.
        out = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            query.contiguous(), rows, index.flatten(), _starts(index), owner, 0
        )
        return out.view(P, K)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, index, query = ctx.saved_tensors
        wants_rows, _, wants_query = ctx.needs_input_grad
        return (
            spread(query, index, grad, rows.shape[0]) if wants_rows else None,
            None,
            combine(rows, index, grad) if wants_query else None,
        )


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, index: Tensor, weight: Tensor, entry: Tensor, start: Tensor) -> Tensor:
        sorted_weight = weight.flatten().index_select(0, entry)
        return _bags(entry // index.shape[1], values, start, sorted_weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values, index, weight, _, _ = inputs
        ctx.save_for_backward(values, index, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, index, weight = ctx.saved_tensors
        wants_values, _, wants_weight, _, _ = ctx.needs_input_grad
        return (
            combine(grad, index, weight) if wants_values else None,
            None,
            dot(grad, index, values) if wants_weight else None,
            None,
            None,
        )
