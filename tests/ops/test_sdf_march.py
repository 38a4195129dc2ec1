"""``sdf_march`` against an oracle that shares nothing with it: the normal by autograd (``create_graph``), the volume
read by a dense product of per-axis kernels instead of taps, transmittance by a running product."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import mim4d.ops as ops
from mim4d.ops._modes import MODES, PADDING
from mim4d.reference import sdf_march as reference

BOX = (-1.0, -0.8, -0.2, 1.0, 0.9, 0.3)
OUTPUTS = ("rgb", "depth", "opacity", "sdf", "gradient", "weights")
RAW = torch.ops.mim4d.sdf_march.default


def decoder(g: torch.Generator, condition: int, out: int, hidden: int, layers: int, dtype: torch.dtype) -> list[Tensor]:
    """Weights as ``torch.nn.Linear`` starts with them, in the order of the op."""

    def linear(o: int, i: int) -> list[Tensor]:
        bound = i**-0.5
        return [((torch.rand(*s, generator=g, dtype=torch.float64) * 2 - 1) * bound).to(dtype) for s in ((o, i), (o,))]

    weights = linear(hidden, 3)
    for l in range(layers):
        weights += linear(out if l == layers - 1 else hidden, hidden) + linear(hidden, condition)
    return weights


def scene(
    B: int = 2,
    R: int = 2,
    S: int = 5,
    C: int = 3,
    H: int = 4,
    G: int = 2,
    layers: int = 3,
    shape: tuple[int, int, int] = (2, 4, 5),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of ``sdf_march`` up to ``aabb``; rays start inside the box and some leave it."""
    g = torch.Generator().manual_seed(seed)

    def rand(*s: int) -> Tensor:
        return torch.rand(*s, generator=g, dtype=torch.float64)

    origins = (rand(B, R, 3) - 0.5) * torch.tensor([0.6, 0.6, 0.2])
    directions = F.normalize((rand(B, R, 3) - 0.5) * torch.tensor([1.0, 1.0, 0.2]), dim=-1)
    edges = (rand(B, R, S + 1) * 0.25).cumsum(-1)
    return {
        "volume": (rand(B, C, *shape) - 0.5).to(dtype),
        "origins": origins.to(dtype),
        "directions": directions.to(dtype),
        "edges": edges.to(dtype),
        "sdf_weights": decoder(g, C, 1 + G, H, layers, dtype),
        "rgb_weights": decoder(g, 6 + C + G, 3, H, 2, dtype),
        "inv_s": torch.tensor(7.0, dtype=dtype),
        "aabb": BOX,
    }


def leaves(args: dict[str, Any]) -> list[Tensor]:
    return [
        args["volume"],
        args["origins"],
        args["directions"],
        *args["sdf_weights"],
        *args["rgb_weights"],
        args["inv_s"],
    ]


def require(args: dict[str, Any]) -> dict[str, Any]:
    for t in leaves(args):
        t.requires_grad_()
    return args


def raw(
    args: dict[str, Any], mode: str = "trilinear", padding_mode: str = "zeros", align: bool = False, a: float = 1.0
):
    tensors = [args[k] for k in ("volume", "origins", "directions", "edges", "sdf_weights", "rgb_weights", "inv_s")]
    return RAW(*tensors, list(args["aabb"]), MODES[mode], PADDING[padding_mode], align, a)


def by_wrapper(
    args: dict[str, Any], mode: str = "trilinear", padding_mode: str = "zeros", align: bool = False, a: float = 1.0
):
    with ops.use_backend("reference"):
        return ops.sdf_march(**args, mode=mode, padding_mode=padding_mode, align_corners=align, cos_anneal=a)


# The reference, and what the dispatcher runs: the kernel of this device, or the reference again through its autograd.
PATHS = pytest.mark.parametrize("run", [by_wrapper, raw], ids=["reference", "dispatcher"])


# ---- the oracle


