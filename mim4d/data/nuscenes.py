"""nuScenes tables, through nuscenes-devkit, into frame records and clips.

A frame is defined by a LIDAR_TOP record: the one nearest to the time asked for, within the tolerance. Each camera
gives its record nearest to the LiDAR's time, within the tolerance, key frame or sweep; a LiDAR key frame takes the
images of its own sample first, because the cameras were triggered as that sweep passed them. Where a scene has no LiDAR
at all, each camera's nearest record to the time asked for is taken, and the frame is the ego frame at their mean time.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mim4d.data import verify
from mim4d.data.frames import (
    CAMERAS,
    LIDAR,
    Array,
    CameraRecord,
    ClipRecord,
    FrameRecord,
    LidarRecord,
    interpolate_pose,
    invert_rigid,
    rigid,
    rotation_matrix,
)
from mim4d.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes

Row = dict[str, Any]


def load_tables(root: str | Path, version: str) -> NuScenes:
    """The devkit's database object, silently, after :func:`mim4d.data.verify.check_root`.

    Raises:
        UserError: nuscenes-devkit is not installed, or the folder or a table is not as it should be.
    """
    base = verify.check_root(root, version)
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError:
        raise UserError("reading nuScenes needs nuscenes-devkit: pip install 'mim4d[train]'") from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return NuScenes(version=version, dataroot=str(base), verbose=False)
    except Exception as error:  # the devkit raises bare Exception too, and never says which file
        raise verify.explain_failed_load(base, version, error) from None


def default_splits(version: str) -> tuple[str, str]:
    """The (training, validation) splits of a version: those of the full set or of the mini set.

    Raises:
        UserError: a version of another kind.
    """
    if version.endswith("trainval"):
        return "train", "val"
    if version.endswith("mini"):
        return "mini_train", "mini_val"
    raise UserError(f"version {version!r} has no usual splits: give --data.train-split and --data.val-split")


def check_offsets(offsets: Sequence[float]) -> None:
    """Raises UserError unless the offsets of a clip name the key frame, 0.0, and no time twice."""
    if 0.0 not in offsets or len(set(offsets)) != len(offsets):
        raise UserError(f"--data.offsets {tuple(offsets)} must name 0.0 (the key frame) once, and no time twice")


def open_clips(
    root: str | Path,
    version: str,
    split: str,
    offsets: Sequence[float],
    *,
    cameras: Sequence[str] = CAMERAS,
    tolerance: float = 0.06,
) -> list[ClipRecord]:
    """One clip per key frame of a split: :func:`load_tables` and :func:`clips_of_split` in one call."""
    return clips_of_split(load_tables(root, version), split, offsets, cameras=cameras, tolerance=tolerance)


def clips_of_split(
    tables: NuScenes,
    split: str,
    offsets: Sequence[float],
    *,
    cameras: Sequence[str] = CAMERAS,
    tolerance: float = 0.06,
) -> list[ClipRecord]:
    """One clip per key frame of a split, in the order of the scenes' tables and of time.

    Args:
        tables: from :func:`load_tables`.
        split: a devkit split, or one of the version's ``splits.json``.
        offsets: seconds after the key frame, one per frame of the clip; 0.0 is the key frame and must be there.
        cameras: the channels that every frame needs.
        tolerance: seconds between the time asked for and a record's time.

    Returns:
        The clips; a frame that does not exist, lacks a camera, or would show an image of the clip a second time is
        None. A key frame that lacks a camera gives no clip.

    Raises:
        UserError: an unknown split, camera or offset list; nothing in the split; a broken record; a missing file.
    """
    root = Path(tables.dataroot)
    check_offsets(offsets)
    known = {row["channel"] for row in tables.sensor if row["modality"] == "camera"}
    for camera in cameras:
        if camera not in known:
            raise UserError(f"no camera {camera!r} in {root}{did_you_mean(camera, known)} (--data.cameras)")
    names = set(_scenes_of_split(tables, split))
    scenes = [scene for scene in tables.scene if scene["name"] in names]
    if not scenes:
        there = sorted(scene["name"] for scene in tables.scene)
        raise UserError(
            f"split {split!r} is empty in {root / tables.version}: none of its scenes is there "
            f"(it has {', '.join(there[:4])}{', ...' if len(there) > 4 else ''}); choose another split, or hold out "
            "rays instead of scenes (--data.holdout rays)"
        )
    limit = round(tolerance * 1e6)
    records = _records_by_scene(tables, {scene["token"] for scene in scenes}, (*cameras, LIDAR))
    samples: dict[str, list[Row]] = {scene["token"]: [] for scene in scenes}
    for sample in tables.sample:
        samples.get(sample["scene_token"], []).append(sample)
    clips: list[ClipRecord] = []
    for scene in scenes:
        finder = _FrameFinder(tables, records[scene["token"]], cameras, limit)
        for sample in sorted(samples[scene["token"]], key=lambda row: row["timestamp"]):
            clip = _clip(finder, sample, scene["name"], tuple(float(offset) for offset in offsets))
            if clip is not None:
                clips.append(clip)
    if not clips:
        raise UserError(
            f"split {split!r} is empty: no key frame of its {len(scenes)} scene(s) has all of {', '.join(cameras)} "
            f"within {tolerance} s"
        )
    verify.check_files(clips)
    return clips


def boxes_in_frame(tables: NuScenes, clip: ClipRecord) -> Array:
    """The annotations of a clip's key frame.

    Returns:
        (M, 9) x, y, z (m), width, length, height (m), yaw (rad, about z, 0 along x), vx, vy (m/s, nan where unknown),
        in the coordinates of the key frame.
    """
    frame_from_global = invert_rigid(clip.key_frame.global_from_frame)
    rows = []
    for token in _get(tables, "sample", clip.token)["anns"]:
        annotation = _get(tables, "sample_annotation", token)
        box = frame_from_global @ _pose("sample_annotation", annotation)
        velocity = frame_from_global[:3, :3] @ tables.box_velocity(token)
        yaw = np.arctan2(box[1, 0], box[0, 0])
        rows.append([*box[:3, 3], *annotation["size"], yaw, *velocity[:2]])
    return np.array(rows, dtype=np.float64).reshape(-1, 9)


def _scenes_of_split(tables: NuScenes, split: str) -> list[str]:
    from nuscenes.utils.splits import create_splits_scenes

    splits: dict[str, list[str]] = create_splits_scenes()
    custom = Path(tables.dataroot) / tables.version / "splits.json"
    if custom.is_file():
        try:
            splits = {**json.loads(custom.read_bytes()), **splits}
        except (ValueError, TypeError) as error:
            raise UserError(f"broken table: {custom} is not a JSON object of scene lists ({error})") from None
    if split not in splits:
        raise UserError(f"no split {split!r}{did_you_mean(split, splits)} (known: {', '.join(sorted(splits))})")
    return splits[split]


def _get(tables: NuScenes, table: str, token: str) -> Row:
    try:
        return tables.get(table, token)
    except KeyError:
        raise UserError(
            f"broken table: {tables.dataroot}/{tables.version}/{table}.json has no token {token!r}"
        ) from None


def _numbers(table: str, row: Row, column: str, shape: tuple[int, ...]) -> Array:
    """A column as finite numbers of a shape, or UserError."""
    try:
        values = np.asarray(row[column], dtype=np.float64)
    except (ValueError, TypeError):
        values = np.zeros(0)
    if values.shape != shape or not np.isfinite(values).all():
        size = "x".join(map(str, shape))
        raise UserError(f"broken record: {table}.json, token {row['token']}: {column} must be {size} finite numbers")
    return values


def _pose(table: str, row: Row) -> Array:
    """The (4, 4) of a row's translation and rotation (w, x, y, z); UserError where they are no rigid motion."""
    rotation = _numbers(table, row, "rotation", (4,))
    norm = np.linalg.norm(rotation)
    if abs(norm - 1) > 1e-3:
        raise UserError(f"broken record: {table}.json, token {row['token']}: the rotation's norm is {norm:.4g}, not 1")
    return rigid(rotation_matrix(rotation / norm), _numbers(table, row, "translation", (3,)))


