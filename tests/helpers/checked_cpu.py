"""A plugin of pytest, ``-p helpers.checked_cpu``: the C++ kernels of the CPU are those with Address- and
UndefinedBehaviorSanitizer, which must be in the process already."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers import simt


@pytest.fixture(autouse=True, scope="session")
def _checked_cpu() -> Iterator[None]:
    with simt.checked_cpu():
        yield
