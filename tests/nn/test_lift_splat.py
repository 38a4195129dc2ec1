"""Push view transform: where a pixel's depth bin lands, what is conserved, and when the index is kept."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from mim4d import ops
from mim4d.nn import LiftSplat, LiftSplatConv, VoxelGrid, project
from mim4d.nn.geometry import invert_rigid, transform_points

GRID = VoxelGrid((0.0, -8.0, -2.0, 16.0, 8.0, 2.0), (16, 16, 4))  # cells of 1 m


def looking(yaw: float, position: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    """frame_from_cam of a level camera: its z axis points to ``yaw`` (0 = forward), its y axis down."""
    c, s = math.cos(yaw), math.sin(yaw)
    x, y, z = position
    return torch.tensor([[s, 0.0, c, x], [-c, 0.0, s, y], [0.0, -1.0, 0.0, z], [0.0, 0.0, 0.0, 1.0]])


def intrinsics(focal: float = 10.0, centre: tuple[float, float] = (16.0, 8.0)) -> torch.Tensor:
    return torch.tensor([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])


def test_a_one_hot_pixel_lands_in_the_voxel_computed_by_hand() -> None:
    # Image 16 x 32, features 4 x 8: feature pixel (2, 5) has its centre at image point (22, 10).
    # Bins 2 m wide from 1 m on: bin 3 lies at 8 m. Camera point ((22-16)/10*8, (10-8)/10*8, 8) = (4.8, 1.6, 8).
    # A forward camera 0.5 m up: x = 8, y = -4.8, z = 0.5 - 1.6 = -1.1. Cell (8, floor(3.2), floor(0.9)) = (8, 3, 0).
    lift = LiftSplat(GRID, 1.0, 11.0, 5)
    probs = torch.zeros(1, 1, 5, 4, 8)
    probs[0, 0, 3, 2, 5] = 1.0
    features = torch.randn(1, 1, 3, 4, 8)
    volume = lift(features, probs, intrinsics()[None, None], looking(0.0, (0, 0, 0.5))[None, None], (16, 32))
    assert volume.shape == (1, 3, 4, 16, 16)
    torch.testing.assert_close(volume[0, :, 0, 3, 8], features[0, 0, :, 2, 5])
    assert (volume != 0).any(dim=1).sum() == 1


def test_every_voxel_is_where_the_camera_would_see_it() -> None:
    """The inverse question, at random cameras: project the cells' points back and find pixel and bin again."""
    torch.manual_seed(0)
    lift = LiftSplat(GRID, 0.5, 12.5, 6)
    pose = looking(0.4, (1.0, -2.0, 0.3))
    k = intrinsics(20.0)
    cells = lift.cells(k[None, None], pose[None, None], (8, 16), (16, 32))[0, 0]  # (6, 8, 16)
    centres = GRID.centres().reshape(-1, 3)
    seen = cells >= 0
    assert 50 < seen.sum() < cells.numel()
    depth, row, column = seen.nonzero().unbind(1)
    where = centres[cells[seen].long()]  # within half a cell of the lifted point
    points = transform_points(invert_rigid(pose), where)
    uv, z = project(points, k)
    # half a cell's diagonal is 0.87 m; in pixels that is 20 / z * 0.87
    assert ((z - (1.5 + 2.0 * depth)).abs() <= 0.8661).all()
    close = z > 3
    slack = 20 / (z - 0.87) * 0.8661 * 1.6  # a little more off axis
    assert ((uv[:, 0] - (column + 0.5) * 2).abs() <= slack)[close].all()
    assert ((uv[:, 1] - (row + 0.5) * 2).abs() <= slack)[close].all()


def test_mass_is_conserved_for_what_falls_inside() -> None:
    torch.manual_seed(0)
    lift = LiftSplat(GRID, 1.0, 21.0, 10)
    poses = torch.stack([looking(a, (2.0, a, 0.0)) for a in (-0.5, 0.0, 0.7)])[None].repeat(2, 1, 1, 1)  # (2, 3, 4, 4)
    k = intrinsics().expand(2, 3, 3, 3)
    probs = torch.rand(2, 3, 10, 4, 8).softmax(2)
    features = torch.randn(2, 3, 5, 4, 8)
    volume = lift(features, probs, k, poses, (16, 32))
    inside = lift.cells(k, poses, (4, 8), (16, 32)) >= 0
    assert 0.1 < inside.float().mean() < 0.9
    wanted = torch.einsum("bndhw,bnchw->bc", probs * inside, features)
    torch.testing.assert_close(volume.sum((2, 3, 4)), wanted, rtol=1e-4, atol=1e-4)


