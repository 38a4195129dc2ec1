"""``voxel_pull``: the row to read before writing one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.op_info import Odd, OpInfo, Sample, WrongCall
from mim4d import ops

PYRAMID = ((3, 4), (1, 1), (2, 3))


def build(
    generator: torch.Generator,
    B: int = 2,
    N: int = 3,
    C: int = 4,
    D: int = 3,
    V: int = 9,
    sizes: tuple[tuple[int, int], ...] = PYRAMID,
    reach: float = 1.25,
) -> Sample:
    """About half of the voxels are seen by a camera; none stands on a pixel's centre or on the border of the view."""
    rand = lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64)
    features = [torch.randn(B, N, C, h, w, generator=generator, dtype=torch.float64) for h, w in sizes]
    depth_probs = [rand(B, N, D, h, w) for h, w in sizes]
    return Sample("", (features, depth_probs, (rand(B, N, V, 3) * 2 - 1) * reach))


def oracle(features: list[Tensor], depth_probs: list[Tensor], uvd: Tensor) -> Tensor:
    """Feature and probability of every camera and level by ``grid_sample``; their products added up."""
    B, N, V, _ = uvd.shape
    C = features[0].shape[2]
    at = uvd.reshape(B * N, V, 3)
    seen = (at.abs() < 1).all(-1).unsqueeze(1)
    at = torch.where(seen.transpose(1, 2), at, 2.0)
    out = sum((0 * t.sum() for t in (*features, *depth_probs, uvd)), uvd.new_zeros(B, C, V))
    if 0 in (B, N, V, C):
        return out
    for image, probs in zip(features, depth_probs, strict=True):
        f = F.grid_sample(image.flatten(0, 1), at[:, :, None, :2], align_corners=False)[..., 0]
        p = F.grid_sample(probs.flatten(0, 1).unsqueeze(1), at[:, :, None, None], align_corners=False)[..., 0, 0]
        out = out + torch.where(seen, f * p, 0.0).view(B, N, C, V).sum(1)
    return out


