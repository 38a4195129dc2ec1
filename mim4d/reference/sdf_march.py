"""Rendering a signed distance field along rays, in plain torch: the specification of ``mim4d::sdf_march`` and
``mim4d::sdf_sample``.

A point p lies in scaled scene units, u(p) in [-1, 1]^3 is its place in the box ``aabb`` and f = sample(volume, u) its
feature. A decoder is a small network that sees its condition k again in every layer,

    h_0 = W p + w,    y_l = A_l (h_l + U_l k + c_l) + b_l,    h_(l+1) = act(y_l),    the result is the last y,

with k = f and softplus (beta 100) for the SDF decoder, whose result is [sdf, geometry g], and k = [d, f, n, g] and ReLU
for the colour decoder, whose result goes through a sigmoid. n is the total derivative of sdf with respect to p.

The normal is analytic: the reverse pass through the network is written out, and of the interpolation only the
contraction sum_k slope_k (v_k . q) of its taps v_k with q = d sdf / d f is needed. So the forward needs no autograd (it
runs under ``no_grad``, and ``torch.compile`` traces it), and ordinary first-order autograd through it gives the
second-order terms that a loss on n, or on anything behind n, asks for. Points lie along the last axis, (width, P): the
rows of a layer's result are then contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._autograd import vjp
from ._rows import combine, dot, elsewhere, narrow
from .voxel_sample import BICUBIC, BORDER, SMOOTHSTEP, TRICUBIC, Taps, axis_taps, inside_product, tap_product

BETA = 100.0  # of the SDF decoder's softplus
_LINEAR = 80.0  # softplus(y) = y beyond this: e^-80 is nothing even in fp64, and e^80 is finite even in fp32


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
    """volume (B,C,Z,Y,X), origins and directions (B,R,3), edges (B,R,S+1)
    -> rgb (B,R,3), depth (B,R), opacity (B,R), sdf (B,R,S), gradient (B,R,S,3), weights (B,R,S).

    Computed in the dtype of ``origins``, whatever the dtypes of volume and weights. ``edges`` carry no gradient.
    """
    B, R, S = edges.shape[0], edges.shape[1], edges.shape[2] - 1
    edges = edges.detach()
    start, length = edges[..., :-1], edges[..., 1:] - edges[..., :-1]  # (B, R, S) t_i and delta_i
    with torch.autocast(volume.device.type, enabled=False):
        points = _points(origins, directions, start)  # (3, P)
        place = _locate(volume, points, aabb, mode, padding_mode, align_corners)
        features = place.features()  # (P, C)
        net = _decoder(sdf_weights, origins.dtype, BETA)
        value, slopes = _sdf(net, points, features)  # (1+G, P), per hidden layer (H, P)
        by_point, by_feature = _sdf_gradient(net, slopes)  # (3, P), (P, C)
        normal = by_point + place.pull(by_feature)  # (3, P)

        ray = directions.movedim(-1, 0).unsqueeze(-1)  # (3, B, R, 1)
        along = ray.expand(-1, -1, -1, S).reshape(3, -1)  # (3, P)
        colour = _colour(_decoder(rgb_weights, origins.dtype), points, along, features, normal, value[1:])  # (3, P)

        sdf = value[0].clone().view(B, R, S)  # so that who keeps it keeps not the geometry features too
        normal = normal.view(3, B, R, S)
        cosine = (ray * normal).sum(0)  # (B, R, S)
        fall = -(F.relu(0.5 - 0.5 * cosine) * (1 - cos_anneal) + F.relu(-cosine) * cos_anneal)
        alpha = opacity(sdf, 0.5 * fall * length, inv_s.to(sdf.dtype))  # (B, R, S)
        weights = alpha * transmittance(alpha)  # (B, R, S)
        total = weights.sum(-1)  # (B, R)
        depth = (weights * start).sum(-1) / (total + 1e-10)  # (B, R)
        rgb = (weights * colour.view(3, B, R, S)).sum(-1).movedim(0, -1)  # (B, R, 3)
    return rgb.contiguous(), depth, total, sdf, normal.movedim(0, -1).contiguous(), weights


def sdf_march_backward(
    grad_rgb: Tensor | None,
    grad_depth: Tensor | None,
    grad_opacity: Tensor | None,
    grad_sdf: Tensor | None,
    grad_gradient: Tensor | None,
    grad_weights: Tensor | None,
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    edges: Tensor,
    sdf_weights: list[Tensor],
    rgb_weights: list[Tensor],
    inv_s: Tensor,
    aabb: Sequence[float],
    mode: int,
    padding_mode: int,
    align_corners: bool,
    cos_anneal: float,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor], Tensor]:
    """Gradients of volume, origins, directions, sdf_weights, rgb_weights and inv_s; empty where ``mask`` is False.

    A cotangent that is None counts as zero.
    """

    def forward(v: Tensor, o: Tensor, d: Tensor, a: list[Tensor], c: list[Tensor], s: Tensor) -> tuple[Tensor, ...]:
        return sdf_march(v, o, d, edges, a, c, s, aabb, mode, padding_mode, align_corners, cos_anneal)

    inputs = (volume, origins, directions, sdf_weights, rgb_weights, inv_s)
    grads = (grad_rgb, grad_depth, grad_opacity, grad_sdf, grad_gradient, grad_weights)
    found = vjp(forward, inputs, grads, mask)
    grad_volume = found[0].contiguous(memory_format=torch.channels_last_3d) if mask[0] else found[0]
    return (grad_volume, *found[1:])


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
    """near and far (B,R), jitter (B,R,2) or None -> edges (B, R, n_uniform + n_importance + 1), sorted, no gradient.

    Computed in the dtype of ``origins``. A ray with far < near is treated as one with far = near.
    """

    def field(coarse: Tensor) -> Tensor:
        points = _points(origins, directions, coarse[..., :-1])  # (3, P)
        place = _locate(volume, points, aabb, mode, padding_mode, align_corners)
        value, _ = _sdf(_sdf_only(_decoder(sdf_weights, origins.dtype, BETA)), points, place.features())  # (1, P)
        return value.view(*coarse.shape[:-1], n_uniform)

    return place_samples(field, near, far, jitter, n_uniform, n_importance, sharpness)


def place_samples(
    field: Callable[[Tensor], Tensor],
    near: Tensor,
    far: Tensor,
    jitter: Tensor | None,
    n_uniform: int,
    n_importance: int,
    sharpness: float,
) -> Tensor:
    """:func:`sdf_sample` for any ``field``, which gives the SDF (B,R,U) where the U sections between (B,R,U+1)
    distances start."""
    with torch.no_grad(), torch.autocast(near.device.type, enabled=False):
        shift = None if jitter is None else jitter.to(near.dtype)  # (B, R, 2)
        coarse = _uniform(near, torch.maximum(near, far), n_uniform, shift)  # (B, R, U+1)
        if n_importance == 0:
            return coarse.contiguous()  # it may lie as `near` does
        start = coarse[..., :-1]  # (B, R, U)
        weight = _section_weights(field(coarse), start, sharpness)  # (B, R, U)
        u = torch.arange(n_importance + 1, device=start.device, dtype=start.dtype)  # (I+1,)
        u = (u + (0.5 if shift is None else shift[..., 1:])) / (n_importance + 1)  # (B, R, I+1) or (I+1,)
        fine = _inverse_cdf(coarse, weight, u)  # (B, R, I+1)
        starts = torch.cat([start, fine[..., :-1]], -1).sort(-1).values
        return torch.cat([starts, torch.maximum(coarse[..., -1:], fine[..., -1:])], -1)


def opacity(sdf: Tensor, half_step: Tensor, sharpness: Tensor | float) -> Tensor:
    """Opacity of sections (NeuS): sdf at the middle and half the change of sdf over the section, at most 0."""
    enter = torch.sigmoid(sharpness * (sdf - half_step))
    leave = torch.sigmoid(sharpness * (sdf + half_step))
    return ((enter - leave + 1e-5) / (enter + 1e-5)).clamp(0, 1)


def transmittance(alpha: Tensor) -> Tensor:
    """prod_(j<i) (1 - alpha_j + 1e-7) along the last axis.

    Through logarithms, which the 1e-7 keeps finite: the derivative of ``cumprod`` would ask whether a factor is zero, a
    synchronisation on a GPU.
    """
    return F.pad(_running_sum(torch.log(1 - alpha + 1e-7)), (1, 0))[..., :-1].exp()


def _running_sum(x: Tensor) -> Tensor:
    """``cumsum`` along the last axis, which on a GPU has no deterministic form that torch would allow."""
    if x.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return _doubling_sum(x)
    return x.cumsum(-1)


def _doubling_sum(x: Tensor) -> Tensor:
    """``cumsum`` along the last axis in log2(n) additions; a product with a triangle would round to TF32 where that is
    allowed."""
    reach = 1  # every element holds the sum of so many
    while reach < x.shape[-1]:
        x = x + F.pad(x, (reach, 0))[..., :-reach]
        reach *= 2
    return x


def _points(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    """(B,R,3), (B,R,3), (B,R,S) -> (3, P), P = B*R*S."""
    o, d = (x.movedim(-1, 0).unsqueeze(-1) for x in (origins, directions))  # (3, B, R, 1)
    return (o + d * t).reshape(3, -1)


class _Place(NamedTuple):
    """Where P points read the volume."""

    rows: Tensor  # (B*Z*Y*X + 1, C) the volume, one row a cell, and zeros for what lies outside
    cells: Tensor  # (P, K) rows that a point reads
    taps: tuple[Taps, Taps, Taps]  # of the axes x, y, z
    scale: tuple[float, ...]  # d u / d p per axis

    def features(self) -> Tensor:
        """(P, C)"""
        return combine(self.rows, self.cells, tap_product(*(t.weight for t in self.taps)))

    def pull(self, q: Tensor) -> Tensor:
        """q (P, C), a derivative with respect to the features -> (3, P) with respect to the points."""
        along = dot(self.rows, self.cells, q)  # (P, K)
        parts = []
        for axis in range(3):
            factors = [t.slope if i == axis else t.weight for i, t in enumerate(self.taps)]
            parts.append((tap_product(*factors) * along).sum(-1) * self.scale[axis])
        return torch.stack(parts)


def _locate(
    volume: Tensor, points: Tensor, aabb: Sequence[float], mode: int, padding_mode: int, align_corners: bool
) -> _Place:
    """points (3, P), equally many for each item of the batch, in order."""
    B, _, *sizes = volume.shape
    scale = tuple(2.0 / (high - low) for low, high in zip(aabb[:3], aabb[3:], strict=True))
    taps = []
    for axis, size in enumerate(reversed(sizes)):
        u = (points[axis] - aabb[axis]) * scale[axis] - 1  # (P,)
        cubic = mode == TRICUBIC or (mode == BICUBIC and axis < 2)
        taps.append(axis_taps(u, size, cubic, mode == SMOOTHSTEP, padding_mode == BORDER, align_corners))
    x, y, z = taps
    Z, Y, X = sizes
    P = points.shape[1]
    item = torch.arange(B, device=volume.device).unsqueeze(1).expand(B, P // max(B, 1)).reshape(-1, 1)  # (P, 1)
    column = ((item * Z + z.cell).unsqueeze(2) * Y + y.cell.unsqueeze(1)).flatten(1)  # (P, Kz*Ky)
    index = (column.unsqueeze(2) * X + x.cell.unsqueeze(1)).flatten(1)  # (P, K) as tap_product
    rows = volume.permute(0, 2, 3, 4, 1).flatten(0, 3).to(points.dtype)
    rows, index = elsewhere(rows, index, inside_product(x, y, z))
    return _Place(rows, narrow(index, rows.shape[0]), (x, y, z), scale)


class _Layer(NamedTuple):
    """A layer with its injection multiplied out: y = A h + M k + m, where M = A U and m = A c + b."""

    A: Tensor  # (O, H)
    M: Tensor  # (O, K)
    m: Tensor  # (O, 1)


class _Decoder(NamedTuple):
    W: Tensor  # (H, 3)
    w: Tensor  # (H, 1)
    layers: list[_Layer]


def _decoder(weights: Sequence[Tensor], dtype: torch.dtype, beta: float = 1.0) -> _Decoder:
    """From the op's list of weights. Everything hidden is multiplied by ``beta``, the results are not.

    So softplus(beta y) / beta becomes a plain softplus, without a multiplication per sample.
    """
    W, w, *rest = (t.to(dtype) for t in weights)
    layers = []
    for i in range(0, len(rest), 4):
        A, b, U, c = rest[i : i + 4]
        M, m = A @ U, torch.addmv(b, A, c).unsqueeze(1)
        layers.append(_Layer(A / beta, M, m) if i + 4 == len(rest) else _Layer(A, beta * M, beta * m))
    return _Decoder(beta * W, (beta * w).unsqueeze(1), layers)


def _sdf_only(net: _Decoder) -> _Decoder:
    """Without the rows of the last layer that make the geometry features."""
    *hidden, last = net.layers
    return net._replace(layers=[*hidden, _Layer(*(t[:1] for t in last))])


def _sdf(net: _Decoder, points: Tensor, features: Tensor) -> tuple[Tensor, list[Tensor]]:
    """points (3, P), features (P, C) -> [sdf, geometry] (1+G, P); act'(y) of each hidden layer (H, P)."""
    k = features.t()  # (C, P)
    h = torch.addmm(net.w, net.W, points)  # (H, P)
    slopes = []
    for A, M, m in net.layers[:-1]:
        y = torch.addmm(torch.addmm(m, M, k), A, h)  # (H, P)
        h = F.softplus(y, threshold=_LINEAR)
        slopes.append(torch.sigmoid(y))
    A, M, m = net.layers[-1]
    return torch.addmm(torch.addmm(m, M, k), A, h), slopes


