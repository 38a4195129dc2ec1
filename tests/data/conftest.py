"""A room whose every depth is known, written in nuScenes' schema and in no other way than a data set on disk.

Four vertical walls, |x| = |y| = 30 m in global coordinates; the ego car drives and turns inside. A convex room hides
nothing from anybody, so a LiDAR return seen by a camera must lie where the camera's own ray meets the wall. Every image
is a linear ramp, so its bilinear colour is known everywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mim4d.data.verify import TABLES

HALF = 30.0  # m, the room's walls
WIDTH, HEIGHT = 80, 48
VERSION = "v1.0-mini"
START = 1_600_000_000_000_000  # microseconds
CAMERAS = ("CAM_FRONT", "CAM_BACK")
PHASE = {"CAM_FRONT": -10_000, "CAM_BACK": -30_000}  # microseconds before the LiDAR


def token(*parts: object) -> str:
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def rotation_z(yaw: float) -> np.ndarray:
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def quaternion_z(yaw: float) -> list[float]:
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def ego(time_us: int) -> tuple[np.ndarray, float]:
    """Position (3,) and yaw of the car."""
    t = (time_us - START) / 1e6
    return np.array([2.0 * t, 1.0 * t, 0.1]), 0.3 * t


def global_from_ego(time_us: int) -> np.ndarray:
    position, yaw = ego(time_us)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_z(yaw), position
    return matrix


def camera_mount(channel: str) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """ego_from_cam's rotation and translation, and the rotation as (w, x, y, z)."""
    yaw = 0.0 if channel == "CAM_FRONT" else math.pi
    # x right, y down, z forward -> x forward, y left, z up is the quaternion (1, -1, 1, -1) / 2.
    a, b = quaternion_z(yaw), [0.5, -0.5, 0.5, -0.5]
    product = [
        a[0] * b[0] - a[3] * b[3],
        a[0] * b[1] - a[3] * b[2],
        a[0] * b[2] + a[3] * b[1],
        a[0] * b[3] + a[3] * b[0],
    ]
    rotation = rotation_z(yaw) @ np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0.0]])
    return rotation, np.array([1.5 * math.cos(yaw), 0.2, 1.5]), product


INTRINSICS = [[60.0, 0.0, 41.0], [0.0, 58.0, 23.0], [0.0, 0.0, 1.0]]
LIDAR_YAW, LIDAR_AT = -math.pi / 2, np.array([0.9, 0.0, 1.8])


