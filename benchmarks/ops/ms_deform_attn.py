"""``ms_deform_attn`` against the ``grid_sample`` formula, deformops, mmcv, Deformable DETR and transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import oracle, ours, peers
from benchmarks.case import Arguments, Entry, Inputs, Preset, Rival
from benchmarks.inputs import clear, near_kink, normal, uniform

CPU, CUDA = ("cpu",), ("cuda",)
DETR = ((100, 134), (50, 67), (25, 34), (13, 17))  # an 800 x 1066 image at strides 8 to 64


def preset(what: str, levels: Sequence[tuple[int, int]], heads: int, points: int, dim: int = 32, **more: Any) -> Preset:
    options = {name: more.pop(name) for name in ("devices", "compiled") if name in more}
    return Preset(what, {"levels": levels, "heads": heads, "points": points, "dim": dim, **more}, **options)


BEV = [(180, 180), (90, 90), (45, 45), (23, 23)]
FPN = [(116, 200), (58, 100), (29, 50), (15, 25)]  # a 928 x 1600 image at strides 8 to 64
PRESETS = {
    "mim4d_bev_64": preset(
        "a quarter of MIM4D's queries: one level, 4 heads, 4 points", [(64, 64)], 4, 4, devices=CPU
    ),
    "mim4d_bev_64_uniform": preset("the same, points anywhere", [(64, 64)], 4, 4, uniform=True, devices=CPU),
    "detr_encoder_small": preset(
        "Deformable DETR's encoder, a 200 x 266 image", [(25, 34), (13, 17), (7, 9), (4, 5)], 8, 4, devices=CPU
    ),
    "mim4d_bev_128": preset(
        "MIM4D at 0.1 m: 128x128 queries, 4 heads, 4 points", [(128, 128)], 4, 4, devices=(*CPU, *CUDA)
    ),
    "mim4d_bev_180": preset("MIM4D at 0.075 m: 180x180 queries, 4 heads, 4 points", [(180, 180)], 4, 4, devices=CUDA),
    "mim4d_bev_180_uniform": preset("the same, points anywhere", [(180, 180)], 4, 4, uniform=True, devices=CUDA),
    "mim4d_decoder_128": preset(
        "MIM4D's short branch: 128x128 queries, 2 frames as levels, 4 heads, 4 points", [(128, 128)] * 2, 4, 4,
        bev=True, devices=CUDA,
    ),
    "bev_180_8h4L8p": preset("180x180 queries, 8 heads, 4 levels, 8 points", BEV, 8, 8, bev=True, devices=CUDA),
    "bevformer_cross_10k": preset(
        "BEVFormer's cross attention: 10,000 queries, 8 heads, 4 levels, 8 points", FPN, 8, 8, queries=10000,
        uniform=True, devices=CUDA,
    ),
    "bevformer_cross_6_cameras": preset(
        "the same, 2,500 queries for each of 6 cameras", FPN, 8, 8, batch=6, queries=2500, uniform=True, devices=CUDA
    ),
    "detr_encoder": preset("Deformable DETR's encoder, an 800 x 1066 image", DETR, 8, 4, devices=CUDA),
    "detr_decoder": preset(
        "Deformable DETR's decoder, 300 queries on an 800 x 1066 image", DETR, 8, 4, queries=300, uniform=True,
        devices=CUDA,
    ),
    "rtdetr_decoder": preset(
        "RT-DETR's decoder, 300 queries on a 640 x 640 image", [(80, 80), (40, 40), (20, 20)], 8, 4, queries=300,
        uniform=True, devices=CUDA,
    ),
    "tiny": preset("for CI", [(4, 3), (2, 5)], 2, 2, dim=4),
}  # fmt: skip


def inputs(sizes: Mapping[str, Any], g: torch.Generator) -> Inputs:
    levels, M, P, B = sizes["levels"], sizes["heads"], sizes["points"], sizes.get("batch", 1)
    L, cells = len(levels), [h * w for h, w in levels]
    grids = levels[:1] if "bev" in sizes else levels
    centres = [
        torch.stack(torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")[::-1], -1)
        for h, w in grids
    ]
    reference = torch.cat([c.reshape(-1, 2) for c in centres]).double()  # (Q, 2) every cell of the queries' maps
    Q = sizes.get("queries", len(reference))
    size = torch.tensor([(w, h) for h, w in levels], dtype=torch.float64)[:, None]  # (L, 1, 2)
    if "uniform" in sizes:
        location = 1.1 * uniform(g, B, Q, M, L, P, 2) - 0.05
    else:  # as training starts: a head looks in one direction, its points one cell further each; then it learns
        angle = torch.arange(M, dtype=torch.float64) * (2 * math.pi / M)
        ahead = torch.stack([angle.cos(), angle.sin()], -1)[:, None, None] * torch.arange(1, P + 1)[:, None]
        location = reference[:, None, None, None] + (ahead + 0.7 * normal(g, B, Q, M, L, P, 2)) / size
    location = clear(location, lambda x: near_kink(2 * x - 1, size), 2e-5)
    weights = normal(g, B, Q, M, L * P).softmax(-1).view(B, Q, M, L, P)
    args = {
        "value": normal(g, B, sum(cells), M, sizes["dim"]),
        "spatial_shapes": torch.tensor(levels),
        "level_start_index": torch.tensor([sum(cells[:i]) for i in range(L)]),
        "sampling_locations": location,
        "attention_weights": weights,
    }
    return Inputs(args, ("value", "sampling_locations", "attention_weights"), ("value",))


def exact(value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor, **_: Tensor):
    _, _, M, D = value.shape
    B, Q, _, _, P, _ = sampling_locations.shape
    out, start = value.new_zeros(B * M, Q, D), 0
    for level, (H, W) in enumerate(spatial_shapes.tolist()):
        grid = value[:, start : start + H * W].transpose(1, 2).reshape(B * M, H, W, D)
        place = sampling_locations[:, :, :, level].transpose(1, 2).reshape(B * M, Q * P, 2)
        seen = oracle.read(grid, 2 * place - 1).view(B * M, Q, P, D)
        share = attention_weights[:, :, :, level].transpose(1, 2).reshape(B * M, Q, P, 1)
        out = out + (seen * share).sum(2)
        start += H * W
    return [out.view(B, M, Q, D).transpose(1, 2).reshape(B, Q, M * D)]


def formula(levels: list[tuple[int, int]], args: dict[str, Tensor]) -> Tensor:
    """Deformable DETR's formula in stock torch: a ``grid_sample`` for each level, then the weighted sum of all
    points."""
    value, locations, weights = (args[k] for k in ("value", "sampling_locations", "attention_weights"))
    B, _, M, D = value.shape
    Q = locations.shape[1]
    grids = value.to(locations.dtype).split([h * w for h, w in levels], 1)
    seen = [
        F.grid_sample(
            grid.permute(0, 2, 3, 1).reshape(B * M, D, h, w),
            (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1),  # (B*M, Q, P, 2)
            align_corners=False,
        )
        for level, (grid, (h, w)) in enumerate(zip(grids, levels, strict=True))
    ]  # L of (B*M, D, Q, P)
    share = weights.to(locations.dtype).transpose(1, 2).flatten(0, 1).flatten(2).unsqueeze(1)  # (B*M, 1, Q, L*P)
    out = (torch.cat(seen, -1) * share).sum(-1)  # (B*M, D, Q)
    return out.view(B, M * D, Q).transpose(1, 2).to(value.dtype)


def eager(**args: Any) -> Tensor:
    return formula(args["spatial_shapes"], args)


def rivals(device: str) -> list[Rival]:
    compiled_formula = Rival(
        "compiled grid_sample formula",
        lambda device: ours.compile_whole(eager, device),
        prepare=peers.known_levels,
        compiled=True,
    )
    return [
        Rival("grid_sample formula", lambda device: eager, prepare=peers.known_levels),
        *ours.of("ms_deform_attn", 1)(device),
        ours.compiled("ms_deform_attn"),
        *([compiled_formula] if device == "cuda" else []),
        peers.deformops(),
        peers.mmcv(),
        peers.deformable_detr(),
        peers.transformers(),
    ]


def flops(args: Arguments) -> int:
    return 2 * 5 * args["attention_weights"].numel() * args["value"].shape[-1]  # four taps and the weight


ENTRIES = (Entry("ms_deform_attn", PRESETS, inputs, exact, rivals, flops, order=1),)
