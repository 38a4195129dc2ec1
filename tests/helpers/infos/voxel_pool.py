"""``voxel_pool`` and ``build_pool_index``."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from helpers.op_info import Odd, OpInfo, Sample, WrongCall
from mim4d import ops

GRID = (2, 3, 4)


def build(
    generator: torch.Generator,
    B: int = 2,
    N: int = 3,
    D: int = 5,
    H: int = 2,
    W: int = 3,
    C: int = 4,
    grid: tuple[int, int, int] = GRID,
    dropped: float = 0.2,
    indexed: bool = False,
) -> Sample:
    """Some voxels are crowded, some empty; ``indexed``: with the PoolIndex of the cells."""
    points = (B, N, D, H, W)
    depth = torch.rand(*points, generator=generator, dtype=torch.float64)
    features = torch.randn(B, N, C, H, W, generator=generator, dtype=torch.float64)
    cells = _cells(generator, points, grid, dropped)
    return Sample("", (depth, features, ops.build_pool_index(cells, grid) if indexed else cells, grid))


def _cells(generator: torch.Generator, points: tuple[int, ...], grid: tuple[int, int, int], dropped: float) -> Tensor:
    count = grid[0] * grid[1] * grid[2]
    cells = torch.randint(0, count, points, generator=generator).square() // count
    return torch.where(torch.rand(points, generator=generator) < dropped, -1, cells).int()


def oracle(depth_probs: Tensor, features: Tensor, cells: Tensor | ops.PoolIndex, grid_shape: Any) -> Tensor:
    """The outer product that the op avoids, collected with ``index_add``."""
    cells = cells.cells if isinstance(cells, ops.PoolIndex) else cells
    Z, Y, X = grid_shape
    B, C, count = features.shape[0], features.shape[2], Z * Y * X
    product = depth_probs[:, :, None] * features[:, :, :, None]  # (B, N, C, D, H, W)
    out = 0 * (depth_probs.sum() + features.sum()) + features.new_zeros(B, count + 1, C)
    for b in range(B):
        where = torch.where(cells[b] < 0, count, cells[b]).long().flatten()
        out = out.index_put(
            (torch.tensor(b), where), product[b].movedim(1, -1).reshape(where.numel(), C), accumulate=True
        )
    return out[:, :count].transpose(1, 2).reshape(B, C, Z, Y, X)


def wrong() -> list[WrongCall]:
    depth, features, cells, grid = build(torch.Generator().manual_seed(0)).args
    cells[0, 0, 0, 0, 0], cells[0, 0, 0, 0, 1] = -1, 23
    other = ops.build_pool_index(cells, (4, 3, 2))
    index = ops.build_pool_index(cells, grid)
    good = {"depth_probs": depth, "features": features, "cells": cells, "grid_shape": grid}
    indexed = lambda **change: {"cells": dataclasses.replace(index, **change)}
    points = r"\(2, 3, 5, 2, 3\)"  # the shape of the points
    rows: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("no depth", {"depth_probs": None}, TypeError, r"depth_probs is NoneType, wanted a Tensor"),
        ("depth list", {"depth_probs": [1.0]}, TypeError, r"depth_probs is list, wanted a Tensor"),
        ("depth number", {"depth_probs": 0.5}, TypeError, r"depth_probs is float, wanted a Tensor"),
        ("rank", {"depth_probs": depth[0]}, ValueError, r"depth_probs has .*, wanted \(B, N, D, H, W\)"),
        ("depth rank 6", {"depth_probs": depth[None]}, ValueError, r"depth_probs has .*, wanted \(B, N, D, H, W\)"),
        ("depth integers", {"depth_probs": depth.long()}, TypeError, r"depth_probs is torch\.int64, wanted a floating"),
        ("depth booleans", {"depth_probs": depth > 0}, TypeError, r"depth_probs is torch\.bool, wanted a floating"),
        ("depth bins", {"depth_probs": depth[:, :, :4]}, ValueError, rf"cells has shape {points}, wanted \(2, 3, 4, 2"),
        ("no features", {"features": None}, TypeError, r"features is NoneType, wanted a Tensor"),
        ("features list", {"features": [features]}, TypeError, r"features is list, wanted a Tensor"),
        ("batch", {"features": features[:1]}, ValueError, r"features has .*, wanted \(2, 3, C, 2, 3\)"),
        ("feature rank", {"features": features[0]}, ValueError, r"features has shape \(3, 4, 2, 3\), wanted \(2, 3, C"),
        ("feature cameras", {"features": features[:, 1:]}, ValueError, r"features has shape \(2, 2, 4, 2, 3\), wanted"),
        ("feature rows", {"features": features[..., :1, :]}, ValueError, r"features has shape \(2, 3, 4, 1, 3\), want"),
        ("feature columns", {"features": features[..., :2]}, ValueError, r"features has shape \(2, 3, 4, 2, 2\), want"),
        ("channels last", {"features": features.movedim(2, -1)}, ValueError, r"features has shape \(2, 3, 2, 3, 4\)"),
        ("integers", {"features": features.long()}, TypeError, r"features is torch\.int64, wanted a floating dtype"),
        ("complex", {"features": features.cfloat()}, TypeError, r"features is torch\.complex64, wanted a floating dty"),
        ("device", {"features": features.to("meta")}, ValueError, "features is on meta, wanted cpu as depth_probs"),
        ("no cells", {"cells": None}, TypeError, "cells is NoneType, wanted a Tensor"),
        ("list", {"cells": [1, 2]}, TypeError, "cells is list, wanted a Tensor"),
        ("wide cells", {"cells": cells.long()}, TypeError, r"cells is torch\.int64, wanted torch\.int32"),
        ("narrow cells", {"cells": cells.short()}, TypeError, r"cells is torch\.int16, wanted torch\.int32"),
        ("fractions", {"cells": cells.float()}, TypeError, r"cells is torch\.float32, wanted torch\.int32"),
        ("flat cells", {"cells": cells.flatten()}, ValueError, r"cells has shape \(180,\), wanted \(B, N, D, H, W\)"),
        ("items", {"cells": cells[:1]}, ValueError, rf"cells has shape \(1, 3, 5, 2, 3\), wanted {points}"),
        ("cameras", {"cells": cells[:, :1]}, ValueError, rf"cells has shape \(2, 1, 5, 2, 3\), wanted {points}"),
        ("bins", {"cells": cells[:, :, :4]}, ValueError, rf"cells has shape \(2, 3, 4, 2, 3\), wanted {points}"),
        ("rows", {"cells": cells[..., :1, :]}, ValueError, rf"cells has shape \(2, 3, 5, 1, 3\), wanted {points}"),
        ("columns", {"cells": cells[..., :1]}, ValueError, rf"cells has shape \(2, 3, 5, 2, 1\), wanted {points}"),
        ("cells' device", {"cells": cells.to("meta")}, ValueError, "cells is on meta, wanted cpu as depth_probs"),
        ("beyond", {"cells": cells + 3}, ValueError, r"cells lie in \[2, \d+\], wanted \[-1, 23\] for \(2, 3, 4\)"),
        ("before", {"cells": cells - 1}, ValueError, r"cells lie in \[-2, \d+\], wanted \[-1, 23\] for \(2, 3, 4\)"),
        ("other grid", {"cells": other}, ValueError, r"PoolIndex is for grid_shape \(4, 3, 2\), wanted \(2, 3, 4\)"),
        ("other cells", indexed(cells=cells[:1]), ValueError, r"PoolIndex\.points has shape \(180,\), wanted \(90,\)"),
        ("lost points", indexed(points=index.points[1:]), ValueError, r"PoolIndex\.points .*179,\), wanted \(180,\)"),
        ("wide points", indexed(points=index.points.long()), TypeError, r"PoolIndex\.points is torch\.int64"),
        ("lost starts", indexed(starts=index.starts[1:]), ValueError, r"PoolIndex\.starts .*48,\), wanted \(49,\)"),
        ("wide starts", indexed(starts=index.starts.long()), TypeError, r"PoolIndex\.starts is torch\.int64"),
        ("moved points", indexed(points=index.points.to("meta")), ValueError, r"PoolIndex\.points is on meta"),
        ("moved starts", indexed(starts=index.starts.to("meta")), ValueError, r"PoolIndex\.starts is on meta"),
        ("no points", indexed(points=None), TypeError, r"PoolIndex\.points is NoneType, wanted a Tensor"),
        *wrong_grids(),
    ]  # fmt: skip
    return [WrongCall(name, (), good | change, error, words) for name, change, error, words in rows]


def wrong_grids() -> list[tuple[str, dict[str, Any], type[Exception], str]]:
    return [
        ("two sizes", {"grid_shape": (2, 3)}, ValueError, r"grid_shape is \(2, 3\), wanted three sizes"),
        ("four sizes", {"grid_shape": (1, 2, 3, 4)}, ValueError, r"grid_shape is \(1, 2, 3, 4\), wanted three sizes"),
        ("no cell", {"grid_shape": (0, 3, 4)}, ValueError, r"grid_shape is \(0, 3, 4\), wanted three sizes"),
        ("negative", {"grid_shape": (2, -3, 4)}, ValueError, r"grid_shape is \(2, -3, 4\), wanted three sizes"),
        ("half a cell", {"grid_shape": (2, 3.5, 4)}, TypeError, r"grid_shape is \(2, 3\.5, 4\), wanted three sizes"),
        ("no grid", {"grid_shape": None}, TypeError, r"grid_shape is None, wanted three sizes"),
        ("one size", {"grid_shape": 24}, TypeError, r"grid_shape is 24, wanted three sizes"),
        ("words", {"grid_shape": "2x3x4"}, TypeError, r"grid_shape is '2x3x4', wanted three sizes"),
        ("huge", {"grid_shape": (2048, 2048, 512)}, ValueError, r"cells .*wanted fewer than 2\^31 points and cells"),
    ]


def odd() -> list[Odd]:
    """A dropped point is not read."""
    depth, features, cells, grid = build(torch.Generator().manual_seed(1)).args
    cells[0, 0], cells[0, 1, 2] = -1, -1
    found = []
    for name, value in (("nan", torch.nan), ("infinity", torch.inf)):
        made = []
        for x in (value, 0.0):
            d, f = depth.clone(), features.clone()
            f[0, 0], d[0, 1, 2] = x, x
            made.append(Sample("", (d, f, cells, grid)))
        found.append(Odd(f"{name}-dropped", *made))
    return found


INFO = OpInfo(
    op="voxel_pool",
    function=ops.voxel_pool,
    build=build,
    oracle=oracle,
    cases={
        "cells": {},
        "index": {"indexed": True},
        "one-channel": {"C": 1},
        "odd": {"C": 33, "D": 7, "indexed": True},
        "one-pixel": {"B": 1, "N": 1, "H": 1, "W": 1},
        "one-bin": {"D": 1, "H": 1, "W": 13},
        "all-dropped": {"dropped": 2.0},
        "crowded": {"grid": (1, 1, 1), "indexed": True},
    },
    edges={
        "no-item": {"B": 0},
        "no-camera": {"N": 0},
        "no-bin": {"D": 0},
        "no-row": {"H": 0, "indexed": True},
        "no-column": {"W": 0},
        "no-channel": {"C": 0},
        "one-of-all": {"B": 1, "N": 1, "D": 1, "H": 1, "W": 1, "C": 1, "grid": (1, 1, 1), "dropped": 0.0},
    },
    tiny={
        "cells": {"N": 1, "D": 3, "H": 1, "W": 2, "C": 2},
        "index": {"N": 2, "D": 2, "H": 1, "W": 1, "indexed": True},
    },
    growing=(
        {"B": 2, "N": 3, "D": 5, "H": 4, "W": 6, "C": 7, "grid": (8, 9, 10)},
        {"B": 3, "N": 4, "D": 6, "H": 5, "W": 7, "C": 8, "grid": (9, 10, 11)},
        {"B": 4, "N": 5, "D": 7, "H": 2, "W": 8, "C": 9, "grid": (10, 11, 12)},
    ),
    big={"B": 1, "N": 1, "D": 4, "H": 16, "W": 16, "C": 32, "grid": (4, 32, 64)},
    ranges={
        "B": (0, 3),
        "N": (0, 3),
        "D": (0, 6),
        "H": (0, 4),
        "W": (0, 5),
        "C": (0, 40),
        "grid": (GRID, (1, 1, 1), (1, 7, 5)),
        "dropped": (0.0, 0.2, 2.0),
        "indexed": (False, True),
    },
    differentiable=("depth_probs", "features"),
    narrow=("depth_probs", "features"),
    meta=lambda arguments: {"dtype": arguments["features"].dtype},
    wrong=wrong,
    odd=odd,
)


# ---- build_pool_index


def build_cells(generator: torch.Generator, indexed: bool = False, **sizes: Any) -> Sample:
    _, _, cells, grid = build(generator, **sizes).args
    return Sample("", (cells, grid))


def sorted_points(cells: Tensor, grid_shape: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A stable sort, and counting."""
    Z, Y, X = grid_shape
    rows, count = cells.shape[0] * Z * Y * X, Z * Y * X
    item = torch.arange(cells.shape[0]).view(-1, 1, 1, 1, 1)
    row = torch.where(cells < 0, rows, cells + item * count).flatten()
    starts = torch.searchsorted(row.sort().values, torch.arange(rows + 1))
    return cells, row.argsort(stable=True).int(), starts.int()


