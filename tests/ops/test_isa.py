"""Every instruction set of the C++ kernels in turn: the right results, and no code that the processor may lack."""

from __future__ import annotations

import platform
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from helpers import isa
from helpers.process import pytest_run, python

import mim4d
from mim4d import _library, env

ROOT = Path(__file__).parent.parent.parent
LIBRARY = Path(mim4d.__file__).parent / "ops_cpu.so"

x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the levels are those of x86-64")
each_level = pytest.mark.parametrize(
    "level",
    [
        pytest.param(
            level, marks=pytest.mark.skipif(level not in isa.supported(), reason=f"this processor has no {level}")
        )
        for level in isa.LEVELS
    ],
)


# ---- what was built


def level_objects() -> list[tuple[str, Path]]:
    """(level, object) of the newest build in this tree; none where the library was built elsewhere."""
    builds = sorted((ROOT / "build").glob("torch*/CMakeFiles"), key=lambda p: p.stat().st_mtime)
    found = sorted(builds[-1].glob("ops_cpu_*.dir/**/*.o")) if builds else []
    folder = lambda p: p.relative_to(builds[-1]).parts[0]
    return [(folder(p).removeprefix("ops_cpu_").removesuffix(".dir"), p) for p in found]


@x86
def test_the_library_has_each_level_in_its_own_functions_alone() -> None:
    """What runs on every processor, and what is reached on a level, needs no more than it may: in the linked library,
    where merged symbols and initialisers show too."""
    assert isa.check_code(LIBRARY) == {level: level for level in isa.LEVELS}


@x86
def test_each_object_keeps_to_its_level_and_exports_nothing_that_another_could_take() -> None:
    objects = level_objects()
    if not objects:
        pytest.skip("no objects here: the library was built in another folder")
    assert {level for level, _ in objects} == set(isa.LEVELS)
    for level, path in objects:
        isa.check_symbols(path, level)
        assert isa.check_code(path, lambda _, level=level: level) == {level: level}, path


# ---- planted faults: each of them a library of two units, as mim4d's, and the same without the fault

HEALTHY = """
namespace mim4d::LEVEL {
namespace {
float total(const float* p) {
  typedef float Row __attribute__((vector_size(WIDTH)));
  Row sum = {};
  for (int i = 0; i < 64; ++i) sum += *reinterpret_cast<const Row*>(p + i * WIDTH / 4);
  return sum[0] + sum[1];
}
}
extern float (*const table)(const float*);
float (*const table)(const float*) = total;
}
"""
WIDE_FUNCTION = """
namespace mim4d::LEVEL {
namespace {
__attribute__((target("avx512f"), noinline)) float wide(const float* p) {
  typedef float Row __attribute__((vector_size(64)));
  Row sum = *reinterpret_cast<const Row*>(p) + *reinterpret_cast<const Row*>(p + 16);
  return sum[0];
}
}
extern float (*const more)(const float*);
float (*const more)(const float*) = wide;
}
"""
MERGED_FUNCTION = """
__attribute__((noinline)) inline float shared(const float* p) {
  typedef float Row __attribute__((vector_size(WIDTH)));
  Row sum = *reinterpret_cast<const Row*>(p) + *reinterpret_cast<const Row*>(p + WIDTH / 4);
  return sum[0];
}
namespace mim4d::LEVEL {
extern float (*const other)(const float*);
float (*const other)(const float*) = shared;
}
"""
INITIALISER = """
namespace mim4d::LEVEL {
extern const float* numbers;
extern float first;
float first = numbers[0] * numbers[1] + numbers[2];
}
"""
FLAGS = {"avx2": ["-mavx2", "-mfma", "-DWIDTH=32"], "avx512": ["-mavx512f", "-mavx2", "-mfma", "-DWIDTH=64"]}


