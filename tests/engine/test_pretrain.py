"""The main job on a tiny world: what it writes, how it resumes, what it refuses, how it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mim4d
from mim4d.cli import main
from mim4d.engine import pretrain as job
from mim4d.engine.checkpoint import latest, steps_saved
from mim4d.engine.logbook import read_rows
from mim4d.engine.signals import Interrupted, TrainingFailed
from mim4d.errors import UserError

ROOT = Path(mim4d.__file__).parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tiny_world, tiny_preset, tmp_path_factory) -> Path:
    """A finished run of 4 steps that was never stopped, and that timed its step at the end."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    arguments = ["--preset", str(tiny_preset), "--data.root", str(tiny_world), "--out", str(run)]
    assert main(["pretrain", *arguments, "--train.compare-steps", "1"]) == 0
    return run


def test_voxels_may_pull_from_the_images(tiny_world, tiny_preset, tmp_path):
    options = ["--model.view-transform", "pull", "--model.feature-stride", "16", "--train.steps", "1"]
    command = ["pretrain", "--preset", str(tiny_preset), "--data.root", str(tiny_world), "--out", str(tmp_path / "run")]
    assert main([*command, *options]) == 0
    assert "voxels pull from images" in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["finished"] is True


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "optimizer.safetensors")}


def losses(run: Path) -> list[dict]:
    """Rows of the log without the times."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(run / "metrics.jsonl")]


def test_the_folder_holds_what_the_design_says(whole):
    assert {path.name for path in whole.iterdir() if not path.name.startswith(".")} == {
        "config.yaml",
        "summary.json",
        "metrics.jsonl",
        "report.html",
        "checkpoints",
        "renders",
        "tensorboard",
    }
    assert steps_saved(whole) == [4]
    assert len(list((whole / "renders" / "after").glob("CAM_*.png"))) == 6


def test_summary(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["finished"] is True
    assert summary["steps"] == 4
    assert summary["seconds"] > summary["training_seconds"] > 0
    assert set(summary["val"]) == {"before", "after", "trivial"}
    assert set(summary["val_reconstructed"]) == {"before", "after", "trivial"}
    for group in ("val", "val_reconstructed"):
        for numbers in summary[group].values():
            assert set(numbers) == {"rgb_l1", "depth_l1_m"}
            assert all(np.isfinite(value) and value > 0 for value in numbers.values())
    assert summary["val"]["before"] != summary["val"]["after"]
    assert summary["data"]["synthetic"] is True
    assert summary["data"]["world"]["scenes"] == 2  # what the page needs to say how the data were made
    assert summary["environment"]["torch"] == torch.__version__
    assert summary["environment"]["backends"]["voxel_sample"]["reference"] is None


def test_step_times_stand_in_the_summary(whole):
    found = json.loads((whole / "summary.json").read_text())["step_times"]
    assert found["samples"] == 12
    assert found["rays"] == 2 * 6 * 4  # targets, cameras, rays
    for name in ("own", "reference"):
        assert len(found[name]["seconds"]) == 1
        assert found[name]["seconds"][0] > 0
        assert {"voxel_pool", "ms_deform_attn", "sdf_sample", "sdf_march"} <= set(found[name]["backends"])
    assert all(ran == ["reference"] for ran in found["reference"]["backends"].values())
    best = next(iter(mim4d.backends.available("sdf_march", CPU, dtype=torch.float32, mode="trilinear")))
    if mim4d.backends.reason_against("sdf_march", best, CPU, dtype=torch.float32, mode="trilinear") is None:
        assert found["own"]["backends"]["sdf_march"] == [best]


def test_rows(whole):
    rows = read_rows(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    wanted = {"step", "epoch", "loss", "lr", "seconds", "grad_norm", "rgb_direct", "depth_direct"}
    wanted |= {"rgb_l1_direct", "depth_l1_m_direct", "rgb_l1_reconstructed", "depth_l1_m_reconstructed"}
    # four clips, each once; the scene's first has no earlier frame to be rebuilt from: no number rather than a zero
    full = [row for row in rows if wanted <= set(row)]
    assert len(full) == 3
    (single,) = [row for row in rows if row not in full]
    assert wanted - set(single) == {"rgb_l1_reconstructed", "depth_l1_m_reconstructed"}
    assert rows[1]["lr"] == pytest.approx(4e-3 / 8)  # one clip per step, warm-up of one step
    assert rows[3]["lr"] == pytest.approx(4e-3 / 8 * 1e-3)
    for row in rows:
        parts = sum(row.get(f"{kind}_{path}", 0) for kind in ("rgb", "depth") for path in ("direct", "reconstructed"))
        assert row["loss"] == pytest.approx(parts, rel=1e-5)


def test_renders_before_and_after(whole):
    pictures = {when: np.load(whole / "renders" / f"{when}.npz") for when in ("before", "after")}
    for arrays in pictures.values():
        assert arrays["image"].shape == arrays["masked_image"].shape == (6, 64, 112, 3)
        assert arrays["rgb_direct"].shape == (6, 4, 7, 3)
        assert arrays["depth_direct"].shape == arrays["opacity_direct"].shape == (6, 4, 7)
        assert arrays["bev_direct"].shape == arrays["sdf_slice"].shape == (12, 12)
        assert arrays["motion"].shape == (2, 12, 12)
        assert arrays["lidar"].shape[1] == 4
        assert arrays["boxes"].shape[1] == 9
        hidden = (arrays["masked_image"] == 0).all(axis=-1) & ~(arrays["image"] == 0).all(axis=-1)
        assert 0.2 < hidden.mean() < 0.4  # 30 % of the blocks
    before, after = pictures["before"], pictures["after"]
    assert np.array_equal(before["image"], after["image"])
    assert np.array_equal(before["masked_image"], after["masked_image"])
    assert not np.array_equal(before["depth_direct"], after["depth_direct"])


def test_a_run_stopped_and_continued_equals_one_that_never_stopped(whole, tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    tiny.train.save_every = 1

    def stop_after_two(job_, *arguments, step_=job._one_step, **more):
        row = step_(job_, *arguments, **more)
        return {**row, "stop": float(arguments[0] == 1)}

    with monkeypatch.context() as patch:
        patch.setattr(job, "_one_step", stop_after_two)
        with pytest.raises(Interrupted, match=r"step 2 of 4; go on with: mim4d pretrain"):
            job.pretrain(tiny, run)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finished"] is False
    assert set(summary["val"]) == {"before", "trivial"}
    with (run / "metrics.jsonl").open("a") as rows:  # a later step that was never saved, and a torn line
        rows.write('{"step": 3, "loss": 1e9}\n{"step"')
    assert main(["pretrain", "--out", str(run)]) == 0  # the run is its own preset
    ours, theirs = weights(run, 4), weights(whole, 4)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert losses(run) == losses(whole)
    mine, others = (json.loads((folder / "summary.json").read_text()) for folder in (run, whole))
    assert mine["val"] == others["val"]
    assert mine["val_reconstructed"] == others["val_reconstructed"]


def test_seeds(whole, tiny, tmp_path):
    tiny.train.steps, tiny.train.seed = 1, 1
    job.pretrain(tiny, tmp_path / "other")
    assert read_rows(tmp_path / "other" / "metrics.jsonl")[0]["loss"] != read_rows(whole / "metrics.jsonl")[0]["loss"]


def test_long_work_is_announced(tiny, tmp_path, capsys):
    tiny.train.steps = 1
    job.pretrain(tiny, tmp_path / "run")
    out = capsys.readouterr().out
    assert out.startswith(f"reading {tiny.data.root}\n")
    for line in ("drawing the pictures before training", "drawing the pictures after training", "writing the report"):
        assert f"\n{line}\n" in out


def test_a_finished_run_says_so(whole, capsys):
    rows, stamp = losses(whole), (whole / "summary.json").stat().st_mtime_ns
    assert main(["pretrain", "--out", str(whole)]) == 0
    assert "is finished (4 steps)" in capsys.readouterr().out
    assert losses(whole) == rows
    assert (whole / "summary.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "must hold keys and values"),
        ("{", "cannot read"),
        ('{"finished": true}', "steps is missing"),
        ('{"finished": true, "steps": 4}', "val is missing"),
        (
            '{"finished": false, "steps": 4, "val": {"before": {}, "trivial": {}}}',
            "val before needs the numbers rgb_l1",
        ),
        ('{"finished": false, "steps": 4, "val": {"before": 3}}', "val before needs the numbers rgb_l1"),
        ('{"finished": false, "steps": 4, "val": {}, "val_reconstructed": []}', "val_reconstructed must hold keys"),
        ('{"finished": false, "steps": 4, "val": {}}', "no usable summary.json"),
    ],
)
def test_a_damaged_summary_is_one_line_naming_the_file(content, words, whole, capsys):
    path = whole / "summary.json"
    good = path.read_text()
    path.write_text(content)
    try:
        assert main(["pretrain", "--out", str(whole)]) == 2
    finally:
        path.write_text(good)
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1
    assert "summary.json" in line
    assert words in line


def test_null_in_a_summary_is_not_a_number(tmp_path):
    from mim4d.engine.folder import read_summary

    val = {"before": {"rgb_l1": 0.5, "depth_l1_m": None}}
    (tmp_path / "summary.json").write_text(json.dumps({"finished": False, "steps": 0, "val": val}))
    assert np.isnan(read_summary(tmp_path)["val"]["before"]["depth_l1_m"])


def test_another_configuration_is_refused_naming_the_keys(whole, tiny_world, tiny_preset, capsys):
    arguments = ["--preset", str(tiny_preset), "--data.root", str(tiny_world), "--out", str(whole)]
    assert main(["pretrain", *arguments, "--train.lr", "1e-3", "--model.channels", "4"]) == 2
    line = capsys.readouterr().err
    assert "is a run of another configuration" in line
    assert "train.lr: 0.004 -> 0.001" in line
    assert "model.channels: 8 -> 4" in line
    assert main(["pretrain", "--out", str(whole), "--train.steps", "3"]) == 2
    assert "train.steps may grow, not shrink to 3" in capsys.readouterr().err


def test_a_run_may_grow(tiny, tmp_path):
    tiny.train.steps = 1
    first = job.pretrain(tiny, tmp_path / "run")
    assert main(["pretrain", "--out", str(tmp_path / "run"), "--train.steps", "2", "--train.keep", "0"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["val"]["before"] == first["val"]["before"]
    assert summary["val"]["after"] != first["val"]["after"]
    assert steps_saved(tmp_path / "run") == [1, 2]


def test_other_data_under_the_same_configuration_are_refused(whole, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_fingerprint", lambda *datasets: "another one")
    tiny.train.steps = 5
    with pytest.raises(UserError, match=r"are not those that .* was trained on"):
        job.pretrain(tiny, whole)


def test_a_folder_with_other_things_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex"):
        job.pretrain(tiny, tmp_path)
    with pytest.raises(UserError, match="is a file"):
        job.pretrain(tiny, tmp_path / "thesis.tex")


def test_two_processes_cannot_train_in_one_run(tmp_path):
    from mim4d.engine.folder import locked

    with locked(tmp_path), pytest.raises(UserError, match="another process is training"), locked(tmp_path):
        pass
    with locked(tmp_path):  # free again
        pass


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_spoilt(tiny, tmp_path, monkeypatch):
    tiny.train.save_every = 1
    forward = mim4d.models.MIM4D.forward
    calls = []

    def nan_at_the_second_step(self, batch, generator=None):
        output = forward(self, batch, generator)
        calls.append(batch.tokens) if self.training else None
        if len(calls) == 2:
            output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(mim4d.models.MIM4D, "forward", nan_at_the_second_step)
    with pytest.raises(TrainingFailed) as caught:
        job.pretrain(tiny, tmp_path / "run")
    words = str(caught.value)
    assert "the loss is not finite at step 2" in words
    assert calls[1][0] in words
    assert "step-000001" in words
    assert steps_saved(tmp_path / "run") == [1]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(tmp_path / "run", 1).values())


def test_accumulation_takes_the_same_clips_as_one_large_batch(tiny, tmp_path):
    """One step of 2 clips and one of 2 x 1 clip agree but for what is drawn per pass (here the jitter alone)."""
    tiny.model.mask_ratio, tiny.model.drop_path, tiny.train.steps = 0.0, 0.0, 1
    rows = []
    for batch, accumulate in ((2, 1), (1, 2)):
        tiny.train.batch, tiny.train.accumulate = batch, accumulate
        job.pretrain(tiny, tmp_path / f"run{batch}")
        rows.append(read_rows(tmp_path / f"run{batch}" / "metrics.jsonl")[0])
    assert rows[0]["lr"] == rows[1]["lr"]
    # the jitter within a section is all that differs; measured 3e-3
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=0.05)


def test_what_no_ray_measured_is_absent_from_the_log(tiny, tmp_path, monkeypatch):
    """Two passes per step: one without LiDAR and without a neighbour in step 1, both in step 2."""
    tiny.train.accumulate, tiny.train.steps = 2, 2
    forward = mim4d.models.MIM4D.forward
    seen = []

    def blind(self, batch, generator=None):
        if self.training:
            if len(seen) != 1:
                batch.rays.has_depth[:] = False
                batch.valid[:] = torch.arange(batch.valid.shape[1]) == batch.key
                batch.target_valid[:] = batch.targets == batch.key
            output = forward(self, batch, generator)
            seen.append({name: value.item() for name, value in output.metrics.items()})
            return output
        return forward(self, batch, generator)

    monkeypatch.setattr(mim4d.models.MIM4D, "forward", blind)
    job.pretrain(tiny, tmp_path / "run")
    first, second = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert len(seen) == 4
    assert first["depth_l1_m_direct"] == pytest.approx(seen[1]["depth_l1_m_direct"])
    assert first["rgb_l1_direct"] == pytest.approx((seen[0]["rgb_l1_direct"] + seen[1]["rgb_l1_direct"]) / 2)
    assert first.get("rgb_l1_reconstructed", np.nan) == pytest.approx(seen[1]["rgb_l1_reconstructed"], nan_ok=True)
    assert np.isfinite(second["loss"])
    assert "rgb_l1_direct" in second
    assert not {"depth_l1_m_direct", "rgb_l1_reconstructed", "depth_l1_m_reconstructed"} & set(second)


def test_render_draws_the_newest_checkpoint_again(whole, capsys):
    before = dict(np.load(whole / "renders" / "after.npz"))
    (whole / "renders" / "after.npz").unlink()
    (whole / "report.html").unlink()
    assert main(["render", str(whole)]) == 0
    assert (whole / "report.html").is_file()
    again = np.load(whole / "renders" / "after.npz")
    assert set(again) == set(before)
    for name, array in before.items():
        assert np.array_equal(again[name], array), name
    assert main(["render", str(whole), "--clip", "0", "--stride", "32"]) == 0
    assert np.load(whole / "renders" / "clip-0000.npz")["depth_direct"].shape == (6, 2, 3)
    assert main(["render", str(whole), "--clip", "99"]) == 2
    assert main(["render", str(whole), "--step", "3"]) == 2
    assert "no checkpoint of step 3 (there are: 4)" in capsys.readouterr().err


def test_a_single_frame_run_has_no_reconstruction(tiny, tmp_path):
    tiny.data.offsets, tiny.train.steps = (0.0,), 1
    summary = job.pretrain(tiny, tmp_path / "run")
    assert "val_reconstructed" not in summary
    assert "motion" not in np.load(tmp_path / "run" / "renders" / "after.npz")


@pytest.fixture
def fresh_accelerate():
    """accelerate fixes the precision once per process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_bf16(tiny, tmp_path, fresh_accelerate, capsys):
    tiny.train.precision, tiny.train.steps = "bf16", 1
    summary = job.pretrain(tiny, tmp_path / "run")
    assert all(np.isfinite(value) for numbers in summary["val"].values() for value in numbers.values())
    stored = load_file(latest(tmp_path / "run") / "model.safetensors")
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in stored.values())
    after = dict(np.load(tmp_path / "run" / "renders" / "after.npz"))
    assert main(["render", str(tmp_path / "run")]) == 0
    again = np.load(tmp_path / "run" / "renders" / "after.npz")
    assert np.array_equal(again["depth_direct"], after["depth_direct"])  # drawn under the same autocast


