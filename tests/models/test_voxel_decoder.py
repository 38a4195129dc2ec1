"""Alignment against analytic fields, the time code, and what the temporal decoder may and may not see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mim4d.models.voxel_decoder import TimeCode, VoxelDecoder, sine_position_code, warp_to_target
from mim4d.nn import VoxelGrid
from mim4d.nn.geometry import invert_rigid, transform_points

GRID = VoxelGrid((-8.0, -6.0, -2.0, 8.0, 6.0, 2.0), (16, 8, 4))  # cells of 1 x 1.5 x 1 m


def pose(yaw: float = 0.0, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> torch.Tensor:
    c, s = math.cos(yaw), math.sin(yaw)
    return torch.tensor([[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, z], [0, 0, 0, 1.0]])


def linear(points: torch.Tensor) -> torch.Tensor:
    """Two linear fields of a point: (..., 3) -> (..., 2)."""
    x, y, z = points.unbind(-1)
    return torch.stack((0.7 * x - 0.3 * y + z + 2, -x + 0.5 * z), dim=-1)


@pytest.mark.parametrize(
    "motion",
    [pose(), pose(x=2.0), pose(x=-0.4, y=1.1, z=0.3), pose(yaw=0.6), pose(yaw=-2.5, x=1.7, y=-0.9)],
    ids=["still", "two-cells", "shift", "turn", "turn-and-shift"],
)
def test_a_linear_field_moves_exactly(motion: torch.Tensor) -> None:
    """``motion`` is frame_from_target. The warped volume at a target voxel is the field at the moved point."""
    volume = linear(GRID.centres()).permute(3, 0, 1, 2)[None]  # (1, 2, Z, Y, X), in the frame
    warped, valid = warp_to_target(volume, motion[None], GRID)
    moved = transform_points(motion, GRID.centres().reshape(-1, 3)).reshape(*GRID.shape, 3)
    wanted = linear(moved).permute(3, 0, 1, 2)[None]
    lower, upper = torch.tensor(GRID.lower), torch.tensor(GRID.upper)
    torch.testing.assert_close(valid[0], ((moved >= lower) & (moved <= upper)).all(-1))
    half = torch.tensor(GRID.cell_size) / 2  # beyond the outer centres zeros blend in
    inner = ((moved >= lower + half - 1e-5) & (moved <= upper - half + 1e-5)).all(-1)
    assert inner.sum() > 100
    torch.testing.assert_close(warped[..., inner], wanted[..., inner], rtol=1e-4, atol=1e-4)
    outside = ((moved < lower - half) | (moved > upper + half)).any(-1)
    assert (warped[..., outside] == 0).all()


def test_a_shift_by_whole_cells_by_hand() -> None:
    """The frame stood 2 m ahead of the target: what the target has at x, the frame has at x - 2."""
    volume = torch.randn(1, 3, *GRID.shape)
    target_from_frame = pose(x=2.0)
    warped, valid = warp_to_target(volume, invert_rigid(target_from_frame)[None], GRID)
    torch.testing.assert_close(warped[..., 2:], volume[..., :-2])
    assert (warped[..., :2] == 0).all()
    assert valid[..., 2:].all()
    assert not valid[..., :2].any()


def test_time_code_knows_the_sign_and_the_size_of_an_offset() -> None:
    torch.manual_seed(0)
    code = TimeCode(16)
    seconds = torch.tensor([-1.0, -0.5, -0.083, 0.0, 0.083, 0.5, 1.0])
    out = code(seconds)
    assert out.shape == (7, 16)
    assert torch.cdist(out, out)[~torch.eye(7, dtype=torch.bool)].min() > 0.1
    # Before the linear layer, the sines and the offset are odd in time and the cosines even.
    code.linear = nn.Identity()
    past, future = code(torch.tensor(-0.4)), code(torch.tensor(0.4))
    odd, even = torch.cat((past[:8], past[16:])), past[8:16]
    torch.testing.assert_close(odd, -torch.cat((future[:8], future[16:])))
    torch.testing.assert_close(even, future[8:16])


def test_position_code_tells_all_cells_apart() -> None:
    code = sine_position_code((6, 5), 10)
    assert code.shape == (30, 10)
    assert torch.cdist(code, code)[~torch.eye(30, dtype=torch.bool)].min() > 0.1
    assert code.abs().max() <= 1


def decoder(**options) -> VoxelDecoder:
    torch.manual_seed(0)
    made = VoxelDecoder(
        GRID, 4, **{"short_dim": 16, "short_heads": 2, "long_dim": 8, "long_heads": 1, "points": 2, **options}
    )
    for name, parameter in made.named_parameters():  # at the start all frames are asked alike: make it tell them apart
        if "sampling_offsets.weight" in name or "attention_weights" in name:
            nn.init.normal_(parameter, std=0.3)
    return made.eval()


def clip(frames: int = 4, batch: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    offsets = torch.tensor([-1.0, -0.4, 0.0, 0.5, 1.1])[:frames].expand(batch, -1).clone()
    return {
        "volume": torch.rand(batch, frames, 4, *GRID.shape),
        "key_from_frame": torch.stack([pose(0.1 * t, 4.0 * t, t**2) for t in offsets[0].tolist()]).repeat(
            batch, 1, 1, 1
        ),
        "offsets": offsets,
        "valid": torch.ones(batch, frames, dtype=torch.bool),
        "targets": torch.tensor([[2, 0], [1, 2]])[:batch],
    }


def test_sizes_and_motion() -> None:
    rebuilt, motion = decoder()(**clip())
    assert rebuilt.shape == (2, 2, 4, *GRID.shape)
    assert motion is not None
    assert motion.shape == (2, 2, 2, 8, 16)
    assert (rebuilt >= 0).all()
    assert torch.isfinite(motion).all()


def test_the_target_s_own_volume_never_leaks() -> None:
    model, inputs = decoder(), clip()
    rebuilt, motion = model(**inputs)
    for b, k in ((0, 0), (0, 1), (1, 0), (1, 1)):
        changed = {**inputs, "volume": inputs["volume"].clone()}
        changed["volume"][b, inputs["targets"][b, k]] = 1e3
        again, moved = model(**changed)
        assert torch.equal(again[b, k], rebuilt[b, k])
        assert torch.equal(moved[b, k], motion[b, k])
        others = [(i, j) for i in range(2) for j in range(2) if i == b and j != k]
        assert all(not torch.equal(again[i, j], rebuilt[i, j]) for i, j in others)  # it is a source of the other target


@pytest.mark.parametrize("average", [False, True])
def test_a_missing_frame_changes_nothing(average: bool) -> None:
    model, inputs = decoder(average_frames=average), clip()
    inputs["valid"][:, 3] = False
    rebuilt, motion = model(**inputs)
    changed = {key: value.clone() for key, value in inputs.items()}
    changed["volume"][:, 3] = -50.0
    changed["offsets"][:, 3] = 0.01  # it would be the nearest
    changed["key_from_frame"][:, 3] = pose(1.0, 2.0)
    again, moved = model(**changed)
    torch.testing.assert_close(again, rebuilt, rtol=0, atol=0)
    torch.testing.assert_close(moved, motion, rtol=0, atol=0)
    inputs["valid"][:, 3] = True
    assert not torch.equal(model(**inputs)[0], rebuilt)


def test_frames_may_come_in_any_order() -> None:
    model, inputs = decoder(), clip()
    rebuilt, motion = model(**inputs)
    order = torch.tensor([3, 1, 0, 2])
    place = order.argsort()  # where each frame went
    shuffled = {key: value[:, order] for key, value in inputs.items() if key != "targets"}
    again, moved = model(**shuffled, targets=place[inputs["targets"]])
    torch.testing.assert_close(again, rebuilt, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved, motion, rtol=1e-4, atol=1e-5)


def test_only_time_differences_and_relative_poses_matter() -> None:
    model, inputs = decoder(), clip()
    rebuilt, _ = model(**inputs)
    elsewhere = pose(0.7, 3.0, -2.0, 0.5)
    again, _ = model(
        **{**inputs, "offsets": inputs["offsets"] + 5.0, "key_from_frame": elsewhere @ inputs["key_from_frame"]}
    )
    torch.testing.assert_close(again, rebuilt, rtol=1e-3, atol=1e-4)


def test_no_other_frame_is_finite_with_finite_gradients() -> None:
    model, inputs = decoder(), clip()
    inputs["valid"][:] = False
    inputs["volume"].requires_grad_()
    rebuilt, motion = model(**inputs)
    assert torch.isfinite(rebuilt).all()
    assert (motion == 0).all()
    rebuilt.sum().backward()
    assert (inputs["volume"].grad == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_short_branch_sees_the_nearest_valid_frame_on_each_side() -> None:
    model, inputs = decoder(long_dim=0), clip(5, batch=1)
    inputs["targets"] = torch.tensor([[2, 4]])  # target 2: frames 1 and 3; target 4, the last: frame 3 alone
    rebuilt, _ = model(**inputs)

    def change(frame: int) -> list[bool]:
        volume = inputs["volume"].clone()
        volume[:, frame] += 1.0
        again, _ = model(**{**inputs, "volume": volume})
        return [not torch.equal(again[0, k], rebuilt[0, k]) for k in range(2)]

    assert [change(frame) for frame in range(5)] == [[False] * 2, [True, False], [False] * 2, [True, True], [False] * 2]
    inputs["valid"][0, 3] = False  # then it is the next one
    rebuilt, _ = model(**inputs)
    assert [change(frame) for frame in range(5)] == [
        [False] * 2,
        [True, False],
        [False, True],
        [False] * 2,
        [True, False],
    ]


def test_motion_is_metres_per_second_towards_where_attention_looks() -> None:
    """All points of all heads look 2 cells to x and 1 cell to -y per second: 2 m/s and -1.5 m/s, from either side."""
    model, inputs = decoder(long_dim=0, layers=1), clip(3, batch=1)
    inputs["targets"] = torch.tensor([[1]])
    attention = model.short.layers[0].attention
    with torch.no_grad():
        attention.sampling_offsets.weight.zero_()
        attention.sampling_offsets.bias.zero_()
        # The offset is linear in the code, and the code's feature 16 is the time gap.
        attention.sampling_offsets.weight[:, 0] = torch.tensor([2.0, -1.0]).repeat(2 * 2)
        model.time_code.linear.weight.zero_()
        model.time_code.linear.bias.zero_()
        model.time_code.linear.weight[0, 16] = 1.0
        model.short.query.zero_()
        model.short.position.zero_()
    _, motion = model(**inputs)
    torch.testing.assert_close(motion, torch.tensor([2.0, -1.5])[None, None, :, None, None].expand_as(motion))


def test_clips_of_one_frame_are_refused() -> None:
    inputs = clip()
    one = {key: value[:, :1] for key, value in inputs.items() if key != "targets"}
    with pytest.raises(ValueError, match="one frame"):
        decoder()(**one, targets=torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one branch"):
        VoxelDecoder(GRID, 4, short_dim=0, long_dim=0)
