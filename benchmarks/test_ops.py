"""The registry under pytest-benchmark: a test for each op, preset, direction and rival, in groups of rivals.

The gate stands here too: a rival that is wrong, before or after it is timed, fails its test and leaves no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (the extra `bench`)")

from benchmarks.case import DIRECTIONS
from benchmarks.ops import ENTRIES
from benchmarks.session import Session


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    device, presets = option("--bench-device"), option("--bench-preset") or ["tiny"]
    cases = [
        pytest.param(
            (op, preset, device, option("--bench-dtype")),
            direction,
            rival.name,
            id=f"{op}-{preset}-{direction}-{rival.name}",
        )
        for op, entry in ENTRIES.items()
        for preset in presets
        if preset in entry.presets
        for direction, order in DIRECTIONS.items()
        if order <= entry.order and direction != "chain"
        for rival in entry.rivals(device)
        if rival.order >= order and not (rival.compiled and device not in entry.presets[preset].compiled)
    ]
    metafunc.parametrize("what, direction, rival", cases)


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[..., Session]]:
    """The session of a problem: opened, and every rival verified, once for all of its tests."""
    session, current = Session(), []

    def get(what: tuple[str, str, str, str]) -> Session:
        if current != [what]:
            session.open(*what, only_ours=False)
            current[:] = [what]
        return session

    yield get
    session.close()


def test_op(benchmark: Any, opened: Callable[..., Session], what: Any, direction: str, rival: str) -> None:
    session = opened(what)
    state = session.states[rival]
    if state.absent or direction in state.lacks:
        pytest.skip(state.absent or state.lacks[direction])
    if state.wrong:
        pytest.fail(f"{rival} is wrong and gets no time: {state.wrong}")
    session.prepare(rival, direction)
    run = session.runs[rival, direction].run
    benchmark.group = f"{what[0]} {what[1]} {direction}"
    benchmark.extra_info.update(
        bytes=session.problem.bytes(direction),
        error=state.verdicts[direction].error.l2,
        peak_bytes=session.peak(rival, direction),
    )

    def call() -> Any:
        found = run.call()
        if run.device == "cuda":
            torch.cuda.synchronize()
        return found

    with run.inside():
        run.last = benchmark(call)
    wrong = session.recheck(rival, direction)
    session.release()
    if wrong:
        benchmark.stats.stats.data.clear()  # and so leaves no row in the table
        pytest.fail(f"{rival} is wrong and gets no time: {wrong}")
