"""``voxel_sample`` and ``voxel_sample_with_grad`` against ``torch.nn.functional.grid_sample``, in both layouts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import oracle, ours, peers
from benchmarks.case import Absent, Arguments, Entry, Inputs, Preset, Rival
from benchmarks.inputs import camera_rays, normal, off_kinks, ray_edges, to_box, uniform, voxel_centres

BOTH, CPU, CUDA = ("cpu", "cuda"), ("cpu",), ("cuda",)

# The volumes of MIM4D at 0.1 m (128 x 128) and 0.075 m (180 x 180); 96 samples on a ray.
PRESETS = {
    "mim4d_rays_128x96": Preset(
        "128 rays of six cameras, 96 samples each, in the 128x128 volume",
        {"volume": (32, 5, 128, 128), "rays": (128, 96)},
        devices=CPU,
        compiled=BOTH,
    ),
    "uniform_12288": Preset("as many points anywhere", {"volume": (32, 5, 128, 128), "uniform": 12288}, devices=CPU),
    "mim4d_rays_512x96": Preset(
        "512 rays of six cameras, 96 samples each, in the 128x128 volume",
        {"volume": (32, 5, 128, 128), "rays": (512, 96)},
    ),
    "uniform_49152": Preset("as many points anywhere", {"volume": (32, 5, 128, 128), "uniform": 49152}),
    **{
        f"{mode}_{name}": Preset(f"{what}, mode {mode}", {"volume": (32, 5, 128, 128), "mode": mode, **points})
        for mode in ("smoothstep", "bicubic", "tricubic")
        for name, what, points in (
            ("rays_512x96", "512 rays of 96 samples in the 128x128 volume", {"rays": (512, 96)}),
            ("uniform_49152", "as many points anywhere", {"uniform": 49152}),
        )
    },
    "mim4d_warp_128": Preset(
        "every voxel of the 128x128 volume seen from another frame",
        {"volume": (32, 5, 128, 128), "warp": True},
        devices=CUDA,
    ),
    "mim4d_rays_3072x96": Preset(
        "one render call: 3072 rays, 96 samples each, in the 180x180 volume",
        {"volume": (32, 5, 180, 180), "rays": (3072, 96)},
        devices=CUDA,
    ),
    "uniform_294912": Preset("as many points anywhere", {"volume": (32, 5, 180, 180), "uniform": 294912}, devices=CUDA),
    "tricubic_rays_32x96": Preset(
        "32 rays, read with 64 taps", {"volume": (32, 5, 128, 128), "rays": (32, 96), "mode": "tricubic"}, CPU
    ),
    "tricubic_rays_3072x96": Preset(
        "one render call, read with 64 taps",
        {"volume": (32, 5, 180, 180), "rays": (3072, 96), "mode": "tricubic"},
        devices=CUDA,
    ),
    "tiny": Preset("for CI", {"volume": (4, 3, 6, 5), "uniform": 48}),
}


KERNELS = {  # of the axes x, y, z
    "trilinear": (oracle.hat,) * 3,
    "smoothstep": (oracle.smooth,) * 3,
    "bicubic": (oracle.keys, oracle.keys, oracle.hat),
    "tricubic": (oracle.keys,) * 3,
}


def inputs(sizes: Mapping[str, Any], g: torch.Generator) -> Inputs:
    shape = sizes["volume"]
    if "rays" in sizes:
        count, samples = sizes["rays"]
        origins, directions = camera_rays(g, count)
        t = ray_edges(g, origins, directions, samples, shape[1:])[:, :-1]
        points = to_box(origins[:, None] + directions[:, None] * t[..., None]).reshape(-1, 3)
    elif "warp" in sizes:
        x, y, z = voxel_centres(shape[1:]).unbind(-1)
        points = torch.stack([0.998 * x - 0.06 * y + 0.05, 0.06 * x + 0.998 * y - 0.03, z + 0.02], -1)
    else:
        points = 2.1 * uniform(g, sizes["uniform"], 3) - 1.05
    args = {"volume": normal(g, 1, *shape), "points": off_kinks(points, shape[:0:-1])[None]}
    if "mode" in sizes:
        args["mode"] = sizes["mode"]
    return Inputs(args, ("volume", "points"), ("volume",))


def exact(volume: Tensor, points: Tensor, mode: str = "trilinear") -> list[Tensor]:
    return [oracle.read(volume.permute(0, 2, 3, 4, 1), points, *KERNELS[mode])]


def exact_with_grad(volume: Tensor, points: Tensor, mode: str = "trilinear") -> list[Tensor]:
    """The Jacobian by autograd, a channel at a time."""
    with torch.enable_grad():
        place = points if points.requires_grad else points.detach().requires_grad_()
        (features,) = exact(volume, place, mode)
        columns = [torch.autograd.grad(f.sum(), place, create_graph=True)[0] for f in features.unbind(-1)]
    return [features, torch.stack(columns, -2)]


def grid_sample(volume: Tensor, points: Tensor, mode: str = "trilinear") -> Tensor:
    """Stock torch: a half volume is widened, as autocast would. bicubic, which torch has of planes alone, reads every
    slice of z."""
    if mode == "smoothstep":
        raise Absent("torch has no smoothstep; at points that are moved, float32 errs by 9e-5")
    wide = volume.to(points.dtype)
    if mode == "bicubic":
        read = functools.partial(F.grid_sample, grid=points[:, :, None, :2], mode="bicubic", align_corners=False)
        z = ((points[..., 2] + 1) * volume.shape[2] - 1) / 2  # (B, N), in voxels
        shares = [(1 - (z - i).abs()).clamp(min=0)[:, None, :] for i in range(volume.shape[2])]
        out = sum(share * read(plane)[..., 0] for share, plane in zip(shares, wide.unbind(2), strict=True))
        return out.transpose(1, 2).to(volume.dtype)
    how = "bicubic" if mode == "tricubic" else "bilinear"
    out = F.grid_sample(wide, points[:, :, None, None], mode=how, align_corners=False)
    return out[..., 0, 0].transpose(1, 2).to(volume.dtype)


def grid_sample_with_grad(volume: Tensor, points: Tensor, mode: str = "trilinear") -> list[Tensor]:
    """The Jacobian costs one backward for each channel: what normals of features cost without the op."""
    with torch.enable_grad():
        place = points if points.requires_grad else points.detach().requires_grad_()
        features = grid_sample(volume, place, mode)
        columns = [torch.autograd.grad(f.sum(), place, create_graph=True)[0] for f in features.unbind(-1)]
    return [features, torch.stack(columns, -2).to(volume.dtype)]


def channels_last(args: Arguments) -> Arguments:
    return {**args, "volume": args["volume"].contiguous(memory_format=torch.channels_last_3d)}


def rivals(device: str) -> list[Rival]:
    native: Callable[[str], Callable[..., Tensor]] = lambda device: grid_sample
    return [
        Rival("grid_sample", native, order=2),
        Rival("grid_sample, channels last", native, order=2, prepare=channels_last),
        *ours.of("voxel_sample", 2)(device),
        *ours.of("voxel_sample", 2, prepare=channels_last, note=", channels last", native=True)(device),
        ours.compiled("voxel_sample"),
        peers.interpol(),
        peers.scipy(),
        peers.cupyx(),
    ]


def rivals_with_grad(device: str) -> list[Rival]:
    return [
        Rival("grid_sample, grad by channel", lambda device: grid_sample_with_grad),
        *ours.of("voxel_sample_with_grad", 1)(device),
        *ours.of("voxel_sample_with_grad", 1, prepare=channels_last, note=", channels last", native=True)(device),
        ours.compiled("voxel_sample_with_grad"),
    ]


def flops(args: Arguments) -> int:
    taps = {"bicubic": 32, "tricubic": 64}.get(args.get("mode", "trilinear"), 8)
    return 2 * taps * args["points"].shape[1] * args["volume"].shape[1]


# The rival calls a backward for each channel: a few rays keep it within seconds on a CPU.
RAYS_32 = Preset(
    "32 rays of six cameras, 96 samples each, in the 128x128 volume",
    {"volume": (32, 5, 128, 128), "rays": (32, 96)},
    devices=CPU,
)

ENTRIES = (
    Entry("voxel_sample", PRESETS, inputs, exact, rivals, flops, order=2),
    Entry(
        "voxel_sample_with_grad",
        {name: preset for name, preset in PRESETS.items() if name in ("mim4d_rays_3072x96", "uniform_294912", "tiny")}
        | {"mim4d_rays_32x96": RAYS_32},
        inputs,
        exact_with_grad,
        rivals_with_grad,
        lambda args: 4 * flops(args),
        order=1,
    ),
)
