"""Rows of metrics.jsonl, and what a resumed run does with them."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest
import torch

from mim4d.engine.logbook import Logbook, Means, read_rows, write_json
from mim4d.engine.progress import Display, Pace, Rate, StepDisplay, Ticker, clock


def test_rows_are_appended_and_mirrored(tmp_path):
    with Logbook(tmp_path, 0) as book:
        book.row({"step": 1, "loss": 2.5, "note": "text"})
        book.row({"step": 2, "loss": 2.0})
        book.evaluation(0, {"rgb_l1": 0.2})
    assert [row["loss"] for row in read_rows(tmp_path / "metrics.jsonl")] == [2.5, 2.0]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_run_that_goes_on_drops_what_it_does_again_and_a_torn_line(tmp_path):
    rows = [{"step": step, "loss": float(step)} for step in (1, 2, 3)]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    with Logbook(tmp_path, 2) as book:
        book.row({"step": 3, "loss": 33.0})
    assert [row["loss"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 33.0]


class Alone:
    """One process."""

    device, num_processes, process_index = torch.device("cpu"), 1, 0

    def reduce(self, tensor: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        return tensor


def test_means_leave_out_what_was_not_measured():
    means = Means(torch.device("cpu"))
    for loss, rebuilt, measured in ((2.0, 5.0, True), (4.0, 0.0, False), (6.0, 7.0, True)):
        means.add("loss", torch.tensor(loss))
        means.add("rebuilt", torch.tensor(rebuilt), torch.tensor(measured))
        means.add("never", torch.tensor(float("nan")), torch.tensor(False))
    assert means.numbers(Alone()) == {"loss": 4.0, "rebuilt": 6.0}


def test_json_holds_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1.0], "c": {"d": 2}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.0], "c": {"d": 2}}
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def test_clock_and_rate():
    assert [clock(s) for s in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]
    rate = Rate()
    assert rate.left(10) == "--"
    rate.add(100.0)  # the first step warms up
    for _ in range(5):
        rate.add(2.0)
    assert rate.seconds == pytest.approx(2.0)
    assert rate.left(30) == "1:00"
    assert rate.text() == "2.00 s/step"


def test_without_a_terminal_progress_is_plain_lines(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(StepDisplay, "LINE_SECONDS", 0.0)
    with Display().steps(0, 5, every=2) as steps:
        for step in range(5):
            steps.step({"loss": f"{step}"})
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]
    assert all("left" in line and "\x1b" not in line for line in lines)
    assert Display(quiet=True).line("nothing") is None
    assert len(out.getvalue().splitlines()) == 3


def test_without_a_terminal_a_long_count_says_how_far_it_is(monkeypatch):
    out = io.StringIO()
    now = [0.0]
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr("mim4d.engine.progress.time.perf_counter", lambda: now[0])
    display = Display()
    with display.count("making") as tick:
        for done in range(1, 13):  # a second each
            now[0] += 1.0
            tick(done, 12)
    for _ in display.track(range(2), "evaluating", 2):
        now[0] += Ticker.SECONDS
    lines = ["making: 5 of 12", "making: 10 of 12", "evaluating", "evaluating: 1 of 2", "evaluating: 2 of 2"]
    assert out.getvalue().splitlines() == lines
    with Display(quiet=True).count("making") as tick:
        now[0] += 60.0
        tick(1, 2)
    assert out.getvalue().splitlines() == lines


def test_a_count_of_something_says_how_fast_it_goes(monkeypatch):
    out = io.StringIO()
    now = [0.0]
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr("mim4d.engine.progress.time.perf_counter", lambda: now[0])
    with Display().count("making", "files") as tick:
        tick(600, 1000)  # what was there before took no time
        for done in range(602, 642, 2):
            now[0] += 1.0
            tick(done, 1000)
    assert out.getvalue().splitlines()[0] == "making: 610 of 1000  2 files/s  3:15 left"
    pace = Pace("files")
    assert pace.text(0, 100, now=0.0) == ""
    assert pace.text(50, 100, now=2.0) == "25 files/s  0:02 left"
    assert pace.text(100, 100, now=4.0) == ""
    getting_ready = Pace("files")
    getting_ready.text(0, 100, now=0.0)
    assert getting_ready.text(1, 100, now=10.0) == "0.1 files/s  16:30 left"  # nothing better is known
    assert getting_ready.text(2, 100, now=10.5) == "2 files/s  0:49 left"
    slow = Pace("files")
    for second in range(0, 100, 10):
        text = slow.text(10 * second if second < 50 else 500 + (second - 50) // 10, 1000, now=float(second))
    assert text.startswith("0.1 files/s")  # the fast start is forgotten
