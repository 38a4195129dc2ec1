"""Voxel grid, rigid transforms and the pinhole camera against hand-computed cases."""

from __future__ import annotations

import math

import pytest
import torch

from mim4d.nn.geometry import VoxelGrid, compose, invert_rigid, project, transform_points, unproject

GRID = VoxelGrid((-4.0, -2.0, -1.0, 4.0, 2.0, 3.0), (8, 2, 4))  # cells of 1 x 2 x 1 m


def rigid(yaw: float, translation: tuple[float, float, float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    c, s = math.cos(yaw), math.sin(yaw)
    x, y, z = translation
    return torch.tensor([[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, z], [0, 0, 0, 1]], dtype=dtype)


def test_grid_sizes() -> None:
    assert GRID.shape == (4, 2, 8)
    assert GRID.cell_size == (1.0, 2.0, 1.0)
    assert GRID.centres().shape == (4, 2, 8, 3)
    assert GRID.centres()[0, 0, 0].tolist() == [-3.5, -1.0, -0.5]
    assert GRID.centres()[3, 1, 7].tolist() == [3.5, 1.0, 2.5]


def test_normalise_maps_faces_to_one_and_centres_as_grid_sample_does() -> None:
    corners = torch.tensor([[-4.0, -2.0, -1.0], [4.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
    assert GRID.normalise(corners).tolist() == [[-1, -1, -1], [1, 1, 1], [0, 0, 0]]
    value = torch.rand(1, 1, *GRID.shape, dtype=torch.float64)  # reading at the centres gives the cells back
    where = GRID.normalise(GRID.centres(dtype=torch.float64))[None]
    read = torch.nn.functional.grid_sample(value, where, align_corners=False)
    torch.testing.assert_close(read, value)


def test_cells_round_trip_and_outside() -> None:
    assert GRID.cells(GRID.centres()).flatten().tolist() == list(range(4 * 2 * 8))
    assert GRID.cells(GRID.centres()).dtype == torch.int32
    nan = float("nan")
    points = torch.tensor(
        [[-4.0, -2.0, -1.0], [3.999, 1.999, 2.999], [4.0, 0, 0], [-4.001, 0, 0], [0, 0, nan], [1e30, 0, 0]]
    )
    assert GRID.cells(points).tolist() == [0, 63, -1, -1, -1, -1]


@pytest.mark.parametrize(
    "bounds, size",
    [
        ((0, 0, 0, 1, 1, 0), (1, 1, 1)),
        ((0, 0, 0, 1, 1, float("nan")), (1, 1, 1)),
        ((0, 0, 0, 1, 1, 1), (0, 1, 1)),
    ],
)
def test_grid_refuses_nonsense(bounds: tuple, size: tuple) -> None:
    with pytest.raises(ValueError, match="VoxelGrid"):
        VoxelGrid(bounds, size)


def test_transform_compose_invert() -> None:
    a = rigid(0.5, (1.0, -2.0, 0.3))
    b = rigid(-1.1, (0.4, 5.0, -1.0))
    points = torch.randn(2, 7, 3, dtype=torch.float64)
    moved = transform_points(torch.stack((a, b)), points)
    plain = points @ torch.stack((a, b))[:, :3, :3].transpose(-1, -2) + torch.stack((a, b))[:, None, :3, 3]
    torch.testing.assert_close(moved, plain)
    torch.testing.assert_close(compose(a, b), a @ b)
    torch.testing.assert_close(compose(a, invert_rigid(a)), torch.eye(4, dtype=torch.float64))
    # a quarter turn to the left takes "forward" to "left"
    turned = transform_points(rigid(math.pi / 2, (0, 0, 1)), torch.tensor([[1.0, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64))


def test_projection_by_hand_and_round_trip() -> None:
    k = torch.tensor([[100.0, 0, 50], [0, 200.0, 30], [0, 0, 1]], dtype=torch.float64)
    uv, depth = project(torch.tensor([1.0, -0.5, 4.0], dtype=torch.float64), k)
    assert uv.tolist() == [75.0, 5.0]
    assert depth.item() == 4.0
    turned = torch.tensor([[20.0, 90, 50], [-110, 15, 30], [0, 0, 1]], dtype=torch.float64)  # turned
    for intrinsics in (k, turned):
        points = torch.randn(5, 6, 3, dtype=torch.float64)
        points[..., 2] = points[..., 2].abs() + 0.5
        uv, depth = project(points, intrinsics)
        torch.testing.assert_close(unproject(uv, depth, intrinsics), points)


def test_projection_behind_the_camera_stays_finite() -> None:
    uv, depth = project(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, -3.0]]), torch.eye(3))
    assert torch.isfinite(uv).all()
    assert (depth <= 0).all()


def test_geometry_is_exact_under_autocast() -> None:
    matrix = rigid(0.7, (51.0, -33.0, 2.0), torch.float32)
    points = torch.rand(9, 3) * 50
    plain, squared = transform_points(matrix, points), compose(matrix, matrix)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transform_points(matrix, points), plain)
        assert torch.equal(compose(matrix, matrix), squared)
        assert GRID.normalise(points).dtype == torch.float32
