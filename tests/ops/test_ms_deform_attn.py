"""``ms_deform_attn``: closed forms, and what is true of it alone. ``test_contract.py`` has the rest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import simt
from helpers.infos.ms_deform_attn import INFO
from helpers.infos.ms_deform_attn import PYRAMID as SHAPES
from helpers.memory import peak_bytes
from torch import Tensor

import mim4d.ops as ops
from mim4d import _library
from mim4d.reference import ms_deform_attn as reference

RAW = torch.ops.mim4d.ms_deform_attn.default
BACKWARD = torch.ops.mim4d.ms_deform_attn_backward.default
NAMES = ("value", "sampling_locations", "attention_weights")


def case(**sizes: Any) -> dict[str, Any]:
    return INFO.arguments(INFO.sample("", sizes))


def by_wrapper(args: dict[str, Any]) -> Tensor:
    with ops.use_backend("reference"):
        return ops.ms_deform_attn(*args.values())


def raw(args: dict[str, Any]) -> Tensor:
    return RAW(*args.values())


PATHS = pytest.mark.parametrize("run", [by_wrapper, raw], ids=["reference", "dispatcher"])


@PATHS
def test_levels_as_tuples(run: Callable[..., Tensor]) -> None:
    args = case()
    want = run(args)
    got = ops.ms_deform_attn(args["value"], SHAPES, (0, 12, 13), args["sampling_locations"], args["attention_weights"])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    lists = ([list(x) for x in SHAPES], [0, 12, 13], args["sampling_locations"], args["attention_weights"])
    assert torch.equal(ops.ms_deform_attn(args["value"], *lists), got)


@PATHS
def test_centre_of_a_cell_reads_the_cell(run: Callable[..., Tensor]) -> None:
    """Location ((x + 0.5) / W, (y + 0.5) / H) is the centre of cell (x, y): the attention copies the map."""
    H, W = 3, 4
    value = torch.randn(1, H * W, 1, 2, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(H).double(), torch.arange(W).double(), indexing="ij")
    place = torch.stack([(x + 0.5) / W, (y + 0.5) / H], -1).view(1, H * W, 1, 1, 1, 2)
    args = {
        "value": value,
        "spatial_shapes": torch.tensor([[H, W]]),
        "level_start_index": torch.tensor([0]),
        "sampling_locations": place,
        "attention_weights": torch.ones(1, H * W, 1, 1, 1, dtype=torch.float64),
    }
    torch.testing.assert_close(run(args), value.view(1, H * W, 2), rtol=1e-12, atol=1e-12)


@PATHS
def test_border_and_beyond(run: Callable[..., Tensor]) -> None:
    """A map of ones seen from its edge outwards: half a cell of fading, then nothing, however far."""
    far = [0.0, -0.125, -0.25, 1.0, 1.125, 1.25, 1e9, -1e30, float("inf"), float("nan")]
    locations = torch.full((1, len(far), 1, 1, 1, 2), 0.5)
    locations[0, :, 0, 0, 0, 0] = torch.tensor(far)
    args = {
        "value": torch.ones(1, 16, 1, 1),
        "spatial_shapes": torch.tensor([[4, 4]]),
        "level_start_index": torch.tensor([0]),
        "sampling_locations": locations.requires_grad_(),
        "attention_weights": torch.ones(1, len(far), 1, 1, 1, requires_grad=True),
    }
    out = run(args)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.5, 0.0, 0, 0.5, 0, 0, 0, 0, 0, 0]))
    slope, share = torch.autograd.grad(out.sum(), [args["sampling_locations"], args["attention_weights"]])
    assert slope.isfinite().all()
    torch.testing.assert_close(slope[0, :, 0, 0, 0, 0][[0, 3]], torch.tensor([4.0, -4.0]))
    assert not slope[0, [2, 5, 6, 7, 8, 9]].any()
    torch.testing.assert_close(share.flatten(), out.detach().flatten())


@PATHS
def test_a_masked_level_counts_nothing(run: Callable[..., Tensor]) -> None:
    """The caller masks a level by the weight 0; the rest is what the op gives without that level."""
    args = case()
    args["attention_weights"][:, :, :, 1] = 0
    keep = [0, 2]
    fewer = {
        "value": torch.cat([args["value"][:, :12], args["value"][:, 13:]], 1),
        "spatial_shapes": args["spatial_shapes"][keep],
        "level_start_index": torch.tensor([0, 12]),
        "sampling_locations": args["sampling_locations"][:, :, :, keep],
        "attention_weights": args["attention_weights"][:, :, :, keep],
    }
    torch.testing.assert_close(run(args), run(fewer), rtol=1e-12, atol=1e-12)
    args["value"].requires_grad_()
    (grad,) = torch.autograd.grad(run(args).sum(), args["value"])
    assert not grad[:, 12].any()


@PATHS
def test_levels_in_any_order(run: Callable[..., Tensor]) -> None:
    """``level_start_index`` says where a level lies; it need not follow from the shapes."""
    args = case()
    order = [2, 0, 1]
    moved = {k: args[k] for k in args}
    moved["spatial_shapes"] = args["spatial_shapes"][order]
    moved["level_start_index"] = args["level_start_index"][order]
    moved["sampling_locations"] = args["sampling_locations"][:, :, :, order]
    moved["attention_weights"] = args["attention_weights"][:, :, :, order]
    torch.testing.assert_close(run(moved), run(args), rtol=1e-12, atol=1e-12)


def test_second_order_through_the_reference() -> None:
    args = case(B=1, Q=1, M=1, D=2, P=2, shapes=((2, 2),))
    inputs = [args[k].requires_grad_() for k in NAMES]
    assert torch.autograd.gradgradcheck(lambda *x: by_wrapper({**args, **dict(zip(NAMES, x, strict=True))}), inputs)


def by_numbers(value: Any, shapes: Any, starts: Any, locations: Any, weights: Any, grad: Any) -> list[Any]:
    """Result and gradients, number by number: the formula and the adjoint of docs/ops/ms_deform_attn.md."""
    B, _, M, D = value.shape
    _, Q, _, L, P, _ = locations.shape
    out, by_value = np.zeros((B, Q, M, D)), np.zeros_like(value)
    by_location, by_weight = np.zeros_like(locations), np.zeros_like(weights)
    for b, q, m, l, p in np.ndindex(B, Q, M, L, P):
        (H, W), start, a = shapes[l], starts[l], weights[b, q, m, l, p]
        x, y = locations[b, q, m, l, p, 0] * W - 0.5, locations[b, q, m, l, p, 1] * H - 0.5
        if not (-1 < x < W and -1 < y < H):
            continue
        for i, j in itertools.product((math.floor(x), math.floor(x) + 1), (math.floor(y), math.floor(y) + 1)):
            if not (0 <= i < W and 0 <= j < H):
                continue
            near_x, near_y = 1 - abs(x - i), 1 - abs(y - j)
            slope_x, slope_y = (1.0 if i > x else -1.0), (1.0 if j > y else -1.0)
            cell = b, start + j * W + i, m
            product = value[cell] @ grad[b, q, m]
            out[b, q, m] += a * near_x * near_y * value[cell]
            by_value[cell] += a * near_x * near_y * grad[b, q, m]
            by_weight[b, q, m, l, p] += near_x * near_y * product
            by_location[b, q, m, l, p] += a * product * np.array([W * slope_x * near_y, H * slope_y * near_x])
    return [out.reshape(B, Q, M * D), by_value, by_location, by_weight]


def borders(W: int) -> list[float]:
    """In cells: the borders of all cells and of the map, half a cell and a hair beyond it, and far away."""
    return [
        *range(W + 1),
        -0.49999,
        -0.500001,
        W + 0.49999,
        W + 0.500001,
        -3.0,
        W + 40.0,
        1e9,
        -1e30,
        math.inf,
        math.nan,
    ]


@PATHS
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 1e-5)])  # measured: 8e-16, 4e-7
@pytest.mark.parametrize("D", [1, 3, 5, 16])
def test_borders_number_by_number(run: Callable[..., Tensor], dtype: torch.dtype, bound: float, D: int) -> None:
    shapes, starts, M = [(3, 4), (1, 1), (1, 5)], [0, 12, 13], 2
    g = torch.Generator().manual_seed(D)
    rand = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64).to(dtype)
    places = list(itertools.product(borders(4), borders(3)))
    locations = torch.tensor(places, dtype=torch.float64).view(1, -1, 1, 1, 1, 2) / torch.tensor([4.0, 3.0])
    locations = locations.to(dtype).expand(1, len(places), M, len(shapes), 1, 2)
    size = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float64)
    centre = (locations.double() * size[:, None] - 0.5).frac() == 0  # a kink: 1/2 of the one cell of a level
    locations = torch.where(centre, locations + 0.01, locations)
    value, weights = rand(1, 18, M, D), rand(1, len(places), M, len(shapes), 1)
    leaves = [t.contiguous().requires_grad_() for t in (value, locations, weights)]
    out = run(dict(enumerate((leaves[0], torch.tensor(shapes), torch.tensor(starts), *leaves[1:]))))
    grad = rand(1, len(places), M * D)
    found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    as_numbers = [t.detach().double().numpy() for t in (*leaves, grad.view(1, len(places), M, D))]
    wanted = by_numbers(as_numbers[0], shapes, starts, *as_numbers[1:])
    for got, want in zip(found, wanted, strict=True):
        assert np.abs(got.double().numpy() - want).max() <= bound * np.abs(want).max()


def wrong_level(**sizes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A call whose last level lies far beyond S, and the same without this level."""
    args = case(B=1, **sizes)
    args["level_start_index"] = torch.tensor([0, 12, 1_000_000])
    fewer = {**args, "level_start_index": torch.tensor([0, 12, 13])}
    fewer["attention_weights"] = args["attention_weights"].clone()
    fewer["attention_weights"][:, :, :, 2] = 0
    return args, fewer