def wrong_index() -> list[WrongCall]:
    cells = build(torch.Generator().manual_seed(0)).args[2]
    far, low = cells.clone(), cells.clone()
    far[0, 0, 0, 0, 0], low[0, 0, 0, 0, 0] = 24, -2
    found = [
        ("beyond", far, ValueError, r"cells lie in \[-1, 24\], wanted \[-1, 23\] for \(2, 3, 4\)"),
        ("before", low, ValueError, r"cells lie in \[-2, \d+\], wanted \[-1, 23\] for \(2, 3, 4\)"),
        ("nothing", None, TypeError, "cells is NoneType, wanted a Tensor"),
        ("list", [1], TypeError, "cells is list, wanted a Tensor"),
        ("an index", ops.build_pool_index(cells, GRID), TypeError, "cells is PoolIndex, wanted a Tensor"),
        ("wide cells", cells.long(), TypeError, r"cells is torch\.int64, wanted torch\.int32"),
        ("narrow cells", cells.to(torch.int8), TypeError, r"cells is torch\.int8, wanted torch\.int32"),
        ("fractions", cells.float(), TypeError, r"cells is torch\.float32, wanted torch\.int32"),
        ("rank", cells[0], ValueError, r"cells has shape .*, wanted \(B, N, D, H, W\)"),
        ("rank 6", cells[None], ValueError, r"cells has shape .*, wanted \(B, N, D, H, W\)"),
    ]
    calls = [WrongCall(name, (value, GRID), {}, error, words) for name, value, error, words in found]
    return calls + [
        WrongCall(name, (cells, change["grid_shape"]), {}, error, words) for name, change, error, words in wrong_grids()
    ]


BUILD = OpInfo(
    op="build_pool_index",
    function=ops.build_pool_index,
    build=build_cells,
    oracle=sorted_points,
    cases=INFO.cases,
    edges=INFO.edges,
    tiny={},
    growing=INFO.growing,
    big={"B": 1, "N": 1, "D": 64, "H": 64, "W": 64, "C": 0, "grid": (4, 32, 64)},
    ranges=INFO.ranges,
    order=0,
    dtypes=(torch.float64,),
    wrong=wrong_index,
)
