"""The world agrees with itself: poses, sweeps, images, boxes and velocities tell one story."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from helpers.world_truth import Truth, quaternion_matrix
from PIL import Image

from mim4d.world import generate
from mim4d.world.actors import EGO_CENTRE, EGO_HALF
from mim4d.world.geometry import boxes_overlap, yaw_matrix
from mim4d.world.sensors import RANGE_NOISE, camera_depth, camera_view, render, sweep
from mim4d.world.shading import Shader

NOISE = 6 * RANGE_NOISE  # 35 000 draws stay below 4.5 standard deviations


def test_every_sensor_has_the_ego_pose_of_its_own_time(truth: Truth) -> None:
    nusc = truth.nusc
    sweeps = truth.data("LIDAR_TOP")
    times = np.array([r["timestamp"] for r in sweeps], float)
    places = np.array([nusc.get("ego_pose", r["ego_pose_token"])["translation"] for r in sweeps])
    speed = np.linalg.norm(np.diff(places, axis=0), axis=1) * 20
    assert speed.min() > 2.0
    assert speed.max() < 12.0
    assert (places[:, 2] == 0).all()
    for channel in truth.rig.cameras:
        for row in truth.data(channel)[1:]:
            pose = nusc.get("ego_pose", row["ego_pose_token"])
            assert pose["timestamp"] == row["timestamp"]
            # Between two sweeps the car moves on a straight line, but for 50 ms of turning: 8 m/s on an 8 m radius
            # leaves the chord by v^2 dt^2 / 8 R = 2.5 mm; where the curve begins, speed and bend add up to less.
            between = [np.interp(row["timestamp"], times, places[:, i]) for i in range(2)]
            np.testing.assert_allclose(pose["translation"][:2], between, atol=0.005)


def test_sweep_meets_the_road_at_height_zero(truth: Truth) -> None:
    """On bare road a beam that dips by e radians misses the plane z = 0 by its range noise times sin(e)."""
    mount = truth.rig.lidar.ego_from_lidar
    for row in truth.data("LIDAR_TOP", key_only=True):
        points = truth.points(row)
        xyz = points[:, :3] @ mount[:3, :3].T + mount[:3, 3]
        near = (np.hypot(*xyz[:, :2].T) < 8.0) & (np.abs(xyz[:, 2]) < 0.12)
        t = truth.seconds(row["timestamp"])
        bare = near & _nothing_but_road(truth, t, xyz) & ~_in_a_box(truth, t, xyz)
        assert bare.sum() > 500
        dip = (mount[2, 3] - xyz[bare, 2]) / np.linalg.norm(points[bare, :3], axis=1)
        assert (np.abs(xyz[bare, 2]) < NOISE * dip).all()
        assert abs(xyz[bare, 2].mean()) < 1e-3
        assert points[:, 3].min() >= 0
        assert points[:, 3].max() <= 255
        assert set(np.unique(points[:, 4])) == set(range(32))


def _in_a_box(truth: Truth, t: float, xyz: np.ndarray) -> np.ndarray:
    """Which points (P, 3) in ego coordinates lie in the box of an actor: looks from above miss a bicycle's tyres."""
    pose = truth.scene.ego_pose(t)
    points = xyz @ pose[:3, :3].T + pose[:3, 3]
    inside = np.zeros(len(xyz), bool)
    for actor in truth.scene.actors:
        local = np.abs((points - actor.pose(t)[0]) @ actor.rotation(t))
        width, length, height = actor.size
        inside |= (local < np.array([length, width, height]) / 2 + NOISE).all(1)
    return inside


def _nothing_but_road(truth: Truth, t: float, xyz: np.ndarray) -> np.ndarray:
    """Where a look from above, at points (P, 3) in ego coordinates and up to 12 cm around them, meets the road."""
    pose, moment = truth.scene.ego_pose(t), truth.scene.at(t)
    down = np.tile(np.float32([0, 0, -1]), (len(xyz), 1))
    clear = np.ones(len(xyz), bool)
    for dx, dy in itertools.product((-0.12, -0.06, 0.0, 0.06, 0.12), repeat=2):
        above = np.stack([xyz[:, 0] + dx, xyz[:, 1] + dy, np.full(len(xyz), 20.0)], -1) @ pose[:3, :3].T + pose[:3, 3]
        clear &= moment.cast(above, down).distance > 19.99
    return clear


