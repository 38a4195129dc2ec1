"""Clips as tensors: the configuration, the dataset, and the batch that the model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mim4d.data.frames import CAMERAS, ClipRecord, FrameRecord, invert_rigid, transform
from mim4d.data.nuscenes import check_offsets, clips_of_split, default_splits, load_tables
from mim4d.data.packed import PackedClips
from mim4d.data.rays import (
    NO_HITS,
    Bounds,
    Hits,
    Rays,
    View,
    dense_rays,
    draw_rays,
    held_out,
    lidar_hits,
    load_lidar,
    stable_rng,
)
from mim4d.data.transforms import load_image, padded_size
from mim4d.errors import UserError


@dataclass
class DataConfig:
    """What is read and how clips, rays and the held-out part are made of it."""

    root: str = ""
    """Folder that holds 'samples', 'sweeps' and the version folder."""
    version: str = "v1.0-trainval"
    """Name of the folder with the tables."""
    train_split: str = ""
    """A devkit split, or one of the version's splits.json; empty: the usual one of the version."""
    val_split: str = ""
    """As train_split; not used when rays are held out."""
    offsets: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0)
    """Seconds after the key frame, one per frame; 0.0 is the key frame."""
    tolerance: float = 0.06
    """Seconds between the time asked for and a record's time."""
    cameras: tuple[str, ...] = CAMERAS
    """Channels that every frame needs."""
    image_size: tuple[int, int] = (450, 800)
    """Height and width that images are resized to."""
    pad_multiple: int = 32
    """Images are padded with zeros, right and bottom, to a multiple of this."""
    rays_per_camera: int = 512
    """Rays drawn per camera and target frame."""
    patch: int = 1
    """Training rays come as squares of so many pixels a side around LiDAR returns; 1: single rays."""
    targets: int = 2
    """Frames rendered per clip in training: the key frame and random others."""
    sky: float = 0.4
    """Share of rows, from the top, where pixels without LiDAR are not drawn."""
    lidar_bounds: Bounds | None = None
    """xmin ymin zmin xmax ymax zmax (m, frame coordinates): returns outside are no targets. None keeps all."""
    holdout: Literal["scenes", "rays"] = "scenes"
    """Held out for validation: the scenes of val_split, or a share of every training frame's LiDAR pixels."""
    holdout_fraction: float = 0.1
    """That share, when rays are held out."""
    workers: int = 2
    """Processes that load clips."""

    def check(self) -> None:
        """Raises UserError naming the first option whose value cannot work."""
        check_offsets(self.offsets)
        height, width = self.image_size
        bounds = self.lidar_bounds
        # Whatever the LiDAR hits, below the sky line so many pixels are left to fill up with.
        drawable = (height - int(np.ceil(self.sky * height))) * width
        if self.holdout == "rays":
            drawable -= int(np.ceil(self.holdout_fraction * drawable))
        for option, bad, need in (
            ("tolerance", self.tolerance < 0, "must not be negative"),
            ("cameras", not self.cameras or len(set(self.cameras)) != len(self.cameras), "must name distinct cameras"),
            ("image-size", min(height, width) < 1, "must be a positive height and width"),
            ("pad-multiple", self.pad_multiple < 1, "must be at least 1"),
            ("targets", self.targets < 1, "must be at least 1"),
            ("sky", not 0 <= self.sky < 1, "must be in [0, 1)"),
            (
                "lidar-bounds",
                bounds is not None and any(bounds[i] >= bounds[i + 3] for i in range(3)),
                "is an empty box",
            ),
            ("holdout", self.holdout not in ("scenes", "rays"), "must be 'scenes' or 'rays'"),
            ("holdout-fraction", not 0 < self.holdout_fraction < 1, "must be between 0 and 1"),
            ("workers", self.workers < 0, "must not be negative"),
            ("rays-per-camera", self.rays_per_camera < 1, "must be at least 1"),
            ("patch", not 1 <= self.patch <= min(height, width), "must be at least 1 and fit into the image"),
            ("patch", self.patch > 1 and self.holdout == "rays", "would show training the rays that are held out"),
            (
                "rays-per-camera",
                self.rays_per_camera % max(self.patch, 1) ** 2,
                f"must be a multiple of the {self.patch} x {self.patch} rays of a patch",
            ),
            ("rays-per-camera", self.rays_per_camera > drawable, f"is more than the {drawable} pixels to draw from"),
        ):
            if bad:
                raise UserError(f"--data.{option} {getattr(self, option.replace('-', '_'))!r} {need}")


