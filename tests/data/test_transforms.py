"""Images at the working size: pixels and projections move together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mim4d.data.frames import CameraRecord
from mim4d.data.rays import project
from mim4d.data.transforms import load_image, padded_size, resize_intrinsics
from mim4d.errors import UserError

K = np.array([[600.0, 0, 410], [0, 580, 230], [0, 0, 1]])


def save(path: Path, pixels: np.ndarray, **options: object) -> CameraRecord:
    Image.fromarray(pixels).save(path, **options)
    return CameraRecord("CAM", str(path), pixels.shape[1], pixels.shape[0], K, np.eye(4), np.eye(4), 0)


@settings(deadline=None)
@given(st.floats(0.1, 3), st.floats(0.1, 3))
def test_projecting_then_resizing_is_projecting_with_the_resized_intrinsics(scale_x, scale_y):
    points = np.array([[1.0, 2, 10], [-3, 0.5, 4], [0, 0, 1]])
    uv, _ = project(points, K)
    resized, _ = project(points, resize_intrinsics(K, scale_x, scale_y))
    np.testing.assert_allclose(resized, uv * [scale_x, scale_y], rtol=1e-13)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("size", [(45, 80), (113, 200), (30, 90), (180, 320), (22, 40)])
def test_a_mark_in_the_image_stays_under_its_projection(tmp_path, suffix, size):
    """A bright dot's centre of mass, before and after, is where a point projects before and after."""
    y, x = np.mgrid[:180, :320] + 0.5
    dot = np.exp(-((x - 214.3) ** 2 + (y - 67.6) ** 2) / (2 * 9.0**2)) * 250
    camera = save(tmp_path / f"dot.{suffix}", np.repeat(dot.astype(np.uint8)[..., None], 3, -1))
    image, intrinsics = load_image(camera, size)
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
    weight = image[..., 1].astype(float)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    centre = [(weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()]
    point = np.linalg.inv(K) @ [214.3, 67.6, 1]
    # Measured: up to 0.013 px, from rounding to 8 bits. With the draft's box ignored, 22 rows are 0.18 px off.
    np.testing.assert_allclose(centre, project(point[None], intrinsics)[0][0], atol=0.03)


def test_a_draft_reads_the_same_picture(tmp_path):
    """1/8 of a size that 8 does not divide: the decoder's last row reaches beyond the picture."""
    y, x = np.mgrid[:180, :324]
    pixels = np.stack([x * 0.7, y * 1.3, 120 + 0 * x], -1).astype(np.uint8)
    fast, _ = load_image(save(tmp_path / "a.jpg", pixels, quality=97, subsampling=0), (22, 40))
    exact, _ = load_image(save(tmp_path / "a.png", pixels), (22, 40))
    # Measured: 2 of 255; with the draft's box ignored it is 5.
    assert np.abs(fast.astype(int) - exact)[1:-1, 1:-1].max() <= 3


def test_grey_and_cmyk_files_give_three_channels(tmp_path):
    grey = np.full((20, 30), 77, np.uint8)
    for name, image in (("grey.jpg", Image.fromarray(grey)), ("cmyk.jpg", Image.fromarray(grey).convert("CMYK"))):
        image.save(tmp_path / name)
        camera = CameraRecord("CAM", str(tmp_path / name), 30, 20, K, np.eye(4), np.eye(4), 0)
        pixels, _ = load_image(camera, (20, 30))
        assert np.abs(pixels.astype(int) - 77).max() <= 2


@pytest.mark.parametrize(
    ("size", "multiple", "padded"), [((450, 800), 32, (480, 800)), ((64, 96), 32, (64, 96)), ((5, 7), 1, (5, 7))]
)
def test_padding_reaches_the_next_multiple(size, multiple, padded):
    assert padded_size(size, multiple) == padded


def test_a_file_of_another_size_than_its_record_is_refused(tmp_path):
    camera = save(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8))
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png is 40x20, but sample_data\.json says 30x20"):
        load_image(camera, (20, 30))


@pytest.mark.parametrize("damage", [b"", b"no picture at all", None])
def test_an_unreadable_image_is_named(tmp_path, damage):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    camera = save(tmp_path / "a.jpg", noise)
    path = tmp_path / "a.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage is None else damage)
    with pytest.raises(UserError, match=r"unreadable image: .*a\.jpg"):
        load_image(camera, (64, 64))
    path.unlink()
    with pytest.raises(UserError, match=r"unreadable image: .*a\.jpg.*No such file"):
        load_image(camera, (64, 64))
