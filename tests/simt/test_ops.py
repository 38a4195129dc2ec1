"""How the emulated CUDA kernels take the place of the CPU's. What they compute is the matter of tests/ops."""

from __future__ import annotations

import pytest
import torch
from helpers import simt
from helpers.cases import points, volume
from helpers.tolerances import assert_close

from mim4d import ops


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--simt")


SOURCES = sorted(path.parent.name for path in (simt.ROOT / "csrc").glob("*/op_cuda.cpp"))


def sample(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return ops.voxel_sample(volume(2, 3, 3, 4, 5).to(dtype), points((2, 40), (3, 4, 5), False).to(wide))


def test_every_op_with_cuda_sources_is_emulated(variant: str) -> None:
    assert SOURCES
    assert set(SOURCES) <= set(simt.emulated_ops(variant))
    assert {f"{op}_backward" for op in SOURCES} <= set(simt.emulated_ops(variant))


def test_the_emulated_kernels_run_within_the_context_and_nowhere_else(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = sample()
    monkeypatch.setenv("SIMT_ORDER", "no order")  # which only the emulator reads, at each launch
    with simt.emulated(variant), pytest.raises(RuntimeError, match="SIMT_ORDER is no order"):
        sample()
    assert torch.equal(sample(), right)
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError), simt.emulated(variant), simt.emulated(variant):
        raise ZeroDivisionError
    assert torch.equal(sample(), right)


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("C", [1, 5, 8])
def test_forward_and_backward(variant: str, dtype: torch.dtype, align: bool, padding: str, C: int) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    given = volume(2, C, 3, 4, 5), points((2, 60), (3, 4, 5), align), volume(1, 1, 2, 60, C, seed=2)[0, 0]

    def run(backend: str, *dtypes: torch.dtype) -> list[torch.Tensor]:
        v, p, g = (x.to(dtype) for x, dtype in zip(given, dtypes, strict=True))
        v.requires_grad_(), p.requires_grad_()
        with ops.use_backend(backend):
            out = ops.voxel_sample(v, p, padding_mode=padding, align_corners=align)
            return [out.detach(), *torch.autograd.grad(out, (v, p), g)]

    with simt.emulated(variant):
        found = run("cpu", dtype, wide, dtype)
    given = tuple(x.to(d) for x, d in zip(given, (dtype, wide, dtype), strict=True))
    oracle = run("reference", *[torch.float64] * 3)
    for got, exact, like in zip(found, oracle, run("reference", dtype, wide, dtype), strict=True):
        assert_close(got, exact, like=[like])