def wrong() -> list[WrongCall]:
    features, depth_probs, uvd = build(torch.Generator().manual_seed(0)).args
    changed = lambda maps, i, value: [*maps[:i], value, *maps[i + 1 :]]
    image = lambda i, value: changed(features, i, value)
    depth = lambda i, value: changed(depth_probs, i, value)
    rows: list[tuple[str, int, Any, type[Exception], str]] = [
        ("a tensor", 0, torch.zeros(2), TypeError, "features is Tensor, wanted a list of Tensors"),
        ("no features", 0, None, TypeError, "features is NoneType, wanted a list of Tensors"),
        ("a set", 0, {1}, TypeError, "features is set, wanted a list of Tensors"),
        ("a number", 0, 3, TypeError, "features is int, wanted a list of Tensors"),
        ("no level", 0, [], ValueError, "features and depth_probs have 0 and 3 levels, wanted as many, at least 1"),
        ("feature levels", 0, features[:2], ValueError, "features and depth_probs have 2 and 3 levels, wanted as many"),
        ("nothing", 0, [None] * 3, TypeError, r"features\[0\] is NoneType, wanted a Tensor"),
        ("one nothing", 0, image(1, None), TypeError, r"features\[1\] is NoneType, wanted a Tensor"),
        ("rank", 0, image(0, features[0][0]), ValueError, r"features\[0\] has shape .*, wanted \(2, 3, C, H, W\)"),
        ("later rank", 0, image(2, features[2][0]), ValueError, r"features\[2\] has shape .*, wanted \(2, 3, 4, H, W"),
        ("items", 0, image(0, features[0][:1]), ValueError, r"features\[0\] has shape \(1, 3, 4, 3, 4\), wanted \(2, "),
        ("later items", 0, image(1, features[1][:1]), ValueError, r"features\[1\] has shape \(1, 3, .*wanted \(2, 3, "),
        ("views", 0, image(1, features[1][:, :2]), ValueError, r"features\[1\] has shape \(2, 2, .*wanted \(2, 3, 4"),
        ("channels", 0, image(2, features[2][:, :, :2]), ValueError, r"features\[2\] has .*, wanted \(2, 3, 4, H, W\)"),
        ("first channels", 0, image(0, features[0][:, :, :2]), ValueError, r"features\[1\] has .*wanted \(2, 3, 2, H,"),
        ("last", 0, image(1, features[1].movedim(2, 4)), ValueError, r"features\[1\] has shape .*, wanted \(2, 3, 4, "),
        ("dtypes", 0, image(2, features[2].float()), TypeError, r"\[2\] is torch\.float32, wanted torch\.float64 as f"),
        ("feature integers", 0, [f.int() for f in features], TypeError, r"is torch\.(int32|float64), wanted"),
        ("complex", 0, image(1, features[1].cfloat()), TypeError, r"features\[1\] is torch\.complex64, wanted a float"),
        ("image device", 0, image(1, features[1].to("meta")), ValueError, r"features\[1\] is on meta, wanted cpu as u"),
        ("one map", 1, torch.zeros(2), TypeError, "depth_probs is Tensor, wanted a list of Tensors"),
        ("no depth", 1, None, TypeError, "depth_probs is NoneType, wanted a list of Tensors"),
        ("no depth level", 1, [], ValueError, "features and depth_probs have 3 and 0 levels, wanted as many"),
        ("levels", 1, depth_probs[:1], ValueError, "features and depth_probs have 3 and 1 levels"),
        ("one no depth", 1, depth(2, "D"), TypeError, r"depth_probs\[2\] is str, wanted a Tensor"),
        ("depth rank", 1, depth(0, depth_probs[0][0]), ValueError, r"depth_probs\[0\] has .*, wanted \(2, 3, D, H, W"),
        ("depth items", 1, depth(1, depth_probs[1][:1]), ValueError, r"depth_probs\[1\] has shape \(1, 3, 3, 1, 1\)"),
        ("depth views", 1, depth(1, depth_probs[1][:, :1]), ValueError, r"depth_probs\[1\] has shape \(2, 1, 3, 1, 1"),
        ("bins", 1, depth(2, depth_probs[2][:, :, :2]), ValueError, r"depth_probs\[2\] .*, wanted \(2, 3, 3, 2, 3\)"),
        ("pixels", 1, [d[..., :-1] for d in depth_probs], ValueError, r"depth_probs\[0\] .*\(2, 3, 3, 3, 4\)"),
        ("rows", 1, depth(0, depth_probs[0][..., :2, :]), ValueError, r"depth_probs\[0\] has shape \(2, 3, 3, 2, 4\)"),
        ("no bin", 1, [d[:, :, :0] for d in depth_probs], ValueError, r"depth_probs\[0\] .*wanted D, H and W >= 1"),
        ("integers", 1, [d.int() for d in depth_probs], TypeError, r"depth_probs\[0\] is torch\.int32"),
        ("booleans", 1, depth(1, depth_probs[1] > 0), TypeError, r"depth_probs\[1\] is torch\.bool, wanted a floating"),
        ("depth device", 1, depth(2, depth_probs[2].to("meta")), ValueError, r"depth_probs\[2\] is on meta, wanted cp"),
        ("no place", 2, None, TypeError, r"uvd is NoneType, wanted a Tensor \(B, N, V, 3\)"),
        ("list of places", 2, [uvd], TypeError, r"uvd is list, wanted a Tensor \(B, N, V, 3\)"),
        ("pairs", 2, uvd[..., :2], ValueError, r"uvd has shape \(2, 3, 9, 2\), wanted \(B, N, V, 3\)"),
        ("place rank", 2, uvd[0], ValueError, r"uvd has shape \(3, 9, 3\), wanted \(B, N, V, 3\)"),
        ("flat", 2, uvd.flatten(), ValueError, r"uvd has shape \(162,\), wanted \(B, N, V, 3\)"),
        ("a grid", 2, uvd.view(2, 3, 3, 3, 3), ValueError, r"uvd has shape \(2, 3, 3, 3, 3\), wanted \(B, N, V, 3\)"),
        ("cameras", 2, torch.zeros(2, 4, 9, 3), ValueError, r"features\[0\] has .*, wanted \(2, 4, C, H, W\)"),
        ("batch", 2, torch.zeros(1, 3, 9, 3), ValueError, r"features\[0\] has .*, wanted \(1, 3, C, H, W\)"),
        ("narrow uvd", 2, uvd.float(), TypeError, r"uvd is torch\.float32, wanted torch\.float64 with features of"),
        ("half uvd", 2, uvd.half(), TypeError, r"uvd is torch\.float16, wanted torch\.float64 with features of"),
        ("whole uvd", 2, uvd.long(), TypeError, r"uvd is torch\.int64, wanted torch\.float64 with features of"),
        ("device", 2, uvd.to("meta"), ValueError, r"depth_probs\[0\] is on cpu, wanted meta as uvd"),
    ]  # fmt: skip
    good = (features, depth_probs, uvd)
    calls = [WrongCall(n, (*good[:i], value, *good[i + 1 :]), {}, e, words) for n, i, value, e, words in rows]
    empty = [f[..., :0] for f in features], [d[..., :0] for d in depth_probs], uvd
    wide = [f.float() for f in features], depth_probs, uvd.float()
    return [
        *calls,
        WrongCall("no pixel", empty, {}, ValueError, r"depth_probs\[0\] .*wanted D, H and W >= 1"),
        WrongCall(
            "wide depth", wide, {}, TypeError, r"depth_probs\[0\] is torch\.float64, wanted float16, bfloat16 or fl"
        ),
    ]


