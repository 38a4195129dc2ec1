"""``sdf_march`` in Triton, forward, and the field of ``sdf_sample``. docs/ops/sdf_march.md derives the formulas in the
same symbols.

Two kernels, because a sample is expensive and a ray is long. The *field* kernel takes a tile of BLOCK_P samples of any
rays: features are gathered as rows of channels and never leave the registers, a layer of a decoder is a loop over its
rows. The normal goes forward with the values, as three tangents, one for each axis: twice the multiplications of the
reverse pass, but nothing is kept from layer to layer, so that any number of layers is a loop too. Matrices are not left
to ``tl.dot``: without tensor cores, which would round, it holds whole operands in registers, and they do not fit
beside four tiles of features. The *composite* kernel takes a tile of BLOCK_R rays x BLOCK_S samples and walks along the
rays; the light that reaches a section is a running product. Between them lie sdf, normal (results anyway) and colour: 7
numbers a sample, where the gather alone reads 8 C.

Arithmetic is done in the dtype of the origins. The backward is the reference's, which computes the forward anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import sdf_march as reference
from ..reference.voxel_sample import BICUBIC, BORDER, SMOOTHSTEP, TRICUBIC, TRILINEAR, ZEROS
from . import INTERPRETED, OPTIONS, Variant, check_devices
from ._numbers import note_floats
from ._reading import interpolate, locate, taps

# ---- decoders: y_l = A_l (h_l + U_l k + c_l) + b_l, all of one in one run of numbers, in the order of the op's list


@triton.jit
def vector(numbers, n, N: tl.constexpr, stride):
    """N numbers that lie `stride` apart, padded by zeros to the length of n, as a row."""
    return tl.load(numbers + n * stride, mask=n < N, other=0.0)[None, :]


@triton.jit
def product(matrix, stride, a, k, n, K: tl.constexpr, N: tl.constexpr):
    """W a for each row a (.., K) of a tile, W (N, K) with rows `stride` apart; padded by zeros to the length of n."""
    out = tl.zeros([a.shape[0], n.shape[0]], a.dtype)
    for i in tl.range(0, N, loop_unroll_factor=1):
        row = vector(matrix + i * stride, k, K, 1)
        out = tl.where(n[None, :] == i, tl.sum(a * row, axis=1)[:, None], out)
    return out


@triton.jit
def products(matrix, stride, a, ax, ay, az, k, n, K: tl.constexpr, N: tl.constexpr):
    """As `product`, of a value and its three tangents."""
    out = tl.zeros([a.shape[0], n.shape[0]], a.dtype)
    x, y, z = out, out, out
    for i in tl.range(0, N, loop_unroll_factor=1):
        row = vector(matrix + i * stride, k, K, 1)
        here = n[None, :] == i
        out = tl.where(here, tl.sum(a * row, axis=1)[:, None], out)
        x = tl.where(here, tl.sum(ax * row, axis=1)[:, None], x)
        y = tl.where(here, tl.sum(ay * row, axis=1)[:, None], y)
        z = tl.where(here, tl.sum(az * row, axis=1)[:, None], z)
    return out, x, y, z


@triton.jit
def enter(weights, x, y, z, h, H: tl.constexpr):
    """h_0 = W p + w, and the three columns of W."""
    wx, wy, wz = vector(weights, h, H, 3), vector(weights + 1, h, H, 3), vector(weights + 2, h, H, 3)
    return vector(weights + 3 * H, h, H, 1) + x[:, None] * wx + y[:, None] * wy + z[:, None] * wz, wx, wy, wz


@triton.jit
def softplus(y):
    """With beta = 100, and its derivative, from one exponential."""
    e = tl.exp(tl.abs(y) * -100)
    value = tl.maximum(y, 0.0) + tl.log(1 + e) * 0.01
    return value, tl.where(y < 0, e, 1.0) / (1 + e)


@triton.jit
def sdf_decoder(
    weights, LAYERS, x, y, z, f, fx, fy, fz, h, c, g,
    C: tl.constexpr, H: tl.constexpr, G: tl.constexpr, RENDER: tl.constexpr,
):  # fmt: skip
    """The SDF of each point p = (x, y, z) with its feature f; with RENDER its derivative by p, of which f has fx, fy,
    fz, and the geometry features too."""
    v, wx, wy, wz = enter(weights, x, y, z, h, H)
    none = v * 0
    vx, vy, vz = none + wx, none + wy, none + wz
    layer = weights + 4 * H
    for _ in range(LAYERS - 1):
        U = layer + H * H + H
        if RENDER:
            u, ux, uy, uz = products(U, C, f, fx, fy, fz, c, h, C, H)
            v += u + vector(U + H * C, h, H, 1)
            y_l, vx, vy, vz = products(layer, H, v, vx + ux, vy + uy, vz + uz, h, h, H, H)
        else:
            v += product(U, C, f, c, h, C, H) + vector(U + H * C, h, H, 1)
            y_l = product(layer, H, v, h, h, H, H)
        v, slope = softplus(y_l + vector(layer + H * H, h, H, 1))
        if RENDER:
            vx, vy, vz = slope * vx, slope * vy, slope * vz
        layer = U + H * C + H
    O: tl.constexpr = 1 + G
    first = vector(layer, h, H, 1)
    U = layer + O * H + O
    if RENDER:
        u, ux, uy, uz = products(U, C, f, fx, fy, fz, c, h, C, H)
        nx, ny, nz = (
            tl.sum((vx + ux) * first, axis=1),
            tl.sum((vy + uy) * first, axis=1),
            tl.sum((vz + uz) * first, axis=1),
        )
        v += u + vector(U + H * C, h, H, 1)
        geometry = product(layer + H, H, v, h, g, H, G) + vector(layer + O * H + 1, g, G, 1)
    else:
        v += product(U, C, f, c, h, C, H) + vector(U + H * C, h, H, 1)
        nx, ny, nz = x, y, z
        geometry = v
    return tl.sum(v * first, axis=1) + tl.load(layer + O * H), nx, ny, nz, geometry


@triton.jit
def condition(
    U, dx, dy, dz, f, nx, ny, nz, geometry, h, c, g, C: tl.constexpr, H: tl.constexpr, G: tl.constexpr
):  # fmt: skip
    """U_l k + c_l for the condition k = [d, f, n, g] of the colour decoder."""
    K: tl.constexpr = 6 + C + G
    v = product(U + 3, K, f, c, h, C, H) + product(U + 6 + C, K, geometry, g, h, G, H)
    v += dx[:, None] * vector(U, h, H, K) + dy[:, None] * vector(U + 1, h, H, K)
    v += dz[:, None] * vector(U + 2, h, H, K) + nx[:, None] * vector(U + 3 + C, h, H, K)
    v += ny[:, None] * vector(U + 4 + C, h, H, K) + nz[:, None] * vector(U + 5 + C, h, H, K)
    return v + vector(U + H * K, h, H, 1)


@triton.jit
def rgb_decoder(
    weights, LAYERS, x, y, z, dx, dy, dz, f, nx, ny, nz, geometry, h, c, g,
    C: tl.constexpr, H: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """The colour of each point."""
    v, _, _, _ = enter(weights, x, y, z, h, H)
    layer = weights + 4 * H
    for _ in range(LAYERS - 1):
        v += condition(layer + H * H + H, dx, dy, dz, f, nx, ny, nz, geometry, h, c, g, C, H, G)
        y_l = product(layer, H, v, h, h, H, H) + vector(layer + H * H, h, H, 1)
        v = positive(y_l)
        layer += H * H + H + H * (6 + C + G) + H
    v += condition(layer + 3 * H + 3, dx, dy, dz, f, nx, ny, nz, geometry, h, c, g, C, H, G)
    red = tl.sum(v * vector(layer, h, H, 1), axis=1) + tl.load(layer + 3 * H)
    green = tl.sum(v * vector(layer + H, h, H, 1), axis=1) + tl.load(layer + 3 * H + 1)
    blue = tl.sum(v * vector(layer + 2 * H, h, H, 1), axis=1) + tl.load(layer + 3 * H + 2)
    return sigmoid(red), sigmoid(green), sigmoid(blue)


@triton.jit
def positive(x):
    """max(x, 0), and NaN where x is NaN: `tl.maximum` would hide it."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1 + e)


