"""Pull view transform: where a voxel looks, what it finds there, and when places are kept."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mim4d.nn import VoxelGrid, VoxelPull, unproject
from mim4d.nn.geometry import transform_points

GRID = VoxelGrid((0.0, -8.0, -2.0, 16.0, 8.0, 2.0), (16, 16, 4))  # cells of 1 m
IMAGE = (16, 32)


def looking(yaw: float, position: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    """frame_from_cam of a level camera: its z axis points to ``yaw`` (0 = forward), its y axis down."""
    c, s = math.cos(yaw), math.sin(yaw)
    x, y, z = position
    return torch.tensor([[s, 0.0, c, x], [-c, 0.0, s, y], [0.0, -1.0, 0.0, z], [0.0, 0.0, 0.0, 1.0]])


def intrinsics(focal: float = 10.0) -> Tensor:
    return torch.tensor([[focal, 0, 16.0], [0, focal, 8.0], [0, 0, 1.0]])


def rig(b: int = 2, n: int = 3) -> tuple[Tensor, Tensor]:
    poses = torch.stack([looking(0.5 * a, (2.0, a, 0.2)) for a in range(-1, n - 1)])[None].repeat(b, 1, 1, 1)
    poses[1:, :, 0, 3] += 0.7
    return intrinsics().repeat(b, n, 1, 1), poses


def pyramid(b: int = 2, n: int = 3, c: int = 5, d: int = 6, dtype: torch.dtype = torch.float32) -> tuple[list, list]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((8, 16), (4, 8), (2, 5))
    features = [torch.randn(b, n, c, h, w, generator=generator, dtype=dtype) for h, w in sizes]
    probs = [torch.rand(b, n, d, h, w, generator=generator, dtype=dtype).softmax(2) for h, w in sizes]
    return features, probs


def test_a_voxel_reads_the_pixel_and_bin_computed_by_hand() -> None:
    # The centre of cell (x, y, z) = (8, 9, 1) is (8.5, 1.5, -0.5). A forward camera at the origin sees it at camera
    # (-1.5, 0.5, 8.5), so at u = 16 - 15 / 8.5 = 14.2353, v = 8 + 5 / 8.5 = 8.5882 of the 32 x 16 image, depth 8.5.
    pull = VoxelPull(GRID, 1.0, 11.0)
    places = pull.places(intrinsics()[None, None], looking(0.0)[None, None], IMAGE).view(4, 16, 16, 3)
    wanted = torch.tensor([14.2353 / 16 - 1, 8.5882 / 8 - 1, 0.5])
    torch.testing.assert_close(places[1, 9, 8], wanted, rtol=1e-4, atol=1e-5)
    # Features that are their own columns and rows, bins that are all alike: one half each of two.
    columns = (torch.arange(32.0) + 0.5).expand(16, 32)
    rows = (torch.arange(16.0) + 0.5)[:, None].expand(16, 32)
    features = torch.stack((columns, rows))[None, None]  # (1, 1, 2, 16, 32)
    volume = pull(
        [features], [torch.full((1, 1, 2, 16, 32), 0.5)], intrinsics()[None, None], looking(0.0)[None, None], IMAGE
    )
    assert volume.shape == (1, 2, 4, 16, 16)
    assert volume.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(volume[0, :, 1, 9, 8], torch.tensor([14.2353, 8.5882]) / 2, rtol=1e-4, atol=1e-4)


def test_places_are_the_inverse_of_lifting() -> None:
    """Back from image and depth to the frame: the centres of the voxels."""
    k, poses = rig()
    pull = VoxelPull(GRID, 1.0, 11.0)
    places = pull.places(k, poses, IMAGE)
    seen = (places.abs() < 1).all(-1)
    assert 0.02 < seen.float().mean() < 0.9
    uv = (places[..., :2] + 1) / 2 * torch.tensor([32.0, 16.0])
    depth = (places[..., 2] + 1) / 2 * 10.0 + 1.0
    back = transform_points(poses, unproject(uv, depth, k[:, :, None]))  # (B, N, V, 3)
    wanted = GRID.centres().view(-1, 3).expand_as(back)
    torch.testing.assert_close(back[seen], wanted[seen], rtol=1e-4, atol=1e-4)


def test_cameras_and_levels_add_up_as_grid_sample_reads_them() -> None:
    """In float64, by torch's own reading; voxels behind a camera or out of its view take nothing from it."""
    features, probs = pyramid(dtype=torch.float64)
    k, poses = rig()
    pull = VoxelPull(GRID, 1.0, 11.0)
    places = pull.places(k, poses, IMAGE).double()
    total = torch.zeros(2, 5, 1024, dtype=torch.float64)
    for n in range(3):
        at = places[:, n]
        seen = (at.abs() < 1).all(-1)[:, None]
        at = torch.where(seen.transpose(1, 2), at, 2.0)
        for f, p in zip(features, probs, strict=True):
            read = F.grid_sample(f[:, n], at[:, None, :, :2], align_corners=False)[:, :, 0]
            weight = F.grid_sample(p[:, n, None], at[:, None, None], align_corners=False)[:, :, 0, 0]
            total += read * weight * seen
    volume = pull(features, probs, k, poses, IMAGE)
    torch.testing.assert_close(volume.flatten(2), total, rtol=1e-12, atol=1e-12)
    assert (volume == 0).all(1).any()


