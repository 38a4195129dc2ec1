"""Rigid motion, frame records and their packed form."""

from __future__ import annotations

import pickle
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.data.frames import (
    CameraRecord,
    ClipRecord,
    FrameRecord,
    LidarRecord,
    interpolate_pose,
    invert_rigid,
    rigid,
    rotation_matrix,
    transform,
)
from mim4d.data.packed import PackedClips


def about_z(yaw):
    return np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])


def pose(x, y, yaw):
    return rigid(about_z(yaw), [x, y, 0.0])


def camera(channel="CAM_FRONT", time=0, position=(0.0, 0.0), yaw=0.0):
    ego_from_cam = rigid(np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0.0]]), [1.5, 0.0, 1.5])
    return CameraRecord(channel, f"{channel}-{time}.jpg", 80, 48, np.eye(3), ego_from_cam, pose(*position, yaw), time)


unit_quaternions = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)


@settings(deadline=None)
@given(unit_quaternions)
def test_a_quaternion_gives_a_rotation_and_its_negative_the_same(quaternion):
    q = np.array(quaternion) / np.linalg.norm(quaternion)
    rotation = rotation_matrix(q)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation_matrix(-q), rotation, atol=1e-15)


def test_a_quaternion_turns_by_twice_its_half_angle():
    np.testing.assert_allclose(rotation_matrix([np.cos(0.35), 0, 0, np.sin(0.35)]), about_z(0.7), atol=1e-15)
    # A third of a turn about (1, 1, 1) sends x to y, y to z, z to x.
    np.testing.assert_allclose(rotation_matrix([0.5, 0.5, 0.5, 0.5]) @ [1, 2, 3], [3, 1, 2], atol=1e-15)


@settings(deadline=None)
@given(unit_quaternions, st.tuples(*[st.floats(-1000, 1000)] * 3))
def test_the_inverse_undoes_a_motion(quaternion, translation):
    matrix = rigid(rotation_matrix(np.array(quaternion) / np.linalg.norm(quaternion)), translation)
    points = np.array([[1.0, 2, 3], [-4, 5, 6]])
    np.testing.assert_allclose(transform(invert_rigid(matrix), transform(matrix, points)), points, atol=1e-11)


def test_an_interpolated_pose_turns_evenly_and_goes_straight():
    times = np.array([0, 100, 400])
    poses = np.array([pose(0, 0, 0.2), pose(1, 0, 0.4), pose(4, 3, 1.9)])
    np.testing.assert_allclose(interpolate_pose(times, poses, 50), pose(0.5, 0, 0.3), atol=1e-14)
    np.testing.assert_allclose(interpolate_pose(times, poses, 200), pose(2, 1, 0.9), atol=1e-14)
    np.testing.assert_allclose(interpolate_pose(times, poses, 100), poses[1], atol=1e-14)
    np.testing.assert_array_equal(interpolate_pose(times, poses, -5), poses[0])
    np.testing.assert_array_equal(interpolate_pose(times, poses, 900), poses[2])


def test_a_pose_between_equal_rotations_keeps_it():
    times, poses = np.array([0, 10]), np.array([pose(0, 0, 0.7), pose(2, 0, 0.7)])
    np.testing.assert_allclose(interpolate_pose(times, poses, 5), pose(1, 0, 0.7), atol=1e-15)


def test_a_camera_keeps_the_pose_of_its_own_time():
    """The car drives 1 m along global x and turns by 90 degrees left between the exposure and the frame's time."""
    early = camera(position=(10.0, 5.0), yaw=0.0)
    frame = FrameRecord(100, pose(11.0, 5.0, np.pi / 2), (early,), None)
    # The camera stood at global (11.5, 5, 1.5) looking along +x. From (11, 5), heading +y, that is 0.5 m to the right,
    # and it looks to the right: frame -y.
    frame_from_cam = frame.frame_from_cam(0)
    np.testing.assert_allclose(frame_from_cam[:3, 3], [0, -0.5, 1.5], atol=1e-12)
    np.testing.assert_allclose(frame_from_cam[:3, :3] @ [0, 0, 1], [0, -1, 0], atol=1e-12)


def test_far_from_the_origin_a_frame_stays_exact():
    """2 km from the map's origin, float64 keeps a camera's place to far below a millimetre."""
    car = pose(2000.0, -1500.0, 1.1)
    frame = FrameRecord(0, car, (replace(camera(), global_from_ego=car),), None)
    np.testing.assert_allclose(frame.frame_from_cam(0), camera().ego_from_cam, atol=1e-11)


def test_the_lidar_of_its_own_frame_is_where_it_is_mounted():
    mount = rigid(about_z(-1.5), [0.9, 0, 1.8])
    sweep = LidarRecord("a", mount, pose(7, 8, 0.3), 0)
    frame = FrameRecord(0, pose(7, 8, 0.3), (camera(),), sweep)
    np.testing.assert_allclose(frame.frame_from_lidar(), mount, atol=1e-13)
    with pytest.raises(ValueError, match="no LiDAR"):
        replace(frame, lidar=None).frame_from_lidar()


def some_clips(count):
    def frame(time, with_lidar):
        cameras = tuple(camera(name, time + 3, (0.01 * time, 1.0), 1e-3 * time) for name in ("CAM_FRONT", "CAM_BACK"))
        sweep = LidarRecord(f"sweep-{time}", pose(0.9, 0, 0.1), pose(time, 0, 0.0), time) if with_lidar else None
        return FrameRecord(time, pose(time, 0, 0.0), cameras, sweep)

    frames = [frame(time, time % 3 > 0) for time in range(count)]
    ends = [None, *frames, None]
    return [
        ClipRecord(f"token-ü-{i}", "scene", (-0.5, 0.0, 0.5), (ends[i], ends[i + 1], ends[i + 2]), 1)
        for i in range(count)
    ]


def assert_equal(a, b):
    assert type(a) is type(b)
    if is_dataclass(a):
        for field in fields(a):
            assert_equal(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        np.testing.assert_array_equal(a, b)


def test_packed_clips_give_back_what_went_in():
    clips = some_clips(5)
    packed = PackedClips(clips)
    assert len(packed) == 5
    for i, clip in enumerate(clips):
        assert_equal(packed[i], clip)
    assert_equal(tuple(packed[1:3]), tuple(clips[1:3]))
    assert_equal(packed[-1], clips[-1])


def test_packed_clips_hold_each_frame_once():
    """Per frame two poses per camera at most, not three clips' worth of objects: under 1 KiB for two cameras."""
    size = len(pickle.dumps(PackedClips(some_clips(200))))
    assert size < 200 * 1024
    assert size < len(pickle.dumps(some_clips(200))) / 2


def test_packed_clips_refuse_a_mixture():
    clips = some_clips(2)
    with pytest.raises(ValueError, match="same offsets"):
        PackedClips([clips[0], replace(clips[1], offsets=(-0.4, 0.0, 0.5))])
    frame = clips[1].frames[1]
    assert frame is not None
    with pytest.raises(ValueError, match="same cameras"):
        PackedClips([clips[0], replace(clips[1], frames=(None, replace(frame, cameras=frame.cameras[:1]), None))])


def test_packed_clips_pack_again():
    packed = PackedClips(some_clips(3))
    assert_equal(tuple(PackedClips(packed)), tuple(packed))


def test_no_clips_pack_too():
    assert len(PackedClips([])) == 0
