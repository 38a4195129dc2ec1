"""The checks of `make lint`, so that the suite fails where the linter would."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def tool(name: str) -> str:
    path = shutil.which(name, path=str(BIN))
    if path is None:
        pytest.skip(f"{name} is not installed (pip install 'mim4d[dev]')")
    return path


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def native_sources() -> list[str]:
    rooms = ("csrc", "tests", "benchmarks")
    files = (p for room in rooms for p in sorted((ROOT / room).rglob("*")))
    return [str(p) for p in files if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]


def test_ruff_finds_nothing() -> None:
    run(tool("ruff"), "check", ".")


def test_ruff_would_change_no_format() -> None:
    run(tool("ruff"), "format", "--check", ".")


def test_clang_format_would_change_nothing() -> None:
    sources = native_sources()
    assert sources
    run(tool("clang-format"), "--dry-run", "--Werror", *sources)


@pytest.mark.slow
def test_mypy_finds_nothing() -> None:
    run(tool("mypy"))
