"""How close is close: one table for all ops, and the comparison that reads it.

An oracle is computed in float64. float32 and float64 results are held to fixed bounds; a half result may be at most
twice as far from the oracle as the reference run in that dtype, plus one rounding. Bounds are relative to the largest
magnitude of the oracle, so that they mean the same for values, gradients and Jacobians.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Bounds relative to the oracle: of each element (by its largest magnitude), of the L2 norm, and of the mean
    error."""

    element: float
    l2: float
    bias: float


# Measured over all cases of tests/ops/test_voxel_sample.py: float64 4e-15, 3e-15, 3e-16; float32 1.1e-6, 8e-7, 1.2e-7
# (worst
# are gradients of points: differences of voxels times half the size of the grid).
TOLERANCES = {
    torch.float64: Tolerance(element=1e-13, l2=1e-13, bias=1e-13),
    torch.float32: Tolerance(element=4e-6, l2=2e-6, bias=1e-6),
}
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # half a unit in the last place, relative


def errors(got: Tensor, oracle: Tensor) -> Tolerance:
    """The three relative errors of ``got`` against a float64 oracle; where both are not finite they must agree."""
    got, oracle = got.detach().double().cpu(), oracle.detach().cpu()
    assert got.shape == oracle.shape, f"shape {tuple(got.shape)}, wanted {tuple(oracle.shape)}"
    odd = ~oracle.isfinite()
    assert torch.equal(got[odd].nan_to_num(), oracle[odd].nan_to_num()), "NaN and infinity in different places"
    got, oracle = got[~odd], oracle[~odd]
    if not oracle.numel():
        return Tolerance(0.0, 0.0, 0.0)
    error = got - oracle
    scale = float(oracle.abs().max()) or 1.0
    norm = float(oracle.norm()) or 1.0
    return Tolerance(float(error.abs().max()) / scale, float(error.norm()) / norm, abs(float(error.mean())) / scale)


def assert_close(got: Tensor, oracle: Tensor, *, like: Tensor | None = None) -> None:
    """``got`` against a float64 ``oracle``; ``like`` is the reference run in the dtype of ``got``, needed for
    halves."""
    found = errors(got, oracle)
    if got.dtype in TOLERANCES:
        bound = TOLERANCES[got.dtype]
    else:
        assert like is not None, "a half result is compared with the reference in the same dtype"
        own, floor = errors(like, oracle), ROUNDING[got.dtype]
        bound = Tolerance(2 * own.element + floor, 2 * own.l2 + floor, 2 * own.bias + floor)
    for name in ("element", "l2", "bias"):
        assert getattr(found, name) <= getattr(bound, name), f"{got.dtype}: {name} error {found}, allowed {bound}"
