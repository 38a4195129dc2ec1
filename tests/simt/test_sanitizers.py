"""The emulated CUDA kernels under the sanitizers, with threads, lanes and blocks in another order: no report, and every
test passes. And planted faults, which would fail these very runs."""

from __future__ import annotations

import re

import pytest
from helpers import sanitized, simt


@pytest.mark.slow
@pytest.mark.parametrize("variant, order", [("asan", "rand:1"), ("tsan", "rand:2")])
def test_cuda_kernels(variant: str, order: str) -> None:
    """With tsan the blocks run on two OS threads: a race within a block shows, and one between blocks."""
    simt.build(variant, "ops")  # here, where no sanitizer slows the compiler down
    selection = f"simt and not ({sanitized.NOT_NATIVE})"
    done = sanitized.pytest(variant, selection, *sanitized.TESTS, SIMT_ORDER=order, SIMT_THREADS="2")
    sanitized.assert_clean(*done, at_least=15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant, faults",
    [
        ("asan", {"out_of_bounds": r"ERROR: AddressSanitizer: heap-buffer-overflow"}),
        ("asan", {"offset_overflow": r"faults\.cu:\d+:\d+: runtime error: signed integer overflow"}),
        (
            "tsan",
            {
                "missing_syncthreads": r"WARNING: ThreadSanitizer: data race(.|\n)*missing_syncthreads<false>",
                "race_between_blocks": r"WARNING: ThreadSanitizer: data race(.|\n)*race_between_blocks<false>",
            },
        ),
    ],
)
def test_a_planted_fault_fails_such_a_run(variant: str, faults: dict[str, str]) -> None:
    simt.build(variant, "faults")
    selection = " or ".join(faults)
    status, output = sanitized.pytest(variant, selection, "tests/simt/planted_in_pytest.py", SIMT_THREADS="2")
    assert status != 0, output
    healthy, faulty = output.split("[faulty-", 1)  # they run in this order
    assert healthy.count("PASSED") == len(faults), output
    assert not sanitized.REPORT.search(healthy), output
    assert "<true>" not in output, output  # no report, wherever it stands, names a healthy kernel
    for fault, report in faults.items():
        assert re.search(report, faulty), f"{fault}: {output}"