def kernel(distance: Tensor, mode: str, axis: int) -> Tensor:
    """Weight of a cell at a distance (in cells) from the point."""
    x = distance.abs()
    if mode == "tricubic" or (mode == "bicubic" and axis < 2):  # Keys 1981, a = -0.75
        a = -0.75
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    hat = F.relu(1 - x)
    return hat * hat * (3 - 2 * hat) if mode == "smoothstep" else hat


def read(volume: Tensor, u: Tensor, mode: str, padding_mode: str, align: bool) -> Tensor:
    """volume (C,Z,Y,X), u (P,3) -> (P,C)."""
    weights = []
    for axis, size in enumerate(reversed(volume.shape[1:])):
        position = (u[:, axis] + 1) / 2 * (size - 1) if align else ((u[:, axis] + 1) * size - 1) / 2
        cubic = mode == "tricubic" or (mode == "bicubic" and axis < 2)
        if padding_mode == "border" and not cubic:
            position = position.clamp(0, size - 1)
        margin = 4 if padding_mode == "border" else 0
        cells = torch.arange(-margin, size + margin, dtype=u.dtype)
        dense = kernel(position[:, None].clamp(-3, size + 2) - cells, mode, axis)  # (P, margin + size + margin)
        if margin:  # the border cell stands for all cells beyond it
            first = dense[:, : margin + 1].sum(1, keepdim=True)
            last = dense[:, margin + size - 1 :].sum(1, keepdim=True)
            inner = dense[:, margin + 1 : margin + size - 1]
            dense = torch.cat([first, inner, last], 1) if size > 1 else dense.sum(1, keepdim=True)
        weights.append(dense)
    return torch.einsum("px,py,pz,czyx->pc", *weights, volume)


