"""Images to features and depth bins: mask-aware backbone, feature pyramid, depth net."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from .backbone import MaskedConvNeXt, MaskedResNet
from .masking import Visibility

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of 8 groups (fewer where they do not divide the channels).

    The layers after the backbone use it in place of batch norm: its statistics stay within one image or one volume, so
    that a frame that is missing, masked or dropped cannot reach another one through them, and so that training (masked
    images, small batches) and evaluation (whole images) compute the same function.
    """
    return nn.GroupNorm(math.gcd(channels, 8), channels)


class FeaturePyramid(nn.Module):
    """Top-down feature pyramid that ends at its finest input level (Lin et al., "Feature Pyramid Networks").

    Args:
        channels: of the input maps, finest first.
        out: channels of the result.
        levels: how many of its levels it gives, from the finest on.
    """

    def __init__(self, channels: tuple[int, ...], out: int, levels: int = 1) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, out, 1) for c in channels)
        self.output = nn.Conv2d(out, out, 3, padding=1)
        self.coarser = nn.ModuleList(nn.Conv2d(out, out, 3, padding=1) for _ in range(levels - 1))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (M, C_l, h_l, w_l), finest first -> (M, out, h_l, w_l) of the first levels."""
        found = [self.lateral[-1](maps[-1])]
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            found.append(lateral(finer) + F.interpolate(found[-1], size=finer.shape[-2:], mode="nearest"))
        outputs = (self.output, *self.coarser)
        return [output(x) for output, x in zip(outputs, reversed(found), strict=False)]


class DepthNet(nn.Module):
    """A feature to lift and a distribution over depth bins for every pixel.

    Args:
        channels: of the input.
        lift_channels: of the lifted feature.
        depth_bins: D.
    """

    def __init__(self, channels: int, lift_channels: int, depth_bins: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), group_norm(channels), nn.ReLU(inplace=True)
        )
        self.feature = nn.Conv2d(channels, lift_channels, 1)
        self.depth = nn.Conv2d(channels, depth_bins, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(M, C, h, w) -> features (M, lift_channels, h, w) and bin weights (M, D, h, w) that sum to one, fp32."""
        x = self.shared(x)
        return self.feature(x), self.depth(x).float().softmax(dim=1)


class ImageEncoder(nn.Module):
    """Backbone -> pyramid -> depth net, for any number of images of any size.

    Images are padded right and bottom to the backbone's coarsest stride with hidden pixels, so a feature pixel always
    covers exactly ``stride`` image pixels.

    Args:
        backbone: a mask-aware backbone.
        stride: of the features that are lifted: 4, 8, 16 or 32; the pyramid joins all stages from there on.
        neck_channels: of the pyramid.
        lift_channels: of the lifted features.
        depth_bins: D.
        mask_token: put a learned vector, instead of zeros, where a stage is hidden.
        levels: how many levels of the pyramid are lifted, from ``stride`` on to coarser ones, all by one depth net.

    Raises:
        ValueError: the backbone has no stage of this stride, or fewer levels from there on.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: MaskedConvNeXt | MaskedResNet,
        *,
        stride: int,
        neck_channels: int,
        lift_channels: int,
        depth_bins: int,
        mask_token: bool = False,
        levels: int = 1,
    ) -> None:
        super().__init__()
        if stride not in backbone.strides:
            raise ValueError(f"ImageEncoder: feature stride wanted one of {backbone.strides}, got {stride}")
        self.backbone = backbone
        self.stride = stride
        self.first = backbone.strides.index(stride)
        used = backbone.channels[self.first :]
        if not 1 <= levels <= len(used):
            raise ValueError(f"ImageEncoder: levels wanted 1 to {len(used)} from stride {stride} on, got {levels}")
        self.norms = nn.ModuleList(LayerNorm2d(c) for c in used)
        self.tokens = nn.ParameterList(nn.Parameter(torch.zeros(c, 1, 1)) for c in used) if mask_token else None
        self.neck = FeaturePyramid(used, neck_channels, levels)
        self.depth_net = DepthNet(neck_channels, lift_channels, depth_bins)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(
        self, images: Tensor, visible: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor], tuple[int, int]]:
        """
        Args:
            images: (M, 3, H, W), RGB in [0, 1].
            visible: (M, H, W) bool, True = visible; None: all of it.

        Returns:
            Of each level, finest first, features (M, lift_channels, h_l, w_l) and bin weights (M, D, h_l, w_l); and the
            size (h_0 * stride, w_0 * stride) of the padded image that they cover, pixels.
        """
        height, width = images.shape[-2:]
        coarsest = self.backbone.strides[-1]
        padding = (0, -width % coarsest, 0, -height % coarsest)  # right and bottom
        x = (images - self.mean) / self.std
        if any(padding):
            x = F.pad(x, padding)
            if visible is None:
                visible = torch.ones(images.shape[0], height, width, dtype=torch.bool, device=images.device)
            visible = F.pad(visible, padding)  # padding is hidden
        mask = Visibility(None if visible is None else visible[:, None])
        maps = []
        for i, (stage, norm) in enumerate(zip(self.backbone(x, mask)[self.first :], self.norms, strict=True)):
            level = mask.apply(norm(stage))  # (M, C_l, h_l, w_l)
            seen = mask.at((level.shape[-2], level.shape[-1]), level.dtype)
            if self.tokens is not None and seen is not None:
                level = level + (1.0 - seen) * self.tokens[i]
            maps.append(level)
        features, depth_probs = zip(*map(self.depth_net, self.neck(maps)), strict=True)
        return list(features), list(depth_probs), (height + padding[3], width + padding[1])