@dataclass
class ClipBatch:
    """B clips of T frames and N cameras, with rays for K target frames."""

    images: Tensor  # (B, T, N, 3, H, W) float32 RGB in [0, 1]; zero in the padding and in missing frames
    content: tuple[int, int]  # height and width without padding
    intrinsics: Tensor  # (B, T, N, 3, 3) float32
    frame_from_cam: Tensor  # (B, T, N, 4, 4) float32
    key_from_frame: Tensor  # (B, T, 4, 4) float32
    offsets: Tensor  # (B, T) float32 seconds after the key frame; as asked for where the frame is missing
    valid: Tensor  # (B, T) bool; a missing frame has the key frame's calibration and pose as a placeholder
    key: int  # index of the key frame in T
    targets: Tensor  # (B, K) int64 index into T; the key frame first
    target_valid: Tensor  # (B, K) bool; an invalid target is the key frame again, with rays that see nothing
    rays: Rays  # (B, K, N, R), each in the coordinates of its target frame
    tokens: list[str]  # the key frames' sample tokens
    patch: int = 1  # R is a number of squares of this many pixels a side, row by row

    def map(self, function: Callable[[Tensor], Tensor]) -> ClipBatch:
        """The same function applied to every tensor, those of the rays included."""
        tensors: dict[str, Any] = {
            f.name: function(v) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, rays=self.rays.map(function), **tensors)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ClipBatch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ClipBatch:
        """Page-locked copies; called by DataLoader(pin_memory=True)."""
        return self.map(lambda tensor: tensor.pin_memory())


def collate(clips: Sequence[ClipBatch]) -> ClipBatch:
    """One batch of several, in order. They must agree in everything but B."""
    first = clips[0]
    joined: dict[str, Any] = {}
    for field in fields(ClipBatch):
        values = [getattr(clip, field.name) for clip in clips]
        if isinstance(values[0], Tensor):
            joined[field.name] = torch.cat(values)
        elif isinstance(values[0], Rays):
            joined[field.name] = Rays.join(torch.cat, values)
        elif isinstance(values[0], list):
            joined[field.name] = [item for value in values for item in value]
        elif any(value != values[0] for value in values):
            raise ValueError(f"collate: {field.name} differs within the batch")
        else:
            joined[field.name] = getattr(first, field.name)
    return ClipBatch(**joined)


