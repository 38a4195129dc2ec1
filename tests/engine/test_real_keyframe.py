"""The single-frame path on a real nuScenes key frame, where ``MIM4D_REAL_KEYFRAME`` names a folder (v1.0-mini)."""

from __future__ import annotations

import os

import pytest

from mim4d.engine.config import load_preset
from mim4d.engine.pretrain import pretrain

FOLDER = os.environ.get("MIM4D_REAL_KEYFRAME", "")


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="MIM4D_REAL_KEYFRAME names no folder")
def test_depth_is_learned_from_one_real_key_frame(tmp_path):
    config = load_preset("real-keyframe")
    config.data.root = FOLDER
    val = pretrain(config, tmp_path / "run")["val"]
    assert val["after"]["depth_l1_m"] < 0.6 * val["before"]["depth_l1_m"]
    assert val["after"]["depth_l1_m"] < val["trivial"]["depth_l1_m"]
    assert val["after"]["rgb_l1"] < val["before"]["rgb_l1"]
