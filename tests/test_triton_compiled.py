"""Every Triton kernel compiles for every architecture, without spilling registers; and a plan that fails is reported.

In processes of their own: what is compiled must not be interpreted, and triton decides that when it is imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

# A tile of 2^14 numbers, all of them live at once in the 32 threads of one warp: 512 for each.
KERNELS = '''
import triton
import triton.language as tl

from mim4d.kernels import Variant


@triton.jit
def halve(x):
    return x * 0.5


@triton.jit
def scale_kernel(y, x, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = halve(tl.load(x + at))
    tl.store(y + at, value * tl.sum(value))


@triton.jit
def wait_kernel(y, x, BLOCK: tl.constexpr):
    """griddepcontrol came with compute capability 9.0."""
    at = tl.arange(0, BLOCK)
    value = tl.inline_asm_elementwise("griddepcontrol.wait; mov.b32 $0, $1;", "=r,r", [tl.load(x + at)], tl.float32, False, 1)
    tl.store(y + at, value)


def variant(kernel, block):
    return Variant(f"{kernel.__name__}<{block}>", kernel, {"y": "*fp32", "x": "*fp32"}, {"BLOCK": block}, {"num_warps": 1})


VARIANTS = (%s)
'''  # noqa: E501


def survey(*arguments: str | Path) -> tuple[list[dict[str, object]], list[str], int]:
    """Kernels, problems and the exit status of benchmarks.triton_kernels."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.triton_kernels", "--json", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    return said["kernels"], said["problems"], done.returncode


def plan(folder: Path, variants: str) -> Path:
    path = folder / "planted.py"
    path.write_text(KERNELS % variants)
    return path


@pytest.mark.slow
def test_every_kernel_compiles_for_every_architecture_without_spilling() -> None:
    kernels, problems, status = survey()
    assert problems == []
    assert status == 0
    names = {kernel["name"] for kernel in kernels}
    ops = ("voxel_sample", "ms_deform_attn", "voxel_pool", "voxel_pull")
    wanted = {f"{op}_{way}" for op in ops for way in ("forward", "backward")} | {
        "sdf_march_field",
        "sdf_march_composite",
    }
    assert {str(name).partition("<")[0] for name in names} >= wanted
    assert {kernel["arch"] for kernel in kernels} == {"80", "86", "90", "100", "120"}
    assert len(kernels) == 5 * len(names)
    assert all(int(str(kernel["registers"])) > 16 and int(str(kernel["code"])) > 256 for kernel in kernels)


def test_a_healthy_plan_passes(tmp_path: Path) -> None:
    path = plan(tmp_path, "variant(scale_kernel, 256), variant(wait_kernel, 32)")
    kernels, problems, status = survey("--arch", "90", "--file", path)
    assert problems == []
    assert status == 0
    assert [kernel["name"] for kernel in kernels] == ["scale_kernel<256>", "wait_kernel<32>"]


def test_planted_problems_are_reported(tmp_path: Path) -> None:
    """A spill, a kernel that does not compile for an old GPU, a kernel that nobody lists."""
    path = plan(tmp_path, "variant(scale_kernel, 16384), variant(wait_kernel, 32)")
    kernels, problems, status = survey("--arch", "86", "--file", path)
    assert status == 1
    assert [kernel["name"] for kernel in kernels] == ["scale_kernel<16384>"]
    assert len(problems) == 2, problems
    assert problems[0].startswith("planted.py: wait_kernel<32> does not compile for sm_86: ")
    assert "scale_kernel<16384> spills" in problems[1]
    assert problems[1].endswith("bytes on sm_86")
    _, problems, status = survey("--arch", "90", "--file", plan(tmp_path, "variant(wait_kernel, 32),"))
    assert status == 1
    assert problems == [f"planted.py: no entry of VARIANTS compiles {name}" for name in ("halve", "scale_kernel")]


def test_the_interpreter_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.triton_kernels"]
    variables = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "kernels are interpreted, not compiled" in done.stderr
