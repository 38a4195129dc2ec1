"""The benchmarks run, on tiny inputs, and print no time for a wrong result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.case import Case, best_times, error  # noqa: E402
from benchmarks.run import measure  # noqa: E402


def test_every_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.run", "--preset", "tiny", "--threads", "1", "--repeat", "2"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--json", str(tmp_path / "rows.jsonl")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no time" not in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {(row["op"], row["direction"]) for row in rows} >= {
        ("voxel_sample", "forward"),
        ("voxel_sample", "backward"),
    }
    assert all(row["ms"] > 0 and row["error"] < 1e-5 and row["torch"] == torch.__version__ for row in rows)


def test_unknown_names_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "voxel_smaple"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no benchmark of voxel_smaple; there are voxel_sample" in done.stderr


def test_a_wrong_result_gets_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong = (lambda: torch.ones(3)), (lambda: torch.tensor([1.0, 1.0, 1.5]))
    case = Case("toy", "tiny", "forward", {"right": right, "wrong": wrong}, lambda: torch.ones(3).double(), 1e-6, 24)
    rows = measure(case, 1, 1, "cpu")
    assert [row["rival"] for row in rows] == ["right"]
    assert "wrong" in capsys.readouterr().out.split("no time")[0]
    assert error(wrong(), case.oracle()) == pytest.approx(0.5 / 3**0.5)


def test_runs_take_turns() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) or torch.ones(1) for name in "ab"}
    assert set(best_times(runs, 3, "cpu")) == {"a", "b"}
    assert order == ["a", "b"] * 3
