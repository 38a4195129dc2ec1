"""From the images of a clip to one volume per frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mim4d.nn import LiftSplat, VoxelGrid


class ViewTransform(nn.Module):
    """Lift the features of every camera of every frame into that frame's own voxels, by :class:`mim4d.nn.LiftSplat`.

    Args:
        grid: the voxels.
        depth_min, depth_max, depth_bins: see :class:`mim4d.nn.LiftSplat`.
    """

    def __init__(self, grid: VoxelGrid, depth_min: float, depth_max: float, depth_bins: int) -> None:
        super().__init__()
        self.lift = LiftSplat(grid, depth_min, depth_max, depth_bins)

    def forward(
        self,
        features: Tensor,
        depth_probs: Tensor,
        intrinsics: Tensor,
        frame_from_cam: Tensor,
        image_size: tuple[int, int],
        content: tuple[int, int] | None = None,
    ) -> Tensor:
        """
        Args:
            features: (B, T, N, C, h, w).
            depth_probs: (B, T, N, D, h, w).
            intrinsics: (B, T, N, 3, 3), pixels of the padded image.
            frame_from_cam: (B, T, N, 4, 4).
            image_size: padded (H, W) that the features cover.
            content: (H, W) without padding; feature pixels whose centre lies in the padding lift nothing.

        Returns:
            (B, T, C, Z, Y, X).
        """
        b, t = features.shape[:2]
        if content is not None and content != image_size:
            h, w = features.shape[-2:]
            rows = (torch.arange(h, device=features.device) + 0.5) * (image_size[0] / h) < content[0]
            columns = (torch.arange(w, device=features.device) + 0.5) * (image_size[1] / w) < content[1]
            depth_probs = depth_probs * (rows[:, None] & columns)
        volume = self.lift(
            features.flatten(0, 1),
            depth_probs.flatten(0, 1),
            intrinsics.flatten(0, 1),
            frame_from_cam.flatten(0, 1),
            image_size,
        )
        return volume.unflatten(0, (b, t))
