"""``sdf_march`` and ``sdf_sample`` against eager torch with the normal by ``create_graph``, as NeuS and UniPAD
render."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import oracle, ours, peers
from benchmarks.case import Arguments, Entry, Inputs, Preset, Rival
from benchmarks.inputs import BOX, camera_rays, decoder, exits, normal, random_rays, ray_edges, to_box, uniform
from benchmarks.verify import TOLERANCES, Tolerance

CPU, CUDA = ("cpu",), ("cuda",)
# The decoders of MIM4D: 6 and 4 layers of 16, 16 geometry features.
NETS = {"hidden": 16, "geometry": 16, "layers": (6, 4)}

PRESETS = {
    "mim4d_render_64x96": Preset(
        "64 rays of six cameras, 96 samples, 128x128 volume",
        {"volume": (32, 5, 128, 128), "rays": 64, "samples": 96, **NETS},
        devices=CPU,
    ),
    "uniform_render_64x96": Preset(
        "as many rays from anywhere",
        {"volume": (32, 5, 128, 128), "rays": 64, "samples": 96, "uniform": True, **NETS},
        devices=CPU,
    ),
    "mim4d_render_256x96": Preset(
        "256 rays of six cameras, 96 samples, 128x128 volume",
        {"volume": (32, 5, 128, 128), "rays": 256, "samples": 96, **NETS},
        devices=CPU,
    ),
    "mim4d_render_3072x96": Preset(
        "a render call of MIM4D at 0.075 m, and of UniPAD: 6 x 512 rays, 96 samples, 180x180 volume",
        {"volume": (32, 5, 180, 180), "rays": 3072, "samples": 96, **NETS},
        devices=CUDA,
    ),
    "uniform_render_3072x96": Preset(
        "as many rays from anywhere",
        {"volume": (32, 5, 180, 180), "rays": 3072, "samples": 96, "uniform": True, **NETS},
        devices=CUDA,
    ),
    "mim4d_render_12288x96": Preset(
        "a render call of MIM4D at 0.1 m: 6 x 2048 rays, 96 samples, 128x128 volume",
        {"volume": (32, 5, 128, 128), "rays": 12288, "samples": 96, **NETS},
        devices=CUDA,
    ),
    "tiny": Preset(
        "for CI", {"volume": (3, 2, 5, 4), "rays": 5, "samples": 6, "hidden": 4, "geometry": 2, "layers": (3, 2)}
    ),
}


def scene(sizes: Mapping[str, Any], g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    C, H, G = sizes["volume"][0], sizes["hidden"], sizes["geometry"]
    origins, directions = (random_rays if "uniform" in sizes else camera_rays)(g, sizes["rays"])
    volume, sdf = normal(g, 1, *sizes["volume"]), decoder(g, C, 1 + G, H, sizes["layers"][0])
    # Half of the scene is inside: in empty space every opacity would be a difference of roundings.
    place = origins + directions * (0.5 * exits(origins, directions) * uniform(g, len(origins)))[:, None]
    feature = oracle.read(volume.permute(0, 2, 3, 4, 1), to_box(place)[None])[0]
    sdf[-3][0] -= oracle.layers(sdf, place, feature, 100.0)[:, 0].median()
    return volume, origins, directions, sdf, decoder(g, 6 + C + G, 3, H, sizes["layers"][1])


def march_inputs(sizes: Mapping[str, Any], g: torch.Generator) -> Inputs:
    volume, origins, directions, sdf, rgb = scene(sizes, g)
    edges = ray_edges(g, origins, directions, sizes["samples"], sizes["volume"][1:])
    args = {
        **{"volume": volume, "origins": origins[None], "directions": directions[None], "edges": edges[None]},
        **{"sdf_weights": sdf, "rgb_weights": rgb, "inv_s": torch.tensor(20.0).double(), "aabb": BOX},
    }
    names = ("volume", "origins", "directions", "sdf_weights", "rgb_weights", "inv_s")
    return Inputs(args, names, ("volume",), wide_result=True)


def sample_inputs(sizes: Mapping[str, Any], g: torch.Generator) -> Inputs:
    volume, origins, directions, sdf, _ = scene(sizes, g)
    near = torch.full_like(origins[:, 0], 0.005)
    args = {
        **{"volume": volume, "origins": origins[None], "directions": directions[None]},
        **{"near": near[None], "far": (near + 0.9 * exits(origins, directions))[None], "sdf_weights": sdf},
        **{"aabb": BOX, "jitter": uniform(g, 1, len(near), 2)},
        **{"n_uniform": sizes["samples"] * 3 // 4, "n_importance": sizes["samples"] // 4},
    }
    return Inputs(args, (), ("volume",), wide_result=True)


# ---- oracles, written out step by step


def exact_march(
    volume: Tensor, origins: Tensor, directions: Tensor, edges: Tensor, sdf_weights: list[Tensor],
    rgb_weights: list[Tensor], inv_s: Tensor, aabb: Sequence[float],
) -> list[Tensor]:  # fmt: skip
    B, R, S = edges.shape[0], edges.shape[1], edges.shape[2] - 1
    t, length = edges[..., :-1], edges.diff(dim=-1)
    with torch.enable_grad():
        point = (origins.unsqueeze(2) + directions.unsqueeze(2) * t.unsqueeze(-1)).reshape(-1, 3)
        point = point if point.requires_grad else point.requires_grad_()
        feature = oracle.read(volume.permute(0, 2, 3, 4, 1), _normalised(point, aabb).view(B, R * S, 3)).flatten(0, 1)
        decoded = oracle.layers(sdf_weights, point, feature, 100.0)
        slope = torch.autograd.grad(decoded[:, 0].sum(), point, create_graph=True)[0]  # (P, 3)
    ray = directions.unsqueeze(2).expand(B, R, S, 3).reshape(-1, 3)
    colour = oracle.layers(rgb_weights, point, torch.cat([ray, feature, slope, decoded[:, 1:]], 1), None)
    colour = 1 / (1 + torch.exp(-colour))
    fall = (ray * slope).sum(1).clamp(max=0).view(B, R, S)
    sdf = decoded[:, 0].view(B, R, S)
    enter, leave = (1 / (1 + torch.exp(-inv_s * (sdf + sign * fall * length / 2))) for sign in (-1, 1))
    alpha = ((enter - leave + 1e-5) / (enter + 1e-5)).clamp(0, 1)
    through, weights = torch.ones_like(alpha[..., 0]), []
    for i in range(S):
        weights.append(through * alpha[..., i])
        through = through * (1 - alpha[..., i] + 1e-7)
    w = torch.stack(weights, -1)
    rgb = torch.einsum("brs,brsc->brc", w, colour.view(B, R, S, 3))
    depth = torch.einsum("brs,brs->br", w, t) / (w.sum(-1) + 1e-10)
    return [rgb, depth, w.sum(-1), sdf, slope.view(B, R, S, 3), w]


def exact_sample(
    volume: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, sdf_weights: list[Tensor],
    aabb: Sequence[float], jitter: Tensor, n_uniform: int, n_importance: int,
) -> list[Tensor]:  # fmt: skip
    B, R = near.shape
    U, I = n_uniform, n_importance
    grid = torch.linspace(0, 1, U + 1, dtype=near.dtype, device=near.device)
    middles = (grid[1:] + grid[:-1]) / 2
    low, high = torch.cat([grid[:1], middles]), torch.cat([middles, grid[-1:]])
    place = low + (high - low) * jitter[..., :1]  # (B, R, U+1)
    coarse = near[..., None] * (1 - place) + far[..., None] * place
    t = coarse[..., :U]
    point = (origins.unsqueeze(2) + directions.unsqueeze(2) * t.unsqueeze(-1)).reshape(-1, 3)
    feature = oracle.read(volume.permute(0, 2, 3, 4, 1), _normalised(point, aabb).view(B, R * U, 3)).flatten(0, 1)
    sdf = oracle.layers(sdf_weights, point, feature, 100.0)[:, 0].view(B, R, U)
    weights, through, before = [], torch.ones_like(near), torch.zeros_like(near)
    for i in range(U - 1):
        length = t[..., i + 1] - t[..., i]
        slope = (sdf[..., i + 1] - sdf[..., i]) / (length + 1e-5)
        steep, before = torch.minimum(slope, before).clamp(-1000, 0), slope
        middle = (sdf[..., i] + sdf[..., i + 1]) / 2
        enter, leave = (1 / (1 + torch.exp(-64.0 * (middle + sign * steep * length / 2))) for sign in (-1, 1))
        alpha = ((enter - leave + 1e-5) / (enter + 1e-5)).clamp(0, 1)
        weights.append(alpha * through)
        through = through * (1 - alpha + 1e-7)
    w = torch.stack([*weights, torch.zeros_like(near)], -1)
    w = w + (1e-5 - w.sum(-1, keepdim=True)).clamp(min=0) / U
    mass = torch.cat([torch.zeros_like(w[..., :1]), w.cumsum(-1)], -1) / w.sum(-1, keepdim=True)  # (B, R, U+1)
    wanted = (torch.arange(I + 1, device=near.device, dtype=near.dtype) + jitter[..., 1:]) / (I + 1)  # (B, R, I+1)
    section = ((mass.unsqueeze(-2) <= wanted.unsqueeze(-1)).sum(-1) - 1).clamp(0, U - 1)
    m0, m1 = (mass.gather(-1, section + k) for k in range(2))
    e0, e1 = (coarse.gather(-1, section + k) for k in range(2))
    fine = e0 + (e1 - e0) * torch.where(m1 > m0, (wanted - m0) / (m1 - m0), torch.zeros_like(m0)).clamp(0, 1)
    end = torch.maximum(coarse[..., -1:], fine[..., -1:])
    return [torch.cat([torch.cat([t, fine[..., :-1]], -1).sort(-1).values, end], -1)]


# ---- stock torch


def _normalised(point: Tensor, aabb: Sequence[float]) -> Tensor:
    low, high = (torch.tensor(x, dtype=point.dtype, device=point.device) for x in (aabb[:3], aabb[3:]))
    return 2 * (point - low) / (high - low) - 1


def _decode(weights: Sequence[Tensor], point: Tensor, condition: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    h = F.linear(point, weights[0], weights[1])
    for i in range(2, len(weights), 4):
        A, b, U, c = weights[i : i + 4]
        h = F.linear(h + F.linear(condition, U, c), A, b)
        h = act(h) if i + 4 < len(weights) else h
    return h


def _features(volume: Tensor, point: Tensor, aabb: Sequence[float]) -> Tensor:
    """point (B, R, S, 3) -> (B, R, S, C)"""
    place = _normalised(point, aabb).flatten(1, 2)[:, :, None, None]
    found = F.grid_sample(volume.to(point.dtype), place, align_corners=False)[..., 0, 0]  # (B, C, P)
    return found.transpose(1, 2).unflatten(1, point.shape[1:3])


def _softplus(x: Tensor) -> Tensor:
    """torch's own threshold, 20, beyond which it is the identity, puts gradients off by 1e-8 in float64."""
    return F.softplus(x, beta=100, threshold=80)


