"""``sdf_sample``: closed forms, and what is true of it alone. ``test_contract.py`` has the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cases import running
from helpers.infos._scene import BOX
from helpers.infos.sdf_sample import INFO, NAMES, oracle
from torch import Tensor

import mim4d.ops as ops
from mim4d.ops._modes import MODES


def case(dtype: torch.dtype = torch.float64, R: int = 4) -> dict[str, Any]:
    given = INFO.cast(INFO.sample("", {"R": R}), dtype)
    return {name: given[name] for name in NAMES}


def by_wrapper(args: dict[str, Any], **options: Any) -> Tensor:
    with ops.use_backend("reference"):
        return ops.sdf_sample(**args, aabb=BOX, **options)


def by_cpu(args: dict[str, Any], mode: str = "trilinear", **options: Any) -> Tensor:
    with running("sdf_sample", "cpu", "cpu", dtype=args["volume"].dtype, mode=mode):
        return ops.sdf_sample(**args, aabb=BOX, mode=mode, **options)


# The reference, and the C++ kernel.
PATHS = pytest.mark.parametrize("run", [by_wrapper, by_cpu], ids=["reference", "cpu"])


def jitter_for(args: dict[str, Any], seed: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(*args["near"].shape, 2, generator=g, dtype=torch.float64).to(args["near"].dtype)


@PATHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
def test_sorted_and_within_the_limits(run: Callable[..., Tensor], dtype: torch.dtype, mode: str) -> None:
    args = case(dtype, R=64)
    for jitter in (None, torch.zeros(2, 64, 2, dtype=dtype), torch.full((2, 64, 2), 1 - 2**-24, dtype=dtype)):
        edges = run(args, jitter=jitter, mode=mode)
        assert edges.shape == (2, 64, 97)
        assert (edges.diff(dim=-1) >= 0).all()
        assert (edges[..., 0] >= args["near"]).all()
        assert (edges[..., -1] <= args["far"] + 1e-6).all()


# ---- closed forms


def wall(x0: float, R: int = 3, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Rays along +x at a wall at x0: SDF x0 - x exactly (hidden values stay where softplus(100) is the identity)."""
    H = 2
    zeros = torch.zeros(H, dtype=dtype)
    W = torch.zeros(H, 3, dtype=dtype)
    W[0, 0] = -1.0
    last = torch.zeros(2, H, dtype=dtype)
    last[0, 0] = 1.0
    out = torch.tensor([x0 - 4.0, 0.0], dtype=dtype)
    inject = [torch.zeros(H, 3, dtype=dtype), zeros]
    return {
        "volume": torch.randn(1, 3, 1, 2, 2, dtype=dtype),
        "origins": torch.zeros(1, R, 3, dtype=dtype),
        "directions": torch.tensor([1.0, 0, 0], dtype=dtype).expand(1, R, 3),
        "near": torch.full((1, R), 0.1, dtype=dtype),
        "far": torch.full((1, R), 0.9, dtype=dtype),
        "sdf_weights": [W, zeros + 4.0, torch.eye(H, dtype=dtype), zeros, *inject, last, out, *inject],
    }


@PATHS
def test_samples_gather_at_a_crossing(run: Callable[..., Tensor]) -> None:
    """With a sharpness beyond the section length all of the weight lies in the section that holds the crossing."""
    args = wall(0.437)
    edges = run(args, sharpness=1e5)
    section = 0.8 / 72
    first = 0.1 + section * int((0.437 - 0.1) / section)
    inside = (edges >= first - 1e-9) & (edges <= first + section + 1e-9)
    # Before the wall 1e-5 / (1 + 1e-5) leaks from each of 30 sections: no importance sample of 24 falls there.
    assert (inside.sum(-1) == 24 + 2).all()  # the importance samples, and both ends of the section


@PATHS
def test_free_space_is_sampled_evenly(run: Callable[..., Tensor]) -> None:
    """A field without a slope leaks the same 1e-5 everywhere; the last section, whose end has no SDF, gets none."""
    args = case()
    args["sdf_weights"] = [torch.zeros_like(t) for t in args["sdf_weights"]]
    edges = run(args, n_uniform=8, n_importance=31)
    near, far = args["near"][..., None], args["far"][..., None]
    alpha = 1e-5 / (0.5 + 1e-5)
    w = torch.tensor([alpha * (1 - alpha + 1e-7) ** i for i in range(7)], dtype=torch.float64)
    cdf = torch.cat([torch.zeros(1, dtype=torch.float64), w.cumsum(0) / w.sum()]).numpy()
    fine = np.interp((np.arange(32) + 0.5) / 32, cdf, np.arange(8) / 8)
    starts = np.sort(np.concatenate([np.arange(8) / 8, fine[:-1]]))
    want = near + (far - near) * torch.tensor([*starts, 1.0])
    torch.testing.assert_close(edges, want, rtol=0, atol=1e-12)