def wall_distance(origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Metres from points inside the room (..., 3, global) along unit directions (..., 3) to the wall."""
    with np.errstate(divide="ignore"):
        to_wall = np.where(direction[..., :2] > 0, HALF - origin[..., :2], -HALF - origin[..., :2]) / direction[..., :2]
    return np.where(np.isfinite(to_wall), to_wall, np.inf).min(axis=-1)


def lidar_returns(time_us: int) -> np.ndarray:
    """(P, 5) float32 as in a file: wall points in LiDAR coordinates, and a few returns from the car itself."""
    azimuth, elevation = np.meshgrid(np.linspace(0, 2 * np.pi, 180, endpoint=False), np.linspace(-0.25, 0.2, 10))
    ray = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1
    ).reshape(-1, 3)
    car = global_from_ego(time_us)
    origin = car[:3, :3] @ LIDAR_AT + car[:3, 3]
    distance = wall_distance(origin, ray @ (car[:3, :3] @ rotation_z(LIDAR_YAW)).T)
    own = ray[::50] * 2.0  # closer than 2.5 m
    points = np.concatenate([ray * distance[:, None], own])
    return np.concatenate([points, np.zeros((len(points), 2))], axis=1).astype(np.float32)


def ramp(time_us: int) -> np.ndarray:
    """(H, W, 3) uint8: red along x, green along y, blue constant."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    blue = np.full_like(x, (time_us - START) // 10_000 % 200 + 20)
    return np.stack([40 + 2 * x, 60 + 3 * y, blue], -1).astype(np.uint8)


def write_room(
    root: Path,
    *,
    scenes: tuple[str, ...] = ("scene-0061", "scene-0103"),
    key_frames: int = 4,
    lidar: bool = True,
    cameras: tuple[str, ...] = CAMERAS,
) -> Path:
    """Key frames at 2 Hz, cameras at 12 Hz with their phases, LiDAR at 20 Hz; PNG bytes, so that colours are exact."""
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    (root / "maps").mkdir(parents=True)
    Image.new("L", (8, 8)).save(root / "maps" / "prior.png")
    tables["log"].append({"token": token("log"), "logfile": "room", "location": "boston-seaport"})
    tables["map"].append({"token": token("map"), "log_tokens": [token("log")], "filename": "maps/prior.png"})
    tables["category"].append({"token": token("car"), "name": "vehicle.car"})
    channels = (*cameras, *(("LIDAR_TOP",) if lidar else ()))
    for channel in channels:
        is_camera = channel != "LIDAR_TOP"
        _, at, rotation = camera_mount(channel) if is_camera else (None, LIDAR_AT, quaternion_z(LIDAR_YAW))
        tables["sensor"].append(
            {"token": token(channel), "channel": channel, "modality": "camera" if is_camera else "lidar"}
        )
        tables["calibrated_sensor"].append(
            {
                "token": token("cs", channel),
                "sensor_token": token(channel),
                "translation": list(at),
                "rotation": rotation,
                "camera_intrinsic": INTRINSICS if is_camera else [],
            }
        )
    for scene in scenes:
        samples = [token(scene, i) for i in range(key_frames)]
        tables["scene"].append(
            {
                "token": token(scene),
                "name": scene,
                "log_token": token("log"),
                "nbr_samples": key_frames,
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "description": "",
            }
        )
        for i, sample in enumerate(samples):
            tables["sample"].append(
                {
                    "token": sample,
                    "timestamp": START + i * 500_000,
                    "scene_token": token(scene),
                    "prev": samples[i - 1] if i else "",
                    "next": samples[i + 1] if i + 1 < key_frames else "",
                }
            )
        # A parked car at (20, 4), heading 0.5 rad, and what the devkit wants to know about it.
        marks = [token(scene, "ann", i) for i in range(key_frames)]
        tables["instance"].append({"token": token(scene, "car"), "category_token": token("car")})
        for i, mark in enumerate(marks):
            tables["sample_annotation"].append(
                {
                    "token": mark,
                    "sample_token": samples[i],
                    "instance_token": token(scene, "car"),
                    "attribute_tokens": [],
                    "visibility_token": "",
                    "translation": [20.0 + 1.5 * 0.5 * i, 4.0, 1.0],
                    "size": [1.9, 4.5, 1.6],
                    "rotation": quaternion_z(0.5),
                    "prev": marks[i - 1] if i else "",
                    "next": marks[i + 1] if i + 1 < key_frames else "",
                    "num_lidar_pts": 5,
                    "num_radar_pts": 0,
                }
            )
        for channel in channels:
            rate, phase = (20, 0) if channel == "LIDAR_TOP" else (12, PHASE.get(channel, 0))
            for k in range((key_frames - 1) * rate // 2 + 1):
                time = START + round(k * 1e6 / rate) + phase
                is_key = k % (rate // 2) == 0
                me = token(scene, channel, k)
                folder = root / ("samples" if is_key else "sweeps") / channel
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{scene}__{channel}__{time}" + (".pcd.bin" if channel == "LIDAR_TOP" else ".png")
                if channel == "LIDAR_TOP":
                    lidar_returns(time).tofile(folder / name)
                else:
                    Image.fromarray(ramp(time)).save(folder / name, compress_level=1)
                position, yaw = ego(time)
                tables["ego_pose"].append(
                    {"token": me, "timestamp": time, "translation": list(position), "rotation": quaternion_z(yaw)}
                )
                tables["sample_data"].append(
                    {
                        "token": me,
                        "sample_token": samples[min(-(-k // (rate // 2)), key_frames - 1)],
                        "ego_pose_token": me,
                        "calibrated_sensor_token": token("cs", channel),
                        "timestamp": time,
                        "fileformat": "pcd" if channel == "LIDAR_TOP" else "png",
                        "is_key_frame": is_key,
                        "width": 0 if channel == "LIDAR_TOP" else WIDTH,
                        "height": 0 if channel == "LIDAR_TOP" else HEIGHT,
                        "filename": str((folder / name).relative_to(root)),
                        "prev": "",
                        "next": "",
                    }
                )
    (root / VERSION).mkdir()
    for name, rows in tables.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows))
    return root


def edit_table(root: Path, table: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Rewrite a table after ``change``, which edits the rows in place or returns new ones."""
    path = root / VERSION / f"{table}.json"
    rows = json.loads(path.read_text())
    changed = change(rows)
    path.write_text(json.dumps(rows if changed is None else changed))


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The room on disk; read it, do not write to it."""
    return write_room(tmp_path_factory.mktemp("data") / "room")


@pytest.fixture
def broken_room(room: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(room, tmp_path / "room"))


@pytest.fixture(scope="session")
def truth() -> SimpleNamespace:
    """What is known about the room, and the means to write another or to change one."""
    return SimpleNamespace(
        width=WIDTH,
        height=HEIGHT,
        version=VERSION,
        start=START,
        cameras=CAMERAS,
        phase=PHASE,
        intrinsics=np.array(INTRINSICS),
        global_from_ego=global_from_ego,
        camera_mount=camera_mount,
        wall_distance=wall_distance,
        ramp=ramp,
        token=token,
        write=write_room,
        edit=edit_table,
    )
