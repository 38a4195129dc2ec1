"""The rivals that are ours: an op of ``mim4d.ops`` on each backend of a device, and its reference under
torch.compile."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

from benchmarks.case import Absent, Arguments, Rival
from mim4d import backends, ops


def of(
    op: str,
    order: int,
    *,
    prepare: Callable[[Arguments], Arguments] = lambda args: args,
    note: str = "",
    native: bool = False,
) -> Callable[[str], list[Rival]]:
    """device -> one rival for each backend there; ``prepare`` makes another layout of the inputs, which ``note`` names.

    ``native``: without the reference, which such a layout says nothing about.
    """

    def rivals(device: str) -> list[Rival]:
        return [
            Rival(
                f"mim4d {backend}{note}",
                functools.partial(_public, op),
                order=order,
                prepare=prepare,
                within=functools.partial(ops.use_backend, backend),
                backend=backend,
            )
            for backend in backends.ORDER[device]
            if not (native and backend == "reference")
        ]

    return rivals


def _public(op: str, device: str) -> Callable[..., Any]:
    function = getattr(ops, op, None)
    if function is None:
        raise Absent("this revision has no such op")
    return function


def compiled(op: str, prepare: Callable[[Arguments], Arguments] = lambda args: args) -> Rival:
    """The reference under torch.compile, whole and for these sizes alone: what one gets without writing a kernel."""

    def make(device: str) -> Callable[..., Any]:
        return compile_whole(_public(op, device), device)

    within = functools.partial(ops.use_backend, "reference")
    return Rival("compiled reference", make, prepare=prepare, within=within, backend="reference", compiled=True)


def compile_whole(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    if device == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        raise Absent("torch.compile needs a C++ compiler")
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise Absent("torch.compile needs triton")
    import torch._functorch.config
    import torch._inductor.config

    torch._functorch.config.donated_buffer = False  # a backward is timed many times over one forward
    torch._inductor.config.compile_threads = 1  # no pool of compilers beside what is timed
    torch._dynamo.reset()  # every problem compiles anew, far from the limit at which dynamo gives up
    return torch.compile(function, fullgraph=True, dynamic=False)
