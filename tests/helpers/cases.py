"""Inputs of the op tests, and the backends to run them on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from mim4d import backends

# (backend, device): what a test of an op runs on. The CUDA ones need a GPU.
RUNS = [
    pytest.param(("reference", "cpu"), id="reference"),
    pytest.param(("cpu", "cpu"), id="cpu"),
    pytest.param(("reference", "cuda"), id="reference-cuda", marks=pytest.mark.gpu),
    pytest.param(("cuda", "cuda"), id="cuda", marks=pytest.mark.gpu),
]


@contextmanager
def running(op: str, backend: str, device: str, **meta: object) -> Iterator[None]:
    """Run ``op`` on this backend; skip the test, with the backend's own reason, where it cannot."""
    reason = backends.reason_against(op, backend, torch.device(device), **meta)
    if reason is not None:
        pytest.skip(f"{op} on {backend}: {reason}")
    with backends.use_backend(backend):
        yield


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