# ---- samples

RUN_TIME = ["P", "R", "S", "T", "X", "Y", "Z", "SDF_LAYERS", "RGB_LAYERS"]  # compile nothing anew


@triton.jit(do_not_specialize=RUN_TIME)
def field_kernel(
    sdf, gradient, colour, volume, origins, directions, starts, box, sdf_weights, rgb_weights,
    P, R, S, T, X, Y, Z, SDF_LAYERS, RGB_LAYERS,
    C: tl.constexpr, H: tl.constexpr, G: tl.constexpr, H_RGB: tl.constexpr, RENDER: tl.constexpr,
    CUBIC_XY: tl.constexpr, CUBIC_Z: tl.constexpr, SMOOTH: tl.constexpr, BORDER: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_RGB: tl.constexpr,
):  # fmt: skip
    """sdf (P,), and with RENDER gradient (P,3) and colour (P,3), of the S samples of each ray; their distances are the
    first S of the T in a row of starts. R rays an item; volume (B,Z,Y,X,C); box: its lower corner, then 2 / size."""
    sample = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    there = sample < P
    sample = tl.where(there, sample, 0)
    ray = sample // S
    t = tl.load(starts + ray * T + sample % S, mask=there, other=0.0)
    dx, dy, dz = (
        tl.load(directions + 3 * ray, mask=there, other=0.0),
        tl.load(directions + 3 * ray + 1, mask=there, other=0.0),
        tl.load(directions + 3 * ray + 2, mask=there, other=0.0),
    )
    px = tl.load(origins + 3 * ray, mask=there, other=0.0) + dx * t
    py = tl.load(origins + 3 * ray + 1, mask=there, other=0.0) + dy * t
    pz = tl.load(origins + 3 * ray + 2, mask=there, other=0.0) + dz * t

    # A NaN, which has no place, reads somewhere, and is what its own point says to the decoders.
    ux = (tl.where(px == px, px, 0.0) - tl.load(box)) * tl.load(box + 3) - 1
    uy = (tl.where(py == py, py, 0.0) - tl.load(box + 1)) * tl.load(box + 4) - 1
    uz = (tl.where(pz == pz, pz, 0.0) - tl.load(box + 2)) * tl.load(box + 5) - 1
    x = locate(ux, X, CUBIC_XY, BORDER, ALIGN)
    y = locate(uy, Y, CUBIC_XY, BORDER, ALIGN)
    z = locate(uz, Z, CUBIC_Z, BORDER, ALIGN)
    xs, ys = taps(x, X, CUBIC_XY, SMOOTH, BORDER), taps(y, Y, CUBIC_XY, SMOOTH, BORDER)
    c, h, g = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_G)
    f, fx, fy, fz = interpolate(
        volume, c, there[:, None] & (c < C)[None, :], C, ray // R, xs, ys, z, X, Y, Z,
        CUBIC_XY, CUBIC_Z, SMOOTH, BORDER, RENDER,
    )  # fmt: skip
    if RENDER:
        fx *= (x[2] * tl.load(box + 3))[:, None]
        fy *= (y[2] * tl.load(box + 4))[:, None]
        fz *= (z[2] * tl.load(box + 5))[:, None]
    value, nx, ny, nz, geometry = sdf_decoder(
        sdf_weights, SDF_LAYERS, px, py, pz, f, fx, fy, fz, h, c, g, C, H, G, RENDER
    )  # fmt: skip
    tl.store(sdf + sample, value, mask=there)
    if RENDER:
        tl.store(gradient + 3 * sample, nx, mask=there)
        tl.store(gradient + 3 * sample + 1, ny, mask=there)
        tl.store(gradient + 3 * sample + 2, nz, mask=there)
        red, green, blue = rgb_decoder(
            rgb_weights, RGB_LAYERS, px, py, pz, dx, dy, dz, f, nx, ny, nz, geometry, tl.arange(0, BLOCK_RGB), c, g,
            C, H_RGB, G,
        )  # fmt: skip
        tl.store(colour + 3 * sample, red, mask=there)
        tl.store(colour + 3 * sample + 1, green, mask=there)
        tl.store(colour + 3 * sample + 2, blue, mask=there)


