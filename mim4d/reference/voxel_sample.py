"""Sampling a voxel volume at points, in plain torch: the specification of ``mim4d::voxel_sample``.

A volume is read at a position ``p`` (in cells, one number per axis) as ``sum_k w_k(p) volume[tap_k(p)]`` over the
product of the taps of its three axes. Per axis, with ``i = floor(p)`` and ``t = p - i``:

- linear: taps ``i, i+1`` with weights ``1-t, t``; smoothstep: the same taps with ``t*t*(3-2t)`` in the place of ``t``;
- cubic: taps ``i-1 .. i+2`` with Keys' kernel for a = -0.75, as in torch (Keys 1981, eq. 4).

``zeros``: a tap outside counts 0. ``border``: a linear axis clamps the coordinate (its derivative is 0 on and beyond
the border), a cubic axis clamps each tap. Everything is differentiable as often as torch can.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._autograd import vjp

TRILINEAR, SMOOTHSTEP, BICUBIC, TRICUBIC = range(
    4
)  # as they cross the dispatcher; csrc/math/modes.h has the same numbers
ZEROS, BORDER = range(2)
_A = -0.75  # Keys' parameter


class Taps(NamedTuple):
    """The taps of one axis for P points; K is 2 or 4."""

    cell: Tensor  # (P, K) int64 cell, clamped into the volume
    inside: Tensor  # (P, K) bool, False where the tap counts 0
    weight: Tensor  # (P, K)
    slope: Tensor  # (P, K) derivative of the weight with respect to the normalised coordinate


def voxel_sample(volume: Tensor, points: Tensor, mode: int, padding_mode: int, align_corners: bool) -> Tensor:
    """volume (B,C,Z,Y,X), points (B,...,3) normalised (x,y,z) -> (B,...,C) in the volume's dtype.

    A half volume is read with float32 points and accumulated in float32. A NaN point gives a NaN row and has gradient
    0.
    """
    with torch.autocast(volume.device.type, enabled=False):
        lost, rows, taps = _stencil(volume, points, mode, padding_mode, align_corners)
        values = _gather(volume, rows, taps)  # (P, K, C)
        weight = tap_product(*(t.weight for t in taps))  # (P, K)
        out = (weight.unsqueeze(-1) * values).sum(1)  # (P, C)
        out = torch.where(lost.unsqueeze(-1), torch.nan, out)
    return out.to(volume.dtype).reshape(*points.shape[:-1], volume.shape[1])


def voxel_sample_with_grad(
    volume: Tensor, points: Tensor, mode: int, padding_mode: int, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """As :func:`voxel_sample`, and its Jacobian (B,...,C,3) with respect to the normalised (x,y,z), one gather for
    both."""
    with torch.autocast(volume.device.type, enabled=False):
        lost, rows, taps = _stencil(volume, points, mode, padding_mode, align_corners)
        values = _gather(volume, rows, taps)  # (P, K, C)
        x, y, z = taps
        columns = [
            tap_product(x.weight, y.weight, z.weight),
            tap_product(x.slope, y.weight, z.weight),
            tap_product(x.weight, y.slope, z.weight),
            tap_product(x.weight, y.weight, z.slope),
        ]
        out = torch.stack([(w.unsqueeze(-1) * values).sum(1) for w in columns], -1)  # (P, C, 4)
        out = torch.where(lost[:, None, None], torch.nan, out)
    out = out.to(volume.dtype).reshape(*points.shape[:-1], volume.shape[1], 4)
    return out[..., 0].contiguous(), out[..., 1:].contiguous()


def voxel_sample_backward(
    grad: Tensor, volume: Tensor, points: Tensor, mode: int, padding_mode: int, align_corners: bool, mask: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of volume (channels last) and points for the cotangent ``grad`` (B,...,C); empty where ``mask`` is
    False."""
    found = vjp(lambda v, p: voxel_sample(v, p, mode, padding_mode, align_corners), (volume, points), grad, mask)
    return _channels_last(found[0]), found[1]


