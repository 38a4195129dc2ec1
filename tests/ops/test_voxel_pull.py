"""``voxel_pull`` against a loop over voxels, cameras and levels that reads with ``grid_sample``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mim4d.ops as ops

RAW = torch.ops.mim4d.voxel_pull.default
SIZES = ((3, 4), (1, 1), (2, 3))


def case(
    B: int = 2,
    N: int = 3,
    V: int = 5,
    C: int = 4,
    D: int = 3,
    sizes: tuple[tuple[int, int], ...] = SIZES,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """features, depth_probs, uvd; about half of the voxels are seen by a camera."""
    g = torch.Generator().manual_seed(seed)
    features = [torch.randn(B, N, C, h, w, generator=g, dtype=torch.float64).to(dtype) for h, w in sizes]
    depth = [torch.rand(B, N, D, h, w, generator=g, dtype=torch.float64).to(dtype) for h, w in sizes]
    return features, depth, (torch.rand(B, N, V, 3, generator=g, dtype=torch.float64) * 2.5 - 1.25).to(dtype)


def by_wrapper(features: list[Tensor], depth: list[Tensor], uvd: Tensor) -> Tensor:
    with ops.use_backend("reference"):
        return ops.voxel_pull(features, depth, uvd)


def raw(features: list[Tensor], depth: list[Tensor], uvd: Tensor) -> Tensor:
    return RAW(features, depth, uvd)


PATHS = pytest.mark.parametrize("run", [by_wrapper, raw], ids=["reference", "dispatcher"])


def loop(features: list[Tensor], depth: list[Tensor], uvd: Tensor) -> Tensor:
    B, N, V, _ = uvd.shape
    out = torch.zeros(B, features[0].shape[2], V, dtype=uvd.dtype)
    for b in range(B):
        for v in range(V):
            for n in range(N):
                u = uvd[b, n, v]
                if not bool(((u > -1) & (u < 1)).all()):
                    continue
                for image, probs in zip(features, depth, strict=True):
                    f = F.grid_sample(image[b, n][None], u[:2].view(1, 1, 1, 2), align_corners=False).flatten()
                    p = F.grid_sample(probs[b, n][None, None], u.view(1, 1, 1, 1, 3), align_corners=False).flatten()
                    out[b, :, v] = out[b, :, v] + f * p
    return out


@PATHS
@pytest.mark.parametrize(
    "sizes",
    [{}, {"C": 1, "D": 1}, {"C": 17, "sizes": ((2, 5),)}, {"B": 1, "N": 1, "V": 1}, {"sizes": ((1, 1),), "D": 1}],
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_against_a_loop(
    run: Callable[..., Tensor], sizes: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    features, depth, uvd = case(**sizes, dtype=dtype)
    inputs = [t.requires_grad_() for t in (*features, *depth, uvd)]
    got, want = run(features, depth, uvd), loop(features, depth, uvd)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    assert got.transpose(1, 2).is_contiguous()
    cotangent = torch.randn_like(want)
    if want.requires_grad:  # some voxel is seen
        pairs = (torch.autograd.grad(o, inputs, cotangent) for o in (got, want))
        for x, y in zip(*pairs, strict=True):
            torch.testing.assert_close(x, y, rtol=10 * tolerance, atol=10 * tolerance)


@PATHS
def test_gradcheck(run: Callable[..., Tensor]) -> None:
    features, depth, uvd = case(B=1, N=2, V=3, C=2, D=2, sizes=((2, 2), (1, 2)))
    uvd = uvd * 0.7
    inputs = [t.requires_grad_() for t in (*features, *depth, uvd)]
    assert torch.autograd.gradcheck(lambda *x: run(list(x[:2]), list(x[2:4]), x[4]), inputs)


@PATHS
def test_only_strictly_inside_counts(run: Callable[..., Tensor]) -> None:
    """On the very border nothing is seen, a hair inside half a cell's weight is; NaN and far away are nothing."""
    inside = 1 - 2**-20
    places = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0), (inside, 0.0, 0.0)]
    places += [(0.0, 0.0, -inside), (float("nan"), 0.0, 0.0), (0.0, 1e30, 0.0), (0.0, 0.0, float("-inf"))]
    uvd = torch.tensor(places).view(1, 1, -1, 3).requires_grad_()
    features, depth = [torch.full((1, 1, 2, 4, 4), 3.0)], [torch.full((1, 1, 4, 4, 4), 0.5)]
    out = run(features, depth, uvd)
    # At a face both readings keep half of their weight in x or y; the depth bin alone in depth.
    want = torch.tensor([1.5, 0, 0, 0, 1.5 / 4, 1.5 / 2, 0, 0, 0]).expand(1, 2, -1)
    torch.testing.assert_close(out, want, rtol=1e-4, atol=0)
    (slope,) = torch.autograd.grad(out.sum(), uvd)
    assert slope.isfinite().all()
    assert not slope[0, 0, [1, 2, 3, 6, 7, 8]].any()


