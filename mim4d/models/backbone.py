"""ConvNeXt and ResNet families of timm, made mask-aware.

Hidden positions carry nothing through any stage. Convolutions stay dense; wherever a hidden position could reach a
visible one, its value is zero: before every spatial operation, and in every statistic over positions. A layer norm
works per position, so running it densely and multiplying by the mask gives the values that gathering the visible
positions, normalising them and scattering them back would give, without a host synchronisation. Batch norm takes its
statistics over visible positions alone. timm's modules keep their names, so its weights load here and ours load there.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import GlobalResponseNormMlp
from timm.models.convnext import ConvNeXt, ConvNeXtBlock, ConvNeXtStage
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mim4d.errors import UserError

from .masking import Visibility
from .weights import FAMILIES, create_timm

LAYERS = ("layer1", "layer2", "layer3", "layer4")  # of a timm ResNet


def masked_batch_norm(norm: nn.BatchNorm2d, x: Tensor, visible: Visibility) -> Tensor:
    """Batch norm whose statistics come from visible positions only; x (M, C, h, w) -> the same, zero where hidden.

    With frozen or running statistics (``norm.eval()``) this is the ordinary batch norm times the mask.
    """
    mask = visible.at((x.shape[-2], x.shape[-1]))
    if mask is None or not (norm.training or norm.running_mean is None):
        return visible.apply(norm(x))
    values = x.float()
    count = mask.sum().clamp(min=1.0)
    mean = (values * mask).sum(dim=(0, 2, 3)) / count  # (C,)
    centred = (values - mean[:, None, None]) * mask
    variance = centred.square().sum(dim=(0, 2, 3)) / count  # (C,)
    if norm.training and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked += 1
            step = 1.0 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
            unbiased = variance * count / (count - 1.0).clamp(min=1.0)
            norm.running_mean += step * (mean.to(norm.running_mean.dtype) - norm.running_mean)
            norm.running_var += step * (unbiased.to(norm.running_var.dtype) - norm.running_var)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
        shift = norm.bias[:, None, None] * mask
    else:
        shift = torch.zeros((), device=x.device)
    return (centred * scale[:, None, None] + shift).to(x.dtype)


def _sequence(modules: nn.Module, x: Tensor, visible: Visibility) -> Tensor:
    """Run a stem or downsample path; everything that may fill a hidden position again is followed by the mask."""
    for module in modules.children() if isinstance(modules, nn.Sequential) else (modules,):
        if isinstance(module, nn.Sequential):
            x = _sequence(module, x, visible)
        elif isinstance(module, nn.BatchNorm2d):
            x = masked_batch_norm(module, x, visible)
        elif not isinstance(module, nn.Identity):
            x = visible.apply(module(x))
    return x


def _refuse(name: str, what: str) -> UserError:
    return UserError(f"model.backbone: {name!r} {what}, which no mask can follow; wanted {FAMILIES} without it")


def _stages(infos: list[dict[str, Any]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and strides of the stages, from timm's ``feature_info``."""
    return tuple(int(i["num_chs"]) for i in infos), tuple(int(i["reduction"]) for i in infos)