@PATHS
def test_weight_of_nothing_is_padded(run: Callable[..., Tensor]) -> None:
    """Far behind a wall alpha underflows nowhere, but with one section there is no weight at all: padding alone."""
    args = wall(0.5, R=1)
    edges = run(args, n_uniform=1, n_importance=3)
    torch.testing.assert_close(edges[0, 0], 0.1 + 0.8 * torch.tensor([0.0, 0.125, 0.375, 0.625, 1.0]).double())


@PATHS
def test_jitter_moves_every_boundary_alike(run: Callable[..., Tensor]) -> None:
    args = wall(5.0, R=2)
    jitter = torch.tensor([[[0.0, 0.5], [0.75, 0.5]]], dtype=torch.float64)
    edges = (run(args, jitter=jitter, n_uniform=4, n_importance=0) - 0.1) / 0.8
    torch.testing.assert_close(edges[0, 0], torch.tensor([0, 0.125, 0.375, 0.625, 0.875]).double())
    torch.testing.assert_close(edges[0, 1], torch.tensor([0.09375, 0.3125, 0.5625, 0.8125, 0.96875]).double())


@PATHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_stretch(run: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """far = near, and far < near, give edges without length: finite, sorted, all at near."""
    args = case(dtype)
    args["far"] = args["near"].clone()
    args["far"][:, 1] -= 0.05
    edges = run(args, jitter=jitter_for(args))
    torch.testing.assert_close(edges, args["near"][..., None].expand_as(edges), rtol=0, atol=0)


# ---- the C++ kernel


def errors_of_float32(args: dict[str, Any], mode: str, jitter: Tensor | None) -> Tensor:
    """Of the kernel, against METHOD's formulas in float64 on the same numbers."""
    wide = {k: [t.double() for t in v] if isinstance(v, list) else v.double() for k, v in args.items()}
    got = by_cpu(args, mode=mode, jitter=jitter)
    assert (got.diff(dim=-1) >= 0).all()
    return (got - oracle(**wide, aabb=BOX, mode=mode, jitter=None if jitter is None else jitter.double())).abs()


@pytest.mark.parametrize("mode", ["trilinear", "tricubic"])
@pytest.mark.parametrize("jittered", [False, True])
def test_float32_of_the_usual_sizes(mode: str, jittered: bool) -> None:
    """C = 32 and widths of 16, 72 sections and 24 importance samples. Where a section has next to no weight, its share
    of the distribution is a quotient of roundings of the SDF."""
    made = INFO.sample("", {"B": 1, "R": 24, "U": 72, "I": 24, "C": 32, "H": 16, "G": 16, "layers": 6}, 4)
    given = INFO.cast(made, torch.float32)
    args = {name: given[name] for name in NAMES}
    error = errors_of_float32(args, mode, jitter_for(args) if jittered else None)
    assert error.max() < 2e-5  # measured 4.0e-6; the reference 3e-4
    assert error.flatten().quantile(0.9) < 1e-6  # measured 9.2e-8


def test_float32_at_a_wall() -> None:
    """Where the SDF is exact, so are the edges."""
    args = wall(0.437, R=16, dtype=torch.float32)
    assert errors_of_float32(args, "trilinear", jitter_for(args)).max() < 1e-6  # measured 5.5e-7


def test_the_number_of_threads_changes_no_bit() -> None:
    args, before, found = case(torch.float32, R=70), torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(by_cpu(args, jitter=jitter_for(args)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_ray_breaks_no_other(value: float) -> None:
    """Limits that are no numbers too: nothing hangs, and the other rays stay as they were."""
    args = case(torch.float32, R=4)
    want = by_cpu(args)
    for name in ("near", "far", "origins"):
        broken = {**args, name: args[name].clone()}
        broken[name][:, 2] = value
        got = by_cpu(broken)
        assert torch.equal(got[:, [0, 1, 3]], want[:, [0, 1, 3]])
