"""A plausible run folder of an analytic scene: ground plane, boxes and a sky, seen by six cameras and a LiDAR."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
YAW = (0.0, -55.0, 55.0, 180.0, 110.0, -110.0)  # degrees to the left
HEIGHT, WIDTH, STRIDE = 96, 168, 4
BOUNDS = (-51.2, -51.2, -3.0, 51.2, 51.2, 5.0)
CELLS = 64
EYE = np.array([0.0, 0.0, 1.6])  # metres above the ground plane z = 0
# x, y, z, w, l, h, yaw, vx, vy
BOXES = np.array(
    [
        [14.0, 3.5, 0.8, 1.9, 4.6, 1.6, 0.0, 8.0, 0.0],
        [24.0, -3.5, 0.8, 1.9, 4.5, 1.6, 0.0, 11.0, 0.0],
        [-12.0, 4.0, 1.4, 2.5, 8.0, 2.8, 0.0, 6.0, 0.0],
        [9.0, -9.0, 0.8, 1.9, 4.6, 1.6, 0.0, 0.0, 0.0],
        [-20.0, -9.0, 0.8, 1.9, 4.6, 1.6, 0.0, np.nan, np.nan],
        [33.0, 12.0, 6.0, 10.0, 16.0, 12.0, 0.0, 0.0, 0.0],
        [0.0, 26.0, 5.0, 9.0, 22.0, 10.0, 0.0, 0.0, 0.0],
        [-6.0, -24.0, 4.0, 8.0, 20.0, 8.0, 0.0, 0.0, 0.0],
    ]
)
CONFIG = """\
data:
  root: data/world
  version: v1.0-mini
  offsets:
  - -0.5
  - 0.0
  - 0.5
  cameras:
  - CAM_FRONT
  - CAM_FRONT_RIGHT
  - CAM_FRONT_LEFT
  - CAM_BACK
  - CAM_BACK_LEFT
  - CAM_BACK_RIGHT
  holdout: scenes
model:
  backbone: convnext_atto
  mask_ratio: 0.3
train:
  steps: 150
  lr: 0.0002
