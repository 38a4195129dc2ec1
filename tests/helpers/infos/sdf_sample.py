"""``sdf_sample``: a pure function without gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helpers.infos._reading import MODES, PADDINGS
from helpers.infos._scene import BOX, composite, decoder, field, opacity, rays
from helpers.op_info import Odd, OpInfo, Sample, WrongCall
from mim4d import ops

NAMES = ("volume", "origins", "directions", "near", "far", "sdf_weights")


def build(
    generator: torch.Generator,
    B: int = 2,
    R: int = 4,
    U: int = 9,
    I: int = 5,
    C: int = 3,
    H: int = 4,
    G: int = 2,
    layers: int = 2,
    shape: tuple[int, int, int] = (2, 4, 5),
    jitter: bool = False,
    **options: Any,
) -> Sample:
    origins, directions = rays(generator, B, R)
    rand = lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64)
    near = rand(B, R) * 0.1
    far = near + 0.2 + rand(B, R)
    volume = rand(B, C, *shape) - 0.5
    options |= {"aabb": BOX, "n_uniform": U, "n_importance": I, "jitter": rand(B, R, 2) if jitter else None}
    return Sample("", (volume, origins, directions, near, far, decoder(generator, C, 1 + G, H, layers)), options)


def oracle(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    sdf_weights: list[Tensor],
    aabb: Any,
    jitter: Tensor | None = None,
    n_uniform: int = 72,
    n_importance: int = 24,
    sharpness: float = 64.0,
    mode: str = "trilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """METHOD section 6, "Samples": section by section, and for each fraction the last section that begins below it."""
    U, I = n_uniform, n_importance
    place = torch.linspace(0, 1, U + 1, dtype=near.dtype).expand(*near.shape, U + 1)
    if jitter is not None:
        middle = (place[..., 1:] + place[..., :-1]) / 2
        low, high = torch.cat([place[..., :1], middle], -1), torch.cat([middle, place[..., -1:]], -1)
        place = low + (high - low) * jitter[..., :1]
    edge = near[..., None] + (far - near).clamp(min=0)[..., None] * place
    if I == 0:
        return edge
    start = edge[..., :U]
    p = origins[:, :, None] + directions[:, :, None] * start[..., None]
    sdf = field(volume, p, sdf_weights, aabb, mode, padding_mode, align_corners)[1][..., 0]
    alphas, previous = [], torch.zeros_like(near)
    for i in range(U - 1):
        delta = start[..., i + 1] - start[..., i]
        quotient = (sdf[..., i + 1] - sdf[..., i]) / (delta + 1e-5)
        slope = torch.minimum(quotient, previous).clamp(-1000.0, 0.0)
        previous = quotient
        m = (sdf[..., i] + sdf[..., i + 1]) / 2
        alphas.append(opacity(m, slope * delta / 2, sharpness))
    weights = composite(torch.stack([*alphas, torch.zeros_like(near)], -1))
    weights[..., -1] = 0.0
    weights = weights + (1e-5 - weights.sum(-1, keepdim=True)).clamp(min=0) / U
    cdf = torch.cat([torch.zeros_like(near)[..., None], weights.cumsum(-1)], -1) / weights.sum(-1, keepdim=True)
    fine = []
    for j in range(I + 1):
        u = (j + (torch.full_like(near, 0.5) if jitter is None else jitter[..., 1])) / (I + 1)
        i = (cdf <= u[..., None]).long().cumsum(-1).argmax(-1).clamp(max=U - 1)[..., None]
        first, width = (x.gather(-1, i)[..., 0] for x in (cdf, cdf.diff(dim=-1)))
        share = torch.where(width > 0, (u - first) / width, 0.0)
        fine.append(edge.gather(-1, i)[..., 0] + edge.diff(dim=-1).gather(-1, i)[..., 0] * share)
    starts = torch.cat([start, torch.stack(fine[:I], -1)], -1).sort(-1).values
    return torch.cat([starts, torch.maximum(edge[..., U], fine[I])[..., None]], -1)


def wrong() -> list[WrongCall]:
    made = build(torch.Generator().manual_seed(0))
    good = {**dict(zip(NAMES, made.args, strict=True)), **made.kwargs}
    volume, far = good["volume"], good["far"]
    rows: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("rank", {"volume": volume[0]}, ValueError, r"volume has shape .*, wanted \(B, C, Z, Y, X\)"),
        ("batch", {"origins": torch.zeros(3, 4, 3)}, ValueError, r"origins has shape \(3, 4, 3\), wanted \(2, R, 3\)"),
        ("nothing", {"directions": None}, TypeError, "directions is NoneType, wanted a Tensor"),
        ("rays", {"near": torch.zeros(2, 3)}, ValueError, r"near has shape \(2, 3\), wanted \(2, 4\)"),
        ("narrow", {"far": far.float()}, TypeError, r"far is torch\.float32, wanted torch\.float64 as origins"),
        ("device", {"far": far.to("meta")}, ValueError, "far is on meta, wanted cpu as the volume"),
        ("no weight", {"sdf_weights": []}, ValueError, "sdf_weights holds 0 tensors"),
        ("jitter", {"jitter": torch.zeros(2, 4, 1)}, ValueError, r"jitter has shape \(2, 4, 1\), wanted \(2, 4, 2\)"),
        ("integers", {"jitter": torch.zeros(2, 4, 2).int()}, TypeError, r"jitter is torch\.int32, wanted a float"),
        ("no section", {"n_uniform": 0}, ValueError, "n_uniform is 0, wanted at least 1"),
        ("negative", {"n_importance": -1}, ValueError, "n_importance is -1, wanted at least 0"),
        ("sharpness", {"sharpness": 0.0}, ValueError, r"sharpness is 0\.0, wanted a positive number"),
        ("box", {"aabb": (0, 0, 0)}, ValueError, "aabb is .*, wanted xmin"),
        ("mode", {"mode": "nearest"}, ValueError, "mode is 'nearest', wanted one of trilinear"),
    ]  # fmt: skip
    return [WrongCall(name, (), good | change, error, words) for name, change, error, words in rows]


def odd() -> list[Odd]:
    """A broken ray breaks no other."""
    made = build(torch.Generator().manual_seed(1))
    volume, origins, *rest = made.args
    broken = origins.clone()
    broken[0, 1], broken[0, 3] = torch.nan, torch.inf
    free = torch.zeros(2, 4, 1, dtype=torch.bool)
    free[0, [1, 3]] = True
    return [Odd("broken-ray", Sample("", (volume, broken, *rest), made.kwargs), made, free=(free,), gradients=False)]


INFO = OpInfo(
    op="sdf_sample",
    function=ops.sdf_sample,
    build=build,
    oracle=oracle,
    cases={
        **{mode: {"mode": mode, "jitter": True} for mode in MODES},
        "border": {"padding_mode": "border", "align_corners": True},
        "tricubic-border": {"mode": "tricubic", "padding_mode": "border", "align_corners": True, "shape": (3, 1, 4)},
        "defaults": {"U": 72, "I": 24, "R": 2},
        "known-widths": {"C": 32, "H": 16, "G": 16, "layers": 3, "jitter": True},
        "one-section": {"U": 1, "I": 3},
        "one-of-each": {"U": 1, "I": 1, "jitter": True},
        "two-sections": {"U": 2, "I": 4, "sharpness": 32.0},
        "no-importance": {"U": 3, "I": 0, "jitter": True},
    },
    edges={
        "no-ray": {"R": 0},
        "no-item": {"B": 0, "jitter": True},
        "one-of-all": {"B": 1, "R": 1, "U": 1, "I": 0, "C": 1, "H": 1, "G": 0, "shape": (1, 1, 1)},
    },
    tiny={},
    growing=(
        {"B": 2, "R": 7, "H": 6, "C": 5, "shape": (4, 11, 13)},
        {"B": 4, "R": 5, "H": 6, "C": 5, "shape": (3, 5, 6)},
        {"B": 5, "R": 8, "H": 6, "C": 5, "shape": (5, 6, 7)},
    ),
    big={"B": 1, "R": 4096},
    ranges={
        "B": (0, 2),
        "R": (0, 5),
        "U": (1, 12),
        "I": (0, 7),
        "C": (1, 9),
        "H": (1, 9),
        "G": (0, 5),
        "layers": (2, 4),
        "shape": ((2, 4, 5), (1, 1, 1), (3, 1, 7)),
        "jitter": (False, True),
        "mode": MODES,
        "padding_mode": PADDINGS,
        "align_corners": (False, True),
    },
    order=0,
    narrow=("volume", "sdf_weights"),
    coordinates=("origins", "directions", "near", "far"),
    meta=lambda arguments: {"dtype": arguments["volume"].dtype, "mode": arguments.get("mode", "trilinear")},
    wrong=wrong,
    odd=odd,
)
