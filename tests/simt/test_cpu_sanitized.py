"""The C++ kernels of the CPU under Address- and UndefinedBehaviorSanitizer, at the base level of instructions."""

from __future__ import annotations

import re

import pytest
from helpers import sanitized, simt


@pytest.mark.slow
def test_cpu_kernels() -> None:
    simt.build("asan", "checked_cpu")
    selection = f"cpu and not ({sanitized.NOT_NATIVE})"
    done = sanitized.pytest("asan", selection, "-p", "helpers.checked_cpu", *sanitized.TESTS)
    sanitized.assert_clean(*done, at_least=15)


@pytest.mark.slow
def test_a_read_out_of_bounds_fails_such_a_run() -> None:
    simt.build("asan", "checked_cpu")
    planted = ("-p", "helpers.checked_cpu", "tests/simt/planted_in_pytest.py")
    status, output = sanitized.pytest("asan", "test_cpu", *planted)
    assert status != 0, output
    assert "test_cpu[healthy] PASSED" in output
    assert re.search(r"ERROR: AddressSanitizer: (heap-buffer-overflow|unknown-crash)", output), output
    assert re.search(r"#\d+ .* csrc/voxel_sample/cpu\.cpp:\d+", output), output
