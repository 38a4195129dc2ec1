"""``sdf_march``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.infos._reading import MODES, PADDINGS
from helpers.infos._scene import BOX, composite, decode, decoder, field, opacity, rays
from helpers.op_info import Odd, OpInfo, Sample, WrongCall
from mim4d import ops


def build(
    generator: torch.Generator,
    B: int = 2,
    R: int = 2,
    S: int = 4,
    C: int = 3,
    H: int = 4,
    G: int = 2,
    layers: int = 3,
    shape: tuple[int, int, int] = (2, 4, 5),
    inv_s: float = 7.0,
    **options: Any,
) -> Sample:
    origins, directions = rays(generator, B, R)
    edges = (torch.rand(B, R, S + 1, generator=generator, dtype=torch.float64) * 0.25).cumsum(-1)
    volume = torch.rand(B, C, *shape, generator=generator, dtype=torch.float64) - 0.5
    sdf = decoder(generator, C, 1 + G, H, layers)
    rgb = decoder(generator, 6 + C + G, 3, H, 2)
    sharpness = torch.tensor(inv_s, dtype=torch.float64)
    return Sample("", (volume, origins, directions, edges, sdf, rgb, sharpness), {"aabb": BOX, **options})


def oracle(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    edges: Tensor,
    sdf_weights: list[Tensor],
    rgb_weights: list[Tensor],
    inv_s: Tensor,
    aabb: Any,
    mode: str = "trilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    cos_anneal: float = 1.0,
) -> tuple[Tensor, ...]:
    """METHOD section 6 as it stands: the normal by autograd (``create_graph``), transmittance by a running product."""
    S, a = edges.shape[2] - 1, cos_anneal
    edges = edges.detach()
    t, delta = edges[..., :-1], edges[..., 1:] - edges[..., :-1]
    with torch.enable_grad():
        p = origins[:, :, None] + directions[:, :, None] * t[..., None]
        p = p if p.requires_grad else p.requires_grad_()
        f, y = field(volume, p, sdf_weights, aabb, mode, padding_mode, align_corners)
        sdf, geometry = y[..., 0], y[..., 1:]
        (n,) = torch.autograd.grad(sdf.sum(), p, create_graph=True)
    d = directions[:, :, None].expand(-1, -1, S, -1)
    colour = torch.sigmoid(decode(rgb_weights, p, torch.cat([d, f, n, geometry], -1), F.relu))
    cos = (d * n).sum(-1)
    c = -(F.relu(-0.5 * cos + 0.5) * (1 - a) + F.relu(-cos) * a)
    w = composite(opacity(sdf, c * delta / 2, inv_s))
    total = w.sum(-1)
    return (w[..., None] * colour).sum(2), (w * t).sum(-1) / (total + 1e-10), total, sdf, n, w


NAMES = ("volume", "origins", "directions", "edges", "sdf_weights", "rgb_weights", "inv_s")


def wrong() -> list[WrongCall]:
    made = build(torch.Generator().manual_seed(0), S=5)
    good = {**dict(zip(NAMES, made.args, strict=True)), **made.kwargs}
    volume, origins, edges = good["volume"], good["origins"], good["edges"]
    named = "wanted one of trilinear"
    rows: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("rank", {"volume": volume[:, 0]}, ValueError, r"volume has shape \(2, 2, 4, 5\), wanted \(B, C, Z, Y, X\)"),
        ("no voxel", {"volume": volume[:, :, :0]}, ValueError, "volume has .*, wanted C, Z, Y and X of at least 1"),
        ("integers", {"volume": volume.int()}, TypeError, r"volume is torch\.int32"),
        ("nothing", {"volume": None}, TypeError, "volume is NoneType, wanted a Tensor"),
        ("pairs", {"origins": origins[..., :2]}, ValueError, r"origins has shape \(2, 2, 2\), wanted \(2, R, 3\)"),
        ("narrow", {"origins": origins.float()}, TypeError, r"origins is torch\.float32, wanted torch\.float64"),
        ("device", {"origins": origins.to("meta")}, ValueError, "origins is on meta, wanted cpu"),
        ("rays", {"directions": torch.zeros(2, 4, 3)}, ValueError, r"directions has .*, wanted \(2, 2, 3\)"),
        ("ray of edges", {"edges": torch.zeros(2, 3, 6)}, ValueError, r"edges has .*, wanted \(2, 2, S \+ 1\)"),
        ("no edge", {"edges": edges[..., :0]}, ValueError, "edges has .*with S >= 0"),
        ("half edges", {"edges": edges.half()}, TypeError, r"edges is torch\.float16"),
        ("a tensor", {"sdf_weights": torch.zeros(3)}, TypeError, "sdf_weights is Tensor, wanted a list of Tensors"),
        ("9 weights", {"sdf_weights": [origins] * 9}, ValueError, r"sdf_weights holds 9 tensors, wanted 2 \+ 4"),
        ("6 weights", {"rgb_weights": [origins] * 6}, ValueError, "rgb_weights holds 6 tensors"),
        ("strings", {"rgb_weights": ["x"] * 10}, TypeError, r"rgb_weights\[0\] is str, wanted a Tensor"),
        ("number", {"inv_s": 20.0}, TypeError, "inv_s is float, wanted a Tensor"),
        ("one number", {"inv_s": torch.ones(1)}, ValueError, r"inv_s has shape \(1,\), wanted \(\)"),
        ("five", {"aabb": (0.0, 0, 0, 1, 1)}, ValueError, "aabb is .*, wanted xmin"),
        ("flat", {"aabb": (0.0, 0, 0, 1, 1, 0)}, ValueError, "aabb is .*, wanted xmin"),
        ("nan", {"aabb": (0.0, 0, 0, 1, 1, float("nan"))}, ValueError, "aabb is .*, wanted xmin"),
        ("mode", {"mode": "cubic"}, ValueError, f"mode is 'cubic', {named}"),
        ("padding", {"padding_mode": "wrap"}, ValueError, "padding_mode is 'wrap', wanted one of zeros"),
        ("anneal", {"cos_anneal": 1.5}, ValueError, r"cos_anneal is 1\.5, wanted a number in \[0, 1\]"),
    ]  # fmt: skip
    for name, i, shape in (
        ("sdf_weights", 4, "(4, 3)"),
        ("sdf_weights", 11, "(1 + G,)"),
        ("rgb_weights", 4, "(4, 11)"),
        ("rgb_weights", 6, "(3, 4)"),
    ):
        words = rf"{name}[{i}] has shape (9, 9), wanted {shape}".translate({ord(c): "\\" + c for c in "[]()+"})
        changed = list(good[name])
        changed[i] = torch.zeros(9, 9, dtype=torch.float64)
        rows.append((f"{name}[{i}]", {name: changed}, ValueError, words))
    single = {k: [t.float() for t in v] if isinstance(v, list) else v for k, v in good.items()}
    single = {k: v.float() if isinstance(v, Tensor) else v for k, v in single.items()}
    single["sdf_weights"][4] = single["sdf_weights"][4].double()
    rows.append(("wide weight", single, TypeError, r"sdf_weights\[4\] is torch\.float64, wanted float16, bfloat16 or"))
    return [WrongCall(name, (), good | change, error, words) for name, change, error, words in rows]


def odd() -> list[Odd]:
    """A broken ray breaks no other; cells beside the taps are not read."""
    made = build(torch.Generator().manual_seed(1), B=1, R=3)
    volume, origins, *rest = made.args
    found = []
    for name, value in (("nan", torch.nan), ("infinity", torch.inf)):
        broken = origins.clone()
        broken[0, 1] = torch.tensor([value, 0.0, value])
        ray = torch.tensor([False, True, False]).view(1, 3)
        free = (ray[..., None], ray, ray, ray[..., None], ray[..., None, None], ray[..., None])
        sample = Sample("", (volume, broken, *rest), made.kwargs)
        found.append(Odd(f"{name}-ray", sample, made, free=free, gradients=False))
    volume, origins, directions, edges, *rest = build(torch.Generator().manual_seed(2), B=1).args
    origins[:] = torch.tensor([-1.15, 0.03, 0.02])  # 0.4 cells before the low x face
    directions[:] = torch.tensor([0.0, 1.0, 0.0])
    edges = torch.linspace(0.01, 2, edges.shape[-1], dtype=torch.float64).expand_as(edges)  # out of the far y face
    for name, value in (("nan", torch.nan), ("infinity", torch.inf)):
        twins = []
        for x in (value, 0.0):
            cells = volume.clone()
            cells[..., 1:] = x
            twins.append(Sample("", (cells, origins, directions, edges, *rest), made.kwargs))
        found.append(Odd(f"{name}-beside-a-tap", *twins))
    return found


INFO = OpInfo(
    op="sdf_march",
    function=ops.sdf_march,
    build=build,
    oracle=oracle,
    cases={
        **{
            f"{mode}-{padding}": {"S": 3, "mode": mode, "padding_mode": padding, "align_corners": padding == "border"}
            for mode in MODES
            for padding in PADDINGS
        },
        "other-corners": {"S": 3, "align_corners": True},
        "annealing": {"R": 4, "cos_anneal": 0.3},
        "start-of-annealing": {"R": 4, "cos_anneal": 0.0},
        "smallest": {"C": 1, "H": 1, "G": 0, "layers": 2},
        "deep": {"C": 7, "H": 5, "G": 3, "layers": 6, "S": 1},
        "real-widths": {"B": 1, "R": 1, "S": 17, "C": 16, "H": 16, "G": 16, "layers": 6},
        "known-widths": {"R": 3, "S": 6, "C": 32, "H": 16, "G": 16},
        "known-widths-border": {"B": 1, "S": 3, "C": 32, "H": 16, "G": 16, "padding_mode": "border"},
        "long-rays": {"B": 1, "R": 1, "S": 99, "C": 32, "H": 16, "G": 16, "layers": 2},
    },
    edges={
        "no-sample": {"S": 0},
        "no-ray": {"R": 0},
        "no-item": {"B": 0},
        "one-of-all": {"B": 1, "R": 1, "S": 1, "C": 1, "H": 1, "G": 0, "layers": 2, "shape": (1, 1, 1)},
    },
    tiny={
        "trilinear": {"B": 1, "S": 2, "C": 2, "H": 2, "G": 1, "layers": 2, "shape": (2, 2, 2)},
        "tricubic": {"B": 1, "S": 2, "C": 1, "H": 2, "G": 1, "layers": 2, "shape": (2, 2, 2), "mode": "tricubic"},
    },
    growing=(
        {"B": 2, "R": 9, "S": 10, "C": 5, "H": 6, "G": 7, "layers": 2, "shape": (4, 13, 15)},
        {"B": 4, "R": 10, "S": 13, "C": 5, "H": 6, "G": 7, "layers": 2, "shape": (3, 5, 6)},
        {"B": 5, "R": 8, "S": 9, "C": 5, "H": 6, "G": 7, "layers": 2, "shape": (5, 6, 7)},
    ),
    big={"B": 1, "R": 1024, "S": 24, "layers": 2, "shape": (4, 32, 32)},
    ranges={
        "B": (0, 2),
        "R": (0, 5),
        "S": (0, 9),
        "C": (1, 9),
        "H": (1, 9),
        "G": (0, 5),
        "layers": (2, 4),
        "shape": ((2, 4, 5), (1, 1, 1), (3, 1, 7)),
        "inv_s": (0.5, 7.0, 30.0),
        "mode": MODES,
        "padding_mode": PADDINGS,
        "align_corners": (False, True),
        "cos_anneal": (0.0, 0.3, 1.0),
    },
    differentiable=("volume", "origins", "directions", "sdf_weights", "rgb_weights", "inv_s"),
    narrow=("volume", "sdf_weights", "rgb_weights"),
    coordinates=("origins", "directions", "edges"),
    meta=lambda arguments: {"dtype": arguments["volume"].dtype, "mode": arguments.get("mode", "trilinear")},
    wrong=wrong,
    odd=odd,
)
