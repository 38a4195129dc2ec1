"""The truth beside the data set: what its files say agrees with the tables, with the scene and with each other.

Poses and calibration come from the tables, as a user has them; the numbers in comments were measured on the world of
``conftest.py`` (48 x 80) unless they name another size.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.world_truth import SEED, Row, Truth, carried, images, lift, project
from PIL import Image

from mim4d.errors import UserError
from mim4d.world import truth as extras
from mim4d.world.echo import PANES, RANGE_NOISE
from mim4d.world.sensors import (
    AZIMUTHS,
    BEAMS,
    LIDAR_FAR,
    LIDAR_NEAR,
    Camera,
    camera_depth,
    look,
    make_rig,
    pixel_rays,
    sweep,
    trace,
)

STEP = extras.DEPTH_UNIT / 2


def test_depth_is_that_of_the_rays(root: Path, truth: Truth) -> None:
    for camera, row, t in images(truth):
        depth, exact = extras.load_depth(root, row["token"]), look(truth.scene, camera, t).distance
        assert depth.dtype == np.float32
        np.testing.assert_array_equal(np.isfinite(depth).ravel(), np.isfinite(exact))
        near = np.isfinite(depth) & (depth < 255.99)
        assert near.mean() > 0.4
        k = np.array(truth.nusc.get("calibrated_sensor", row["calibrated_sensor_token"])["camera_intrinsic"])
        length = extras.ray_length(depth, k)
        # Half a step, longer along a slanted ray: the image's corners look 52 degrees off the axis (measured 3.0 mm).
        assert np.abs(length[near] - exact.reshape(depth.shape)[near]).max() < STEP * 1.9 + 1e-4
        assert (exact.reshape(depth.shape)[~near] > 255.99).all()


def beams(points: np.ndarray) -> np.ndarray:
    """(P,) numbers of the beams, as in ``Lidar.rays``, that a sweep's points (P, 5) came by."""
    turn = np.arctan2(points[:, 1].astype(float), points[:, 0].astype(float)) / (2 * np.pi)  # clockwise is negative
    return (np.round(-turn * AZIMUTHS) % AZIMUTHS * BEAMS + points[:, 4]).astype(int)


def test_rendered_depth_equals_lidar_depth_along_shared_rays(truth: Truth) -> None:
    """An image whose pixels look along the LiDAR's beams, at the LiDAR's place and time: only range noise differs."""
    lidar, t = truth.rig.lidar, truth.seconds(truth.data("LIDAR_TOP", key_only=True)[1]["timestamp"])
    eye = Camera("", len(lidar.rays), 1, np.eye(3), lidar.ego_from_lidar, 1.0, 0.0, lidar.rays)
    rendered = trace(eye, truth.scene.at(t)).distance
    points, _ = sweep(truth.scene, lidar, t, np.random.default_rng(0))
    length = np.linalg.norm(points[:, :3], axis=1)
    beam = beams(points)
    np.testing.assert_allclose(points[:, :3] / length[:, None], lidar.rays[beam], atol=1e-6)
    gap = length - rendered[beam]
    assert np.abs(gap).max() < 6 * RANGE_NOISE
    assert gap.std() == pytest.approx(RANGE_NOISE, rel=0.03)  # 30 000 draws: 0.4 % off at one sigma
    assert abs(gap.mean()) < 5 * RANGE_NOISE / np.sqrt(len(gap))


