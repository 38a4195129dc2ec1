"""The torch namespace ``mim4d``: how an op is defined, and how its native kernels are loaded.

Schemas live in Python (``mim4d/ops/<op>.py``), so that every op exists, differentiates and compiles with nothing built:
its reference is the kernel of last resort. The libraries ``ops_cpu.so`` and ``ops_cuda.so`` bring the kernels of the
CPU and CUDA keys; why one is missing is kept in words, for :mod:`mim4d.backends` to show. Kernels written in Triton are
ops of the namespace ``mim4d_triton``, for both stand on the same key of the dispatcher.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import env
from .reference._autograd import as_kernel

lib = torch.library.Library("mim4d", "DEF")  # lives as long as the process: dropping it would unregister the ops
triton_lib = torch.library.Library("mim4d_triton", "DEF")
schemas: dict[str, str] = {}  # op -> schema, in order of definition
loaded: set[str] = set()  # libraries that are in the process
failures: dict[str, str] = {}  # library -> why it is not
absent: dict[tuple[str, str], str] = {}  # (op, backend) -> why there is no kernel

KEYS = {"cpu": ("ops_cpu", "CPU"), "cuda": ("ops_cuda", "CUDA")}  # native backend -> its library, its dispatch key
_ROOT = Path(__file__).parent

# What the kernels in C++ ask of torch where its stable ABI has no word for it.
lib.define("deterministic() -> bool")
lib.impl("deterministic", torch.are_deterministic_algorithms_enabled, "CompositeExplicitAutograd")


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    internal: bool = False,
) -> None:
    """Define one op: the only place where mim4d speaks to ``torch.library``.

    ``schema`` without the namespace, as ``"double(Tensor x) -> Tensor"``. ``reference`` runs on every device without a
    native kernel. ``fake`` gives shapes, strides and dtypes of the results without computing. ``backward(ctx, *grads)``
    and ``setup_context(ctx, inputs, output)`` are the autograd formula; an op without one, as most backward ops are,
    refuses to be differentiated in words (torch would only warn, and drop the gradient). ``internal``: a step of other
    ops, which has no public function and may lack a native kernel.
    """
    _define(lib, schema, as_kernel(reference), fake, backward, setup_context)
    if not internal:
        schemas[schema.partition("(")[0]] = schema


def define_triton(
    schema: str,
    *,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Define the Triton twin ``mim4d_triton::<op>`` of an op: as :func:`define`, with the kernels in the place of the
    reference.

    ``kernel`` must import its module of :mod:`mim4d.kernels` when it is called, not before: that imports triton. The op
    is opaque to ``torch.compile``, as the native ones are (and unlike ``torch.library.triton_op``): compiled code calls
    what eager code calls, so that both are tested at once, in the interpreter too.
    """
    op = schema.partition("(")[0]
    if importlib.util.find_spec("triton") is None:
        absent[op, "triton"] = "triton is not installed (it comes with torch's CUDA builds for Linux)"
    _define(triton_lib, schema, kernel, fake, backward, setup_context)


def _define(
    library: torch.library.Library,
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None,
    setup_context: Callable[..., None] | None,
) -> None:
    op = schema.partition("(")[0]
    name = f"{library.ns}::{op}"
    library.define(schema)
    library.impl(op, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=library)
    if backward is None:
        torch.library.register_autograd(name, _refuse(name), lib=library)
    else:
        torch.library.register_autograd(name, backward, setup_context=setup_context, lib=library)


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{name} has no derivative: this gradient cannot be differentiated once more "
            f"(create_graph=True); use mim4d.ops.use_backend('reference') for higher derivatives"
        )

    return refuse


def load() -> None:
    """Load the native libraries. To be called once, after the last :func:`define`."""
    if env.CPU_ISA.get() not in ("", "base", "avx2", "avx512"):
        raise ValueError(f"{env.CPU_ISA.name} is {env.CPU_ISA.get()!r}, wanted base, avx2 or avx512")
    skipped = {name.strip() for name in env.SKIP.get().split(",")} - {""}
    known = [name for name, _ in KEYS.values()]
    if not skipped <= set(known):
        raise ValueError(f"{env.SKIP.name} is {env.SKIP.get()!r}, wanted names of {', '.join(known)}, or nothing")
    for name in known:
        path = _ROOT / f"{name}.so"
        if name in skipped:
            failures[name] = f"switched off by {env.SKIP.name}"
        elif not path.exists():
            failures[name] = f"{path.name} is not built (pip install --no-build-isolation -e ., with nvcc for ops_cuda)"
        else:
            try:
                torch.ops.load_library(str(path))
                loaded.add(name)
            except OSError as error:  # torch wraps the loader's own words
                built = build_info().get("torch", "an unknown version")
                reason = error.__cause__ or error
                failures[name] = f"{reason} (built for torch {built}, running {torch.__version__})"
    for backend, (name, key) in KEYS.items():
        for op in schemas:
            if name not in loaded:
                absent[op, backend] = failures[name]
            elif not torch._C._dispatch_has_kernel_for_dispatch_key(f"mim4d::{op}", key):
                absent[op, backend] = f"{name}.so holds no kernel for it (built from other sources? build again)"


@functools.cache
def extension() -> ModuleType | str:
    """The pybind11 module ``mim4d._C``, or why there is none."""
    try:
        return importlib.import_module("mim4d._C")
    except ImportError as error:
        return str(error)


def build_info() -> dict[str, str]:
    """What the native code was built from and with; empty when nothing is built."""
    module = extension()
    return {} if isinstance(module, str) else module.build_info()


def kernel_attributes() -> list[dict[str, int | str]]:
    """Registers, shared memory and occupancy of every CUDA kernel, as the driver reports them (needs a GPU)."""
    module = extension()
    if isinstance(module, str):
        raise RuntimeError(f"mim4d._C is not there: {module}")
    return module.kernel_attributes()
