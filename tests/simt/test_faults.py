"""Planted faults: each is caught, by what it says here, and its healthy twin is clean in the same kind of run."""

from __future__ import annotations

import functools
import re
import subprocess

import pytest
from helpers import simt

# Runs one kernel of faults.cu on its own; prints what it left in memory, and what the emulator has against it.
PROGRAM = """
import ctypes, sys
library, name, healthy = sys.argv[1:]
run = ctypes.CDLL(library).run_fault
run.restype = ctypes.c_char_p
data = (ctypes.c_int * 64)(*([0] * 64 if name in ("race_between_blocks", "endless_wait") else range(64)))
message = run(name.encode(), int(healthy), data, 64)
print("result", *data)
if message is not None:
    sys.exit(message.decode())
"""

# What catches it, and how it says so: a pattern of its report, which names the kernel and its line.
CAUGHT = {
    ("missing_syncthreads", "tsan"): r"WARNING: ThreadSanitizer: data race(.|\n)*missing_syncthreads.*faults\.cu:\d+",
    ("missing_syncwarp", "tsan"): r"WARNING: ThreadSanitizer: data race(.|\n)*missing_syncwarp.*faults\.cu:\d+",
    ("race_between_blocks", "tsan"): r"WARNING: ThreadSanitizer: data race(.|\n)*race_between_blocks.*faults\.cu:\d+",
    ("out_of_bounds", "asan"): r"ERROR: AddressSanitizer: heap-buffer-overflow(.|\n)*out_of_bounds.*faults\.cu:\d+",
    ("out_of_static_shared", "asan"): (
        r"faults\.cu:\d+:\d+: runtime error: load of address \S+ with insufficient space"
        r"|AddressSanitizer: global-buffer-overflow(.|\n)*out_of_static.*faults\.cu:\d+"
    ),
    (
        "out_of_dynamic_shared",
        "asan",
    ): r"AddressSanitizer: (heap-buffer-overflow|use-after-poison)(.|\n)*out_of_dynamic.*faults\.cu:\d+",
    ("offset_overflow", "asan"): r"faults\.cu:\d+:\d+: runtime error: signed integer overflow",
    ("misaligned_vector", "asan"): r"pack\.cuh:\d+:\d+: runtime error: .*misaligned address",
    ("integer_of_nan", "asan"): r"faults\.cu:\d+:\d+: runtime error: nan is outside the range",
    ("diverging_barrier", "plain"): (
        r"deadlock in block \(0,0,0\): threads 0 to 15 wait in __syncthreads at \S*faults\.cu:\d+; "
        r"threads 16 to 31 wait in __shfl_xor_sync at \S*faults\.cu:\d+;"
    ),
    ("two_barriers", "plain"): r"a barrier is reached from two places, \S*faults\.cu:\d+ and \S*faults\.cu:\d+",
    ("endless_wait", "plain"): r"a thread waits in a loop for a value that does not come, in block \(0,0,0\)",
}


@functools.cache
def run(name: str, variant: str, healthy: bool, order: str = "fwd") -> subprocess.CompletedProcess[str]:
    threads = "2" if name == "race_between_blocks" else "1"
    library = str(simt.build(variant, "faults"))
    return simt.python(variant, "-c", PROGRAM, library, name, str(int(healthy)), SIMT_ORDER=order, SIMT_THREADS=threads)


def results(done: subprocess.CompletedProcess[str]) -> list[int]:
    line = re.search(r"^result (.*)$", done.stdout, re.MULTILINE)
    assert line, done.stdout + done.stderr
    return [int(word) for word in line[1].split()]


@pytest.mark.parametrize("name, variant", CAUGHT)
def test_the_fault_is_caught(name: str, variant: str) -> None:
    done = run(name, variant, healthy=False)
    assert done.returncode != 0, done.stdout
    assert re.search(CAUGHT[name, variant], done.stderr), done.stderr


@pytest.mark.parametrize("name, variant", CAUGHT)
def test_its_healthy_twin_is_clean(name: str, variant: str) -> None:
    done = run(name, variant, healthy=True)
    assert (done.returncode, done.stderr) == (0, "")


ORDERS = ("fwd", "rev", "rand:1", "rand:2")


@pytest.mark.parametrize(
    "name, right",
    [
        ("missing_syncthreads", [i * (i + 1) // 2 for i in range(64)]),
        ("missing_syncwarp", [i ^ 31 for i in range(64)]),
    ],
)
def test_a_missing_barrier_shows_in_some_order_of_threads(name: str, right: list[int]) -> None:
    found = [results(run(name, "plain", False, order)) for order in ORDERS]
    assert any(values != right for values in found)
    assert any(values != found[0] for values in found)
    assert all(results(run(name, "plain", True, order)) == right for order in ORDERS)


def test_an_unknown_order_is_refused() -> None:
    done = run("out_of_bounds", "plain", True, "random")
    assert done.returncode != 0
    assert "SIMT_ORDER is random, wanted fwd, rev or rand:SEED" in done.stderr
