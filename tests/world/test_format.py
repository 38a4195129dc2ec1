"""The files: what nuscenes-devkit and its users rely on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.world_truth import SECONDS, SIZE, Truth
from nuscenes.map_expansion import arcline_path_utils
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.utils import splits
from PIL import Image

from mim4d.world.recipe import MINI_TRAIN, MINI_VAL, scene_names
from mim4d.world.sensors import CAMERAS
from mim4d.world.tables import TABLES

CHANNELS = [*CAMERAS, "LIDAR_TOP"]


def test_all_tables_are_there_and_tokens_are_unique(root: Path) -> None:
    for table in TABLES:
        rows = json.loads((root / "v1.0-mini" / f"{table}.json").read_text())
        tokens = [r["token"] for r in rows]
        assert rows, table
        assert len(set(tokens)) == len(tokens), table
    assert len(TABLES) == 13


def test_scene_names_are_those_of_the_devkits_splits(nusc: Any) -> None:
    assert list(MINI_TRAIN) == splits.mini_train
    assert list(MINI_VAL) == splits.mini_val
    assert [s["name"] for s in nusc.scene] == ["scene-0061", "scene-0103"]


@pytest.mark.parametrize("scenes, train, validation", [(2, 1, 1), (5, 4, 1), (9, 8, 1), (10, 8, 2)])
def test_the_last_fifth_is_for_validation(scenes: int, train: int, validation: int) -> None:
    a, b = scene_names(scenes)
    assert (len(a), len(b)) == (train, validation)


def test_every_file_is_there_with_the_right_size(root: Path, nusc: Any) -> None:
    for row in nusc.sample_data:
        path = root / row["filename"]
        assert path.name.endswith(f"__{row['channel']}__{row['timestamp']}.{path.name.split('.', 1)[1]}")
        assert row["filename"].startswith("samples/" if row["is_key_frame"] else "sweeps/")
        if row["sensor_modality"] == "camera":
            with Image.open(path) as image:
                assert image.size == (row["width"], row["height"]) == SIZE[::-1]
                assert image.format == "JPEG"
        else:
            assert path.stat().st_size % 20 == 0
            assert path.stat().st_size > 20 * 10_000
    written = {str(p.relative_to(root)) for top in ("samples", "sweeps") for p in (root / top).rglob("*.*")}
    assert written == {r["filename"] for r in nusc.sample_data}


def test_sensors_fire_at_their_rates(truth: Truth) -> None:
    keys = int(SECONDS * 2) + 1
    for channel in CHANNELS:
        rows = truth.data(channel)
        rate = 20 if channel == "LIDAR_TOP" else 12
        times = np.array([truth.seconds(r["timestamp"]) for r in rows])
        assert len(rows) == (keys - 1) * rate // 2 + 1
        np.testing.assert_allclose(np.diff(times), 1 / rate, atol=2e-6)  # whole microseconds
        assert [r["is_key_frame"] for r in rows] == [i % (rate // 2) == 0 for i in range(len(rows))]
    fronts = [truth.data(c, key_only=True)[1]["timestamp"] for c in CAMERAS]
    assert len(set(fronts)) == 6  # every camera at its own time
    sample = truth.data("LIDAR_TOP", key_only=True)[1]["timestamp"]
    assert all(0 <= sample - t <= 50_000 for t in fronts)


def test_chains_run_through(truth: Truth) -> None:
    nusc = truth.nusc
    samples = [s for s in nusc.sample if s["scene_token"] == truth.row["token"]]
    assert truth.row["nbr_samples"] == len(samples)
    walk = _walk(nusc, "sample", truth.row["first_sample_token"])
    assert [s["token"] for s in walk] == [s["token"] for s in samples]
    assert walk[-1]["token"] == truth.row["last_sample_token"]
    for sample in samples:
        assert sorted(sample["data"]) == sorted(CHANNELS)
    for channel in CHANNELS:
        rows = truth.data(channel)
        assert [r["token"] for r in _walk(nusc, "sample_data", rows[0]["token"])] == [r["token"] for r in rows]
        for row in rows:  # what lies between two key frames belongs to the later one
            sample = nusc.get("sample", row["sample_token"])
            assert sample["timestamp"] - 500_000 - 50_000 < row["timestamp"] <= sample["timestamp"]
    for instance in nusc.instance:
        walk = _walk(nusc, "sample_annotation", instance["first_annotation_token"])
        assert len(walk) == instance["nbr_annotations"]
        assert walk[-1]["token"] == instance["last_annotation_token"]
        assert {a["instance_token"] for a in walk} == {instance["token"]}


def _walk(nusc: Any, table: str, token: str) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    while token:
        row = nusc.get(table, token)
        assert row["prev"] == (out[-1]["token"] if out else "")
        out.append(row)
        token = row["next"]
    return out


def test_annotations_have_what_the_detection_metric_wants(nusc: Any) -> None:
    from nuscenes.eval.detection.utils import category_to_detection_name

    names = set()
    for a in nusc.sample_annotation:
        name = category_to_detection_name(a["category_name"])
        assert name is not None
        names.add(name)
        attributes = [nusc.get("attribute", t)["name"] for t in a["attribute_tokens"]]
        assert len(attributes) == (0 if name in ("barrier", "traffic_cone") else 1)
        assert min(a["size"]) > 0.2
        assert np.linalg.norm(a["rotation"]) == pytest.approx(1, abs=1e-12)
    assert len(names) >= 8  # of ten; a class is left out where there was no room for it
    levels = {nusc.get("visibility", a["visibility_token"])["level"] for a in nusc.sample_annotation}
    assert levels >= {"v0-40", "v80-100"}


def test_maps_load_and_the_ego_drives_on_a_lane(root: Path, truth: Truth) -> None:
    log = truth.nusc.get("log", truth.row["log_token"])
    expansion = NuScenesMap(str(root), log["location"])
    mask = truth.nusc.get("map", log["map_token"])["mask"]
    lidar = truth.data("LIDAR_TOP", key_only=True)
    on_lane = 0
    for row in lidar:
        x, y, _ = truth.nusc.get("ego_pose", row["ego_pose_token"])["translation"]
        assert mask.is_on_mask(x, y)[0]
        assert expansion.record_on_point(x, y, "drivable_area")
        on_lane += bool(expansion.record_on_point(x, y, "lane") or expansion.record_on_point(x, y, "road_segment"))
    assert on_lane == len(lidar)
    x, y, _ = truth.nusc.get("ego_pose", lidar[0]["ego_pose_token"])["translation"]
    layers = ["drivable_area", "lane", "ped_crossing", "walkway", "road_divider", "lane_divider", "stop_line"]
    masks = expansion.get_map_mask((x, y, 90.0, 90.0), 0.0, layers, (180, 180))
    assert (masks.reshape(len(layers), -1).sum(1) > 0).all()


def test_lane_centre_lines_end_where_their_lanes_end(root: Path, truth: Truth) -> None:
    expansion = NuScenesMap(str(root), truth.nusc.get("log", truth.row["log_token"])["location"])
    for lane in expansion.lane:
        for arc in expansion.get_arcline_path(lane["token"]):
            # The devkit rolls the arc out from its start pose: it must arrive at the end pose.
            end = arcline_path_utils.pose_at_length(arc, arcline_path_utils.length_of_lane([arc]))
            np.testing.assert_allclose(end[:2], arc["end_pose"][:2], atol=1e-3)
            assert np.cos(end[2] - arc["end_pose"][2]) == pytest.approx(1, abs=1e-6)
        # The edge at the end is straight; across a bend its middle leaves the arc by 3.5^2 / 8 R = 9 mm at 170 m, and
        # where a cross street fans out, 97 m outside the bend, by 14.1 mm.
        edge = [expansion.get("node", n) for n in expansion.get("line", lane["to_edge_line_token"])["node_tokens"]]
        np.testing.assert_allclose(np.mean([(n["x"], n["y"]) for n in edge], 0), end[:2], atol=0.0142)
