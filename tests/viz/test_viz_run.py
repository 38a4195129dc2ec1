"""Reading a run folder: every fault is one line that names its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.fake_run import CONFIG, renders, write_run

from mim4d.errors import UserError
from mim4d.viz.run import load_metrics, load_renders, load_run, read_settings, scores


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "renders/before.npz"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", frames=1)
    (run / name).unlink()
    with pytest.raises(UserError, match=Path(name).name) as raised:
        load_run(run)
    assert "\n" not in str(raised.value)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such run folder"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_broken_pictures_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "before.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"before\.npz: cannot be read"):
        load_renders(path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "before.npz"
    np.savez(path, **{**renders(False, 1), "token": np.array({"a": 1}, dtype=object)})
    with pytest.raises(UserError, match=r"before\.npz: cannot be read"):
        load_renders(path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"lidar": None}, "no entry 'lidar'"),
        ({"image": np.zeros((6, 4, 4))}, "'image' has shape"),
        ({"depth_direct": np.zeros((5, 4, 4))}, "there are 6 cameras"),
        ({"lidar": np.zeros((5, 3))}, r"'lidar' \(P, 4\)"),
        ({"boxes": np.zeros((5, 7))}, r"'boxes' \(M, 9\)"),
        ({"motion": np.zeros((4, 4))}, "'motion' has shape"),
    ],
)
def test_misshapen_pictures_are_named(tmp_path: Path, change: dict[str, np.ndarray | None], words: str) -> None:
    arrays = {name: array for name, array in {**renders(False, 1), **change}.items() if array is not None}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=rf"x\.npz.*{words}"):
        load_renders(tmp_path / "x.npz")


def test_pictures_of_different_frames_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", frames=1)
    np.savez(run / "renders" / "after.npz", **{**renders(True, 1), "token": np.array("another")})
    with pytest.raises(UserError, match=r"after\.npz.*another frame"):
        load_run(run)


@pytest.mark.parametrize("content, words", [("{", "line 1"), ("[1]", "wanted a JSON object, got list")])
def test_broken_summary_is_named(tmp_path: Path, content: str, words: str) -> None:
    run = write_run(tmp_path / "run", frames=1)
    (run / "summary.json").write_text(content)
    with pytest.raises(UserError, match=rf"summary\.json.*{words}"):
        load_run(run)


def test_metrics_of_a_stopped_and_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 1, "loss": 5.0},
        {"step": 2, "loss": 9.0},
        {"step": 2, "loss": 4.0, "lr": 0.1},
        {"step": 3, "loss": None},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + '\n{"step": 4, "lo')
    columns = load_metrics(path)
    np.testing.assert_array_equal(columns["step"], [1, 2, 3])
    np.testing.assert_array_equal(columns["loss"], [5.0, 4.0, np.nan])  # the later row of step 2 counts
    np.testing.assert_array_equal(columns["lr"], [np.nan, 0.1, np.nan])
    path.write_text('{"step": 1}\n{"loss": 2}\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2"):
        load_metrics(path)


def test_settings_by_dotted_name() -> None:
    tree = {
        "data": {
            "root": "/a b/c: d",
            "version": "v1.0-mini",
            "offsets": [-0.5, 0.0],
            "cameras": ["A", "B"],
            "holdout": "rays",
        },
        "model": {"bounds": [-51.2, 51.2], "backbone": "convnext_atto", "name": ""},
        "preset": "demo",
    }
    found = read_settings(yaml.safe_dump(tree))
    assert found == {
        "data.root": "/a b/c: d",
        "data.version": "v1.0-mini",
        "data.offsets": "-0.5, 0.0",
        "data.cameras": "A, B",
        "data.holdout": "rays",
        "model.bounds": "-51.2, 51.2",
        "model.backbone": "convnext_atto",
        "preset": "demo",
    }


@pytest.mark.parametrize("text", ["a: [1, 2", "just words", "", "- 1"])
def test_broken_settings_name_the_file(text: str) -> None:
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_settings(text, "config.yaml")


def test_scores() -> None:
    summary = {"val": {"before": {"rgb_l1": 0.5, "depth_l1_m": None}, "after": {}, "trivial": 3}}
    found = scores(summary, "val", "before")
    assert found is not None
    assert found["rgb_l1"] == 0.5
    assert np.isnan(found["depth_l1_m"])  # measured, but not a number
    assert scores(summary, "val", "after") is None
    assert scores(summary, "val", "trivial") is None
    assert scores(summary, "val_reconstructed", "after") is None


@pytest.mark.parametrize(
    "config, data, synthetic",
    [
        (CONFIG, None, False),
        (CONFIG.replace("data/world", "data/synthetic-world"), None, True),
        (CONFIG, {"synthetic": True}, True),
        (CONFIG.replace("data/world", "data/synthetic-world"), {"synthetic": False}, False),
        (CONFIG, {"description": "a synthetic street"}, True),
    ],
)
def test_synthetic_data_are_known(tmp_path: Path, config: str, data: object, synthetic: bool) -> None:
    run = write_run(tmp_path / "run", frames=1, config=config)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "data": data}))
    assert load_run(run).synthetic is synthetic


def test_lidar_meets_the_ray_that_covers_its_pixel(tmp_path: Path) -> None:
    arrays = renders(False, 1)
    arrays["image"] = arrays["masked_image"] = np.zeros((6, 95, 167, 3), np.uint8)
    arrays["stride"] = np.array(16)
    for name in ("rgb_direct", "depth_direct", "opacity_direct"):
        arrays[name] = arrays[name][:, :5, :10]  # 95 // 16, 167 // 16
    # 15 and 7 pixels are left over at the edges: stretching the rays over the whole image would miss by a ray
    v, u = np.array([63.5, 64.5, 79.5, 80.5, 94.5]), np.array([15.5, 16.5, 159.5, 160.5, 166.5])
    arrays["lidar"] = np.stack([np.full(5, 2.0), u, v, np.arange(5.0)], axis=-1)
    np.savez(tmp_path / "x.npz", **arrays)
    depth = np.arange(50.0).reshape(5, 10)  # row * 10 + column
    distance, drawn = load_renders(tmp_path / "x.npz").at_lidar(2, depth)
    assert distance.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert drawn.tolist() == [30.0, 41.0, 49.0, 49.0, 49.0]