def odd() -> list[Odd]:
    """NaN and infinite places are seen by nobody; pixels beside the taps and cameras that see nothing are not read."""
    features, depth_probs, uvd = build(torch.Generator().manual_seed(1), reach=0.9).args
    out_of_view = uvd.clone()
    out_of_view[:, 0, :6] = 1.5
    found = []
    for name, value in (("nan", torch.nan), ("infinity", torch.inf), ("minus-infinity", -torch.inf), ("far", 1e30)):
        place = uvd.clone()
        place[:, 0, :6] = 1.5
        for row in range(6):
            place[:, 0, row, row % 3] = value
        found.append(
            Odd(
                f"{name}-place",
                Sample("", (features, depth_probs, place)),
                Sample("", (features, depth_probs, out_of_view)),
            )
        )
    for name, value in (("nan", torch.nan), ("infinity", torch.inf)):
        image, probs = torch.zeros(1, 2, 2, 2, 2, dtype=torch.float64), torch.zeros(1, 2, 2, 2, 2, dtype=torch.float64)
        image[:, 0, :, 0, 0], probs[:, 0, 0, 0, 0] = 3.0, 0.5
        dirty = [torch.where(t == 0, value, t) for t in (image, probs)]
        at = torch.full((1, 2, 1, 3), -0.9, dtype=torch.float64)  # the first pixel and bin, and taps outside
        at[:, 1] = 1.5
        found.append(
            Odd(f"{name}-beside-a-tap", Sample("", ([dirty[0]], [dirty[1]], at)), Sample("", ([image], [probs], at)))
        )
    return found


INFO = OpInfo(
    op="voxel_pull",
    function=ops.voxel_pull,
    build=build,
    oracle=oracle,
    cases={
        "pyramid": {},
        "one-channel": {"C": 1, "D": 1},
        "one-level": {"C": 17, "sizes": ((2, 5),)},
        "all-in-view": {"reach": 0.99, "V": 31},
        "wide": {"C": 33, "N": 1, "B": 1, "V": 31},
    },
    edges={
        "no-item": {"B": 0},
        "no-camera": {"N": 0},
        "no-voxel": {"V": 0},
        "no-channel": {"C": 0},
        "one-of-all": {"B": 1, "N": 1, "V": 1, "C": 1, "D": 1, "sizes": ((1, 1),), "reach": 0.9},
        "out-of-view": {"B": 1, "N": 1, "V": 1, "reach": 30.0},
    },
    tiny={"two-levels": {"B": 1, "N": 2, "V": 3, "C": 2, "D": 2, "sizes": ((2, 2), (1, 2)), "reach": 0.9}},
    growing=(
        {"B": 2, "N": 4, "C": 5, "D": 6, "V": 17, "sizes": ((7, 8), (9, 10))},
        {"B": 4, "N": 5, "C": 6, "D": 7, "V": 19, "sizes": ((8, 9), (10, 11))},
        {"B": 5, "N": 2, "C": 7, "D": 8, "V": 23, "sizes": ((9, 10), (4, 6))},
    ),
    big={"B": 1, "N": 2, "C": 16, "D": 4, "V": 8192, "sizes": ((16, 32),)},
    ranges={
        "B": (0, 3),
        "N": (0, 3),
        "C": (0, 40),
        "D": (1, 5),
        "V": (0, 40),
        "sizes": (PYRAMID, ((1, 1),), ((7, 2),), ((4, 4), (2, 2))),
        "reach": (0.9, 1.25, 3.0),
    },
    differentiable=("features", "depth_probs", "uvd"),
    narrow=("features", "depth_probs"),
    coordinates=("uvd",),
    meta=lambda arguments: {"dtype": arguments["features"][0].dtype},
    wrong=wrong,
    odd=odd,
)