class ClipDataset(Dataset[ClipBatch]):
    """Clips as batches of one.

    Training: targets are the key frame and random other valid frames; rays are drawn anew in every epoch, seeded by
    (seed, epoch, clip, camera), whatever the worker. Validation: the key frame alone, always the same rays.

    Args:
        config: checked here.
        clips: from :func:`mim4d.data.nuscenes.clips_of_split`.
        train: training or validation.
        seed: of the random draws of training.

    Raises:
        UserError: an option that cannot work; on access, a file that cannot be read.
    """

    def __init__(self, config: DataConfig, clips: Sequence[ClipRecord], *, train: bool, seed: int = 0) -> None:
        config.check()
        self.config, self.train, self.seed = config, train, seed
        self.clips = clips if isinstance(clips, PackedClips) else PackedClips(clips)
        # Shared memory, so that workers that live on from epoch to epoch see the change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of the clips that are read from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipBatch:
        return self.load(index, int(self._epoch))

    def load(self, index: int, epoch: int) -> ClipBatch:
        """The clip as it is in an epoch, whatever :meth:`set_epoch` said; validation is the same in all of them."""
        clip = self.clips[index]
        config = self.config
        loaded = {t: (frame, self._views(frame)) for t, frame in enumerate(clip.frames) if frame is not None}
        key_from_global = invert_rigid(clip.key_frame.global_from_frame)
        # A missing frame gets the key frame's calibration and pose: finite, invertible, and masked by `valid`.
        views = [loaded.get(t, loaded[clip.key])[1] for t in range(len(clip.frames))]
        targets, target_valid = self._targets(clip, epoch)
        drawn = [self._draw(clip, epoch, *loaded[target]) for target in targets]
        rays = [rays if real else rays.blank() for rays, real in zip(drawn, target_valid, strict=True)]
        height, width = padded_size(config.image_size, config.pad_multiple)
        images = torch.zeros(1, len(views), len(config.cameras), 3, height, width)
        for t, (_, seen) in loaded.items():
            for n, view in enumerate(seen):
                h, w = view.image.shape[:2]
                images[0, t, n, :, :h, :w] = torch.from_numpy(view.image).permute(2, 0, 1).float().div_(255)
        return ClipBatch(
            images=images,
            content=config.image_size,
            intrinsics=_tensor([[view.intrinsics for view in seen] for seen in views]),
            frame_from_cam=_tensor([[view.frame_from_cam for view in seen] for seen in views]),
            key_from_frame=_tensor(
                [np.eye(4) if frame is None else key_from_global @ frame.global_from_frame for frame in clip.frames]
            ),
            offsets=_tensor(
                [
                    offset if frame is None else (frame.timestamp_us - clip.key_frame.timestamp_us) / 1e6
                    for offset, frame in zip(clip.offsets, clip.frames, strict=True)
                ]
            ),
            valid=torch.tensor([[frame is not None for frame in clip.frames]]),
            key=clip.key,
            targets=torch.tensor([targets]),
            target_valid=torch.tensor([target_valid]),
            rays=Rays.join(torch.stack, rays).map(lambda tensor: tensor[None]),
            tokens=[clip.token],
            patch=config.patch if self.train else 1,
        )

    def key_cameras(self, index: int, *, drawn_only: bool = False) -> list[tuple[View, Hits]]:
        """For each camera the key frame's image at the working resolution and the LiDAR returns in it.

        With ``drawn_only``, the returns that this dataset draws rays from alone: in training those that are not held
        out, in validation those that are.
        """
        frame = self.clips[index].key_frame
        views = self._views(frame)
        return [
            (view, drawn if drawn_only else Hits.join([drawn, other]))
            for view, (drawn, other) in zip(views, self._hits(frame, views), strict=True)
        ]

    def dense_rays(self, index: int, stride: int) -> Rays:
        """Rays (N, H // stride, W // stride) over the key frame's images, for pictures."""
        return Rays.join(torch.stack, [dense_rays(view, stride) for view in self._views(self.clips[index].key_frame)])

    def _views(self, frame: FrameRecord) -> list[View]:
        return [
            View(*load_image(camera, self.config.image_size), frame.frame_from_cam(n))
            for n, camera in enumerate(frame.cameras)
        ]

    def _hits(self, frame: FrameRecord, views: list[View]) -> list[tuple[Hits, Hits]]:
        """Per camera the returns that this dataset draws from, and those that it must not touch."""
        if frame.lidar is None:
            return [(NO_HITS, NO_HITS)] * len(views)
        points = transform(frame.frame_from_lidar(), load_lidar(frame.lidar))  # (P, 3)
        parts = []
        for view, camera in zip(views, frame.cameras, strict=True):
            hits, other = lidar_hits(points, view, self.config.lidar_bounds), NO_HITS
            if self.config.holdout == "rays":
                # Keyed by the frame, not the clip: a pixel held out stays so in every clip that shows the frame.
                held = held_out(hits, self.config.holdout_fraction, frame.timestamp_us, camera.channel)
                drawn = ~held if self.train else held
                hits, other = hits.select(drawn), hits.select(~drawn)
            parts.append((hits, other))
        return parts

    def _draw(self, clip: ClipRecord, epoch: int, frame: FrameRecord, views: list[View]) -> Rays:
        config = self.config
        moment = ("train", self.seed, epoch) if self.train else ("val",)
        rays = [
            draw_rays(
                view,
                hits,
                config.rays_per_camera,
                stable_rng("rays", *moment, clip.token, frame.timestamp_us, channel),
                sky=config.sky,
                exclude=other.pixel,
                # Held-out rays are the measure: rather each a second time than pixels that training has seen.
                repeat=not self.train and config.holdout == "rays",
                patch=config.patch if self.train else 1,
            )
            for view, (hits, other), channel in zip(views, self._hits(frame, views), config.cameras, strict=True)
        ]
        return Rays.join(torch.stack, rays)

    def _targets(self, clip: ClipRecord, epoch: int) -> tuple[list[int], list[bool]]:
        if not self.train:
            return [clip.key], [True]
        others = [t for t, frame in enumerate(clip.frames) if frame is not None and t != clip.key]
        count = min(self.config.targets, len(clip.frames))
        rng = stable_rng("targets", self.seed, epoch, clip.token)
        chosen = [clip.key, *(int(t) for t in rng.permutation(others)[: count - 1])]
        missing = count - len(chosen)
        return chosen + [clip.key] * missing, [True] * len(chosen) + [False] * missing


def open_datasets(config: DataConfig, *, seed: int = 0) -> tuple[ClipDataset, ClipDataset]:
    """The training and the validation dataset of a configuration; the tables are read once.

    Where rays are held out, both go over the training split.

    Raises:
        UserError: a wrong option, folder, table, split or file, in one line.
    """
    config.check()
    tables = load_tables(config.root, config.version)
    train_split, val_split = config.train_split, config.val_split
    if not train_split or (not val_split and config.holdout == "scenes"):
        usual = default_splits(config.version)
        train_split, val_split = train_split or usual[0], val_split or usual[1]

    def clips(split: str) -> list[ClipRecord]:
        return clips_of_split(tables, split, config.offsets, cameras=config.cameras, tolerance=config.tolerance)

    train = clips(train_split)
    val = train if config.holdout == "rays" else clips(val_split)
    return ClipDataset(config, train, train=True, seed=seed), ClipDataset(config, val, train=False)


def _tensor(values: Any) -> Tensor:
    """(1, ...) float32 of nested float64 values."""
    return torch.from_numpy(np.asarray(values, dtype=np.float64)).float()[None]
