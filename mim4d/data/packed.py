"""Clips held as a few numpy arrays, so that data-loading workers share them instead of copying Python objects.

A list of records costs every forked worker its own copy as reference counts are touched, and every spawned worker a
pickle of each object. The columns here hold each frame once (neighbouring clips share frames) and each calibration
once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from mim4d.data.frames import Array, CameraRecord, ClipRecord, FrameRecord, LidarRecord


class PackedClips(Sequence[ClipRecord]):
    """An immutable sequence of clips that all have the same offsets and cameras.

    Items are rebuilt on access and equal those given value by value. Raises ValueError where offsets or cameras differ.
    """

    def __init__(self, clips: Iterable[ClipRecord]) -> None:
        clips = list(clips)  # frames are told apart by identity, so each clip is made once
        if len({(clip.offsets, clip.key) for clip in clips}) > 1:
            raise ValueError("PackedClips: all clips must have the same offsets and key index")
        frames: dict[int, FrameRecord] = {id(f): f for clip in clips for f in clip.frames if f is not None}
        if len({tuple(camera.channel for camera in frame.cameras) for frame in frames.values()}) > 1:
            raise ValueError("PackedClips: all frames must have the same cameras")
        row = {identity: i for i, identity in enumerate(frames)}
        some = list(frames.values())
        self._offsets = clips[0].offsets if clips else ()
        self._key = clips[0].key if clips else 0
        self._channels = tuple(camera.channel for camera in some[0].cameras) if some else ()
        self._tokens = _text([clip.token for clip in clips])  # (M,)
        self._scenes = _text([clip.scene for clip in clips])  # (M,)
        self._rows = np.array(  # (M, T) row of the frame, or -1
            [[-1 if f is None else row[id(f)] for f in clip.frames] for clip in clips], dtype=np.int32
        ).reshape(len(clips), len(self._offsets))
        self._times = np.array([f.timestamp_us for f in some], dtype=np.int64)  # (F,)
        self._poses = _stack([f.global_from_frame for f in some], (4, 4))  # (F, 4, 4)
        shape = (len(some), len(self._channels))
        cameras = [camera for frame in some for camera in frame.cameras]
        self._camera_paths = _text([c.path for c in cameras]).reshape(shape)  # (F, N)
        self._camera_times = np.array([c.timestamp_us for c in cameras], dtype=np.int64).reshape(shape)  # (F, N)
        self._camera_poses = _stack([c.global_from_ego for c in cameras], (4, 4)).reshape(*shape, 4, 4)
        calibration = np.array(  # (F*N, 27)
            [[c.width, c.height, *c.intrinsics.flat, *c.ego_from_cam.flat] for c in cameras], dtype=np.float64
        ).reshape(len(cameras), 27)
        self._calibration, index = np.unique(calibration, axis=0, return_inverse=True)  # (U, 27)
        self._calibration_row = index.reshape(shape).astype(np.int32)  # (F, N)
        self._has_lidar = np.array([f.lidar is not None for f in some], dtype=bool)  # (F,)
        lidars = [f.lidar for f in some if f.lidar is not None]
        self._lidar_row = np.cumsum(self._has_lidar) - 1  # (F,) row of the frame's sweep, where it has one
        self._lidar_paths = _text([r.path for r in lidars])
        self._lidar_times = np.array([r.timestamp_us for r in lidars], dtype=np.int64)
        self._lidar_poses = _stack([r.global_from_ego for r in lidars], (4, 4))
        self._lidar_calibration = _stack([r.ego_from_lidar for r in lidars], (4, 4))

    def __len__(self) -> int:
        return len(self._tokens)

    @overload
    def __getitem__(self, index: int) -> ClipRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ClipRecord]: ...
    def __getitem__(self, index: int | slice) -> ClipRecord | list[ClipRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        frames = tuple(None if row < 0 else self._frame(int(row)) for row in self._rows[index])
        return ClipRecord(
            os.fsdecode(self._tokens[index]), os.fsdecode(self._scenes[index]), self._offsets, frames, self._key
        )

    def _frame(self, row: int) -> FrameRecord:
        cameras = tuple(self._camera(row, column) for column in range(len(self._channels)))
        lidar = None
        if self._has_lidar[row]:
            at = self._lidar_row[row]
            lidar = LidarRecord(
                os.fsdecode(self._lidar_paths[at]),
                self._lidar_calibration[at],
                self._lidar_poses[at],
                int(self._lidar_times[at]),
            )
        return FrameRecord(int(self._times[row]), self._poses[row], cameras, lidar)

    def _camera(self, row: int, column: int) -> CameraRecord:
        calibration = self._calibration[self._calibration_row[row, column]]
        return CameraRecord(
            channel=self._channels[column],
            path=os.fsdecode(self._camera_paths[row, column]),
            width=int(calibration[0]),
            height=int(calibration[1]),
            intrinsics=calibration[2:11].reshape(3, 3),
            ego_from_cam=calibration[11:].reshape(4, 4),
            global_from_ego=self._camera_poses[row, column],
            timestamp_us=int(self._camera_times[row, column]),
        )


def _text(values: list[str]) -> npt.NDArray[np.bytes_]:
    """Fixed-width bytes: a quarter of numpy's own text type, and any file name survives."""
    return np.array([os.fsencode(value) for value in values], dtype=np.bytes_)


def _stack(values: list[Array], shape: tuple[int, ...]) -> Array:
    return np.array(values, dtype=np.float64).reshape(len(values), *shape)
