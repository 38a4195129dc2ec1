"""``ms_deform_attn`` against a loop over single numbers in numpy, and against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import mim4d.ops as ops

RAW = torch.ops.mim4d.ms_deform_attn.default
SHAPES = ((4, 3), (1, 1), (2, 5))
NAMES = ("value", "sampling_locations", "attention_weights")


def case(
    B: int = 2,
    Q: int = 3,
    M: int = 2,
    D: int = 5,
    P: int = 4,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    """Locations reach half a map beyond each side. Weights do not sum to one: the op must not care."""
    g = torch.Generator().manual_seed(seed)
    cells = [h * w for h, w in shapes]
    L = len(shapes)
    return {
        "value": torch.randn(B, sum(cells), M, D, generator=g, dtype=torch.float64).to(dtype),
        "spatial_shapes": torch.tensor(shapes),
        "level_start_index": torch.tensor([sum(cells[:i]) for i in range(L)]),
        "sampling_locations": (torch.rand(B, Q, M, L, P, 2, generator=g, dtype=torch.float64) * 2 - 0.5).to(dtype),
        "attention_weights": torch.randn(B, Q, M, L, P, generator=g, dtype=torch.float64).to(dtype),
    }


def by_wrapper(args: dict[str, Any]) -> Tensor:
    with ops.use_backend("reference"):
        return ops.ms_deform_attn(**args)


def raw(args: dict[str, Any]) -> Tensor:
    return RAW(*args.values())


PATHS = pytest.mark.parametrize("run", [by_wrapper, raw], ids=["reference", "dispatcher"])


def by_hand(args: dict[str, Any]) -> np.ndarray:
    value, shapes, starts, locations, weights = (t.double().numpy() for t in args.values())
    B, Q, M, L, P, _ = locations.shape
    D = value.shape[3]
    out = np.zeros((B, Q, M * D))
    for b, q, m, l, p in np.ndindex(B, Q, M, L, P):
        H, W = (int(x) for x in shapes[l])
        x, y = locations[b, q, m, l, p, 0] * W - 0.5, locations[b, q, m, l, p, 1] * H - 0.5
        if not (-1 < x < W and -1 < y < H):
            continue
        i, j = int(np.floor(x)), int(np.floor(y))
        for row, column in ((j, i), (j, i + 1), (j + 1, i), (j + 1, i + 1)):
            if 0 <= row < H and 0 <= column < W:
                near = (1 - abs(x - column)) * (1 - abs(y - row))
                cell = int(starts[l]) + row * W + column
                out[b, q, m * D : (m + 1) * D] += weights[b, q, m, l, p] * near * value[b, cell, m]
    return out


@PATHS
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"D": 1, "M": 1},
        {"D": 7, "M": 3, "P": 1},
        {"shapes": ((1, 1),)},
        {"shapes": ((1, 1), (1, 1), (1, 2), (3, 1))},
        {"shapes": ((6, 7),), "D": 32, "Q": 11, "B": 1},
    ],
    ids=["pyramid", "one-channel", "odd", "one-pixel", "thin-levels", "bev"],
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_forward(run: Callable[..., Tensor], sizes: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    args = case(**sizes, dtype=dtype)
    got = run(args)
    assert got.dtype == dtype
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), torch.from_numpy(by_hand(args)), rtol=tolerance, atol=tolerance)


@PATHS
def test_gradcheck(run: Callable[..., Tensor]) -> None:
    args = case(B=1, Q=2, D=3, P=2, shapes=((2, 3), (1, 1)))
    inputs = [args[k].requires_grad_() for k in NAMES]
    assert torch.autograd.gradcheck(lambda *x: run({**args, **dict(zip(NAMES, x, strict=True))}), inputs)


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


@PATHS
@pytest.mark.parametrize("sizes", [{"Q": 0}, {"B": 0}, {"P": 0}, {"M": 0}])
def test_empty(run: Callable[..., Tensor], sizes: dict[str, int]) -> None:
    args = case(**sizes)
    inputs = [args[k].requires_grad_() for k in NAMES]
    out = run(args)
    B, Q, M = args["sampling_locations"].shape[:3]
    assert out.shape == (B, Q, M * 5)
    assert not out.any()
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), inputs))


@PATHS
def test_layouts(run: Callable[..., Tensor]) -> None:
    args = case()
    want = run(args)
    args["value"] = args["value"].permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
    args["sampling_locations"] = args["sampling_locations"].flip(0).contiguous().flip(0)
    args["attention_weights"] = args["attention_weights"].transpose(1, 4).contiguous().transpose(1, 4)
    torch.testing.assert_close(run(args), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_value(half: torch.dtype) -> None:
    """Sums in float32, one rounding at the end; under autocast narrowed locations are widened."""
    args = case(dtype=torch.float32)
    args["value"] = args["value"].to(half)
    want = by_wrapper({**args, "value": args["value"].float()}).to(half)
    for run in (by_wrapper, raw):
        got = run(args)
        assert got.dtype == half
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = {**args, "sampling_locations": args["sampling_locations"].bfloat16()}
        wide = {**args, "sampling_locations": narrow["sampling_locations"].float()}
        torch.testing.assert_close(by_wrapper(narrow), by_wrapper(wide), rtol=0, atol=0)
    with pytest.raises(TypeError, match=r"sampling_locations is torch\.bfloat16, wanted torch\.float32"):
        by_wrapper(narrow)


@PATHS
def test_same_bits_every_time(run: Callable[..., Tensor]) -> None:
    args = case(Q=50, dtype=torch.float32)
    inputs = [args[k].requires_grad_() for k in NAMES]

    def once() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(args).square().sum(), inputs)

    assert all(torch.equal(x, y) for x, y in zip(once(), once(), strict=True))


# ---- contract with torch


def test_opcheck() -> None:
    args = case(dtype=torch.float32)
    for k in NAMES:
        args[k].requires_grad_()
    torch.library.opcheck(RAW, tuple(args.values()))
    args["attention_weights"].requires_grad_(False)
    torch.library.opcheck(RAW, tuple(args.values()))


@pytest.mark.parametrize("mask", [[True, True, True], [False, True, False], [True, False, True]])
def test_opcheck_backward(mask: list[bool]) -> None:
    args = case(dtype=torch.float32)
    grad = torch.randn_like(raw(args))
    torch.library.opcheck(torch.ops.mim4d.ms_deform_attn_backward.default, (grad, *args.values(), mask))


def test_second_order_through_the_op_is_refused_in_words() -> None:
    args = case()
    args["value"].requires_grad_()
    args["sampling_locations"].requires_grad_()
    (grad,) = torch.autograd.grad(raw(args).sum(), [args["sampling_locations"]], create_graph=True)
    with pytest.raises(RuntimeError, match="ms_deform_attn_backward has no derivative"):
        grad.sum().backward()


def test_second_order_through_the_reference() -> None:
    args = case(B=1, Q=1, M=1, D=2, P=2, shapes=((2, 2),))
    inputs = [args[k].requires_grad_() for k in NAMES]
    assert torch.autograd.gradgradcheck(lambda *x: by_wrapper({**args, **dict(zip(NAMES, x, strict=True))}), inputs)


def attend(args: dict[str, Any]) -> Tensor:
    return ops.ms_deform_attn(**args).sin().sum()


@pytest.mark.parametrize("levels", ["tensors", "tuples"])
def test_compile(levels: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=False)
    args = case()
    if levels == "tuples":
        args["spatial_shapes"], args["level_start_index"] = SHAPES, (0, 12, 13)
    inputs = [args[k].requires_grad_() for k in NAMES]
    got, want = (torch.autograd.grad(f(args), inputs) for f in (compiled, attend))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


def test_compile_once_for_any_number_of_queries() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    for Q in (3, 6, 9):
        args = case(Q=Q)
        for name in NAMES[1:]:
            torch._dynamo.mark_dynamic(args[name], 1)
        torch.testing.assert_close(compiled(args), attend(args))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"value": torch.zeros(2, 23, 10)}, ValueError, r"value has shape \(2, 23, 10\), wanted \(B, S, M, D\)"),
        ({"value": torch.zeros(2, 23, 2, 5).int()}, TypeError, r"value is torch\.int32, wanted a floating dtype"),
        (
            {"value": torch.zeros(2, 0, 2, 5)},
            ValueError,
            "value has S = 0 and spatial_shapes 3 levels, wanted at least 1",
        ),
        ({"value": torch.zeros(2, 24, 2, 5).double()}, ValueError, "value has S = 24, wanted 23 for spatial_shapes"),
        ({"spatial_shapes": torch.zeros(3, 2)}, TypeError, r"spatial_shapes is torch\.float32, wanted torch\.int64"),
        (
            {"spatial_shapes": torch.zeros(3, 3).long()},
            ValueError,
            r"spatial_shapes has shape \(3, 3\), wanted \(L, 2\)",
        ),
        (
            {"spatial_shapes": [(4, 3), (1, 1), (0, 5)]},
            ValueError,
            r"spatial_shapes is .*\[0, 5\].*, wanted sizes of at",
        ),
        (
            {"spatial_shapes": torch.zeros(3, 2, device="meta").long()},
            ValueError,
            "spatial_shapes is on meta, wanted cpu",
        ),
        ({"level_start_index": (0, 12)}, ValueError, r"level_start_index has shape \(2,\), wanted \(3,\)"),
        (
            {"level_start_index": (0, 12, 14)},
            ValueError,
            r"level_start_index is \[0, 12, 14\], wanted every level inside",
        ),
        ({"level_start_index": (-1, 12, 13)}, ValueError, r"level_start_index is \[-1, 12, 13\], wanted every level"),
        ({"sampling_locations": torch.zeros(2, 3, 2, 2, 4, 2)}, ValueError, r"wanted \(2, Q, 2, 3, P, 2\)"),
        ({"sampling_locations": torch.zeros(2, 3, 2, 3, 4, 2)}, TypeError, r"is torch\.float32, wanted torch\.float64"),
        ({"attention_weights": torch.zeros(2, 3, 2, 3, 1)}, ValueError, r"wanted \(2, 3, 2, 3, 4\)"),
        ({"attention_weights": None}, TypeError, "attention_weights is NoneType, wanted a Tensor"),
        (
            {"attention_weights": torch.zeros(2, 3, 2, 3, 4, device="meta")},
            ValueError,
            "is on meta, wanted cpu as value",
        ),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=r"mim4d\.ops\.ms_deform_attn: .*" + words):
        ops.ms_deform_attn(**{**case(), **change})


def test_a_wrong_level_is_dropped_where_nobody_checks() -> None:
    """Below the wrapper, as on a GPU: taps that leave S are not followed."""
    args = case(B=1)
    args["level_start_index"] = torch.tensor([0, 12, 1_000_000])
    fewer = {**args, "level_start_index": torch.tensor([0, 12, 13])}
    fewer["attention_weights"] = args["attention_weights"].clone()
    fewer["attention_weights"][:, :, :, 2] = 0
    torch.testing.assert_close(RAW(*args.values()), RAW(*fewer.values()))


@PATHS
@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_what_lies_outside_is_not_read(run: Callable[..., Tensor], odd: float) -> None:
    """A clamped cell with weight 0 would be read: 0 * inf is NaN."""
    args = case(B=1, Q=4, M=1, P=1, shapes=((2, 2),))
    value, location, weight = (args[k] for k in ("value", "sampling_locations", "attention_weights"))
    location[:] = torch.tensor([-0.1, -0.1], dtype=torch.float64)  # reads cell 0 and three cells outside
    location[0, 1:] = torch.tensor([7.0, float("nan")], dtype=torch.float64)
    value[:, 1:] = odd
    for t in (value, location, weight):
        t.requires_grad_()
    out = run(args)
    grads = torch.autograd.grad(out.sum(), (value, location, weight))
    assert out[0, 0].all()
    assert all(t.isfinite().all() for t in (out, *grads))