def test_sweep_points_lie_where_the_cameras_see_them(truth: Truth) -> None:
    """A LiDAR point, moved along with what it lies on, is met by the camera's own ray at the camera's own time."""
    scene = truth.scene
    row = truth.data("LIDAR_TOP", key_only=True)[1]
    t = truth.seconds(row["timestamp"])
    points, owner = sweep(scene, truth.rig.lidar, t, np.random.default_rng(0))
    pose = truth.global_from_sensor(row)
    here = points[:, :3].astype(float) @ pose[:3, :3].T + pose[:3, 3]
    gaps: dict[str, list[np.ndarray]] = {"still": [], "moving": []}
    same: dict[str, list[np.ndarray]] = {"still": [], "moving": []}
    for channel, camera in truth.rig.cameras.items():
        data = truth.data(channel, key_only=True)[1]
        t_cam = truth.seconds(data["timestamp"])
        there = here.copy()
        for i, actor in enumerate(scene.actors):
            mine = owner == i
            local = (here[mine] - actor.pose(t)[0]) @ actor.rotation(t)
            there[mine] = local @ actor.rotation(t_cam).T + actor.pose(t_cam)[0]
        global_from_cam = truth.global_from_sensor(data)
        centre = global_from_cam[:3, 3]
        in_camera = (there - centre) @ global_from_cam[:3, :3]
        k = np.array(truth.nusc.get("calibrated_sensor", data["calibrated_sensor_token"])["camera_intrinsic"])
        uv = in_camera @ k.T
        uv = uv[:, :2] / np.maximum(uv[:, 2:], 1e-6)
        seen = (in_camera[:, 2] > 0.5) & (uv > 0).all(1) & (uv < (data["width"], data["height"])).all(1)
        distance = np.linalg.norm(there - centre, axis=1)
        moment = scene.at(t_cam, camera_view(scene, camera, t_cam))
        hits = moment.cast(centre, ((there - centre) / distance[:, None]).astype(np.float32)[seen])
        gap = hits.distance - distance[seen]
        for kind, mine in (("still", owner[seen] < 0), ("moving", np.isin(owner[seen], scene.moving))):
            gaps[kind].append(gap[mine])
            same[kind].append(hits.owner[mine] == owner[seen][mine])
        # The depth map says the same at the pixel, up to what a pixel's width makes on slanted faces.
        depth = camera_depth(scene, camera, t_cam)
        x, y = uv[seen].astype(int).T
        close = np.abs(depth[y, x] - distance[seen]) < 0.05 * distance[seen] + 0.2
        assert close.mean() > 0.8
    for kind, least in (("still", 5000), ("moving", 50)):
        gap, own = np.concatenate(gaps[kind]), np.concatenate(same[kind])
        agree = (np.abs(gap) < 0.15) & own
        assert agree.sum() > least
        # Something nearer may hide a point from a camera (parallax): 96 to 99 % agree over ten scenes. Nothing lies
        # behind a point: none of the still ones; where a ray brushes a thin actor's edge the range noise lets it slip
        # past, up to 0.9 % of the moving ones.
        assert agree.mean() > 0.9
        assert (gap > 0.15).mean() < (0.001 if kind == "still" else 0.02)


def test_images_on_disk_are_those_of_the_scene(root: Path, truth: Truth) -> None:
    shader = Shader(truth.scene)
    for channel, camera in truth.rig.cameras.items():
        row = truth.data(channel)[4]
        t = truth.seconds(row["timestamp"])
        drawn = render(shader, camera, truth.scene.at(t, camera_view(truth.scene, camera, t))).astype(float)
        with Image.open(root / row["filename"]) as image:
            stored = np.asarray(image, float)
        assert np.abs(drawn - stored).mean() < 4.0  # JPEG at quality 92; measured 1.8 to 2.6 of 255
        assert stored.std() > 15  # not one colour
        edges = np.abs(np.diff(stored.mean(-1), axis=1))
        assert (edges > 2).mean() > 0.3  # texture nearly everywhere
        other = render(shader, camera, truth.scene.at(t + 0.5)).astype(float)
        assert np.abs(other - stored).mean() > 2 * np.abs(drawn - stored).mean()


def test_a_view_leaves_out_only_what_it_cannot_see(truth: Truth) -> None:
    for camera in truth.rig.cameras.values():
        t = 0.7
        pose = truth.scene.ego_pose(t) @ camera.ego_from_cam
        d = camera.rays @ pose[:3, :3].T.astype(np.float32)
        some = truth.scene.at(t, camera_view(truth.scene, camera, t))
        everything = truth.scene.at(t)
        a, b = some.cast(pose[:3, 3], d), everything.cast(pose[:3, 3], d)
        np.testing.assert_array_equal(a.distance, b.distance)
        np.testing.assert_array_equal(a.owner, b.owner)
        # A ray that meets the edge between two triangles of a thing may name either: measured 1 of 3840.
        assert (a.face != b.face).mean() < 0.001
        start = (pose[:3, 3] - truth.scene.origin).astype(np.float32) + d * (a.distance[:, None] - 0.01)
        start = start[np.isfinite(a.distance)]
        np.testing.assert_array_equal(some.lit(start), everything.lit(start))


