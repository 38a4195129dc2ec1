"""``ms_deform_attn``: closed forms, and what is true of it alone. ``test_contract.py`` has the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.infos.ms_deform_attn import INFO
from helpers.infos.ms_deform_attn import PYRAMID as SHAPES
from torch import Tensor

import mim4d.ops as ops

RAW = torch.ops.mim4d.ms_deform_attn.default
NAMES = ("value", "sampling_locations", "attention_weights")


def case(**sizes: Any) -> dict[str, Any]:
    return INFO.arguments(INFO.sample("", sizes))


def by_wrapper(args: dict[str, Any]) -> Tensor:
    with ops.use_backend("reference"):
        return ops.ms_deform_attn(**args)


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


def test_a_wrong_level_is_dropped_where_nobody_checks() -> None:
    """Below the wrapper, as on a GPU: taps that leave S are not followed."""
    args = case(B=1)
    args["level_start_index"] = torch.tensor([0, 12, 1_000_000])
    fewer = {**args, "level_start_index": torch.tensor([0, 12, 13])}
    fewer["attention_weights"] = args["attention_weights"].clone()
    fewer["attention_weights"][:, :, :, 2] = 0
    torch.testing.assert_close(RAW(*args.values()), RAW(*fewer.values()))
