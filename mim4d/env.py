"""Every environment variable that mim4d reads: name, default, meaning. Nothing else in the package names one.

Variables of a run are read when they are used for the first time; variables of the build are read by ``setup.py``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One environment variable. ``get`` reads it; an empty value counts as not set."""

    name: str
    default: str
    meaning: str

    def get(self) -> str:
        return os.environ.get(self.name) or self.default


BACKEND = Variable(
    "MIM4D_BACKEND", "", "backend of every op: cpu, cuda, triton or reference (empty: the best one that can run)"
)
CHECK = Variable("MIM4D_CHECK", "0", "1: check the values of CUDA index tensors too, which costs a synchronisation")
SKIP = Variable(
    "MIM4D_SKIP", "", "comma-separated native libraries that are not loaded: ops_cpu, ops_cuda (to try the references)"
)
CPU_ISA = Variable(
    "MIM4D_CPU_ISA", "", "highest instruction set of the C++ kernels: base, avx2 or avx512 (empty: the processor's)"
)
BUILD = Variable("MIM4D_BUILD", "auto", "what setup.py builds: auto, cpu, cuda (fails without nvcc) or none")

VARIABLES = (BACKEND, CHECK, SKIP, CPU_ISA, BUILD)


def table() -> str:
    """The variables as a Markdown table, for the documentation."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows += [f"| `{v.name}` | `{v.default}` | {v.meaning} |" for v in VARIABLES]
    return "\n".join(rows)
