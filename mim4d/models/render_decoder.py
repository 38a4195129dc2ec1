"""Rays of a clip through its volumes, and how far what they see is from what the sensors saw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mim4d.data.rays import Rays
from mim4d.nn import RenderOutput, SDFRenderer


@dataclass(frozen=True)
class RenderLoss:
    """Weighted losses and plain errors of one rendered volume; all 0-dim.

    Where nothing can be compared a loss is 0 (it has to have a gradient) and an error is not-a-number (0 would read as
    perfect).
    """

    rgb: Tensor
    depth: Tensor
    rgb_l1: Tensor  # mean over rays and channels, colours in [0, 1]
    depth_l1_m: Tensor  # metres, mean over LiDAR rays


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where mask (broadcastable bool) is set; 0, without a gradient, where nothing is."""
    mask = mask.expand_as(values)
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def measured(mean: Tensor, mask: Tensor) -> Tensor:
    """``mean`` (0-dim) without its gradient, and not-a-number where no entry of mask is set."""
    return torch.where(mask.any(), mean.detach(), torch.nan)


class RenderDecoder(nn.Module):
    """Render volumes along a batch's rays and compare (METHOD section 6, losses).

    Args:
        renderer: metres in, metres out.
        rgb_weight, depth_weight: of the two L1 losses. Depth is compared in the renderer's scaled units.
    """

    def __init__(self, renderer: SDFRenderer, rgb_weight: float = 10.0, depth_weight: float = 10.0) -> None:
        super().__init__()
        self.renderer = renderer
        self.rgb_weight, self.depth_weight = rgb_weight, depth_weight

    def render(self, volumes: Tensor, rays: Rays, generator: torch.Generator | None = None) -> RenderOutput:
        """volumes (B, K, C, Z, Y, X), rays (B, K, N, R) in the targets' frames -> a record with sizes (B, K, N, R).

        In training mode the samples are jittered, by ``generator`` where given.
        """
        b, k, n, r = rays.depth.shape
        jitter = None
        if self.training and generator is not None:
            jitter = torch.rand(b * k, n * r, 2, generator=generator, device=generator.device).to(volumes.device)
        flat = rays.map(lambda t: t.flatten(2, 3).flatten(0, 1))  # (B*K, N*R, ...)
        output = self.renderer(volumes.flatten(0, 1), flat.origins, flat.directions, jitter=jitter)
        return output.reshape(b, k, n, r)

    def loss(self, output: RenderOutput, rays: Rays, valid: Tensor) -> RenderLoss:
        """Losses over the valid targets.

        Args:
            output: rendered along ``rays``, sizes (B, K, N, R).
            rays: with the targets of colour and depth.
            valid: (B, K) bool; others count nothing.
        """
        counted = valid[:, :, None, None]  # (B, K, 1, 1)
        rgb = masked_mean((output.rgb - rays.rgb).abs(), counted[..., None])
        lidar = counted & rays.has_depth  # (B, K, N, R)
        metres = masked_mean((output.depth - rays.depth).abs(), lidar)
        return RenderLoss(
            rgb=self.rgb_weight * rgb,
            depth=self.depth_weight * self.renderer.scale * metres,
            rgb_l1=measured(rgb, counted),
            depth_l1_m=measured(metres, lidar),
        )
