"""Theoretical occupancy: closed forms, and NVIDIA's own calculator."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from mim4d import _library

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks/ is not installed

from benchmarks.nvcc import find_nvcc, include_directory
from benchmarks.occupancy import LIMITS, occupancy


@pytest.mark.parametrize("arch", LIMITS)
def test_a_small_kernel_fills_an_sm(arch: str) -> None:
    sm = LIMITS[arch]
    full = occupancy(arch, threads=128, registers=32)
    assert (full.share, full.blocks) == (1, sm.warps // 4)
    assert "warps" in full.limits


@pytest.mark.parametrize("arch", LIMITS)
def test_each_resource_can_be_the_limit(arch: str) -> None:
    sm = LIMITS[arch]
    # 64 registers x 32 threads = 2048 a warp; 65536 / 2048 = 32 warps, 4 blocks of 8
    assert occupancy(arch, 256, 64).blocks == 4
    assert occupancy(arch, 256, 64).limits == ("registers",)
    # 65 registers take 72: 2304 a warp, 7 warps in a quarter of 16384 (not 28.4 in all), 28 warps: 3 blocks of 8
    assert occupancy(arch, 256, 65) == occupancy(arch, 256, 72)
    assert occupancy(arch, 256, 72).blocks == 3
    # blocks of one warp: as many as an SM can name
    assert occupancy(arch, 32, 16).limits == ("blocks",)
    assert occupancy(arch, 32, 16).blocks == sm.blocks
    # 31 KiB and the driver's 1 KiB: 32 KiB a block
    assert occupancy(arch, 128, 32, 31 * 1024).blocks == sm.shared // (32 * 1024)
    assert occupancy(arch, 128, 32, 31 * 1024).limits == ("shared memory",)
    # one block of 1024 threads with 64 registers is all; with one more it cannot be launched
    assert occupancy(arch, 1024, 64).blocks == 1
    assert occupancy(arch, 1024, 65).blocks == 0


def test_known_gpus() -> None:
    """Numbers that can be looked up: 64 warps on an A100 and an H100, 48 on a 3090, a 4090 and a 5090."""
    assert {a: occupancy(a, 256, 80).share for a in LIMITS} == {
        **{"80": 24 / 64, "86": 24 / 48, "89": 24 / 48},
        **{"90": 24 / 64, "100": 24 / 64, "120": 24 / 48},
    }
    assert occupancy("120", 64, 32, barriers=2).limits == ("barriers",)


CALCULATOR = """
#include <climits>
#include <cstdio>
#include <cstring>
#include <cuda_occupancy.h>
int main() {
  int major, minor, warps, threads, registers, shared, barriers;
  long sm_shared;
  while (std::scanf("%d %d %d %ld %d %d %d %d", &major, &minor, &warps, &sm_shared, &threads, &registers, &shared,
                    &barriers) == 8) {
    cudaOccDeviceProp device;
    device.computeMajor = major, device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = 32 * warps, device.warpSize = 32;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.sharedMemPerBlock = 48 * 1024, device.sharedMemPerMultiprocessor = sm_shared;
    device.sharedMemPerBlockOptin = sm_shared - 1024, device.reservedSharedMemPerBlock = 1024, device.numSms = 1;
    cudaOccFuncAttributes kernel;
    std::memset(&kernel, 0, sizeof kernel);
    kernel.maxThreadsPerBlock = INT_MAX, kernel.numRegs = registers, kernel.sharedSizeBytes = shared;
    kernel.numBlockBarriers = barriers;
    cudaOccDeviceState state;
    cudaOccResult result;
    const int status = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0);
    std::printf("%d\\n", status == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1);
  }
}
"""


def test_as_nvidia_calculates_it(tmp_path: Path) -> None:
    nvcc, cxx = find_nvcc(), shutil.which("g++")
    if nvcc is None or cxx is None:
        pytest.skip("cuda_occupancy.h comes with nvcc and is compiled by g++; one of them is not installed")
    source, program = tmp_path / "calculator.cpp", tmp_path / "calculator"
    source.write_text(CALCULATOR)
    subprocess.run([cxx, "-isystem", include_directory(nvcc), source, "-o", program], check=True)

    threads = (32, 64, 96, 128, 160, 256, 288, 384, 512, 768, 1000, 1024)
    registers = (16, 24, 32, 33, 40, 48, 56, 64, 65, 72, 80, 81, 96, 104, 128, 129, 168, 200, 255)
    shared = (0, 1, 1000, 4096, 12288, 24576, 33000, 48 * 1024)
    calls = list(product(LIMITS, threads, registers, shared, (0, 1, 2, 5)))
    lines = (
        f"{arch[:-1]} {arch[-1]} {LIMITS[arch].warps} {LIMITS[arch].shared} " + " ".join(map(str, kernel))
        for arch, *kernel in calls
    )
    done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    blocks = [int(line) for line in done.stdout.split()]
    assert len(blocks) == len(calls)
    wrong = [(call, theirs) for call, theirs in zip(calls, blocks, strict=True) if occupancy(*call).blocks != theirs]
    assert not wrong, f"{len(wrong)} of {len(calls)} differ, as {wrong[:5]}"


@pytest.mark.gpu
def test_as_the_driver_says() -> None:
    if "ops_cuda" not in _library.loaded:
        pytest.skip(f"there are no kernels: {_library.failures.get('ops_cuda')}")
    arch = "".join(map(str, torch.cuda.get_device_capability()))
    if arch not in LIMITS:
        pytest.skip(f"the table of limits does not hold sm_{arch}")
    for kernel in _library.kernel_attributes():
        threads, registers, shared = (int(kernel[name]) for name in ("threads", "registers", "shared_bytes"))
        assert occupancy(arch, threads, registers, shared).blocks == kernel["blocks_per_sm"], kernel["name"]
