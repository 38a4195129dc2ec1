"""Triton kernels: one module per op, under the op's stem; what several share is in the modules with an underscore.

Importing the package imports no triton; importing one of its modules does, so :mod:`mim4d.ops` waits with that for the
first call. Triton decides at that moment whether kernels are compiled or interpreted on the CPU, and a process keeps
the decision: kernels that are compiled in one half of a run and interpreted in the other could not be told apart.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Triton's own variable, read as triton reads it. Set it before mim4d is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "y", "yes", "on", "true")

# Of every launch. Products and sums may fuse, as in the CUDA kernels: said aloud because the default of Triton is about
# to change.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def check_devices(op: str, tensors: Sequence[Tensor]) -> None:
    """All on one device, and one that Triton reads."""
    devices = {t.device for t in tensors}
    torch._check(
        len(devices) == 1 and (INTERPRETED or all(device.type != "cpu" for device in devices)),
        lambda: (
            f"mim4d_triton::{op}: tensors on {[str(t.device) for t in tensors]}; Triton reads CPU tensors in its "
            "interpreter alone (TRITON_INTERPRET=1 before mim4d is imported)"
        ),
    )


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
