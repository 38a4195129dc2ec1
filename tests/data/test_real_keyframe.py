"""One real nuScenes key frame, where MIM4D_REAL_KEYFRAME names a folder that holds it (the project has none)."""

from __future__ import annotations

import os

import pytest
import torch

from mim4d.data import DataConfig, fit_trivial, open_datasets

ROOT = os.environ.get("MIM4D_REAL_KEYFRAME", "")

pytestmark = pytest.mark.skipif(not ROOT, reason="MIM4D_REAL_KEYFRAME does not name a folder with a real key frame")


def test_a_real_key_frame_gives_rays_that_training_does_not_see():
    config = DataConfig(
        root=ROOT, version="v1.0-mini", holdout="rays", offsets=(-0.5, 0.0, 0.5), image_size=(225, 400), workers=0
    )
    train, val = open_datasets(config)
    assert len(train) == len(val) == 1
    batch, held = train[0], val[0]
    assert batch.valid.tolist() == [[False, True, False]]
    assert batch.images.shape == (1, 3, 6, 3, 256, 416)
    assert batch.target_valid.tolist() == [[True, False]]
    assert held.rays.has_depth.all()
    # nuScenes' LiDAR sees the road from about 4.5 m and reaches some 100 m.
    assert 3 < held.rays.depth.min() < 8
    assert held.rays.depth.max() < 110
    for n in range(6):
        seen, kept = ({tuple(p) for p in b.rays.pixels[0, 0, n].int().tolist()} for b in (batch, held))
        assert not seen & kept
    rgb, depth = fit_trivial(train).predict(torch.arange(6)[:, None], held.rays.pixels[..., 1])
    # Rows alone explain a road scene roughly: far better than one number for all, far from right.
    spread = (held.rays.depth - held.rays.depth.mean()).abs().mean()
    assert 1 < (depth - held.rays.depth).abs().mean() < 0.6 * spread
    assert (rgb - held.rays.rgb).abs().mean() < 0.2
