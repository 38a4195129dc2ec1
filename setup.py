"""Thin driver of CMakeLists.txt, which alone describes the native build.

MIM4D_BUILD=auto (default) builds the CUDA library if nvcc is found; cpu never; cuda always; none builds nothing (the
ops then run their references). MAX_JOBS limits the parallel compilers, TORCH_CUDA_ARCH_LIST chooses the GPUs, as in
torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
MODES = ("auto", "cpu", "cuda", "none")


def find_nvcc() -> str | None:
    """nvcc as CMake would find it, or where CUDA installs itself."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and shutil.which("nvcc", path=f"{home}/bin"):
            return f"{home}/bin/nvcc"
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def jobs() -> str:
    """Compilers that may run at once: one per core, and 2 GiB of free memory for each."""
    free_gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return os.environ.get("MAX_JOBS") or str(max(1, min(len(os.sched_getaffinity(0)), int(free_gib / 2))))


class CMakeBuild(build_ext):
    """build_ext by CMake: configure, build, install into the package (in place) or the wheel."""

    def run(self) -> None:
        mode = os.environ.get("MIM4D_BUILD") or "auto"
        if mode not in MODES:
            raise SystemExit(f"mim4d: MIM4D_BUILD={mode}, wanted one of {', '.join(MODES)}")
        if mode == "none":
            return
        nvcc = None if mode == "cpu" else find_nvcc()
        if mode == "cuda" and nvcc is None:
            raise SystemExit(
                "mim4d: MIM4D_BUILD=cuda, but no nvcc was found on PATH, in CUDA_HOME or in /usr/local/cuda"
            )
        if mode == "auto" and nvcc is None:
            print("mim4d: no nvcc was found; building the CPU library only", file=sys.stderr)
        try:
            import pybind11
            import torch
        except ImportError as error:
            raise SystemExit(
                f"mim4d: {error.name} is not installed here. Install torch, cmake, ninja and pybind11 first, then: "
                "pip install --no-build-isolation -e ."
            ) from None

        version = f"py{sys.version_info.major}{sys.version_info.minor}"
        build = ROOT / "build" / f"torch{torch.__version__}-{version}"
        out = (ROOT if self.inplace else Path(self.build_lib).resolve()) / "mim4d"
        env = dict(
            os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        )  # the venv's cmake
        if nvcc is not None:
            env["CUDACXX"] = nvcc
        configure = [
            *("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
            f"-DMIM4D_MODE={'cpu' if nvcc is None else mode}",
            f"-DMIM4D_TORCH_DIR={Path(torch.__file__).parent}",
            f"-DMIM4D_TORCH_VERSION={torch.__version__}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_INSTALL_PREFIX={out}",
        ]
        for command in (configure, ["cmake", "--build", build, "-j", jobs()], ["cmake", "--install", build]):
            try:
                subprocess.run([str(word) for word in command], check=True, env=env)
            except FileNotFoundError:
                raise SystemExit("mim4d: cmake was not found; pip install cmake ninja, then try again") from None
            except subprocess.CalledProcessError:
                raise SystemExit(
                    "mim4d: the native build failed, see above (MIM4D_BUILD=none installs without it)"
                ) from None

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []


setup(ext_modules=[Extension("mim4d._native", [])], cmdclass={"build_ext": CMakeBuild})