def _cumprod(alpha: Tensor) -> Tensor:
    return alpha * torch.cumprod(F.pad(1 - alpha + 1e-7, (1, 0), value=1.0), -1)[..., :-1]


def eager_march(
    weigh: Callable[[Tensor], Tensor], volume: Tensor, origins: Tensor, directions: Tensor, edges: Tensor,
    sdf_weights: list[Tensor], rgb_weights: list[Tensor], inv_s: Tensor, aabb: Sequence[float],
) -> tuple[Tensor, ...]:  # fmt: skip
    """The usual renderer: ``grid_sample``, layers, the normal by autograd with a graph of its own."""
    t, length = edges[..., :-1], edges[..., 1:] - edges[..., :-1]
    training = torch.is_grad_enabled()
    with torch.enable_grad():
        point = origins[:, :, None] + directions[:, :, None] * t[..., None]  # (B, R, S, 3)
        point = point if point.requires_grad else point.requires_grad_()
        feature = _features(volume, point, aabb)
        decoded = _decode(sdf_weights, point, feature, _softplus)
        sdf, geometry = decoded[..., 0], decoded[..., 1:]
        ones = torch.ones_like(sdf)
        slope = torch.autograd.grad(sdf, point, ones, create_graph=training)[0]
    ray = directions[:, :, None].expand_as(point)
    condition = torch.cat([ray, feature, slope, geometry], -1)
    colour = torch.sigmoid(_decode(rgb_weights, point, condition, F.relu))
    half = -F.relu(-(ray * slope).sum(-1)) * length * 0.5
    enter, leave = torch.sigmoid((sdf - half) * inv_s), torch.sigmoid((sdf + half) * inv_s)
    alpha = ((enter - leave + 1e-5) / (enter + 1e-5)).clip(0, 1)
    weights = weigh(alpha)
    total = weights.sum(-1)
    return (weights[..., None] * colour).sum(2), (weights * t).sum(-1) / (total + 1e-10), total, sdf, slope, weights


