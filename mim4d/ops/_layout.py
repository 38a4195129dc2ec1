"""The layout that kernels read volumes in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import define
from ._formula import like_volume


def shared(volume: Tensor, *others: Tensor) -> Tensor:
    """The volume (B, C, Z, Y, X) as autograd is to save it: with its channels last where a gradient is wanted, so that
    forward, backward and double backward read one copy. Without gradients there is one pass, which copies for itself.
    """
    lies_so = volume.is_contiguous(memory_format=torch.channels_last_3d)
    if lies_so or not (torch.is_grad_enabled() and any(t.requires_grad for t in (volume, *others))):
        return volume
    return torch.ops.mim4d.channels_last.default(volume)


def _reference(volume: Tensor) -> Tensor:
    return volume.clone(memory_format=torch.channels_last_3d)


def _fake(volume: Tensor) -> Tensor:
    return like_volume(volume, True)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None) -> Tensor | None:
    return grad  # where a gradient lies is its own affair


define(
    "channels_last(Tensor volume) -> Tensor",
    reference=_reference,
    fake=_fake,
    backward=_backward,
    setup_context=_setup,
    internal=True,
)