@PATHS
def test_cameras_and_levels_add(run: Callable[..., Tensor]) -> None:
    features, depth, uvd = case(N=3)
    parts = [
        run([f[:, n : n + 1]], [d[:, n : n + 1]], uvd[:, n : n + 1])
        for n in range(3)
        for f, d in zip(features, depth, strict=True)
    ]
    torch.testing.assert_close(run(features, depth, uvd), torch.stack(parts).sum(0), rtol=1e-12, atol=1e-12)


@PATHS
@pytest.mark.parametrize("sizes", [{"B": 0}, {"N": 0}, {"V": 0}, {"C": 0}])
def test_empty(run: Callable[..., Tensor], sizes: dict[str, int]) -> None:
    features, depth, uvd = case(**sizes)
    inputs = [t.requires_grad_() for t in (*features, *depth, uvd)]
    out = run(features, depth, uvd)
    assert out.shape == (uvd.shape[0], features[0].shape[2], uvd.shape[2])
    assert not out.any()
    grads = torch.autograd.grad(out.sum(), inputs, allow_unused=True)
    assert all(g is None or g.shape == t.shape for g, t in zip(grads, inputs, strict=True))


@PATHS
def test_result_is_a_volume_without_a_copy(run: Callable[..., Tensor]) -> None:
    features, depth, uvd = case(V=24)
    volume = run(features, depth, uvd).view(2, 4, 2, 3, 4)
    assert volume.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half(half: torch.dtype) -> None:
    features, depth, uvd = case(dtype=torch.float32)
    narrow = [t.to(half) for t in features]
    want = by_wrapper([t.float() for t in narrow], depth, uvd).to(half)
    for run in (by_wrapper, raw):
        torch.testing.assert_close(run(narrow, depth, uvd), want, rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(run(narrow, depth, uvd), want, rtol=0, atol=0)


@PATHS
def test_layouts(run: Callable[..., Tensor]) -> None:
    features, depth, uvd = case()
    want = run(features, depth, uvd)
    features = [t.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for t in features]
    depth = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in depth]
    uvd = uvd.movedim(-1, 0).contiguous().movedim(0, -1)
    torch.testing.assert_close(run(features, depth, uvd), want, rtol=1e-12, atol=1e-12)


@PATHS
def test_same_bits_every_time(run: Callable[..., Tensor]) -> None:
    features, depth, uvd = case(V=50, dtype=torch.float32)
    inputs = [t.requires_grad_() for t in (*features, *depth, uvd)]

    def once() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(features, depth, uvd).square().sum(), inputs)

    assert all(torch.equal(x, y) for x, y in zip(once(), once(), strict=True))


# ---- contract with torch


def test_opcheck() -> None:
    features, depth, uvd = case(dtype=torch.float32)
    for t in (*features, depth[1], uvd):
        t.requires_grad_()
    torch.library.opcheck(RAW, (features, depth, uvd))


@pytest.mark.parametrize("mask", [[True, True, True], [False, True, False], [True, False, True]])
def test_opcheck_backward(mask: list[bool]) -> None:
    features, depth, uvd = case(dtype=torch.float32)
    grad = torch.randn(2, 4, 5)
    torch.library.opcheck(torch.ops.mim4d.voxel_pull_backward.default, (grad, features, depth, uvd, mask))


def test_frozen_levels() -> None:
    features, depth, uvd = case()
    wanted = [features[1].requires_grad_(), depth[2].requires_grad_()]
    got, want = (torch.autograd.grad(f(features, depth, uvd).sum(), wanted) for f in (raw, by_wrapper))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


