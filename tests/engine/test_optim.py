"""The schedule against its closed form; who decays and who does not."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from mim4d.engine.config import TrainConfig
from mim4d.engine.optim import build_optimizer, lr_factor, parameter_groups, peak_lr, set_lr


def test_schedule_starts_at_a_third_peaks_after_the_warmup_and_ends_at_a_thousandth():
    factor = [lr_factor(step, 1000, 500, 1 / 3, 1e-3) for step in range(1000)]
    assert factor[0] == pytest.approx(1 / 3)
    assert factor[250] == pytest.approx(2 / 3)
    assert factor[500] == 1.0
    assert factor[999] == pytest.approx(1e-3)
    assert all(b >= a for a, b in itertools.pairwise(factor[:501]))
    assert all(b <= a for a, b in itertools.pairwise(factor[500:]))


def test_schedule_is_half_way_down_in_the_middle_of_the_cosine():
    assert lr_factor(60, 111, 10, 0.5, 0.0) == pytest.approx(0.5)
    assert lr_factor(35, 111, 10, 0.5, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 500), (3, 500), (501, 500), (2, 0)])
def test_schedule_of_short_runs_stays_within_its_bounds(total, warmup):
    assert all(1e-3 <= lr_factor(step, total, warmup, 1 / 3, 1e-3) <= 1.0 for step in range(total))


def test_peak_is_per_eight_clips():
    assert peak_lr(TrainConfig(lr=2e-4, batch=2, accumulate=2), processes=2) == pytest.approx(2e-4)
    assert peak_lr(TrainConfig(lr=2e-4, batch=1)) == pytest.approx(2e-4 / 8)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
        self.head = nn.Linear(4, 2)
        self.token = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.scale = nn.Parameter(torch.zeros(4))
        self.variance = nn.Parameter(torch.tensor(0.3))
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def test_decay_is_for_weights_alone_and_the_backbone_has_its_own_rate():
    model = Model()
    groups = parameter_groups(model, TrainConfig(weight_decay=0.05, backbone_lr=0.1), model.backbone)
    found = {name: (group["weight_decay"], group["lr_factor"]) for group in groups for name in group["names"]}
    assert found == {
        "backbone.0.weight": (0.05, 0.1),
        "backbone.0.bias": (0.0, 0.1),
        "backbone.1.weight": (0.0, 0.1),
        "backbone.1.bias": (0.0, 0.1),
        "head.weight": (0.05, 1.0),
        "head.bias": (0.0, 1.0),
        "token": (0.05, 1.0),
        "scale": (0.0, 1.0),
        "variance": (0.0, 1.0),
    }


def test_the_field_has_its_own_rate():
    model = Model()
    groups = parameter_groups(model, TrainConfig(backbone_lr=0.1, field_lr=5.0), model.backbone, model.head)
    found = {name: (group["weight_decay"] > 0, group["lr_factor"]) for group in groups for name in group["names"]}
    assert (found["head.weight"], found["head.bias"]) == ((True, 5.0), (False, 5.0))
    assert found["backbone.0.weight"] == (True, 0.1)
    assert found["scale"] == (False, 1.0)
    assert sum(len(group["params"]) for group in groups) == 9


def test_set_lr_gives_every_group_its_part():
    model = Model()
    optimizer = build_optimizer(model, TrainConfig(backbone_lr=0.1), model.backbone)
    set_lr(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.05, 0.5])
