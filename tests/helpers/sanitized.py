"""The tests of the ops once more, with kernels built for the sanitizers, in processes that have them loaded first.

AddressSanitizer and UndefinedBehaviorSanitizer end the process at the first report; ThreadSanitizer goes on and gives
it an exit status of its own.
"""

from __future__ import annotations

import re

from helpers import simt

TESTS = ("tests/ops/test_contract.py", "tests/ops/test_fuzz.py")
# Checks that ask nothing new of a kernel's memory and are slow under a sanitizer: what torch sees of an op, the many
# calls of finite differences, and (inputs_stay) the calls that the check of values makes too: same samples, same dtype.
NOT_NATIVE = (
    "graph or opcheck or fakes or meta or wrong or leak or planted or differences or autocast or autograd or bits "
    "or inputs_stay"
)
REPORT = re.compile(r"ERROR: AddressSanitizer|runtime error:|WARNING: ThreadSanitizer")


def pytest(variant: str, selection: str, *arguments: str, **variables: str) -> tuple[int, str]:
    """pytest in a process of this variant: its exit status, and all it said. Reports are not captured (-s)."""
    options = ("-v", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--simt", variant, "-k", selection)
    done = simt.python(variant, "-m", "pytest", *options, *arguments, PYTHONPATH="tests", **variables)
    return done.returncode, done.stdout + done.stderr


def assert_clean(status: int, output: str, at_least: int) -> None:
    """All passed, these many or more, and no sanitizer has said anything."""
    assert status == 0, output
    assert not REPORT.search(output), output
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert int(passed[1]) >= at_least, output
