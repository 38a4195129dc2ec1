"""Random calls of every op on every backend: sizes with zeros and ones, strides, dtypes, values, gradients.

By default a few examples, the same ones every time. ``pytest tests/ops/test_fuzz.py --fuzz 1000`` (``make fuzz
N=1000``) draws so many new ones for each op and run, from a seed that is printed and that ``--hypothesis-seed`` takes
again. What fails is shrunk and printed as one line to paste into Python.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from helpers import fuzz, strategies
from helpers.cases import runs
from helpers.infos import OPS
from helpers.op_info import OpInfo
from hypothesis.configuration import set_hypothesis_home_dir

EXAMPLES = 25  # of each op and run where nobody asks for more

set_hypothesis_home_dir(tempfile.gettempdir())  # nothing is kept, and no folder appears in the repository

each_op_and_run = pytest.mark.parametrize(
    "info, run",
    [
        pytest.param(info, run.values[0][0], id=f"{info.op}-{run.id}")
        for info in OPS
        for run in runs(info.op)
        if run.values[0][1] == "cpu"
    ],
)


def explore(request: pytest.FixtureRequest, strategy: Any, check: Callable[..., None], op: str, run: str) -> None:
    """Run ``check`` on what the strategy draws, and print a failure as a line for Python."""
    wanted = request.config.getoption("--fuzz")
    health = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
    seed = request.config.getoption("--hypothesis-seed", default=None)
    seed = random.SystemRandom().randrange(2**32) if seed is None else int(seed)

    @hypothesis.settings(
        max_examples=wanted or EXAMPLES,
        derandomize=not wanted,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=health,
    )
    @hypothesis.given(strategy)
    def example(case: dict[str, Any]) -> None:
        try:
            check(op, run, **case)
        except Exception as error:
            words = f"{type(error).__name__}: {error}\nin one line: {fuzz.line(op, run, **case)}"
            raise AssertionError(words) from error

    if wanted:
        print(f"--fuzz {wanted} --hypothesis-seed={seed}")
        example = hypothesis.seed(seed)(example)
    example()


@each_op_and_run
def test_valid_calls(request: pytest.FixtureRequest, info: OpInfo, run: str) -> None:
    explore(request, strategies.calls(info, run), fuzz.check, info.op, run)


@each_op_and_run
def test_wrong_calls(request: pytest.FixtureRequest, info: OpInfo, run: str) -> None:
    explore(request, strategies.refusals(info, run), fuzz.check_refusal, info.op, run)
