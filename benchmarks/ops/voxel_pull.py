"""``voxel_pull`` against the ``grid_sample`` formula that holds what every camera sees of every voxel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import oracle, ours
from benchmarks.case import Arguments, Entry, Inputs, Preset, Rival
from benchmarks.inputs import CAMERAS, HALF_HIGH, HALF_WIDE, MARGIN, clear, near_kink, normal, uniform, voxel_centres

CPU, CUDA = ("cpu",), ("cuda",)
FPN = ((116, 200), (58, 100), (29, 50), (15, 25))  # a 928 x 1600 image at strides 8 to 64

PRESETS = {
    "mim4d_pull_32": Preset(
        "a sixteenth of MIM4D's voxels at 0.1 m, six cameras, two levels",
        {"grid": (5, 32, 32), "levels": FPN[2:], "depths": 32, "channels": 32},
        devices=CPU,
    ),
    "uniform_pull_32": Preset(
        "as many voxels, seen anywhere",
        {"grid": (5, 32, 32), "levels": FPN[2:], "depths": 32, "channels": 32, "uniform": True},
        devices=CPU,
    ),
    "mim4d_pull_2x128": Preset(
        "MIM4D at 0.1 m: 81,920 voxels, six cameras, two levels, 128 channels",
        {"grid": (5, 128, 128), "levels": FPN[2:], "depths": 64, "channels": 128},
        devices=(),
    ),
    "mim4d_pull_128": Preset(
        "MIM4D at 0.1 m: 81,920 voxels, six cameras, four levels, 128 channels",
        {"grid": (5, 128, 128), "levels": FPN, "depths": 64, "channels": 128},
        devices=CUDA,
    ),
    "uniform_pull_128": Preset(
        "as many voxels, seen anywhere",
        {"grid": (5, 128, 128), "levels": FPN, "depths": 64, "channels": 128, "uniform": True},
        devices=CUDA,
    ),
    "tiny": Preset("for CI", {"grid": (2, 4, 4), "levels": ((4, 5), (2, 3)), "depths": 3, "channels": 3}),
}


def inputs(sizes: Mapping[str, Any], g: torch.Generator) -> Inputs:
    levels, D, C = sizes["levels"], sizes["depths"], sizes["channels"]
    V = math.prod(sizes["grid"])
    seen = 2.4 * uniform(g, CAMERAS, V, 3) - 1.2 if "uniform" in sizes else rig_views(sizes["grid"])
    axes = [[w for _, w in levels], [h for h, _ in levels], [D]]
    uvd = torch.stack([clear(seen[..., i], _bad(axes[i]), 2e-5) for i in range(3)], -1)
    args = {
        "features": [normal(g, 1, CAMERAS, C, h, w) for h, w in levels],
        "depth_probs": [normal(g, 1, CAMERAS, D, h, w).softmax(2) for h, w in levels],
        "uvd": uvd[None],
    }
    return Inputs(args, ("features", "depth_probs", "uvd"), ("features", "depth_probs"))


def _bad(sizes: Sequence[int]) -> Any:
    """Kinks of every level along one axis, and the border at which a camera stops to count."""

    def bad(u: Tensor) -> Tensor:
        return torch.stack([near_kink(u, size) for size in sizes]).any(0) | ((u.abs() - 1).abs() < MARGIN)

    return bad


def rig_views(grid: Sequence[int]) -> Tensor:
    """(6, V, 3): where six cameras see the voxels of the model's box; a voxel behind a camera is far outside."""
    x, y, z = (voxel_centres(grid) * torch.tensor([51.2, 51.2, 4.0]) + torch.tensor([0.0, 0.0, 1.0])).unbind(-1)
    yaw = torch.arange(CAMERAS, dtype=torch.float64).unsqueeze(1) * (2 * math.pi / CAMERAS)
    ahead, left = x * yaw.cos() + y * yaw.sin(), y * yaw.cos() - x * yaw.sin()
    front = ahead > 0.5
    ahead = torch.where(front, ahead, 1.0)
    u = -left / ahead / math.tan(HALF_WIDE)
    v = -(z - 1.6) / ahead / math.tan(HALF_HIGH)
    d = 2 * (ahead - 1) / 59 - 1
    return torch.where(front.unsqueeze(-1), torch.stack([u, v, d], -1), 3.0).clamp(-3, 3)


def exact(features: list[Tensor], depth_probs: list[Tensor], uvd: Tensor) -> list[Tensor]:
    place = uvd.flatten(0, 1)  # (B*N, V, 3)
    counts = (place.detach().abs() < 1).all(-1, keepdim=True)
    total: Any = 0
    for image, probs in zip(features, depth_probs, strict=True):
        seen = oracle.read(image.flatten(0, 1).permute(0, 2, 3, 1), place[..., :2])  # (B*N, V, C)
        belief = oracle.read(probs.flatten(0, 1).unsqueeze(-1), place)  # (B*N, V, 1)
        total = total + torch.where(counts, seen * belief, 0.0).unflatten(0, uvd.shape[:2]).sum(1)
    return [total.transpose(1, 2)]


def formula(features: list[Tensor], depth_probs: list[Tensor], uvd: Tensor) -> Tensor:
    """Stock torch: (cameras, C, voxels) for each level, masked, then the sum."""
    place = uvd.flatten(0, 1)
    counts = (place.abs() < 1).all(-1).unsqueeze(1)  # (B*N, 1, V)
    total: Any = 0
    for image, probs in zip(features, depth_probs, strict=True):
        image, column = image.flatten(0, 1).to(uvd.dtype), probs.flatten(0, 1).unsqueeze(1).to(uvd.dtype)
        seen = F.grid_sample(image, place[:, None, :, :2], align_corners=False)[:, :, 0]  # (B*N, C, V)
        belief = F.grid_sample(column, place[:, None, None], align_corners=False)[:, :, 0, 0]  # (B*N, 1, V)
        total = total + (seen * (belief * counts)).unflatten(0, uvd.shape[:2]).sum(1)
    return total.to(features[0].dtype)


def rivals(device: str) -> list[Rival]:
    return [
        Rival("grid_sample formula", lambda device: formula),
        *ours.of("voxel_pull", 1)(device),
        ours.compiled("voxel_pull"),
    ]


def flops(args: Arguments) -> int:
    """Four taps and the weight for each channel, eight taps of depth: of what the cameras see."""
    views = int((args["uvd"].abs() < 1).all(-1).sum())
    return 2 * views * len(args["features"]) * (5 * args["features"][0].shape[2] + 8)


ENTRIES = (Entry("voxel_pull", PRESETS, inputs, exact, rivals, flops, order=1),)