def voxel_sample_double_backward(
    grad_grad_volume: Tensor | None,
    grad_grad_points: Tensor | None,
    grad: Tensor,
    volume: Tensor,
    points: Tensor,
    mode: int,
    padding_mode: int,
    align_corners: bool,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (grad, volume, points) through :func:`voxel_sample_backward`; ``mask`` says which are wanted."""

    def backward(g: Tensor, v: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return voxel_sample_backward(g, v, p, mode, padding_mode, align_corners, [True, True])

    found = vjp(backward, (grad, volume, points), (grad_grad_volume, grad_grad_points), mask)
    return found[0], _channels_last(found[1]), found[2]


def voxel_sample_with_grad_backward(
    grad_features: Tensor | None,
    grad_jacobian: Tensor | None,
    volume: Tensor,
    points: Tensor,
    mode: int,
    padding_mode: int,
    align_corners: bool,
    mask: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of volume and points through :func:`voxel_sample_with_grad`."""

    def forward(v: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return voxel_sample_with_grad(v, p, mode, padding_mode, align_corners)

    found = vjp(forward, (volume, points), (grad_features, grad_jacobian), mask)
    return _channels_last(found[0]), found[1]


def _stencil(
    volume: Tensor, points: Tensor, mode: int, padding_mode: int, align_corners: bool
) -> tuple[Tensor, Tensor, tuple[Taps, Taps, Taps]]:
    """(P,) bool: point is NaN; (P,) int64: its batch item; the taps of the axes x, y, z. P = B * N."""
    batch = volume.shape[0]
    per_item = points[0].numel() // 3 if batch else 0
    flat = points.reshape(-1, 3)  # (P, 3)
    lost = flat.isnan().any(-1)  # (P,)
    flat = torch.where(lost.unsqueeze(-1), 0.0, flat)
    rows = torch.arange(batch, device=volume.device).repeat_interleave(per_item)  # (P,)
    sizes = volume.shape[:1:-1]  # X, Y, Z
    cubic = (mode in (BICUBIC, TRICUBIC), mode in (BICUBIC, TRICUBIC), mode == TRICUBIC)
    x, y, z = (
        axis_taps(flat[:, d], sizes[d], cubic[d], mode == SMOOTHSTEP, padding_mode == BORDER, align_corners)
        for d in range(3)
    )
    return lost, rows, (x, y, z)


def axis_taps(coordinate: Tensor, size: int, cubic: bool, smooth: bool, border: bool, align_corners: bool) -> Taps:
    """Taps of one axis. coordinate (P,) in [-1, 1], as in ``torch.nn.functional.grid_sample``."""
    scale = 0.5 * (size - 1) if align_corners else 0.5 * size  # d position / d coordinate
    # An axis of size 1 may have scale 0, and inf * 0 would be NaN. Not a clamp: torch 2.15 compiles that anew per size.
    finite = torch.where(coordinate.isinf(), 0.0, coordinate) if size == 1 and align_corners else coordinate  # (P,)
    position = (finite + 1) * scale - (0.0 if align_corners else 0.5)  # (P,)
    # Linear and border: the clamp is the definition. Otherwise every tap lies outside beyond these limits, so that the
    # clamp changes nothing and keeps floor() within int64 for any coordinate, infinite ones too.
    low, high = (0.0, size - 1.0) if border and not cubic else (-3.0, size + 2.0)
    free = (position > low) & (position < high)  # (P,)
    position = torch.where(free, position, position.detach().clamp(low, high))
    first = position.detach().floor()
    t = position - first
    if cubic:
        weight, slope = _keys(t)
    else:
        s, ds = (t * t * (3 - 2 * t), 6 * t * (1 - t)) if smooth else (t, torch.ones_like(t))
        weight, slope = torch.stack((1 - s, s), -1), torch.stack((-ds, ds), -1)
    step = torch.arange(-1 if cubic else 0, 3 if cubic else 2, device=coordinate.device)  # (K,)
    cell = first.long().unsqueeze(-1) + step  # (P, K)
    inside = (cell >= 0) & (cell < size)
    if border:
        inside = torch.ones_like(inside)
    slope = torch.where(free.unsqueeze(-1), slope * scale, 0.0)
    return Taps(cell.clamp(0, size - 1), inside, weight, slope)


def _keys(t: Tensor) -> tuple[Tensor, Tensor]:
    """Cubic convolution weights (P, 4) of the taps at -1, 0, 1, 2 for the fraction t (P,), and their derivatives."""

    def near(s: Tensor) -> tuple[Tensor, Tensor]:  # |s| <= 1
        return ((_A + 2) * s - (_A + 3)) * s * s + 1, (3 * (_A + 2) * s - 2 * (_A + 3)) * s

    def far(s: Tensor) -> tuple[Tensor, Tensor]:  # 1 < |s| < 2
        return ((_A * s - 5 * _A) * s + 8 * _A) * s - 4 * _A, (3 * _A * s - 10 * _A) * s + 8 * _A

    (w0, d0), (w1, d1), (w2, d2), (w3, d3) = far(t + 1), near(t), near(1 - t), far(2 - t)
    return torch.stack((w0, w1, w2, w3), -1), torch.stack((d0, d1, -d2, -d3), -1)


def _channels_last(grad: Tensor) -> Tensor:
    """The layout that the schema promises for the gradient of a volume; an empty one, not wanted, stays as it is."""
    return grad.contiguous(memory_format=torch.channels_last_3d) if grad.dim() == 5 else grad


def tap_product(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """(P,Kx), (P,Ky), (P,Kz) -> (P, Kz*Ky*Kx): the taps of the volume are the product of the taps of the axes."""
    return (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).flatten(1)


def inside_product(x: Taps, y: Taps, z: Taps) -> Tensor:
    """(P, Kz*Ky*Kx) whether a tap of the volume lies inside, in the order of :func:`tap_product`."""
    return (z.inside[:, :, None, None] & y.inside[:, None, :, None] & x.inside[:, None, None, :]).flatten(1)


def _gather(volume: Tensor, rows: Tensor, taps: tuple[Taps, Taps, Taps]) -> Tensor:
    """Values (P, K, C) of the volume at the product of the taps; 0 where a tap is outside, whatever the volume
    holds."""
    _, _, Z, Y, X = volume.shape
    x, y, z = taps
    cells = (rows[:, None, None, None] * Z + z.cell[:, :, None, None]) * Y + y.cell[:, None, :, None]
    cells = (cells * X + x.cell[:, None, None, :]).flatten(1)  # (P, K)
    inside = inside_product(x, y, z)
    flat = volume.permute(0, 2, 3, 4, 1).flatten(0, 3)  # (B*Z*Y*X, C)
    values = (
        flat.to(taps[0].weight.dtype).index_select(0, cells.flatten()).reshape(*cells.shape, flat.shape[1])
    )  # (P, K, C)
    return torch.where(inside.unsqueeze(-1), values, 0.0)
