"""``voxel_sample`` against ``torch.nn.functional.grid_sample``, from both layouts of the volume."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case
from mim4d import ops
from mim4d.reference import voxel_sample as reference

# name -> (C, Z, Y, X), points (N, 3). What the models do: render rays, warp a volume onto another frame.
PRESETS = {
    "rays": ((32, 5, 128, 128), lambda g: rays(g, 512, 96)),
    "warp": ((32, 5, 128, 128), lambda g: warp(5, 128, 128)),
    "uniform": ((32, 5, 128, 128), lambda g: torch.rand(49152, 3, generator=g) * 2 - 1),
    "tiny": ((4, 2, 8, 8), lambda g: torch.rand(64, 3, generator=g) * 2 - 1),
}


def rays(g: torch.Generator, count: int, samples: int) -> Tensor:
    """Samples along rays that leave six cameras in the middle of the scene."""
    origin = 0.02 * torch.randn(6, 3, generator=g)[torch.arange(count) % 6]
    direction = F.normalize(torch.randn(count, 3, generator=g) * torch.tensor([1.0, 1.0, 0.2]), dim=-1)
    return (origin[:, None] + direction[:, None] * torch.linspace(0.02, 1.2, samples)[:, None]).flatten(0, 1)


def warp(Z: int, Y: int, X: int) -> Tensor:
    """The centres of all voxels, turned by a few degrees and moved by a few voxels."""
    axes = ((2 * torch.arange(n) + 1) / n - 1 for n in (Z, Y, X))
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack((0.998 * x - 0.06 * y + 0.05, 0.06 * x + 0.998 * y - 0.03, z + 0.02), -1).reshape(-1, 3)


def cases(preset: str, device: str) -> Iterator[Case]:
    g = torch.Generator().manual_seed(0)
    shape, make = PRESETS[preset]
    points = make(g)[None].to(device)
    volume = torch.randn(1, *shape, generator=g).to(device)
    cotangent = torch.randn(1, points.shape[1], shape[0], generator=g).to(device)
    channels_last = volume.contiguous(memory_format=torch.channels_last_3d)
    args = (volume.double(), points.double(), 0, 0, False)

    def grid_sample(v: Tensor, p: Tensor) -> Tensor:
        return F.grid_sample(v, p[:, :, None, None], align_corners=False)[..., 0, 0].transpose(1, 2)

    rivals = {
        "grid_sample": (grid_sample, volume),
        "grid_sample, channels last": (grid_sample, channels_last),
        "mim4d": (ops.voxel_sample, volume),
        "mim4d, channels last": (ops.voxel_sample, channels_last),
    }
    moved = 4 * (volume.numel() + points.numel() + cotangent.numel())
    yield Case(
        "voxel_sample",
        preset,
        "forward",
        {name: lambda f=f, v=v: f(v, points) for name, (f, v) in rivals.items()},
        lambda: reference.voxel_sample(*args),
        tolerance=5e-6,
        bytes=moved,
    )
    yield Case(
        "voxel_sample",
        preset,
        "backward",
        {name: backward(f, v, points, cotangent) for name, (f, v) in rivals.items()},
        lambda: reference.voxel_sample_backward(cotangent.double(), *args, [True, True]),
        tolerance=5e-6,
        bytes=2 * moved,
    )


def backward(
    f: Callable[[Tensor, Tensor], Tensor], volume: Tensor, points: Tensor, cotangent: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """The gradients of volume and points; the forward runs once, outside of what is timed."""
    leaves = volume.detach().requires_grad_(), points.detach().requires_grad_()
    out = f(*leaves)
    return lambda: torch.autograd.grad(out, leaves, cotangent, retain_graph=True)
