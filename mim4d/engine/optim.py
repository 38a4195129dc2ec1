"""Learning rate and parameter groups (METHOD section 7)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mim4d.engine.config import TrainConfig

CLIPS_PER_LR = 8  # train.lr is meant for this many clips per step


def peak_lr(train: TrainConfig, processes: int = 1) -> float:
    """The peak learning rate: ``train.lr`` scaled linearly with the clips per optimiser step."""
    return train.lr * (train.batch * train.accumulate * processes) / CLIPS_PER_LR


def lr_factor(step: int, total: int, warmup_steps: int, warmup_from: float, final: float) -> float:
    """The part of the peak at optimiser step ``step`` (0-based) of ``total``; a closed form, so nothing needs saving.

    With W = ``warmup_steps``: for step < W linear from ``warmup_from`` (step 0) to 1 (step W); then
    ``final + (1 - final) (1 + cos(pi (step - W) / (total - 1 - W))) / 2``, which is ``final`` at the last step.
    """
    if step < warmup_steps:
        return warmup_from + (1.0 - warmup_from) * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total - 1 - warmup_steps))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def parameter_groups(
    model: nn.Module, train: TrainConfig, backbone: nn.Module | None, field: nn.Module | None = None
) -> list[dict[str, Any]]:
    """AdamW groups: {rest, backbone, field} x {decay, no decay}, each with its factor on the learning rate as
    ``lr_factor``. ``field`` is the renderer's.

    Decay is for weights with two or more dimensions outside norms: not for biases, norm weights, layer scales, single
    numbers. Parameters that need no gradient are left out. Empty groups are dropped.
    """
    parts = [(backbone, train.backbone_lr), (field, train.field_lr)]
    owners = {id(p): i for i, (part, _) in enumerate(parts, 1) if part is not None for p in part.parameters()}
    factors = [1.0, *(factor for _, factor in parts)]
    in_norm = {
        id(parameter)
        for module in model.modules()
        if _is_norm(module)
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and id(parameter) not in in_norm and not name.endswith("bias")
        key = (owners.get(id(parameter), 0), decays)
        group = groups.setdefault(
            key,
            {
                "params": [],
                "names": [],
                "weight_decay": train.weight_decay if decays else 0.0,
                "lr_factor": factors[key[0]],
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def _is_norm(module: nn.Module) -> bool:
    # by name as well: timm brings its own norm classes
    return (
        isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase))
        or "Norm" in type(module).__name__
    )


def build_optimizer(
    model: nn.Module, train: TrainConfig, backbone: nn.Module | None, field: nn.Module | None = None
) -> torch.optim.AdamW:
    """AdamW over :func:`parameter_groups`. The learning rate is set anew before every step by :func:`set_lr`."""
    return torch.optim.AdamW(parameter_groups(model, train, backbone, field), lr=0.0)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group ``lr`` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
