"""``sdf_sample`` against METHOD's formulas written out with loops over single numbers, and against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mim4d.ops as ops
from mim4d.ops._modes import MODES, PADDING

BOX = (-1.0, -0.8, -0.2, 1.0, 0.9, 0.3)
RAW = torch.ops.mim4d.sdf_sample.default


def by_wrapper(args: dict[str, Any], **options: Any) -> Tensor:
    with ops.use_backend("reference"):
        return ops.sdf_sample(**args, aabb=BOX, **options)


def raw(
    args: dict[str, Any],
    jitter: Tensor | None = None,
    n_uniform: int = 72,
    n_importance: int = 24,
    sharpness: float = 64.0,
    mode: str = "trilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    tensors = [args[k] for k in ("volume", "origins", "directions", "near", "far", "sdf_weights")]
    options = n_uniform, n_importance, sharpness, MODES[mode], PADDING[padding_mode], align_corners
    return RAW(*tensors, list(BOX), jitter, *options)


PATHS = pytest.mark.parametrize("run", [by_wrapper, raw], ids=["reference", "dispatcher"])


def field(dtype: torch.dtype, hidden: int = 4, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """A volume (2,3,2,4,5) and a random network over it."""
    g = torch.Generator().manual_seed(seed)

    def uniform(*s: int) -> Tensor:
        return ((torch.rand(*s, generator=g, dtype=torch.float64) * 2 - 1) * s[-1] ** -0.5).to(dtype)

    H = hidden
    shapes = [(H, 3), (H,), (H, H), (H,), (H, 3), (H,), (3, H), (3,), (H, 3), (H,)]
    return uniform(2, 3, 2, 4, 5), [uniform(*s) for s in shapes]


def case(dtype: torch.dtype = torch.float64, R: int = 4, seed: int = 0) -> dict[str, Any]:
    volume, weights = field(dtype, seed=seed)
    g = torch.Generator().manual_seed(seed + 1)
    origins = (torch.rand(2, R, 3, generator=g, dtype=torch.float64) - 0.5) * 0.3
    directions = F.normalize(torch.rand(2, R, 3, generator=g, dtype=torch.float64) - 0.5, dim=-1)
    near = torch.rand(2, R, generator=g, dtype=torch.float64) * 0.1
    far = near + 0.2 + torch.rand(2, R, generator=g, dtype=torch.float64)
    named = {"volume": volume, "origins": origins, "directions": directions, "near": near, "far": far}
    return {**{k: v.to(dtype) for k, v in named.items()}, "sdf_weights": weights}


def jitter_for(args: dict[str, Any], seed: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(*args["near"].shape, 2, generator=g, dtype=torch.float64).to(args["near"].dtype)


# ---- the formulas, one number at a time


def sdf_of(args: dict[str, Any], b: int, r: int, t: float) -> float:
    low, high = (torch.tensor(x, dtype=torch.float64) for x in (BOX[:3], BOX[3:]))
    p = args["origins"][b, r].double() + t * args["directions"][b, r].double()
    u = 2 * (p - low) / (high - low) - 1
    volume = args["volume"][b : b + 1].double()
    f = F.grid_sample(volume, u.view(1, 1, 1, 1, 3), align_corners=False).view(-1)  # trilinear, zeros
    W, w, A0, b0, U0, c0, A1, b1, U1, c1 = (x.double() for x in args["sdf_weights"])
    h = A0 @ (W @ p + w + U0 @ f + c0) + b0
    h = torch.logaddexp(100 * h, torch.zeros_like(h)) / 100
    return float((A1 @ (h + U1 @ f + c1) + b1)[0])


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def by_hand(args: dict[str, Any], b: int, r: int, jitter: tuple[float, float] | None, U: int, I: int, s: float) -> list:
    """Edges of one ray, METHOD section 6, "Samples"."""
    near, far = float(args["near"][b, r]), float(args["far"][b, r])
    place = [i / U for i in range(U + 1)]
    if jitter is not None:
        middle = [(place[i] + place[i + 1]) / 2 for i in range(U)]
        low, high = [place[0], *middle], [*middle, place[-1]]
        place = [a + (c - a) * jitter[0] for a, c in zip(low, high, strict=True)]
    edge = [near + (far - near) * x for x in place]
    f = [sdf_of(args, b, r, t) for t in edge[:U]]
    delta = [edge[i + 1] - edge[i] for i in range(U - 1)]
    q = [(f[i + 1] - f[i]) / (delta[i] + 1e-5) for i in range(U - 1)]
    weights, through = [], 1.0
    for i in range(U - 1):
        slope = min(max(min(q[i], q[i - 1] if i else 0.0), -1000.0), 0.0)
        m = (f[i] + f[i + 1]) / 2
        P, N = sigmoid(s * (m - slope * delta[i] / 2)), sigmoid(s * (m + slope * delta[i] / 2))
        alpha = min(max((P - N + 1e-5) / (P + 1e-5), 0.0), 1.0)
        weights.append(alpha * through)
        through *= 1 - alpha + 1e-7
    weights.append(0.0)
    lack = max(0.0, 1e-5 - sum(weights))
    weights = [x + lack / U for x in weights]
    cdf = np.concatenate([[0.0], np.cumsum(weights)]) / sum(weights)
    fine = []
    for j in range(I + 1):
        u = (j + (0.5 if jitter is None else jitter[1])) / (I + 1)
        i = max(k for k in range(U + 1) if cdf[k] <= u)
        i = min(i, U - 1)
        width = cdf[i + 1] - cdf[i]
        fine.append(edge[i] + (edge[i + 1] - edge[i]) * ((u - cdf[i]) / width if width > 0 else 0.0))
    return [*sorted([*edge[:U], *fine[:I]]), max(edge[U], fine[I])]


@PATHS
@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_formulas(run: Callable[..., Tensor], jittered: bool, dtype: torch.dtype, tolerance: float) -> None:
    args = case(dtype)
    jitter = jitter_for(args) if jittered else None
    got = run(args, jitter=jitter, n_uniform=9, n_importance=5)
    for b in range(2):
        for r in range(4):
            j = None if jitter is None else (float(jitter[b, r, 0]), float(jitter[b, r, 1]))
            want = torch.tensor(by_hand(args, b, r, j, 9, 5, 64.0), dtype=torch.float64)
            torch.testing.assert_close(got[b, r].double(), want, rtol=0, atol=tolerance)


@PATHS
@pytest.mark.parametrize("U, I", [(72, 24), (1, 1), (1, 3), (2, 4), (3, 0), (17, 7)])
def test_counts(run: Callable[..., Tensor], U: int, I: int) -> None:
    args = case()
    jitter = jitter_for(args)
    got = run(args, jitter=jitter, n_uniform=U, n_importance=I, sharpness=32.0)
    assert got.shape == (2, 4, U + I + 1)
    assert (got.diff(dim=-1) >= 0).all()
    j = (float(jitter[1, 2, 0]), float(jitter[1, 2, 1]))
    want = torch.tensor(by_hand(args, 1, 2, j, U, I, 32.0), dtype=torch.float64)
    torch.testing.assert_close(got[1, 2], want, rtol=0, atol=1e-12)


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


# ---- edges of the domain


@PATHS
def test_empty(run: Callable[..., Tensor]) -> None:
    assert run(case(R=0)).shape == (2, 0, 97)
    none = {k: v[:0] if isinstance(v, Tensor) else v for k, v in case().items()}
    assert run(none, jitter=torch.zeros(0, 4, 2, dtype=torch.float64)).shape == (0, 4, 97)


@PATHS
def test_a_broken_ray_breaks_no_other(run: Callable[..., Tensor]) -> None:
    args = case()
    want = run(args)
    args["origins"][0, 1] = float("nan")
    args["directions"][0, 3] = float("inf")
    got = run(args)
    torch.testing.assert_close(got[0, ::2], want[0, ::2])
    torch.testing.assert_close(got[1], want[1])


@PATHS
def test_no_gradient(run: Callable[..., Tensor]) -> None:
    args = case()
    for t in (args["volume"], args["origins"], args["near"], *args["sdf_weights"]):
        t.requires_grad_()
    edges = run(args)
    assert not edges.requires_grad
    with torch.inference_mode():
        assert torch.equal(run(args), edges)


@PATHS
def test_same_bits_every_time(run: Callable[..., Tensor]) -> None:
    args = case(torch.float32, R=16)
    jitter = jitter_for(args)
    assert torch.equal(run(args, jitter=jitter), run(args, jitter=jitter))


@PATHS
def test_half_volume_and_autocast(run: Callable[..., Tensor]) -> None:
    args = case(torch.float32)
    args["volume"] = args["volume"].bfloat16()
    want = run({**args, "volume": args["volume"].float()})
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(run(args), want, rtol=0, atol=0)


# ---- contract with torch


@pytest.mark.parametrize("jittered", [False, True])
def test_opcheck(jittered: bool) -> None:
    args = case(torch.float32)
    args["volume"].requires_grad_()
    args["sdf_weights"][1].requires_grad_()
    tensors = [args[k] for k in ("volume", "origins", "directions", "near", "far", "sdf_weights")]
    jitter = jitter_for(args) if jittered else None
    torch.library.opcheck(RAW, (*tensors, list(BOX), jitter, 6, 3, 64.0, 0, 0, False))


def test_compile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(by_name, fullgraph=True, backend="aot_eager", dynamic=False)
    args = case()
    torch.testing.assert_close(compiled(args, jitter_for(args)), by_name(args, jitter_for(args)))


def by_name(args: dict[str, Any], jitter: Tensor) -> Tensor:
    return ops.sdf_sample(**args, aabb=BOX, jitter=jitter, n_uniform=6, n_importance=3)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"volume": torch.zeros(2, 3, 4)}, ValueError, r"volume has shape \(2, 3, 4\), wanted \(B, C, Z, Y, X\)"),
        ({"origins": torch.zeros(3, 4, 3)}, ValueError, r"origins has shape \(3, 4, 3\), wanted \(2, R, 3\)"),
        ({"directions": None}, TypeError, "directions is NoneType, wanted a Tensor"),
        ({"near": torch.zeros(2, 3)}, ValueError, r"near has shape \(2, 3\), wanted \(2, 4\)"),
        ({"far": torch.zeros(2, 4)}, TypeError, r"far is torch\.float32, wanted torch\.float64 as origins"),
        ({"far": torch.zeros(2, 4, device="meta")}, ValueError, "far is on meta, wanted cpu as the volume"),
        ({"sdf_weights": []}, ValueError, "sdf_weights holds 0 tensors"),
        ({"jitter": torch.zeros(2, 4, 1)}, ValueError, r"jitter has shape \(2, 4, 1\), wanted \(2, 4, 2\)"),
        ({"jitter": torch.zeros(2, 4, 2).int()}, TypeError, r"jitter is torch\.int32, wanted a floating dtype"),
        ({"n_uniform": 0}, ValueError, "n_uniform is 0, wanted at least 1"),
        ({"n_importance": -1}, ValueError, "n_importance is -1, wanted at least 0"),
        ({"sharpness": 0.0}, ValueError, r"sharpness is 0\.0, wanted a positive number"),
        ({"aabb": (0, 0, 0)}, ValueError, "aabb is .*, wanted xmin"),
        ({"mode": "nearest"}, ValueError, "mode is 'nearest', wanted one of trilinear"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=r"mim4d\.ops\.sdf_sample: .*" + words):
        ops.sdf_sample(**{**case(), "aabb": BOX, **change})
