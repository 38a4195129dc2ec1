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
    value, shapes, starts, locations, weights = (good[n] for n in NAMES)
    found = []

    def row(name: str, argument: str, bad: Any, error: type[Exception], words: str) -> None:
        found.append(WrongCall(f"{argument}-{name}", (), good | {argument: bad}, error, words))

    row("nothing", "value", None, TypeError, "value is NoneType, wanted a Tensor")
    row("list", "value", value.tolist(), TypeError, "value is list, wanted a Tensor")
    row("rank-3", "value", value.flatten(2), ValueError, r"value has shape \(2, 23, 10\), wanted \(B, S, M, D\)")
    row("rank-5", "value", value[None], ValueError, r"value has shape .*, wanted \(B, S, M, D\)")
    row("integers", "value", value.int(), TypeError, r"value is torch\.int32, wanted a floating dtype")
    row("flags", "value", value > 0, TypeError, r"value is torch\.bool, wanted a floating dtype")
    row("complex", "value", value + 0j, TypeError, r"value is torch\.complex128, wanted a floating dtype")
    row("no-cell", "value", value[:, :0], ValueError, "value has S = 0 and .*, wanted at least 1")
    row("few-cells", "value", value[:, 1:], ValueError, "value has S = 22, wanted 23 for spatial_shapes")
    row("many-cells", "value", value.repeat(1, 2, 1, 1), ValueError, "value has S = 46, wanted 23 for spatial_shapes")

    name = "spatial_shapes"
    row("nothing", name, None, TypeError, "spatial_shapes is None, wanted pairs of whole numbers")
    row("one-number", name, 23, TypeError, "spatial_shapes is 23, wanted pairs")
    row("text", name, "4x3", TypeError, "spatial_shapes is '4x3', wanted pairs")
    row("flat", name, (4, 3, 1, 1, 2, 5), TypeError, r"spatial_shapes is \(4, .*, wanted pairs")
    row("ragged", name, ((4, 3), (1,), (2, 5)), TypeError, r"spatial_shapes is .*, wanted pairs")
    row("triples-listed", name, ((4, 3, 1),) * 3, TypeError, r"spatial_shapes is .*, wanted pairs")
    row("fractions", name, ((4.0, 3.0), (1.0, 1.0), (2.0, 5.0)), TypeError, r"spatial_shapes is .*, wanted pairs")
    row("beyond-int64", name, ((4, 3), (1, 1), (2, 2**63)), TypeError, r"spatial_shapes is .*, wanted pairs")
    row("no-level", name, (), ValueError, r"level_start_index has shape \(3,\), wanted \(0,\)")
    row("no-height", name, [(4, 3), (1, 1), (0, 5)], ValueError, r"spatial_shapes is .*\[0, 5\].*wanted sizes of 1")
    row("minus", name, [(4, 3), (1, 1), (-2, -5)], ValueError, r"spatial_shapes is .*\[-2, -5\].*sizes of 1")
    row("too-wide", name, [(4, 3), (1, 1), (1, 2**24)], ValueError, r"spatial_shapes is .*16777216.*to 16777215")
    row("floats", name, shapes.float(), TypeError, r"spatial_shapes is torch\.float32, wanted torch\.int64")
    row("int16", name, shapes.short(), TypeError, r"spatial_shapes is torch\.int16, wanted torch\.int64")
    row("triples", name, shapes.new_ones(3, 3), ValueError, r"spatial_shapes has .*, wanted \(L, 2\)")
    row("rank-1", name, shapes.flatten(), ValueError, r"spatial_shapes has shape \(6,\), wanted \(L, 2\)")
    row("transposed", name, shapes.flip(1)[:2], ValueError, r"level_start_index has shape \(3,\), wanted \(2,\)")
    row("on-meta", name, shapes.to("meta"), ValueError, "spatial_shapes is on meta, wanted cpu")

    name = "level_start_index"
    row("nothing", name, None, TypeError, "level_start_index is None, wanted whole numbers")
    row("text", name, "abc", TypeError, "level_start_index is 'abc', wanted whole numbers")
    row("fractions", name, (0.0, 12.0, 13.0), TypeError, "level_start_index is .*, wanted whole numbers")
    row("pairs", name, ((0, 12), (12, 13), (13, 23)), TypeError, "level_start_index is .*, wanted whole numbers")
    row("two", name, (0, 12), ValueError, r"level_start_index has shape \(2,\), wanted \(3,\)")
    row("four", name, (0, 12, 13, 23), ValueError, r"level_start_index has shape \(4,\), wanted \(3,\)")
    row("rank-2", name, starts[None], ValueError, r"level_start_index has shape \(1, 3\), wanted \(3,\)")
    row("floats", name, starts.double(), TypeError, r"level_start_index is torch\.float64, wanted torch\.int64")
    row("late", name, (0, 12, 14), ValueError, r"level_start_index is \[0, 12, 14\], wanted every level inside S = 23")
    row("early", name, (-1, 12, 13), ValueError, r"level_start_index is \[-1, 12, 13\], wanted every level inside")
    row("tensor-late", name, starts + 1, ValueError, r"level_start_index is \[1, 13, 14\], wanted every level inside")
    row("overlap", name, (0, 12, 12), ValueError, r"level_start_index is \[0, 12, 12\] .*that do not overlap")
    row("all-zero", name, starts * 0, ValueError, r"level_start_index is \[0, 0, 0\] .*that do not overlap")
    row("on-meta", name, starts.to("meta"), ValueError, "level_start_index is on meta, wanted cpu")

    name = "sampling_locations"
    row("nothing", name, None, TypeError, "sampling_locations is NoneType, wanted a Tensor")
    row("rank-5", name, locations.flatten(3, 4), ValueError, r"sampling_locations has .*\(2, Q, 2, 3, P, 2\)")
    row("triples", name, locations.new_zeros(2, 3, 2, 3, 4, 3), ValueError, r"sampling_.*\(2, Q, 2, 3, P, 2\)")
    row("items", name, locations[:1], ValueError, r"sampling_locations has .*, wanted \(2, Q, 2, 3, P, 2\)")
    row("heads", name, locations[:, :, :1], ValueError, r"sampling_locations has .*, wanted \(2, Q, 2, 3, P, 2\)")
    row("levels", name, locations[:, :, :, :2], ValueError, r"sampling_locations has .*, wanted \(2, Q, 2, 3, P, 2\)")
    row(
        "narrow", name, locations.float(), TypeError, r"sampling_locations is .*, wanted torch\.float64 with a value of"
    )
    row("half", name, locations.half(), TypeError, r"sampling_locations is torch\.float16, wanted torch\.float64")
    row("integers", name, locations.long(), TypeError, r"sampling_locations is torch\.int64, wanted torch\.float64")
    row("on-meta", name, locations.to("meta"), ValueError, "sampling_locations is on meta, wanted cpu")

    name = "attention_weights"
    row("nothing", name, None, TypeError, "attention_weights is NoneType, wanted a Tensor")
    row("flat", name, weights.flatten(3), ValueError, r"attention_weights has .*, wanted \(2, 3, 2, 3, 4\)")
    row("points", name, weights[..., :1], ValueError, r"attention_weights has .*, wanted \(2, 3, 2, 3, 4\)")
    row("queries", name, weights[:, 1:], ValueError, r"attention_weights has .*, wanted \(2, 3, 2, 3, 4\)")
    row("integers", name, weights.int(), TypeError, r"attention_weights is torch\.int32, wanted a floating dtype")
    row("on-meta", name, weights.to("meta"), ValueError, "attention_weights is on meta, wanted cpu")
    narrow = good | {"value": value.float(), "sampling_locations": locations.float()}
    words = r"attention_weights is torch\.float64, wanted float16, bfloat16 or float32"
    return [*found, WrongCall("attention_weights-wide", (), narrow, TypeError, words)]


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
        "cells-of-a-map": {"shapes": ((3, 9), (2, 2)), "Q": 27, "D": 16, "B": 1, "P": 2, "reach": 1.2},
        "cells-of-all": {"shapes": ((3, 5), (2, 2)), "Q": 19, "D": 36, "M": 1, "B": 1, "P": 1},
        "many-levels": {"shapes": ((1, 2),) * 17, "P": 1, "D": 8},
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
