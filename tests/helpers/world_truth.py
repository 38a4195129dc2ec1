"""What a written world must agree with: the functions of time that it was drawn from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mim4d.world.scene import Scene
from mim4d.world.sensors import Camera, Rig

SEED, SECONDS, SIZE = 3, 1.5, (48, 80)

Row = dict[str, Any]


@dataclass
class Truth:
    """A scene of the world on disk together with the functions of time that it was drawn from."""

    name: str
    scene: Scene
    rig: Rig
    start_us: int
    nusc: Any

    def seconds(self, timestamp_us: int) -> float:
        return (timestamp_us - self.start_us) / 1e6

    def data(self, channel: str, key_only: bool = False) -> list[dict[str, Any]]:
        """The scene's rows of sample_data for a channel, in time."""
        rows = [r for r in self.nusc.sample_data if r["channel"] == channel and (r["is_key_frame"] or not key_only)]
        mine = [r for r in rows if self.nusc.get("sample", r["sample_token"])["scene_token"] == self.row["token"]]
        return sorted(mine, key=lambda r: r["timestamp"])

    @property
    def row(self) -> dict[str, Any]:
        return next(s for s in self.nusc.scene if s["name"] == self.name)

    def global_from_sensor(self, data: dict[str, Any]) -> np.ndarray:
        """(4, 4) as the tables give it."""
        out = np.eye(4)
        calibration = self.nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
        for row in (calibration, self.nusc.get("ego_pose", data["ego_pose_token"])):
            step = np.eye(4)
            step[:3, :3], step[:3, 3] = quaternion_matrix(row["rotation"]), row["translation"]
            out = step @ out
        return out

    def points(self, data: dict[str, Any]) -> np.ndarray:
        """(P, 5) of a sweep, as the file holds them."""
        return np.fromfile(Path(self.nusc.dataroot) / data["filename"], np.float32).reshape(-1, 5)


def images(truth: Truth) -> list[tuple[Camera, Row, float]]:
    """Camera, row of sample_data and time of every key frame's image."""
    rows = [(c, r) for name, c in truth.rig.cameras.items() for r in truth.data(name, key_only=True)]
    return [(c, r, truth.seconds(r["timestamp"])) for c, r in rows]


def project(truth: Truth, row: Row, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (..., 3) of the map -> pixels (..., 2) and depth (...) in an image, by the tables' own chain."""
    pose = truth.global_from_sensor(row)
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    k = np.array(truth.nusc.get("calibrated_sensor", row["calibrated_sensor_token"])["camera_intrinsic"])
    uv = local @ k.T
    return uv[..., :2] / np.maximum(uv[..., 2:], 1e-6), local[..., 2]


def lift(truth: Truth, row: Row, depth: np.ndarray) -> np.ndarray:
    """Depth (H, W) -> the pixels' points (H, W, 3) in the map; the sky lies 1000 km away."""
    pose = truth.global_from_sensor(row)
    k = np.array(truth.nusc.get("calibrated_sensor", row["calibrated_sensor_token"])["camera_intrinsic"])
    y, x = np.mgrid[: depth.shape[0], : depth.shape[1]] + 0.5
    ray = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(k).T
    return (np.where(np.isfinite(depth), depth, 1e6)[..., None] * ray) @ pose[:3, :3].T + pose[:3, 3]


def carried(truth: Truth, points: np.ndarray, ids: np.ndarray, t: float, later: float) -> np.ndarray:
    """Points (P, 3) of the map, each moved along with the thing (P,) that it lies on."""
    out = points.copy()
    for i in np.unique(ids[ids > 0]):
        actor, mine = truth.scene.actors[i - 1], ids == i
        local = (points[mine] - actor.pose(t)[0]) @ actor.rotation(t)
        out[mine] = local @ actor.rotation(later).T + actor.pose(later)[0]
    return out


def quaternion_matrix(q: list[float]) -> np.ndarray:
    """Unit quaternion (w, x, y, z) -> (3, 3): p -> q p q*."""
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def digest(root: Path) -> dict[str, str]:
    """Every file under a folder, by its path there, and what its bytes hash to."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
