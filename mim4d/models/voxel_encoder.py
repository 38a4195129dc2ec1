"""The convolution after the lift."""

from __future__ import annotations

from torch import Tensor, nn

from .image_encoder import group_norm


class VoxelEncoder(nn.Module):
    """3x3x3 convolution, norm, ReLU: lifted sums to the volume V.

    Args:
        in_channels: of the lifted features.
        channels: C of V.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = group_norm(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_channels, Z, Y, X) -> (..., channels, Z, Y, X)."""
        leading = x.shape[:-4]
        y = self.act(self.norm(self.conv(x.flatten(0, -5))))
        return y.unflatten(0, leading)
