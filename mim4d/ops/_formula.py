"""What the fakes and the autograd formulas of the ops share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def like(t: Tensor, wanted: bool) -> Tensor:
    """The fake gradient of one input: contiguous, or empty where it is not wanted."""
    return torch.empty_like(t, memory_format=torch.contiguous_format) if wanted else t.new_empty(0)


def like_volume(t: Tensor, wanted: bool) -> Tensor:
    """The fake gradient of a volume: channels last whatever its own layout, for the kernels add rows of channels."""
    return torch.empty_like(t, memory_format=torch.channels_last_3d) if wanted else t.new_empty(0)


def wanted(found: Any, needs: Any) -> Any:
    """Gradients for autograd: None where an input, or one element of a list input, needs none."""
    if isinstance(needs, bool):
        return found if needs else None
    return [wanted(f, n) for f, n in zip(found, needs, strict=True)]


def asked(ctx: Any, inputs: int) -> list[bool]:
    """Which of the first inputs, all of them tensors, this backward pass is to give a gradient.

    ``ctx.needs_input_grad`` tells what was true of the forward call. ``torch.autograd.grad`` may ask for less: the
    normals of a field are the gradient of the points, and that of the volume would be thrown away.
    """
    nodes = [node for node, _ in getattr(ctx, "next_functions", ())]
    nodes += [None] * (inputs - len(nodes))
    return [needs and _is_on_the_way(n) for needs, n in zip(ctx.needs_input_grad[:inputs], nodes, strict=False)]


def _is_on_the_way(node: Any) -> bool:
    """Whether the engine goes on to a node of the graph. True where it cannot tell, as of the leaves that it was asked
    for, and of a graph that is traced."""
    try:
        return node is None or torch._C._will_engine_execute_node(node)
    except (AttributeError, RuntimeError, TypeError):
        return True


def needed(needs: bool | Sequence[bool]) -> bool:
    """Whether an input, or any element of a list input, needs its gradient: its entry in the mask of a backward op."""
    return needs if isinstance(needs, bool) else any(needs)
