"""Figures: maps the right way round, curves that keep what they smooth, errors against LiDAR, PNG files."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from helpers.fake_run import BOUNDS, CAMERAS, renders, write_run
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from PIL import Image

from mim4d.viz import curves, figures, ground, style
from mim4d.viz.run import load_renders


def pixels(figure: Figure) -> np.ndarray:
    """The figure drawn by Agg: (H, W, 3) uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


def place(figure: Figure, x: float, y: float) -> tuple[int, int]:
    """Row and column where a point x ahead, y to the left is drawn."""
    image = pixels(figure)
    column, row = figure.axes[0].transData.transform((y, x))
    return image.shape[0] - 1 - int(row), int(column)


def test_map_has_forward_up_and_left_on_the_left() -> None:
    bev = np.zeros((8, 16))  # (Y, X): cells of 2.5 x 2.5 m in a box of 40 x 20 m
    bev[6, 12] = 1.0  # y in [5, 7.5], x in [10, 12.5]
    bounds = (-20.0, -10.0, -3.0, 20.0, 10.0, 5.0)
    drawn = figures.bev_figure(bev, bounds, limit=1.0)
    row, column = place(drawn, 11.25, 6.25)
    image = pixels(drawn)
    colours = matplotlib.colormaps[ground.BEV_COLOURS]
    assert np.abs(image[row, column].astype(int) - np.array(colours(1.0, bytes=True)[:3])).max() <= 2
    other_row, other_column = place(drawn, -11.25, -6.25)
    assert np.abs(image[other_row, other_column].astype(int) - np.array(colours(0.0, bytes=True)[:3])).max() <= 2
    assert row < other_row  # ahead is above
    assert column < other_column  # left is on the left


def test_sdf_slice_marks_the_surface() -> None:
    y, x = ground.cell_centres((40, 40), BOUNDS)
    drawn = figures.sdf_figure(np.hypot(*np.meshgrid(y, x, indexing="ij")) - 20.0, BOUNDS, limit=20.0)
    image = pixels(drawn).astype(int)
    inside, outside = image[place(drawn, 0.0, 8.0)], image[place(drawn, 0.0, 40.0)]
    assert inside[0] > inside[2] + 40  # red
    assert outside[2] > outside[0] + 40  # blue
    # along y = 0 the line crosses where the distance is zero, x = 20 m
    row, column = place(drawn, 20.0, 0.0)
    assert image[row - 4 : row + 5, column].sum(-1).min() < 150


def test_box_corners() -> None:
    boxes = np.array([[10.0, 5.0, 0, 2.0, 4.0, 1.5, 0.0, 0, 0], [0.0, 0.0, 0, 2.0, 4.0, 1.5, np.pi / 2, 0, 0]])
    corners = figures.box_corners(boxes)
    np.testing.assert_allclose([corners[0].min(0), corners[0].max(0)], [[8, 4], [12, 6]])
    # turned to the left: length lies along y
    np.testing.assert_allclose([corners[1].min(0), corners[1].max(0)], [[-1, -2], [1, 2]], atol=1e-12)


def test_motion_arrows_are_block_means_in_metres_per_second() -> None:
    motion = np.zeros((2, 10, 13))
    motion[0], motion[1] = 3.0, np.arange(10)[:, None]  # forward everywhere; to the left it grows with y
    drawn = figures.motion_figure(motion, (-13.0, -10.0, 0, 13.0, 10.0, 1.0), limit=5.0, arrows=5)
    quiver = next(child for child in drawn.axes[0].get_children() if isinstance(child, Quiver))
    # blocks of 3 x 3 cells: 3 along y, 4 along x; the rest at the far edge is left out
    assert quiver.U.size == 12
    np.testing.assert_allclose(quiver.V, 3.0)
    np.testing.assert_allclose(np.unique(quiver.U), [1.0, 4.0, 7.0])
    np.testing.assert_allclose(np.unique(quiver.X), [-7.0, -1.0, 5.0])  # cells of 2 m: middle cells 1, 4, 7


def test_smoothing() -> None:
    line = np.arange(50.0)
    smooth = figures.smooth(line, 5)
    np.testing.assert_allclose(smooth[2:-2], line[2:-2], atol=1e-9)
    np.testing.assert_allclose(figures.smooth(np.full(30, 4.0), 7), 4.0)
    gap = np.full(9, 2.0)
    gap[4] = np.nan
    np.testing.assert_allclose(figures.smooth(gap, 3), 2.0)
    assert [curves.smoothing_window(rows) for rows in (1, 19, 20, 150, 1000)] == [1, 1, 3, 7, 51]


def test_panels_sort_columns_and_prefer_plain_units() -> None:
    column = np.ones(3)
    names = ["step", "loss", "lr", "seconds", "epoch", "rgb_direct", "rgb_l1_direct", "depth_l1_m_direct"]
    found = {panel.key: panel for panel in figures.panels(dict.fromkeys([*names, "depth_l1_m_reconstructed"], column))}
    assert list(found) == ["colour", "depth", "loss", "lr", "seconds"]
    assert found["colour"].score == "rgb_l1"
    assert list(found["depth"].series) == ["direct", "reconstructed"]
    assert found["depth"].unit == "metres"
    (weighted,) = figures.panels({"rgb_direct": column})
    assert (weighted.unit, weighted.score) == ("weighted loss", "")


def test_step_time_from_the_total() -> None:
    steps, seconds = np.array([2.0, 4.0, 5.0, 6.0]), np.array([3.0, 5.0, 5.0, 6.5])
    np.testing.assert_allclose(
        figures.panels({"step": steps, "seconds": seconds})[0].series[""], [1.5, 1.0, np.nan, 1.5]
    )