def test_rays_can_be_held_out_instead_of_scenes(tiny, tmp_path):
    tiny.data.holdout, tiny.data.offsets, tiny.train.steps = "rays", (0.0,), 1
    summary = job.pretrain(tiny, tmp_path / "run")
    assert summary["data"]["train_clips"] == summary["data"]["val_clips"]
    assert summary["val"]["trivial"]["depth_l1_m"] > 0


@pytest.mark.slow
def test_two_processes_compute_what_one_computes_in_two_passes(tiny_world, tiny_preset, tmp_path):
    arguments = ["pretrain", "--preset", str(tiny_preset), "--data.root", str(tiny_world), "--train.steps", "2"]
    arguments += ["--train.threads", "1"]  # the number of threads changes the order of sums
    arguments += ["--model.drop-path", "0"]  # the one draw that torch's own generator makes on each device
    assert main([*arguments, "--out", str(tmp_path / "one"), "--train.accumulate", "2"]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mim4d"]
    result = subprocess.run(
        [*torchrun, *arguments, "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    one, two = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["lr"] == b["lr"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["environment"]["processes"] == 2
    assert summary["val"]["before"] == pytest.approx(
        json.loads((tmp_path / "one" / "summary.json").read_text())["val"]["before"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(number, tiny_world, tiny_preset, tmp_path):
    run = tmp_path / "run"
    arguments = ["--preset", str(tiny_preset), "--data.root", str(tiny_world), "--out", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mim4d", "pretrain", *arguments, "--train.steps", "5000", "--data.workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 240
    while len(read_rows(run / "metrics.jsonl")) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    os.killpg(process.pid, number)  # the whole group, as a terminal does: the loading worker gets it too
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert errors.strip().splitlines()[-1].startswith("mim4d: stopped after step ")
    assert f"go on with: mim4d pretrain --out {run}" in errors
    assert "Traceback" not in errors
    saved = latest(run)
    assert saved is not None
    assert f"step {int(saved.name[5:])} of 5000" in errors
