"""Every CUDA kernel compiles for every architecture that is released, without spilling registers. Needs nvcc, no
GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = sorted((ROOT / "csrc").rglob("*.cu"))
ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda p: str(p.relative_to(ROOT / "csrc")))
def test_compiles_for_every_architecture(kernel: Path, tmp_path: Path) -> None:
    listed = subprocess.run([str(NVCC), "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    archs = [a for a in ARCHITECTURES if f"sm_{a}" in listed]
    assert "86" in archs
    assert "90" in archs
    command = [str(NVCC), "-std=c++20", "-O3", "-I", str(ROOT / "csrc"), "-Xcompiler=-Wno-unknown-pragmas"]
    command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    command += ["-Xptxas", "--warn-on-spills,--warning-as-error", "--threads", str(os.cpu_count())]
    done = subprocess.run(
        [*command, "-c", str(kernel), "-o", str(tmp_path / "kernel.o")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
