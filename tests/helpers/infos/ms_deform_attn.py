"""``ms_deform_attn``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.op_info import Odd, OpInfo, Sample, WrongCall
from mim4d import ops

PYRAMID = ((4, 3), (1, 1), (2, 5))


def build(
    generator: torch.Generator,
    B: int = 2,
    Q: int = 3,
    M: int = 2,
    D: int = 5,
    P: int = 4,
    shapes: tuple[tuple[int, int], ...] = PYRAMID,
    reach: float = 2.0,
    listed: bool = False,
) -> Sample:
    """Locations reach half a map beyond each side; weights do not sum to one: the op must not care. ``listed``: the
    levels as ints instead of tensors."""
    rand = lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64)
    cells, L = [h * w for h, w in shapes], len(shapes)
    starts = [sum(cells[:i]) for i in range(L)]
    value = torch.randn(B, sum(cells), M, D, generator=generator, dtype=torch.float64)
    locations = 0.5 + (rand(B, Q, M, L, P, 2) - 0.5) * reach
    weights = torch.randn(B, Q, M, L, P, generator=generator, dtype=torch.float64)
    levels: tuple[Any, Any] = (shapes, starts) if listed else (torch.tensor(shapes), torch.tensor(starts))
    return Sample("", (value, *levels, locations, weights))


def oracle(
    value: Tensor, spatial_shapes: Any, level_start_index: Any, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The formula of Deformable DETR: each level of each head by ``grid_sample``, weighted and added up."""
    B, _, M, D = value.shape
    Q, P = sampling_locations.shape[1], sampling_locations.shape[4]
    out = 0 * (value.sum() + sampling_locations.sum() + attention_weights.sum()) + value.new_zeros(B * M, D, Q)
    if out.numel() and P:
        for l, ((h, w), first) in enumerate(zip(_list(spatial_shapes), _list(level_start_index), strict=True)):
            level = value[:, first : first + h * w].permute(0, 2, 3, 1).reshape(B * M, D, h, w)
            at = 2 * sampling_locations[:, :, :, l].transpose(1, 2).reshape(B * M, Q, P, 2) - 1
            weight = attention_weights[:, :, :, l].transpose(1, 2).reshape(B * M, 1, Q, P)
            out = out + (F.grid_sample(level, at, align_corners=False) * weight).sum(-1)
    return out.view(B, M * D, Q).transpose(1, 2)


def _list(levels: Any) -> Any:
    return levels.tolist() if isinstance(levels, Tensor) else levels


NAMES = ("value", "spatial_shapes", "level_start_index", "sampling_locations", "attention_weights")


def wrong() -> list[WrongCall]:
    good = dict(zip(NAMES, build(torch.Generator().manual_seed(0)).args, strict=True))
    value, shapes, locations, weights = (good[n] for n in NAMES if n != "level_start_index")
    rows: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("rank", {"value": value.flatten(2)}, ValueError, r"value has shape \(2, 23, 10\), wanted \(B, S, M, D\)"),
        ("integers", {"value": value.int()}, TypeError, r"value is torch\.int32, wanted a floating dtype"),
        ("no cell", {"value": value[:, :0]}, ValueError, "value has S = 0 and .*, wanted at least 1"),
        ("cells", {"value": value[:, 1:]}, ValueError, "value has S = 22, wanted 23 for spatial_shapes"),
        ("floats", {"spatial_shapes": shapes.float()}, TypeError, r"spatial_shapes is .*float32, wanted torch\.int64"),
        ("triples", {"spatial_shapes": shapes.new_ones(3, 3)}, ValueError, r"spatial_shapes has .*, wanted \(L, 2\)"),
        ("flat", {"spatial_shapes": [(4, 3), (1, 1), (0, 5)]}, ValueError, r"spatial_shapes is .*\[0, 5\].*sizes"),
        ("shapes on meta", {"spatial_shapes": shapes.to("meta")}, ValueError, "spatial_shapes is on meta, wanted cpu"),
        ("two starts", {"level_start_index": (0, 12)}, ValueError, r"level_start_index has .*, wanted \(3,\)"),
        ("late", {"level_start_index": (0, 12, 14)}, ValueError, r"level_start_index is \[0, 12, 14\], wanted"),
        ("early", {"level_start_index": (-1, 12, 13)}, ValueError, r"level_start_index is \[-1, 12, 13\], wanted"),
        ("levels", {"sampling_locations": locations[:, :, :, :2]}, ValueError, r"sampling_.*\(2, Q, 2, 3, P, 2\)"),
        ("narrow", {"sampling_locations": locations.float()}, TypeError, r"sampling_locations is .*, wanted .*64"),
        ("points", {"attention_weights": weights[..., :1]}, ValueError, r"attention_weights .*\(2, 3, 2, 3, 4\)"),
        ("nothing", {"attention_weights": None}, TypeError, "attention_weights is NoneType, wanted a Tensor"),
        ("device", {"attention_weights": weights.to("meta")}, ValueError, "attention_weights is on meta, wanted cpu"),
    ]  # fmt: skip
    return [WrongCall(name, (), good | change, error, words) for name, change, error, words in rows]


