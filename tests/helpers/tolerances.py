"""How close is close: one table for all ops, and the comparison that reads it.

An oracle is computed in float64. float32 and float64 results are held to fixed bounds, half results to one rounding
besides; a kernel may also be twice as far from the oracle as the reference run in that dtype. Bounds are relative to
the largest magnitude of the oracle, so that they mean the same for values, gradients and Jacobians.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Bounds relative to the oracle: of each element (by its largest magnitude), of the L2 norm, of the mean error, and
    of 1 - cosine of the angle to it."""

    element: float
    l2: float
    bias: float
    angle: float


# Measured over all rows of the table but those of OWN: float64 9e-15, 6e-15, 9e-16, 2e-29; float32 2.4e-6, 1.6e-6,
# 2e-7, 1.2e-12 (worst are gradients of points: differences of voxels times half the size of the grid).
TOLERANCES = {
    torch.float64: Tolerance(element=1e-13, l2=1e-13, bias=1e-13, angle=1e-13),
    torch.float32: Tolerance(element=5e-6, l2=4e-6, bias=1e-6, angle=1e-11),
}
# References whose formulas cancel where the oracles' do not. sdf_march: an opacity is a difference of two sigmoids, the
# derivative by their one sharpness a sum of such differences: measured 4.3e-11 and 1.9e-2 for that number, 9.3e-12 and
# 8e-3 for all others. sdf_sample: where opacities are 1e-5, that difference decides where a sample goes: measured
# 2.5e-12 and 5e-4. No kernel may hide behind that: it is held to the default and twice the error of the reference (the
# C++ kernels are 1.9e-13 and 1.1e-4, 1.2e-14 and 2.1e-6 from the oracles).
OWN = {
    ("sdf_march", torch.float64): Tolerance(element=1e-10, l2=1e-10, bias=1e-10, angle=1e-13),
    ("sdf_march", torch.float32): Tolerance(element=4e-2, l2=4e-2, bias=4e-2, angle=2e-7),
    ("sdf_sample", torch.float64): Tolerance(element=1e-11, l2=1e-11, bias=1e-12, angle=1e-13),
    ("sdf_sample", torch.float32): Tolerance(element=1.5e-3, l2=1e-3, bias=5e-5, angle=1e-7),
}
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # half a unit in the last place, relative


def errors(got: Tensor, oracle: Tensor) -> Tolerance:
    """The relative errors of ``got`` against a float64 oracle; where both are not finite they must agree."""
    got, oracle = got.detach().double().cpu(), oracle.detach().double().cpu()
    assert got.shape == oracle.shape, f"shape {tuple(got.shape)}, wanted {tuple(oracle.shape)}"
    odd = ~oracle.isfinite()
    alike = torch.isclose(got[odd], oracle[odd], rtol=0, atol=0, equal_nan=True)  # a zero is no NaN
    assert alike.all(), "NaN and infinity in different places"
    got, oracle = got[~odd], oracle[~odd]
    if not oracle.numel():
        return Tolerance(0.0, 0.0, 0.0, 0.0)
    error = got - oracle
    scale = float(oracle.abs().max()) or 1.0
    norm = float(oracle.norm()) or 1.0
    # 1 - cosine = |a/|a| - b/|b||^2 / 2, which does not cancel
    apart = got / (float(got.norm()) or 1.0) - oracle / norm
    return Tolerance(
        float(error.abs().max()) / scale,
        float(error.norm()) / norm,
        abs(float(error.mean())) / scale,
        float(apart.square().sum()) / 2,
    )


def assert_close(got: Tensor, oracle: Tensor, *, like: Sequence[Tensor] = (), op: str = "") -> None:
    """``got`` against a float64 ``oracle``. Integers must be equal.

    ``like`` are results of the reference run in the same dtype, on one device or several, which add in other orders:
    needed for halves, and where there are any, twice the largest error of theirs is allowed besides. ``op`` names the
    op, for those with a row of their own in the table.
    """
    if not got.is_floating_point():
        assert torch.equal(got.cpu().long(), oracle.cpu().long()), "other integers"
        return
    found = errors(got, oracle)
    single = torch.float32 if got.dtype in ROUNDING else got.dtype
    bound = OWN.get((op, single), TOLERANCES[single])
    if got.dtype in ROUNDING:
        assert like, "a half result is compared with the reference in the same dtype"
        vanished = torch.finfo(got.dtype).tiny * torch.finfo(got.dtype).eps / 2  # rounding of what is all but zero
        floor = ROUNDING[got.dtype] + vanished * max(oracle.numel(), 1) ** 0.5 / (float(oracle.norm()) or 1.0)
        bound = Tolerance(*(b + floor for b in astuple(bound)))  # a float32 result, rounded once
    others = [errors(other, oracle) for other in like if other is not got]
    few = max(oracle.numel(), 1) ** 0.5  # the mean of few errors is not zero; that of one is the error
    if others:
        own = Tolerance(*(max(each) for each in zip(*map(astuple, others), strict=True)))
        bound = replace(
            Tolerance(*(2 * e + floor for e, floor in zip(astuple(own), astuple(bound), strict=True))),
            angle=(2 * own.angle**0.5 + bound.angle**0.5) ** 2,  # the square of a distance
            bias=2 * own.bias + bound.bias + (own.element + bound.element) / few,
        )
    for name in ("element", "l2", "bias", "angle"):
        assert getattr(found, name) <= getattr(bound, name), f"{got.dtype}: {name} error {found}, allowed {bound}"
