"""Writes one scene's files and collects the rows of the thirteen nuScenes tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mim4d.world.geometry import quaternion, yaw_matrix
from mim4d.world.maps import token
from mim4d.world.scene import Moment, Scene
from mim4d.world.sensors import (
    CAMERA_HZ,
    CAMERAS,
    KEY_HZ,
    LIDAR,
    LIDAR_HZ,
    Camera,
    Rig,
    camera_view,
    render,
    sweep,
)
from mim4d.world.shading import Shader
from mim4d.world.taxonomy import CATEGORIES

Array = NDArray[np.float64]
Row = dict[str, Any]

VERSION = "v1.0-mini"
JPEG_QUALITY = 92
ANNOTATION_RANGE = 80.0  # things further from the ego are not annotated, metres
VISIBILITY = ("v0-40", "v40-60", "v60-80", "v80-100")
VISIBILITY_EDGES = (0.4, 0.6, 0.8)
SURFACE_POINTS = 40  # tested per actor and camera for visibility
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


def key_frames(seconds: float) -> int:
    """Number of key frames of a scene of so many seconds: both ends count."""
    return int(seconds * KEY_HZ + 1e-9) + 1


def scene_files(seconds: float) -> int:
    """Images and sweeps of a scene."""
    gaps = key_frames(seconds) - 1
    return len(CAMERAS) * (gaps * CAMERA_HZ // KEY_HZ + 1) + gaps * LIDAR_HZ // KEY_HZ + 1


class Tables:
    """The rows of a data set that grows scene by scene under ``root``."""

    def __init__(self, root: Path, name: str) -> None:
        """``name`` enters every token, so that two different worlds share none."""
        self.root, self.name = root, name
        self.rows: dict[str, list[Row]] = {t: [] for t in TABLES}
        for k, text in ATTRIBUTES.items():
            self.rows["attribute"].append({"token": self.token("attribute", k), "name": k, "description": text})
        for k, text in CATEGORIES.items():
            self.rows["category"].append({"token": self.token("category", k), "name": k, "description": text})
        for i, level in enumerate(VISIBILITY):
            text = f"visibility of whole object is between {level[1:].replace('-', ' and ')}%"
            self.rows["visibility"].append({"token": str(i + 1), "level": level, "description": text})
        for channel in (*CAMERAS, LIDAR):
            modality = "lidar" if channel == LIDAR else "camera"
            self.rows["sensor"].append(
                {"token": self.token("sensor", channel), "channel": channel, "modality": modality}
            )
        for folder in ("samples", "sweeps"):
            for channel in (*CAMERAS, LIDAR):
                (root / folder / channel).mkdir(parents=True, exist_ok=True)

    def token(self, *parts: object) -> str:
        return token(self.name, *parts)

    def add_map(self, filename: str, logs: list[str]) -> None:
        row = {
            "token": self.token("map", filename),
            "log_tokens": logs,
            "category": "semantic_prior",
            "filename": filename,
        }
        self.rows["map"].append(row)

    def add_scene(
        self,
        scene: Scene,
        rig: Rig,
        shader: Shader,
        *,
        name: str,
        location: str,
        start_us: int,
        rng: np.random.Generator,
        done: Callable[[], None],
    ) -> str:
        """Renders a scene and adds its rows. ``done`` is called after every file. Returns the log's token."""
        writer = _SceneWriter(self, scene, rig, shader, name, start_us, rng, done)
        log = writer.log(location)
        writer.sensors()
        writer.annotations()
        writer.scene_row(log)
        return log

    def write(self) -> None:
        folder = self.root / VERSION
        folder.mkdir(exist_ok=True)
        for name, rows in self.rows.items():
            (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))