preset: demo
"""
ENVIRONMENT = {
    "mim4d": "0.1.0",
    "python": "3.11.2",
    "torch": "2.15.0",
    "device": "cpu",
    "cpu": {"name": "Example CPU", "cores": 2, "isa": "avx512"},
    "libraries": {"ops_cpu": None, "ops_cuda": "this torch has no CUDA"},
    "ops": {"voxel_sample": {"cpu": None, "cuda": "no device", "reference": None}},
}
STEP_TIMES = {
    "own": {"seconds": [0.62, 0.58, 0.71], "backends": {"voxel_sample": ["cpu"], "sdf_march": ["cpu", "reference"]}},
    "reference": {
        "seconds": [0.93, 0.87, 0.9],
        "backends": {"voxel_sample": ["reference"], "sdf_march": ["reference"]},
    },
    "rays": 384,
    "samples": 64,
}


def camera_rays(yaw: float, height: int, width: int) -> np.ndarray:
    """Unit directions (height, width, 3) of a level pinhole camera with 70 degrees of view."""
    focal = width / (2 * np.tan(np.radians(35.0)))
    v, u = np.mgrid[0:height, 0:width] + 0.5
    right, down = (u - width / 2) / focal, (v - height * 0.45) / focal
    cos, sin = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    rays = np.stack([cos + right * sin, sin - right * cos, -down], axis=-1)
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def cast(rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance in metres (inf for the sky) and colour (..., 3) in [0, 1] along rays (..., 3) from EYE."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = np.where(rays[..., 2] < -1e-6, -EYE[2] / rays[..., 2], np.inf)
        distance = np.where(ground < 120.0, ground, np.inf)
        point = EYE + np.where(np.isfinite(distance), distance, 0.0)[..., None] * rays
        stripe = (np.abs(np.abs(point[..., 1]) - 1.8) < 0.12) & (np.mod(point[..., 0], 6.0) < 3.0)
        verge = np.abs(point[..., 1]) > 13.0
        colour = np.where(verge[..., None], [0.38, 0.46, 0.30], [0.40, 0.40, 0.42])
        colour = np.where(stripe[..., None], 0.92, colour)
        sky = np.stack(
            [0.55 + 0.25 * (1 - rays[..., 2]), 0.70 + 0.1 * (1 - rays[..., 2]), np.ones(rays.shape[:-1])], -1
        )
        colour = np.where(np.isfinite(distance)[..., None], colour, sky)
        for index, (x, y, z, w, l, h, *_) in enumerate(BOXES):
            centre, half = np.array([x, y, z]), np.array([l, w, h]) / 2
            near, far = (centre - half - EYE) / rays, (centre + half - EYE) / rays
            enter, leave = np.minimum(near, far), np.maximum(near, far)
            hit = enter.max(-1)
            seen = (hit > 0) & (hit < leave.min(-1)) & (hit < distance)
            distance = np.where(seen, hit, distance)
            paint = np.array([[0.75, 0.2, 0.18], [0.2, 0.35, 0.7], [0.85, 0.75, 0.3], [0.85, 0.85, 0.86]][index % 4])
            face = np.take([0.75, 1.0, 0.9], enter.argmax(-1))
            colour = np.where(seen[..., None], paint * face[..., None], colour)
    return distance, np.clip(colour, 0, 1)


def signed_distance(height: float = 0.5) -> np.ndarray:
    """Signed distance to the boxes and the ground on one level: (CELLS, CELLS) metres, first axis y."""
    centres = BOUNDS[0] + (np.arange(CELLS) + 0.5) * (BOUNDS[3] - BOUNDS[0]) / CELLS
    y, x = np.meshgrid(centres, centres, indexing="ij")
    field = np.full((CELLS, CELLS), height)
    for bx, by, _, w, l, *_ in BOXES:
        dx, dy = np.abs(x - bx) - l / 2, np.abs(y - by) - w / 2
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        field = np.minimum(field, outside + np.minimum(np.maximum(dx, dy), 0))
    return field.astype(np.float32)


def renders(trained: bool, frames: int) -> dict[str, np.ndarray]:
    """The arrays of one ``renders/*.npz``."""
    rng = np.random.default_rng(1 if trained else 0)
    images, masked, rgb, depth, lidar = [], [], [], [], []
    hidden = np.random.default_rng(7)
    for index, yaw in enumerate(YAW):
        distance, colour = cast(camera_rays(yaw, HEIGHT, WIDTH))
        image = (colour * 255).astype(np.uint8)
        blocks = (hidden.random((HEIGHT // 12, WIDTH // 12)) < 0.3).repeat(12, 0).repeat(12, 1)
        images.append(image)
        masked.append(np.where(blocks[..., None], 0, image).astype(np.uint8))
        coarse, paint = cast(camera_rays(yaw, HEIGHT // STRIDE, WIDTH // STRIDE))
        truth = np.minimum(coarse, 60.0)
        noise = rng.normal(size=truth.shape)
        depth.append(truth * (1 + 0.08 * noise) if trained else 18.0 + 1.5 * noise)
        rgb.append(paint * 0.9 + 0.05 if trained else np.full_like(paint, 0.45) + 0.03 * rng.normal(size=paint.shape))
        rows, columns = np.meshgrid(np.arange(30, HEIGHT, 6), np.arange(0, WIDTH, 2), indexing="ij")
        hits = distance[rows, columns]
        near = hits < 70.0
        lidar.append(np.stack([np.full(near.sum(), index), columns[near] + 0.5, rows[near] + 0.5, hits[near]], -1))
    sdf = signed_distance()
    bev = np.exp(-np.abs(sdf - 0.2)) * 3 + 0.2 * rng.random(sdf.shape)
    arrays = {
        "cameras": np.array(CAMERAS),
        "image": np.stack(images),
        "masked_image": np.stack(masked),
        "stride": np.array(STRIDE),
        "rgb_direct": (np.clip(np.stack(rgb), 0, 1) * 255).astype(np.uint8),
        "depth_direct": np.stack(depth).astype(np.float32),
        "opacity_direct": np.ones((len(YAW), HEIGHT // STRIDE, WIDTH // STRIDE), np.float32),
        "lidar": np.concatenate(lidar).astype(np.float32),
        "bev_direct": (bev if trained else 1.2 + 0.3 * rng.random(sdf.shape)).astype(np.float32),
        "sdf_slice": sdf + 0.2 if trained else np.full_like(sdf, 0.6) + 0.1 * rng.random(sdf.shape).astype(np.float32),
        "bounds": np.array(BOUNDS),
        "token": np.array("c0ffee"),
        "boxes": BOXES,
    }
    if frames > 1:
        speed = np.where(sdf < 0.3, 6.0, 0.1)
        arrays |= {
            "rgb_reconstructed": arrays["rgb_direct"] // 2 + 50,
            "depth_reconstructed": arrays["depth_direct"] * 1.1,
            "bev_reconstructed": arrays["bev_direct"] * 0.8,
            "motion": np.stack([speed, np.zeros_like(speed)]).astype(np.float32),
        }
    return arrays


def write_run(run: Path, *, frames: int = 3, finished: bool = True, steps: int = 150, config: str = CONFIG) -> Path:
    """Write a whole run folder; ``frames=1`` leaves out the reconstructed, ``finished=False`` everything after."""
    (run / "renders").mkdir(parents=True)
    (run / "config.yaml").write_text(config)
    np.savez(run / "renders" / "before.npz", **renders(False, frames))
    val = {
        "before": {"rgb_l1": 0.2113, "depth_l1_m": 9.8127},
        "after": {"rgb_l1": 0.0874, "depth_l1_m": 3.2046},
        "trivial": {"rgb_l1": 0.1415, "depth_l1_m": 6.1391},
    }
    data = {"version": "v1.0-mini", "synthetic": False, "train_clips": 7, "val_clips": 9, "val_clips_measured": 4}
    summary: dict[str, Any] = {"steps": steps, "seconds": 201.4, "val": val, "data": data, "environment": ENVIRONMENT}
    if frames > 1:
        summary["val_reconstructed"] = {
            "before": {"rgb_l1": 0.2120, "depth_l1_m": 9.9000},
            "after": {"rgb_l1": 0.0951, "depth_l1_m": 3.8512},
        }
    if finished:
        summary["step_times"] = STEP_TIMES
    else:
        summary |= {"steps": 0, "seconds": 3.0}
        for group in ("val", "val_reconstructed"):
            summary.get(group, {}).pop("after", None)
    (run / "summary.json").write_text(json.dumps(summary))
    if finished:
        np.savez(run / "renders" / "after.npz", **renders(True, frames))
    rng, seconds = np.random.default_rng(3), 0.0
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1 if finished else steps // 2):
            fall = np.exp(-step / 40)
            seconds += 1.2 + 0.1 * rng.random()
            row = {
                "step": step,
                "epoch": step // 20,
                "lr": 2e-4 * min(1, step / 20),
                "seconds": seconds,
            }
            row["loss"] = 3.0 * fall + 0.8 + 0.2 * rng.random()
            for path, more in (("direct", 1.0), ("reconstructed", 1.2))[: 2 if frames > 1 else 1]:
                row[f"rgb_{path}"] = 10 * more * (0.12 * fall + 0.08 + 0.02 * rng.random())
                row[f"rgb_l1_{path}"] = more * (0.12 * fall + 0.08 + 0.02 * rng.random())
                row[f"depth_l1_m_{path}"] = more * (7 * fall + 2.6 + 1.2 * rng.random())
            file.write(json.dumps(row) + "\n")
    return run