def test_curve_figure_shows_data_marks_and_level() -> None:
    steps = np.arange(1.0, 41.0)
    panel = figures.Panel("depth", "Depth error", "metres", "", {"direct": 10 - steps / 8}, "depth_l1_m")
    drawn = figures.curve_figure(steps, panel, [figures.Mark(0, 9.5, "before")], level=7.0)
    axes = drawn.axes[0]
    raw, bold = axes.lines[:2]
    np.testing.assert_allclose(raw.get_ydata(), 10 - steps / 8)
    assert bold.get_linewidth() > raw.get_linewidth()
    assert axes.get_ylim()[0] == 0
    assert {text.get_text() for text in axes.texts} == {"before", "trivial guess"}
    rate = figures.Panel("lr", "Learning rate", "step size", "", {"": np.full(40, 2e-4)})
    assert figures.curve_figure(steps, rate).axes[0].get_ylabel() == "step size, in 10⁻⁴"


def test_depth_errors_against_lidar(finished_run: Path) -> None:
    shot = load_renders(finished_run / "renders" / "after.npz")
    exact = np.zeros_like(shot.depth_direct)
    distance, error = figures.depth_errors(shot, exact)
    np.testing.assert_allclose(error, distance)  # a rendered zero is off by the distance itself
    # hits made from the rendered depth itself, two metres farther, at the rays' own pixels
    n, h, w = shot.depth_direct.shape
    camera, row, column = (index.ravel() for index in np.mgrid[0:n, 0:h, 0:w])
    u, v = (column + 0.5) * shot.stride, (row + 0.5) * shot.stride
    lidar = np.stack([camera, u, v, shot.depth_direct[camera, row, column] + 2.0], axis=-1)
    moved = type(shot)(**{**vars(shot), "lidar": lidar})
    np.testing.assert_allclose(figures.depth_errors(moved, moved.depth_direct)[1], 2.0, atol=1e-4)
    assert len(figures.depth_error_figure(shot, shot).axes[0].lines) == 3


def test_rendered_depth_is_grey_where_the_ray_met_nothing() -> None:
    drawn = figures.rendered_depth(np.full((1, 2), 10.0), np.array([[0.0, 1.0]]))
    assert tuple(drawn[0, 0]) == style.NOTHING
    np.testing.assert_array_equal(drawn[0, 1], figures.depth_to_rgb(np.array(10.0)))


def test_limits_are_shared_and_never_zero() -> None:
    assert figures.shared_limit(np.zeros((2, 2)), None) > 0
    assert figures.shared_limit(np.full((2, 2), 3.0), np.full((2, 2), -5.0)) == 5.0
    assert figures.shared_limit(np.array([[np.nan, 2.0]])) == 2.0


def test_svg_fits_into_a_page() -> None:
    drawn = figures.bev_figure(np.ones((8, 8)), BOUNDS, limit=1.0, cameras=CAMERAS)
    one, two = style.svg(drawn, "one"), style.svg(drawn, "two")
    for text in (one, two):
        assert text.startswith("<svg")
        assert "http" not in text
        assert "<metadata" not in text
        assert "var(--muted)" in text
        assert "front left" in text  # text stays text
        assert "#ffffff" in text  # white marks on the map stay white in the dark
    ids = [{part.split('"')[0] for part in text.split(' id="')[1:]} for text in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert matplotlib.rcParams["svg.fonttype"] == "path"  # the setting was put back


def test_drawing_leaves_pyplot_alone() -> None:
    from matplotlib import pyplot

    figures.depth_error_figure(*[load_fake()] * 2)
    assert pyplot.get_fignums() == []


def load_fake() -> figures.Renders:
    arrays = renders(True, 1)
    names = {"cameras": tuple(arrays["cameras"]), "stride": 4, "token": "t", "bounds": tuple(arrays["bounds"])}
    return figures.Renders(**{**arrays, **names})


@pytest.mark.parametrize("frames", [1, 3])
def test_write_pngs(tmp_path: Path, frames: int) -> None:
    run = write_run(tmp_path / "run", frames=frames)
    written = figures.write_pngs(run / "renders" / "after.npz", tmp_path / "out" / "deep")
    names = {path.stem for path in written}
    direct = {"camera", "masked_input", "lidar_depth", "rgb_direct", "depth_direct", "bev_direct", "sdf_slice"}
    rebuilt = {"rgb_reconstructed", "depth_reconstructed", "bev_reconstructed", "motion"}
    assert names == (direct | rebuilt if frames > 1 else direct)
    sizes = {}
    for path in written:
        with Image.open(path) as picture:
            picture.load()
            sizes[path.stem] = picture.size
    assert sizes["camera"] == sizes["rgb_direct"] == sizes["lidar_depth"] == (3 * 168 + 12, 2 * 96 + 6)


def test_optional_losses_that_were_on_have_a_curve() -> None:
    column = np.ones(3)
    names = ["loss", "eikonal_direct", "eikonal_error_direct", "eikonal_error_reconstructed", "ssim_error_direct"]
    names += [f"{name}_m_direct" for name in ("free_space", "truncation", "sparse_point")]
    found = {panel.key: panel for panel in figures.panels(dict.fromkeys(names, column))}
    optional = ["eikonal_error", "free_space_m", "truncation_m", "sparse_point_m", "ssim_error"]
    assert list(found) == ["loss", *optional]
    assert list(found["eikonal_error"].series) == ["direct", "reconstructed"]  # the plain value, not the weighted one
    assert found["free_space_m"].unit == "metres"
    assert not any(found[key].score for key in optional)
