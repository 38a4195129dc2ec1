"""``sdf_march``: closed forms, and what is true of it alone. ``test_contract.py`` has the rest."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cases import running, runs
from helpers.contract import Run
from helpers.infos._scene import BOX, decoder
from helpers.infos.sdf_march import INFO, NAMES, oracle
from helpers.process import python
from torch import Tensor

import mim4d.ops as ops
from mim4d.ops._modes import MODES, PADDING
from mim4d.reference import sdf_march as reference

OUTPUTS = ("rgb", "depth", "opacity", "sdf", "gradient", "weights")
RAW = torch.ops.mim4d.sdf_march.default
HERE = Path(__file__).parent


def scene(dtype: torch.dtype = torch.float64, seed: int = 0, **sizes: Any) -> dict[str, Any]:
    """Arguments of ``sdf_march``; rays start inside the box and some leave it."""
    return INFO.cast(INFO.sample("", sizes, seed), dtype)


def leaves(args: dict[str, Any]) -> list[Tensor]:
    return INFO.leaves(args)


def require(args: dict[str, Any]) -> dict[str, Any]:
    for t in leaves(args):
        t.requires_grad_()
    return args


def raw(
    args: dict[str, Any], mode: str = "trilinear", padding_mode: str = "zeros", align: bool = False, a: float = 1.0
):
    tensors = [args[k] for k in NAMES]
    return RAW(*tensors, list(args["aabb"]), MODES[mode], PADDING[padding_mode], align, a)


def by_wrapper(
    args: dict[str, Any], mode: str = "trilinear", padding_mode: str = "zeros", align: bool = False, a: float = 1.0
):
    with ops.use_backend("reference"):
        return ops.sdf_march(**args, mode=mode, padding_mode=padding_mode, align_corners=align, cos_anneal=a)


def by_cpu(args: dict[str, Any], mode: str = "trilinear", **options: Any):
    with running("sdf_march", "cpu", "cpu", dtype=args["volume"].dtype, mode=mode):
        return ops.sdf_march(**args, mode=mode, **options)


# The reference, and the C++ kernel.
PATHS = pytest.mark.parametrize("run", [by_wrapper, by_cpu], ids=["reference", "cpu"])


def compare(run: Callable[..., Any], args: dict[str, Any], only: str | None = None) -> None:
    """Outputs, and the gradients of everything for a random mix of the outputs (or of one of them)."""
    require(args)
    got, want = run(args), oracle(**args)
    g = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(w.shape, generator=g, dtype=w.dtype) for w in want]
    for name, x, y in zip(OUTPUTS, got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    chosen = [i for i, name in enumerate(OUTPUTS) if only in (None, name)]
    pairs = [
        torch.autograd.grad([o[i] for i in chosen], leaves(args), [cotangents[i] for i in chosen], allow_unused=True)
        for o in (got, want)
    ]
    for i, (x, y) in enumerate(zip(*pairs, strict=True)):
        x, y = (torch.zeros_like(leaves(args)[i]) if t is None else t for t in (x, y))
        # Measured: below 1e-11 of the largest entry.
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-8 * max(1.0, float(y.abs().max())), msg=f"gradient {i}")


@PATHS
@pytest.mark.parametrize("only", OUTPUTS)
def test_every_output_alone(run: Callable[..., Any], only: str) -> None:
    """``gradient`` alone is an eikonal loss: second-order terms and nothing else."""
    compare(run, scene(B=1, R=3), only=only)


# ---- closed forms


def plane(dtype: torch.dtype = torch.float64, x0: float = 0.6, channels: int = 2, geometry: int = 1) -> list[Tensor]:
    """A network whose SDF is x0 - x exactly: a wall at x = x0. The hidden value stays above 0.8, where softplus(100) is
    the identity to the last bit."""
    zeros, H = torch.zeros, 2
    W = zeros(H, 3, dtype=dtype)
    W[0, 0] = -1.0
    weights = [W, torch.full((H,), 4.0, dtype=dtype)]
    for _ in range(2):
        weights += [
            torch.eye(H, dtype=dtype),
            zeros(H, dtype=dtype),
            zeros(H, channels, dtype=dtype),
            zeros(H, dtype=dtype),
        ]
    A, b = zeros(1 + geometry, H, dtype=dtype), zeros(1 + geometry, dtype=dtype)
    A[0, 0], b[0] = 1.0, x0 - 4.0
    return [*weights, A, b, zeros(H, channels, dtype=dtype), zeros(H, dtype=dtype)]


def constant_colour(
    rgb: tuple[float, float, float], condition: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    weights = [torch.zeros_like(t, dtype=dtype) for t in decoder(g, condition, 3, 2, 2)]
    weights[-3] = torch.tensor([math.log(c / (1 - c)) for c in rgb], dtype=dtype)
    return weights


def wall(dtype: torch.dtype = torch.float64, S: int = 64, inv_s: float = 2000.0, R: int = 5) -> dict[str, Any]:
    angle = torch.linspace(-0.9, 0.9, R, dtype=torch.float64) if R > 1 else torch.zeros(1, dtype=torch.float64)
    directions = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], -1)[None]
    return {
        "volume": torch.randn(1, 2, 1, 2, 2, dtype=dtype),
        "origins": torch.zeros(1, R, 3, dtype=dtype),
        "directions": directions.to(dtype),
        "edges": torch.linspace(0.05, 1.2, S + 1, dtype=dtype).expand(1, R, -1),
        "sdf_weights": plane(dtype),
        "rgb_weights": constant_colour((0.2, 0.5, 0.8), 9, dtype),
        "inv_s": torch.tensor(inv_s, dtype=dtype),
        "aabb": BOX,
    }


@PATHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wall_is_seen_where_it_stands(run: Callable[..., Any], dtype: torch.dtype) -> None:
    args = wall(dtype)
    rgb, depth, total, sdf, normal, _ = run(args)
    d, t = args["directions"], args["edges"][..., :-1]
    tiny = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(sdf, 0.6 - d[..., :1] * t, rtol=0, atol=tiny)
    torch.testing.assert_close(normal, torch.tensor([-1.0, 0, 0], dtype=dtype).expand_as(normal), rtol=0, atol=tiny)
    section = float(t[0, 0, 1] - t[0, 0, 0])
    # The section becomes opaque whose start is the nearest to the wall.
    assert (depth - 0.6 / d[..., 0]).abs().max() <= 0.5 * section + 1e-5
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=2e-3)  # 64 sections leak 1e-5 each
    colour = torch.tensor([0.2, 0.5, 0.8], dtype=dtype)
    torch.testing.assert_close(rgb, total[..., None] * colour, rtol=1e-6, atol=0)


@PATHS
def test_wall_from_behind_is_not_there(run: Callable[..., Any]) -> None:
    """Fully annealed, a surface that looks away is transparent: each section leaks 1e-5 / (P + 1e-5) and no more."""
    args = wall(R=1)
    args["origins"] = torch.tensor([[[0.9, 0.0, 0.0]]], dtype=torch.float64)
    args["directions"] = torch.tensor([[[-1.0, 0.0, 0.0]]], dtype=torch.float64)
    args["edges"] = torch.linspace(0.31, 0.8, 9, dtype=torch.float64)[None, None]  # starts 1 cm behind the wall
    _, _, total, sdf, _, w = run(args)
    assert (sdf > 0).all()
    assert total.max() < 8 * 1.01e-5
    torch.testing.assert_close(w[..., 0], 1e-5 / (torch.sigmoid(2000 * sdf[..., 0]) + 1e-5))


@PATHS
def test_zero_weights(run: Callable[..., Any]) -> None:
    args = scene(S=4)
    for name in ("sdf_weights", "rgb_weights"):
        args[name] = [torch.zeros_like(t) for t in args[name]]
    out = run(require(args))
    alpha = 1e-5 / (0.5 + 1e-5)  # no normal, no change of the SDF: P = N = 1/2
    expected = torch.tensor([alpha * (1 - alpha + 1e-7) ** i for i in range(4)], dtype=torch.float64)
    assert not out[3].any()
    assert not out[4].any()
    torch.testing.assert_close(out[5], expected.expand_as(out[5]))
    torch.testing.assert_close(out[0], 0.5 * expected.sum().expand_as(out[0]))
    grads = torch.autograd.grad(sum(o.sum() for o in out), leaves(args), allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in grads)


@PATHS
def test_opaque_at_the_first_sample(run: Callable[..., Any]) -> None:
    args = wall(R=1, S=4)
    args["edges"] = args["edges"] + 0.7  # behind the wall: P underflows, alpha = 1e-5 / 1e-5
    _, depth, total, _, _, w = run(args)
    assert w[0, 0, 0] == 1
    assert w[0, 0, 1:].sum() < 2e-7
    torch.testing.assert_close(depth, args["edges"][..., 0], rtol=1e-6, atol=0)
    assert total.max() <= 1 + 1e-5
    compare(run, args)


@PATHS
def test_sections_without_length(run: Callable[..., Any]) -> None:
    args = scene()
    args["edges"] = args["edges"][..., :1].expand_as(args["edges"]).clone()
    out = run(args)
    P = torch.sigmoid(args["inv_s"] * out[3])
    torch.testing.assert_close(out[5][..., 0], (1e-5 / (P + 1e-5))[..., 0])
    compare(run, args)


@PATHS
@pytest.mark.parametrize("inv_s", [1e-6, 1e6])
def test_extreme_sharpness(run: Callable[..., Any], inv_s: float) -> None:
    args = wall(torch.float32, inv_s=inv_s)
    out = run(require(args))
    grads = torch.autograd.grad(sum(o.sum() for o in out), leaves(args), allow_unused=True)
    assert all(t.isfinite().all() for t in (*out, *grads) if t is not None)
    if inv_s > 1:
        _, depth, _, _, _, w = out
        assert (w.max(-1).values > 0.99).all()
        assert (depth - 0.6 / args["directions"][..., 0]).abs().max() <= 0.5 * 1.15 / 64 + 1e-5
    else:
        # P - N is a difference of two float32 numbers near 1/2: measured error 0.6 % of the 1e-5 beside it.
        torch.testing.assert_close(out[5][..., 0], torch.full_like(out[5][..., 0], 1e-5 / 0.50001), rtol=2e-2, atol=0)


@pytest.mark.parametrize("run", runs("sdf_march"))
def test_a_sharpness_that_is_no_number_is_not_hidden(run: Run) -> None:
    """An opacity is clipped: a NaN must not become one of the limits there."""
    args = INFO.cast(INFO.sample("", {"B": 1, "R": 2, "S": 4}, 0), torch.float32, run[1])
    args["inv_s"] = torch.full_like(args["inv_s"], torch.nan)
    with running("sdf_march", *run, **INFO.meta(args)):
        rgb, depth, opacity, sdf, gradient, weights = ops.sdf_march(**args)
    assert all(bool(t.isnan().all()) for t in (rgb, depth, opacity, weights))
    assert all(bool(t.isfinite().all()) for t in (sdf, gradient))


@PATHS
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("inv_s", [3.0, 300.0])
def test_weights_sum_to_at_most_one(run: Callable[..., Any], seed: int, inv_s: float) -> None:
    args = scene(B=1, R=16, S=96, C=4, dtype=torch.float32, seed=seed)
    args["inv_s"] = torch.tensor(inv_s)
    _, _, total, _, _, w = run(args)
    assert (w >= 0).all()
    assert total.max() <= 1 + 1e-5


@PATHS
def test_items_of_a_batch_do_not_mix(run: Callable[..., Any]) -> None:
    args = scene(B=3)
    together = run(args)
    for i in range(3):
        one = {k: v[i : i + 1] if k in ("volume", "origins", "directions", "edges") else v for k, v in args.items()}
        for x, y in zip(together, run(one), strict=True):
            torch.testing.assert_close(x[i : i + 1], y, rtol=1e-12, atol=1e-12)


@PATHS
def test_edges_have_no_gradient(run: Callable[..., Any]) -> None:
    args = require(scene())
    args["edges"].requires_grad_()
    sum(o.sum() for o in run(args)).backward()
    assert args["edges"].grad is None


def test_gradient_of_the_volume_lies_channels_last() -> None:
    args = require(scene())
    (grad,) = torch.autograd.grad(raw(args)[0].sum(), [args["volume"]])
    assert grad.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_running_sum_of_deterministic_mode() -> None:
    """What replaces ``cumsum`` on a GPU: the same sums, the same gradient."""
    x = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    got, want = reference._doubling_sum(x), x.cumsum(-1)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
    by_got, by_want = (torch.autograd.grad(out.square().sum(), x)[0] for out in (got, want))
    torch.testing.assert_close(by_got, by_want)
    assert reference._doubling_sum(x[..., :0]).shape == (2, 3, 0)


# ---- the C++ kernel in float32: fixed sizes, every instruction set, every number of threads, memory


def widened(args: dict[str, Any]) -> dict[str, Any]:
    """A copy in float64 with gradients of its own."""
    double = lambda v: v.detach().double() if isinstance(v, Tensor) else v
    return require({k: [double(t) for t in v] if isinstance(v, list) else double(v) for k, v in args.items()})


def errors_of_float32(run: Callable[..., Any], args: dict[str, Any]) -> tuple[float, float]:
    """Largest errors of results and of gradients against float64, relative to the largest entry of each tensor."""
    wide = widened(args)
    got, want = run(require(args)), oracle(**wide)
    g = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(w.shape, generator=g, dtype=w.dtype) for w in want]
    grads = torch.autograd.grad(got, leaves(args), [c.to(x) for c, x in zip(cotangents, got, strict=True)])
    wants = torch.autograd.grad(want, leaves(wide), cotangents)

    def worst(xs: Any, ys: Any) -> float:
        pairs = [(x.detach(), y.detach()) for x, y in zip(xs, ys, strict=True)]
        return float(torch.stack([(x - y).abs().max() / y.abs().max().clamp(min=1e-3) for x, y in pairs]).max())

    return worst(got, want), worst(grads, wants)


@pytest.mark.parametrize("S", [1, 19, 96])
@pytest.mark.parametrize("layers", [2, 6])
def test_float32_of_the_usual_sizes(S: int, layers: int) -> None:
    """24 rays with the weights that torch starts with; few saturate."""
    args = scene(B=1, R=24, S=S, C=32, H=16, G=16, layers=layers, shape=(3, 6, 8), dtype=torch.float32)
    args["edges"] = args["edges"] / (0.15 * S)  # within the box
    results, gradients = errors_of_float32(by_cpu, args)
    assert results < 2e-4  # measured 5e-6
    assert gradients < 2e-3  # measured 3e-4


def test_every_instruction_set() -> None:
    """Each level that this processor has, in a process of its own, against the reference in float64."""
    program = """