@torch.no_grad()
def eager_sample(
    volume: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, sdf_weights: list[Tensor],
    aabb: Sequence[float], jitter: Tensor, n_uniform: int, n_importance: int,
) -> Tensor:  # fmt: skip
    """The usual sampler: equal sections, the SDF at their starts, the inverse of the distribution of their weights."""
    place = torch.linspace(0, 1, n_uniform + 1, dtype=near.dtype, device=near.device)
    middle = 0.5 * (place[1:] + place[:-1])
    low, high = torch.cat([place[:1], middle]), torch.cat([middle, place[-1:]])
    coarse = near[..., None] + (far - near)[..., None] * (low + (high - low) * jitter[..., :1])
    t = coarse[..., :-1]
    point = origins[:, :, None] + directions[:, :, None] * t[..., None]
    sdf = _decode(sdf_weights, point, _features(volume, point, aabb), _softplus)[..., 0]
    length = t[..., 1:] - t[..., :-1]
    slope = (sdf[..., 1:] - sdf[..., :-1]) / (length + 1e-5)
    slope = torch.minimum(slope, F.pad(slope, (1, 0))[..., :-1]).clip(-1000, 0)
    middle, half = 0.5 * (sdf[..., 1:] + sdf[..., :-1]), 0.5 * slope * length
    enter, leave = torch.sigmoid((middle - half) * 64.0), torch.sigmoid((middle + half) * 64.0)
    weight = F.pad(_cumprod(((enter - leave + 1e-5) / (enter + 1e-5)).clip(0, 1)), (0, 1))
    weight = weight + F.relu(1e-5 - weight.sum(-1, keepdim=True)) / n_uniform
    mass = F.pad(weight.cumsum(-1), (1, 0))
    u = (torch.arange(n_importance + 1, device=near.device) + jitter[..., 1:]) / (n_importance + 1) * mass[..., -1:]
    above = torch.searchsorted(mass, u, right=True).clip(1, n_uniform)
    m0, m1, e0, e1 = (x.gather(-1, i) for x in (mass, coarse) for i in (above - 1, above))
    fine = e0 + (e1 - e0) * torch.nan_to_num((u - m0) / (m1 - m0), 0.0, 0.0, 0.0).clip(0, 1)
    starts = torch.cat([t, fine[..., :-1]], -1).sort(-1).values
    return torch.cat([starts, torch.maximum(coarse[..., -1:], fine[..., -1:])], -1)


