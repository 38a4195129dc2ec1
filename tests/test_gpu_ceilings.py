"""The kernels that measure a GPU's ceilings, in the emulator: each leaves an exact result, and a faulty one gets no
row. They compile for every architecture, to the instructions that they are named after."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import nvcc as compiler  # noqa: E402
from benchmarks.ceilings import ceilings  # noqa: E402

NVCC = compiler.find_nvcc()

SIZES = ceilings.Sizes(
    **{"blocks": 2, "dram": 16 * 4099, "l2": (16 * 1030,), "l2_traffic": 16 * 3100, "rows": 40, "channels": 8},
    **{"adds": 1500, "steps": 5, "launches": 7, "repeat": 3, "seconds": 0.01},
)
# One fault in each kernel: it does less than it should, or the right thing at the wrong place.
FAULTS = {
    "if (i + k * step < n) out[i + k * step] = v[k]": "if (i + k * step + 1 < n) out[i + k * step] = v[k]",
    "pass < passes; ++pass": "pass < (passes + 1) / 2 - (passes == 1); ++pass",
    "codes[k] < 0 ? -1.0f : 1.0f": "thread == 5 && k == 1 ? 0.0f : codes[k] < 0 ? -1.0f : 1.0f",
    "two(a + (row + 8) * 16 + pair), two(a + row * 16 + pair + 8)": (
        "two(a + row * 16 + pair + 8), two(a + (row + 8) * 16 + pair)"
    ),
    "x[j] = fmaf(x[j], factor, increment)": "x[j] = fmaf(x[j], factor, j ? increment : 0.0f)",
    "if (threadIdx.x == 0) atomicAdd(counter, 1)": "if (threadIdx.x == 0) *counter = 1",
}


def emulated(source: Path, out: Path) -> ceilings.Library:
    """The kernels on the CPU, by the emulator."""
    simt = ROOT / "tests" / "simt"
    command = ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-DMIM4D_SIMT", "-Wno-unknown-pragmas"]
    command += [f"-I{folder}" for folder in (simt / "include", simt, compiler.CSRC)]
    subprocess.run([*command, "-x", "c++", str(source), "-o", str(out)], check=True)
    return ceilings.Library(out, "cpu")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ceilings.Library:
    return emulated(ceilings.SOURCE, tmp_path_factory.mktemp("ceilings") / "right.so")


def test_every_ceiling_is_measured_and_its_result_exact(
    library: ceilings.Library, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, wrong = ceilings.report(ceilings.every(library, SIZES, (9, 0)), "cpu", SIZES.repeat, SIZES.seconds)
    assert wrong == 0, capsys.readouterr().out
    assert {row["name"] for row in rows} == {
        *("dram copy", "dram read", "l2 read", "atomic rows", "mma", "fma", "launch"),
    }
    assert len([row for row in rows if row["name"] == "atomic rows"]) == len(ceilings.KINDS) * len(SIZES.groups)
    for row in rows:
        assert row["kind"] == "ceiling"
        assert row["checked"] == "exact"
        assert row["repeat"] >= 3
        assert row["value"] > 0
        assert 0 < row["ms"] <= row["ms_q50"] <= row["ms_q90"]
        assert (row["value"] <= row["median"]) == (row["unit"] == "us") or row["value"] == row["median"]
    json.dumps(rows, allow_nan=False)


def test_a_kernel_that_does_not_do_the_work_gets_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ceilings.SOURCE.read_text()
    for right, fault in FAULTS.items():
        assert text.count(right) == 1, right
        text = text.replace(right, fault)
    planted = tmp_path / "wrong.cu"
    planted.write_text(text)
    library = emulated(planted, tmp_path / "wrong.so")
    rows, wrong = ceilings.report(ceilings.every(library, SIZES, (9, 0)), "cpu", SIZES.repeat, SIZES.seconds)
    assert [(row["name"], row["what"]) for row in rows] == [("launch", "eager torch op, on the host")]  # torch's own
    out = capsys.readouterr().out
    assert out.count("WRONG") == wrong == 22
    for name in ("dram copy", "dram read", "l2 read", "atomic rows", "mma", "fma", "launch"):
        assert any(line.startswith(name) and "WRONG" in line for line in out.splitlines()), name


def test_an_error_of_a_launch_is_raised(library: ceilings.Library) -> None:
    table, codes = torch.zeros(4, 6), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="ceiling_atomics: "):
        library("ceiling_atomics", 2, table, codes, 1, 6)  # 6 channels are no power of two


def test_contended_additions_keep_exact_sums() -> None:
    sizes = replace(ceilings.Sizes(1), adds=60_000, rows=2000)
    for group in sizes.groups:
        codes, sums = ceilings.hits(sizes, group, "cpu")
        rows = torch.where(codes < 0, ~codes, codes).long()
        assert (rows.view(-1, group) == rows[::group, None]).all()  # neighbours hit one row
        assert len(codes) == 60_000 // group * group
        ones = torch.where(codes < 0, -1, 1)
        assert torch.equal(torch.zeros(2000, dtype=torch.int64).index_add_(0, rows, ones), sums)
        for sign in (1, -1):  # no partial sum, in whatever order, leaves what bfloat16 holds exactly
            partial = torch.zeros(2000, dtype=torch.int64).index_add_(0, rows, (ones == sign).long())
            assert int(partial.max()) <= 256
        if group == 500:
            assert {0, 12} == set(sums.tolist())


def test_slow_ceilings_are_repeated_less_often() -> None:
    calls: list[int] = []
    slow = ceilings.Ceiling("slow", "", "us", 1, lambda: (calls.append(1), time.sleep(0.02)), int, lambda: None)
    assert len(ceilings.times(slow, "cpu", 30, 0.03)) == len(calls) == 3


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_the_ceilings_compile_for_every_architecture_and_hold_the_instructions_they_measure(tmp_path: Path) -> None:
    out = tmp_path / "ceilings.so"
    command = ceilings.compile_command(str(NVCC), ceilings.SOURCE, out, compiler.architectures(str(NVCC)))
    assert compiler.WALL in command
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr
    ceilings.Library(out)  # loads without a GPU
    tool = shutil.which("cuobjdump") or _cuobjdump_of_triton()
    if tool is None:
        pytest.skip("cuobjdump is not installed: the machine code is not read")
    for arch, wanted in {
        "86": ("RED.E.ADD.F32", "RED.E.ADD.F16x2", "ATOMG.E.CAS", "HMMA.16816.F32.BF16", "FFMA", "LDG.E.128"),
        "90": ("F32x4", "F32x2", "ADD.F16x2", "ADD.BF16x2", "HMMA.16816.F32.BF16", "FFMA", "LDG.E.128"),
    }.items():
        words = [tool, "-arch", f"sm_{arch}", "-sass", str(out)]
        sass = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert [instruction for instruction in wanted if instruction not in sass] == [], arch
        assert ("ATOMG" in sass) == (arch == "86")
        assert sass.count("FFMA") % 8 == 0  # eight chains, none folded into another
        assert sass.count("HMMA") % 8 == 0


def _cuobjdump_of_triton() -> str | None:
    spec = find_spec("triton")
    folder = Path(spec.origin).parent / "backends" / "nvidia" / "bin" if spec and spec.origin else None
    return shutil.which("cuobjdump", path=str(folder)) if folder else None
