"""``voxel_sample`` and ``voxel_sample_with_grad``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from helpers.infos._reading import MODES, PADDINGS, by_grid_sample, read_batch
from helpers.op_info import Odd, OpInfo, Sample, WrongCall
from mim4d import ops


def build(
    generator: torch.Generator,
    B: int = 2,
    C: int = 8,  # whole packs of channels, in every dtype
    Z: int = 3,
    Y: int = 4,
    X: int = 6,
    N: int = 7,
    shape: tuple[int, ...] | None = None,
    out: int = 2,
    mode: str = "trilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Sample:
    """Points (B, N, 3), or (B, *shape, 3), in and up to ``out`` cells around the grid; a tenth of a cell off every
    voxel centre, where linear interpolation has kinks, in any float dtype."""
    rand = lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64)
    size = torch.tensor([X, Y, Z])
    at = (B, *((N,) if shape is None else shape), 3)
    position = (rand(*at) * (size + 2 * out + 1)).floor() - out - 1 + 0.1 + 0.8 * rand(*at)
    u = 2 * position / (size - 1).clamp(min=1) - 1 if align_corners else (2 * position + 1) / size - 1
    volume = torch.randn(B, C, Z, Y, X, generator=generator, dtype=torch.float64)
    options = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    return Sample("", (volume, u), options)


def oracle(
    volume: Tensor,
    points: Tensor,
    mode: str = "trilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    if mode == "trilinear" and volume.numel() and points.numel():
        return by_grid_sample(volume, points, padding_mode, align_corners)
    return read_batch(volume, points, mode, padding_mode, align_corners)


def oracle_with_grad(volume: Tensor, points: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The Jacobian row by row, by autograd of the dense product."""
    options = {"mode": "trilinear", "padding_mode": "zeros", "align_corners": False, **options}
    with torch.enable_grad():
        points = points if points.requires_grad else points.detach().requires_grad_()
        features = read_batch(volume, points, options["mode"], options["padding_mode"], options["align_corners"])
        rows = [torch.autograd.grad(f.sum(), points, create_graph=True)[0] for f in features.unbind(-1)]
    jacobian = torch.stack(rows, -2) if rows else points.new_zeros(*points.shape[:-1], 0, 3)
    return features, jacobian


