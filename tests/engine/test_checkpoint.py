"""Checkpoints: what goes in comes out, a crash leaves nothing half-written, faults are named."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from mim4d.engine import checkpoint
from mim4d.engine.config import TrainConfig
from mim4d.engine.optim import build_optimizer, set_lr
from mim4d.errors import UserError


def trained(steps: int, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))
    model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, TrainConfig(), None)
    go_on(model, optimizer, 0, steps)
    return model, optimizer


def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        set_lr(optimizer, 1e-2)
        optimizer.zero_grad()
        model(torch.randn(2, 2, 4, 4)).square().mean().backward()
        optimizer.step()


def test_going_on_from_a_checkpoint_equals_never_having_stopped(tmp_path):
    whole, _ = trained(6)
    first, optimizer = trained(3)
    path = checkpoint.save(tmp_path, 3, first, optimizer, {"seconds": 1.5})
    second, optimizer = trained(0, seed=99)
    state = checkpoint.load(path, second, optimizer)
    assert state == {"seconds": 1.5, "step": 3}
    go_on(second, optimizer, 3, 6)
    for (name, a), b in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_folder_is_named_by_the_step_and_holds_safetensors(tmp_path):
    path = checkpoint.save(tmp_path, 24, *trained(1), {})
    assert path == tmp_path / "checkpoints" / "step-000024"
    assert sorted(each.name for each in path.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]


def test_only_the_newest_are_kept(tmp_path):
    for step in (2, 4, 6, 1000000):
        checkpoint.save(tmp_path, step, *trained(1), {}, keep=2)
    assert checkpoint.steps_saved(tmp_path) == [6, 1000000]
    assert checkpoint.latest(tmp_path).name == "step-1000000"


def test_a_failure_while_writing_leaves_the_old_one_and_no_litter(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, *trained(1), {})

    def full(*arguments, **more):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 2, *trained(2), {})
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_what_a_killed_process_left_is_not_a_checkpoint_and_is_cleaned(tmp_path):
    checkpoint.save(tmp_path, 1, *trained(1), {})
    (tmp_path / "checkpoints" / ".step-000002.tmp").mkdir()
    assert checkpoint.latest(tmp_path).name == "step-000001"
    checkpoint.clean(tmp_path)
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_broken_file_is_one_clear_error(tmp_path, name):
    model, optimizer = trained(2)
    path = checkpoint.save(tmp_path, 2, model, optimizer, {})
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*step-000002"):
        checkpoint.load(path, model, optimizer)


def test_another_model_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, 2, *trained(2), {})
    with pytest.raises(UserError, match="does not fit this model"):
        checkpoint.load(path, nn.Linear(2, 2))


def test_tied_weights_are_stored(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    path = checkpoint.save(tmp_path, 1, model, build_optimizer(model, TrainConfig(), None), {})
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    checkpoint.load(path, other)
    assert torch.equal(other[1].weight, model[0].weight)
