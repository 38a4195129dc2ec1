"""Not collected by itself: test_sanitizers.py runs it as it runs the tests of the ops, to see a fault fail there."""

from __future__ import annotations

import ctypes

import pytest
from helpers import simt

FAULTS = ("out_of_bounds", "offset_overflow", "missing_syncthreads", "race_between_blocks")


@pytest.mark.parametrize("kind", ["healthy", "faulty"])
@pytest.mark.parametrize("name", FAULTS)
def test_run(request: pytest.FixtureRequest, name: str, kind: str) -> None:
    run = ctypes.CDLL(str(simt.build(request.config.getoption("--simt"), "faults"))).run_fault
    run.restype = ctypes.c_char_p
    data = (ctypes.c_int * 64)(*range(64))
    assert run(name.encode(), kind == "healthy", data, 64) is None