def wrong() -> list[WrongCall]:
    volume, points = torch.zeros(2, 3, 3, 4, 6), torch.zeros(2, 7, 3)
    named = "wanted one of trilinear, smoothstep, bicubic, tricubic"
    changes: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("rank", {"volume": volume[:, 0]}, ValueError, r"volume has shape \(2, 3, 4, 6\), wanted \(B, C, Z, Y, X\)"),
        ("no voxel", {"volume": volume[..., :0]}, ValueError, "volume has .*, wanted at least one voxel"),
        ("integers", {"volume": volume.long()}, TypeError, r"volume is torch\.int64, wanted a floating dtype"),
        ("list", {"volume": [1.0]}, TypeError, "volume is list, wanted a Tensor"),
        ("nothing", {"points": None}, TypeError, "points is NoneType, wanted a Tensor"),
        ("pairs", {"points": points[..., :2]}, ValueError, r"points has shape \(2, 7, 2\), wanted \(2, ..., 3\)"),
        ("batch", {"points": points[:1]}, ValueError, r"points has shape \(1, 7, 3\), wanted \(2, ..., 3\)"),
        ("wide points", {"points": points.double()}, TypeError, r"points is torch\.float64, wanted torch\.float32"),
        ("half points", {"points": points.bfloat16()}, TypeError, r"points is torch\.bfloat16, wanted torch\.float32"),
        ("device", {"points": points.to("meta")}, ValueError, "points is on meta, wanted cpu as volume"),
        ("mode", {"mode": "cubic"}, ValueError, f"mode is 'cubic', {named}"),
        ("padding", {"padding_mode": "reflection"}, ValueError, "padding_mode is 'reflection', wanted .*zeros, border"),
        ("one dimension more", {"volume": volume[None]}, ValueError, r"volume has shape \(1, 2, 3, 3, 4, 6\), wanted"),
        ("no dimension", {"volume": torch.tensor(1.0)}, ValueError, r"volume has shape \(\), wanted \(B, C, Z, Y, X\)"),
        ("no slice", {"volume": volume[:, :, :0]}, ValueError, "volume has .*, wanted at least one voxel"),
        ("complex", {"volume": volume.cfloat()}, TypeError, r"volume is torch\.complex64, wanted a floating dtype"),
        ("bool", {"volume": volume.bool()}, TypeError, r"volume is torch\.bool, wanted a floating dtype"),
        ("no volume", {"volume": None}, TypeError, "volume is NoneType, wanted a Tensor"),
        ("numbers", {"points": [[[0.0, 0.0, 0.0]]]}, TypeError, "points is list, wanted a Tensor"),
        ("quads", {"points": points.new_zeros(2, 7, 4)}, ValueError, r"points has shape \(2, 7, 4\), wanted"),
        ("one point", {"points": points[0, 0]}, ValueError, r"points has shape \(3,\), wanted \(2, ..., 3\)"),
        (
            "no coordinate",
            {"points": points[..., :0]},
            ValueError,
            r"points has shape \(2, 7, 0\), wanted \(2, ..., 3\)",
        ),
        ("channels first", {"points": points.mT}, ValueError, r"points has shape \(2, 3, 7\), wanted \(2, ..., 3\)"),
        ("whole points", {"points": points.long()}, TypeError, r"points is torch\.int64, wanted torch\.float32"),
        ("narrow points", {"volume": volume.double()}, TypeError, r"points is torch\.float32, wanted torch\.float64"),
        (
            "all half",
            {"volume": volume.half(), "points": points.half()},
            TypeError,
            r"points is torch\.float16, wanted",
        ),
        ("other device", {"volume": volume.to("meta")}, ValueError, "points is on cpu, wanted meta as volume"),
        ("no mode", {"mode": None}, ValueError, f"mode is None, {named}"),
        ("number of a mode", {"mode": 0}, ValueError, f"mode is 0, {named}"),
        ("list of modes", {"mode": ["trilinear"]}, ValueError, r"mode is \['trilinear'\], wanted"),
        ("no padding", {"padding_mode": None}, ValueError, "padding_mode is None, wanted"),
    ]
    good = {"volume": volume, "points": points}
    return [WrongCall(what, (), good | change, error, words) for what, change, error, words in changes]


def odd(mode: str, padding_mode: str, jacobian: bool) -> list[Odd]:
    """A NaN point gives a NaN row and no gradient; infinities are far outside; voxels beside the taps are not read."""
    found = []
    made = build(torch.Generator().manual_seed(3), B=1, N=6, mode=mode, padding_mode=padding_mode)
    volume, points = made.args
    harmless, broken = points.clone(), points.clone()
    harmless[0, 3:] = 50.0
    for axis in range(3):
        broken[0, 3 + axis] = 50.0  # no other row changes
        broken[0, 3 + axis, axis] = torch.nan
    row = (torch.arange(6) >= 3).view(1, 6, 1)
    masks = (row, row.unsqueeze(-1)) if jacobian else (row,)
    suffix = f"{mode}-{padding_mode}"
    twin = Sample("", (volume, harmless), made.kwargs)
    found.append(Odd(f"nan-point-{suffix}", Sample("", (volume, broken), made.kwargs), twin, nan=masks))
    far = points.clone()
    far[0, 3:] = torch.tensor([[torch.inf, 50, -50], [50, -torch.inf, torch.inf], [-torch.inf, -50, 1e30]])
    near = far.clamp(-50, 50)
    found.append(
        Odd(
            f"infinite-point-{suffix}",
            Sample("", (volume, far), made.kwargs),
            Sample("", (volume, near), made.kwargs),
        )
    )
    return found


