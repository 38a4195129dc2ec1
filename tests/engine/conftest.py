"""A tiny world and a tiny configuration that the engine's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

TINY = {
    "data": {
        "version": "v1.0-mini",
        "offsets": [-0.5, 0.0],
        "image_size": [64, 112],
        "rays_per_camera": 4,
        "workers": 0,
    },
    "model": {
        "grid": [12, 12, 3],
        "channels": 8,
        "backbone": "convnext_atto",
        "pretrained": False,
        "drop_path": 0.1,
        "feature_stride": 32,
        "neck_channels": 16,
        "lift_channels": 8,
        "depth_bins": 12,
        "short_dim": 16,
        "short_heads": 2,
        "long_dim": 8,
        "decoder_layers": 1,
        "points": 2,
        "n_uniform": 8,
        "n_importance": 4,
    },
    "train": {
        "steps": 4,
        "lr": 4e-3,
        "warmup_steps": 1,
        "val_clips": 1,
        "picture_stride": 16,
        "compare_steps": 0,
        "device": "cpu",
    },
}


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory) -> Path:
    """Two scenes of 1.5 seconds, images 64 x 112; made once."""
    pytest.importorskip("embreex")
    from mim4d.world import generate

    out = tmp_path_factory.mktemp("data") / "world"
    generate(out, seed=0, scenes=2, seconds=1.5, image_size=(64, 112))
    return out


@pytest.fixture(scope="session")
def tiny_preset(tmp_path_factory) -> Path:
    """A preset file for the tiny world: a run of it takes seconds."""
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def tiny(tiny_world, tiny_preset):
    """The tiny configuration, to be changed at will."""
    from mim4d.engine.config import load_preset

    config = load_preset(str(tiny_preset))
    config.data.root = str(tiny_world)
    return config
