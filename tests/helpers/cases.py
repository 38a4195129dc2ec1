"""The backends that a test of an op runs on, and inputs of the op tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import Tensor

from mim4d import _library, backends

SIMT = "plain"  # how the emulator is built; the pytest option --simt
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# (backend, device): what a test of an op runs on. The CUDA ones need a GPU. "simt" is the CUDA kernel on the CPU, by
# tests/simt; Triton runs on the CPU where its interpreter is switched on, for it must be when triton is imported.
RUNS = [
    pytest.param(("reference", "cpu"), id="reference"),
    pytest.param(("cpu", "cpu"), id="cpu"),
    pytest.param(("simt", "cpu"), id="simt"),
    *([pytest.param(("triton", "cpu"), id="triton-interpreted")] if INTERPRETED else []),
    pytest.param(("reference", "cuda"), id="reference-cuda", marks=pytest.mark.gpu),
    pytest.param(("cuda", "cuda"), id="cuda", marks=pytest.mark.gpu),
    pytest.param(("triton", "cuda"), id="triton", marks=pytest.mark.gpu),
]
# What torch.compile and devices without a kernel get: the reference behind the dispatcher, with the op's own autograd
# formula. Only for an op without a CPU kernel: where there is one, the dispatcher runs it.
DISPATCHER = pytest.param(("dispatcher", "cpu"), id="dispatcher")


def runs(op: str) -> list[object]:
    """The runs for which something is written: the reference, the kernels of this op, the dispatcher."""
    written = {"reference", *backends._predicates.get(op, ())}
    if "cuda" in written:
        written.add("simt")
    found: list[object] = [run for run in RUNS if run.values[0][0] in written]
    return found if "cpu" in written or op not in _library.schemas else [*found, DISPATCHER]


def refusal(op: str, backend: str, device: str, **meta: object) -> str | None:
    """Why this run cannot take this call; None when it can."""
    if backend == "dispatcher":
        return None
    if backend == "simt":  # asked as on a GPU, but for the GPU
        can_run = backends._predicates.get(op, {}).get("cuda")
        return "no kernel is written for it" if can_run is None else can_run(**meta)
    return backends.reason_against(op, backend, torch.device(device), **meta)


@contextmanager
def running(op: str, backend: str, device: str, **meta: object) -> Iterator[None]:
    """Run ``op`` on this backend; skip the test, with the backend's own reason, where it cannot."""
    reason = refusal(op, backend, device, **meta)
    if reason is not None:
        pytest.skip(f"{op} on {backend}: {reason}")
    with ExitStack() as stack:
        if backend == "dispatcher":
            stack.enter_context(dispatching())
        elif backend == "simt":
            from helpers.simt import emulated

            stack.enter_context(emulated(SIMT))
            stack.enter_context(dispatching())  # not what the CPU's own kernel may refuse
        else:
            stack.enter_context(backends.use_backend(backend))
        yield


@contextmanager
def dispatching() -> Iterator[None]:
    """Public functions hand every call to the dispatcher, also where only the reference stands behind it."""
    before, backends.choose = backends.choose, _hand_over
    try:
        yield
    finally:
        backends.choose = before


def _hand_over(op: str, *, device: torch.device, **meta: object) -> str:
    return "dispatcher"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def volume(B: int, C: int, Z: int, Y: int, X: int, *, seed: int = 0) -> Tensor:
    """(B, C, Z, Y, X) float64, normal."""
    return torch.randn(B, C, Z, Y, X, generator=generator(seed), dtype=torch.float64)


def points(shape: tuple[int, ...], size: tuple[int, int, int], align: bool, *, seed: int = 1, out: int = 1) -> Tensor:
    """(*shape, 3) float64 points in and up to ``out`` cells around a grid (Z, Y, X), normalised for ``align``.

    They keep a tenth of a cell from every voxel centre, where linear interpolation has kinks, in any float dtype.
    """
    g = generator(seed)
    xyz = torch.tensor(size[::-1])
    span = xyz + 2 * out + 1
    cell = (torch.rand(*shape, 3, generator=g, dtype=torch.float64) * span).floor() - out - 1
    position = cell + 0.1 + 0.8 * torch.rand(*shape, 3, generator=g, dtype=torch.float64)
    return 2 * position / (xyz - 1).clamp(min=1) - 1 if align else (2 * position + 1) / xyz - 1