def odd_reading(padding_mode: str = "zeros") -> list[Odd]:
    """A point half outside reads one slice of voxels, whatever stands in the others."""
    volume = torch.zeros(1, 2, 2, 2, 4, dtype=torch.float64)
    volume[..., 0] = 1.0
    points = torch.tensor([[[-1.125, 0.1, 0.1], [-2.0, 0.1, 0.1]]], dtype=torch.float64)  # x = -0.75: a quarter; -2.5
    found = []
    for name, value in (("nan", torch.nan), ("infinity", torch.inf)):
        dirty = volume.clone()
        dirty[..., 1:] = value
        options = {"padding_mode": padding_mode}
        found.append(
            Odd(f"{name}-beside-a-tap", Sample("", (dirty, points), options), Sample("", (volume, points), options))
        )
    return found


WAYS = {
    f"{mode}-{padding}-{'corners' if align else 'faces'}": {
        "mode": mode,
        "padding_mode": padding,
        "align_corners": align,
        "out": 2,
        "N": 31,
        "C": 5 if align else 8,
    }
    for mode in MODES
    for padding in PADDINGS
    for align in (False, True)
}
CASES: Mapping[str, Mapping[str, Any]] = {
    **WAYS,
    "many-dimensions": {"C": 19, "shape": (2, 1, 3)},
    "no-dimension": {"shape": ()},
    "one-register": {"C": 16, "N": 1},
    "more-than-registers": {"C": 33, "N": 17},
}
EDGES: Mapping[str, Mapping[str, Any]] = {
    "no-item": {"B": 0},
    "no-point": {"N": 0},
    "no-channel": {"C": 0},
    "one-voxel": {"B": 1, "C": 1, "Z": 1, "Y": 1, "X": 1, "N": 3},
    "one-voxel-corners": {"B": 1, "Z": 1, "Y": 1, "X": 1, "align_corners": True, "padding_mode": "border"},
    "flat": {"Z": 1, "padding_mode": "border"},
}
COMMON: dict[str, Any] = {
    "build": build,
    "cases": CASES,
    "edges": EDGES,
    "growing": (
        {"B": 2, "C": 5, "Z": 4, "Y": 6, "X": 7, "N": 9, "padding_mode": "border"},
        {"B": 4, "C": 6, "Z": 5, "Y": 7, "X": 8, "N": 10, "padding_mode": "border"},
        {"B": 5, "C": 7, "Z": 6, "Y": 8, "X": 9, "N": 14, "padding_mode": "border"},
    ),
    "ranges": {
        "B": (0, 3),
        "C": (0, 40),
        "Z": (1, 5),
        "Y": (1, 7),
        "X": (1, 9),
        "N": (0, 40),
        "shape": (None, (), (3, 2), (2, 0)),
        "out": (0, 4),
        "mode": MODES,
        "padding_mode": PADDINGS,
        "align_corners": (False, True),
    },
    "differentiable": ("volume", "points"),
    "narrow": ("volume",),
    "coordinates": ("points",),
    "meta": lambda arguments: {"dtype": arguments["volume"].dtype, "mode": arguments.get("mode", "trilinear")},
}
TINY = {
    way: {**options, "B": 1, "C": 2, "Z": 2, "Y": 3, "X": 3, "N": 3, "out": 1}
    for way, options in WAYS.items()
    if options["align_corners"] == (options["padding_mode"] == "border")
}

INFO = OpInfo(
    op="voxel_sample",
    function=ops.voxel_sample,
    oracle=oracle,
    order=2,
    tiny=TINY,
    big={"B": 1, "C": 32, "Z": 4, "Y": 32, "X": 64, "N": 8192},
    wrong=wrong,
    odd=lambda: [o for m in MODES for p in PADDINGS for o in odd(m, p, False)] + odd_reading(),
    # A warp takes 32 packs of 4 channels at once: these are 65 packs, the last pass of which is not full.
    **COMMON | {"cases": {**CASES, "more-than-a-warp": {"C": 260, "N": 3, "Z": 2, "Y": 2, "X": 3}}},
)
WITH_GRAD = OpInfo(
    op="voxel_sample_with_grad",
    function=ops.voxel_sample_with_grad,
    oracle=oracle_with_grad,
    order=1,
    tiny=TINY,
    big={"B": 1, "C": 8, "Z": 4, "Y": 32, "X": 64, "N": 4096},
    wrong=wrong,
    odd=lambda: [o for m in MODES for p in PADDINGS for o in odd(m, p, True)] + odd_reading(),
    **COMMON,
)
