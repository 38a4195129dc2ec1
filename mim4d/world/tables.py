"""The thirteen nuScenes tables: what all worlds share, one scene's rows, and the tables made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.files import Note
from mim4d.world.geometry import quaternion
from mim4d.world.maps import token
from mim4d.world.recipe import Recipe, Slot
from mim4d.world.scene import Scene
from mim4d.world.sensors import CAMERAS, KEY_HZ, LIDAR, Rig
from mim4d.world.taxonomy import CATEGORIES
from mim4d.world.writer import CHANNELS, frame_count, key_frames, shots

Array = NDArray[np.float64]
Row = dict[str, Any]
Rows = dict[str, list[Row]]

ANNOTATION_RANGE = 80.0  # things further from the ego are not annotated, metres
VISIBILITY = ("v0-40", "v40-60", "v60-80", "v80-100")
VISIBILITY_EDGES = (0.4, 0.6, 0.8)
ATTRIBUTES = {
    "vehicle.moving": "Vehicle is moving.",
    "vehicle.stopped": "Vehicle, with a driver in or on it, is standing but may move on.",
    "vehicle.parked": "Vehicle is standing and will not move soon.",
    "cycle.with_rider": "There is a rider on the bicycle or motorcycle.",
    "cycle.without_rider": "There is no rider on the bicycle or motorcycle.",
    "pedestrian.moving": "The person is walking.",
    "pedestrian.standing": "The person is standing.",
    "pedestrian.sitting_lying_down": "The person is sitting or lying.",
}
TABLES: tuple[str, ...] = ("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map")
TABLES += ("sample", "sample_annotation", "sample_data", "scene", "sensor", "visibility")


def common_rows(root: str) -> Rows:
    """The rows that belong to no scene. ``root`` enters every token."""
    rows: Rows = {"attribute": [], "category": [], "visibility": [], "sensor": []}
    for k, text in ATTRIBUTES.items():
        rows["attribute"].append({"token": token(root, "attribute", k), "name": k, "description": text})
    for k, text in CATEGORIES.items():
        rows["category"].append({"token": token(root, "category", k), "name": k, "description": text})
    for i, level in enumerate(VISIBILITY):
        text = f"visibility of whole object is between {level[1:].replace('-', ' and ')}%"
        rows["visibility"].append({"token": str(i + 1), "level": level, "description": text})
    for channel in CHANNELS:
        modality = "lidar" if channel == LIDAR else "camera"
        rows["sensor"].append({"token": token(root, "sensor", channel), "channel": channel, "modality": modality})
    return rows


def map_place(root: str, location: str) -> str:
    """Where a location's mask lies in the world."""
    return f"maps/{token(root, 'mask', location)}.png"


def map_rows(root: str, slots: Iterable[Slot]) -> Rows:
    """One map per location, with the logs that were taken there."""
    logs: dict[str, list[str]] = {}
    for slot in slots:
        logs.setdefault(slot.location, []).append(token(root, slot.name, "log"))
    rows = []
    for location, tokens in logs.items():
        place = map_place(root, location)
        rows.append({"token": token(root, "map", place), "log_tokens": tokens, "category": "semantic_prior"})
        rows[-1]["filename"] = place
    return {"map": rows}


def text(rows: Iterable[Row]) -> str:
    """Rows as they stand in a table, without the brackets around all of them: tables are joined from such pieces."""
    return json.dumps(list(rows), indent=0)[2:-2]


def join(pieces: Iterable[str]) -> Iterator[bytes]:
    """The bytes of a table made of pieces of :func:`text`, of which some may be empty."""
    before = "[\n"
    for piece in pieces:
        if piece:
            yield (before + piece).encode()
            before = ",\n"
    yield b"[]" if before == "[\n" else b"\n]"