def test_gradients_reach_features_and_depth() -> None:
    lift = LiftSplat(GRID, 1.0, 11.0, 5)
    probs = torch.rand(1, 1, 5, 4, 8, dtype=torch.float64, requires_grad=True)
    features = torch.randn(1, 1, 2, 4, 8, dtype=torch.float64, requires_grad=True)
    k, pose = intrinsics()[None, None], looking(0.0)[None, None]
    assert torch.autograd.gradcheck(lambda f, p: lift(f, p, k, pose, (16, 32)), (features, probs), fast_mode=True)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    built = []
    build = ops.build_pool_index
    monkeypatch.setattr(ops, "build_pool_index", lambda *a: (built.append(1), build(*a))[1])
    return built


def test_the_index_is_kept_while_calibration_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    built = counting(monkeypatch)
    lift = LiftSplat(GRID, 1.0, 11.0, 5)
    k, pose = intrinsics()[None, None].clone(), looking(0.0)[None, None].clone()
    inputs = torch.rand(1, 1, 2, 4, 8), torch.rand(1, 1, 5, 4, 8)
    first = lift(*inputs, k, pose, (16, 32))
    lift(*inputs, k, pose, (16, 32))  # the same tensors
    lift(*inputs, k.view(1, 1, 3, 3), pose[:], (16, 32))  # the same memory
    lift(*inputs, k.clone(), pose.clone(), (16, 32))  # equal values, compared on the CPU
    assert len(built) == 1
    pose[..., 0, 3] += 3.0  # written in place
    moved = lift(*inputs, k, pose, (16, 32))
    assert len(built) == 2
    assert not torch.equal(first, moved)
    pose[..., 0, 3] -= 3.0
    torch.testing.assert_close(lift(*inputs, k, pose, (16, 32)), first)
    lift(*inputs, k, pose, (32, 32))  # another image size
    assert len(built) == 4
    with torch.inference_mode():
        lift(*inputs, k.clone(), pose.clone(), (32, 32))  # what is there is used
        assert len(built) == 4
        for _ in range(2):  # what is built there serves no later backward pass: never kept
            lift(*inputs, k.clone(), pose.clone(), (48, 32))
    assert len(built) == 6


def test_calibration_written_behind_torchs_back_is_noticed() -> None:
    pose = looking(0.0)[None, None].numpy().copy()
    shared = torch.from_numpy(pose)  # no version counter sees what numpy writes
    lift = LiftSplat(GRID, 1.0, 11.0, 5)
    features, probs = torch.randn(1, 1, 3, 4, 8), torch.rand(1, 1, 5, 4, 8)
    before = lift(features, probs, intrinsics()[None, None], shared, (16, 32))
    pose[..., 0, 3] = 3.0
    after = lift(features, probs, intrinsics()[None, None], shared, (16, 32))
    fresh = LiftSplat(GRID, 1.0, 11.0, 5)(features, probs, intrinsics()[None, None], shared, (16, 32))
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, fresh, rtol=0, atol=0)


def test_a_copy_carries_no_cache() -> None:
    lift = LiftSplat(GRID, 1.0, 11.0, 5)
    pose = looking(0.0)[None, None].requires_grad_() * 1.0  # not a leaf, as a learned calibration would be
    lift(torch.randn(1, 1, 3, 4, 8), torch.rand(1, 1, 5, 4, 8), intrinsics()[None, None], pose, (16, 32))
    assert lift._cache is not None
    assert copy.deepcopy(lift)._cache is None


def test_geometry_stays_fp32_under_autocast() -> None:
    lift = LiftSplat(GRID, 1.0, 11.0, 5)
    k, pose = intrinsics()[None, None], looking(0.3, (0.2, 0.1, 0.0))[None, None]
    plain = lift.cells(k, pose, (4, 8), (16, 32))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lift.cells(k, pose, (4, 8), (16, 32)), plain)
        volume = lift(torch.rand(1, 1, 2, 4, 8).bfloat16(), torch.rand(1, 1, 5, 4, 8), k, pose, (16, 32))
    assert volume.dtype == torch.float32