def march_rivals(device: str) -> list[Rival]:
    return [
        Rival("create_graph eager", lambda device: lambda **args: eager_march(_cumprod, **args)),
        *ours.of("sdf_march", 1)(device),
        ours.compiled("sdf_march"),
        peers.nerfacc(eager_march),
    ]


def sample_rivals(device: str) -> list[Rival]:
    return [
        Rival("grid_sample eager", lambda device: eager_sample, order=0),
        *ours.of("sdf_sample", 0)(device),
        ours.compiled("sdf_sample"),
    ]


def march_flops(args: Arguments) -> int:
    """Two for each multiply-add: eight taps, the SDF and its reverse pass, eight taps of the normal, the colour."""
    samples = args["edges"].shape[0] * args["edges"].shape[1] * (args["edges"].shape[2] - 1)
    return 2 * samples * (16 * args["volume"].shape[1] + 2 * _macs(args["sdf_weights"]) + _macs(args["rgb_weights"]))


def sample_flops(args: Arguments) -> int:
    samples = args["near"].numel() * args["n_uniform"]
    return 2 * samples * (8 * args["volume"].shape[1] + _macs(args["sdf_weights"]))


def _macs(weights: Sequence[Tensor]) -> int:
    return sum(t.numel() for t in weights if t.dim() == 2)


# Gradients are sums over all samples of terms that cancel, through five sharp softplus layers (beta 100) and ReLUs, of
# which float32 sees a few on the other side. Measured, eager torch, reference and kernels alike: 1.1e-4, elements
# 1.3e-4 for 256 rays; 5.7e-4, elements 1.1e-3, in the biases of the first colour layers for 3072 (14 million ReLUs; on
# CPU and GPU the same two digits); the gradient of the one number inv_s 4e-5 to 3e-2, from seed to seed.
MARCH = {**TOLERANCES, torch.float32: Tolerance(1.2e-3, 3e-3, number=5e-2)}
# Where a section has next to no weight, its share of the distribution is the quotient of two roundings. Measured 9e-6
# and 9.5e-5 where rays start anywhere.
SAMPLE = {**TOLERANCES, torch.float32: Tolerance(4e-5, 4e-4)}

ENTRIES = (
    # A backward computes the forward again (nothing but its results is kept), then twice as much.
    Entry(
        "sdf_march", PRESETS, march_inputs, exact_march, march_rivals, march_flops, order=1,
        work={"backward": 3.0}, tolerance=MARCH,
    ),
    Entry("sdf_sample", PRESETS, sample_inputs, exact_sample, sample_rivals, sample_flops, order=0, tolerance=SAMPLE),
)  # fmt: skip
