"""One training step on random clips, on the CPU with a tiny model: what is timed is a step that trains."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import gpu, step  # noqa: E402

TINY = """
data: {offsets: [-0.5, 0.0], image_size: [60, 96], rays_per_camera: 4, cameras: [CAM_FRONT, CAM_BACK],
       lidar_bounds: [-16, -16, -2, 16, 16, 4]}
model: {bounds: [-16, -16, -2, 16, 16, 4], grid: [8, 8, 3], channels: 8, backbone: convnext_atto, drop_path: 0.0,
        neck_channels: 16, lift_channels: 8, depth_bins: 8, depth_max: 17.0, mask_block: 16, local_mask: true,
        short_dim: 16, short_heads: 2, long_dim: 8, long_heads: 1, points: 2, n_uniform: 12, n_importance: 4}
train: {accumulate: 2, precision: bf16}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A configuration of the kind of the presets, so small that a step takes a moment on a CPU."""
    pytest.importorskip("timm", reason="timm is not installed: there is no model to step")
    from mim4d.engine.config import load_preset

    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(TINY)
    return load_preset(str(path))


def test_one_step_on_the_cpu(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--preset", tiny.preset, "--device", "cpu", "--steps", "1", "--json", str(tmp_path / "rows.jsonl")]
    assert step.main(arguments) == 0
    (row,) = gpu.rows_in(tmp_path / "rows.jsonl")
    assert row["outcome"] == "ok"
    assert row["kind"] == "step"
    assert (row["passes"], row["frames"], row["cameras"], row["rays"]) == (2, 2, 2, 16)
    assert row["parameters"] > 3_000_000
    assert len(row["losses"]) == 4  # two to warm up, one that is timed, one by phases
    assert row["ms"] > 0
    assert set(row["phases_ms"]) == {"forward", "backward", "optimizer"}
    assert row["revision"]
    assert "every parameter moved" in capsys.readouterr().out


def frozen(optimizer: torch.optim.Optimizer, train: Any, factor: float = 1.0) -> None:
    """The learning rate stays 0."""


def exploding(optimizer: torch.optim.Optimizer, train: Any, factor: float = 1.0) -> None:
    for group in optimizer.param_groups:
        group["lr"] = float("inf")


@pytest.mark.parametrize("plant, words", [(frozen, "did not move"), (exploding, "not finite")])
def test_a_step_that_does_not_train_gets_no_time(
    plant: Callable[..., None], words: str, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "set_rate", plant)
    config = replace(tiny, train=replace(tiny.train, accumulate=1))
    row = step.measure(config, "cpu", warmup=0, steps=1)
    assert words in row["outcome"]
    assert "ms" not in row
    assert words in step.shown(row)


def test_out_of_memory_is_told_with_the_size(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB. If reserved but unallocated ...")

    monkeypatch.setattr(step, "_measure", full)
    assert step.main(["--preset", tiny.preset, "--device", "cpu"]) == step.OUT_OF_MEMORY == gpu.OUT_OF_MEMORY
    row = step.measure(tiny, "cpu")
    assert row["outcome"] == "out of memory"
    assert row["words"] == "CUDA out of memory. Tried to allocate 3.00 GiB."
    said = capsys.readouterr().out
    assert "2 frames x 2 cameras of 60 x 96" in said
    assert "OUT OF MEMORY" in step.shown({**row, "peak_mb": 1.0})


def test_what_the_step_misses_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(step.importlib.util, "find_spec", lambda name: None)
    assert step.main([]) == 1
    assert capsys.readouterr().err == (
        "mim4d: the step needs timm for the image backbone and yaml for the presets (pyyaml), not installed here\n"
    )


def test_random_clips_have_the_sizes_of_the_preset() -> None:
    pytest.importorskip("timm", reason="timm is not installed: the presets' dataclasses cannot be read")
    from mim4d.engine.config import load_preset

    for name in gpu.PRESETS:
        data = load_preset(name).data
        small = replace(data, image_size=(45, 80), rays_per_camera=16)
        clips = step.random_clips(small, batch=2)
        assert clips.images.shape == (2, 5, 6, 3, 64, 96)
        assert not clips.images[..., 45:, :].any()
        assert not clips.images[..., 80:].any()
        assert clips.images[..., :45, :80].std() > 0.25
        assert clips.rays.depth.shape == (2, 2, 6, 16)
        assert clips.targets.tolist() == [[2, 0]] * 2
        torch.testing.assert_close(clips.rays.directions.norm(dim=-1), torch.ones(2, 2, 6, 16))
        hit = clips.rays.has_depth
        assert 0.3 < hit.float().mean() < 0.7
        assert (clips.rays.depth[~hit] == 0).all()
        ends = (clips.rays.origins + clips.rays.depth[..., None] * clips.rays.directions)[hit]
        bounds = torch.tensor(data.lidar_bounds)
        assert (ends > bounds[:3]).all()
        assert (ends < bounds[3:]).all()
        # a ray passes through its pixel
        camera = torch.linalg.inv(clips.frame_from_cam[:, 0, :, :3, :3])  # (B, N, 3, 3)
        seen = torch.einsum("bnij,bknrj->bknri", camera, clips.rays.directions)
        at = torch.einsum("ij,bknrj->bknri", clips.intrinsics[0, 0, 0], seen / seen[..., 2:])
        torch.testing.assert_close(at[..., :2], clips.rays.pixels, rtol=1e-5, atol=1e-3)
        assert (clips.rays.pixels[..., 1] >= 0.4 * 45).all()
