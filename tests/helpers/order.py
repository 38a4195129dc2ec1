"""A plugin of pytest: the order in which several processes take the files of the suite.

Few tests may be much work. ``--dist loadfile`` shares the suite file by file, and pytest-xdist begins with the files
that hold most tests, so that the longest of all would be begun last: one process would still be at them when the others
have nothing left to do.
"""

from __future__ import annotations

from collections import Counter

import pytest

LONGEST = (  # begun first, in this order
    "tests/simt/test_sanitizers.py",
    "tests/test_triton_interpreted.py",
    "tests/simt/test_cpu_sanitized.py",
    "tests/test_triton_compiled.py",
    "tests/test_cuda_build.py",
    "tests/test_benchmarks.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):  # the files are taken as they are collected
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process of pytest-xdist: the longest files, then the others by their number of tests, as xdist does."""
    if not hasattr(config, "workerinput"):
        return
    file = lambda item: item.nodeid.partition("::")[0]
    sizes = Counter(map(file, items))
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(file(item), len(rank)), -sizes[file(item)]))