class SceneRows:
    """The rows of one scene, in ``rows``. ``notes``: what :meth:`SceneWriter.write` told of all its files."""

    def __init__(self, recipe: Recipe, slot: Slot, scene: Scene, rig: Rig, notes: Iterable[Note]) -> None:
        self.slot, self.scene, self.rig = slot, scene, rig
        self.root = recipe.token_root
        self.keys = key_frames(recipe.seconds)
        self.rows: Rows = {t: [] for t in TABLES if t not in ("attribute", "category", "visibility", "sensor", "map")}
        # Per key frame and actor: LiDAR points in its box; surface points seen by the cameras, and those in front of
        # them at all.
        shape = (self.keys, len(scene.actors))
        self.points, self.seen, self.inside = (np.zeros(shape, np.int64) for _ in range(3))
        for note in notes:
            for name in ("points", "seen", "inside"):
                self._add(getattr(self, name), note.get(name, {}))
        self.annotated = [""] * len(scene.actors)  # tokens of their instances
        self._log()
        for channel in (LIDAR, *CAMERAS):
            self._sensor(channel)
        self._annotations()
        self._scene()

    @staticmethod
    def _add(total: NDArray[np.int64], counted: Mapping[str, list[int]]) -> None:
        for key, counts in counted.items():
            total[int(key)] += counts

    def token(self, *parts: object) -> str:
        return token(self.root, self.slot.name, *parts)

    def _log(self) -> None:
        slot = self.slot
        row = {"token": self.token("log"), "logfile": slot.logfile, "vehicle": slot.vehicle}
        self.rows["log"].append({**row, "date_captured": slot.date, "location": slot.location})

    def _sensor(self, channel: str) -> None:
        """Calibration, and for every file its pose and its row."""
        camera = self.rig.cameras.get(channel)
        mount = self.rig.lidar.ego_from_lidar if camera is None else camera.ego_from_cam
        self.rows["calibrated_sensor"].append(
            {
                "token": self.token("calibrated", channel),
                "sensor_token": token(self.root, "sensor", channel),
                "translation": mount[:3, 3].tolist(),
                "rotation": quaternion(mount[:3, :3]),
                "camera_intrinsic": [] if camera is None else camera.intrinsics.tolist(),
            }
        )
        count = frame_count(self.scene.seconds, channel)
        for shot in shots(self.slot, self.rig, channel, range(count)):
            me, stamp = self.token("data", channel, shot.frame), self.slot.start_us + shot.t_us
            pose = self.scene.ego_pose(shot.t_us / 1e6)
            place = {"rotation": quaternion(pose[:3, :3]), "translation": pose[:3, 3].tolist()}
            self.rows["ego_pose"].append({"token": me, "timestamp": stamp, **place})
            self.rows["sample_data"].append(
                {
                    "token": me,
                    "sample_token": self.token("sample", shot.sample),
                    "ego_pose_token": me,
                    "calibrated_sensor_token": self.token("calibrated", channel),
                    "timestamp": stamp,
                    "fileformat": "pcd" if camera is None else "jpg",
                    "is_key_frame": shot.key,
                    "height": 0 if camera is None else camera.height,
                    "width": 0 if camera is None else camera.width,
                    "filename": shot.place,
                    "prev": self.token("data", channel, shot.frame - 1) if shot.frame else "",
                    "next": self.token("data", channel, shot.frame + 1) if shot.frame + 1 < count else "",
                }
            )

    def _annotations(self) -> None:
        """Boxes of everything near the ego at every key frame, chained per instance.

        As in nuScenes, what no LiDAR point ever lies on is not annotated. The order of instances and boxes is that of
        their tokens, which are hashes: it tells nothing.
        """
        for i in sorted(range(len(self.scene.actors)), key=lambda i: self.token("instance", i)):
            actor = self.scene.actors[i]
            chain = []
            for key in range(self.keys):
                t = key / KEY_HZ
                centre, _ = actor.pose(t)
                if exact.norm((centre - self.scene.ego_pose(t)[:3, 3])[:2]) < ANNOTATION_RANGE:
                    chain.append(key)
            if not self.points[chain, i].any():
                continue
            self.annotated[i] = self.token("instance", i)
            name = lambda key, i=i: self.token("annotation", i, key)
            instance = {
                "token": self.annotated[i],
                "category_token": token(self.root, "category", actor.category),
                "nbr_annotations": len(chain),
            }
            self.rows["instance"].append(
                {**instance, "first_annotation_token": name(chain[0]), "last_annotation_token": name(chain[-1])}
            )
            for n, key in enumerate(chain):
                rotation = actor.rotation(key / KEY_HZ)
                centre = actor.pose(key / KEY_HZ)[0]
                share = self.seen[key, i] / max(self.inside[key, i], 1)
                level = int(np.searchsorted(VISIBILITY_EDGES, share, side="right"))
                attribute = actor.attribute_at(key / KEY_HZ)
                self.rows["sample_annotation"].append(
                    {
                        "token": name(key),
                        "sample_token": self.token("sample", key),
                        "instance_token": self.token("instance", i),
                        "visibility_token": str(level + 1),
                        "attribute_tokens": [token(self.root, "attribute", attribute)] if attribute else [],
                        "translation": centre.tolist(),
                        "size": list(actor.size),
                        "rotation": quaternion(rotation),
                        "prev": name(chain[n - 1]) if n else "",
                        "next": name(chain[n + 1]) if n + 1 < len(chain) else "",
                        "num_lidar_pts": int(self.points[key, i]),
                        "num_radar_pts": 0,
                    }
                )
        self.rows["sample_annotation"].sort(key=lambda row: str(row["token"]))

    def _scene(self) -> None:
        for key in range(self.keys):
            row = {
                "token": self.token("sample", key),
                "timestamp": self.slot.start_us + round(key * 1e6 / KEY_HZ),
                "scene_token": self.token("scene"),
            }
            row["prev"] = self.token("sample", key - 1) if key else ""
            row["next"] = self.token("sample", key + 1) if key + 1 < self.keys else ""
            self.rows["sample"].append(row)
        row = {
            "token": self.token("scene"),
            "log_token": self.token("log"),
            "nbr_samples": self.keys,
            "name": self.slot.name,
            "description": f"synthetic, {len(self.scene.actors)} actors",
        }
        self.rows["scene"].append(
            {
                **row,
                "first_sample_token": self.token("sample", 0),
                "last_sample_token": self.token("sample", self.keys - 1),
            }
        )