def decode(weights: list[Tensor], p: Tensor, condition: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    h = F.linear(p, weights[0], weights[1])
    for i in range(2, len(weights), 4):
        A, b, U, c = weights[i : i + 4]
        h = F.linear(h + F.linear(condition, U, c), A, b)
        if i + 4 < len(weights):
            h = act(h)
    return h


def oracle(
    args: dict[str, Any], mode: str = "trilinear", padding_mode: str = "zeros", align: bool = False, a: float = 1.0
) -> tuple[Tensor, ...]:
    """METHOD section 6 as it stands, sample by sample along the rays."""
    B, R, S = args["edges"].shape[0], args["edges"].shape[1], args["edges"].shape[2] - 1
    low, high = (torch.tensor(x, dtype=args["origins"].dtype) for x in (args["aabb"][:3], args["aabb"][3:]))
    t, delta = args["edges"][..., :-1], args["edges"][..., 1:] - args["edges"][..., :-1]
    with torch.enable_grad():
        p = args["origins"][:, :, None] + args["directions"][:, :, None] * t[..., None]
        p = p if p.requires_grad else p.requires_grad_()
        u = 2 * (p - low) / (high - low) - 1
        f = torch.stack(
            [read(v, x.reshape(-1, 3), mode, padding_mode, align) for v, x in zip(args["volume"], u, strict=True)]
        ).view(B, R, S, -1)
        y = decode(args["sdf_weights"], p, f, lambda x: torch.logaddexp(100 * x, torch.zeros_like(x)) / 100)
        sdf, geometry = y[..., 0], y[..., 1:]
        (n,) = torch.autograd.grad(sdf.sum(), p, create_graph=True)
    d = args["directions"][:, :, None].expand(-1, -1, S, -1)
    colour = torch.sigmoid(decode(args["rgb_weights"], p, torch.cat([d, f, n, geometry], -1), F.relu))
    cos = (d * n).sum(-1)
    c = -(F.relu(-0.5 * cos + 0.5) * (1 - a) + F.relu(-cos) * a)
    P, N = (torch.sigmoid(args["inv_s"] * (sdf + sign * c * delta / 2)) for sign in (-1, 1))
    alpha = ((P - N + 1e-5) / (P + 1e-5)).clamp(0, 1)
    through, weights = torch.ones_like(alpha[..., 0]), []
    for i in range(S):
        weights.append(alpha[..., i] * through)
        through = through * (1 - alpha[..., i] + 1e-7)
    w = torch.stack(weights, -1)
    total = w.sum(-1)
    return (w[..., None] * colour).sum(2), (w * t).sum(-1) / (total + 1e-10), total, sdf, n, w


def compare(run: Callable[..., Any], args: dict[str, Any], *options: Any, only: str | None = None) -> None:
    """Outputs, and the gradients of everything for a random mix of the outputs (or of one of them)."""
    require(args)
    got, want = run(args, *options), oracle(args, *options)
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


# ---- forward and backward against the oracle


@PATHS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_mode", PADDING)
@pytest.mark.parametrize("align", [False, True])
def test_all_ways_of_reading(run: Callable[..., Any], mode: str, padding_mode: str, align: bool) -> None:
    compare(run, scene(B=2, R=2, S=3), mode, padding_mode, align)


@PATHS
@pytest.mark.parametrize("only", OUTPUTS)
def test_every_output_alone(run: Callable[..., Any], only: str) -> None:
    """``gradient`` alone is an eikonal loss: second-order terms and nothing else."""
    compare(run, scene(B=1, R=3), only=only)


@PATHS
@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_annealing(run: Callable[..., Any], a: float) -> None:
    compare(run, scene(B=1, R=4), "trilinear", "zeros", False, a)


@pytest.mark.parametrize(
    "sizes",
    [
        {"C": 1, "H": 1, "G": 0, "layers": 2},
        {"C": 7, "H": 5, "G": 3, "layers": 6, "S": 1},
        {"shape": (1, 1, 1), "R": 1, "S": 2},
        {"B": 1, "R": 1, "S": 17, "C": 16, "H": 16, "G": 16, "layers": 6},
    ],
    ids=["smallest", "one-sample", "one-voxel", "real-widths"],
)
def test_sizes(sizes: dict[str, Any]) -> None:
    compare(by_wrapper, scene(**sizes))


@PATHS
def test_gradcheck(run: Callable[..., Any]) -> None:
    args = require(scene(B=1, R=2, S=2, C=2, H=2, G=1, layers=2, shape=(2, 2, 2)))
    flat = leaves(args)
    count = len(args["sdf_weights"])

    def call(volume: Tensor, origins: Tensor, directions: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        changed = {"volume": volume, "origins": origins, "directions": directions, "inv_s": rest[-1]}
        return tuple(run({**args, **changed, "sdf_weights": rest[:count], "rgb_weights": rest[count:-1]}))

    assert torch.autograd.gradcheck(call, flat, eps=1e-6, atol=1e-5)


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
    weights = [torch.zeros_like(t) for t in decoder(g, condition, 3, 2, 2, dtype)]
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


@PATHS
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("inv_s", [3.0, 300.0])
def test_weights_sum_to_at_most_one(run: Callable[..., Any], seed: int, inv_s: float) -> None:
    args = scene(B=1, R=16, S=96, C=4, dtype=torch.float32, seed=seed)
    args["inv_s"] = torch.tensor(inv_s)
    _, _, total, _, _, w = run(args)
    assert (w >= 0).all()
    assert total.max() <= 1 + 1e-5


# ---- edges of the domain


@PATHS
def test_empty(run: Callable[..., Any]) -> None:
    for sizes, shape in (({"S": 0}, (2, 2, 0)), ({"R": 0}, (2, 0, 5)), ({"B": 0}, (0, 2, 5))):
        args = require(scene(**sizes))
        out = run(args)
        assert out[5].shape == shape
        assert not out[0].any()
        assert not out[1].any()
        grads = torch.autograd.grad(sum(o.sum() for o in out), leaves(args), allow_unused=True)
        assert all(g is None or not g.any() for g in grads)


@PATHS
def test_a_broken_ray_breaks_no_other(run: Callable[..., Any]) -> None:
    args = scene(B=1, R=3)
    good = run(args)
    args["origins"][0, 1] = torch.tensor([float("nan"), float("inf"), 0.0], dtype=torch.float64)
    bad = run(args)
    for x, y in zip(good, bad, strict=True):
        torch.testing.assert_close(x[:, ::2], y[:, ::2])
    assert bad[0][0, 1].isnan().any()


@PATHS
def test_items_of_a_batch_do_not_mix(run: Callable[..., Any]) -> None:
    args = scene(B=3)
    together = run(args)
    for i in range(3):
        one = {k: v[i : i + 1] if k in ("volume", "origins", "directions", "edges") else v for k, v in args.items()}
        for x, y in zip(together, run(one), strict=True):
            torch.testing.assert_close(x[i : i + 1], y, rtol=1e-12, atol=1e-12)


@PATHS
def test_layouts(run: Callable[..., Any]) -> None:
    args = scene(B=2, R=4)
    want = run(args)
    args["volume"] = args["volume"].contiguous(memory_format=torch.channels_last_3d)
    args["origins"] = args["origins"].transpose(0, 1).contiguous().transpose(0, 1)
    args["directions"] = torch.cat([args["directions"]] * 2, -1)[..., 3:]
    args["sdf_weights"] = [t.t().contiguous().t() if t.dim() == 2 else t for t in args["sdf_weights"]]
    for x, y in zip(run(args), want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@PATHS
def test_edges_have_no_gradient(run: Callable[..., Any]) -> None:
    args = require(scene())
    args["edges"].requires_grad_()
    sum(o.sum() for o in run(args)).backward()
    assert args["edges"].grad is None


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_volume_and_weights(half: torch.dtype) -> None:
    """Half numbers are read exactly; everything after is float32, with autocast on or off."""
    args = scene(dtype=torch.float32, B=1)
    args["volume"] = args["volume"].to(half)
    args["sdf_weights"] = [t.to(half) for t in args["sdf_weights"]]
    wide = {**args, "volume": args["volume"].float(), "sdf_weights": [t.float() for t in args["sdf_weights"]]}
    want = by_wrapper(wide)
    for run in (by_wrapper, raw):
        got = run(require(args))
        with torch.autocast("cpu", torch.bfloat16):
            narrow = run(args)
        for x, y, z in zip(got, want, narrow, strict=True):
            assert x.dtype == torch.float32
            torch.testing.assert_close(x, y, rtol=0, atol=0)
            torch.testing.assert_close(x, z, rtol=0, atol=0)
        grad = torch.autograd.grad(got[0].sum() + got[1].sum(), [args["volume"], args["sdf_weights"][0]])
        assert [g.dtype for g in grad] == [half, half]


@PATHS
def test_same_bits_every_time(run: Callable[..., Any]) -> None:
    args = require(scene(B=2, R=8, dtype=torch.float32))

    def once() -> tuple[Tensor, ...]:
        out = run(args)
        return *out, *torch.autograd.grad(sum(o.sum() for o in out), leaves(args))

    assert all(torch.equal(x, y) for x, y in zip(once(), once(), strict=True))


@PATHS
def test_without_autograd(run: Callable[..., Any]) -> None:
    args = require(scene())
    want = run(args)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = run(args)
        assert not got[0].requires_grad
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y.detach())


# ---- contract with torch


def test_opcheck() -> None:
    args = require(scene(B=2, R=2, S=3, dtype=torch.float32))
    tensors = [args[k] for k in ("volume", "origins", "directions", "edges", "sdf_weights", "rgb_weights", "inv_s")]
    torch.library.opcheck(RAW, (*tensors, list(BOX), 0, 0, False, 1.0))
    args["sdf_weights"][3].requires_grad_(False)
    torch.library.opcheck(RAW, (*tensors, list(BOX), 3, 1, True, 0.5))


@pytest.mark.parametrize("mask", [[True] * 6, [False, True, False, True, False, False], [False] * 5 + [True]])
def test_opcheck_backward(mask: list[bool]) -> None:
    args = scene(B=2, R=2, S=3, dtype=torch.float32)
    tensors = [args[k] for k in ("volume", "origins", "directions", "edges", "sdf_weights", "rgb_weights", "inv_s")]
    grads: list[Tensor | None] = [torch.randn_like(o) for o in raw(args)]
    grads[1] = None
    torch.library.opcheck(
        torch.ops.mim4d.sdf_march_backward.default, (*grads, *tensors, list(BOX), 0, 0, False, 1.0, mask)
    )


def test_frozen_inputs() -> None:
    args = require(scene())
    frozen = [args["volume"], args["sdf_weights"][2], args["rgb_weights"][0], args["origins"]]
    for t in frozen:
        t.requires_grad_(False)
    wanted = [t for t in leaves(args) if t.requires_grad]
    got, want = (torch.autograd.grad(sum(o.sin().sum() for o in f(args)), wanted) for f in (raw, by_wrapper))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


def test_gradient_of_the_volume_lies_channels_last() -> None:
    args = require(scene())
    (grad,) = torch.autograd.grad(raw(args)[0].sum(), [args["volume"]])
    assert grad.is_contiguous(memory_format=torch.channels_last_3d)


def test_second_order_through_the_op_is_refused_in_words() -> None:
    args = require(scene())
    (grad,) = torch.autograd.grad(raw(args)[0].sum(), [args["volume"]], create_graph=True)
    with pytest.raises(RuntimeError, match="sdf_march_backward has no derivative"):
        grad.sum().backward()


def eikonal_and_colour(args: dict[str, Any]) -> Tensor:
    out = ops.sdf_march(**args)
    return out.rgb.sum() + out.depth.sum() + (out.gradient.norm(dim=-1) - 1).square().mean()


def test_compile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(eikonal_and_colour, fullgraph=True, backend="aot_eager", dynamic=False)
    args = require(scene(B=2, R=3, layers=2))
    got, want = (torch.autograd.grad(f(args), leaves(args)) for f in (compiled, eikonal_and_colour))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


def test_compile_once_for_any_number_of_rays() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(eikonal_and_colour, fullgraph=True, backend=counter)
    for R in (3, 5, 8):
        args = require(scene(B=2, R=R, layers=2))
        for name in ("origins", "directions", "edges"):
            torch._dynamo.mark_dynamic(args[name], 1)
        torch.testing.assert_close(compiled(args), eikonal_and_colour(args))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"volume": torch.zeros(2, 3, 4, 5)}, ValueError, r"volume has shape \(2, 3, 4, 5\), wanted \(B, C, Z, Y, X\)"),
        ({"volume": torch.zeros(2, 3, 0, 4, 5)}, ValueError, "wanted C, Z, Y and X of at least 1"),
        ({"volume": torch.zeros(2, 3, 2, 4, 5, dtype=torch.int32)}, TypeError, "volume is torch.int32"),
        ({"volume": None}, TypeError, "volume is NoneType, wanted a Tensor"),
        ({"origins": torch.zeros(2, 2, 2)}, ValueError, r"origins has shape \(2, 2, 2\), wanted \(2, R, 3\)"),
        ({"origins": torch.zeros(2, 2, 3)}, TypeError, "origins is torch.float32, wanted torch.float64 with a volume"),
        ({"origins": torch.zeros(2, 2, 3, device="meta")}, ValueError, "origins is on meta, wanted cpu"),
        ({"directions": torch.zeros(2, 4, 3)}, ValueError, r"directions has shape \(2, 4, 3\), wanted \(2, 2, 3\)"),
        ({"edges": torch.zeros(2, 3, 6)}, ValueError, r"edges has shape \(2, 3, 6\), wanted \(2, 2, S \+ 1\)"),
        ({"edges": torch.zeros(2, 2, 0, dtype=torch.float64)}, ValueError, "with S >= 0"),
        ({"edges": torch.zeros(2, 2, 6, dtype=torch.float16)}, TypeError, "edges is torch.float16"),
        ({"sdf_weights": torch.zeros(3)}, TypeError, "sdf_weights is Tensor, wanted a list of Tensors"),
        ({"sdf_weights": [torch.zeros(4, 3)] * 9}, ValueError, "sdf_weights holds 9 tensors, wanted 2 \\+ 4 per layer"),
        ({"rgb_weights": [torch.zeros(4, 3)] * 6}, ValueError, "rgb_weights holds 6 tensors"),
        ({"rgb_weights": ["x"] * 10}, TypeError, r"rgb_weights\[0\] is str, wanted a Tensor"),
        ({"inv_s": 20.0}, TypeError, "inv_s is float, wanted a Tensor"),
        ({"inv_s": torch.ones(1)}, ValueError, r"inv_s has shape \(1,\), wanted \(\)"),
        ({"aabb": (0.0, 0, 0, 1, 1)}, ValueError, "aabb is .*, wanted xmin"),
        ({"aabb": (0.0, 0, 0, 1, 1, 0)}, ValueError, "aabb is .*, wanted xmin"),
        ({"aabb": (0.0, 0, 0, 1, 1, float("nan"))}, ValueError, "aabb is .*, wanted xmin"),
        ({"mode": "cubic"}, ValueError, "mode is 'cubic', wanted one of trilinear"),
        ({"padding_mode": "wrap"}, ValueError, "padding_mode is 'wrap', wanted one of zeros"),
        ({"cos_anneal": 1.5}, ValueError, r"cos_anneal is 1.5, wanted a number in \[0, 1\]"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=r"mim4d\.ops\.sdf_march: .*" + words):
        ops.sdf_march(**{**scene(), **change})


