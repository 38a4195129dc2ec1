"""The ops inside ``torch.compile``: one graph, no recompilation for a second size, the same numbers, the backend
guarded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.cases import points, volume
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from mim4d import ops

SIZE = (2, 3, 4)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def sample(v: Tensor, p: Tensor) -> Tensor:
    return ops.voxel_sample(v, p, padding_mode="border").sin().sum()


@pytest.mark.slow
def test_inductor() -> None:
    v, p = volume(2, 3, *SIZE).float().requires_grad_(), points((2, 9), SIZE, False).float().requires_grad_()
    compiled = torch.compile(sample, fullgraph=True)
    got, want = (torch.autograd.grad(f(v, p), (v, p)) for f in (compiled, sample))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_the_backend_is_guarded() -> None:
    """A compiled function follows ``use_backend`` around it, instead of keeping the choice of its first call."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(sample, fullgraph=True, backend=counter)
    v, p = volume(1, 2, *SIZE), points((1, 4), SIZE, False)
    with ops.use_backend("reference"):
        compiled(v, p)
    with ops.use_backend("cuda"), pytest.raises(torch._dynamo.exc.Unsupported, match="runs on cuda tensors"):
        compiled(v, p)
    with ops.use_backend("reference"):
        compiled(v, p)
    assert counter.frame_count == 1


def test_autocast_inside_a_graph() -> None:
    def step(v: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            p = torch.tanh(v.flatten(1)[:, :3] @ weight)  # half points out of a matrix product
            return ops.voxel_sample(v, p)

    v, weight = volume(2, 3, *SIZE).float(), torch.eye(3)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(v, weight)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, step(v, weight))


def test_use_backend_inside_a_graph() -> None:
    def step(v: Tensor, p: Tensor) -> Tensor:
        with ops.use_backend("reference"):
            first = ops.voxel_sample(v, p)
        return first + ops.voxel_sample(v, p)

    counter = CompileCounterWithBackend("aot_eager")
    v, p = volume(1, 2, *SIZE), points((1, 4), SIZE, False)
    got = torch.compile(step, fullgraph=True, backend=counter)(v, p)
    torch.testing.assert_close(got, step(v, p))
    assert counter.frame_count == 1
