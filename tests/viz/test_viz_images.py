"""Raster pictures: colours of depth, LiDAR dots, the sheet of a camera rig."""

from __future__ import annotations

import numpy as np
import pytest

from mim4d.viz import images
from mim4d.viz.style import NOTHING


def test_depth_scale_is_logarithmic_fixed_and_clipped() -> None:
    near, far = images.DEPTH_RANGE
    depth = np.array([near, np.sqrt(near * far), far, 0.0, -3.0, 1e9])
    np.testing.assert_allclose(images.depth_fraction(depth[:3]), [0.0, 0.5, 1.0], atol=1e-12)
    colours = images.depth_to_rgb(depth)
    assert colours.dtype == np.uint8
    np.testing.assert_array_equal(colours[5], colours[2])
    np.testing.assert_array_equal(colours[3], colours[0])
    # the colours of one picture do not depend on what else is in it
    np.testing.assert_array_equal(images.depth_to_rgb(depth[1:2]), colours[1:2])


def test_depth_without_a_value_is_grey() -> None:
    depth = np.array([[10.0, np.nan], [np.inf, 10.0]])
    colours = images.depth_to_rgb(depth, valid=np.array([[True, True], [True, False]]))
    for row, column in ((0, 1), (1, 0), (1, 1)):
        assert tuple(colours[row, column]) == NOTHING
    assert tuple(colours[0, 0]) != NOTHING


def test_colour_bar_runs_from_near_to_far() -> None:
    bar = images.depth_bar(5)
    np.testing.assert_array_equal(bar[0, [0, -1]], images.depth_to_rgb(np.array(images.DEPTH_RANGE)))


def test_lidar_dot_lies_where_the_hit_is_and_the_nearer_one_on_top() -> None:
    photo = np.zeros((40, 80, 3), np.uint8)
    # two hits on one pixel, the nearer one first in the list; a third that is not a number
    points = np.array([[60.0, 10.0, 4.0], [60.0, 10.0, 50.0], [np.nan, 1.0, 1.0]])
    drawn = images.lidar_overlay(photo, points, width=160, radius=4)
    assert drawn.shape == (80, 160, 3)
    near = images.depth_to_rgb(np.array([4.0]))[0].astype(int)
    assert np.abs(drawn[20, 120].astype(int) - near).max() <= 2
    saturation = drawn.max(-1).astype(int) - drawn.min(-1)
    rows, columns = np.nonzero(saturation > 40)
    # all colour lies in the dot around (120, 20); u, v have their origin at the corner, so half a pixel may remain
    assert rows.size
    assert abs(rows.mean() + 0.5 - 20) < 1
    assert abs(columns.mean() + 0.5 - 120) < 1
    assert np.hypot(rows - 20, columns - 120).max() < 7


def test_rig_in_reading_order() -> None:
    cameras = ["CAM_BACK", "CAM_FRONT", "SIDE", "CAM_FRONT_LEFT"]
    assert images.reading_order(cameras) == [3, 1, 0, 2]
    assert images.plain_name("CAM_FRONT_LEFT") == "front left"
    assert images.camera_direction("CAM_FRONT_LEFT") == 55.0
    assert images.camera_direction("SIDE") is None


def test_camera_grid_places_every_picture() -> None:
    cameras = ["CAM_BACK", "CAM_FRONT", "CAM_FRONT_LEFT"]
    pictures = [np.full((40, 60, 3), shade, np.uint8) for shade in (50, 100, 150)]
    sheet = images.camera_grid(pictures, cameras, columns=2, gap=6)
    assert sheet.shape == (86, 126, 3)
    # bottom right corners of the cells, away from the labels: front left, front / back, empty
    assert [int(sheet[y, x, 0]) for y, x in ((38, 58), (38, 124), (84, 58), (84, 124))] == [150, 100, 50, 255]
    with pytest.raises(ValueError, match="3 pictures, 2 names"):
        images.camera_grid(pictures, cameras[:2])