# ---- rays


@triton.jit
def opacity(sdf, half, inv_s):
    """NeuS: ((P - N) + 1e-5) / (P + 1e-5), in [0, 1], where sdf changes by 2 half over the section.

    P - N = P (1 - N) (1 - e^-d) with d = -2 s half does not cancel where d is small: there the last factor is a series.
    """
    before, behind = sigmoid((sdf - half) * inv_s), sigmoid((sdf + half) * inv_s)
    d = half * inv_s * -2
    series = tl.full(d.shape, 1.0, d.dtype)
    for i in tl.static_range(14):  # 2^-14 / 15! is nothing in float64
        series = 1 - d * series * (1.0 / (15 - i))
    gap = tl.where(tl.abs(d) < 0.5, before * sigmoid(-(sdf + half) * inv_s) * d * series, before - behind)
    alpha = positive((gap + 1e-5) / (before + 1e-5))
    return tl.where(alpha > 1, 1.0, alpha)


@triton.jit(do_not_specialize=["N", "S"])
def composite_kernel(
    rgb, depth, total, weights, sdf, gradient, colour, directions, edges, inv_s, anneal, N, S,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """rgb (N,3), depth and total (N,), weights (N,S) of N rays from sdf (N,S), gradient and colour (N,S,3), directions
    (N,3) and edges (N,S+1)."""
    ray = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    there = ray < N
    dx = tl.load(directions + 3 * ray, mask=there, other=0.0)[:, None]
    dy = tl.load(directions + 3 * ray + 1, mask=there, other=0.0)[:, None]
    dz = tl.load(directions + 3 * ray + 2, mask=there, other=0.0)[:, None]
    s, a = tl.load(inv_s).to(dx.dtype), tl.load(anneal)
    column = tl.arange(0, BLOCK_S)
    light = tl.full([BLOCK_R], 1.0, dx.dtype)  # that reaches this stretch of samples
    w_sum = tl.zeros([BLOCK_R], dx.dtype)
    t_sum, red, green, blue = w_sum, w_sum, w_sum, w_sum
    for first in range(0, S, BLOCK_S):
        i = first + column
        inside = there[:, None] & (i < S)[None, :]
        at = (ray * S)[:, None] + i[None, :]
        edge = (ray * (S + 1))[:, None] + i[None, :]
        start = tl.load(edges + edge, mask=inside, other=0.0)
        length = tl.load(edges + edge + 1, mask=inside, other=0.0) - start
        nx = tl.load(gradient + 3 * at, mask=inside, other=0.0)
        ny = tl.load(gradient + 3 * at + 1, mask=inside, other=0.0)
        nz = tl.load(gradient + 3 * at + 2, mask=inside, other=0.0)
        cosine = dx * nx + dy * ny + dz * nz
        fall = positive(0.5 - 0.5 * cosine) * (a - 1) - positive(-cosine) * a
        alpha = opacity(tl.load(sdf + at, mask=inside, other=0.0), 0.5 * fall * length, s)
        passed = tl.where(inside, 1 - alpha + 1e-7, 1.0)
        through = tl.cumprod(passed, axis=1)
        w = tl.where(inside, alpha * light[:, None] * (through / passed), 0.0)
        light *= tl.sum(tl.where(column[None, :] == BLOCK_S - 1, through, 0.0), axis=1)
        tl.store(weights + at, w, mask=inside)
        w_sum += tl.sum(w, axis=1)
        t_sum += tl.sum(w * start, axis=1)
        red += tl.sum(w * tl.load(colour + 3 * at, mask=inside, other=0.0), axis=1)
        green += tl.sum(w * tl.load(colour + 3 * at + 1, mask=inside, other=0.0), axis=1)
        blue += tl.sum(w * tl.load(colour + 3 * at + 2, mask=inside, other=0.0), axis=1)
    tl.store(rgb + 3 * ray, red, mask=there)
    tl.store(rgb + 3 * ray + 1, green, mask=there)
    tl.store(rgb + 3 * ray + 2, blue, mask=there)
    tl.store(total + ray, w_sum, mask=there)
    tl.store(depth + ray, t_sum / (w_sum + 1e-10), mask=there)


# ---- launch

# Without a limit ptxas spills a few registers of the tricubic field for one more block on a multiprocessor.
FIELD = {**OPTIONS, "maxnreg": 255}


def field_constants(
    C: int, H: int, G: int, H_RGB: int, mode: int, padding_mode: int, align_corners: bool, *, render: bool
) -> dict[str, Any]:
    """What the field kernel is compiled for. Each of 128 threads holds 4 channels of f and of its three derivatives. In
    the interpreter, whose cost is per program, tiles are large."""
    padded = lambda n: triton.next_power_of_2(max(n, 1))
    return {
        "C": C,
        "H": H,
        "G": G,
        "H_RGB": H_RGB,
        "RENDER": render,
        "CUBIC_XY": mode in (BICUBIC, TRICUBIC),
        "CUBIC_Z": mode == TRICUBIC,
        "SMOOTH": mode == SMOOTHSTEP,
        "BORDER": padding_mode == BORDER,
        "ALIGN": align_corners,
        "BLOCK_P": 1024 if INTERPRETED else max(1, 512 // padded(max(C, H, H_RGB))),
        "BLOCK_C": padded(C),
        "BLOCK_H": padded(H),
        "BLOCK_G": padded(G),
        "BLOCK_RGB": padded(H_RGB),
    }


def composite_constants(S: int, dtype: torch.dtype) -> dict[str, Any]:
    """Each of 128 threads holds 16 bytes of samples; a tile is as wide as rays are long, but not above 128."""
    block = 128 if S > 64 else triton.next_power_of_2(S)
    return {"BLOCK_R": (2**14 if INTERPRETED else 128 * 16 // dtype.itemsize) // block, "BLOCK_S": block}


def sdf_march(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    edges: Tensor,
    sdf_weights: Sequence[Tensor],
    rgb_weights: Sequence[Tensor],
    inv_s: Tensor,
    aabb: Sequence[float],
    mode: int,
    padding_mode: int,
    align_corners: bool,
    cos_anneal: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``mim4d.reference.sdf_march``."""
    B, R, S = edges.shape[0], edges.shape[1], edges.shape[2] - 1
    options = (aabb, mode, padding_mode, align_corners)
    rgb, depth, total = origins.new_zeros(B, R, 3), origins.new_zeros(B, R), origins.new_zeros(B, R)
    weights = origins.new_empty(B, R, S)
    sdf, gradient, colour = _field(volume, origins, directions, edges, S, sdf_weights, rgb_weights, *options)
    if weights.numel():
        compiled = composite_constants(S, origins.dtype)
        anneal = note_floats([cos_anneal], origins.dtype, origins.device)
        grid = (triton.cdiv(B * R, compiled["BLOCK_R"]),)
        with torch.cuda.device_of(origins):
            composite_kernel[grid](
                rgb, depth, total, weights, sdf, gradient, colour, directions.contiguous(), edges.contiguous(), inv_s,
                anneal, B * R, S, **compiled, **OPTIONS,
            )  # fmt: skip
    return rgb, depth, total, sdf, gradient, weights


def sdf_sample(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    sdf_weights: Sequence[Tensor],
    aabb: Sequence[float],
    jitter: Tensor | None,
    n_uniform: int,
    n_importance: int,
    sharpness: float,
    mode: int,
    padding_mode: int,
    align_corners: bool,
) -> Tensor:
    """As ``mim4d.reference.sdf_sample``, whose sampler places the samples: here it reads its field through a kernel."""

    def field(coarse: Tensor) -> Tensor:
        options = (aabb, mode, padding_mode, align_corners)
        return _field(volume, origins, directions, coarse, n_uniform, sdf_weights, None, *options)[0]

    return reference.place_samples(field, near, far, jitter, n_uniform, n_importance, sharpness)


def _field(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    edges: Tensor,
    S: int,
    sdf_weights: Sequence[Tensor],
    rgb_weights: Sequence[Tensor] | None,
    aabb: Sequence[float],
    mode: int,
    padding_mode: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """sdf (B,R,S), gradient and colour (B,R,S,3), or nothing for these two without rgb_weights, at the first S of the
    distances of each ray."""
    B, R, T = edges.shape
    _, C, Z, Y, X = volume.shape
    sdf = origins.new_empty(B, R, S)
    gradient, colour = (origins.new_empty(B, R, S, 3 if rgb_weights else 0) for _ in range(2))
    _check(volume, origins, directions, edges, sdf_weights, rgb_weights)
    if sdf.numel():
        G = sdf_weights[-4].shape[0] - 1
        H, H_RGB = sdf_weights[0].shape[0], rgb_weights[0].shape[0] if rgb_weights else 1
        render = rgb_weights is not None
        compiled = field_constants(C, H, G, H_RGB, mode, padding_mode, align_corners, render=render)
        low, high = aabb[:3], aabb[3:]
        box = note_floats([*low, *(2 / (b - a) for a, b in zip(low, high, strict=True))], origins.dtype, origins.device)
        run = lambda weights: torch.cat([t.to(origins.dtype).flatten() for t in weights])
        by_sdf = run(sdf_weights)
        by_rgb = run(rgb_weights) if rgb_weights else by_sdf
        layers = [(len(weights) - 2) // 4 for weights in (sdf_weights, rgb_weights or sdf_weights)]
        rays = (t.contiguous() for t in (origins, directions, edges))
        grid = (triton.cdiv(sdf.numel(), compiled["BLOCK_P"]),)
        with torch.cuda.device_of(volume):
            field_kernel[grid](
                sdf, gradient, colour, volume.contiguous(memory_format=torch.channels_last_3d), *rays, box,
                by_sdf, by_rgb, sdf.numel(), R, S, T, X, Y, Z, *layers, **compiled, **FIELD,
            )  # fmt: skip
    return sdf, gradient, colour


def _check(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    edges: Tensor,
    sdf_weights: Sequence[Tensor],
    rgb_weights: Sequence[Tensor] | None,
) -> None:
    """What a kernel takes for granted. The public function has asked already; the op of the dispatcher has not."""
    wide = torch.float64 if volume.dtype == torch.float64 else torch.float32
    rays = (origins, directions, edges)
    ok = volume.dim() == 5 and all(t.dim() == 3 and t.shape[:2] == origins.shape[:2] for t in rays)
    ok = ok and origins.shape[0] == volume.shape[0] and origins.shape[2] == directions.shape[2] == 3
    torch._check(
        ok, lambda: f"mim4d_triton::sdf_march: volume {tuple(volume.shape)} and rays {[tuple(t.shape) for t in rays]}"
    )
    torch._check(
        volume.is_floating_point() and all(t.dtype == wide for t in rays),
        lambda: f"mim4d_triton::sdf_march: dtypes {[t.dtype for t in (volume, *rays)]}",
    )
    C, out = volume.shape[1], 1
    for weights in (sdf_weights, rgb_weights):
        if weights is not None:
            condition = C if weights is sdf_weights else C + 5 + out
            out = _check_decoder(weights, condition)
    check_devices("sdf_march", (volume, *rays, *sdf_weights, *(rgb_weights or ())))


def _check_decoder(weights: Sequence[Tensor], condition: int) -> int:
    """How many numbers it results in."""
    H, O = weights[0].shape[0], weights[-4].shape[0]
    layers = (len(weights) - 2) // 4
    wanted = [(H, 3), (H,), *((H, H), (H,), (H, condition), (H,)) * (layers - 1), (O, H), (O,), (H, condition), (H,)]
    found = [tuple(t.shape) for t in weights]
    torch._check(found == wanted, lambda: f"mim4d_triton::sdf_march: a decoder of {found}, wanted {wanted}")
    return O


# ---- what a test compiles for GPUs that are not there


def _variants() -> Iterator[Variant]:
    names = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}
    modes = {TRILINEAR: "trilinear", TRICUBIC: "tricubic"}
    tuned = (32, 16, 16)  # C, H, G
    cases = [
        *((mode, torch.float32, tuned, True) for mode in modes),
        (TRILINEAR, torch.float32, (64, 64, 64), True),
        *((TRILINEAR, dtype, tuned, True) for dtype in (torch.float64, torch.bfloat16)),
        (TRILINEAR, torch.float32, tuned, False),
    ]
    for mode, dtype, (C, H, G), render in cases:
        wide = "*fp64" if dtype == torch.float64 else "*fp32"
        name = f"sdf_march_field<{modes[mode]}, {names[dtype]}, {C}, {H}{'' if render else ', sdf alone'}>"
        own = ("sdf", "gradient", "colour", "origins", "directions", "starts", "box", "sdf_weights", "rgb_weights")
        signature = {**dict.fromkeys(own, wide), "volume": f"*{names[dtype]}", **dict.fromkeys(RUN_TIME, "i32")}
        compiled = field_constants(C, H, G, H, mode, ZEROS, False, render=render)
        yield Variant(name, field_kernel, signature, compiled, FIELD)
    for dtype, S in ((torch.float32, 96), (torch.float64, 96)):
        wide = "*fp64" if dtype == torch.float64 else "*fp32"
        rays = ("rgb", "depth", "total", "weights", "sdf", "gradient", "colour", "directions", "edges")
        signature = {**dict.fromkeys((*rays, "inv_s", "anneal"), wide), "N": "i32", "S": "i32"}
        compiled = composite_constants(S, dtype)
        yield Variant(f"sdf_march_composite<{names[dtype]}, {S}>", composite_kernel, signature, compiled, OPTIONS)


VARIANTS = tuple(_variants())
