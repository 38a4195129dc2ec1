"""``pytest benchmarks --benchmark-only``: the registry under pytest-benchmark, on the preset of ``--bench-preset``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # `pytest` alone does not look there


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mim4d benchmarks")
    group.addoption(
        "--bench-preset", action="append", help="preset to measure; may be given several times (default: tiny)"
    )
    group.addoption("--bench-device", default="cpu", choices=("cpu", "cuda"), help="device to measure on")
    group.addoption("--bench-dtype", default="float32", help="dtype to measure in")
