"""How a differentiable reference becomes a kernel of the dispatcher.

A reference backward is written with ``torch.autograd``. Called as a kernel it runs *below* autograd, where the
dispatcher has
switched the autograd keys off: ``torch.autograd.grad`` raises there, or silently returns wrong gradients.
:func:`as_kernel` switches them on again for the length of the call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import _C, Tensor

_AUTOGRAD_KEYS = (
    "AutogradCPU",
    "AutogradCUDA",
    "AutogradOther",
    "AutogradFunctionality",
    "AutogradMeta",
    "ADInplaceOrView",
)


@contextlib.contextmanager
def _autograd_on() -> Iterator[None]:
    excluded = _C._dispatch_tls_local_exclude_set()
    for name in _AUTOGRAD_KEYS:
        if hasattr(_C.DispatchKey, name):  # the set of keys differs between torch versions
            excluded = excluded - _C.DispatchKeySet(getattr(_C.DispatchKey, name))
    included = _C._dispatch_tls_local_include_set()
    with torch.inference_mode(False), _C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


@contextlib.contextmanager
def _autocast_off() -> Iterator[None]:
    """A backward that is called under autocast would else narrow the matrix products of its own autograd."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _map(f: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map(f, x) for x in tree)
    return tree


def _leaf(t: Tensor) -> Tensor:
    return t.clone() if t.is_inference() else t.detach()


def as_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reference function as a kernel for CompositeExplicitAutograd; it may use autograd inside."""

    @functools.wraps(function)
    def kernel(*args: Any) -> Any:
        with _autograd_on(), _autocast_off():
            out = function(*_map(_leaf, args))
        return _map(torch.Tensor.detach, out)

    return kernel


def vjp(
    function: Callable[..., Any],
    inputs: Sequence[Tensor | Sequence[Tensor]],
    grads: Tensor | Sequence[Tensor | None],
    mask: Sequence[bool],
) -> tuple[Any, ...]:
    """Gradients of ``function(*inputs)`` for the cotangents ``grads``: the reference backward of most ops in one line.

    ``mask`` says for each input whether its gradient is wanted; an input may be a list of tensors, which is wanted as a
    whole. What is not wanted comes back as an empty tensor (or a list of them), as the schema of a backward op
    promises. An input that the result does not depend on has gradient zero. Where inputs or cotangents carry a graph,
    the gradients
    carry one too: they are differentiable again.
    """
    tensors = [t for x in (*inputs, grads) for t in ([x] if isinstance(x, Tensor) else x) if t is not None]
    again = any(t.requires_grad for t in tensors)
    leaves = [_map(_own, x) if wanted else x for x, wanted in zip(inputs, mask, strict=True)]
    flat = [t for x, wanted in zip(leaves, mask, strict=True) if wanted for t in ([x] if isinstance(x, Tensor) else x)]
    with torch.enable_grad():
        out = function(*leaves)
    outputs, cotangents = ((out,), (grads,)) if isinstance(out, Tensor) else (tuple(out), tuple(grads))
    pairs = [(o, g) for o, g in zip(outputs, cotangents, strict=True) if g is not None and o.requires_grad]
    found: Iterator[Tensor | None] = iter([None] * len(flat))
    if pairs and flat:
        ends, seeds = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(ends, flat, seeds, allow_unused=True, create_graph=again))

    def pick(t: Tensor, wanted: bool) -> Tensor:
        if not wanted:
            return t.new_empty(0)
        g = next(found)
        return torch.zeros_like(t, memory_format=torch.contiguous_format) if g is None else g.contiguous()

    return tuple(
        pick(x, wanted) if isinstance(x, Tensor) else [pick(t, wanted) for t in x]
        for x, wanted in zip(leaves, mask, strict=True)
    )


def _own(t: Tensor) -> Tensor:
    """A tensor to differentiate by: ``t`` itself where it already carries a graph, else a leaf over the same memory."""
    return t if t.requires_grad else t.detach().requires_grad_()