def odd() -> list[Odd]:
    """A NaN or infinite location reads nothing; cells beside the taps are not read."""
    value, shapes, starts, locations, weights = build(torch.Generator().manual_seed(1), Q=4).args
    out_of_map = locations.clone()
    out_of_map[:, 1:] = 7.0
    found = []
    for name, bad in (("nan", torch.nan), ("infinity", torch.inf), ("minus-infinity", -torch.inf), ("far", -1e30)):
        place = out_of_map.clone()
        place[:, 1, ..., 0], place[:, 2, ..., 1], place[:, 3] = bad, bad, bad
        made = (Sample("", (value, shapes, starts, at, weights)) for at in (place, out_of_map))
        found.append(Odd(f"{name}-location", *made))
    for name, bad in (("nan", torch.nan), ("infinity", torch.inf)):
        value, shapes, starts, locations, weights = build(torch.Generator().manual_seed(2), M=1, shapes=((2, 2),)).args
        locations[:] = -0.1  # reads the first cell, and three outside
        made = []
        for x in (bad, 0.0):
            cells = value.clone()
            cells[:, 1:] = x
            made.append(Sample("", (cells, shapes, starts, locations, weights)))
        found.append(Odd(f"{name}-beside-a-tap", *made))
    return found


INFO = OpInfo(
    op="ms_deform_attn",
    function=ops.ms_deform_attn,
    build=build,
    oracle=oracle,
    cases={
        "pyramid": {},
        "levels-as-ints": {"listed": True},
        "one-channel": {"D": 1, "M": 1},
        "odd": {"D": 7, "M": 3, "P": 1},
        "thin-levels": {"shapes": ((1, 1), (1, 1), (1, 2), (3, 1))},
        "bev": {"shapes": ((6, 7),), "D": 32, "Q": 11, "B": 1},
    },
    edges={
        "no-item": {"B": 0},
        "no-query": {"Q": 0},
        "no-head": {"M": 0},
        "no-channel": {"D": 0},
        "no-point": {"P": 0},
        "one-of-all": {"B": 1, "Q": 1, "M": 1, "D": 1, "P": 1, "shapes": ((1, 1),)},
        "out-of-map": {"B": 1, "Q": 1, "reach": 500.0},
    },
    tiny={"two-levels": {"B": 1, "Q": 2, "D": 3, "P": 2, "shapes": ((2, 3), (1, 1))}},
    growing=(
        {"B": 3, "Q": 5, "M": 4, "D": 6, "P": 7, "shapes": ((2, 3), (4, 5))},
        {"B": 4, "Q": 6, "M": 5, "D": 7, "P": 8, "shapes": ((3, 5), (2, 4))},
        {"B": 5, "Q": 9, "M": 6, "D": 8, "P": 3, "shapes": ((5, 6), (3, 4))},
    ),
    big={"B": 1, "Q": 2048, "M": 4, "D": 32, "P": 2, "shapes": ((32, 64),)},
    ranges={
        "B": (0, 3),
        "Q": (0, 20),
        "M": (0, 4),
        "D": (0, 40),
        "P": (0, 5),
        "shapes": (PYRAMID, ((1, 1),), ((7, 2),), ((4, 4), (2, 2))),
        "reach": (1.0, 2.0, 20.0),
        "listed": (False, True),
    },
    differentiable=("value", "sampling_locations", "attention_weights"),
    narrow=("value", "attention_weights"),
    coordinates=("sampling_locations",),
    meta=lambda arguments: {"dtype": arguments["value"].dtype},
    wrong=wrong,
    odd=odd,
)
