"""Random calls of every op on every backend: sizes with zeros and ones, strides, dtypes, values, gradients.

By default a few examples, the same ones every time. ``pytest tests/ops/test_fuzz.py --fuzz 1000`` (``make fuzz
N=1000``) draws so many new ones for each op and run, from a seed that is printed and that ``--hypothesis-seed`` takes
again. What fails is shrunk and printed as one line to paste into Python.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from helpers import fuzz, strategies
from helpers.cases import runs
from helpers.infos import OPS
from helpers.op_info import OpInfo
from hypothesis.configuration import set_hypothesis_home_dir
from torch import Tensor

from mim4d import ops

EXAMPLES = 25  # of each op and run where nobody asks for more

_home = tempfile.TemporaryDirectory(prefix="mim4d-fuzz-")  # nothing is kept, and no folder appears in the repository
set_hypothesis_home_dir(_home.name)

each_op_and_run = pytest.mark.parametrize(
    "info, run",
    [
        pytest.param(info, run.values[0][0], id=f"{info.op}-{run.id}")
        for info in OPS
        for run in runs(info.op)
        if run.values[0][1] == "cpu"
    ],
)


def explore(
    request: pytest.FixtureRequest, strategy: Any, check: Callable[..., None], op: str, run: str, *, least: int = 0
) -> None:
    """Run ``check`` on what the strategy draws, and print a failure as a line for Python. ``least``: a test of the
    fuzzing itself, so many examples and always the same ones."""
    wanted = 0 if least else request.config.getoption("--fuzz")
    health = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
    seed = request.config.getoption("--hypothesis-seed", default=None)
    seed = random.SystemRandom().randrange(2**32) if seed is None else int(seed)

    @hypothesis.settings(
        max_examples=wanted or least or EXAMPLES,
        derandomize=not wanted,
        deadline=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink] if not least else [hypothesis.Phase.generate],
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


# ---- what fuzzing has found, once for all


@pytest.mark.parametrize("run", ["reference", "dispatcher"])
def test_edges_lie_as_promised_however_near_lies(run: str) -> None:
    fuzz.check("sdf_sample", run, sizes={"I": 0}, layouts={"near": "reversed"})


@pytest.mark.parametrize(
    "op, spoil",
    [
        ("voxel_sample", ("mode", "list")),
        ("sdf_march", ("aabb", "None")),
        ("ms_deform_attn", ("level_start_index", "None")),
        ("voxel_pool", ("grid_shape", "None")),
        ("voxel_pool", ("grid_shape", "meta")),
    ],
)
def test_what_is_no_tensor_is_refused_in_words(op: str, spoil: tuple[str, str]) -> None:
    fuzz.check_refusal(op, "reference", spoil=spoil)


# ---- planted faults: each of them must be found, by few examples, and come with the line that shows it


def wrong_at_far_points(volume: Tensor, points: Tensor, **options: Any) -> Tensor:
    found = ops.voxel_sample(volume, points, **options)
    return torch.where((points.abs() > 1e20).any(-1, keepdim=True), found + 1e-3, found)


def wrong_by_strides(volume: Tensor, points: Tensor, **options: Any) -> Tensor:
    return ops.voxel_sample(volume.as_strided(volume.shape, volume.contiguous().stride()), points, **options)


def reads_beside_the_taps(volume: Tensor, points: Tensor, **options: Any) -> Tensor:
    return ops.voxel_sample(volume, points, **options) + 0 * volume.sum()


def fails_without_points(volume: Tensor, points: Tensor, **options: Any) -> Tensor:
    return ops.voxel_sample(volume, points, **options) + 0 * points[0].detach().nan_to_num().max().clamp(0, 1)


def writes_to_its_input(volume: Tensor, points: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        if not (points.dim() and any(s == 0 for s in points.stride())) and points.device.type == "cpu":
            points.clamp_(-100, 100)
    return ops.voxel_sample(volume, points, **options)


def gives_another_layout(volume: Tensor, points: Tensor, **options: Any) -> Tensor:
    found = ops.voxel_sample(volume, points, **options)
    return found if found.device.type == "meta" else found.transpose(0, -1).contiguous().transpose(0, -1)


def rolls_dice(volume: Tensor, points: Tensor, **options: Any) -> Tensor:
    return ops.voxel_sample(volume, points, **options) * (1 + 1e-7 * torch.rand(()).to(volume))


def loses_a_gradient(volume: Tensor, points: Tensor, **options: Any) -> Tensor:
    few = points.numel() <= 3 * len(points)  # one point of each item
    return ops.voxel_sample(volume, points.detach() if few else points, **options)


def healthy(volume: Tensor, points: Tensor, **options: Any) -> Tensor:
    return ops.voxel_sample(volume, points, **options)


def planted(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]) -> OpInfo:
    shown = functools.wraps(ops.voxel_sample)(lambda *args, **options: function(*args, **options))  # its signature too
    info = dataclasses.replace(fuzz.ROWS["voxel_sample"], function=shown)
    monkeypatch.setitem(fuzz.ROWS, "voxel_sample", info)
    return info


@pytest.mark.parametrize(
    "fault, words",
    [
        (wrong_at_far_points, "error Tolerance"),
        (wrong_by_strides, "error Tolerance|where the float64 reference"),
        (reads_beside_the_taps, "where the float64 reference is finite"),
        (fails_without_points, "IndexError"),
        (writes_to_its_input, "an input was changed"),
        (gives_another_layout, "its fake says"),
        (rolls_dice, "a second call gives other bits"),
        (loses_a_gradient, "gradients of .*points.*error Tolerance"),
    ],
)
def test_planted_fault_is_found(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any], words: str
) -> None:
    info = planted(monkeypatch, fault)
    with pytest.raises(AssertionError, match=words) as found:
        explore(request, strategies.calls(info, "reference"), fuzz.check, info.op, "reference", least=300)
    (line,) = re.findall(r"^in one line: (import sys; .*)$", str(found.value), re.MULTILINE)
    with pytest.raises((AssertionError, IndexError)):
        exec(line.partition("; ")[2].partition("; ")[2], {"sys": sys})


def test_planted_faults_healthy_twin_passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    info = planted(monkeypatch, healthy)
    explore(request, strategies.calls(info, "reference"), fuzz.check, info.op, "reference", least=100)


def refuses_with_runtime_error(volume: Tensor, points: Tensor, **options: Any) -> Tensor:
    return torch.ops.mim4d.voxel_sample.default(volume, points, 0, 0, False)


def takes_anything(volume: Any, points: Any, **options: Any) -> Tensor:
    return torch.zeros(2, 7, 5)


@pytest.mark.parametrize(
    "fault, words",
    [(refuses_with_runtime_error, "RuntimeError|not in words of ours"), (takes_anything, "was taken")],
)
def test_planted_fault_of_a_refusal_is_found(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any], words: str
) -> None:
    info = planted(monkeypatch, fault)
    with pytest.raises(AssertionError, match=words):
        explore(request, strategies.refusals(info, "reference"), fuzz.check_refusal, info.op, "reference", least=100)