def _sdf_gradient(net: _Decoder, slopes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """d sdf / d p at a fixed feature (3, P) and d sdf / d f (P, C): the reverse pass of :func:`_sdf`."""
    *hidden, last = net.layers
    P = slopes[0].shape[1]
    back = last.A[0].unsqueeze(1).expand(-1, P)  # (H, P) d sdf / d h
    seen = []
    for layer, slope in zip(reversed(hidden), reversed(slopes), strict=True):
        seen.append(slope * back)  # (H, P) d sdf / d y
        back = layer.A.t() @ seen[-1]
    stacked = torch.cat([layer.M for layer in reversed(hidden)])  # (L*H, C)
    by_feature = torch.addmm(last.M[0], torch.cat(seen).t(), stacked)  # (P, C)
    return net.W.t() @ back, by_feature


def _colour(net: _Decoder, points: Tensor, along: Tensor, features: Tensor, normal: Tensor, geometry: Tensor) -> Tensor:
    """points, along and normal (3, P), features (P, C), geometry (G, P) -> rgb (3, P)."""
    C = features.shape[1]
    k = features.t()  # (C, P)
    rest = torch.cat([along, normal, geometry])  # (3+3+G, P)
    h = torch.addmm(net.w, net.W, points)  # (H, P)
    for i, (A, M, m) in enumerate(net.layers):
        by_rest = torch.cat([M[:, :3], M[:, 3 + C :]], 1)  # the columns of d, n and g; those of f lie between
        y = torch.addmm(torch.addmm(torch.addmm(m, M[:, 3 : 3 + C], k), by_rest, rest), A, h)  # (H or 3, P)
        h = F.relu(y) if i + 1 < len(net.layers) else torch.sigmoid(y)
    return h


def _uniform(near: Tensor, far: Tensor, n: int, jitter: Tensor | None) -> Tensor:
    """(B,R) -> n + 1 boundaries (B, R, n+1) of equal sections, each moved between the midpoints around it by the first
    number of ``jitter`` (B,R,2)."""
    place = torch.arange(n + 1, device=near.device, dtype=near.dtype) / n  # (n+1,)
    if jitter is not None:
        middle = 0.5 * (place[1:] + place[:-1])  # (n,)
        low, high = torch.cat([place[:1], middle]), torch.cat([middle, place[-1:]])  # (n+1,)
        place = low + (high - low) * jitter[..., :1]  # (B, R, n+1)
    return near.unsqueeze(-1) + (far - near).unsqueeze(-1) * place


def _section_weights(sdf: Tensor, start: Tensor, sharpness: float) -> Tensor:
    """Weights (B,R,U) of coarse sections from the SDF at their starts (B,R,U); the last section, whose end has no SDF,
    weighs 0."""
    length = start[..., 1:] - start[..., :-1]  # (B, R, U-1)
    quotient = (sdf[..., 1:] - sdf[..., :-1]) / (length + 1e-5)
    before = F.pad(quotient, (1, 0))[..., :-1]
    slope = torch.minimum(quotient, before).clamp(-1000.0, 0.0)
    alpha = opacity(0.5 * (sdf[..., 1:] + sdf[..., :-1]), 0.5 * slope * length, sharpness)
    return F.pad(alpha * transmittance(alpha), (0, 1))


def _inverse_cdf(edges: Tensor, weight: Tensor, u: Tensor) -> Tensor:
    """edges (B,R,U+1), weight (B,R,U) of sections -> positions (B,R,J) below which fractions u of the weight lie."""
    lack = F.relu(1e-5 - weight.sum(-1, keepdim=True))  # (B, R, 1)
    mass = F.pad(_running_sum(weight + lack / weight.shape[-1]), (1, 0))  # (B, R, U+1)
    # Fractions of the last running sum, which need not be 1 in floating point: so u < 1 never falls behind the last
    # section that has weight.
    wanted = (u * mass[..., -1:]).contiguous()  # (B, R, J)
    right = torch.searchsorted(mass, wanted, right=True).clamp(1, weight.shape[-1])
    m0, m1 = mass.gather(-1, right - 1), mass.gather(-1, right)
    e0, e1 = edges.gather(-1, right - 1), edges.gather(-1, right)
    share = torch.where(m1 > m0, (wanted - m0) / (m1 - m0), 0.0).clamp(0, 1)
    return e0 + (e1 - e0) * share