def _intrinsics(row: Row) -> Array:
    matrix = _numbers("calibrated_sensor", row, "camera_intrinsic", (3, 3))
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        where = f"calibrated_sensor.json, token {row['token']}"
        raise UserError(f"broken record: {where}: camera_intrinsic has no positive focal length")
    return matrix


class _Channel:
    """The records of one sensor in one scene, ascending in time."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = sorted(rows, key=lambda row: row["timestamp"])
        self.times = np.array([row["timestamp"] for row in self.rows], dtype=np.int64)  # (P,)
        self.key_of_sample = {row["sample_token"]: i for i, row in enumerate(self.rows) if row["is_key_frame"]}

    def nearest(self, time: int, limit: int) -> int | None:
        """Index of the record nearest to a time (the earlier of two), or None beyond the limit; microseconds."""
        if not len(self.times):
            return None
        right = int(np.searchsorted(self.times, time))
        around = range(max(right - 1, 0), min(right + 1, len(self.times)))
        best = min(around, key=lambda i: abs(int(self.times[i]) - time))
        return best if abs(int(self.times[best]) - time) <= limit else None


def _records_by_scene(tables: NuScenes, scenes: set[str], channels: Sequence[str]) -> dict[str, dict[str, _Channel]]:
    scene_of_sample = {row["token"]: row["scene_token"] for row in tables.sample}
    rows: dict[str, dict[str, list[Row]]] = {scene: {channel: [] for channel in channels} for scene in scenes}
    for row in tables.sample_data:
        of_scene = rows.get(scene_of_sample.get(row["sample_token"], ""))
        if of_scene is not None and row["channel"] in of_scene:
            of_scene[row["channel"]].append(row)
    return {
        scene: {channel: _Channel(list_) for channel, list_ in by_channel.items()} for scene, by_channel in rows.items()
    }


class _Found(NamedTuple):
    """The records that make a frame, by their indices in their channels."""

    lidar: int | None
    cameras: tuple[int, ...]


class _FrameFinder:
    """Builds the frames of one scene, each once, so that clips share them."""

    def __init__(self, tables: NuScenes, records: dict[str, _Channel], cameras: Sequence[str], limit: int) -> None:
        self._tables, self._limit = tables, limit
        self._cameras = [records[channel] for channel in cameras]
        self._channels = tuple(cameras)
        self._lidar = records[LIDAR]
        self._built: dict[_Found, FrameRecord] = {}
        self._ego_times: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._ego_poses: Array = np.zeros((0, 4, 4))
        if not self._lidar.rows:
            poses = {row["timestamp"]: row for channel in self._cameras for row in channel.rows}
            self._ego_times = np.array(sorted(poses), dtype=np.int64)
            self._ego_poses = np.array([self._ego(poses[int(time)]) for time in self._ego_times])

    def find(self, time: int) -> _Found | None:
        """The records of the frame at a time in microseconds, or None where there is no such frame."""
        lidar = None
        sample = ""
        if self._lidar.rows:
            lidar = self._lidar.nearest(time, self._limit)
            if lidar is None:
                return None
            row = self._lidar.rows[lidar]
            time = row["timestamp"]
            sample = row["sample_token"] if row["is_key_frame"] else ""
        found: list[int] = []
        for channel in self._cameras:
            index = channel.key_of_sample.get(sample)
            if index is None or abs(int(channel.times[index]) - time) > self._limit:
                index = channel.nearest(time, self._limit)
            if index is None:
                return None
            found.append(index)
        return _Found(lidar, tuple(found))

    def frame(self, found: _Found) -> FrameRecord:
        if found not in self._built:
            self._built[found] = self._build(found)
        return self._built[found]

    def _build(self, found: _Found) -> FrameRecord:
        cameras = tuple(
            self._camera(name, records.rows[index])
            for name, records, index in zip(self._channels, self._cameras, found.cameras, strict=True)
        )
        if found.lidar is None:
            mean = sum(camera.timestamp_us for camera in cameras) / len(cameras)
            return FrameRecord(round(mean), interpolate_pose(self._ego_times, self._ego_poses, mean), cameras, None)
        row = self._lidar.rows[found.lidar]
        lidar = LidarRecord(
            path=self._path(row),
            ego_from_lidar=_pose("calibrated_sensor", self._calibration(row)),
            global_from_ego=self._ego(row),
            timestamp_us=row["timestamp"],
        )
        return FrameRecord(lidar.timestamp_us, lidar.global_from_ego, cameras, lidar)

    def _camera(self, channel: str, row: Row) -> CameraRecord:
        calibration = self._calibration(row)
        width, height = row.get("width", 0), row.get("height", 0)
        if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
            raise UserError(f"broken record: sample_data.json, token {row['token']}: width and height must be positive")
        return CameraRecord(
            channel=channel,
            path=self._path(row),
            width=width,
            height=height,
            intrinsics=_intrinsics(calibration),
            ego_from_cam=_pose("calibrated_sensor", calibration),
            global_from_ego=self._ego(row),
            timestamp_us=row["timestamp"],
        )

    def _path(self, row: Row) -> str:
        return verify.path_inside(Path(self._tables.dataroot), row["filename"])

    def _calibration(self, row: Row) -> Row:
        return _get(self._tables, "calibrated_sensor", row["calibrated_sensor_token"])

    def _ego(self, row: Row) -> Array:
        return _pose("ego_pose", _get(self._tables, "ego_pose", row["ego_pose_token"]))


def _clip(finder: _FrameFinder, sample: Row, scene: str, offsets: tuple[float, ...]) -> ClipRecord | None:
    frames: list[FrameRecord | None] = [None] * len(offsets)
    seen: set[tuple[int, int]] = set()  # (camera, record)
    # Nearest offsets first: they keep a record that two offsets would share. An image twice in a clip would give away
    # the frame that is to be reconstructed from the others.
    for position in sorted(range(len(offsets)), key=lambda i: abs(offsets[i])):
        found = finder.find(sample["timestamp"] + round(offsets[position] * 1e6))
        if found is None:
            if offsets[position] == 0.0:
                return None
            continue
        images = set(enumerate(found.cameras))
        if not images & seen:
            seen |= images
            frames[position] = finder.frame(found)
    return ClipRecord(sample["token"], scene, offsets, tuple(frames), offsets.index(0.0))
