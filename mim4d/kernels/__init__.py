"""Triton kernels: one module per op, under the op's stem.

Importing the package imports no triton; importing one of its modules does, so :mod:`mim4d.ops` waits with that for the
first call. Triton decides at that moment whether kernels are compiled or interpreted on the CPU, and a process keeps
the decision: kernels that are compiled in one half of a run and interpreted in the other could not be told apart.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

# Triton's own variable, read as triton reads it. Set it before mim4d is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "y", "yes", "on", "true")


class Variant(NamedTuple):
    """One instance of a kernel that must compile for every GPU, to be proven where there is none.

    Each module lists its own as ``VARIANTS``; ``python -m benchmarks.triton_kernels`` compiles them, and a test finds
    kernels that no list names. They come from the functions that also choose what a launch uses.
    """

    name: str
    kernel: Any  # the @triton.jit function
    signature: dict[str, str]  # argument -> type, as "*fp32" or "i32"; without the constants
    constants: dict[str, Any]  # tl.constexpr arguments
    options: dict[str, Any]  # num_warps and the like
