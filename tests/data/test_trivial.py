"""The guess without looking: closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mim4d.data.clips import ClipDataset, DataConfig, open_datasets
from mim4d.data.nuscenes import clips_of_split, load_tables
from mim4d.data.rays import NO_HITS, Hits, View
from mim4d.data.trivial import fit_trivial
from mim4d.errors import UserError


class Two:
    """Two clips of two cameras, 4x3 pixels, with chosen returns: what fit_trivial needs of a dataset."""

    config = DataConfig(cameras=("A", "B"), image_size=(3, 4))

    def __init__(self, *clips):
        self.clips = clips

    def __len__(self):
        return len(self.clips)

    def key_cameras(self, index, *, drawn_only):
        assert drawn_only
        return self.clips[index]


def camera(level, *returns):
    """A camera whose image has one colour, with returns (row, depth)."""
    image = np.full((3, 4, 3), level, np.uint8)
    uv = np.array([[1.5, row + 0.5] for row, _ in returns]).reshape(-1, 2)
    depth = np.array([d for _, d in returns])
    hits = Hits(uv, depth, np.array([row * 4 + 1 for row, _ in returns], dtype=np.int64)) if returns else NO_HITS
    return View(image, np.eye(3), np.eye(4)), hits


def test_means_per_row_then_per_camera_then_over_all():
    data = Two(
        [camera(51, (0, 10.0), (1, 4.0)), camera(255)],
        [camera(102, (0, 20.0), (0, 30.0)), camera(255)],
    )
    trivial = fit_trivial(data)
    a_mean, all_mean = 64.0 / 4, 64.0 / 4
    expected = torch.tensor([[20.0, 4.0, a_mean], [all_mean] * 3])
    torch.testing.assert_close(trivial.depth, expected)
    # Row 0 of camera A: 0.2 once and 0.4 twice; row 1: 0.2; row 2 and camera B: the mean of all four returns.
    torch.testing.assert_close(trivial.rgb[..., 1], torch.tensor([[1 / 3, 0.2, 0.3], [0.3, 0.3, 0.3]]))


def test_predictions_read_the_row_that_holds_y():
    data = Two([camera(51, (0, 10.0), (1, 4.0), (2, 7.0)), camera(102, (1, 3.0))])
    trivial = fit_trivial(data)
    y = torch.tensor([[0.0, 0.99, 1.0, 2.5, 9.0, -1.0]])
    rgb, depth = trivial.predict(0, y)
    assert depth.tolist() == [[10.0, 10.0, 4.0, 7.0, 7.0, 10.0]]
    assert rgb.shape == (1, 6, 3)
    _, depth = trivial.predict(torch.arange(2)[:, None], torch.tensor([[0.5, 2.5], [0.5, 2.5]]))
    assert depth.tolist() == [[10.0, 7.0], [3.0, 3.0]]


def test_no_return_at_all_is_an_error():
    with pytest.raises(UserError, match="no LiDAR return"):
        fit_trivial(Two([camera(1), camera(2)]))


def test_a_limit_reads_evenly_spaced_clips():
    data = Two(*[[camera(1, (0, float(i))), camera(1, (0, 0.5))] for i in range(9)])
    assert fit_trivial(data, limit=3).depth[0, 0] == pytest.approx((0 + 4 + 8) / 3)
    assert fit_trivial(data, limit=99).depth[0, 0] == pytest.approx(4)


@pytest.fixture(scope="module")
def config(room, truth):
    return DataConfig(
        root=str(room),
        version=truth.version,
        cameras=truth.cameras,
        offsets=(0.0,),
        image_size=(48, 80),
        holdout="rays",
    )


def test_on_the_room_it_uses_every_return_that_is_not_held_out(config, room, truth):
    train, _ = open_datasets(config)
    trivial = fit_trivial(train)
    clips = clips_of_split(load_tables(room, truth.version), "mini_train", (0.0,), cameras=truth.cameras)
    dataset = ClipDataset(config, clips, train=True)
    for n in range(2):
        depth, row = [], []
        for i in range(len(dataset)):
            _, hits = dataset.key_cameras(i, drawn_only=True)[n]
            depth.append(hits.depth)
            row.append(hits.uv[:, 1].astype(int))
        depth, row = np.concatenate(depth), np.concatenate(row)
        for y in (5, 20, 40):
            expected = depth[row == y].mean() if (row == y).any() else depth.mean()
            assert float(trivial.depth[n, y]) == pytest.approx(expected, rel=1e-6)
            # Green is 60 + 3 row at the pixel's centre, whatever the column.
        green = (60 + 3 * (np.arange(48))) / 255
        measured = trivial.rgb[n, :, 1].numpy()
        hit = np.bincount(row, minlength=48) > 20
        np.testing.assert_allclose(measured[hit], green[hit], atol=1.5 / 255)
