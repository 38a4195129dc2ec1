"""The table of ops against all that an op promises: ops x backends x dtypes through ``helpers.contract``."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from helpers import cases, contract, contract_torch
from helpers.cases import generator, runs
from helpers.contract import Run
from helpers.infos import OPS
from helpers.op_info import HALF, OpInfo, Sample, WrongCall

from mim4d import _library

words = lambda dtype: str(dtype).removeprefix("torch.")


def walk(
    rows: Iterable[OpInfo], *, backends: bool = True, dtypes: bool = False, dispatched: bool = False
) -> pytest.MarkDecorator:
    """``info``, with every run that is written for it, and every dtype. ``dispatched``: but for the bare reference."""
    found = []
    for info in rows:
        for run in runs(info.op):
            backend = run.values[0][0]
            if dispatched and backend == "reference":
                continue
            for dtype in info.dtypes if dtypes else (None,):
                values = (info, run.values[0], dtype) if dtypes else (info, run.values[0])
                name = f"{info.op}-{run.id}" + (f"-{words(dtype)}" if dtypes else "")
                found.append(pytest.param(*values, id=name, marks=run.marks))
    return pytest.mark.parametrize("info, run, dtype" if dtypes else "info, run", found)


DERIVED = [info for info in OPS if info.order]


def test_every_op_has_a_row() -> None:
    public = {op for op in _library.schemas if not op.endswith("_backward")}
    assert public <= {info.op for info in OPS}


@pytest.mark.parametrize("info", OPS, ids=lambda info: info.op)
def test_no_check_walks_over_nothing(info: OpInfo) -> None:
    """What a row leaves out is not checked, and nobody would see it."""
    assert info.cases
    assert info.edges
    assert len(info.growing) > 1
    assert info.wrong()
    assert info.ranges
    assert info.narrow or not set(HALF) & set(info.dtypes), "half would be tested in float32"
    backward = f"{info.op}_backward" in _library.schemas
    assert bool(info.order) == bool(info.differentiable) == bool(info.tiny) == backward


@walk(OPS, dtypes=True)
def test_values_and_gradients(info: OpInfo, run: Run, dtype: torch.dtype) -> None:
    contract.check_values(info, run, dtype, info.samples(generator()))


@walk(OPS, dtypes=True)
def test_degenerate_sizes(info: OpInfo, run: Run, dtype: torch.dtype) -> None:
    contract.check_poison(info, run, dtype, info.degenerate())


@walk(OPS)
def test_all_memory_is_written(info: OpInfo, run: Run) -> None:
    contract.check_poison(info, run, info.dtypes[-1], info.samples(generator(1)))


@walk(DERIVED)
def test_derivatives_against_differences(info: OpInfo, run: Run) -> None:
    contract.check_gradcheck(info, run, [info.sample(name, sizes) for name, sizes in info.tiny.items()])


@walk(OPS, dispatched=True)
def test_one_derivative_more_is_refused(info: OpInfo, run: Run) -> None:
    contract.check_refused_derivative(info, run, plain(info))


@walk(OPS)
def test_layouts(info: OpInfo, run: Run) -> None:
    contract.check_layouts(info, run, [plain(info)])


@walk(OPS)
def test_inputs_stay_as_they_are(info: OpInfo, run: Run) -> None:
    contract.check_no_damage(info, run, info.samples(generator()))


@walk(OPS)
def test_the_same_bits_every_time(info: OpInfo, run: Run) -> None:
    contract.check_determinism(info, run, [plain(info), info.sample("big", info.big)])


@walk(OPS)
def test_nothing_leaks(info: OpInfo, run: Run) -> None:
    if run[0] == "simt" and cases.SIMT != "plain":
        pytest.skip(f"memory is not counted under {cases.SIMT}: a sanitizer keeps what was freed")
    if run == ("triton", "cpu"):
        pytest.skip("memory is not counted under Triton's interpreter: it is the interpreter's own")
    contract.check_leaks(info, run, info.sample("big", info.big))


@walk(OPS)
def test_odd_values(info: OpInfo, run: Run) -> None:
    for dtype in (d for d in info.dtypes if d not in HALF):
        contract.check_odd(info, run, dtype, info.odd())


@pytest.mark.parametrize("info, wrong", [pytest.param(i, w, id=f"{i.op}-{w.name}") for i in OPS for w in i.wrong()])
def test_wrong_calls_are_refused_in_words(info: OpInfo, wrong: WrongCall) -> None:
    contract.check_wrong(info, wrong)


@walk([info for info in OPS if info.coordinates or info.order])
@pytest.mark.parametrize("half", HALF, ids=words)
def test_autocast(info: OpInfo, run: Run, half: torch.dtype) -> None:
    contract.check_autocast(info, run, plain(info), half)


@walk(OPS)
def test_without_autograd(info: OpInfo, run: Run) -> None:
    contract.check_without_autograd(info, run, plain(info))


@walk(OPS)
def test_one_graph_for_every_size(info: OpInfo, run: Run) -> None:
    contract_torch.check_compile(info, run, [info.sample("", sizes) for sizes in info.growing])


@walk(OPS, dispatched=True)
def test_opcheck(info: OpInfo, run: Run) -> None:
    contract_torch.check_opcheck(info, run, [plain(info)])


@walk(OPS, dispatched=True)
def test_fakes(info: OpInfo, run: Run) -> None:
    contract_torch.check_fakes(info, run, info.samples(generator()) + info.degenerate())


@walk(OPS)
def test_meta_tensors(info: OpInfo, run: Run) -> None:
    contract_torch.check_meta(info, run, info.samples(generator()))


@walk(DERIVED, dispatched=True)
def test_only_the_gradients_that_are_needed(info: OpInfo, run: Run) -> None:
    contract_torch.check_masks(info, run, plain(info))


def plain(info: OpInfo) -> Sample:
    return info.sample("plain", {})