class MaskedConvNeXt(nn.Module):
    """The stem and stages of a timm ConvNeXt (V1 and V2).

    Args:
        model: a timm ``ConvNeXt``; its head is left behind.
        name: for messages.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, model: ConvNeXt, name: str, checkpointing: bool = False) -> None:
        super().__init__()
        self.stem, self.stages = model.stem, model.stages
        self.channels, self.strides = _stages(model.feature_info)
        self.checkpointing = checkpointing
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                raise _refuse(name, f"normalises with {type(module).__name__} inside its blocks")

    @staticmethod
    def _block(block: ConvNeXtBlock, x: Tensor, visible: Visibility) -> Tensor:
        if visible.pixels is None:
            return block(x)
        if not isinstance(block.mlp, GlobalResponseNormMlp):
            # After the depth-wise convolution all is per position: one product at the end hides everything.
            return visible.apply(block(x))
        last = not block.use_conv_mlp
        y = block.conv_dw(x)
        y = block.norm(y.permute(0, 2, 3, 1) if last else y)
        y = block.mlp.drop1(block.mlp.act(block.mlp.fc1(y)))
        # Global response norm measures each channel over all positions: hidden ones must be zero here.
        y = visible.apply(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if last else visible.apply(y)
        y = block.mlp.drop2(block.mlp.fc2(block.mlp.grn(y)))
        y = y.permute(0, 3, 1, 2) if last else y
        if block.gamma is not None:
            y = y * block.gamma[:, None, None]
        return visible.apply(block.drop_path(y) + block.shortcut(x))

    def forward(self, x: Tensor, visible: Visibility) -> list[Tensor]:
        """Normalised images (M, 3, H, W) -> one map (M, C_l, H / s_l, W / s_l) per stage, zero where hidden."""
        x = _sequence(self.stem, visible.apply(x), visible)
        maps = []
        for stage in self.stages:
            assert isinstance(stage, ConvNeXtStage)
            x = _sequence(stage.downsample, x, visible)
            for block in stage.blocks:
                assert isinstance(block, ConvNeXtBlock)
                if self.checkpointing and self.training:
                    x = checkpoint(self._block, block, x, visible, use_reentrant=False)
                else:
                    x = self._block(block, x, visible)
            maps.append(x)
        return maps


class MaskedResNet(nn.Module):
    """The stem and layers of a timm ResNet, ResNeXt or Wide ResNet.

    Args: as :class:`MaskedConvNeXt`, with a timm ``ResNet``.

    Raises:
        UserError: the variant mixes positions by attention, a blur filter or a norm over positions.
    """

    def __init__(self, model: ResNet, name: str, checkpointing: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1, self.maxpool = model.conv1, model.bn1, model.act1, model.maxpool
        for layer in LAYERS:
            self.add_module(layer, model.get_submodule(layer))
        self.channels, self.strides = _stages([i for i in model.feature_info if i["module"] != "act1"])
        self.checkpointing = checkpointing
        for module in self.modules():
            if isinstance(module, (BasicBlock, Bottleneck)):
                if module.se is not None:
                    raise _refuse(name, "has channel attention over all positions")
                if not isinstance(module.aa, nn.Identity):
                    raise _refuse(name, "has a blur filter")
            elif "Norm" in type(module).__name__ and type(module) is not nn.BatchNorm2d:
                raise _refuse(name, f"normalises with {type(module).__name__}")

    @staticmethod
    def _block(block: BasicBlock | Bottleneck, x: Tensor, visible: Visibility) -> Tensor:
        if visible.pixels is None:
            return block(x)
        shortcut = x if block.downsample is None else _sequence(block.downsample, x, visible)
        steps: list[Any] = [(block.conv1, block.bn1, block.act1), (block.conv2, block.bn2, block.act2)]
        if isinstance(block, Bottleneck):
            steps.append((block.conv3, block.bn3, block.act3))
        y = x
        for i, (conv, norm, act) in enumerate(steps):
            # A batch norm fills hidden positions with its shift; masked_batch_norm empties them before the next conv.
            y = masked_batch_norm(norm, visible.apply(conv(y)), visible)
            if i + 1 < len(steps):
                y = act(y)
        if block.drop_path is not None:
            y = block.drop_path(y)
        return visible.apply(steps[-1][2](y + shortcut))

    def forward(self, x: Tensor, visible: Visibility) -> list[Tensor]:
        """Normalised images (M, 3, H, W) -> one map (M, C_l, H / s_l, W / s_l) per layer, zero where hidden."""
        x = _sequence(self.conv1, visible.apply(x), visible)
        assert isinstance(self.bn1, nn.BatchNorm2d)
        x = visible.apply(self.act1(masked_batch_norm(self.bn1, x, visible)))
        x = _sequence(self.maxpool, x, visible)
        maps = []
        for layer in LAYERS:
            for block in self.get_submodule(layer).children():
                assert isinstance(block, (BasicBlock, Bottleneck))
                if self.checkpointing and self.training:
                    x = checkpoint(self._block, block, x, visible, use_reentrant=False)
                else:
                    x = self._block(block, x, visible)
            maps.append(x)
        return maps


def create_backbone(
    name: str,
    *,
    drop_path: float = 0.0,
    pretrained: bool = False,
    checkpoint_file: str = "",
    checkpointing: bool = False,
) -> MaskedConvNeXt | MaskedResNet:
    """Build a mask-aware backbone; the arguments and errors are those of :func:`mim4d.models.weights.create_timm`.

    Raises:
        UserError: also when a variant of a supported family does something that no mask can follow.
    """
    model = create_timm(name, drop_path=drop_path, pretrained=pretrained, checkpoint=checkpoint_file)
    if isinstance(model, ConvNeXt):
        return MaskedConvNeXt(model, name, checkpointing)
    return MaskedResNet(model, name, checkpointing)
