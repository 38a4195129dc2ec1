"""The tests of the ops once more, with kernels built for the sanitizers, in processes that have them loaded first.

AddressSanitizer and UndefinedBehaviorSanitizer end the process at the first report; ThreadSanitizer reports a race
between threads of a block, or between two blocks, and gives the process an exit status of its own.
"""

from __future__ import annotations

import re

import pytest
from helpers import simt

CONTRACT, FUZZ = "tests/ops/test_contract.py", "tests/ops/test_fuzz.py"
NOT_NATIVE = "graph or opcheck or fakes or meta or wrong or leak or planted"  # checks that are the same for any kernel
REPORT = re.compile(r"ERROR: AddressSanitizer|runtime error:|WARNING: ThreadSanitizer")


def run(variant: str, selection: str, *arguments: str, **variables: str) -> tuple[int, str]:
    """pytest in a process of this variant: its exit status, and all it said. Reports are not captured (-s)."""
    simt.build(variant, "ops")  # here, without the sanitizers
    options = ("-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--simt", variant, "-k", selection)
    done = simt.python(variant, "-m", "pytest", *options, *arguments, PYTHONPATH="tests", **variables)
    return done.returncode, done.stdout + done.stderr


def assert_clean(status: int, output: str, at_least: int) -> None:
    assert status == 0, output
    assert not REPORT.search(output), output
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert int(passed[1]) >= at_least, output


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant, order, threads", [("asan", "rand:1", "1"), ("tsan", "rand:1", "1"), ("tsan", "rand:2", "2")]
)
def test_cuda_kernels(variant: str, order: str, threads: str) -> None:
    selection = f"simt and not ({NOT_NATIVE})"
    assert_clean(*run(variant, selection, CONTRACT, FUZZ, SIMT_ORDER=order, SIMT_THREADS=threads), at_least=15)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["base", "avx2", "avx512"])
def test_cpu_kernels(isa: str) -> None:
    """On a processor without the instructions this is the best that it has, once more."""
    simt.build("asan", "checked_cpu")
    selection = f"cpu and not ({NOT_NATIVE})"
    plugin = ("-p", "helpers.checked_cpu")
    assert_clean(*run("asan", selection, *plugin, CONTRACT, FUZZ, MIM4D_CPU_ISA=isa), at_least=15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant, fault, report",
    [
        ("asan", "out_of_bounds", "ERROR: AddressSanitizer: heap-buffer-overflow"),
        ("asan", "offset_overflow", "runtime error: signed integer overflow"),
        ("tsan", "missing_syncthreads", "WARNING: ThreadSanitizer: data race"),
        ("tsan", "race_between_blocks", "WARNING: ThreadSanitizer: data race"),
    ],
)
def test_a_fault_would_fail_these_runs(variant: str, fault: str, report: str) -> None:
    simt.build(variant, "faults")
    threads = "2" if fault == "race_between_blocks" else "1"
    planted = "tests/simt/planted_in_pytest.py"
    status, output = run(variant, f"{fault} and faulty", planted, SIMT_THREADS=threads)
    assert status != 0, output
    assert report in output
    assert f"{fault}<false>" in output or "faults.cu" in output
    assert_clean(*run(variant, f"{fault} and healthy", planted, SIMT_THREADS=threads), at_least=1)
