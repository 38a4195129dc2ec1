"""From the images of a clip to one volume per frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mim4d.nn import LiftSplat, VoxelGrid, VoxelPull


class ViewTransform(nn.Module):
    """Lift the features of every camera of every frame into that frame's own voxels.

    ``push``: pixels spread along their rays, by :class:`mim4d.nn.LiftSplat`; ``pull``: voxels look themselves up in
    the images, by :class:`mim4d.nn.VoxelPull`, on all levels of the pyramid.

    Args:
        grid: the voxels.
        depth_min, depth_max, depth_bins: see :class:`mim4d.nn.LiftSplat`.
        way: push or pull.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        depth_min: float,
        depth_max: float,
        depth_bins: int,
        way: Literal["push", "pull"] = "push",
    ) -> None:
        super().__init__()
        self.lift: LiftSplat | VoxelPull
        if way == "push":
            self.lift = LiftSplat(grid, depth_min, depth_max, depth_bins)
        else:
            self.lift = VoxelPull(grid, depth_min, depth_max)

    def forward(
        self,
        features: Sequence[Tensor],
        depth_probs: Sequence[Tensor],
        intrinsics: Tensor,
        frame_from_cam: Tensor,
        image_size: tuple[int, int],
        content: tuple[int, int] | None = None,
    ) -> Tensor:
        """
        Args:
            features: (B, T, N, C, h_l, w_l) of each level; pushing takes one level.
            depth_probs: (B, T, N, D, h_l, w_l) of each level.
            intrinsics: (B, T, N, 3, 3), pixels of the padded image.
            frame_from_cam: (B, T, N, 4, 4).
            image_size: padded (H, W) that the features cover.
            content: (H, W) without padding; feature pixels whose centre lies in the padding lift nothing.

        Returns:
            (B, T, C, Z, Y, X).
        """
        if content is not None and content != image_size:
            depth_probs = [_without_padding(probs, image_size, content) for probs in depth_probs]
        frames = [f.flatten(0, 1) for f in features], [p.flatten(0, 1) for p in depth_probs]
        calibration = intrinsics.flatten(0, 1), frame_from_cam.flatten(0, 1)
        if isinstance(self.lift, LiftSplat):
            (image,), (probs,) = frames
            volume = self.lift(image, probs, *calibration, image_size)
        else:
            volume = self.lift(*frames, *calibration, image_size)
        return volume.unflatten(0, intrinsics.shape[:2])


def _without_padding(depth_probs: Tensor, image_size: tuple[int, int], content: tuple[int, int]) -> Tensor:
    h, w = depth_probs.shape[-2:]
    rows = (torch.arange(h, device=depth_probs.device) + 0.5) * (image_size[0] / h) < content[0]
    columns = (torch.arange(w, device=depth_probs.device) + 0.5) * (image_size[1] / w) < content[1]
    return depth_probs * (rows[:, None] & columns)