def test_boxes_hold_the_points_they_count(truth: Truth) -> None:
    from nuscenes.utils.data_classes import Box
    from nuscenes.utils.geometry_utils import points_in_box
    from pyquaternion import Quaternion

    counted = 0
    for row in truth.data("LIDAR_TOP", key_only=True):
        pose = truth.global_from_sensor(row)
        points = (truth.points(row)[:, :3].astype(float) @ pose[:3, :3].T + pose[:3, 3]).T
        for token in truth.nusc.get("sample", row["sample_token"])["anns"]:
            a = truth.nusc.get("sample_annotation", token)
            box = Box(a["translation"], a["size"], Quaternion(a["rotation"]))
            assert points_in_box(box, points).sum() == a["num_lidar_pts"]
            counted += a["num_lidar_pts"] > 0
    assert counted > 20


def test_points_of_an_actor_lie_in_its_box(truth: Truth) -> None:
    t = 1.0
    points, owner = sweep(truth.scene, truth.rig.lidar, t, np.random.default_rng(1))
    pose = truth.scene.ego_pose(t) @ truth.rig.lidar.ego_from_lidar
    xyz = points[:, :3].astype(float) @ pose[:3, :3].T + pose[:3, 3]
    for i in np.unique(owner[owner >= 0]):
        actor = truth.scene.actors[i]
        local = np.abs((xyz[owner == i] - actor.pose(t)[0]) @ actor.rotation(t))
        width, length, height = actor.size
        assert (local <= np.array([length, width, height]) / 2 + NOISE).all(), actor.kind


def test_boxes_move_as_the_actors_do(truth: Truth) -> None:
    nusc, scene = truth.nusc, truth.scene
    moving = 0
    for a in nusc.sample_annotation:
        sample = nusc.get("sample", a["sample_token"])
        if sample["scene_token"] != truth.row["token"] or not (a["prev"] and a["next"]):
            continue
        t = truth.seconds(sample["timestamp"])
        centres = np.array([actor.pose(t)[0] for actor in scene.actors])
        i = int(np.linalg.norm(centres - a["translation"], axis=1).argmin())
        actor = scene.actors[i]
        np.testing.assert_allclose(a["translation"], centres[i], atol=1e-9)
        np.testing.assert_allclose(quaternion_matrix(a["rotation"]), actor.rotation(t), atol=1e-9)
        assert a["size"] == list(actor.size)
        # A difference over a second smooths braking and turning: 0.26 m/s at most (test_traffic.py).
        np.testing.assert_allclose(nusc.box_velocity(a["token"])[:2], actor.velocity(t), atol=0.3)
        speed = np.linalg.norm(actor.velocity(t))
        attribute = nusc.get("attribute", a["attribute_tokens"][0])["name"] if a["attribute_tokens"] else ""
        if attribute != "cycle.with_rider":  # a rider may wait at a light
            assert (speed > 0.5) == (attribute in ("vehicle.moving", "pedestrian.moving"))
        moving += speed > 0.5
    assert moving > 10


def test_nothing_ever_touches_anything(truth: Truth) -> None:
    times = np.arange(0.0, truth.scene.seconds + 0.01, 0.05)
    centres, yaws, halves = [], [], []
    for actor in truth.scene.actors:
        centre, yaw = actor.pose(times)
        centres.append(centre[:, :2])
        yaws.append(yaw)
        halves.append((actor.size[1] / 2, actor.size[0] / 2))
    xyz, yaw = truth.scene.ego.pose(times)
    centres.append(xyz[:, :2] + EGO_CENTRE * np.stack([np.cos(yaw), np.sin(yaw)], -1))
    yaws.append(yaw)
    halves.append(EGO_HALF)
    c, y, h = np.stack(centres), np.stack(yaws), np.array(halves)[:, None]
    for i in range(len(c)):
        others = np.arange(len(c)) != i
        assert not boxes_overlap(c[i], y[i], h[i], c[others], y[others], h[others]).any()


