"""Every CUDA kernel compiles for every architecture that is released, without spilling registers, and the docs say how
it came out. Needs nvcc, no GPU."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mim4d import _library

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed

from benchmarks import kernels as kernels_module  # noqa: E402
from benchmarks.kernels import ALLOWED, BEGIN, END, AllowedSpill, read_allowed, spill_problems  # noqa: E402
from benchmarks.nvcc import (  # noqa: E402
    CSRC,
    WALL,
    CompileError,
    Compiler,
    Kernel,
    architectures,
    build_flags,
    find_nvcc,
    short_name,
    version,
)
from benchmarks.occupancy import LIMITS  # noqa: E402

NVCC = find_nvcc() or ""

# 96 values of a thread live at once, in the 64 registers that a block of 1024 threads leaves to each.
SPILLS = """
template <class S, class T>
__global__ void __launch_bounds__(THREADS) planted_kernel(const S* x, T* y, int n) {
  T a[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) a[i] = x[i * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) y[i * n + threadIdx.x] = a[i] * a[(i * 37 + 5) % 96] + a[95 - i];
}
void launch(const float* x, float* y) { planted_kernel<float, float><<<1, THREADS>>>(x, y, 3); }
"""


def need_nvcc() -> None:
    if not NVCC:
        pytest.skip("nvcc is not installed")


def planted(root: Path, op: str = "planted", threads: int = 1024, source: str = SPILLS) -> Compiler:
    need_nvcc()
    path = root / "csrc" / op / "cuda.cu"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#define THREADS {threads}\n{source}")
    return Compiler(NVCC, root / "csrc", root / "cache")


@pytest.fixture(scope="module")
def compiled() -> list[Kernel]:
    need_nvcc()
    return Compiler(NVCC).kernels(architectures(NVCC))


@pytest.mark.slow
def test_every_file_compiles_for_every_architecture(compiled: list[Kernel]) -> None:
    known = architectures(NVCC)
    if tuple(map(int, version(NVCC).split("."))) >= (12, 8):  # the first that knows the Blackwells
        assert known == list(LIMITS)
    files = {str(path.relative_to(CSRC)) for path in CSRC.rglob("*.cu")}
    assert {(k.file, k.arch) for k in compiled} == {(file, arch) for file in files for arch in known}


@pytest.mark.slow
def test_no_kernel_spills_but_those_listed_with_a_reason(compiled: list[Kernel]) -> None:
    problems = spill_problems(compiled, read_allowed())
    assert not problems, "\n".join(problems)


@pytest.mark.slow
def test_every_kernel_says_its_block_and_can_be_launched(compiled: list[Kernel]) -> None:
    for kernel in (k for k in compiled if k.entry):
        assert kernel.threads is not None, f"{kernel.file}: {kernel.name} has no __launch_bounds__"
        assert kernel.occupancy is not None
        assert kernel.occupancy.blocks >= 1, kernel
        assert kernel.code > 0
        assert kernel.constant > 0, "the parameters lie there"


@pytest.mark.slow
def test_kernel_attributes_lists_the_same_kernels(compiled: list[Kernel]) -> None:
    """By name. The list itself needs a GPU; its names lie in the extension, each between two zero bytes."""
    module = _library.extension()
    if isinstance(module, str) or not _library.build_info()["cuda"]:
        pytest.skip("mim4d._C is built without CUDA")
    binary = Path(str(module.__file__)).read_bytes()
    for stem in {k.file.split("/")[0] for k in compiled}:
        listed = {name.decode() for name in re.findall(rb"\0(%s[\w]*(?:<[\w, ]+>)?)(?=\0)" % stem.encode(), binary)}
        names = [k.name for k in compiled if k.entry and k.file.startswith(f"{stem}/") and k.arch == "86"]
        assert len(names) == len(set(names)), "two kernels of one short name"
        assert listed == set(names), "the list of KernelEntry lacks one (or mim4d._C is older than csrc: make setup)"


@pytest.mark.slow
def test_the_docs_show_the_kernels_as_they_are(compiled: list[Kernel]) -> None:
    here, others = version(NVCC), set()
    for page, own in kernels_module.pages(compiled).items():
        block = kernels_module.read_block(page)
        assert set(re.findall(r"^\| `(.*?)`", block, re.MULTILINE)) == {k.name for k in own}, page.name
        (documented,) = re.findall(r"nvcc (\d+\.\d+\.\d+)", block)
        if documented == here:
            assert block == kernels_module.docs_block(own, here), (
                f"{page.name} is out of date: `make kernels ARGS=--write-docs` renews it"
            )
        else:
            others.add(documented)
    if others:
        pytest.skip(f"numbers in the docs are those of nvcc {', '.join(others)}; here is {here}")


def flags_of(command: str) -> list[str]:
    """What decides the code that nvcc makes: not which file, which directories and which architecture."""
    words = shlex.split(command)[1:]
    for pair in ("-x", "-c", "-o"):
        del words[words.index(pair) : words.index(pair) + 2]
    place = ("-I", "-isystem", "--generate-code", "-Xcompiler=-fPIC", "-ffile-prefix-map", "-forward-unknown-to-host")
    return sorted({word for word in words if not word.startswith(place)})  # a newer CMake says -std=c++20 once more


def wanted_flags(file: str, allowed: Sequence[AllowedSpill]) -> list[str]:
    return sorted([*build_flags(), *([] if any(line.file == file for line in allowed) else [WALL])])


def test_the_build_compiles_with_the_flags_of_the_table() -> None:
    build = ROOT / "build" / f"torch{torch.__version__}-py{sys.version_info.major}{sys.version_info.minor}"
    database = build / "compile_commands.json"
    entries = json.loads(database.read_text()) if database.exists() else []
    entries = [entry for entry in entries if entry["file"].endswith(".cu")]
    if not entries:
        pytest.skip("nothing was built here with CUDA, so there are no flags to compare with")
    for entry in entries:
        file = str(Path(entry["file"]).relative_to(CSRC))
        assert flags_of(entry["command"]) == wanted_flags(file, read_allowed()), (
            f"{file} is built with other flags than it is measured with; if CMake's files were edited, make setup"
        )


def test_flags_that_drift_are_seen() -> None:
    place = "-forward-unknown-to-host-compiler -I/a/csrc --generate-code=arch=compute_86,code=[sm_86] -Xcompiler=-fPIC"
    build = f"nvcc {place} {' '.join(build_flags())} {WALL} -x cu -c /a/csrc/f/cuda.cu -o f/cuda.cu.o"
    assert flags_of(build) == wanted_flags("f/cuda.cu", [])
    for old, new in (
        ("-O3", "-O2"),
        (WALL, ""),
        ("-lineinfo", "-lineinfo --use_fast_math"),
        (WALL, f"{WALL} -maxrregcount=64"),
    ):
        assert flags_of(build.replace(old, new)) != wanted_flags("f/cuda.cu", []), new
    listed = [AllowedSpill("f/cuda.cu", "f", ("86",), "a test wants it")]
    assert flags_of(build.replace(WALL, "")) == wanted_flags("f/cuda.cu", listed)


# --- planted faults ---------------------------------------------------------------------------------------------------
def test_a_spill_is_caught_and_can_be_allowed(tmp_path: Path) -> None:
    spilling = planted(tmp_path).kernels(["86", "90"])
    assert [(k.name, k.arch, k.threads) for k in spilling] == [
        ("planted<float>", "86", 1024),
        ("planted<float>", "90", 1024),
    ]
    assert all(k.registers == 64 and k.spill_stores > 100 and k.stack > 100 for k in spilling)
    problems = spill_problems(spilling, [])
    assert len(problems) == 2
    assert problems[0].startswith("planted/cuda.cu: planted<float> spills on sm_86")

    listed = tmp_path / "allowed_spills.txt"
    listed.write_text("# a comment\nplanted/cuda.cu | planted<float> | 86 90 | a test wants it; measured: never\n")
    allowed = read_allowed(listed)
    assert allowed == [
        AllowedSpill("planted/cuda.cu", "planted<float>", ("86", "90"), "a test wants it; measured: never")
    ]
    assert spill_problems(spilling, allowed) == []
    assert len(spill_problems(spilling, [replace(allowed[0], archs=("86",))])) == 1, "listed for one, spills on two"

    healthy = planted(tmp_path, threads=256).kernels(["86", "90"])  # the same kernel with 255 registers to a thread
    assert [(k.spill_stores, k.spill_loads, k.stack) for k in healthy] == [(0, 0, 0)] * 2
    assert spill_problems(healthy, []) == []
    problems = spill_problems(healthy, allowed)
    assert problems == [
        f"planted/cuda.cu: planted<float> does not spill on sm_{arch}: take it out of csrc/{ALLOWED.name}"
        for arch in ("86", "90")
    ]


def test_a_function_that_spills_is_caught(tmp_path: Path) -> None:
    """One that is called, not inlined: it has its own registers, and ptxas lists it beside the kernels."""
    body = SPILLS.replace("template <class S, class T>", "template <class S, class T> __device__ __noinline__")
    body = body.replace("__global__ void __launch_bounds__(THREADS) planted_kernel", "void helper").split(
        "void launch"
    )[0]
    body += "__global__ void __launch_bounds__(1024) caller_kernel(const float* x, float* y) { helper(x, y, 3); }"
    kernels = planted(tmp_path, source=body).kernels(["86"])
    assert {k.name: k.entry for k in kernels} == {"caller": True, "helper<float>": False}
    assert any("helper<float> spills on sm_86" in problem for problem in spill_problems(kernels, []))


def test_the_build_refuses_a_spill_unless_it_is_listed(tmp_path: Path) -> None:
    """The project's own CMake functions, on three files: one spills, one is listed and spills, one does not spill."""
    for op, threads in (("planted", 1024), ("listed", 1024), ("healthy", 256)):
        planted(tmp_path, op, threads)
    (tmp_path / "csrc" / "allowed_spills.txt").write_text("listed/cuda.cu| planted<float> | 86 | a test wants it\n")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(planted LANGUAGES CXX CUDA)\n"
        f"include({ROOT}/cmake/cuda_flags.cmake)\n"
        "set(kernels csrc/planted/cuda.cu csrc/listed/cuda.cu csrc/healthy/cuda.cu)\n"
        "add_library(cuda_kernels OBJECT ${kernels})\nmim4d_cuda_flags(cuda_kernels ${kernels})\n"
    )
    env = {**os.environ, "CUDACXX": NVCC, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if not (shutil.which("cmake", path=env["PATH"]) and shutil.which("ninja", path=env["PATH"])):
        pytest.skip("cmake and ninja are not installed")
    build = tmp_path / "build"
    configure = ("cmake", "-S", tmp_path, "-B", build, "-G", "Ninja", "-DCMAKE_CUDA_ARCHITECTURES=86-real")
    subprocess.run(configure, env=env, check=True, capture_output=True)
    done = subprocess.run(
        ("cmake", "--build", build, "--", "-k", "0"), env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stdout.count("Registers are spilled to local memory") == 1, done.stdout
    objects = {op: list(build.rglob(f"csrc/{op}/cuda.cu.o")) for op in ("planted", "listed", "healthy")}
    assert {op: len(found) for op, found in objects.items()} == {"planted": 0, "listed": 1, "healthy": 1}


def test_a_file_that_fails_on_one_architecture_is_named_with_it(tmp_path: Path) -> None:
    source = "#if __CUDA_ARCH__ == 900\n#error planted fault\n#endif\n__global__ void f() {}\n"
    compiler = planted(tmp_path, source=source)
    with pytest.raises(
        CompileError, match=r"planted/cuda\.cu does not compile for sm_90:\n(.|\n)*planted fault"
    ) as caught:
        compiler.kernels(["86", "90"])
    assert "sm_86" not in str(caught.value)
    (kernel,) = compiler.kernels(["86"])
    assert (kernel.name, kernel.threads, kernel.occupancy) == ("f", None, None)  # no launch bounds: no guess either


@pytest.mark.parametrize(
    "line", ["planted/cuda.cu | f | 86", "planted/cuda.cu | f | 87 | why", "planted/cuda.cu | | 86 | why"]
)
def test_a_line_without_reason_or_architecture_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "allowed_spills.txt"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"allowed_spills\.txt:1: wanted 'file \| kernel"):
        read_allowed(path)


# --- the cache --------------------------------------------------------------------------------------------------------
def test_what_did_not_change_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = tmp_path / "csrc" / "planted" / "op.h"
    compiler = planted(tmp_path, source='#include "planted/op.h"\n__global__ void f(int* x) { *x = VALUE; }\n')
    header.write_text("#define VALUE 1\n")
    runs: list[str] = []
    count = lambda: (runs.clear(), compiler.kernels(["86"], lambda done, total, name: runs.append(name)), len(runs))[2]
    assert [count(), count()] == [1, 0]
    assert runs == []
    header.write_text("#define VALUE 2\n")
    assert [count(), count()] == [1, 0]
    (record,) = (tmp_path / "cache").iterdir()
    record.write_text(record.read_text()[:100])  # half of one, as of a full disk
    assert [count(), count()] == [1, 0]
    monkeypatch.setattr("benchmarks.nvcc.build_flags", lambda: ["-O1", "-std=c++20"])
    assert [count(), count()] == [1, 0]
    header.unlink()
    with pytest.raises(CompileError, match=r"op\.h"):
        count()


def test_two_runs_at_once_share_the_cache(tmp_path: Path) -> None:
    compiler = planted(tmp_path, threads=256)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: compiler.kernels(["86"]), range(2))
    assert one == two == compiler.kernels(["86"])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["planted.cuda.cu.sm_86.json"]


