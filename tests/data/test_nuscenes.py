"""From tables to clips: which records make a frame, and where its cameras stand."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from mim4d.data.frames import transform
from mim4d.data.nuscenes import boxes_in_frame, clips_of_split, default_splits, load_tables, open_clips
from mim4d.data.rays import View, lidar_hits, load_lidar, rays_through
from mim4d.errors import UserError


@pytest.fixture(scope="module")
def clips(room, truth):
    def of(*offsets, root=room, tolerance=0.06, split="mini_train", cameras=truth.cameras):
        return open_clips(root, truth.version, split, offsets, cameras=cameras, tolerance=tolerance)

    return of


def times(clip, truth):
    """Milliseconds after the scene's start, per frame."""
    return [None if f is None else (f.timestamp_us - truth.start) / 1000 for f in clip.frames]


def test_there_is_one_clip_per_key_frame_and_split(clips, truth):
    train, val = clips(0.0), clips(0.0, split="mini_val")
    assert [c.token for c in train] == [truth.token("scene-0061", i) for i in range(4)]
    assert [c.token for c in val] == [truth.token("scene-0103", i) for i in range(4)]
    assert {c.scene for c in val} == {"scene-0103"}
    assert [times(c, truth) for c in train] == [[0], [500], [1000], [1500]]


def test_key_frames_come_in_the_order_of_time(broken_room, truth, clips):
    """Whatever the table's order, and the links between its rows, say."""
    truth.edit(broken_room, "sample", lambda rows: [{**row, "next": row["token"]} for row in reversed(rows)])
    assert [c.token for c in clips(0.0, root=broken_room)] == [truth.token("scene-0061", i) for i in range(4)]


def test_a_scenes_edge_gives_no_frame(clips, truth):
    first, second, third, last = clips(-0.5, 0.0, 1.0)
    assert times(first, truth) == [None, 0, 1000]
    assert times(second, truth) == [0, 500, 1500]
    assert times(third, truth) == [500, 1000, None]
    assert times(last, truth) == [1000, 1500, None]
    assert {c.key for c in (first, second, third, last)} == {1}
    assert first.offsets == (-0.5, 0.0, 1.0)


def test_offsets_find_key_frames_and_sweeps(clips, truth):
    clip = clips(0.0, 0.5, 0.27, -0.33)[1]
    assert times(clip, truth) == [500, 1000, 750, 150]
    key, next_key, sweep, _ = clip.frames
    assert key is not None
    assert next_key is not None
    assert sweep is not None
    assert all("/samples/" in camera.path for camera in (*key.cameras, *next_key.cameras))
    assert all("/sweeps/" in camera.path for camera in sweep.cameras)
    # 12 Hz: the front camera fires at 740 and 823.3 ms, the one behind at 720 and 803.3 ms.
    assert [(c.timestamp_us - truth.start) / 1000 for c in sweep.cameras] == [740, 720]


def test_clips_share_their_frames(clips):
    a, b, *_ = clips(0.0, 0.5)
    assert a.frames[1] is b.frames[0]


def test_a_key_frame_keeps_its_own_images(room, truth, clips, broken_room):
    """The image of the key frame is 30 ms early; a sweep 5 ms late is nearer, but was not triggered by this sweep."""
    late = []

    def add_sweep(rows):
        own = next(r for r in rows if "CAM_BACK" in r["filename"] and r["timestamp"] == truth.start + 470_000)
        name = own["filename"].replace("samples", "sweeps").replace(".png", "-late.png")
        late.append((own["filename"], name))
        rows.append(
            {**own, "token": "late", "is_key_frame": False, "timestamp": truth.start + 505_000, "filename": name}
        )

    truth.edit(broken_room, "sample_data", add_sweep)
    shutil.copy(broken_room / late[0][0], broken_room / late[0][1])
    key = clips(0.0, root=broken_room)[1].key_frame
    assert key.cameras[1].path.endswith(late[0][0])


@pytest.mark.parametrize("tolerance, found", [(0.0299, False), (0.03, True)])
def test_the_tolerance_reaches_its_edge_and_no_further(clips, truth, tolerance, found):
    """At a key frame the camera behind is 30 ms early."""
    if found:
        assert len(clips(0.0, tolerance=tolerance)) == 4
    else:
        with pytest.raises(UserError, match=r"no key frame of its 1 scene\(s\) has all of CAM_FRONT, CAM_BACK"):
            clips(0.0, tolerance=tolerance)
        assert len(clips(0.0, tolerance=tolerance, cameras=("CAM_FRONT",))) == 4


