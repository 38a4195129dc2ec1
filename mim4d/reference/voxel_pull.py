"""Filling voxels from images in plain torch: the specification of ``mim4d::voxel_pull``.

A voxel looks itself up in every camera that sees it and adds what it finds there, weighted by how much the camera
believes that something stands at the voxel's depth:

    out[b,:,v] = sum_(n,l) [all of uvd[b,n,v] strictly inside (-1, 1)] * features_l(u,v) * depth_probs_l(u,v,d)

Features are read bilinearly, depth probabilities trilinearly, ``align_corners=False``, zeros outside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._autograd import vjp
from ._rows import combine, elsewhere, narrow
from .voxel_sample import Taps, axis_taps, inside_product, tap_product


def voxel_pull(features: Sequence[Tensor], depth_probs: Sequence[Tensor], uvd: Tensor) -> Tensor:
    """features: L of (B,N,C,H_l,W_l), depth_probs: L of (B,N,D,H_l,W_l), uvd (B,N,V,3) in [-1,1]
    -> (B,C,V), stored as (B,V,C), in the dtype of the features. Computed in the dtype of ``uvd``.
    """
    B, N, V, _ = uvd.shape
    with torch.autocast(uvd.device.type, enabled=False):
        seen = (uvd.abs() < 1).all(-1).flatten()  # (P,), P = B*N*V; False for NaN
        place = torch.where(seen.unsqueeze(-1), uvd.flatten(0, 2), 0.0)  # (P, 3)
        camera = torch.arange(B * N, device=uvd.device).repeat_interleave(V).unsqueeze(1)  # (P, 1)
        out = uvd.new_zeros(B * V, features[0].shape[2])
        for image, probs in zip(features, depth_probs, strict=True):
            D, H, W = probs.shape[2:]
            x, y, z = (_taps(place[:, i], size) for i, size in enumerate((W, H, D)))
            pixel = (((camera * H + y.cell).unsqueeze(2) * W) + x.cell.unsqueeze(1)).flatten(1)  # (P, 4) y, x
            voxel = ((camera * D + z.cell).unsqueeze(2) * H + y.cell.unsqueeze(1)).flatten(1)  # (P, 4) z, y
            voxel = (voxel.unsqueeze(2) * W + x.cell.unsqueeze(1)).flatten(1)  # (P, 8) z, y, x
            column = probs.flatten().unsqueeze(1).to(uvd.dtype)  # (B*N*D*H*W, 1)
            around = (y.inside.unsqueeze(2) & x.inside.unsqueeze(1)).flatten(1) & seen.unsqueeze(-1)  # (P, 4)
            column, voxel = elsewhere(column, voxel, inside_product(x, y, z) & seen.unsqueeze(-1))
            belief = combine(column, narrow(voxel, len(column)), tap_product(x.weight, y.weight, z.weight))  # (P, 1)
            weight = (y.weight.unsqueeze(2) * x.weight.unsqueeze(1)).flatten(1)  # (P, 4)
            weight = torch.where(around, weight * belief, 0.0)
            rows = image.permute(0, 1, 3, 4, 2).flatten(0, 3).to(uvd.dtype)  # (B*N*H*W, C)
            rows, pixel = elsewhere(rows, pixel, around)
            pixel, weight = (t.view(B, N, V, 4).transpose(1, 2).reshape(B * V, N * 4) for t in (pixel, weight))
            out = out + combine(rows, narrow(pixel, len(rows)), weight)  # (B*V, C)
    return out.to(features[0].dtype).view(B, V, features[0].shape[2]).transpose(1, 2)


def voxel_pull_backward(
    grad: Tensor, features: list[Tensor], depth_probs: list[Tensor], uvd: Tensor, mask: Sequence[bool]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Gradients of features, depth_probs and uvd; empty where ``mask`` is False."""
    return vjp(voxel_pull, (features, depth_probs, uvd), grad, mask)


def _taps(coordinate: Tensor, size: int) -> Taps:
    """Linear taps of one axis."""
    return axis_taps(coordinate, size, cubic=False, smooth=False, border=False, align_corners=False)