# --- names, table, docs -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "demangled, name",
    [
        ("void mim4d::(anonymous namespace)::f_f_kernel<__half, float, 4>(mim4d::P<__half, float>)", "f_f<__half, 4>"),
        ("void mim4d::g_kernel<double, double, (mim4d::Mode)1, true>(double*)", "g<double, 1, true>"),
        ("mim4d::h_kernel(float const*, int)", "h"),
        ("void f_kernel<float, double>(float*)", "f<float, double>"),
        ("not_mangled", "not_mangled"),
    ],
)  # fmt: skip
def test_short_names(demangled: str, name: str) -> None:
    assert short_name(demangled) == name


ONE = Kernel("planted/cuda.cu", "f<float>", "86", True, 256, 40, 0, 0, 0, 1024, 400, 1, 512)


def test_table_and_docs_of_known_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = [ONE, replace(ONE, arch="90", registers=80, spill_stores=8, spill_loads=4)]
    monkeypatch.setitem(sys.modules, "rich.console", None)  # as where rich is not installed
    kernels_module.show(kernels_module.table(kernels))
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["kernel", "arch", "regs", "spills"]
    assert " ".join(rows[0].split()) == "f<float> 8.6 40 0+0 0 1024 400 256 6 100% warps, registers 512"
    assert " ".join(rows[1].split()) == "f<float> 9.0 80 8+4 0 1024 400 256 3 38% registers 512"

    page = tmp_path / "planted.md"
    page.write_text("before\n")
    with pytest.raises(ValueError, match="wants a place for its kernels"):
        kernels_module.write_docs(kernels, "13.0.88", tmp_path)
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert kernels_module.write_docs(kernels, "13.0.88", tmp_path) == [page]
    text = page.read_text()
    assert "| `f<float>` | 256 | 1024 B | 8+4 B (9.0) | 40, 100% | 80, 38% |\n" in text
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert kernels_module.write_docs(kernels, "13.0.88", tmp_path) == [], "nothing changed"


@pytest.mark.slow
def test_the_command(compiled: list[Kernel], capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels_module.main(["--arch", "86"]) == 0
    out = capsys.readouterr().out
    assert all(f"{k.name} " in out for k in compiled if k.entry)
    assert "no spill that is not allowed" in out
    with pytest.raises(SystemExit):
        kernels_module.main(["--arch", "86", "--write-docs"])
    assert "without --arch" in capsys.readouterr().err