def test_second_order_through_the_op_is_refused_in_words() -> None:
    features, depth, uvd = case()
    features[0].requires_grad_()
    uvd.requires_grad_()
    (grad,) = torch.autograd.grad(raw(features, depth, uvd).sum(), [uvd], create_graph=True)
    with pytest.raises(RuntimeError, match="voxel_pull_backward has no derivative"):
        grad.sum().backward()


def pull(features: list[Tensor], depth: list[Tensor], uvd: Tensor) -> Tensor:
    return ops.voxel_pull(features, depth, uvd).sin().sum()


def test_compile() -> None:
    torch._dynamo.reset()
    features, depth, uvd = case(sizes=((2, 3), (1, 2)))
    inputs = [t.requires_grad_() for t in (*features, *depth, uvd)]
    compiled = torch.compile(pull, fullgraph=True, backend="aot_eager", dynamic=False)
    got, want = (torch.autograd.grad(f(features, depth, uvd), inputs) for f in (compiled, pull))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize(
    "at, value, error, words",
    [
        (0, torch.zeros(2), TypeError, "features is Tensor, wanted a list of Tensors"),
        (0, [], ValueError, "features and depth_probs have 0 and 3 levels, wanted as many, at least 1"),
        (1, [torch.zeros(2, 3, 3, 3, 4)], ValueError, "features and depth_probs have 3 and 1 levels"),
        (0, [None] * 3, TypeError, r"features\[0\] is NoneType, wanted a Tensor"),
        (2, torch.zeros(2, 3, 5, 2), ValueError, r"uvd has shape \(2, 3, 5, 2\), wanted \(B, N, V, 3\)"),
        (
            2,
            torch.zeros(2, 4, 5, 3),
            ValueError,
            r"features\[0\] has shape \(2, 3, 4, 3, 4\), wanted \(2, 4, C, H, W\)",
        ),
        (2, torch.zeros(2, 3, 5, 3), TypeError, r"uvd is torch\.float32, wanted torch\.float64 with features of"),
        (2, torch.zeros(2, 3, 5, 3, device="meta"), ValueError, r"depth_probs\[0\] is on cpu, wanted meta as uvd"),
        (1, [torch.zeros(2, 3, 3, 3, 3)] * 3, ValueError, r"depth_probs\[0\] has .*, wanted \(2, 3, 3, 3, 4\)"),
        (1, [torch.zeros(2, 3, 0, *s) for s in SIZES], ValueError, r"depth_probs\[0\] has .*, wanted D, H and W >= 1"),
        (1, [torch.zeros(2, 3, 3, *s).int() for s in SIZES], TypeError, r"depth_probs\[0\] is torch\.int32"),
    ],
)
def test_errors(at: int, value: Any, error: type[Exception], words: str) -> None:
    args: list[Any] = list(case())
    args[at] = value
    with pytest.raises(error, match=r"mim4d\.ops\.voxel_pull: .*" + words):
        ops.voxel_pull(*args)


def test_errors_of_mixed_features() -> None:
    features, depth, uvd = case(dtype=torch.float32)
    features[2] = features[2].half()
    with pytest.raises(TypeError, match=r"features\[2\] is torch\.float16, wanted torch\.float32 as features\[0\]"):
        ops.voxel_pull(features, depth, uvd)
    features[2] = features[2].float()[:, :, :2]
    with pytest.raises(ValueError, match=r"features\[2\] has shape \(2, 3, 2, 2, 3\), wanted \(2, 3, 4, H, W\)"):
        ops.voxel_pull(features, depth, uvd)


@PATHS
@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_what_no_camera_sees_is_not_read(run: Callable[..., Tensor], odd: float) -> None:
    """A clamped cell with weight 0 would be read: 0 * inf is NaN."""
    features, depth, uvd = case(B=1, N=3, V=1, sizes=((2, 2),))
    uvd[:] = torch.tensor([-0.9, -0.9, -0.9], dtype=torch.float64)  # the first pixel and bin, and taps outside
    uvd[0, 1] = 1.5  # not seen
    features[0][:, :2, :, 1], features[0][:, :2, :, :, 1], depth[0][:, :2, :, 1], depth[0][:, :2, 1:] = (odd,) * 4
    features[0][:, 1], depth[0][:, 1] = odd, odd
    leaves = [features[0].requires_grad_(), depth[0].requires_grad_(), uvd.requires_grad_()]
    out = run(features, depth, uvd)
    assert out.all()
    assert all(t.isfinite().all() for t in (out, *torch.autograd.grad(out.sum(), leaves)))