def test_any_number_of_cameras() -> None:
    k, poses = rig(1, 3)
    features, probs = pyramid(1, 3)
    pull = VoxelPull(GRID, 1.0, 11.0)
    whole = pull(features, probs, k, poses, IMAGE)
    one = lambda n: pull(*([t[:, n : n + 1] for t in ts] for ts in (features, probs)), k[:, n : n + 1], poses[:, n : n + 1], IMAGE)  # fmt: skip # noqa: E501
    torch.testing.assert_close(sum(one(n) for n in range(3)), whole, rtol=1e-4, atol=1e-5)


def test_gradients_reach_features_bins_and_calibration() -> None:
    features, probs = pyramid(1, 2, 2, 3, torch.float64)
    k, poses = rig(1, 2)
    pull = VoxelPull(VoxelGrid(GRID.bounds, (3, 3, 1)), 1.0, 11.0)
    leaves = [t.requires_grad_() for t in (*features, *probs)]
    run = lambda *ts: pull(ts[:3], ts[3:], k, poses, IMAGE)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    learned = poses.clone().requires_grad_()
    volume = pull([f.float() for f in features], [p.float() for p in probs], k, learned, IMAGE)
    (slope,) = torch.autograd.grad(volume.square().sum(), learned)
    assert slope[:, :, :3].abs().max() > 0
    assert pull._cache is None or not pull._cache.value.requires_grad


def counting(pull: VoxelPull, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    places = pull.places
    monkeypatch.setattr(pull, "places", lambda *a: (made.append(1), places(*a))[1])
    return made


def test_places_are_kept_while_calibration_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    pull = VoxelPull(GRID, 1.0, 11.0)
    made = counting(pull, monkeypatch)
    k, poses = rig()
    views = pyramid()
    first = pull(*views, k, poses, IMAGE)
    pull(*views, k.clone(), poses.clone(), IMAGE)  # equal values, compared on the CPU
    assert len(made) == 1
    poses[..., 0, 3] += 1.0  # written in place
    assert not torch.equal(pull(*views, k, poses, IMAGE), first)
    assert len(made) == 2
    pull(*views, k, poses, (32, 32))  # another image size
    assert len(made) == 3
    with torch.inference_mode():
        for _ in range(2):
            pull(*views, k, poses, (16, 16))  # what is made there serves no later backward pass: never kept
    assert len(made) == 5
    monkeypatch.undo()
    assert copy.deepcopy(pull)._cache is None


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_geometry_stays_fp32_under_autocast(half: torch.dtype) -> None:
    pull = VoxelPull(GRID, 1.0, 11.0)
    k, poses = rig()
    features, probs = pyramid()
    plain = pull.places(k, poses, IMAGE)
    with torch.autocast("cpu", half):
        assert torch.equal(pull.places(k, poses, IMAGE), plain)
        narrow = [f.to(half) for f in features]
        volume = pull(narrow, probs, k, poses, IMAGE)
    assert volume.dtype == half
    exact = pull([f.float() for f in narrow], probs, k, poses, IMAGE)
    torch.testing.assert_close(volume, exact.to(half), rtol=0, atol=0)  # one rounding


def test_wrong_calls_are_named() -> None:
    pull = VoxelPull(GRID, 1.0, 11.0)
    (features, probs), (k, poses) = pyramid(), rig()
    with pytest.raises(ValueError, match="features and depth_probs wanted as many levels, at least 1, got 3 and 2"):
        pull(features, probs[:2], k, poses, IMAGE)
    with pytest.raises(ValueError, match="at least 1, got 0 and 0"):
        pull([], [], k, poses, IMAGE)
    with pytest.raises(ValueError, match="VoxelPull: intrinsics and frame_from_cam wanted"):
        pull(features, probs, k[:, :1], poses, IMAGE)
    with pytest.raises(ValueError, match=r"depth_probs\[1\]"):
        pull(features, [probs[0], probs[2], probs[1]], k, poses, IMAGE)
    with pytest.raises(ValueError, match="VoxelPull: wanted 0 <= depth_min < depth_max"):
        VoxelPull(GRID, 2.0, 1.0)


def test_nothing_is_seen_behind_a_camera() -> None:
    """Also where the depth range begins at the camera."""
    places = VoxelPull(GRID, 0.0, 30.0).places(intrinsics()[None, None], looking(math.pi)[None, None], IMAGE)
    assert (places[..., 2] < -1).all()
