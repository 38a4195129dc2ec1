"""Reads what a run left in its folder: settings, summary, curves and pictures. Every fault names its file."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mim4d.errors import UserError

# name -> number of dimensions; the sizes are checked against each other in load_renders
_REQUIRED = {
    "cameras": 1,
    "image": 4,
    "masked_image": 4,
    "stride": 0,
    "rgb_direct": 4,
    "depth_direct": 3,
    "opacity_direct": 3,
    "lidar": 2,
    "bev_direct": 2,
    "sdf_slice": 2,
    "bounds": 1,
    "token": 0,
}
_OPTIONAL = {
    "rgb_reconstructed": 4,
    "depth_reconstructed": 3,
    "opacity_reconstructed": 3,
    "bev_reconstructed": 2,
    "motion": 3,
    "boxes": 2,
}


@dataclass(frozen=True)
class Renders:
    """One ``renders/*.npz``: a held-out key frame and what the model drew of it.

    N cameras with images of H x W pixels, h x w rendered rays each; maps of Y x X cells.
    """

    cameras: tuple[str, ...]
    image: np.ndarray  # (N, H, W, 3) uint8
    masked_image: np.ndarray  # (N, H, W, 3) uint8: the picture with the hidden blocks taken out
    stride: int  # pixels between rendered rays
    rgb_direct: np.ndarray  # (N, h, w, 3) uint8
    depth_direct: np.ndarray  # (N, h, w) metres along the ray
    opacity_direct: np.ndarray  # (N, h, w) in [0, 1]
    lidar: np.ndarray  # (P, 4): camera index, u, v, metres along the ray
    bev_direct: np.ndarray  # (Y, X) size of the features seen from above
    sdf_slice: np.ndarray  # (Y, X) metres to the nearest surface, negative inside
    bounds: tuple[float, ...]  # xmin, ymin, zmin, xmax, ymax, zmax in metres, ego frame
    token: str
    rgb_reconstructed: np.ndarray | None = None  # (N, h, w, 3) uint8
    depth_reconstructed: np.ndarray | None = None  # (N, h, w) metres
    opacity_reconstructed: np.ndarray | None = None  # (N, h, w) in [0, 1]
    bev_reconstructed: np.ndarray | None = None  # (Y, X)
    motion: np.ndarray | None = None  # (2, Y, X) m/s, x forward and y left
    boxes: np.ndarray | None = None  # (M, 9): x, y, z, w, l, h, yaw, vx, vy

    def lidar_of(self, camera: int) -> np.ndarray:
        """The LiDAR hits inside one camera's image: (P', 3) of u, v in pixels and metres along the ray."""
        return self.lidar[self.lidar[:, 0] == camera, 1:]

    def at_lidar(self, camera: int, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """LiDAR distances of one camera and the rendered ones (h, w) at the nearest ray: (P',), (P',) metres."""
        points = self.lidar_of(camera)
        rows, columns = depth.shape
        # ray i covers the pixels [stride * i, stride * (i + 1)); what the stride leaves over belongs to the last one
        row = (points[:, 1] // self.stride).astype(int).clip(0, rows - 1)
        column = (points[:, 0] // self.stride).astype(int).clip(0, columns - 1)
        return points[:, 2], depth[row, column]


@dataclass(frozen=True)
class RunFolder:
    """Everything the report shows. ``after`` and ``summary["val"]["after"]`` are missing while a run is unfinished."""

    path: Path
    config_text: str
    settings: dict[str, str]  # scalar settings by dotted name, as text
    summary: dict[str, Any]
    metrics: dict[str, np.ndarray]  # (rows,) each, NaN where a row lacks the entry; sorted by "step"
    before: Renders
    after: Renders | None

    @property
    def finished(self) -> bool:
        """Whether the run measured its result and drew it."""
        return self.after is not None and scores(self.summary, "val", "after") is not None

    @property
    def rays_held_out(self) -> bool:
        """Whether single LiDAR rays were kept out of training, and not whole scenes: the pictures were then seen."""
        return self.settings.get("data.holdout") == "rays"

    @property
    def rebuilds(self) -> bool:
        """Whether clips have other moments that the model rebuilds this one from."""
        drawn = self.after or self.before
        return drawn.rgb_reconstructed is not None or scores(self.summary, "val_reconstructed", "after") is not None

    @property
    def world(self) -> dict[str, Any] | None:
        """What made a synthetic world (seed, scenes, seconds, image_size), where ``summary["data"]`` says it whole."""
        data = self.summary.get("data")
        world = data.get("world") if isinstance(data, dict) else None
        if not isinstance(world, dict):
            return None
        counts = [world.get("seed"), world.get("scenes")]
        size = world.get("image_size")
        sized = isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)
        timed = type(world.get("seconds")) in (int, float)
        return world if sized and timed and all(type(count) is int for count in counts) else None

    @property
    def synthetic(self) -> bool:
        """Whether the run says that its data are synthetic: in ``summary["data"]``, or by that word in its settings."""
        data = self.summary.get("data")
        if isinstance(data, dict) and isinstance(data.get("synthetic"), bool):
            return data["synthetic"]
        told = [text for name, text in self.settings.items() if name.startswith("data.") or name == "preset"]
        told += [text for text in (data.values() if isinstance(data, dict) else [data]) if isinstance(text, str)]
        return any("synthetic" in text.lower() for text in told)


def load_run(path: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        UserError: a file is missing or cannot be read; the message names it.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder (a run is made by `mim4d pretrain ... --out {path}`)")
    config_text = _text(path / "config.yaml")
    metrics = load_metrics(path / "metrics.jsonl")
    before = load_renders(path / "renders" / "before.npz")
    after_path = path / "renders" / "after.npz"
    after = load_renders(after_path) if after_path.is_file() else None
    if after is not None and (after.token, after.cameras) != (before.token, before.cameras):
        raise UserError(
            f"{after_path}: shows another frame than before.npz beside it; draw it anew with `mim4d render`"
        )
    summary_path = path / "summary.json"
    summary = load_summary(summary_path) if summary_path.is_file() else {}
    return RunFolder(
        path, config_text, read_settings(config_text, str(path / "config.yaml")), summary, metrics, before, after
    )


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(
            f"{path}: missing; every run folder holds it (is this the folder given to `mim4d pretrain --out`?)"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def load_summary(path: Path) -> dict[str, Any]:
    """``summary.json`` as a dictionary; UserError when it is not one."""
    try:
        summary = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON (line {error.lineno}: {error.msg})") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path}: wanted a JSON object, got {type(summary).__name__}")
    return summary


def load_metrics(path: Path) -> dict[str, np.ndarray]:
    """Columns of ``metrics.jsonl``, sorted by step; where a resumed run wrote a step twice, the later row counts.

    An unfinished last line (a run that was stopped while writing) is left out; any other bad line is a UserError.
    """
    lines = _text(path).split("\n")
    rows: dict[float, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = float(row["step"])
        except (json.JSONDecodeError, TypeError, KeyError, ValueError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path}: line {number} is not a JSON object with a number under 'step'") from error
        rows[step] = row
    ordered = [rows[step] for step in sorted(rows)]
    names = dict.fromkeys(name for row in ordered for name in row)
    columns = {name: np.array([_number(row.get(name)) for row in ordered]) for name in names}
    return {name: column for name, column in columns.items() if np.isfinite(column).any()}


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def load_renders(path: Path) -> Renders:
    """One ``renders/*.npz``, checked; UserError naming file and entry when something is missing or misshapen."""
    if not path.is_file():
        raise UserError(f"{path}: missing; `mim4d render` draws it")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: cannot be read as an .npz file ({error}); draw it anew with `mim4d render`"
        ) from error
    for name, dims in _REQUIRED.items():
        if name not in arrays:
            raise UserError(f"{path}: has no entry '{name}'; draw it anew with `mim4d render`")
        _check_dims(path, name, arrays[name], dims)
    for name, dims in _OPTIONAL.items():
        if name in arrays:
            _check_dims(path, name, arrays[name], dims)
    count = len(arrays["cameras"])
    for name in ("image", "masked_image", "rgb_direct", "depth_direct", "opacity_direct"):
        if len(arrays[name]) != count or 0 in arrays[name].shape:
            raise UserError(f"{path}: '{name}' has shape {arrays[name].shape}, but there are {count} cameras")
    if arrays["lidar"].shape[1] != 4 or arrays["bounds"].shape != (6,):
        raise UserError(f"{path}: wanted 'lidar' (P, 4) and 'bounds' (6,)")
    if "boxes" in arrays and arrays["boxes"].shape[1] != 9:
        raise UserError(f"{path}: wanted 'boxes' (M, 9), got {arrays['boxes'].shape}")
    return Renders(
        cameras=tuple(str(name) for name in arrays["cameras"]),
        stride=int(arrays["stride"]),
        token=str(arrays["token"]),
        bounds=tuple(float(value) for value in arrays["bounds"]),
        **{name: arrays[name] for name in _REQUIRED if name not in ("cameras", "stride", "token", "bounds")},
        **{name: arrays[name] for name in _OPTIONAL if name in arrays},
    )


def _check_dims(path: Path, name: str, array: np.ndarray, dims: int) -> None:
    if array.ndim != dims:
        raise UserError(f"{path}: '{name}' has shape {array.shape}, wanted {dims} dimensions")


def scores(summary: dict[str, Any], group: str, when: str) -> dict[str, float] | None:
    """``summary[group][when]`` when it holds an error, else None; an error that is not a number is NaN."""
    entry = summary.get(group)
    entry = entry.get(when) if isinstance(entry, dict) else None
    if not isinstance(entry, dict):
        return None
    names = ("rgb_l1", "depth_l1_m")
    return {name: _number(entry.get(name)) for name in names} if any(name in entry for name in names) else None


def read_settings(text: str, file: str = "config.yaml") -> dict[str, str]:
    """The settings of a written config by dotted name, as text: ``{"data.version": "v1.0-mini", ...}``.

    Lists of scalars are joined by ``", "``; what is empty or null is left out.

    Raises:
        UserError: the text is no YAML, or no mapping.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{file}: no valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file}: holds no settings")
    found: dict[str, str] = {}

    def walk(node: object, name: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{name}.{key}" if name else str(key))
        elif isinstance(node, list):
            found[name] = ", ".join(str(item) for item in node)
        elif node not in (None, ""):
            found[name] = str(node)

    walk(tree, "")
    return found
