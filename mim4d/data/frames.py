"""Record types of the data room, and the rigid-motion arithmetic they need (numpy, float64).

``a_from_b`` is the 4x4 matrix that maps coordinates of frame b to coordinates of frame a, in metres. The *frame* of a
:class:`FrameRecord` is the ego frame (x forward, y left, z up) at the time of its LiDAR sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT")
"""The six nuScenes cameras, clockwise from the front left."""

LIDAR = "LIDAR_TOP"
"""The LiDAR that defines a frame's time and pose."""


def rotation_matrix(quaternion: Sequence[float] | Array) -> Array:
    """Rotation (3, 3) of a unit quaternion (w, x, y, z)."""
    w, x, y, z = (float(value) for value in quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def rigid(rotation: Array, translation: Sequence[float] | Array) -> Array:
    """The 4x4 of a rotation (3, 3) and a translation (3,) in metres."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def invert_rigid(matrix: Array) -> Array:
    """Inverse of a rigid 4x4, exact up to rounding: the rotation's inverse is its transpose."""
    rotation = matrix[:3, :3].T
    return rigid(rotation, -rotation @ matrix[:3, 3])


def transform(matrix: Array, points: Array) -> Array:
    """Points (P, 3) mapped by a 4x4: (P, 3)."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def interpolate_pose(times: npt.NDArray[np.int64], poses: Array, time: float) -> Array:
    """The pose at a time between known ones: the position linear, the rotation at constant angular speed.

    Args:
        times: (P,) ascending, microseconds.
        poses: (P, 4, 4) rigid.
        time: microseconds; before the first or after the last, that one's pose is given.

    Returns:
        (4, 4).
    """
    right = int(np.searchsorted(times, time))
    if right == 0 or right == len(times):
        return poses[min(right, len(times) - 1)].copy()
    a, b = poses[right - 1], poses[right]
    fraction = (time - times[right - 1]) / (times[right] - times[right - 1])
    position = (1 - fraction) * a[:3, 3] + fraction * b[:3, 3]
    return rigid(a[:3, :3] @ _partial_rotation(a[:3, :3].T @ b[:3, :3], float(fraction)), position)


def _partial_rotation(rotation: Array, fraction: float) -> Array:
    """The rotation about the same axis by ``fraction`` of its angle, which must be below pi (Rodrigues' formula)."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine = np.linalg.norm(axis) / 2
    if sine < 1e-12:
        return np.eye(3)
    angle = fraction * np.arctan2(sine, (np.trace(rotation) - 1) / 2)
    x, y, z = axis / (2 * sine)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@dataclass(frozen=True)
class CameraRecord:
    """One image with its calibration and the ego pose at the image's own time."""

    channel: str
    path: str
    width: int  # pixels of the file
    height: int
    intrinsics: Array  # (3, 3) for the file's pixels; the image's top-left corner is (0, 0)
    ego_from_cam: Array  # (4, 4); camera: x right, y down, z forward
    global_from_ego: Array  # (4, 4) at timestamp_us
    timestamp_us: int


@dataclass(frozen=True)
class LidarRecord:
    """One LiDAR sweep with its calibration and the ego pose at the sweep's time."""

    path: str
    ego_from_lidar: Array  # (4, 4)
    global_from_ego: Array  # (4, 4) at timestamp_us
    timestamp_us: int


@dataclass(frozen=True)
class FrameRecord:
    """All cameras (and the LiDAR sweep, where there is a LiDAR) around one moment."""

    timestamp_us: int
    global_from_frame: Array  # (4, 4) ego pose at the LiDAR's time; without LiDAR at the mean camera time
    cameras: tuple[CameraRecord, ...]
    lidar: LidarRecord | None

    def frame_from_cam(self, index: int) -> Array:
        """(4, 4): ``inv(global_from_frame) @ global_from_ego(t_cam) @ ego_from_cam``, float64."""
        camera = self.cameras[index]
        # The two poses are hundreds of metres from the origin and close to each other: their product comes first.
        return invert_rigid(self.global_from_frame) @ camera.global_from_ego @ camera.ego_from_cam

    def frame_from_lidar(self) -> Array:
        """(4, 4): from the LiDAR's coordinates to the frame's. Raises ValueError without a LiDAR record."""
        if self.lidar is None:
            raise ValueError("frame_from_lidar: this frame has no LiDAR record")
        return invert_rigid(self.global_from_frame) @ self.lidar.global_from_ego @ self.lidar.ego_from_lidar


@dataclass(frozen=True)
class ClipRecord:
    """A key frame and its neighbours in time."""

    token: str  # the key frame's sample token
    scene: str
    offsets: tuple[float, ...]  # seconds after the key frame that were asked for, one per frame
    frames: tuple[FrameRecord | None, ...]  # None: no such frame (a scene's edge, a camera missing)
    key: int  # index of the key frame: frames[key] is never None

    @property
    def key_frame(self) -> FrameRecord:
        """The key frame. Raises ValueError where a clip was built without one."""
        frame = self.frames[self.key]
        if frame is None:
            raise ValueError(f"clip {self.token}: frames[{self.key}] is the key frame and must not be None")
        return frame
