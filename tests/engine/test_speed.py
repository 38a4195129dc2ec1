"""Step times: what is measured, on which backends, and that nothing is left behind."""

from __future__ import annotations

import pytest
import torch

from mim4d import backends, ops
from mim4d.data import collate, open_datasets
from mim4d.engine import speed
from mim4d.models import build_model


@pytest.fixture
def step(tiny):
    """A model with batch norm, whose buffers a training step moves, and a batch for it."""
    tiny.model.backbone = "resnet18"
    train, _ = open_datasets(tiny.data)
    return build_model(tiny.model), collate([train.load(0, 0)])


def test_both_ways_are_measured_in_turns(step, monkeypatch):
    asked = []
    measure = speed._step

    def heard(model, batch, seed):
        asked.append(backends.status()["asked"])
        return measure(model, batch, seed)

    monkeypatch.setattr(speed, "_step", heard)
    found = speed.compare_step_times(*step, rounds=3)
    # one of each to warm up, then who is first changes
    assert asked == ["auto", "reference", *["reference", "auto"], *["auto", "reference"], *["reference", "auto"]]
    for name in ("own", "reference"):
        assert len(found[name]["seconds"]) == 3
        assert min(found[name]["seconds"]) > 0
    assert set(found["own"]["backends"]) == set(found["reference"]["backends"])
    assert {ran for known in found["reference"]["backends"].values() for ran in known} == {"reference"}


def test_nothing_is_left_behind(step):
    model, batch = step
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    speed.compare_step_times(model, batch, rounds=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_process_that_asks_for_the_references_has_nothing_to_compare(step):
    with ops.use_backend("reference"):
        found = speed.compare_step_times(*step, rounds=1)
    assert found["reference"] is None
    assert {ran for known in found["own"]["backends"].values() for ran in known} == {"reference"}


def test_too_little_memory_for_the_references_is_a_result(step, monkeypatch):
    measure, calls = speed._step, []

    def starved(model, batch, seed):
        calls.append(backends.status()["asked"])
        if calls[-1] == "reference":
            raise torch.OutOfMemoryError
        return measure(model, batch, seed)

    monkeypatch.setattr(speed, "_step", starved)
    found = speed.compare_step_times(*step, rounds=2)
    assert found["reference"] == {"failed": "more memory than the GPU has"}
    assert len(found["own"]["seconds"]) == 2
    assert calls.count("reference") == 1