def test_wrong_shapes_are_named() -> None:
    lift = LiftSplat(GRID, 1.0, 11.0, 5)
    k, pose = intrinsics()[None, None], looking(0.0)[None, None]
    with pytest.raises(ValueError, match="depth_probs"):
        lift(torch.rand(1, 1, 2, 4, 8), torch.rand(1, 1, 4, 4, 8), k, pose, (16, 32))
    with pytest.raises(ValueError, match="intrinsics"):
        lift(torch.rand(1, 1, 2, 4, 8), torch.rand(1, 1, 5, 4, 8), k[0], pose, (16, 32))
    with pytest.raises(ValueError, match="depth_min"):
        LiftSplat(GRID, 5.0, 1.0, 5)


# ---- LiftSplatConv


def rig(dtype: torch.dtype, b: int = 2, n: int = 2, c: int = 6) -> tuple[torch.Tensor, ...]:
    """features, depth_probs, intrinsics, frame_from_cam: near points on all faces of the grid, and some outside."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(b, n, c, 4, 8, generator=generator, dtype=dtype)
    probs = torch.rand(b, n, 10, 4, 8, generator=generator, dtype=dtype).softmax(2)
    poses = torch.stack([looking(a, (7.0, a, 0.4)) for a in (0.3, -2.0)])[None].repeat(b, 1, 1, 1)
    return features, probs, intrinsics(8.0).expand(b, n, 3, 3), poses


def errors_of_conv(dtype: torch.dtype, bias: bool) -> tuple[float, ...]:
    """Of the volume and of all gradients, relative to the largest entry of each."""
    torch.manual_seed(0)
    fused = LiftSplatConv(GRID, 1.0, 13.0, 10, 6, 5, bias=bias).to(dtype)
    features, probs, k, poses = rig(dtype)
    leaves = (features.requires_grad_(), probs.requires_grad_(), *fused.conv.parameters())
    apart = fused.conv(LiftSplat(GRID, 1.0, 13.0, 10)(features, probs, k, poses, (16, 32)))
    together = fused(features, probs, k, poses, (16, 32))
    assert together.shape == apart.shape
    inside = LiftSplat(GRID, 1.0, 13.0, 10).cells(k, poses, (4, 8), (16, 32)) >= 0
    assert 0.1 < inside.float().mean() < 0.9
    cotangent = torch.randn(apart.shape, dtype=dtype)
    pairs = zip(*(torch.autograd.grad(v, leaves, cotangent) for v in (together, apart)), strict=True)
    results = (together.detach(), apart.detach())
    return tuple(float((x - y).abs().max() / y.abs().max()) for x, y in (results, *pairs))


@pytest.mark.parametrize("bias", [True, False])
def test_the_convolution_goes_through_to_the_pixels(bias: bool) -> None:
    """Volume and gradients of features, weights of bins, weights and bias: pooling and then a Conv3d."""
    assert max(errors_of_conv(torch.float64, bias)) < 1e-12  # measured 9e-16
    assert max(errors_of_conv(torch.float32, bias)) < 1e-5  # measured 7e-7


def test_no_lifted_volume_is_made() -> None:
    from helpers.memory import peak_bytes

    fused = LiftSplatConv(GRID, 1.0, 13.0, 10, 256, 2)
    features, probs, k, poses = rig(torch.float32, c=256)
    volume = 2 * 256 * 16 * 16 * 4 * 4
    fused(features, probs, k, poses, (16, 32))  # the index
    assert peak_bytes(lambda: fused(features, probs, k, poses, (16, 32))) < volume // 2


def test_the_index_of_the_convolution_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    built = counting(monkeypatch)
    fused = LiftSplatConv(GRID, 1.0, 13.0, 10, 6, 2)
    for _ in range(3):
        fused(*rig(torch.float32), (16, 32))
    assert len(built) == 1
    assert copy.deepcopy(fused)._cache is None
    assert set(fused.state_dict()) == {"conv.weight", "conv.bias"}