def test_a_wrong_level_is_dropped_where_nobody_checks() -> None:
    """Below the wrapper, as on a GPU: what leaves S is not followed."""
    args, fewer = wrong_level()
    with simt.emulated():
        torch.testing.assert_close(raw(args), raw(fewer))
    torch.testing.assert_close(reference.ms_deform_attn(*args.values()), reference.ms_deform_attn(*fewer.values()))


@pytest.mark.parametrize("sizes", [{}, {"Q": 12, "D": 16}], ids=["any queries", "cells of the first map"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_wrong_level_has_no_gradient(sizes: dict[str, int], deterministic: bool) -> None:
    """By atomics, by windows and by owners."""
    args, fewer = wrong_level(**sizes)
    B, Q, M = args["sampling_locations"].shape[:3]
    grad = torch.randn(B, Q, M * args["value"].shape[3], dtype=torch.float64)
    torch.use_deterministic_algorithms(deterministic)
    try:
        with simt.emulated():
            found, wanted = (BACKWARD(grad, *a.values(), [True] * 3) for a in (args, fewer))
    finally:
        torch.use_deterministic_algorithms(False)
    assert found[2][:, :, :, :2].any()
    assert not found[2][:, :, :, 2].any()
    wanted[2][:, :, :, 2] = 0
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_levels_that_no_map_can_have_are_dropped_whole() -> None:
    """As many cells as queries by their product, and not one tile of them. Deterministic: what nobody writes is NaN."""
    args = case(B=1, Q=1, shapes=((1, 1),)) | {"spatial_shapes": torch.tensor([[-1, -1]])}
    grad = torch.ones(1, 1, args["value"].shape[2] * args["value"].shape[3], dtype=torch.float64)
    torch.use_deterministic_algorithms(True)
    try:
        with simt.emulated():
            found = [raw(args), *BACKWARD(grad, *args.values(), [True] * 3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert not any(t.any() for t in found)


@pytest.mark.parametrize(
    "starts, words",
    [
        ([0, 12, 1_000_000], "level_start_index has a level at 1000000, wanted it at 13"),
        ([0, 12, 12], "level_start_index has a level at 12, wanted it at 13"),
        ([0, 12, -1], "level_start_index has a level at -1, wanted it at 0"),
        ([1, 13, 14], "level_start_index has a level at 1, wanted it at 0"),
    ],
)
def test_the_cpu_refuses_wrong_levels_by_itself(starts: list[int], words: str) -> None:
    """Compiled code has no wrapper that could look at values; the kernel looks."""
    args = case(B=1) | {"level_start_index": torch.tensor(starts)}
    with pytest.raises(RuntimeError, match=words):
        raw(args)
    locations, weights = args["sampling_locations"], args["attention_weights"]
    grad = torch.zeros(1, locations.shape[1], args["value"].shape[2] * args["value"].shape[3]).double()
    levels = args["spatial_shapes"], args["level_start_index"]
    with pytest.raises(RuntimeError, match=words):
        BACKWARD(grad, args["value"], *levels, locations, weights, [True] * 3)


@pytest.mark.skipif(("ms_deform_attn", "cpu") in _library.absent, reason="ops_cpu is not built")
def test_nothing_of_the_size_of_all_points_is_made() -> None:
    """Fresh memory of a call is that of its results: ``grid_sample`` would hold what every point reads."""
    args = case(B=1, Q=256, D=32, P=8, shapes=((16, 16),))
    args = {k: v.float() if v.is_floating_point() else v for k, v in args.items()}
    leaves = [args[k].requires_grad_() for k in NAMES]
    out = ops.ms_deform_attn(*args.values())
    grad = torch.ones_like(out)
    forward = peak_bytes(lambda: ops.ms_deform_attn(*args.values()))
    backward = peak_bytes(lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True))
    slack = 1 << 14  # what autograd and the profiler note themselves; what all points read is 8 times `out`
    assert out.nbytes <= forward <= out.nbytes + slack
    assert 0 <= backward - sum(t.nbytes for t in leaves) <= slack


@pytest.mark.parametrize("sizes", [{"Q": 40}, {"Q": 40, "B": 1, "M": 1}, {"Q": 9, "P": 50, "D": 3}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_for_any_number_of_threads(sizes: dict[str, int], dtype: torch.dtype) -> None:
    """More threads than heads share out the cells too. P = 50: a row of more points than a block holds."""
    args = {k: v.to(dtype) if v.is_floating_point() else v for k, v in case(**sizes).items()}
    leaves = [args[k].requires_grad_() for k in NAMES]
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7, 16):
            torch.set_num_threads(threads)
            out = raw(args)
            found.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


# The gradient of value has three kernels on a GPU: windows for queries that are the cells of maps, atomics for others,
# owners where the same bits are wanted. With 17 levels the kernels read them in memory, with fewer as arguments.
GRADIENTS = {
    "cells of the first map": {"shapes": ((9, 20), (3, 2)), "Q": 180, "D": 16, "B": 1, "P": 2, "reach": 1.2},
    "cells of all maps": {"shapes": ((9, 7), (1, 1), (2, 3)), "Q": 70, "D": 35, "M": 1, "P": 1},
    "as many queries as cells, but not known before": {"shapes": ((1, 3),) * 17, "Q": 51, "D": 17, "M": 1, "P": 1},
    "few channels": {"shapes": ((9, 7),), "Q": 63, "D": 6, "B": 1, "P": 3},
    "any queries": {"Q": 21, "D": 40, "M": 3, "B": 1},
}


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_every_way_to_the_gradient_of_value(name: str, deterministic: bool, dtype: torch.dtype) -> None:
    args = case(**GRADIENTS[name])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    cast = {"value": dtype, "sampling_locations": wide, "attention_weights": dtype}
    args = {k: v.to(cast[k]) if k in cast else v for k, v in args.items()}
    B, Q, M = args["sampling_locations"].shape[:3]
    grad = torch.randn(B, Q, M * args["value"].shape[3], generator=torch.Generator().manual_seed(3)).to(dtype)
    torch.use_deterministic_algorithms(deterministic)
    try:
        with simt.emulated():
            found = [BACKWARD(grad, *args.values(), [True, False, False]) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert [t.numel() for t in found[0][1:]] == [0, 0]
    if deterministic:
        assert torch.equal(found[0][0], found[1][0])
    exact = [t.double() if t.is_floating_point() else t for t in (grad, *args.values())]
    wanted = reference.ms_deform_attn_backward(*exact, [True, False, False])[0]
    bound = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 5e-4}[dtype]  # measured: 4e-16, 5e-7, 2.2e-4
    assert (found[0][0].double() - wanted).norm() <= bound * wanted.norm()


def test_queries_that_only_look_like_cells() -> None:
    """As many queries as cells, with sizes that do not say so: every query still gets its result."""
    args = case(shapes=((3, 5), (2, 2)), Q=19, B=1)
    args["spatial_shapes"] = torch.tensor([[3, 5], [1, 2]])
    with simt.emulated():
        torch.testing.assert_close(raw(args), reference.ms_deform_attn(*args.values()))


def test_forty_wrong_calls_have_words_of_their_own() -> None:
    """That each is refused in words is the contract's matter."""
    calls = INFO.wrong()
    assert len({call.name for call in calls}) == len(calls) >= 40