@pytest.mark.parametrize("offset, found", [(1.56, True), (1.5601, False)])
def test_the_lidars_tolerance_too(clips, truth, offset, found):
    """The scene's last LiDAR record is at 1.5 s."""
    assert times(clips(0.0, offset)[0], truth) == [0, 1500 if found else None]


def test_no_image_comes_twice_in_a_clip(clips, truth):
    """20 ms from a key frame its own record is nearest: shown again, it would give the hidden frame away."""
    assert times(clips(0.02, 0.0, 0.5, 0.52)[1], truth) == [None, 500, 1000, None]
    # LiDAR records 50 ms apart, but the same images (83 ms apart) are nearest to both.
    assert times(clips(0.0, 0.25, 0.2)[0], truth) == [0, None, 200]


def test_a_frame_that_lacks_a_camera_is_missing(broken_room, truth, clips):
    def drop(rows):
        gone = truth.start + 970_000
        return [r for r in rows if not ("CAM_BACK" in r["filename"] and abs(r["timestamp"] - gone) < 90_000)]

    truth.edit(broken_room, "sample_data", drop)
    assert [times(c, truth) for c in clips(0.0, 0.5, root=broken_room)] == [[0, 500], [500, None], [1500, None]]


def test_cameras_stand_where_the_car_was_at_their_own_time(clips, truth):
    clip = clips(-0.25, 0.0, 0.5)[1]
    for frame in clip.frames:
        assert frame is not None
        assert frame.lidar is not None
        np.testing.assert_allclose(frame.global_from_frame, truth.global_from_ego(frame.timestamp_us), atol=1e-12)
        for n, camera in enumerate(frame.cameras):
            rotation, at, _ = truth.camera_mount(camera.channel)
            car = truth.global_from_ego(camera.timestamp_us)
            seen = frame.global_from_frame @ frame.frame_from_cam(n)
            np.testing.assert_allclose(seen[:3, :3], car[:3, :3] @ rotation, atol=1e-12)
            np.testing.assert_allclose(seen[:3, 3], car[:3, :3] @ at + car[:3, 3], atol=1e-12)
            assert camera.timestamp_us != frame.timestamp_us


def test_lidar_depth_is_the_wall_the_camera_sees(clips, truth):
    """The sweep and the images are taken from different places of a moving, turning car."""
    seen = 0
    for clip in clips(-0.25, 0.0, 0.5):
        for frame in filter(None, clip.frames):
            points = transform(frame.frame_from_lidar(), load_lidar(frame.lidar))
            for n, camera in enumerate(frame.cameras):
                view = View(truth.ramp(camera.timestamp_us), camera.intrinsics, frame.frame_from_cam(n))
                hits = lidar_hits(points, view)
                origins, directions = rays_through(hits.uv, view)
                rotation = frame.global_from_frame[:3, :3]
                wall = truth.wall_distance(transform(frame.global_from_frame, origins), directions @ rotation.T)
                # Measured: 2.4e-6, the float32 of the file. With the camera's pose at the LiDAR's time it is 0.48.
                np.testing.assert_allclose(hits.depth, wall, atol=2e-5)
                seen += len(hits)
    assert seen > 2000


def test_boxes_are_in_the_key_frames_coordinates(room, truth):
    tables = load_tables(room, truth.version)
    clip = clips_of_split(tables, "mini_train", (0.0,), cameras=truth.cameras)[2]
    (box,) = boxes_in_frame(tables, clip)
    car = truth.global_from_ego(truth.start + 1_000_000)
    np.testing.assert_allclose(transform(car, box[None, :3]), [[21.5, 4.0, 1.0]], atol=1e-9)
    np.testing.assert_allclose(box[3:6], [1.9, 4.5, 1.6])
    assert box[6] == pytest.approx(0.5 - 0.3)
    np.testing.assert_allclose(car[:2, :2] @ box[7:], [1.5, 0.0], atol=1e-9)


def test_a_frame_without_annotations_has_no_boxes(broken_room, truth):
    for table in ("sample_annotation", "instance"):
        truth.edit(broken_room, table, lambda rows: [])
    tables = load_tables(broken_room, truth.version)
    clip = clips_of_split(tables, "mini_train", (0.0,), cameras=truth.cameras)[0]
    assert boxes_in_frame(tables, clip).shape == (0, 9)


