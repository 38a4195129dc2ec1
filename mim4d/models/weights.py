"""Trained image backbones: from timm's hub, else from a file, else random with a clear notice."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path

import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.convnext import checkpoint_filter_fn as convnext_names
from timm.models.resnet import ResNet
from torch import Tensor, nn

from mim4d.errors import UserError

FAMILIES = "convnext*, convnextv2*, resnet*, resnext* and wide_resnet*"


def create_timm(
    name: str, *, drop_path: float = 0.0, pretrained: bool = False, checkpoint: str | Path = ""
) -> ConvNeXt | ResNet:
    """A timm model of a supported family, with weights from ``checkpoint``, from timm's hub, or random.

    Args:
        name: timm model name, such as ``convnext_small`` or ``resnet50``; a tag (``.fb_in22k``) picks other weights.
        drop_path: stochastic depth rate of the last block.
        pretrained: fetch timm's weights. A hub that cannot be reached is a warning, never an error.
        checkpoint: a ``.safetensors`` or ``.pth`` file with weights of this model (timm's names, or those of the
            original ConvNeXt release). It goes before ``pretrained``.

    Raises:
        UserError: the name is unknown or its family unsupported; the file is missing, unreadable, or does not fit.
    """
    if not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(["convnext*", "resnet*", "resnext*"]), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else f"; wanted one of timm's {FAMILIES}"
        raise UserError(f"model.backbone: timm knows no model {name!r}{hint}")
    on_meta = torch.get_default_device().type == "meta"  # built for its shapes alone: nothing to load
    model: nn.Module
    if checkpoint and not on_meta:
        model = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=drop_path)
        load_backbone_file(model, Path(checkpoint))
    elif pretrained and not on_meta:
        try:
            model = timm.create_model(name, pretrained=True, num_classes=0, drop_path_rate=drop_path)
        except Exception as error:  # whatever a hub, a proxy or a cache may raise
            warnings.warn(
                f"no trained weights for {name} could be fetched ({type(error).__name__}: {_first_line(error)}): the "
                "image backbone starts from random weights. To use trained ones, download them where the hub can be "
                "reached and name the file in model.backbone_checkpoint; to silence this, set model.pretrained to "
                "false.",
                stacklevel=2,
            )
            model = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=drop_path)
    else:
        model = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=drop_path)
    if not isinstance(model, (ConvNeXt, ResNet)):
        raise UserError(
            f"model.backbone: {name!r} is a {type(model).__name__}, which no mask can follow; wanted {FAMILIES}"
        )
    return model


def load_backbone_file(model: nn.Module, path: Path) -> None:
    """Fill a timm model from a file; a classifier in the file is left out.

    Raises:
        UserError: the file is missing, unreadable, or lacks or misshapes tensors of the model.
    """
    if not path.is_file():
        raise UserError(f"model.backbone_checkpoint: no such file: {path}")
    try:
        state = _read(path)
    except Exception as error:  # a truncated or foreign file fails in many ways
        raise UserError(f"model.backbone_checkpoint: {path} cannot be read as weights: {_first_line(error)}") from error
    if isinstance(model, ConvNeXt):
        state = convnext_names(state, model)
    wanted = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if name in wanted}
    missing = [name for name in wanted if name not in state and not name.startswith(("head.", "fc.", "norm_pre."))]
    if missing:
        raise UserError(
            f"model.backbone_checkpoint: {path} lacks {len(missing)} of the {len(wanted)} tensors of this backbone, "
            f"the first being {missing[0]!r}: is it a file for another model?"
        )
    wrong = [name for name in state if state[name].shape != wanted[name].shape]
    if wrong:
        raise UserError(
            f"model.backbone_checkpoint: {path}: {wrong[0]!r} is {tuple(state[wrong[0]].shape)}, "
            f"this backbone wants {tuple(wanted[wrong[0]].shape)}"
        )
    model.load_state_dict(state, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors by name. Pickles are read with ``weights_only``: no code of the file runs."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {
        str(k).removeprefix("module.").removeprefix("backbone."): v for k, v in state.items() if isinstance(v, Tensor)
    }
    if not tensors:
        raise ValueError("it holds no tensors by name")
    return tensors


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
