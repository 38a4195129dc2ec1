"""Rays against what is known: a plane, a ramp of colours, chosen pixels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.data.frames import LidarRecord, rigid, transform
from mim4d.data.rays import (
    NO_HITS,
    Hits,
    Rays,
    View,
    dense_rays,
    draw_rays,
    held_out,
    lidar_hits,
    load_lidar,
    project,
    rays_through,
    sample_colour,
    stable_rng,
)
from mim4d.errors import UserError

WIDTH, HEIGHT = 64, 40
K = np.array([[50.0, 0, 33], [0, 48, 19], [0, 0, 1]])


def tilted():
    """A camera 1.5 m up that looks along x + 0.2 y, turned about its axis by a little."""
    c, s = np.cos(0.2), np.sin(0.2)
    yaw = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    roll = np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
    return rigid(yaw @ np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0.0]]) @ roll, [1.2, -0.3, 1.5])


def view(image=None):
    if image is None:
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        image = np.stack([3 * x, 5 * y, x + y], -1).astype(np.uint8)
    return View(image, K, tilted())


def on_wall(count=4000, distance=12.0):
    """Returns all over the plane x = distance, in frame coordinates."""
    rng = np.random.default_rng(1)
    return np.stack([np.full(count, distance), rng.uniform(-12, 12, count), rng.uniform(-8, 10, count)], -1)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, WIDTH), st.floats(0, HEIGHT), st.floats(0.5, 80))
def test_a_point_on_a_ray_projects_to_where_the_ray_left(u, v, length):
    origins, directions = rays_through(np.array([[u, v]]), view())
    assert np.linalg.norm(directions) == pytest.approx(1, abs=1e-14)
    point = origins + length * directions  # (1, 3)
    camera_from_frame = np.linalg.inv(tilted())
    uv, depth = project(transform(camera_from_frame, point), K)
    np.testing.assert_allclose(uv, [[u, v]], atol=1e-9)
    assert 0 < depth[0] <= length + 1e-9


def test_lidar_rays_give_the_planes_depth():
    hits = lidar_hits(on_wall(), view())
    assert len(hits) > 500
    origins, directions = rays_through(hits.uv, view())
    np.testing.assert_allclose(hits.depth, (12.0 - origins[:, 0]) / directions[:, 0], rtol=1e-12)
    rays = draw_rays(view(), hits, 200, stable_rng(0))
    assert rays.has_depth.all()
    # float32 of float64: 1e-6 of 12 m.
    torch.testing.assert_close((rays.origins + rays.depth[:, None] * rays.directions)[:, 0], torch.full((200,), 12.0))


def test_only_the_nearest_return_of_a_pixel_counts():
    origins, directions = rays_through(np.array([[10.2, 7.9], [10.7, 7.1], [10.5, 8.5]]), view())
    points = origins + np.array([[9.0], [6.0], [4.0]]) * directions
    hits = lidar_hits(points[[0, 1, 2]], view())
    np.testing.assert_array_equal(hits.pixel, [7 * WIDTH + 10, 8 * WIDTH + 10])
    np.testing.assert_allclose(hits.depth, [6.0, 4.0])
    np.testing.assert_allclose(hits.uv[0], [10.7, 7.1])


def test_returns_behind_or_beside_the_image_are_no_hits():
    inside, directions = rays_through(np.array([[0.01, 0.01], [63.99, 39.99], [64.0, 20.0], [-0.01, 20.0]]), view())
    points = inside + 5 * directions
    assert set(lidar_hits(points, view()).pixel) == {0, 40 * WIDTH - 1}
    behind = inside - 5 * directions
    assert len(lidar_hits(behind, view())) == 0
    assert len(lidar_hits(np.zeros((0, 3)), view())) == 0


def test_a_return_outside_the_bounds_is_dropped_but_still_hides_what_is_behind():
    origins, directions = rays_through(np.array([[20.5, 20.5]]), view())
    points = np.concatenate([origins + 5 * directions, origins + 9 * directions])
    everything = (-100.0, -100.0, -100.0, 100.0, 100.0, 100.0)
    beyond_7 = (7.0, -100.0, -100.0, 100.0, 100.0, 100.0)
    assert lidar_hits(points, view(), everything).depth == pytest.approx([5.0])
    assert points[0, 0] < 7 < points[1, 0]
    assert len(lidar_hits(points, view(), beyond_7)) == 0


def test_colour_is_bilinear_between_pixel_centres():
    rng = np.random.default_rng(2)
    uv = rng.uniform([0.5, 0.5], [WIDTH - 0.5, HEIGHT - 0.5], (300, 2))
    x, y = uv[:, 0] - 0.5, uv[:, 1] - 0.5
    expected = np.stack([3 * x, 5 * y, x + y], -1) / 255
    np.testing.assert_allclose(sample_colour(view().image, uv), expected, atol=1e-14)


def test_the_border_pixels_colour_reaches_the_images_edge():
    image = view().image
    corners = np.array([[0.0, 0.0], [WIDTH, 0.0], [0.2, HEIGHT], [WIDTH, HEIGHT]])
    expected = np.array([image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]]) / 255
    np.testing.assert_allclose(sample_colour(image, corners), expected, atol=1e-15)
    np.testing.assert_allclose(sample_colour(image[:1, :1], corners), np.repeat(image[:1, 0] / 255, 4, 0))


def pixels_of(rays):
    xy = rays.pixels.numpy().astype(int)
    return xy[:, 1] * WIDTH + xy[:, 0]


def test_rays_are_drawn_without_replacement():
    hits = lidar_hits(on_wall(), view())
    rays = draw_rays(view(), hits, len(hits), stable_rng(0))
    assert sorted(pixels_of(rays)) == sorted(hits.pixel)
    some = draw_rays(view(), hits, 100, stable_rng(0))
    assert len(set(pixels_of(some))) == 100
    assert set(pixels_of(some)) <= set(hits.pixel)
    other = draw_rays(view(), hits, 100, stable_rng(1))
    assert set(pixels_of(some)) != set(pixels_of(other))


@pytest.mark.parametrize("sky", [0.0, 0.4, 0.93])
def test_too_few_hits_are_filled_up_below_the_sky_line(sky):
    hits = lidar_hits(on_wall(30), view())
    assert 5 < len(hits) < 30
    rays = draw_rays(view(), hits, 60, stable_rng(3), sky=sky)
    filled = ~rays.has_depth
    assert int(filled.sum()) == 60 - len(hits)
    assert len(set(pixels_of(rays))) == 60
    assert (rays.depth[filled] == 0).all()
    assert (rays.depth[~filled] > 0).all()
    first_row = int(np.ceil(sky * HEIGHT))
    rows = rays.pixels[filled, 1]
    assert (rows >= first_row + 0.5).all()
    assert (rays.pixels[filled] % 1 == 0.5).all()
    torch.testing.assert_close(rays.rgb[filled, 1], (5 * (rows - 0.5) / 255))


def test_excluded_pixels_never_fill_up_and_the_rest_all_does():
    below = np.arange(24 * WIDTH, HEIGHT * WIDTH)
    exclude = below[::3]
    rays = draw_rays(view(), NO_HITS, len(below) - len(exclude), stable_rng(4), sky=0.6, exclude=exclude)
    assert set(pixels_of(rays)) == set(below) - set(exclude)


def test_more_rays_than_pixels_draw_some_twice():
    rays = draw_rays(view(), NO_HITS, 2 * WIDTH + 5, stable_rng(5), sky=(HEIGHT - 1) / HEIGHT)
    _, counts = np.unique(pixels_of(rays), return_counts=True)
    assert len(counts) == WIDTH
    assert set(counts) == {2, 3}


def test_no_pixel_left_is_a_clear_error():
    with pytest.raises(UserError, match=r"no pixel left for 3 rays.*rays-per-camera"):
        draw_rays(view(), NO_HITS, 3, stable_rng(5), exclude=np.arange(WIDTH * HEIGHT))


def test_repeated_hits_come_equally_often():
    hits = lidar_hits(on_wall(40), view())
    rays = draw_rays(view(), hits, 3 * len(hits) + 2, stable_rng(6), repeat=True)
    assert rays.has_depth.all()
    _, counts = np.unique(pixels_of(rays), return_counts=True)
    assert len(counts) == len(hits)
    assert set(counts) == {3, 4}
    few = draw_rays(view(), hits, 4, stable_rng(6), repeat=True)
    assert len(set(pixels_of(few))) == 4
    assert not draw_rays(view(), NO_HITS, 4, stable_rng(6), repeat=True).has_depth.any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 300), st.floats(0.01, 0.99), st.integers(0, 5))
def test_the_held_out_part_is_fixed_and_of_its_size(count, fraction, frame):
    hits = Hits(np.zeros((count, 2)), np.ones(count), np.arange(count))
    mask = held_out(hits, fraction, frame, "CAM_FRONT")
    assert mask.sum() == round(fraction * count)
    np.testing.assert_array_equal(mask, held_out(hits, fraction, frame, "CAM_FRONT"))


def test_another_camera_holds_out_another_part():
    hits = Hits(np.zeros((200, 2)), np.ones(200), np.arange(200))
    assert (held_out(hits, 0.3, 1, "CAM_FRONT") != held_out(hits, 0.3, 1, "CAM_BACK")).any()


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_dense_rays_pass_through_block_centres(stride):
    rays = dense_rays(view(), stride)
    h, w = HEIGHT // stride, WIDTH // stride
    assert rays.depth.shape == (h, w)
    assert not rays.has_depth.any()
    torch.testing.assert_close(rays.pixels[0, 0], torch.tensor([stride / 2, stride / 2]))
    torch.testing.assert_close(rays.pixels[-1, -1], torch.tensor([(w - 0.5) * stride, (h - 0.5) * stride]))
    if stride == 1:
        torch.testing.assert_close(rays.rgb, torch.from_numpy(view().image).float() / 255)
    with pytest.raises(ValueError, match=r"stride must be in 1\.\.40"):
        dense_rays(view(), 41)


def test_blank_rays_keep_their_geometry_and_lose_their_targets():
    rays = draw_rays(view(), lidar_hits(on_wall(30), view()), 20, stable_rng(0))
    blank = rays.blank()
    assert torch.equal(blank.directions, rays.directions)
    assert not blank.rgb.any()
    assert not blank.depth.any()
    assert not blank.has_depth.any()


def test_rays_join_and_move_field_by_field():
    one, two = (draw_rays(view(), NO_HITS, 5, stable_rng(i)) for i in range(2))
    both = Rays.join(torch.stack, [one, two])
    assert both.origins.shape == (2, 5, 3)
    assert torch.equal(both.pixels[1], two.pixels)
    assert both.to("meta").depth.device.type == "meta"


def sweep(path, values):
    np.asarray(values, dtype=np.float32).tofile(path)
    return LidarRecord(str(path), np.eye(4), np.eye(4), 0)


def test_the_cars_own_returns_and_broken_values_are_dropped(tmp_path):
    rows = [[2.4, 0, 0, 1, 1], [0, 2.6, 0, 1, 2], [np.nan, 5, 5, 1, 3], [np.inf, 5, 5, 1, 4], [3, 4, 0, np.nan, 5]]
    points = load_lidar(sweep(tmp_path / "a.pcd.bin", rows))
    np.testing.assert_allclose(points, [[0, 2.6, 0], [3, 4, 0]], rtol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 19, 21, 1999])
def test_a_truncated_sweep_is_named_at_load(tmp_path, length):
    path = tmp_path / "cut.pcd.bin"
    path.write_bytes(bytes(length))
    record = LidarRecord(str(path), np.eye(4), np.eye(4), 0)
    with pytest.raises(UserError, match=r"truncated LiDAR file: .*cut\.pcd\.bin has"):
        load_lidar(record)
    path.unlink()
    with pytest.raises(UserError, match=r"missing LiDAR file: .*cut\.pcd\.bin"):
        load_lidar(record)


def test_random_numbers_are_the_same_in_another_process():
    here = stable_rng("train", 3, "token").integers(0, 2**31, 4).tolist()
    code = (
        "from mim4d.data.rays import stable_rng; print(stable_rng('train', 3, 'token').integers(0, 2**31, 4).tolist())"
    )
    env = {"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == str(here)


def test_random_numbers_differ_with_every_part_of_the_key():
    keys = [("a", 1), ("a", 2), ("b", 1), ("a", "1"), ("a1",), (1, "a"), ("a", 1, "")]
    draws = {tuple(stable_rng(*key).integers(0, 2**31, 4)) for key in keys}
    assert len(draws) == len(keys)


@pytest.mark.parametrize("count", [45, 900])
def test_patches_are_squares_around_returns(count):
    """Five patches all lie around returns; a hundred use up the returns and fill up with other pixels."""
    hits = lidar_hits(on_wall(60), view())
    rays = draw_rays(view(), hits, count, stable_rng(0), patch=3)
    assert rays.depth.shape == (count,)
    xy = rays.pixels.numpy().astype(int).reshape(-1, 9, 2)  # (M, 9, 2)
    y, x = np.mgrid[:3, :3]
    np.testing.assert_array_equal(xy - xy[:, :1], np.broadcast_to(np.stack([x.ravel(), y.ravel()], -1), xy.shape))
    assert (xy >= 0).all()
    assert (xy < [WIDTH, HEIGHT]).all()
    hit = rays.has_depth.numpy().reshape(-1, 9)
    linear = xy[..., 1] * WIDTH + xy[..., 0]
    np.testing.assert_array_equal(hit, np.isin(linear, hits.pixel))
    assert hit[: min(len(hits), count // 9)].any(axis=1).all()
    # through the very return where there is one, so that the depth is that of the ray
    _, directions = rays_through(hits.uv, view())
    for place, pixel in zip(np.argwhere(hit), linear[hit], strict=True):
        i = int(np.flatnonzero(hits.pixel == pixel)[0])
        ray = 9 * place[0] + place[1]
        np.testing.assert_allclose(rays.directions[ray], directions[i], atol=1e-6)
        assert rays.depth[ray] == pytest.approx(hits.depth[i], rel=1e-6)
    free = ~rays.has_depth
    np.testing.assert_array_equal(rays.pixels[free] % 1, np.full((int(free.sum()), 2), 0.5))


def test_a_patch_at_the_border_is_moved_into_the_image():
    uv = np.array([[0.2, 0.3], [WIDTH - 0.1, HEIGHT - 0.2]])
    origins, directions = rays_through(uv, view())
    hits = lidar_hits(origins + 5 * directions, view())
    rays = draw_rays(view(), hits, 18, stable_rng(0), patch=3)
    corners = rays.pixels.reshape(2, 9, 2)[:, [0, 8]].floor().tolist()
    assert sorted(corners) == [[[0, 0], [2, 2]], [[WIDTH - 3, HEIGHT - 3], [WIDTH - 1, HEIGHT - 1]]]
    assert rays.has_depth.sum() == 2
