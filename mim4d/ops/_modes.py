"""Interpolation modes and paddings: names in Python, ints in every schema, params struct and reference.

``csrc/math/modes.h`` holds the same numbers for C++; ``mim4d._C.Mode`` and ``mim4d._C.Padding`` show them to tests.
"""

from __future__ import annotations

from ..reference.voxel_sample import BICUBIC, BORDER, SMOOTHSTEP, TRICUBIC, TRILINEAR, ZEROS

MODES = {"trilinear": TRILINEAR, "smoothstep": SMOOTHSTEP, "bicubic": BICUBIC, "tricubic": TRICUBIC}
PADDING = {"zeros": ZEROS, "border": BORDER}


def mode_id(op: str, mode: str) -> int:
    """The int of a mode name; ValueError that lists the names otherwise."""
    return _lookup(op, "mode", MODES, mode)


def padding_id(op: str, padding_mode: str) -> int:
    """The int of a padding name; ValueError that lists the names otherwise."""
    return _lookup(op, "padding_mode", PADDING, padding_mode)


def _lookup(op: str, argument: str, table: dict[str, int], name: str) -> int:
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"mim4d.ops.{op}: {argument} is {name!r}, wanted one of {', '.join(table)}")
    return table[name]
