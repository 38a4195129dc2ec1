"""Programs that need a process of their own: what is decided at import, or by the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def python(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program with these environment variables, away from the source tree: it imports the mim4d that is
    installed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MIM4D_")}
    command = [sys.executable, "-c", program]
    folder = Path(__file__).parent
    return subprocess.run(command, cwd=folder, env={**clean, **variables}, capture_output=True, text=True, check=False)


def pytest_run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run tests in a process of their own, with these environment variables and no other of mim4d's."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MIM4D_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, env={**clean, **variables}, capture_output=True, text=True, check=False)
