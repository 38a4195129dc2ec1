"""Shared by every room: seeds, the GPU marker, the options of the rig."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from helpers import cases, order

# Without it torch refuses every product of matrices on a GPU in deterministic mode. cuBLAS reads it when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# What a shell runs in the background ignores Ctrl-C, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mim4d")
    group.addoption("--simt", choices=("plain", "asan", "tsan"), default="plain", help="how the emulated CUDA is built")
    group.addoption("--fuzz", type=int, default=0, metavar="N", help="examples per op and backend (0: a few, the same)")


def pytest_configure(config: pytest.Config) -> None:
    cases.SIMT = config.getoption("--simt")
    config.pluginmanager.register(order)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
