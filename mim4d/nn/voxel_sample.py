"""A module around :func:`mim4d.ops.voxel_sample`."""

from __future__ import annotations

from torch import Tensor, nn

from mim4d import ops


class VoxelSampler(nn.Module):
    """Read a volume at points; no parameters.

    Args:
        mode: ``trilinear``, ``smoothstep``, ``bicubic`` or ``tricubic``.
        padding_mode: ``zeros`` (outside counts 0) or ``border``.
        align_corners: as in ``torch.nn.functional.grid_sample``.
    """

    def __init__(self, mode: str = "trilinear", padding_mode: str = "zeros", align_corners: bool = False) -> None:
        super().__init__()
        self.mode, self.padding_mode, self.align_corners = mode, padding_mode, align_corners

    def forward(self, volume: Tensor, points: Tensor) -> Tensor:
        """volume (B, C, Z, Y, X), points (B, ..., 3) normalised (x, y, z) -> (B, ..., C)."""
        return ops.voxel_sample(
            volume, points, mode=self.mode, padding_mode=self.padding_mode, align_corners=self.align_corners
        )

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, padding_mode={self.padding_mode!r}, align_corners={self.align_corners}"
