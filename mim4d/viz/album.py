"""What the gallery shows of a finished world, read back from its files: key frames, boxes over time, map, truth."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim4d.data.frames import (
    LIDAR,
    Array,
    ClipRecord,
    FrameRecord,
    interpolate_pose,
    invert_rigid,
    rigid,
    rotation_matrix,
    transform,
)
from mim4d.data.maps import HdMap
from mim4d.data.nuscenes import clips_of_split, default_splits, load_tables
from mim4d.data.transforms import resize_intrinsics
from mim4d.errors import UserError
from mim4d.viz.driving import AREA_COLOURS, LINE_COLOURS, LocalMap, corners
from mim4d.world.generator import MANIFEST, open_scene
from mim4d.world.recipe import FORMAT
from mim4d.world.scene import Scene
from mim4d.world.sensors import Camera, Rig, camera_view, look, pixel_rays

HALF_KEY = 0.25  # seconds after a key frame that the film shows too
BYTES_PER_POINT = 20  # of a sweep's file: five float32
EARLY_US = 60_000  # a camera fires this much before its key frame at most; boxes stand still for so long


@dataclass(frozen=True)
class Track:
    """One annotated thing over a scene's key frames."""

    name: str  # detection class
    size: tuple[float, float, float]  # width, length, height, metres
    times: NDArray[np.int64]  # (P,) microseconds
    poses: Array  # (P, 4, 4) global_from_box
    points: NDArray[np.int64]  # (P,) LiDAR points inside

    def at(self, time: int) -> tuple[Array, bool] | None:
        """Corners (8, 3) in map coordinates, and whether the LiDAR met it at the nearest key frame; None: not there."""
        if not self.times[0] - EARLY_US <= time <= self.times[-1] + EARLY_US:
            return None
        seen = self.points[np.abs(self.times - time).argmin()] > 0
        return corners(interpolate_pose(self.times, self.poses, time), self.size), bool(seen)


