"""Every preset that comes with the package: readable, valid, and its model can be built (shapes alone)."""

from __future__ import annotations

import pytest
import torch

from mim4d.engine import config as configs
from mim4d.engine.optim import peak_lr
from mim4d.models import build_model
from mim4d.nn import LiftSplat, VoxelPull


def test_the_presets_are_there():
    assert set(configs.preset_names()) == {*("demo", "mim4d", "unipad", "real-keyframe", "rtx3090", "vs0.075", "vs0.1")}


@pytest.mark.parametrize("name", configs.preset_names())
def test_the_model_of_every_preset_can_be_built(name):
    config = configs.load_preset(name)
    configs.check(config)
    with torch.device("meta"):
        model = build_model(config.model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert (model.voxel_decoder is not None) == config.model.reconstructed
    # what lies outside the volume cannot be rendered: it must not be a target either
    assert config.data.lidar_bounds == config.model.bounds
    text = (configs.PRESET_FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert f"--preset {name}" in text


@pytest.mark.parametrize("name", ["mim4d", "rtx3090"])
def test_the_paper_s_sizes(name):
    config = configs.load_preset(name)
    assert (config.data.image_size, config.data.rays_per_camera, len(config.data.offsets)) == ((450, 800), 512, 5)
    assert (config.model.grid, config.model.channels, config.model.depth_bins) == ((128, 128, 5), 32, 118)
    assert config.model.backbone == "convnext_small"
    assert config.model.local_mask
    assert (config.train.epochs, config.train.warmup_steps, config.train.clip_norm) == (12, 500, 35)
    assert peak_lr(config.train, processes=8 if name == "mim4d" else 1) == pytest.approx(2e-4)


def test_each_family_lifts_in_its_own_way():
    push, pull = (configs.load_preset(name).model for name in ("vs0.075", "vs0.1"))
    assert (push.view_transform, push.grid, push.feature_stride, push.lift_channels) == ("push", (180, 180, 5), 32, 256)
    assert (pull.view_transform, pull.grid, pull.pull_levels, pull.lift_channels) == ("pull", (128, 128, 5), 3, 128)
    with torch.device("meta"):
        assert isinstance(build_model(push).view_transform.lift, LiftSplat)
        model = build_model(pull)
    assert isinstance(model.view_transform.lift, VoxelPull)
    assert len(model.image_encoder.neck.coarser) == 2


def test_unipad_is_one_frame_without_a_decoder():
    config = configs.load_preset("unipad")
    assert config.data.offsets == (0.0,)
    assert not config.model.reconstructed