class _SceneWriter:
    def __init__(
        self,
        tables: Tables,
        scene: Scene,
        rig: Rig,
        shader: Shader,
        name: str,
        start_us: int,
        rng: np.random.Generator,
        done: Callable[[], None],
    ) -> None:
        self.tables, self.scene, self.rig, self.shader = tables, scene, rig, shader
        self.name, self.start_us, self.rng, self.done = name, start_us, rng, done
        self.keys = key_frames(scene.seconds)
        self.rows = tables.rows
        self.logfile = f"w{scene.index:03d}-2026-01-{scene.index + 1:02d}-12-00-00+0000"
        self.points: list[Array] = []  # per key frame (P, 3) LiDAR points in map coordinates
        # Per key frame and actor: surface points seen by the cameras, and those in front of them at all.
        self.seen = np.zeros((self.keys, len(scene.actors)))
        self.inside = np.zeros((self.keys, len(scene.actors)))
        self.surface = [self._surface_points(i) for i in range(len(scene.actors))]

    def token(self, *parts: object) -> str:
        return self.tables.token(self.name, *parts)

    def log(self, location: str) -> str:
        row = {
            "token": self.token("log"),
            "logfile": self.logfile,
            "vehicle": f"w{self.scene.index:03d}",
            "date_captured": f"2026-01-{self.scene.index + 1:02d}",
            "location": location,
        }
        self.rows["log"].append(row)
        return str(row["token"])

    def _calibration(self, channel: str, pose: Array, intrinsics: Array | None) -> None:
        self.rows["calibrated_sensor"].append(
            {
                "token": self.token("calibrated", channel),
                "sensor_token": self.tables.token("sensor", channel),
                "translation": pose[:3, 3].tolist(),
                "rotation": quaternion(pose[:3, :3]),
                "camera_intrinsic": [] if intrinsics is None else intrinsics.tolist(),
            }
        )

    def _data(
        self, channel: str, frame: int, last: int, per_key: int, t_us: int, form: str, size: tuple[int, int]
    ) -> Path:
        """Adds the rows of one file and returns where it goes. Files between key frames belong to the next sample."""
        key, sample = frame % per_key == 0, -(-frame // per_key)
        suffix = "jpg" if form == "jpg" else "pcd.bin"
        stamp = self.start_us + t_us
        filename = f"{'samples' if key else 'sweeps'}/{channel}/{self.logfile}__{channel}__{stamp}.{suffix}"
        me = self.token("data", channel, frame)
        pose = self.scene.ego_pose(t_us / 1e6)
        ego = {
            "token": me,
            "timestamp": stamp,
            "rotation": quaternion(pose[:3, :3]),
            "translation": pose[:3, 3].tolist(),
        }
        self.rows["ego_pose"].append(ego)
        self.rows["sample_data"].append(
            {
                "token": me,
                "sample_token": self.token("sample", sample),
                "ego_pose_token": me,
                "calibrated_sensor_token": self.token("calibrated", channel),
                "timestamp": stamp,
                "fileformat": form,
                "is_key_frame": key,
                "height": size[0],
                "width": size[1],
                "filename": filename,
                "prev": self.token("data", channel, frame - 1) if frame else "",
                "next": self.token("data", channel, frame + 1) if frame < last else "",
            }
        )
        return self.tables.root / filename

    def sensors(self) -> None:
        """Every image and every sweep, with calibration and poses."""
        lidar_per_key, camera_per_key = LIDAR_HZ // KEY_HZ, CAMERA_HZ // KEY_HZ
        self._calibration(LIDAR, self.rig.lidar.ego_from_lidar, None)
        last = (self.keys - 1) * lidar_per_key
        for frame in range(last + 1):
            t_us = round(frame * 1e6 / LIDAR_HZ)
            path = self._data(LIDAR, frame, last, lidar_per_key, t_us, "pcd", (0, 0))
            points, _ = sweep(self.scene, self.rig.lidar, t_us / 1e6, self.rng)
            points.tofile(path)
            if frame % lidar_per_key == 0:
                pose = self.scene.ego_pose(t_us / 1e6) @ self.rig.lidar.ego_from_lidar
                self.points.append(points[:, :3].astype(np.float64) @ pose[:3, :3].T + pose[:3, 3])
            self.done()
        for camera in self.rig.cameras.values():
            self._calibration(camera.channel, camera.ego_from_cam, camera.intrinsics)
            last = (self.keys - 1) * camera_per_key
            for frame in range(last + 1):
                t_us = round((frame / CAMERA_HZ + camera.offset) * 1e6)
                path = self._data(
                    camera.channel, frame, last, camera_per_key, t_us, "jpg", (camera.height, camera.width)
                )
                t = t_us / 1e6
                moment = self.scene.at(t, camera_view(self.scene, camera, t))
                image = render(self.shader, camera, moment)
                Image.fromarray(image).save(path, quality=JPEG_QUALITY, subsampling=0)
                if frame % camera_per_key == 0:
                    self._visible(frame // camera_per_key, camera, moment)
                self.done()

    def _surface_points(self, actor: int) -> NDArray[np.float32]:
        """(SURFACE_POINTS, 3) points spread over an actor's faces by area, about its centre."""
        v = self.scene.actors[actor].mesh.vertices  # (F, 3, 3)
        area = np.linalg.norm(np.cross(v[:, 1] - v[:, 0], v[:, 2] - v[:, 0]), axis=1)
        face = self.rng.choice(len(v), SURFACE_POINTS, p=area / area.sum())
        w = self.rng.dirichlet((1.0, 1.0, 1.0), SURFACE_POINTS)
        return (v[face] * w[:, :, None]).sum(1).astype(np.float32)

    def _on_actor(self, i: int, t: float) -> Array:
        """(SURFACE_POINTS, 3) an actor's surface points in map coordinates."""
        centre, yaw = self.scene.actors[i].pose(t)
        return centre + self.surface[i] @ yaw_matrix(float(yaw)).T

    def _visible(self, key: int, camera: Camera, moment: Moment) -> None:
        """Counts, per actor, surface points inside this image and those of them that nothing else hides."""
        pose = self.scene.ego_pose(moment.t) @ camera.ego_from_cam
        centre = pose[:3, 3]
        points = np.stack([self._on_actor(i, moment.t) for i in range(len(self.scene.actors))])  # (A, S, 3)
        local = (points - centre) @ pose[:3, :3]
        z = np.maximum(local[..., 2], 1e-3)
        u = local[..., 0] / z * camera.intrinsics[0, 0] + camera.intrinsics[0, 2]
        v = local[..., 1] / z * camera.intrinsics[1, 1] + camera.intrinsics[1, 2]
        inside = (local[..., 2] > 0.1) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
        actor, point = np.nonzero(inside)
        if len(actor) == 0:
            return
        d = points[actor, point] - centre
        d /= np.linalg.norm(d, axis=1, keepdims=True)
        own = moment.cast(centre, d.astype(np.float32)).owner == actor
        self.inside[key] += inside.sum(1)
        self.seen[key] += np.bincount(actor[own], minlength=len(self.scene.actors))

    def annotations(self) -> None:
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
                if np.hypot(*(centre - self.scene.ego_pose(t)[:3, 3])[:2]) < ANNOTATION_RANGE:
                    chain.append(key)
            counts = [
                self._count(self.points[k], actor.pose(k / KEY_HZ)[0], actor.rotation(k / KEY_HZ), actor.size)
                for k in chain
            ]
            if not any(counts):
                continue
            name = lambda key, i=i: self.token("annotation", i, key)
            instance = {
                "token": self.token("instance", i),
                "category_token": self.tables.token("category", actor.category),
                "nbr_annotations": len(chain),
            }
            self.rows["instance"].append(
                {**instance, "first_annotation_token": name(chain[0]), "last_annotation_token": name(chain[-1])}
            )
            for n, key in enumerate(chain):
                rotation = actor.rotation(key / KEY_HZ)
                centre = actor.pose(key / KEY_HZ)[0]
                share = self.seen[key, i] / max(self.inside[key, i], 1.0)
                level = int(np.searchsorted(VISIBILITY_EDGES, share, side="right"))
                attribute = actor.attribute_at(key / KEY_HZ)
                self.rows["sample_annotation"].append(
                    {
                        "token": name(key),
                        "sample_token": self.token("sample", key),
                        "instance_token": self.token("instance", i),
                        "visibility_token": str(level + 1),
                        "attribute_tokens": [self.tables.token("attribute", attribute)] if attribute else [],
                        "translation": centre.tolist(),
                        "size": list(actor.size),
                        "rotation": quaternion(rotation),
                        "prev": name(chain[n - 1]) if n else "",
                        "next": name(chain[n + 1]) if n + 1 < len(chain) else "",
                        "num_lidar_pts": counts[n],
                        "num_radar_pts": 0,
                    }
                )

        self.rows["sample_annotation"].sort(key=lambda row: str(row["token"]))

    @staticmethod
    def _count(points: Array, centre: Array, rotation: Array, size: tuple[float, float, float]) -> int:
        """LiDAR points inside a box, its faces included."""
        reach = max(size)
        near = points[(np.abs(points[:, 0] - centre[0]) < reach) & (np.abs(points[:, 1] - centre[1]) < reach)]
        local = np.abs((near - centre) @ rotation)
        width, length, height = size
        return int((local <= np.array([length, width, height]) / 2).all(1).sum())

    def scene_row(self, log: str) -> None:
        for key in range(self.keys):
            row = {
                "token": self.token("sample", key),
                "timestamp": self.start_us + round(key * 1e6 / KEY_HZ),
                "scene_token": self.token("scene"),
            }
            row["prev"] = self.token("sample", key - 1) if key else ""
            row["next"] = self.token("sample", key + 1) if key + 1 < self.keys else ""
            self.rows["sample"].append(row)
        row = {
            "token": self.token("scene"),
            "log_token": log,
            "nbr_samples": self.keys,
            "name": self.name,
            "description": f"synthetic, {len(self.scene.actors)} actors",
        }
        self.rows["scene"].append(
            {
                **row,
                "first_sample_token": self.token("sample", 0),
                "last_sample_token": self.token("sample", self.keys - 1),
            }
        )
