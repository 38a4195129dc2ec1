"""The rules of the house, as far as a machine can check them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import order
from helpers.process import pytest_run

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})
SHARED_ROOMS = {"math", "cuda", "cpu", "torch", "pybind"}
WORLD = "world"  # the ray caster of mim4d.world: no operator, and no torch
OP_ROOMS = sorted(p.name for p in CSRC.iterdir() if p.is_dir() and p.name not in {*SHARED_ROOMS, WORLD})
INCLUDE = re.compile(r'#\s*include\s*[<"]([^>"]+)[>"]')


def includes(path: Path) -> list[str]:
    return INCLUDE.findall(path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CSRC)))
def test_include_rules(path: Path) -> None:
    room, found = path.relative_to(CSRC).parts[0], includes(path)
    for name in found:
        assert not name.startswith(("ATen/", "c10/")), f"{name}: the stable ABI only"
        assert name not in ("torch/extension.h", "torch/torch.h", "torch/library.h"), f"{name}: the stable ABI only"
    speaks_torch = room == "torch" or path.name in ("op.h", "op_cuda.h", "op_cpu.cpp", "op_cuda.cpp")
    if not speaks_torch:
        assert not any(name.startswith("torch/") for name in found), "torch is for csrc/torch and op_*"
    if room == "math":
        allowed = {"math.h", "stdint.h"}
        assert all(name.startswith("math/") or name in allowed for name in found), "formulas include formulas"
    if room == WORLD:
        intrinsics = {"emmintrin.h"}  # SSE2, which every x86-64 has
        assert all(re.fullmatch(r"\w+", name) or name in intrinsics for name in found), "the standard library only"
    if room == "cpu":
        assert not any("cuda" in name for name in found)
    if path.suffix not in (".cu", ".cuh"):
        assert not any(name.endswith(".cuh") for name in found), "only CUDA sources read device code"


@pytest.mark.parametrize("op", OP_ROOMS)
def test_one_stem_in_every_room(op: str) -> None:
    for path in ("csrc/{}/params.h", "csrc/{}/op_cpu.cpp", "csrc/{}/cpu.cpp", "mim4d/ops/{}.py"):
        assert (ROOT / path.format(op)).exists(), path.format(op)
    assert any((CSRC / op).glob("*.cu")) == (CSRC / op / "op_cuda.cpp").exists(), "kernels and their binding"
    for path in ("mim4d/reference/{}.py", "tests/ops/test_{}.py", "docs/ops/{}.md", "benchmarks/ops/{}.py"):
        assert (ROOT / path.format(op)).exists(), path.format(op)


def test_every_op_has_its_rooms_in_python() -> None:
    for path in sorted((ROOT / "mim4d" / "ops").glob("[a-z]*.py")):
        assert (ROOT / "mim4d" / "reference" / path.name).exists(), path.stem
        assert (ROOT / "tests" / "ops" / f"test_{path.name}").exists(), path.stem
        assert (ROOT / "docs" / "ops" / f"{path.stem}.md").exists(), path.stem


def test_cmake_lists_every_source() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    for path in SOURCES:
        if path.suffix in (".cpp", ".cu"):
            assert str(path.relative_to(ROOT)) in text, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CSRC)))
def test_files_are_rooms_that_a_reader_can_hold(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 700
    if path.suffix in (".h", ".cuh"):
        assert text.startswith("#pragma once\n")


def test_code_names_no_machine_and_no_unfinished_business() -> None:
    words = re.compile(r"\bTODO\b|\bFIXME\b|\bXXX\b|NotImplementedError|/home/|/root/")
    files = [*SOURCES, *(ROOT / "mim4d").rglob("*.py"), ROOT / "setup.py", ROOT / "CMakeLists.txt"]
    for path in files:
        assert not words.search(path.read_text()), path


def test_several_processes_begin_with_the_longest_files(tmp_path: Path) -> None:
    for name in order.LONGEST:
        assert (ROOT / name).is_file(), name
    pytest.importorskip("xdist")
    for name in ("tests/test_few.py", "tests/test_many.py", *reversed(order.LONGEST[:2])):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"def test_{i}():\n    pass\n" for i in range(9 if "many" in name else 3)))
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    arguments = ("-vv", "-p", "xdist", "-p", "helpers.order", "-n", "1", "--dist", "loadfile", str(tmp_path))
    done = pytest_run(*arguments, PYTHONPATH=str(ROOT / "tests"))
    taken = list(dict.fromkeys(re.findall(r"PASSED \S*/(tests/\S+)::", done.stdout)))
    assert taken == [*order.LONGEST[:2], "tests/test_many.py", "tests/test_few.py"], done.stdout + done.stderr
