"""Numbers of a data set in the nuScenes format, side by side with those published of nuScenes.

``python -m mim4d.world.statistics ROOT`` prints them in Markdown, and for a world of :func:`mim4d.world.generate` also
how far its validation scenes are from its training scenes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim4d.errors import UserError
from mim4d.world import leakage
from mim4d.world.actors import MOVING
from mim4d.world.taxonomy import CLASSES, DETECTION

Array = NDArray[np.float64]
Rows = dict[str, list[dict[str, Any]]]

# What is published of nuScenes. The paper (arXiv 1903.11027, section 2 and supplement A) gives the means per key frame
# of vehicles and pedestrians, the ego's and the moving things' mean speeds and the sensors' rates. Annotations per
# category are what nuscenes-devkit's list_categories prints for v1.0-trainval; its key frames are 28130 + 6019.
KEY_FRAMES = 34_149
ANNOTATIONS = {
    "vehicle.car": 493_322,
    "vehicle.truck": 88_519,
    "vehicle.bus.bendy": 1_820,
    "vehicle.bus.rigid": 14_501,
    "vehicle.trailer": 24_860,
    "vehicle.construction": 14_671,
    "human.pedestrian.adult": 208_240,
    "human.pedestrian.child": 2_066,
    "human.pedestrian.construction_worker": 9_161,
    "human.pedestrian.police_officer": 727,
    "vehicle.motorcycle": 12_617,
    "vehicle.bicycle": 11_859,
    "movable_object.trafficcone": 97_959,
    "movable_object.barrier": 152_087,
}
SIZES = {  # mean width, length, height in metres of the class's commonest category, from the same list
    "car": (1.95, 4.62, 1.73),
    "truck": (2.51, 6.93, 2.84),
    "bus": (2.93, 11.23, 3.47),
    "trailer": (2.90, 12.29, 3.87),
    "construction_vehicle": (2.85, 6.37, 3.19),
    "pedestrian": (0.67, 0.73, 1.77),
    "motorcycle": (0.77, 2.11, 1.47),
    "bicycle": (0.60, 1.70, 1.28),
    "traffic_cone": (0.41, 0.41, 1.07),
    "barrier": (2.53, 0.50, 0.98),
}
SPEEDS = {"car": 6.6, "pedestrian": 1.3, "bicycle": 4.0}  # means of what moves, m/s
VEHICLES, PEDESTRIANS = 20, 7  # per key frame
EGO_SPEED = 16 / 3.6  # m/s
CAMERA_RATE, SWEEP_RATE = 12, 20  # per second
# list_attributes of v1.0-mini, 404 key frames.
ATTRIBUTES = {
    "vehicle.moving": 2715,
    "vehicle.parked": 4674,
    "vehicle.stopped": 1545,
    "cycle.with_rider": 305,
    "cycle.without_rider": 434,
    "pedestrian.moving": 3875,
    "pedestrian.standing": 1029,
    "pedestrian.sitting_lying_down": 111,
}
RINGS = (0, 10, 20, 30, 40, 50, 60, 80)  # metres


def read_tables(root: Path) -> Rows:
    """The tables of the one version in a data set. UserError where there is none, or more."""
    versions = sorted(p for p in root.glob("v1.0-*") if (p / "sample.json").is_file())
    if len(versions) != 1:
        raise UserError(f"{root}: want one version folder with tables, found {len(versions)}")
    names = ["sample", "sample_data", "sample_annotation", "instance", "category", "attribute", "visibility"]
    names += ["ego_pose", "scene", "calibrated_sensor", "sensor"]
    return {name: json.loads((versions[0] / f"{name}.json").read_text()) for name in names}


def _speed(row: dict[str, Any], rows: dict[str, dict[str, Any]], times: dict[str, int]) -> float:
    """m/s by differences between key frames, as the devkit takes them; NaN for a thing seen once."""
    a, b = rows.get(row["prev"], row), rows.get(row["next"], row)
    dt = (times[b["sample_token"]] - times[a["sample_token"]]) / 1e6
    d = np.subtract(b["translation"], a["translation"])
    return float(np.sqrt(d[0] ** 2 + d[1] ** 2) / dt) if dt > 0 else float("nan")


class Numbers:
    """What is counted. Boxes are those of the ten detection classes."""

    def __init__(self, root: Path) -> None:
        tables = read_tables(root)
        self.keys = len(tables["sample"])
        self.scenes = len(tables["scene"])
        times = {r["token"]: r["timestamp"] for r in tables["sample"]}
        poses = {r["token"]: r["translation"] for r in tables["ego_pose"]}
        sensor = {r["token"]: r["channel"] for r in tables["sensor"]}
        channel = {r["token"]: sensor[r["sensor_token"]] for r in tables["calibrated_sensor"]}
        lidar = [r for r in tables["sample_data"] if channel[r["calibrated_sensor_token"]] == "LIDAR_TOP"]
        ego = {r["sample_token"]: poses[r["ego_pose_token"]] for r in lidar if r["is_key_frame"]}
        self.points = np.array([(root / r["filename"]).stat().st_size // 20 for r in lidar if r["is_key_frame"]])
        category = {r["token"]: r["name"] for r in tables["category"]}
        name = {r["token"]: category[r["category_token"]] for r in tables["instance"]}
        level = {r["token"]: r["level"] for r in tables["visibility"]}
        attribute = {r["token"]: r["name"] for r in tables["attribute"]}
        boxes = {r["token"]: r for r in tables["sample_annotation"] if name[r["instance_token"]] in DETECTION}
        self.category = [name[r["instance_token"]] for r in boxes.values()]
        self.label = np.array([DETECTION[c][0] for c in self.category])
        self.hits = np.array([r["num_lidar_pts"] for r in boxes.values()])
        self.size = np.array([r["size"] for r in boxes.values()])
        self.speed = np.array([_speed(r, boxes, times) for r in boxes.values()])
        away = np.array([np.subtract(r["translation"], ego[r["sample_token"]]) for r in boxes.values()])
        self.distance = np.sqrt(away[:, 0] ** 2 + away[:, 1] ** 2)
        self.visibility = Counter(level[r["visibility_token"]] for r in boxes.values())
        self.attribute = Counter(attribute[t] for r in boxes.values() for t in r["attribute_tokens"])
        self.ego_speed = self._ego_speeds(tables["sample"], ego)
        seconds = sum(self._length(tables["sample"], s["token"], times) for s in tables["scene"])
        images = sum(channel[r["calibrated_sensor_token"]] != "LIDAR_TOP" for r in tables["sample_data"])
        self.image_rate, self.sweep_rate = images / seconds, len(lidar) / seconds

    @staticmethod
    def _length(samples: list[dict[str, Any]], scene: str, times: dict[str, int]) -> float:
        mine = [times[r["token"]] for r in samples if r["scene_token"] == scene]
        return (max(mine) - min(mine)) / 1e6

    @staticmethod
    def _ego_speeds(samples: list[dict[str, Any]], ego: dict[str, list[float]]) -> Array:
        rows = {r["token"]: r for r in samples}
        out = []
        for r in samples:
            if r["next"]:
                d = np.subtract(ego[r["next"]], ego[r["token"]])
                out.append(np.sqrt(d[0] ** 2 + d[1] ** 2) * 1e6 / (rows[r["next"]]["timestamp"] - r["timestamp"]))
        return np.array(out)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _published(label: str) -> float:
    """Boxes of a class per key frame of nuScenes."""
    return sum(n for c, n in ANNOTATIONS.items() if DETECTION[c][0] == label) / KEY_FRAMES


def _sizes(size: Array | tuple[float, float, float]) -> str:
    return " x ".join(f"{x:.1f}" for x in size)


def markdown(root: Path) -> str:
    """The tables of a data set."""
    n = Numbers(root)
    share = lambda counter, key: f"{100 * counter[key] / max(sum(counter.values()), 1):.0f} %"
    none = "not published"
    vehicles = np.isin(n.label, ["car", "truck", "bus", "trailer", "construction_vehicle", "motorcycle", "bicycle"])
    general = [
        ["scenes, key frames", f"{n.scenes}, {n.keys}", f"850, {KEY_FRAMES:,} (trainval)"],
        ["boxes per key frame", f"{len(n.label) / n.keys:.1f}", f"{sum(ANNOTATIONS.values()) / KEY_FRAMES:.1f}"],
        ["vehicles per key frame", f"{vehicles.sum() / n.keys:.1f}", f"{VEHICLES}"],
        ["pedestrians per key frame", f"{(n.label == 'pedestrian').sum() / n.keys:.1f}", f"{PEDESTRIANS}"],
        ["mean speed of the car", f"{n.ego_speed.mean():.1f} m/s", f"{EGO_SPEED:.1f} m/s"],
        ["images per second", f"{n.image_rate:.0f}", f"{6 * CAMERA_RATE}"],
        ["sweeps per second", f"{n.sweep_rate:.0f}", f"{SWEEP_RATE}"],
        ["LiDAR points per sweep, mean", f"{n.points.mean():,.0f}", none],
        ["most LiDAR points in a box", f"{n.hits.max():,}", "12,000 (at 3 m)"],
        ["most in a box beyond 70 m", f"{n.hits[n.distance > 70].max(initial=0):,}", "100 (at 80 m)"],
        ["boxes without a LiDAR point", f"{100 * (n.hits == 0).mean():.0f} %", none],
    ]
    classes = []
    for label in CLASSES:
        mine = n.label == label
        if not mine.any():
            classes.append([label, "0.0", f"{_published(label):.2f}"] + [""] * 4)
            continue
        moving = n.speed[mine & (n.speed > MOVING)]
        speed = f"{moving.mean():.1f}" if len(moving) else "-"
        published = f"{SPEEDS[label]:.1f}" if label in SPEEDS else "-"
        classes.append(
            [
                label,
                f"{mine.sum() / n.keys:.2f}",
                f"{_published(label):.2f}",
                f"{np.median(n.distance[mine]):.0f} m",
                f"{np.median(n.hits[mine]):.0f}, {np.percentile(n.hits[mine], 90):.0f}",
                f"{speed}, {published}",
                f"{_sizes(n.size[mine].mean(0))}, {_sizes(SIZES[label])}",
            ]
        )
    head = ["class", "boxes per key frame", "nuScenes", "median distance", "LiDAR points: median, 90 %"]
    head += ["mean speed of what moves, nuScenes (m/s)", "mean w x l x h, nuScenes (m)"]
    count, _ = np.histogram(n.distance, RINGS)
    rings = [
        [f"{a} to {b} m", f"{100 * c / len(n.label):.0f} %"] for (a, b), c in zip(pairwise(RINGS), count, strict=True)
    ]
    attributes = []
    for prefix in ("vehicle.", "cycle.", "pedestrian."):
        ours = Counter({k: c for k, c in n.attribute.items() if k.startswith(prefix)})
        theirs = Counter({k: c for k, c in ATTRIBUTES.items() if k.startswith(prefix)})
        attributes += [[k, share(ours, k), share(theirs, k)] for k in theirs]
    seen = [[k, share(n.visibility, k)] for k in ("v0-40", "v40-60", "v60-80", "v80-100")]
    return "\n\n".join(
        [
            _table(["", "here", "nuScenes"], general),
            _table(head, classes),
            _table(["attribute, share within its group", "here", "nuScenes (v1.0-mini)"], attributes),
            _table(["distance from the car", "share of boxes"], rings),
            _table(["visibility", "share of boxes"], seen),
        ]
    )


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m mim4d.world.statistics ROOT", file=sys.stderr)
        return 2
    root = Path(arguments[0])
    try:
        print(markdown(root))
        if (root / "world.json").is_file():
            print("\n" + leakage.markdown(root))
    except UserError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