@pytest.mark.parametrize(
    "name, i, shape",
    [
        ("sdf_weights", 4, "(4, 3)"),
        ("sdf_weights", 11, "(1 + G,)"),
        ("rgb_weights", 4, "(4, 11)"),
        ("rgb_weights", 6, "(3, 4)"),
    ],
)
def test_errors_of_one_weight(name: str, i: int, shape: str) -> None:
    args = scene()
    args[name][i] = torch.zeros(9, 9, dtype=torch.float64)
    with pytest.raises(ValueError) as error:
        ops.sdf_march(**args)
    assert f"{name}[{i}] has shape (9, 9), wanted {shape}" in str(error.value)
    args = scene(dtype=torch.float32)
    args[name][i] = args[name][i].double()
    with pytest.raises(TypeError, match=r"is torch\.float64, wanted float16, bfloat16 or float32"):
        ops.sdf_march(**args)


@PATHS
@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_what_lies_outside_is_not_read(run: Callable[..., Any], odd: float) -> None:
    """Rays beyond the low x face, over a volume that is odd but for its first slice in x."""
    args = scene(B=1)
    args["origins"] = torch.tensor([-1.15, 0.0, 0.0], dtype=torch.float64).expand(1, 2, 3).clone()  # 0.4 cells out
    args["directions"][:] = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    args["edges"][:] = torch.linspace(0, 2, 6, dtype=torch.float64)  # and out of the far y face
    args["volume"][..., 1:] = odd
    require(args)
    out = run(args)
    grads = torch.autograd.grad(sum(o.sum() for o in out), leaves(args), allow_unused=True)
    assert all(t.isfinite().all() for t in (*out, *(g for g in grads if g is not None)))
    assert grads[0][..., 0].any()


def test_the_running_sum_of_deterministic_mode() -> None:
    """What replaces ``cumsum`` on a GPU: the same sums, the same gradient."""
    x = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    got, want = reference._doubling_sum(x), x.cumsum(-1)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
    by_got, by_want = (torch.autograd.grad(out.square().sum(), x)[0] for out in (got, want))
    torch.testing.assert_close(by_got, by_want)
    assert reference._doubling_sum(x[..., :0]).shape == (2, 3, 0)


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
