"""Not collected by itself: test_sanitizers.py runs it as it runs the tests of the ops, to see a fault fail there."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from helpers import simt

from mim4d import ops

FAULTS = ("out_of_bounds", "offset_overflow", "missing_syncthreads", "race_between_blocks")


@pytest.mark.parametrize("kind, name", [(kind, name) for kind in ("healthy", "faulty") for name in FAULTS])
def test_run(request: pytest.FixtureRequest, kind: str, name: str) -> None:
    run = ctypes.CDLL(str(simt.build(request.config.getoption("--simt"), "faults"))).run_fault
    run.restype = ctypes.c_char_p
    data = (ctypes.c_int * 64)(*range(64))
    assert run(name.encode(), kind == "healthy", data, 64) is None


@pytest.mark.parametrize("kind", ["healthy", "faulty"])
def test_cpu(kind: str) -> None:
    """The faulty volume says that it has four channels more than its memory."""
    memory = np.ones(128 if kind == "healthy" else 124, np.float32)
    strides = (512, 4, 256, 128, 64)
    volume = torch.from_numpy(np.lib.stride_tricks.as_strided(memory, (1, 16, 2, 2, 2), strides))
    with ops.use_backend("cpu"):
        corner = ops.voxel_sample(volume, torch.ones(1, 5, 3), align_corners=True)
    assert corner[..., :12].eq(1).all()