def test_the_ego_drives_on_free_road(truth: Truth) -> None:
    """Seen from above, its outline covers nothing but the road's surface at height zero."""
    x, y = np.meshgrid(np.linspace(-1, 1, 9) * EGO_HALF[0] + EGO_CENTRE, np.linspace(-1, 1, 5) * EGO_HALF[1])
    outline = np.stack([x.ravel(), y.ravel(), np.full(x.size, 4.0)], -1)
    down = np.tile(np.float32([0, 0, -1]), (len(outline), 1))
    for t in np.arange(0.0, truth.scene.seconds + 0.01, 0.1):
        pose = truth.scene.ego_pose(t)
        above = outline @ yaw_matrix(np.arctan2(pose[1, 0], pose[0, 0])).T + pose[:3, 3]
        np.testing.assert_allclose(truth.scene.at(float(t)).cast(above, down).distance, 4.0, atol=1e-3)


def test_traffic_keeps_to_its_lanes(truth: Truth) -> None:
    from shapely.geometry import LineString, Point, Polygon

    scene = truth.scene
    vehicles = [a for a in scene.actors if a.attribute in ("vehicle.moving", "cycle.with_rider")]
    on_lane = 0
    for lane in scene.roads.lanes:
        outline, middle = Polygon(lane.outline), scene.roads.line(lane.start, lane.end)  # chords of 6 m
        along = (middle[-1] - middle[0]) / np.linalg.norm(middle[-1] - middle[0])
        for actor in vehicles:
            centre, yaw = actor.pose(0.5)
            # Near a lane's ends somebody may already, or still, be turning.
            turning = min(np.linalg.norm(middle[[0, -1]] - centre[:2], axis=1)) < 8.0
            if outline.contains(Point(*centre[:2])) and not turning:
                # A lane turns by up to 90 m / 170 m from end to end, half of it to either side of its chord.
                assert along @ (np.cos(yaw), np.sin(yaw)) > np.cos(0.3)
                assert LineString(middle).distance(Point(*centre[:2])) < 0.05  # 6^2 / 8 R = 3 cm at 170 m
                on_lane += 1
    assert on_lane > len(vehicles) / 2  # the others are at a junction or have left the map


def _detection(nusc: Any, folder: Path, unseen: bool) -> Any:
    """mini_val's detection metric on the annotations themselves, ``unseen``: with those that no beam has met.

    Boxes without points are no ground truth there.
    """
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.eval.detection.utils import category_to_detection_name

    scene = next(s for s in nusc.scene if s["name"] == "scene-0103")
    samples = [s for s in nusc.sample if s["scene_token"] == scene["token"]]
    results: dict[str, list[dict[str, Any]]] = {s["token"]: [] for s in samples}
    for token in results:
        for ann in nusc.get("sample", token)["anns"]:
            a = nusc.get("sample_annotation", ann)
            if a["num_lidar_pts"] == 0 and not unseen:
                continue
            attributes = [nusc.get("attribute", t)["name"] for t in a["attribute_tokens"]]
            results[token].append(
                {
                    "sample_token": token,
                    **{k: a[k] for k in ("translation", "size", "rotation")},
                    "velocity": np.nan_to_num(nusc.box_velocity(ann)[:2]).tolist(),
                    "detection_name": category_to_detection_name(a["category_name"]),
                    "detection_score": 0.9,
                    "attribute_name": attributes[0] if attributes else "",
                }
            )
    meta = {f"use_{k}": k == "camera" for k in ("camera", "lidar", "radar", "map", "external")}
    (folder / "results.json").write_text(json.dumps({"meta": meta, "results": results}))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(nusc, config, str(folder / "results.json"), "mini_val", str(folder), verbose=False)
    metrics, _ = evaluation.evaluate()
    return metrics, {b.detection_name for b in evaluation.gt_boxes.all}


def test_perfect_predictions_score_perfectly(tmp_path: Path) -> None:
    """In a validation scene that holds every class within sight."""
    from nuscenes.nuscenes import NuScenes

    generate(tmp_path / "world", seed=27, seconds=1.5, image_size=(32, 40))
    nusc = NuScenes("v1.0-mini", str(tmp_path / "world"), verbose=False)
    metrics, present = _detection(nusc, tmp_path, unseen=False)
    assert len(present) == 10
    assert metrics.mean_ap > 0.97  # measured 1.0
    assert metrics.nd_score > 0.97  # measured 1.0
    for name in present:
        for error in ("trans_err", "scale_err", "orient_err"):
            value = metrics.get_label_tp(name, error)
            assert np.isnan(value) or value < 1e-6


def test_predictions_of_what_no_beam_has_met_count_as_false(tmp_path: Path, nusc: Any) -> None:
    metrics, present = _detection(nusc, tmp_path, unseen=True)
    assert len(present) >= 5
    assert min(np.mean(list(metrics._label_aps[name].values())) for name in present) < 0.99