import json, torch
from test_sdf_march import by_cpu, by_wrapper, leaves, require, scene, widened
from mim4d import _library
worst = {}
for dtype in (torch.float32, torch.float64):
    for sizes in ({"C": 32, "H": 16, "G": 16, "layers": 6}, {"C": 5, "H": 9, "G": 0}):
        for S, mode in ((4, "trilinear"), (21, "trilinear"), (5, "bicubic"), (5, "tricubic")):
            args = require(scene(dtype=dtype, S=S, **sizes))
            wide = widened(args)
            found = []
            for run, a in ((by_cpu, args), (by_wrapper, wide)):
                out = run(a, mode)
                found.append([*out, *torch.autograd.grad(sum(o.square().sum() for o in out), leaves(a))])
            for x, y in zip(*found):
                error = float((x - y).abs().max() / y.abs().max().clamp(min=1e-3))
                assert error >= 0, "NaN"
                worst[str(dtype)] = max(worst.get(str(dtype), 0.0), error)
print(json.dumps([_library.extension().cpu_isa(), worst]))
"""
    ran = []
    path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    for level in ("base", "avx2", "avx512"):
        done = python(program, MIM4D_CPU_ISA=level, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        isa, worst = json.loads(done.stdout)
        ran.append(isa)
        assert worst["torch.float32"] < 2e-4, (isa, worst)  # measured 3.4e-5
        assert worst["torch.float64"] < 1e-11, (isa, worst)  # measured 2.3e-13
    assert ran[0] == "base"


@pytest.mark.parametrize(("mode", "R"), [("trilinear", 220), ("tricubic", 50)])
def test_the_number_of_threads_changes_no_bit(mode: str, R: int) -> None:
    """220 rays: more samples than the backward pass takes in one batch (about 2^15 of this width)."""
    args = require(scene(B=2, R=R, S=96, dtype=torch.float32, shape=(2, 9, 9)))
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            out = by_cpu(args, mode)
            found.append([*out, *torch.autograd.grad(sum(o.sum() for o in out), leaves(args))])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(other, found[0], strict=True))
    wide = widened(args)
    out = by_wrapper(wide, mode)
    grads = torch.autograd.grad(sum(o.sum() for o in out), leaves(wide))
    for x, y in zip(found[0][6:], grads, strict=True):
        assert float((x - y).abs().max()) <= 2e-3 * float(y.abs().max())  # measured 2.3e-6


def saved_bytes(run: Callable[..., Any], args: dict[str, Any]) -> int:
    """Bytes that autograd keeps beside the inputs and the outputs."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = run(args)
    own = {t.untyped_storage().data_ptr() for t in (*leaves(args), args["edges"], *out)}
    return sum(n for p, n in kept.items() if p not in own)