def test_without_lidar_the_frame_is_at_the_mean_camera_time(tmp_path, truth):
    root = truth.write(tmp_path / "room", scenes=("scene-0061",), lidar=False)
    clips = open_clips(root, truth.version, "mini_train", (0.0, 0.5, 0.25), cameras=truth.cameras)
    assert [None if f is None else f.lidar for f in clips[0].frames] == [None] * 3
    # Cameras at -10 and -30 ms, 490 and 470 ms, 240 and 220 ms.
    assert times(clips[0], truth) == [-20, 480, 230]
    frame = clips[1].key_frame
    exact = truth.global_from_ego(frame.timestamp_us)
    # The pose is interpolated between the cameras' own, 20 ms apart: exact for a steady drive.
    np.testing.assert_allclose(frame.global_from_frame, exact, atol=1e-12)


def test_the_devkits_own_projection_agrees(room, truth):
    """A point through the devkit's chain of tables and ours lands on the same pixel."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import view_points
    from pyquaternion import Quaternion

    tables = load_tables(room, truth.version)
    clip = clips_of_split(tables, "mini_train", (0.0,), cameras=truth.cameras)[1]
    sample = tables.get("sample", clip.token)
    cloud = LidarPointCloud.from_file(tables.get_sample_data_path(sample["data"]["LIDAR_TOP"]))
    for token, sign in ((sample["data"]["LIDAR_TOP"], 1), (sample["data"]["CAM_BACK"], -1)):
        row = tables.get("sample_data", token)
        chain = [
            tables.get("calibrated_sensor", row["calibrated_sensor_token"]),
            tables.get("ego_pose", row["ego_pose_token"]),
        ]
        for pose in chain if sign > 0 else reversed(chain):
            if sign > 0:
                cloud.rotate(Quaternion(pose["rotation"]).rotation_matrix)
                cloud.translate(np.array(pose["translation"]))
            else:
                cloud.translate(-np.array(pose["translation"]))
                cloud.rotate(Quaternion(pose["rotation"]).rotation_matrix.T)
    ahead = cloud.points[2] > 0.1
    theirs = view_points(cloud.points[:3, ahead], truth.intrinsics, normalize=True)[:2].T
    frame = clip.key_frame
    assert frame.lidar is not None
    raw = np.fromfile(frame.lidar.path, np.float32).reshape(-1, 5)[:, :3].astype(float)
    in_camera = transform(np.linalg.inv(frame.frame_from_cam(1)) @ frame.frame_from_lidar(), raw)[ahead]
    ours = (in_camera @ truth.intrinsics.T)[:, :2] / in_camera[:, 2:]
    # The devkit works in float32: 1e-5 relative, of up to some thousand pixels beside the image.
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "version, splits",
    [("v1.0-trainval", ("train", "val")), ("v1.0-mini", ("mini_train", "mini_val"))],
)
def test_usual_splits(version, splits):
    assert default_splits(version) == splits


def test_a_version_without_usual_splits_asks_for_them():
    with pytest.raises(UserError, match=r"'v1\.0-test' has no usual splits: give --data\.train-split"):
        default_splits("v1.0-test")


def test_a_custom_split_works_and_a_wrong_one_is_guessed(broken_room, truth, clips):
    splits = broken_room / truth.version / "splits.json"
    splits.write_text(json.dumps({"mine": ["scene-0103"]}))
    assert {c.scene for c in clips(0.0, root=broken_room, split="mine")} == {"scene-0103"}
    with pytest.raises(UserError, match="no split 'mini_trian'; did you mean mini_train"):
        clips(0.0, root=broken_room, split="mini_trian")
    splits.write_text("{")
    with pytest.raises(UserError, match=r"broken table: .*splits\.json"):
        clips(0.0, root=broken_room)


def test_an_empty_split_says_what_is_there(clips):
    message = r"split 'test' is empty in .*it has scene-0061, scene-0103.*--data\.holdout rays"
    with pytest.raises(UserError, match=message):
        clips(0.0, split="test")


@pytest.mark.parametrize("offsets", [(0.5,), (0.0, 0.5, 0.5), (0.0, 0.0)])
def test_offsets_need_the_key_frame_once(clips, offsets):
    with pytest.raises(UserError, match=r"--data\.offsets .* must name 0\.0"):
        clips(*offsets)


def test_an_unknown_camera_is_guessed(clips):
    with pytest.raises(UserError, match=r"no camera 'CAM_FORNT' in .*; did you mean CAM_FRONT"):
        clips(0.0, cameras=("CAM_FORNT",))