def build(folder: Path, extra: dict[str, str]) -> tuple[dict[str, Path], Path]:
    """The objects of both levels, and the library that they make. The AVX-512 one is linked first: its symbols win."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    objects = {}
    for level in ("avx512", "avx2"):
        source = folder / f"{level}.cpp"
        source.write_text(HEALTHY + extra.get(level, ""))
        objects[level] = source.with_suffix(".o")
        command = [compiler, "-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", f"-DLEVEL={level}", *FLAGS[level]]
        subprocess.run([*command, "-c", source, "-o", objects[level]], check=True)
    library = folder / "planted.so"
    subprocess.run([compiler, "-shared", *objects.values(), "-o", library], check=True)
    return objects, library


@x86
def test_healthy_units_pass(tmp_path: Path) -> None:
    objects, library = build(tmp_path, {})
    for level, path in objects.items():
        isa.check_symbols(path, level)
        assert isa.check_code(path, lambda _, level=level: level) == {level: level}
    seen = isa.check_code(library)
    assert (seen["avx2"], seen["avx512"], seen["base"]) == ("avx2", "avx512", "base")


@x86
def test_planted_avx512_function_in_the_avx2_unit_is_found(tmp_path: Path) -> None:
    objects, library = build(tmp_path, {"avx2": WIDE_FUNCTION})
    isa.check_symbols(objects["avx2"], "avx2")  # which alone would not see it
    with pytest.raises(AssertionError, match=r"avx2 code has .*zmm.* in .*wide"):
        isa.check_code(objects["avx2"], lambda _: "avx2")
    with pytest.raises(AssertionError, match=r"avx2 code has .*zmm.* in .*wide"):
        isa.check_code(library)


@x86
def test_planted_function_that_the_linker_merges_is_found(tmp_path: Path) -> None:
    """AVX-512 code reached on an AVX2 level: both units call ``shared``, and one copy of it is left."""
    objects, library = build(tmp_path, {"avx2": MERGED_FUNCTION, "avx512": MERGED_FUNCTION})
    for level, path in objects.items():
        assert isa.check_code(path, lambda _, level=level: level) == {level: level}  # each keeps to its level ...
        with pytest.raises(AssertionError, match="weak symbol shared"):
            isa.check_symbols(path, level)
    with pytest.raises(AssertionError, match=r"base code has .*zmm.* in .*shared"):  # ... and the library does not
        isa.check_code(library)


@x86
def test_planted_initialiser_is_found(tmp_path: Path) -> None:
    """It runs when the library is loaded, on every processor."""
    objects, _ = build(tmp_path, {"avx2": INITIALISER})
    with pytest.raises(AssertionError, match=r"base code has .* in _GLOBAL__sub_I"):
        isa.check_code(objects["avx2"])


@pytest.mark.parametrize(
    "encoding, text, level",
    [
        ("0f 58 c1", "addps  %xmm1,%xmm0", "base"),
        ("f3 0f 1e fa", "endbr64", "base"),
        ("66 0f 38 00 c1", "pshufb %xmm1,%xmm0", "avx2"),
        ("66 41 0f 3a 08 c1 01", "roundps $0x1,%xmm9,%xmm0", "avx2"),
        ("c5 fc 58 c1", "vaddps %ymm1,%ymm0,%ymm0", "avx2"),
        ("c4 e2 7d b8 c1", "vfmadd231ps %ymm1,%ymm0,%ymm0", "avx2"),
        ("c5 f8 92 c8", "kmovw  %eax,%k1", "avx512"),
        ("62 f1 7c 28 58 c1", "vaddps %ymm1,%ymm0,%ymm0", "avx512"),  # EVEX on a register that AVX2 has
        ("64 62 f1 7c 28 58 00", "vaddps %fs:(%rax),%ymm0,%ymm0", "avx512"),
    ],
)
def test_levels_of_single_instructions(encoding: str, text: str, level: str) -> None:
    assert isa.needs(encoding, text) == level


# ---- what is run

POISON = """
import ctypes, re, subprocess
from pathlib import Path
import torch, mim4d
from mim4d import _C, ops

library = Path(mim4d.__file__).parent / "ops_cpu.so"
assert _C.cpu_isa() == "LEVEL", _C.cpu_isa()

maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(library))]
begin = min(int(line[0].partition("-")[0], 16) for line in maps)
symbols = subprocess.run(["nm", "-S", str(library)], capture_output=True, text=True, check=True).stdout
tables = re.findall(r"^([0-9a-f]+) ([0-9a-f]+) [dDrRbB] _ZN5mim4d(?:4(base)|4(avx2)|6(avx512))", symbols, re.M)
libc = ctypes.CDLL(None, use_errno=True)

def poison(wanted):
    count = 0
    for address, size, *names in tables:
        if wanted("".join(names)):
            place, size, page = begin + int(address, 16), int(size, 16), 4096
            first = place // page * page
            assert libc.mprotect(ctypes.c_void_p(first), ctypes.c_size_t(place + size - first), 3) == 0
            ctypes.memset(place, 0, size)
            count += 1
    return count

def results():
    torch.manual_seed(0)
    found = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            v = torch.randn(2, 19, 3, 4, 5).to(dtype).contiguous(memory_format=layout).requires_grad_()
            p = (torch.rand(2, 33, 3) * 2.4 - 1.2).to(torch.float64 if dtype == torch.float64 else torch.float32)
            out = ops.voxel_sample(v, p.requires_grad_())
            found += [out.detach(), *torch.autograd.grad(out.float().square().sum(), (v, p))]
    return found

with ops.use_backend("cpu"):
    before = results()
    assert poison(lambda name: name != "LEVEL") >= 8
    assert all(map(torch.equal, results(), before))
    print("only LEVEL ran", flush=True)
    assert poison(lambda name: name == "LEVEL") >= 4
    results()
    print("still alive", flush=True)
"""


@x86
@each_level
def test_only_the_forced_level_is_called(level: str) -> None:
    """With the tables of all other levels overwritten the op still runs; with its own overwritten too, it does not."""
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    done = python(POISON.replace("LEVEL", level), MIM4D_CPU_ISA=level)
    assert done.stdout == f"only {level} ran\n", done.stderr
    assert done.returncode == -signal.SIGSEGV, done.stderr


def test_the_level_that_was_asked_for() -> None:
    """Of this process: of the suite the processor's best, and of the processes below the forced one."""
    assert _library.extension().cpu_isa() == (env.CPU_ISA.get() or isa.supported()[-1])


@pytest.mark.slow
@each_level
def test_forced_level(level: str) -> None:
    """Values, gradients, layouts, odd values and the fuzzing of every C++ kernel, on each level."""
    here = Path(__file__)
    wanted = ["values", "degenerate", "memory", "derivatives", "layouts", "bits", "odd_values", "valid_calls"]
    done = pytest_run(
        f"{here}::{test_the_level_that_was_asked_for.__name__}",
        str(here.with_name("test_contract.py")),
        str(here.with_name("test_fuzz.py")),
        *("-k", f"level_that or (-cpu and not planted and ({' or '.join(wanted)}))"),
        MIM4D_CPU_ISA=level,
    )
    ended = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ended, done.stdout
    assert int(ended[1]) >= 15, done.stdout  # an empty selection proves nothing
    assert "skipped" not in done.stdout, done.stdout