@dataclass(frozen=True)
class Shown:
    """One scene as the gallery shows it."""

    name: str
    location: str
    description: str
    validation: bool
    clips: list[ClipRecord]  # per key frame: it, and the moment HALF_KEY later
    tracks: list[Track]
    echoes: float  # LiDAR points of a sweep, mean over key frames

    @property
    def frames(self) -> list[FrameRecord]:
        """The film's moments in order, two per key frame."""
        return [frame for clip in self.clips for frame in clip.frames if frame is not None]

    @property
    def moment(self) -> FrameRecord:
        """The key frame in the middle of the scene."""
        return self.clips[len(self.clips) // 2].key_frame

    @property
    def metres(self) -> float:
        """How far the ego car went from the first to the last key frame."""
        way = np.array([clip.key_frame.global_from_frame[:3, 3] for clip in self.clips])
        return float(np.sqrt(np.square(np.diff(way, axis=0)).sum(axis=1)).sum())

    def boxes(self, time: int, from_global: Array) -> Iterator[tuple[str, Array, bool]]:
        """Class, corners (8, 3) in the frame of ``from_global``, and whether the LiDAR met it."""
        for track in self.tracks:
            found = track.at(time)
            if found is not None:
                yield track.name, transform(from_global, found[0]), found[1]


def read_manifest(root: Path) -> dict[str, Any]:
    """What the world was made with; UserError where ``root`` holds no finished world."""
    try:
        made = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = None
    if not isinstance(made, dict):
        raise UserError(
            f"{root} holds no synthetic world ({MANIFEST} is missing or damaged); make one with mim4d world"
        )
    return made


def read_world(root: Path) -> list[Shown]:
    """All scenes, training before validation. UserError names a table or file that is missing or broken."""
    from nuscenes.eval.detection.utils import category_to_detection_name

    version = next((path.parent.name for path in sorted(root.glob("v1.0-*/scene.json"))), "v1.0-mini")
    tables = load_tables(root, version)
    scene_of = {row["token"]: row["scene_token"] for row in tables.sample}
    time_of = {row["token"]: row["timestamp"] for row in tables.sample}
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in tables.sample_annotation:
        rows.setdefault(row["instance_token"], []).append(row)
    tracks: dict[str, list[Track]] = {}
    for chain in rows.values():
        chain.sort(key=lambda row: time_of[row["sample_token"]])
        track = Track(
            category_to_detection_name(chain[0]["category_name"]) or chain[0]["category_name"],
            tuple(chain[0]["size"]),
            np.array([time_of[row["sample_token"]] for row in chain]),
            np.array([rigid(rotation_matrix(row["rotation"]), row["translation"]) for row in chain]),
            np.array([row["num_lidar_pts"] for row in chain]),
        )
        tracks.setdefault(scene_of[chain[0]["sample_token"]], []).append(track)
    sizes: dict[str, list[int]] = {}
    for row in tables.sample_data:
        if row["channel"] == LIDAR and row["is_key_frame"]:
            path = root / row["filename"]
            # A missing file is reported by clips_of_split below, in its own words.
            with contextlib.suppress(OSError):
                sizes.setdefault(scene_of[row["sample_token"]], []).append(path.stat().st_size)
    shown = []
    training, validation = default_splits(version)
    for split in (training, validation):
        clips: dict[str, list[ClipRecord]] = {}
        for clip in clips_of_split(tables, split, (0.0, HALF_KEY)):
            clips.setdefault(clip.scene, []).append(clip)
        for scene in (row for row in tables.scene if row["name"] in clips):
            location = tables.get("log", scene["log_token"])["location"]
            echoes = float(np.mean(sizes[scene["token"]])) / BYTES_PER_POINT
            words, found = scene["description"], tracks.get(scene["token"], [])
            mine = clips[scene["name"]]
            shown.append(Shown(scene["name"], location, words, split == validation, mine, found, echoes))
    return shown


def map_around(streets: HdMap, frame: FrameRecord, reach: float) -> LocalMap:
    """What lies within ``reach`` metres (a square) of the ego, in its coordinates."""
    (x, y), forward = frame.global_from_frame[:2, 3], frame.global_from_frame[:2, 0]
    patch = (float(x), float(y), 2 * reach, 2 * reach), float(np.degrees(np.arctan2(forward[1], forward[0])))
    areas = [(layer, p.exterior, p.holes) for layer in AREA_COLOURS for p in streets.polygons(layer, *patch)]
    return LocalMap(areas, [(layer, line) for layer in LINE_COLOURS for line in streets.lines(layer, *patch)])


class Truth:
    """A scene built again as a function of time: depth and normals of any image, at any size."""

    def __init__(self, scene: Scene, rig: Rig, start_us: int) -> None:
        self._scene, self._rig, self._start_us = scene, rig, start_us

    def image(self, channel: str, timestamp_us: int, width: int) -> tuple[Array, Array]:
        """Ray lengths in metres (h, width), inf in the sky, and unit normals (h, width, 3) in the ego frame at that
        moment, NaN in the sky.
        """
        camera = _resized(self._rig.cameras[channel], width)
        t = (timestamp_us - self._start_us) / 1e6
        hits = look(self._scene, camera, t)
        normals = self._scene.at(t, camera_view(self._scene, camera, t)).normals[hits.face].astype(np.float64)
        normals = transform(invert_rigid(rigid(self._scene.ego_pose(t)[:3, :3], (0.0, 0.0, 0.0))), normals)
        normals[hits.face < 0] = np.nan
        shape = (camera.height, camera.width)
        return hits.distance.reshape(shape).astype(np.float64), normals.reshape(*shape, 3)


def _resized(camera: Camera, width: int) -> Camera:
    """The same camera with another number of pixels, for :func:`look` alone."""
    if width == camera.width:
        return camera
    height = max(1, round(camera.height * width / camera.width))
    intrinsics = resize_intrinsics(camera.intrinsics, width / camera.width, height / camera.height)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = pixel_rays(intrinsics, x.ravel(), y.ravel())
    return replace(camera, width=width, height=height, intrinsics=intrinsics, rays=rays)


def open_truth(root: Path, made: dict[str, Any], name: str) -> Truth | None:
    """The truth behind a scene; None for a world of another format, which this version would build differently."""
    return Truth(*open_scene(root, name)) if made.get("format") == FORMAT else None


def track_counts(tracks: Sequence[Track], names: Sequence[str], of: Callable[[Track], int]) -> list[int]:
    """Per class name the sum of ``of`` over its tracks."""
    return [sum(of(track) for track in tracks if track.name == name) for name in names]
