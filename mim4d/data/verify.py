"""Checks that end in one line naming the file: the folder, the tables, and the files that clips will read.

The checks before loading are cheap (names, sizes, the two ends of each table), so that a 1000-scene data set starts as
fast as it would without them; a table is parsed a second time only to find the culprit of a failed load.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from mim4d.data.frames import ClipRecord
from mim4d.errors import UserError

TABLES = (
    "category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose",
    "log", "scene", "sample", "sample_data", "sample_annotation", "map",
)  # fmt: skip
"""The thirteen tables of a nuScenes version folder."""

LIDAR_RECORD_BYTES = 20
"""A LiDAR return in a .pcd.bin file: x, y, z, intensity, ring as float32."""

# The columns that are read here or by the devkit while it loads, and the table that a token column points into.
_COLUMNS: dict[str, dict[str, str]] = {
    "category": {"token": "", "name": ""},
    "instance": {"token": "", "category_token": "category"},
    "sensor": {"token": "", "channel": "", "modality": ""},
    "calibrated_sensor": {
        "token": "", "sensor_token": "sensor", "translation": "", "rotation": "", "camera_intrinsic": "",
    },
    "ego_pose": {"token": "", "timestamp": "", "rotation": "", "translation": ""},
    "log": {"token": ""},
    "scene": {"token": "", "name": "", "log_token": "log"},
    "sample": {"token": "", "timestamp": "", "scene_token": "scene"},
    "sample_data": {
        "token": "", "sample_token": "sample", "ego_pose_token": "ego_pose",
        "calibrated_sensor_token": "calibrated_sensor", "timestamp": "", "is_key_frame": "", "filename": "",
    },
    "sample_annotation": {"token": "", "sample_token": "sample", "instance_token": "instance"},
    "map": {"token": "", "log_tokens": "", "filename": ""},
}  # fmt: skip


def check_root(root: str | os.PathLike[str], version: str) -> Path:
    """Check that a folder looks like nuScenes of that version.

    Returns:
        The root as a path.

    Raises:
        UserError: no such folder; no such version in it (those present are named); a table missing, empty or cut off;
            no ``samples`` folder.
    """
    base = Path(root).expanduser()
    if not str(root):
        raise UserError("no data root given: set --data.root to the folder that holds 'samples' and 'v1.0-...'")
    if not base.is_dir():
        raise UserError(f"no such data root: {base} (--data.root)")
    folder = base / version
    if not version or not folder.is_dir():
        present = sorted(path.parent.name for path in base.glob("*/sample_data.json"))
        there = f"it has {', '.join(present)} (--data.version)" if present else "it has no folder with nuScenes tables"
        raise UserError(f"no version folder {version!r} in data root {base}: {there}")
    for table in TABLES:
        _check_table_ends(folder / f"{table}.json")
    if not (base / "samples").is_dir():
        raise UserError(f"no image files in data root {base}: unpack the 'samples' folder beside {version!r}")
    return base


def _check_table_ends(path: Path) -> None:
    """A table is a JSON list: it starts with '[' and ends with ']'. A copy that broke off does not."""
    try:
        with path.open("rb") as file:
            head = file.read(64).lstrip()
            file.seek(max(0, path.stat().st_size - 64))
            tail = file.read().rstrip()
    except FileNotFoundError:
        raise UserError(f"missing table: {path}") from None
    except OSError as error:
        raise UserError(f"unreadable table: {path} ({error.strerror})") from None
    if not head.startswith(b"[") or not tail.endswith(b"]"):
        raise UserError(f"broken table: {path} is empty or cut off (a JSON list was expected); copy it again")


def explain_failed_load(root: Path, version: str, error: Exception) -> UserError:
    """Why nuscenes-devkit could not load the tables, as one line that names the table (it does not say itself)."""
    tokens: dict[str, set[str]] = {}
    rows_of: dict[str, list[dict[str, object]]] = {}
    for table in TABLES:
        path = root / version / f"{table}.json"
        try:
            rows = json.loads(path.read_bytes())
        except (OSError, ValueError) as cause:
            return UserError(f"broken table: {path} is not valid JSON ({cause}); copy it again")
        for number, row in enumerate(rows):
            missing = [c for c in _COLUMNS.get(table, {"token": ""}) if not isinstance(row, dict) or c not in row]
            if missing:
                return UserError(f"broken table: {path}, row {number} has no {missing[0]!r}")
        rows_of[table], tokens[table] = rows, {row["token"] for row in rows}
    for table, columns in _COLUMNS.items():
        for column, target in columns.items():
            for row in rows_of[table] if target else ():
                if row[column] not in tokens[target]:
                    return UserError(
                        f"broken table: {root / version / table}.json, {row['token']}: {column} {row[column]!r} is not "
                        f"in {target}.json"
                    )
    for row in rows_of["map"]:
        if not (root / str(row["filename"])).is_file():
            return UserError(f"missing map file: {root / str(row['filename'])} (named in {version}/map.json)")
    return UserError(f"nuscenes-devkit cannot load {root / version}: {type(error).__name__}: {error}")


def path_inside(root: Path, filename: str) -> str:
    """The path of a table's file name, which must lie inside the data root.

    Links that the user put inside the root are followed; a name that climbs out of it by itself is refused.

    Raises:
        UserError: an absolute name, or one that leaves the root.
    """
    relative = os.path.normpath(filename)
    if not filename or os.path.isabs(relative) or relative.split(os.sep)[0] in ("..", "."):
        raise UserError(f"file name {filename!r} in sample_data.json leaves the data root {root}: refused")
    return os.path.join(root, relative)


def check_files(clips: Sequence[ClipRecord]) -> None:
    """Check that every file the clips will read is there and not cut off (sizes only: nothing is decoded).

    Raises:
        UserError: an image or LiDAR file is missing or empty, or a LiDAR file ends within a return. The file is named.
    """
    frames = {id(frame): frame for clip in clips for frame in clip.frames if frame is not None}.values()
    for path in sorted({camera.path for frame in frames for camera in frame.cameras}):
        _size(path, "image")
    for path in sorted({frame.lidar.path for frame in frames if frame.lidar is not None}):
        check_lidar_size(path, _size(path, "LiDAR"))


def _size(path: str, kind: str) -> int:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise UserError(f"missing {kind} file: {path} ({error.strerror}); the tables name it") from None
    if size == 0:
        raise UserError(f"empty {kind} file: {path}; copy it again")
    return size


def check_lidar_size(path: str, size: int) -> None:
    """Raises UserError unless ``size`` bytes are a whole, positive number of LiDAR returns."""
    if size == 0 or size % LIDAR_RECORD_BYTES:
        raise UserError(
            f"truncated LiDAR file: {path} has {size} bytes, not a multiple of {LIDAR_RECORD_BYTES}; copy it again"
        )
