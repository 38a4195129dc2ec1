"""What setup.py says when it cannot build: one clear line, no traceback."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed")

# Nothing is found on PATH: no nvcc, and no cmake either, so that a build that starts cannot get far.
PROGRAM = """
import runpy, shutil, sys, warnings
warnings.simplefilter("ignore")
shutil.which = lambda *args, **options: None
{extra}
sys.argv = ["setup.py", "--quiet", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


def build(mode: str, extra: str = "") -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH", "CUDACXX")}
    command = [sys.executable, "-c", PROGRAM.format(extra=extra)]
    return subprocess.run(
        command, cwd=ROOT, env={**env, "MIM4D_BUILD": mode}, capture_output=True, text=True, check=False
    )


def test_cuda_without_nvcc() -> None:
    done = build("cuda")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "mim4d: MIM4D_BUILD=cuda, but no nvcc was found on PATH, in CUDA_HOME or in /usr/local/cuda"
    )


def test_unknown_mode() -> None:
    done = build("gpu")
    assert done.returncode == 1
    assert done.stderr.strip() == "mim4d: MIM4D_BUILD=gpu, wanted one of auto, cpu, cuda, none"


def test_without_torch() -> None:
    done = build("cpu", extra="sys.modules['torch'] = None")
    assert done.returncode == 1
    assert done.stderr.startswith("mim4d: torch is not installed here.")
    assert "pip install --no-build-isolation -e ." in done.stderr
    assert "Traceback" not in done.stderr


def test_auto_without_nvcc_builds_for_the_cpu() -> None:
    """The configuration that CMake is given; the build itself is what `make setup` does."""
    spy = "import subprocess; subprocess.run = lambda command, **options: print(*command)"
    done = build("auto", extra=spy)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "mim4d: no nvcc was found; building the CPU library only"
    assert "-DMIM4D_MODE=cpu" in done.stdout
    assert "cmake --build" in done.stdout
    assert "cmake --install" in done.stdout


def test_none_builds_nothing() -> None:
    spy = "import subprocess; subprocess.run = lambda command, **options: print(*command)"
    done = build("none", extra=spy)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_failed_build_ends_in_one_line() -> None:
    fail = (
        "import subprocess\n"
        "def run(command, **options): raise subprocess.CalledProcessError(1, command)\n"
        "subprocess.run = run"
    )
    done = build("cpu", extra=fail)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("see above (MIM4D_BUILD=none installs without it)")
    assert "Traceback" not in done.stderr


def test_the_cpu_library_is_built_and_loads() -> None:
    """Elsewhere its tests skip where it is missing; here that is a failure, so that no suite is green without it."""
    if os.environ.get("MIM4D_BUILD") == "none":
        pytest.skip("MIM4D_BUILD=none asked for no library")
    from mim4d import _library, ops

    assert ops.voxel_sample is not None  # importing the ops loads the libraries
    assert "ops_cpu" in _library.loaded, _library.failures