def landed(truth: Truth, row: Row, camera: Camera, own: np.ndarray, depth: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(5, P) of a sweep's points in an image: same id, met within half a pixel, hidden, on a moving thing, carried
    along to the image's time.

    Through the devkit's chain of poses: LiDAR -> ego -> map -> ego at the camera's time -> camera. A point is hidden
    where the image sees something nearer, by 30 cm and 5 %: the cameras sit below the LiDAR and look past other edges.
    """
    data = truth.nusc.get("sample_data", truth.nusc.get("sample", row["sample_token"])["data"]["LIDAR_TOP"])
    pose = truth.global_from_sensor(data)
    points = truth.points(data)[:, :3].astype(float) @ pose[:3, :3].T + pose[:3, 3]
    assert len(own) == len(points)
    out, most = [], (camera.width - 1, camera.height - 1)
    there = carried(truth, points, own, truth.seconds(data["timestamp"]), truth.seconds(row["timestamp"]))
    for moved, xyz in enumerate((points, there)):
        pose = truth.global_from_sensor(row)
        local = (xyz - pose[:3, 3]) @ pose[:3, :3]
        uv = local @ camera.intrinsics.T
        uv = uv[:, :2] / np.maximum(uv[:, 2:], 1e-6)
        seen = (local[:, 2] > 1.0) & (uv > 0).all(1) & (uv < (camera.width, camera.height)).all(1)
        x, y = uv[seen].astype(int).T
        hidden = depth[y, x] < local[seen, 2] * 0.95 - 0.3
        moving = np.isin(own[seen].astype(int) - 1, truth.scene.moving)
        near = np.zeros(len(x), bool)
        for aside in itertools.product((-0.5, 0.0, 0.5), repeat=2):
            u, v = (uv[seen] + aside).clip(0, most).astype(int).T
            near |= ids[v, u] == own[seen]
        out.append(np.stack([ids[y, x] == own[seen], near, hidden, moving, np.full(len(x), moved)]))
    return np.concatenate(out, 1).astype(bool)


def test_lidar_points_land_on_their_own_id(root: Path, truth: Truth) -> None:
    """All of them, also those on things that move between the sweep and the image (up to 47 ms, half a metre)."""
    index = [s["name"] for s in truth.nusc.scene].index(truth.name)
    # Pixels of 0.2 degrees, as models take them; the world's own are 1.3 degrees wide and straddle the edges of things.
    large = make_rig(np.random.default_rng([SEED, index, 21]), (256, 704))
    coarse, fine = [], []
    for camera, row, t in images(truth):
        sample = truth.nusc.get("sample", row["sample_token"])
        own = extras.load_lidar_ids(root, sample["data"]["LIDAR_TOP"])
        depth, ids = extras.load_depth(root, row["token"]), extras.load_ids(root, row["token"])
        coarse.append(landed(truth, row, camera, own, depth, ids))
        if t > 0.9 and t <= 1.0:
            camera = large.cameras[camera.channel]
            np.testing.assert_array_equal(camera.ego_from_cam, truth.rig.cameras[camera.channel].ego_from_cam)
            hits = look(truth.scene, camera, t)
            ids = (hits.owner + 1).reshape(camera.height, camera.width)
            fine.append(landed(truth, row, camera, own, extras.z_depth(camera, hits), ids))
    assert len(fine) == 6
    # Carrying things along pays where pixels are smaller than what they move meanwhile.
    for found, least, gain in ((coarse, (0.985, 0.99, 0.9), -0.01), (fine, (0.99, 0.997, 0.95), 0.002)):
        same, near, hidden, moving, moved = np.concatenate(found, 1)
        assert (~hidden & moving & ~moved).sum() > 100
        assert hidden.mean() < 0.08  # measured 0.038, 0.049; at 256 x 704 0.025, 0.046
        # Of the others 0.993, 0.989 land on their own id (0.9986, 0.9976); of the still world 0.995, 0.993 (0.9990,
        # 0.9978); of moving things carried along 0.916, 0.936 (0.9970, 0.9967), and left where they were met 0.916,
        # 0.925 (0.988, 0.992).
        assert same[~hidden & ~moved].mean() > least[0]
        assert same[~hidden & ~moved & ~moving].mean() > least[1]
        assert same[~hidden & moved & moving].mean() > least[2]
        assert same[~hidden & moved & moving].mean() > same[~hidden & ~moved & moving].mean() + gain
        # What misses does so at edges and at thin shapes, by less than half a pixel: measured 0.9995, 0.9994 (0.9997
        # and more).
        assert near[~hidden & moved].mean() > 0.998


def test_ids_lie_in_their_boxes(root: Path, truth: Truth) -> None:
    """In the image (the box's outline) and in space (the point at the pixel's depth)."""
    known = extras.load_instances(root, truth.name)
    by_token = {instance.token: i for i, instance in known.items() if instance.token}
    checked = 0
    for _, row, t in images(truth):
        depth, ids = extras.load_depth(root, row["token"]), extras.load_ids(root, row["token"])
        sample = truth.nusc.get("sample", row["sample_token"])
        annotations = [truth.nusc.get("sample_annotation", token) for token in sample["anns"]]
        boxes = {by_token[a["instance_token"]]: a for a in annotations}
        points = lift(truth, row, depth)
        for i in np.unique(ids[ids > 0]):
            actor, mine = truth.scene.actors[i - 1], ids == i
            if i in boxes:  # the id's instance is this actor
                np.testing.assert_allclose(boxes[i]["translation"], actor.pose(truth.seconds(sample["timestamp"]))[0])
                assert known[i].category == boxes[i]["category_name"] == actor.category
            half = np.array([actor.size[1], actor.size[0], actor.size[2]]) / 2
            local = (points[mine] - actor.pose(t)[0]) @ actor.rotation(t)
            # Half a step of depth along the ray; measured 2.2 mm.
            assert (np.abs(local) < half + 2 * STEP).all()
            signs = np.array(list(itertools.product((-1, 1), repeat=3)))
            uv, z = project(truth, row, (signs * half) @ actor.rotation(t).T + actor.pose(t)[0])
            if (z > 0.1).all():
                y, x = np.nonzero(mine)
                pixel = np.stack([x, y], -1) + 0.5
                assert ((pixel >= uv.min(0) - 0.01) & (pixel <= uv.max(0) + 0.01)).all()
                checked += len(x)
    assert checked > 2000


def test_lidar_ids_agree_with_the_boxes_counts(root: Path, truth: Truth) -> None:
    """Points that bear a box's id lie in the box, up to range noise; and what the box counts is nearly all its own."""
    from nuscenes.utils.data_classes import Box
    from nuscenes.utils.geometry_utils import points_in_box
    from pyquaternion import Quaternion

    by_token = {instance.token: i for i, instance in extras.load_instances(root, truth.name).items()}
    inside = own = counted = 0
    for row in truth.data("LIDAR_TOP", key_only=True):
        pose, ids = truth.global_from_sensor(row), extras.load_lidar_ids(root, row["token"])
        points = (truth.points(row)[:, :3].astype(float) @ pose[:3, :3].T + pose[:3, 3]).T
        for token in truth.nusc.get("sample", row["sample_token"])["anns"]:
            a = truth.nusc.get("sample_annotation", token)
            mine = ids == by_token[a["instance_token"]]
            box = Box(a["translation"], a["size"], Quaternion(a["rotation"]))
            within = points_in_box(box, points)
            assert within.sum() == a["num_lidar_pts"]
            inside, own, counted = inside + (within & mine).sum(), own + mine.sum(), counted + within.sum()
            wide = Box(a["translation"], np.array(a["size"]) + 12 * RANGE_NOISE, Quaternion(a["rotation"]))
            assert points_in_box(wide, points)[mine].all()
    assert counted > 1000
    # A box fits its thing to the millimetre, so noise lifts points of its faces out of it (measured 0.89, 0.90 stay in)
    # and those of the road below into it (0.95, 0.95 of what is counted bears the id).
    assert inside / own > 0.75
    assert inside / counted > 0.88


def test_normals_are_unit_face_the_camera_and_fit_the_depth(root: Path, truth: Truth) -> None:
    flat, level, agree = 0, [], []
    for camera, row, t in images(truth):
        n, hits = extras.load_normals(root, row["token"]), look(truth.scene, camera, t)
        depth = (hits.distance * camera.rays[:, 2]).reshape(n.shape[:2])  # a file's steps would tilt small planes
        met = np.isfinite(depth)
        np.testing.assert_allclose(np.linalg.norm(n[met], axis=-1), 1.0, atol=1e-6)
        assert (n[~met] == 0).all()
        toward = (n.reshape(-1, 3) * camera.rays).sum(1)[met.ravel()]
        assert toward.max() < 0.006  # eight bits: half a step of 1/127 where sight grazes; measured 0.003
        # On the road the normal is the car's own up.
        up = truth.global_from_sensor(row)[2, :3]
        points = lift(truth, row, depth)
        road = met & (np.abs(points[..., 2]) < 1e-3) & (depth < 60)
        flat += road.sum()
        level.append((n[road] @ up).clip(-1, 1) > np.cos(0.008))
        # Where four neighbours share a normal they lie in one plane, but for level things at two heights.
        ahead, side = points[1:, :-1] - points[:-1, :-1], points[:-1, 1:] - points[:-1, :-1]
        cross = np.cross(ahead, side)
        pose = truth.global_from_sensor(row)
        m = (cross / np.maximum(np.linalg.norm(cross, axis=-1, keepdims=True), 1e-9)) @ pose[:3, :3]
        m *= -np.sign((m * camera.rays.reshape(*depth.shape, 3)[:-1, :-1]).sum(-1, keepdims=True))
        same = (np.abs(n[1:, 1:] - n[:-1, :-1]) + np.abs(n[1:, :-1] - n[:-1, 1:])).max(-1) == 0
        plane = same & met[1:, 1:] & met[1:, :-1] & met[:-1, 1:] & met[:-1, :-1] & (depth[:-1, :-1] < 30)
        agree.append((m[plane] * n[:-1, :-1][plane]).sum(-1) > np.cos(0.03))
    assert flat > 1000
    # Of a scene's images together: beside a house, from the lane at the kerb, one shows no road at all.
    assert np.concatenate(level).mean() > 0.99  # measured 0.9997 and more; feet of walls lie at that height, too
    assert np.concatenate(agree).mean() > 0.94  # measured 0.977, 0.957


def test_flow_of_the_still_world_follows_from_depth_and_poses(root: Path, truth: Truth) -> None:
    worst = 0.0
    for _, row, _ in images(truth):
        if not row["next"]:
            continue
        flow = extras.load_flow(root, row["token"])
        depth, ids = extras.load_depth(root, row["token"]), extras.load_ids(root, row["token"])
        still = flow.valid & ~np.isin(ids.astype(int) - 1, truth.scene.moving)
        still &= (depth < 255.99) | np.isinf(depth)  # what lies further has no exact depth
        after = truth.nusc.get("sample_data", row["next"])
        uv, _ = project(truth, after, lift(truth, row, depth))
        y, x = np.mgrid[: depth.shape[0], : depth.shape[1]] + 0.5
        gap = np.abs(np.stack([x, y], -1) + flow.flow - uv).max(-1)
        worst = max(worst, gap[still].max())
        assert still.mean() > 0.5
        assert np.abs(flow.flow[still]).max() > 1.0
    assert worst < 0.1  # two roundings, of flow and of depth; measured 0.014 (0.058 at 256 x 704)


def test_flow_of_things_follows_their_boxes(root: Path, truth: Truth) -> None:
    """By the motion of the actor; and by the annotated boxes half a second apart, between which it goes straight on."""
    known, moving, off = extras.load_instances(root, truth.name), 0, []
    for camera, row, t in images(truth):
        if not row["next"]:
            continue
        flow, ids = extras.load_flow(root, row["token"]), extras.load_ids(root, row["token"])
        mine = flow.valid & np.isin(ids.astype(int) - 1, truth.scene.moving)
        if not mine.any():
            continue
        after = truth.nusc.get("sample_data", row["next"])
        exact = look(truth.scene, camera, t).distance.reshape(ids.shape) * camera.rays[:, 2].reshape(ids.shape)
        points = lift(truth, row, exact)[mine]
        there = carried(truth, points, ids[mine], t, truth.seconds(after["timestamp"]))
        uv, _ = project(truth, after, there)
        y, x = np.nonzero(mine)
        gap = np.abs(np.stack([x, y], -1) + 0.5 + flow.flow[mine] - uv).max(1)
        assert gap.max() < 1 / 128 + 1e-3  # half a step; measured 0.0081
        # A still thing there would show another flow: the car's own motion does not explain it.
        parked, _ = project(truth, after, points)
        moving += (np.abs(parked - uv).max(1) > 0.5).sum()
        sample = truth.nusc.get("sample", row["sample_token"])
        boxes = [truth.nusc.get("sample_annotation", token) for token in sample["anns"]]
        for a in boxes:
            (i,) = (i for i, instance in known.items() if instance.token == a["instance_token"])
            its = ids[mine] == i
            if a["next"] and its.any():
                end = np.array(truth.nusc.get("sample_annotation", a["next"])["translation"])
                step = (end - a["translation"]) / 0.5 / 12
                uv, _ = project(truth, after, points[its] + step)
                off.append(np.abs(np.stack([x, y], -1)[its] + 0.5 + flow.flow[mine][its] - uv).max(1))
    assert moving > 100  # measured 187, 822
    # Bends are what is left: measured 0.06 and 0.24 pixels (medians 0.011 and 0.066). Who brakes by 3 m/s^2 is another
    # 6 cm off after a twelfth of a second, half a pixel at 8 m.
    assert np.quantile(np.concatenate(off), 0.95) < 0.5


def test_what_flow_calls_visible_is_there_in_the_next_image(root: Path, truth: Truth) -> None:
    """What the next image sees where the flow points: the point itself if visible, something nearer if not."""
    own, exact, nearer = [], [], []
    for camera, row, t in images(truth):
        if not row["next"]:
            continue
        flow, ids = extras.load_flow(root, row["token"]), extras.load_ids(root, row["token"])
        after = truth.nusc.get("sample_data", row["next"])
        later = truth.seconds(after["timestamp"])
        depth = extras.load_depth(root, row["token"])
        points = lift(truth, row, depth)
        points = carried(truth, points.reshape(-1, 3), ids.ravel(), t, later).reshape(points.shape)
        uv, z = project(truth, after, points)
        inside = flow.valid & np.isfinite(depth) & (uv > 0).all(-1) & (uv < (camera.width, camera.height)).all(-1)
        # Half a step of depth moves a point on the border a little: measured 0.0004 pixels.
        edge = (uv > -0.01).all(-1) & (uv < (camera.width + 0.01, camera.height + 0.01)).all(-1)
        assert not (flow.visible & ~edge & np.isfinite(depth)).any()
        x, y = uv[inside].astype(int).T
        length = camera_depth(truth.scene, camera, later)
        found = (length * camera.rays[:, 2].reshape(length.shape))[y, x]
        own.append((np.abs(found - z[inside]) < 0.03 * z[inside] + 0.05)[flow.visible[inside]])
        # The image knows its pixels' centres only, up to half a pixel off: look along the very rays, too.
        rays = pixel_rays(camera.intrinsics, *uv[inside].T)
        found = trace(replace(camera, rays=rays), truth.scene.at(later)).distance * rays[:, 2]
        exact.append((np.abs(found - z[inside]) < 0.03 * z[inside] + 0.05)[flow.visible[inside]])
        nearer.append((found < z[inside] - 0.01)[~flow.visible[inside]])
    centres, visible, hidden = (np.concatenate(x) for x in (own, exact, nearer))
    assert len(hidden) > 200
    # What is left are edges, where the 2 mm of a depth file decide: measured 0.9991, 0.9987 and 0.9988, 0.9988.
    assert visible.mean() > 0.995
    assert hidden.mean() > 0.995
    assert centres.mean() > 0.9  # measured 0.918, 0.925


def test_flow_warps_the_next_picture_onto_this_one(root: Path, truth: Truth) -> None:
    warped, still = [], []
    for camera, row, _ in images(truth):
        if not row["next"]:
            continue
        after = truth.nusc.get("sample_data", row["next"])
        here, there = (np.asarray(Image.open(root / r["filename"]).convert("L"), float) for r in (row, after))
        flow = extras.load_flow(root, row["token"])
        y, x = np.nonzero(flow.visible)
        to = np.stack([x, y], -1) + 0.5 + flow.flow[flow.visible]
        u, v = (
            np.clip(to[:, 0], 0, camera.width - 0.01).astype(int),
            np.clip(to[:, 1], 0, camera.height - 0.01).astype(int),
        )
        warped.append(np.abs(here[y, x] - there[v, u]))
        still.append(np.abs(here[y, x] - there[y, x]))
    assert np.concatenate(warped).mean() < 0.8 * np.concatenate(still).mean()


def test_sensor_noise_scales_what_the_lidar_loses_and_how_far_it_is_off(truth: Truth) -> None:
    scene, lidar = truth.scene, truth.rig.lidar
    knobs, lost = scene.knobs, []
    exact = trace(Camera("", len(lidar.rays), 1, np.eye(3), lidar.ego_from_lidar, 1.0, 0.0, lidar.rays), scene.at(0.5))
    reach = (exact.distance > LIDAR_NEAR) & (exact.distance < LIDAR_FAR)
    pane = PANES[scene.mesh.material[exact.face]]
    try:
        for noise in (0.0, 1.0, 2.0):
            scene.knobs = replace(knobs, sensor_noise=noise)
            points, owner = sweep(scene, lidar, 0.5, np.random.default_rng(0))
            length = np.linalg.norm(points[:, :3], axis=1)
            if noise == 0:  # every beam that meets something returns, exactly
                np.testing.assert_allclose(length, exact.distance[reach], rtol=1e-5)
                np.testing.assert_array_equal(owner, exact.owner[reach])
            lost.append(reach.copy())
            lost[-1][beams(points)] = False
    finally:
        scene.knobs = knobs
    none, once, twice = lost
    assert not none.any()
    assert once.sum() > 0.01 * reach.sum()
    assert not (once & ~twice).any()  # with the same luck
    # Of panes hardly anything comes back even once, so that twice as much cannot be lost. Elsewhere that fails only
    # where an echo is weak already: measured 1.67 and 1.82 times as many.
    assert 1.6 < (twice & ~pane).sum() / (once & ~pane).sum() < 2.1
    assert once[pane & reach].mean() > 4 * once[~pane & reach].mean()  # measured 12 and 20 times
    assert twice[pane & reach].mean() > 1.1 * once[pane & reach].mean()  # measured 1.17, 1.42


def test_missing_truth_is_one_clear_line(root: Path, truth: Truth, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no folder 'truth': make the world with extras=True"):
        extras.load_depth(tmp_path, "x")
    sweeps = [r for r in truth.data("CAM_FRONT") if not r["is_key_frame"]]
    for load in (extras.load_depth, extras.load_normals, extras.load_ids, extras.load_flow):
        with pytest.raises(UserError, match=r"must name an image of a key frame") as caught:
            load(root, sweeps[0]["token"])
        assert "\n" not in str(caught.value)
    last = truth.data("CAM_FRONT", key_only=True)[-1]
    assert not last["next"]
    with pytest.raises(UserError, match="that has a next one"):
        extras.load_flow(root, last["token"])
    with pytest.raises(UserError, match=r"must name a sample"):
        extras.load_occupancy(root, last["token"])
    with pytest.raises(UserError, match=r"must name a sweep of LIDAR_TOP"):
        extras.load_lidar_ids(root, last["token"])
    with pytest.raises(UserError, match=r"must name a scene"):
        extras.load_instances(root, "scene-9999")
    for kind, load in (("depth", extras.load_depth), ("flow", extras.load_flow), ("lidar", extras.load_lidar_ids)):
        (tmp_path / "truth" / kind).mkdir(parents=True)
        (tmp_path / "truth" / kind / f"x{extras.KINDS[kind][0]}").write_bytes(b"PK cut off")
        with pytest.raises(UserError, match=r"cannot be read .*make the world again"):
            load(tmp_path, "x")


def test_extras_change_nothing_else(tmp_path: Path) -> None:
    from mim4d.world import generate

    for name, more in (("with", True), ("without", False)):
        generate(tmp_path / name, seed=1, seconds=0.5, image_size=(32, 40), extras=more)
    files = {
        n: {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*") if p.is_file()}
        for n in ("with", "without")
    }
    plain = {k: v for k, v in files["with"].items() if k.parts[0] != "truth" and k.name != "world.json"}
    files["without"].pop(Path("world.json"))
    assert plain == files["without"]
    kept = {k.parts[1] for k in files["with"] if k.parts[0] == "truth"}
    assert kept == set(extras.KINDS)
