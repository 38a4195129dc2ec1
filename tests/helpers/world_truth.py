"""What a written world must agree with: the functions of time that it was drawn from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mim4d.world.scene import Scene
from mim4d.world.sensors import Rig

SEED, SECONDS, SIZE = 3, 1.5, (48, 80)


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
