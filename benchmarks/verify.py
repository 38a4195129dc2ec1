"""The gate: a rival whose results or gradients are not those of a float64 oracle gets no time.

It is run once with every fresh allocation filled with NaN (a result that is not written cannot pass for an old one),
once as it is timed, and the result of its last timed call is compared again: a rival that breaks on the way is caught.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the relative error of each tensor: in the L2 norm, and of an element by the largest magnitude.

    ``number`` is the bound of a tensor of one element where it has its own: the gradient of a single parameter is one
    sum, whose terms cancel.
    """

    l2: float
    element: float
    number: float = 0.0


@dataclass(frozen=True)
class Error:
    """The largest relative errors of a list of tensors; those of one element apart."""

    l2: float
    element: float
    number: float = 0.0

    def within(self, bound: Tolerance) -> bool:  # False for NaN
        number = self.number <= max(bound.number, bound.l2)
        return self.l2 <= bound.l2 and self.element <= bound.element and number

    def __or__(self, other: Error) -> Error:
        """The larger of both; NaN counts as infinite."""
        return Error(*(_larger(getattr(self, name), getattr(other, name)) for name in ("l2", "element", "number")))


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a rival in one direction."""

    error: Error
    first_s: float  # of the first call ever, which compiles and tunes


# float64 measures 7e-16 and below. A half result is rounded once at the end (2^-11, 2^-8), whoever computes: 2.5e-4 and
# 1.8e-3 in the L2 norm, elements 3.5e-4 and 3e-3. float32: a position in a grid of 128 cells is rounded to 4e-6 cells,
# which is what errors of reading measure (4.7e-6; tricubic 6.5e-6; elements 8.2e-6). Entries with other errors have
# their own bounds.
TOLERANCES = {
    torch.float64: Tolerance(1e-13, 1e-13),
    torch.float32: Tolerance(1.5e-5, 3e-5),
    torch.float16: Tolerance(1e-3, 2e-3),
    torch.bfloat16: Tolerance(8e-3, 1.2e-2),
}


def compare(results: Sequence[Tensor], oracle: Sequence[Tensor]) -> Error:
    """The largest error of any tensor. Wrong counts, shapes and anything that is not finite are infinitely wrong."""
    if len(results) != len(oracle):
        return Error(math.inf, math.inf)
    worst = Error(0.0, 0.0)
    for got, want in zip(results, oracle, strict=True):
        if got.shape != want.shape:
            return Error(math.inf, math.inf)
        if not want.numel():
            continue
        miss = got.detach().double() - want
        norm, largest = float(want.norm()) or 1.0, float(want.abs().max()) or 1.0
        l2 = float(miss.norm()) / norm
        alone = want.numel() == 1
        worst = worst | (Error(0.0, 0.0, l2) if alone else Error(l2, float(miss.abs().max()) / largest))
    return worst


def _larger(a: float, b: float) -> float:
    return math.inf if math.isnan(a) or math.isnan(b) else max(a, b)


def gate(once: Callable[[], Sequence[Tensor]], oracle: Sequence[Tensor], device: str) -> Verdict:
    """Compare a rival's result with the oracle, in memory full of NaN and in ordinary memory."""
    start = time.perf_counter()
    with poisoned(device):
        found = compare(once(), oracle)  # a comparison waits for the device
    first = time.perf_counter() - start
    return Verdict(found | compare(once(), oracle), first)


_M_PERTURB = -6  # mallopt's name for: fill what is allocated
_ONES = 0x100  # glibc fills with the lower byte of (value ^ 0xff), and 0 would switch it off: every byte 0xff, a NaN


@contextlib.contextmanager
def poisoned(device: str) -> Iterator[None]:
    """Fresh memory is full of NaN, below torch: no backend, kernel or compiled graph sees a reason to choose another
    way, as they would under ``torch.use_deterministic_algorithms``.
    """
    if device == "cuda":
        # The caching allocator cuts what follows from these blocks; it keeps those below 1 MiB apart.
        blocks = [torch.full((count,), torch.nan, device="cuda") for count in (_free_floats(), *[1 << 17] * 64)]
        del blocks
        yield
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not libc.mallopt(_M_PERTURB, _ONES):
        with _filled():
            yield
        return
    try:
        if bool(torch.empty(4096).isnan().all()):
            yield
        else:  # torch was built with another allocator
            with _filled():
                yield
    finally:
        libc.mallopt(_M_PERTURB, 0)


def _free_floats() -> int:
    """A quarter of the free GPU memory, at most 4 GiB, in floats."""
    free, _ = torch.cuda.mem_get_info()
    return min(free // 4, 4 << 30) // 4


@contextlib.contextmanager
def _filled() -> Iterator[None]:
    """The same with torch's own means, which other ways of computing may go with."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