def test_almost_nothing_is_saved_for_backward() -> None:
    args = require(scene(B=1, R=8, S=96, C=32, H=16, G=16, layers=6, dtype=torch.float32))
    eager = saved_bytes(lambda args: oracle(**args), args)
    assert eager > 8 * 96 * 2000  # measured 4,170 bytes a sample
    assert 50 * saved_bytes(by_cpu, args) < eager  # measured 0


def test_no_light_no_work_but_the_same_results() -> None:
    """Behind a wall the transmittance is 0 after a few samples. A loss on the field sees the samples there, a loss on
    the picture does not, and both agree with the oracle."""
    args = wall(dtype=torch.float32, S=96)
    assert not by_cpu(args)[5][..., -1].any()
    results, gradients = errors_of_float32(by_cpu, args)
    assert results < 2e-4
    assert gradients < 2e-3
    require(args)
    for name in ("weights", "gradient"):
        i = OUTPUTS.index(name)
        both = [
            torch.autograd.grad(f(args)[i].square().sum(), leaves(args), allow_unused=True)
            for f in (by_cpu, by_wrapper)
        ]
        for x, y in zip(*both, strict=True):
            y = torch.zeros_like(x) if y is None else y
            assert float((x - y).abs().max()) <= 2e-3 * max(float(y.abs().max()), 1e-3)


@pytest.mark.gpu
def test_deterministic_mode_on_a_gpu() -> None:
    args = {k: [t.cuda() for t in v] if isinstance(v, list) else v for k, v in scene(dtype=torch.float32).items()}
    args = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in args.items()}
    want = by_wrapper(args)
    torch.use_deterministic_algorithms(True)
    try:
        got = by_wrapper(args)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
