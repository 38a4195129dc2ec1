"""Multi-scale deformable attention in plain torch: the specification of ``mim4d::ms_deform_attn``.

A head m of a query q reads P points in each of L feature maps and adds what it finds (Deformable DETR, eq. 3):

    out[b,q,m] = sum_(l,p) weight[b,q,m,l,p] * map_(b,m,l)(location[b,q,m,l,p])

A map is read bilinearly at the position (x W_l - 0.5, y H_l - 0.5), ``align_corners=False``; a tap outside counts 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._autograd import vjp
from ._rows import combine, elsewhere, narrow


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """value (B,S,M,D), spatial_shapes (L,2) as (H,W), level_start_index (L,), sampling_locations (B,Q,M,L,P,2) as (x,y)
    in [0,1], attention_weights (B,Q,M,L,P) -> (B,Q,M*D) in the dtype of ``value``.

    Computed in the dtype of the locations. A NaN location reads nothing, as any other location outside.
    """
    B, S, M, D = value.shape
    Q = sampling_locations.shape[1]
    dtype, device = sampling_locations.dtype, value.device
    with torch.autocast(device.type, enabled=False):
        height, width = spatial_shapes.to(device).unbind(-1)  # (L,)
        x0, tx, x_reach = _first_tap(sampling_locations[..., 0], width.unsqueeze(-1))  # (B, Q, M, L, P)
        y0, ty, y_reach = _first_tap(sampling_locations[..., 1], height.unsqueeze(-1))
        step = torch.arange(2, device=device)
        x = (x0.unsqueeze(-1) + step).unsqueeze(-2)  # (B, Q, M, L, P, 1, 2)
        y = (y0.unsqueeze(-1) + step).unsqueeze(-1)  # (B, Q, M, L, P, 2, 1)
        wide, high = width.view(-1, 1, 1, 1), height.view(-1, 1, 1, 1)
        place = level_start_index.to(device).view(-1, 1, 1, 1) + y * wide + x  # (B, Q, M, L, P, 2, 2) in the S axis
        inside = (x >= 0) & (x < wide) & (y >= 0) & (y < high) & (x_reach & y_reach)[..., None, None]
        inside = inside & (place >= 0) & (place < S)  # wrong shapes on a GPU, whose values nobody reads, drop the tap

        wx = torch.stack((1 - tx, tx), -1).unsqueeze(-2)
        wy = torch.stack((1 - ty, ty), -1).unsqueeze(-1)
        weight = (wy * wx * attention_weights.to(dtype)[..., None, None]).flatten(0, 2).flatten(1)  # (B*Q*M, L*P*4)
        item = torch.arange(B, device=device).view(-1, 1, 1, 1, 1, 1, 1)
        head = torch.arange(M, device=device).view(-1, 1, 1, 1, 1)
        index = ((item * S + place.clamp(0, S - 1)) * M + head).flatten(0, 2).flatten(1)
        rows = value.flatten(0, 2).to(dtype)  # (B*S*M, D)
        rows, index = elsewhere(rows, index, inside.flatten(0, 2).flatten(1))
        out = combine(rows, narrow(index, rows.shape[0]), weight)  # (B*Q*M, D)
    return out.to(value.dtype).reshape(B, Q, M * D)


def ms_deform_attn_backward(
    grad: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, sampling_locations and attention_weights; empty where ``mask`` is False."""

    def forward(v: Tensor, x: Tensor, a: Tensor) -> Tensor:
        return ms_deform_attn(v, spatial_shapes, level_start_index, x, a)

    return vjp(forward, (value, sampling_locations, attention_weights), grad, mask)


def _first_tap(location: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """location (..., L, P) in [0,1], size (L, 1) -> first of two taps, fraction towards the second, whether any is
    inside."""
    position = location * size - 0.5
    reach = (position > -1) & (position < size)
    position = torch.where(reach, position, 0.0)
    first = position.detach().floor()
    return first.long(), position - first, reach
