"""Rays of a clip through its volumes, and how far what they see is from what the sensors saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn

from mim4d.data.rays import Rays
from mim4d.nn import (
    RenderOutput,
    SDFRenderer,
    eikonal_loss,
    free_space_loss,
    sparse_point_loss,
    ssim_loss,
    truncation_loss,
)
from mim4d.nn.render_losses import masked_mean

# loss -> its weight unless another one is given; METHOD section 6 makes all but two optional
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"rgb": 10.0, "depth": 10.0, "eikonal": 0.0, "free_space": 0.0, "truncation": 0.0, "sparse_point": 0.0, "ssim": 0.0}
)


@dataclass(frozen=True)
class RenderLoss:
    """Weighted losses and plain errors of one rendered volume by name; all 0-dim.

    Where nothing can be compared a loss is 0 (it has to have a gradient) and an error is not-a-number (0 would read as
    perfect). The optional ones are there where their weight is not 0.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    # rgb_l1 (colours in [0, 1]), depth_l1_m, eikonal_error, free_space_m, truncation_m, sparse_point_m, ssim_error;
    # _m: metres
    metrics: dict[str, Tensor] = field(default_factory=dict)


def measured(mean: Tensor, mask: Tensor) -> Tensor:
    """``mean`` (0-dim) without its gradient, and not-a-number where no entry of mask is set."""
    return torch.where(mask.any(), mean.detach(), torch.nan)


class RenderDecoder(nn.Module):
    """Render volumes along a batch's rays and compare (METHOD section 6, losses).

    Args:
        renderer: metres in, metres out.
        weights: of the losses by name, in the place of those in :data:`WEIGHTS`. Lengths (all but rgb, eikonal and
            ssim) are compared in the renderer's scaled units.
        truncation: metres from a surface; see :func:`mim4d.nn.truncation_loss`.

    Raises:
        ValueError: there is no such loss.
    """

    def __init__(
        self, renderer: SDFRenderer, weights: Mapping[str, float] | None = None, truncation: float = 0.1
    ) -> None:
        super().__init__()
        unknown = set(weights or ()) - set(WEIGHTS)
        if unknown:
            raise ValueError(f"RenderDecoder: weights names {sorted(unknown)}, wanted some of {', '.join(WEIGHTS)}")
        self.renderer = renderer
        self.weights = {**WEIGHTS, **(weights or {})}
        self.truncation = truncation

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

    def loss(self, output: RenderOutput, volumes: Tensor, rays: Rays, valid: Tensor, patch: int = 1) -> RenderLoss:
        """Losses over the valid targets.

        Args:
            output: rendered along ``rays``, sizes (B, K, N, R).
            volumes: (B, K, C, Z, Y, X) that were rendered.
            rays: with the targets of colour and depth.
            valid: (B, K) bool; others count nothing.
            patch: the rays of each camera are squares of so many pixels a side, row by row; 1: single rays, on which
                there is no structural similarity.
        """
        found, scale = RenderLoss(), self.renderer.scale
        counted = valid[:, :, None, None].expand(rays.depth.shape)  # (B, K, N, R)
        lidar = counted & rays.has_depth

        def add(name: str, metric: str, mean: Tensor, mask: Tensor, unit: float = scale) -> None:
            found.losses[name] = self.weights[name] * unit * mean
            found.metrics[metric] = measured(mean, mask)

        add("rgb", "rgb_l1", masked_mean((output.rgb - rays.rgb).abs(), counted[..., None]), counted, 1.0)
        add("depth", "depth_l1_m", masked_mean((output.depth - rays.depth).abs(), lidar), lidar)
        if self.weights["eikonal"]:
            inside = counted & output.hit
            add("eikonal", "eikonal_error", eikonal_loss(output.gradient, inside), inside, 1.0)
        # a ray that misses the box was marched somewhere else
        surface, t = lidar & output.hit, output.edges[..., :-1]  # (B, K, N, R), (B, K, N, R, S)
        along = (output.sdf, t, rays.depth, surface, self.truncation)
        if self.weights["free_space"]:
            add("free_space", "free_space_m", free_space_loss(*along), surface)
        if self.weights["truncation"]:
            add("truncation", "truncation_m", truncation_loss(*along), surface)
        if self.weights["sparse_point"]:
            add("sparse_point", "sparse_point_m", sparse_point_loss(self._at_returns(volumes, rays), surface), surface)
        if self.weights["ssim"] and patch > 1:
            seen, real = (c.unflatten(3, (-1, patch, patch)).movedim(-1, -3) for c in (output.rgb, rays.rgb))
            whole = valid[:, :, None, None].expand(seen.shape[:4])  # (B, K, N, R / patch^2)
            add("ssim", "ssim_error", ssim_loss(seen, real, whole, window=min(patch, 3)), whole, 1.0)
        return found

    def _at_returns(self, volumes: Tensor, rays: Rays) -> Tensor:
        """The signed distance (B, K, N, R), metres, where LiDAR hit: 0 is right. Elsewhere at the ray's start."""
        points = (rays.origins + rays.depth[..., None] * rays.directions).flatten(0, 1)  # (B*K, N, R, 3)
        return self.renderer.sdf(volumes.flatten(0, 1), points).unflatten(0, rays.depth.shape[:2])
