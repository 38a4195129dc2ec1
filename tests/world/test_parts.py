"""The parts of the world against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.world.film import develop
from mim4d.world.geometry import KERB_HEIGHT, Bend, Path, boxes_overlap, quaternion, street_path, yaw_matrix
from mim4d.world.ground import Ground
from mim4d.world.materials import Material
from mim4d.world.mesh import Builder, blob
from mim4d.world.painting import TILE, tileable_noise
from mim4d.world.roads import LANE, make_roads
from mim4d.world.scene import View
from mim4d.world.sensors import CAMERAS, firing_offset, make_rig, pixel_rays
from mim4d.world.textures import LEVELS, Atlas, mip_level

ANGLE = st.floats(-math.pi, math.pi)


def test_path_is_addressed_by_length() -> None:
    angle = np.linspace(0, math.pi / 2, 400)
    path = Path(np.stack([10 * np.sin(angle), 10 - 10 * np.cos(angle), 0 * angle], 1))
    assert path.length == pytest.approx(5 * math.pi, abs=1e-4)
    xyz, yaw = path.at(np.array([0.0, 5 * math.pi / 2, path.length + 2.0]))
    np.testing.assert_allclose(xyz[1, :2], [10 * math.sqrt(0.5), 10 - 10 * math.sqrt(0.5)], atol=1e-3)
    np.testing.assert_allclose(yaw, [0, math.pi / 4, math.pi / 2], atol=3e-3)
    np.testing.assert_allclose(xyz[2, :2], [10, 12], atol=1e-2)  # straight on beyond its end


@pytest.mark.parametrize("curvature", [0.0, 1 / 200, -1 / 170])
@pytest.mark.parametrize("turns", [(), ((-30.0, 1 / 180), (25.0, 0.0)), ((0.0, -1 / 300), (50.0, -1 / 170))])
def test_bend_keeps_angles_and_lengths_along_the_middle(curvature: float, turns: Any) -> None:
    bend = Bend((100.0, 50.0), 0.7, curvature, turns)
    np.testing.assert_allclose(bend.point(np.zeros(2)), (100, 50))
    assert bend.yaw(0.0) == 0.7
    h = 1e-4
    for u, v in ((0.0, 0.0), (80.0, 0.0), (-60.0, 12.0), (30.0, -40.0)):
        p, along, across = (bend.point(np.array(x)) for x in ((u, v), (u + h, v), (u, v + h)))
        du, dv = (along - p) / h, (across - p) / h
        assert du @ dv == pytest.approx(0, abs=1e-5)
        assert np.linalg.norm(dv) == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(du) == pytest.approx(1 - bend.bends(u) * v, abs=1e-5)
        assert math.atan2(du[1], du[0]) == pytest.approx(float(bend.yaw(u)), abs=1e-4)
    for u, k in turns:  # across the cut the map and its headings go on
        before, after = (bend.point(np.array([(u + d, v) for v in (-20.0, 0.0, 20.0)])) for d in (-1e-9, 0.0))
        np.testing.assert_allclose(before, after, atol=1e-8)
        assert bend.yaw(u - 1e-9) == pytest.approx(bend.yaw(u), abs=1e-10)
        assert bend.bends(u) == k
        assert bend.bends(u - 1e-9) != k


def test_a_corner_is_an_arc_of_its_radius() -> None:
    path = street_path(Bend((0.0, 0.0), 0.0), [(-20.0, 0.0), (0.0, 0.0), (0.0, 20.0)], 8.0)
    assert path.length == pytest.approx(12 + 4 * math.pi + 12, abs=2e-3)
    xyz, _ = path.at(np.linspace(12, 12 + 4 * math.pi, 50))
    np.testing.assert_allclose(np.hypot(xyz[:, 0] + 8, xyz[:, 1] - 8), 8, atol=2e-3)
    assert (xyz[:, 2] == 0).all()


def test_a_walker_steps_down_between_the_kerbs() -> None:
    path = street_path(Bend((0.0, 0.0), 0.0), [(0.0, -10.0), (0.0, 10.0)], kerbs=np.array([(4.0, 16.0)]))
    xyz, _ = path.at(np.array([1.0, 10.0, 19.0]))
    np.testing.assert_allclose(xyz[:, 2], [KERB_HEIGHT, 0, KERB_HEIGHT])


@given(ANGLE, ANGLE, ANGLE)
def test_quaternion_turns_as_its_matrix(a: float, b: float, c: float) -> None:
    from helpers.world_truth import quaternion_matrix
    from pyquaternion import Quaternion

    rx = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    ry = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    m = yaw_matrix(c) @ ry @ rx
    q = quaternion(m)
    assert np.linalg.norm(q) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(Quaternion(q).rotation_matrix, m, atol=1e-9)
    np.testing.assert_allclose(quaternion_matrix(q), m, atol=1e-9)


@settings(max_examples=200)
@given(st.tuples(st.floats(-6, 6), st.floats(-6, 6)), ANGLE, ANGLE, st.floats(0.2, 4), st.floats(0.2, 4))
def test_overlap_agrees_with_polygon_clipping(
    at: tuple[float, float], yaw_a: float, yaw_b: float, l: float, w: float
) -> None:
    from shapely.geometry import Polygon

    def polygon(centre: np.ndarray, yaw: float, half: np.ndarray) -> Polygon:
        corners = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * half
        return Polygon(corners @ yaw_matrix(yaw)[:2, :2].T + centre)

    a, b, half_a, half_b = np.zeros(2), np.array(at), np.array([2.0, 1.0]), np.array([l, w])
    area = polygon(a, yaw_a, half_a).intersection(polygon(b, yaw_b, half_b)).area
    found = bool(boxes_overlap(a, np.array(yaw_a), half_a, b, np.array(yaw_b), half_b))
    if area > 1e-9:
        assert found
    elif polygon(a, yaw_a, half_a).distance(polygon(b, yaw_b, half_b)) > 1e-9:
        assert not found


def test_noise_repeats_and_has_unit_variance() -> None:
    n = tileable_noise(np.random.default_rng(0), 64, 2.0)
    assert n.mean() == pytest.approx(0, abs=1e-6)
    assert n.std() == pytest.approx(1, abs=1e-5)
    inside = np.abs(np.diff(n, axis=0)).mean()
    assert np.abs(n[0] - n[-1]).mean() < 2 * inside  # no seam where it repeats


def test_mip_level_is_the_floor_of_log2() -> None:
    texels = np.float32([0.1, 1, 1.9, 2, 3.9, 4, 100, 1e6])
    np.testing.assert_array_equal(mip_level(texels, LEVELS), [0, 0, 0, 1, 1, 2, 6, LEVELS - 1])


def test_atlas_reads_texels_and_blends_between_them() -> None:
    atlas = Atlas(0)
    material = np.full(3, Material.POSTER, np.uint8)
    tile = atlas.texels[Material.POSTER * atlas.stride :][: TILE * TILE].view(np.uint8).reshape(TILE, TILE, 4) / 255
    u = (np.float32([10, 10.5, 10 + TILE]) + 0.5) / TILE  # a centre, half-way to the next, the centre one tile on
    v = np.full(3, 20.5 / TILE, np.float32)
    got = atlas.sample(material, u, v, np.zeros(3, np.int32))
    want = np.stack([tile[20, 10], 0.5 * (tile[20, 10] + tile[20, 11]), tile[20, 10]], 1)
    np.testing.assert_allclose(got, want, atol=1e-4)
    last = atlas.sample(material, u, v, np.full(3, LEVELS - 1, np.int32))
    np.testing.assert_allclose(last, np.tile(tile.mean((0, 1))[:, None], 3), atol=3 / 255)  # rounded at each level


def test_paint_is_found_where_it_was_drawn() -> None:
    roads = make_roads(
        np.random.default_rng(0), (240, 240), curvature=0.0, lanes_each_way=1, reach=80.0, crossings_u=[0.0, 70.0]
    )
    ground = Ground(roads, (200.0, 200.0), (280.0, 280.0))
    # Yellow lines at v = +-0.14 of the main road; the white edge of the lane at v = LANE; asphalt between.
    uv = np.array([(30.0, 0.14), (30.0, -0.14), (30.0, LANE), (31.0, 1.5)])
    at = (roads.bend.point(uv) - ground.low).astype(np.float32)
    white, yellow = ground.paint(at[:, 0], at[:, 1], np.full(4, 0.01, np.float32))
    # A line of 12 cm is two texels wide and softened: its middle is not quite covered.
    assert (yellow[:2] > 0.6).all()
    assert (yellow[2:] == 0).all()
    assert white[2] > 0.75
    assert white[3] < 0.503  # bare: 128 / 255
    # Seen from far away the line fades into its surroundings instead of flickering.
    far, _ = ground.paint(at[:, 0], at[:, 1], np.full(4, 3.0, np.float32))
    assert 128 / 255 < far[2] < 0.7
    outside, none = ground.paint(np.float32([-50]), np.float32([1e4]), np.float32([0.1]))
    assert (outside[0], none[0]) == (np.float32(128 / 255), 0)


@pytest.mark.parametrize("lanes_each_way", [1, 2])
def test_traffic_keeps_to_the_right(lanes_each_way: int) -> None:
    roads = make_roads(
        np.random.default_rng(0), (0, 0), curvature=0.0, lanes_each_way=lanes_each_way, reach=60.0, crossings_u=[5.0]
    )
    assert len(roads.lanes) == 2 * (2 * lanes_each_way) + 2 * 2  # two pieces of main road, two of cross street
    for lane in roads.lanes:
        (u0, v0), (u1, v1) = lane.start, lane.end
        if lane.name.startswith("main"):
            assert v0 == v1
            assert (u1 - u0) * v0 < 0  # eastward, the middle lies to the north
        else:
            assert u0 == u1
            assert (v1 - v0) * (u0 - 5.0) > 0  # northward, the middle lies to the west


def test_pixel_rays_pass_through_pixel_centres() -> None:
    k = np.array([[50.0, 0, 20.0], [0, 50.0, 12.0], [0, 0, 1]])
    x, y = np.meshgrid(np.arange(40) + 0.5, np.arange(24) + 0.5)
    d = pixel_rays(k, x, y)  # (24, 40, 3)
    np.testing.assert_allclose(np.linalg.norm(d, axis=-1), 1, atol=1e-6)
    uvw = d @ k.T
    np.testing.assert_allclose(uvw[5, 7, :2] / uvw[5, 7, 2], (7.5, 5.5), atol=1e-4)


def test_cameras_fire_when_the_beam_passes() -> None:
    offsets = {c: firing_offset(heading) for c, (heading, _, _) in CAMERAS.items()}
    order = ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT"]
    assert sorted(offsets, key=offsets.__getitem__) == order
    assert offsets["CAM_BACK_LEFT"] == 0
    assert all(-0.05 < t <= 0 for t in offsets.values())


def test_cameras_see_all_around() -> None:
    rig = make_rig(np.random.default_rng(0), (64, 112))
    azimuth = np.radians(np.arange(0, 360, 0.5))
    far = 60 * np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros_like(azimuth)], -1)
    seen = np.zeros(len(far), bool)
    for camera in rig.cameras.values():
        local = (far - camera.ego_from_cam[:3, 3]) @ camera.ego_from_cam[:3, :3]
        uv = local @ camera.intrinsics.T
        u = uv[:, 0] / np.where(local[:, 2] > 0, local[:, 2], np.inf)
        seen |= (local[:, 2] > 0) & (u > 0) & (u < camera.width)
    assert seen.all()


def test_view_meets_discs_that_reach_into_it() -> None:
    view = View(np.zeros(2), np.array([1.0, 0.0]), math.radians(30))
    centre = np.array([(10.0, 0.0), (-10.0, 0.0), (10.0, 12.0), (10.0, 12.0), (-1.0, 0.0)])
    radius = np.array([1.0, 1.0, 1.0, 6.0, 2.0])
    # (10, 12) lies 50.2 degrees off, 20.2 beyond the cone's edge, 15.6 m away: it takes a radius of 5.4 m to reach it.
    assert view.meets(centre, radius).tolist() == [True, False, False, True, True]


def test_box_faces_look_outwards_and_fill_the_box() -> None:
    b = Builder()
    b.box((1.0, 2.0, 3.0), (4.0, 2.0, 1.0), Material.BODY)
    mesh = b.mesh()
    np.testing.assert_allclose(mesh.vertices.reshape(-1, 3).min(0), (-1, 1, 2.5))
    np.testing.assert_allclose(mesh.vertices.reshape(-1, 3).max(0), (3, 3, 3.5))
    outward = (mesh.vertices.mean(1) - (1, 2, 3)) * mesh.normals
    assert (outward.sum(1) > 0).all()
    np.testing.assert_allclose(np.abs(mesh.normals).max(1), 1)
    area = np.linalg.norm(
        np.cross(mesh.vertices[:, 1] - mesh.vertices[:, 0], mesh.vertices[:, 2] - mesh.vertices[:, 0]), axis=1
    )
    assert area.sum() / 2 == pytest.approx(2 * (4 + 2) + 8)  # four sides and the top: no underside
    assert len(np.unique(mesh.surface)) == 5


def test_blob_is_closed_about_its_middle() -> None:
    mesh = blob(np.random.default_rng(0), (2.0, 2.0, 1.0), (1.0, 1.0, 1.0))
    assert len(mesh) == 80
    assert (np.einsum("fi,fi->f", mesh.normals, mesh.vertices.mean(1)) > 0).all()
    volume = np.linalg.det(mesh.vertices.astype(float)).sum() / 6
    assert 0.6 < volume / (4 / 3 * math.pi * 4) < 1.2


def test_brighter_light_gives_brighter_pixels() -> None:
    light = np.tile(np.linspace(0, 6, 50, dtype=np.float32), (3, 1))
    shown = develop(light, 0.8)
    assert shown.shape == (3, 50)
    assert (np.diff(shown) >= 0).all()
    assert shown[:, 0].max() == 0
    assert shown[:, -1].min() > 225 / 255
    assert shown.max() <= 1
