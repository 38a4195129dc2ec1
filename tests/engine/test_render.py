"""What the pictures of a run hold, and which files a later rendering may overwrite."""

from __future__ import annotations

import json

import numpy as np
import torch

from mim4d.cli import main
from mim4d.data import open_datasets
from mim4d.engine import pretrain as job
from mim4d.engine.render import draw
from mim4d.models import build_model


def test_lidar_of_the_pictures_is_held_out(tiny):
    tiny.data.holdout, tiny.data.offsets = "rays", (0.0,)
    train, val = open_datasets(tiny.data, seed=0)
    lidar = draw(build_model(tiny.model), val, 1, stride=32, device=torch.device("cpu"))["lidar"]  # (P, 4)
    everything, trained = 0, set()
    for camera, (_, hits) in enumerate(val.key_cameras(1)):
        everything += len(hits)
        _, seen = train.key_cameras(1, drawn_only=True)[camera]
        rows = np.column_stack([np.full(len(seen), camera), seen.uv, seen.depth]).astype(np.float32)
        trained |= {row.tobytes() for row in rows}
    assert 0 < len(lidar) < everything
    assert len(lidar) + len(trained) == everything
    assert not trained & {row.tobytes() for row in lidar}


def test_only_the_last_step_of_a_finished_run_is_its_result(tiny, tmp_path, capsys):
    tiny.data.offsets, tiny.train.steps, tiny.train.save_every, tiny.train.keep = (0.0,), 2, 1, 2
    run = tmp_path / "run"
    job.pretrain(tiny, run)
    renders, report = run / "renders", run / "report.html"
    result = (renders / "after.npz").read_bytes()
    report.write_text("as it was")
    capsys.readouterr()

    assert main(["render", str(run), "--step", "1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "after.npz and the report stay as they are: the run's last step is 2" in told
    assert len(list((renders / "step-000001").glob("CAM_*.png"))) == 6
    early = np.load(renders / "step-000001.npz")
    assert not np.array_equal(early["depth_direct"], np.load(renders / "after.npz")["depth_direct"])
    assert main(["render", str(run), "--step", "1", "--clip", "0"]) == 0
    assert (renders / "step-000001-clip-0000.npz").is_file()

    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "finished": False}))  # as before the end
    assert main(["render", str(run)]) == 0
    assert "the run is not finished" in " ".join(capsys.readouterr().out.split())
    assert (renders / "step-000002.npz").is_file()
    assert (renders / "after.npz").read_bytes() == result
    assert report.read_text() == "as it was"

    (run / "summary.json").write_text(json.dumps(summary))
    assert main(["render", str(run), "--step", "2"]) == 0
    assert report.read_text().startswith("<!")
