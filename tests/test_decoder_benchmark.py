"""The benchmark of one decoder step: it runs, and a way that is wrong gets no time."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import decoder


def run(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["benchmarks.decoder", "--cells", "6", "--rounds", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*words, "--threads", str(torch.get_num_threads())])
    decoder.main()


def test_every_way_gets_a_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch)
    said = capsys.readouterr().out
    for name in decoder.ways("cpu"):
        assert f"\n{name} " in said
    assert "mim4d reference" in said


def test_a_wrong_way_gets_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plain = decoder.formula
    monkeypatch.setattr(decoder, "formula", lambda *args: 1.01 * plain(*args))
    with pytest.raises(SystemExit, match=r"mim4d \w+ is off by"):
        run(monkeypatch)
    assert not capsys.readouterr().out
