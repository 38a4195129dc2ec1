"""What the CUDA kernels of ``sdf_march`` and ``sdf_sample`` have and no other: warps and blocks that take turns,
kernels of known widths beside those of any, the volume's gradient with and without atomics. On a GPU, and emulated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import infos
from helpers.cases import generator, running, runs
from helpers.contract import Run, gradients, leafed
from helpers.op_info import tensors
from torch import Tensor

from mim4d import ops

MARCH, SAMPLE = (next(info for info in infos.OPS if info.op == op) for op in ("sdf_march", "sdf_sample"))
KNOWN = {"C": 32, "H": 16, "G": 16, "layers": 2}  # fused; with another C the volume is read into tables
KERNELS = [run for run in runs("sdf_march") if run.values[0][0] in ("simt", "cuda")]
NEEDS = MARCH.differentiable


@pytest.fixture(params=KERNELS)
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


@pytest.fixture
def strict() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def march(run: Run, dtype: torch.dtype, seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5), **sizes: Any) -> list[Tensor]:
    """Outputs and gradients, with cotangents of the results in ``seeds`` alone."""
    given = leafed(MARCH, MARCH.cast(MARCH.build(generator(3), **sizes), dtype, run[1]), NEEDS)
    with running("sdf_march", *run, **MARCH.meta(given)):
        outputs = tensors(ops.sdf_march(**given))
        g = generator(4)
        bars = [torch.randn(o.shape, generator=g, dtype=torch.float64) * (i in seeds) for i, o in enumerate(outputs)]
        kept = [(o, b.to(o)) for i, (o, b) in enumerate(zip(outputs, bars, strict=True)) if i in seeds]
        found = gradients([o for o, _ in kept], MARCH.leaves(given, NEEDS), [b for _, b in kept])
    return [o.detach().cpu() for o in (*outputs, *found)]


def check(found: list[Tensor], wanted: list[Tensor]) -> None:
    """float32: results to 5e-6, gradients to 4e-5 of the largest (measured 5.7e-7 and 3.6e-6; the reference 3.2e-6 and
    3.1e-4)."""
    for i, (got, want) in enumerate(zip(found, wanted, strict=True)):
        error = (got.double() - want).abs().max() if got.numel() else torch.zeros(())
        assert float(error) <= (5e-6 if i < 6 else 4e-5) * float(want.abs().max()), f"result {i} is off by {error}"


@pytest.mark.parametrize("C", [32, 5])
def test_blocks_and_warps_take_turns(run: Run, C: int) -> None:
    """More rays than the emulator's GPU has blocks for, and rays that end within a warp."""
    sizes = {**KNOWN, "C": C, "B": 2, "R": 11, "S": 37}
    check(march(run, torch.float32, **sizes), march(("reference", "cpu"), torch.float64, **sizes))


@pytest.mark.parametrize("seeds", [(0, 1), (3,), (2, 4)])
def test_behind_a_wall(run: Run, seeds: tuple[int, ...]) -> None:
    """Sections that let nothing through, until what is left is 0: whole warps have nothing to do, unless the loss is on
    the field itself."""
    sizes = {**KNOWN, "B": 1, "R": 2, "S": 100, "inv_s": 1e5, "cos_anneal": 0.0}
    found, wanted = (
        march(run, torch.float32, seeds, **sizes),
        march(("reference", "cpu"), torch.float64, seeds, **sizes),
    )
    assert bool((found[5] == 0).any()), "no wall"
    for i, (got, want) in enumerate(zip(found, wanted, strict=True)):
        assert bool(got.isfinite().all()), f"result {i} is not finite"
        if i in (3, 4) or (i > 6 and not {0, 1, 2, 5} & set(seeds)):
            error = float((got.double() - want).abs().max())
            assert error <= 2e-3 * float(want.abs().max()) + 1e-7, f"result {i} is off by {error}"


@pytest.mark.parametrize("C", [32, 5])
def test_deterministic_means_the_same_bits_in_any_order(
    run: Run, C: int, strict: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {**KNOWN, "C": C, "B": 1, "R": 9, "S": 40, "shape": (2, 3, 3)}
    found = []
    for order in ("fwd", "rev", "rand:7"):
        monkeypatch.setenv("SIMT_ORDER", order)
        found.append(march(run, torch.float32, **sizes))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    check(found[0], march(("reference", "cpu"), torch.float64, **sizes))


def test_weights_have_the_same_bits_without_being_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each warp owns its sums, and they are added in a fixed order."""
    found = []
    for order in ("fwd", "rev"):
        monkeypatch.setenv("SIMT_ORDER", order)
        found.append(march(run, torch.float32, **KNOWN, B=1, R=9, S=40))
    assert all(torch.equal(a, b) for a, b in zip(found[0][9:], found[1][9:], strict=True))


@pytest.mark.parametrize("C", [32, 5])
def test_a_volume_may_begin_anywhere(run: Run, C: int) -> None:
    """Channels last, but 4 bytes behind where a row could be moved 16 bytes at a time."""
    for info, sizes in ((MARCH, {"R": 2, "S": 5}), (SAMPLE, {"R": 2, "U": 5, "I": 3})):
        found = []
        for offset in (0, 1):
            given = info.cast(info.build(generator(3), **{**KNOWN, "C": C}, B=1, **sizes), torch.float32, run[1])
            rows = given["volume"].movedim(1, -1)
            memory = rows.new_empty(rows.numel() + 1)[offset:][: rows.numel()]
            given["volume"] = memory.view(rows.shape).copy_(rows).movedim(-1, 1)
            assert given["volume"].data_ptr() % 16 == 4 * offset
            with running(info.op, *run, **info.meta(given)):
                found.append(tensors(info.function(**given)))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("C", [32, 5])
def test_equal_values_of_both_lists_keep_their_places(run: Run, C: int) -> None:
    """near = far: all samples lie at one distance, and the merge by rank must still fill every place."""
    given = SAMPLE.cast(SAMPLE.build(generator(), **{**KNOWN, "C": C}, B=1, U=40, I=35), torch.float32, run[1])
    given["far"] = given["near"].clone()
    with running("sdf_sample", *run, **SAMPLE.meta(given)):
        found = ops.sdf_sample(**given)
    assert torch.equal(found, given["near"].unsqueeze(-1).expand_as(found))
