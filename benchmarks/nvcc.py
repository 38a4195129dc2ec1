"""What ptxas says of every kernel: each .cu compiled for each architecture, with the flags of the build. No GPU.

Results are kept in ``build/kernels``: a file is compiled again when its text, that of any header it includes, the flags
or nvcc have changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

from benchmarks.occupancy import LIMITS, Occupancy, occupancy

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "kernels"
RELEASE = ("-O3", "-DNDEBUG")  # what CMake adds for CMAKE_BUILD_TYPE=Release
WALL = "-Xptxas=--warn-on-spills"  # of the build, not of the table, which must see a spill to say what it is
MEASURE = ("-Xptxas=-v", "-cubin")
ARITHMETIC = {"float": "float", "double": "double", "__half": "float", "__nv_bfloat16": "float"}  # of a storage type

Progress = Callable[[int, int, str], None]  # how many are done, of how many, the last one


class CompileError(RuntimeError):
    """A file does not compile for an architecture; the message names both."""


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture. Sizes in bytes."""

    file: str  # in csrc
    name: str  # as kernel_attributes() has it
    arch: str
    entry: bool  # False: a function that kernels call, which spills for itself
    threads: int | None  # of a block, by the launch bounds
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    constant: int
    barriers: int
    code: int

    @property
    def occupancy(self) -> Occupancy | None:
        if self.threads is None:
            return None
        return occupancy(self.arch, self.threads, self.registers, self.shared, self.barriers)


def find_nvcc() -> str | None:
    """Where setup.py finds it."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (found := shutil.which("nvcc", path=f"{home}/bin")):
            return found
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def _say(*command: str | Path, text: str | None = None) -> str:
    return subprocess.run([str(c) for c in command], input=text, capture_output=True, text=True, check=True).stdout


def version(nvcc: str) -> str:
    """As 13.0.88."""
    said = _say(nvcc, "--version")
    found = re.search(r"V(\d+\.\d+\.\d+)", said)
    if found is None:
        raise RuntimeError(f"{nvcc} --version does not say its version but: {said}")
    return found[1]


def architectures(nvcc: str) -> list[str]:
    """Those of LIMITS that this nvcc knows."""
    known = _say(nvcc, "--list-gpu-code").split()
    return [arch for arch in LIMITS if f"sm_{arch}" in known]


def include_directory(nvcc: str) -> Path:
    """The directory of CUDA's headers (nvcc itself may be a script that lies elsewhere)."""
    depends = _say(nvcc, "-M", "-x", "cu", os.devnull)
    return next(Path(word).parent for word in depends.split() if word.endswith("/cuda_runtime.h"))


def build_flags() -> list[str]:
    """Of every .cu, without the wall against spills."""
    lines = (ROOT / "cmake" / "nvcc_flags.txt").read_text().splitlines()
    return [*RELEASE, *(line for line in lines if line.startswith("-"))]


def short_name(demangled: str) -> str:
    """``void mim4d::(anonymous namespace)::f_kernel<__half, float, 4>(...)`` is f<__half, 4>, as in the KernelEntry
    lists: the arithmetic's type follows from the storage's."""
    text = re.sub(r"\(anonymous namespace\)::|\w+::", "", demangled)
    text = re.sub(r"\(\w+\)(?=-?\d)", "", text)  # enums: (Mode)1
    found = re.search(r"(\w+?)(?:_kernel)?(?:<(.*?)>)?\(", text)
    if found is None:
        return demangled
    name, listed = found.groups()
    if listed is None:
        return name
    arguments = listed.split(", ")
    if len(arguments) > 1 and ARITHMETIC.get(arguments[0]) == arguments[1]:
        del arguments[1]
    return f"{name}<{', '.join(arguments)}>"


def parse_ptxas(said: str) -> dict[str, dict[str, int]]:
    """mangled name -> numbers, from ``ptxas -v``."""
    functions: dict[str, dict[str, int]] = {}
    entries, current = set(), ""
    for line in said.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            entries.add(found[1])
        elif found := re.search(r"Function properties for (\w+)", line):
            current = found[1]
            functions[current] = {"entry": current in entries, "registers": 0, "shared": 0, "barriers": 0}
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, found.groups())
            functions[current].update(stack=stack, spill_stores=stores, spill_loads=loads)
        elif found := re.search(r"Used (\d+) registers", line):
            functions[current]["registers"] = int(found[1])
            for name, pattern in (("shared", r"(\d+) bytes smem"), ("barriers", r"used (\d+) barriers")):
                functions[current][name] = sum(map(int, re.findall(pattern, line)))
    return functions


def launch_bounds(ptx: str) -> dict[str, int]:
    """mangled name -> threads of a block, for the kernels that have __launch_bounds__."""
    bounds = {}
    for name, directives in re.findall(r"\.entry\s+(\w+)\s*\([^)]*\)([^{]*)\{", ptx):
        if found := re.search(r"\.(?:max|req)ntid\s+([\d, ]+)", directives):
            bounds[name] = prod(map(int, found[1].split(",")))
    return bounds


def section_sizes(cubin: bytes) -> dict[str, int]:
    """section -> bytes, of an ELF file of 64 bits. ``.text.f`` holds the code of a kernel f, ``.nv.constant0.f`` and
    others its constant memory with the parameters (of which ptxas tells up to 8.9 only)."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    strings = sections[names][4]
    start = [strings + section[0] for section in sections]
    return {
        cubin[at : cubin.index(b"\0", at)].decode(): section[5] for at, section in zip(start, sections, strict=True)
    }


def constant_bytes(sections: dict[str, int], function: str) -> int:
    return sum(sections.get(f".nv.constant{bank}.{function}", 0) for bank in range(18))


@dataclass(frozen=True)
class Compiler:
    """nvcc on the files below a directory, which is also where they look for headers."""

    nvcc: str
    root: Path = CSRC
    cache: Path = CACHE

    def sources(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*.cu"))

    def kernels(self, archs: Sequence[str], progress: Progress | None = None) -> list[Kernel]:
        """Of every file, by file, name and architecture. Compiles what is not cached, as many at once as there are
        cores."""
        says = _say(self.nvcc, "--version")
        pairs = [(file, arch) for file in self.sources() for arch in archs]
        have = {pair: self._cached(*pair, says) for pair in pairs}
        missing = [pair for pair, kernels in have.items() if kernels is None]
        failures = []
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            jobs = [pool.submit(self._compile, *pair, says) for pair in missing]
            for done, (pair, job) in enumerate(zip(missing, jobs, strict=True)):
                if progress:
                    progress(done, len(missing), f"{pair[0]} for sm_{pair[1]}")
                try:
                    have[pair] = job.result()
                except CompileError as error:
                    failures.append(str(error))
        if failures:
            raise CompileError("\n".join(failures))
        kernels = [kernel for listed in have.values() for kernel in listed or ()]
        return sorted(kernels, key=lambda k: (k.file, k.name, archs.index(k.arch)))

    def _record(self, file: str, arch: str) -> Path:
        return self.cache / f"{file.replace('/', '.')}.sm_{arch}.json"

    def _key(self, arch: str, says: str, texts: Sequence[bytes]) -> str:
        parts = [
            says.encode(),
            " ".join([*build_flags(), *MEASURE, arch]).encode(),
            Path(__file__).read_bytes(),
            *texts,
        ]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def _cached(self, file: str, arch: str, says: str) -> list[Kernel] | None:
        try:
            record = json.loads(self._record(file, arch).read_text())
            texts = [Path(path).read_bytes() for path in (self.root / file, *record["headers"])]
            if record["key"] == self._key(arch, says, texts):
                return [Kernel(**kernel) for kernel in record["kernels"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, a header is gone, or the record is of another version or broken: compile
        return None

    def _compile(self, file: str, arch: str, says: str) -> list[Kernel]:
        started = time.time()
        with tempfile.TemporaryDirectory() as directory:
            at = Path(directory)
            command = [
                *(self.nvcc, *build_flags(), *MEASURE, f"-gencode=arch=compute_{arch},code=sm_{arch}", "-I", self.root),
                *("-keep", "-keep-dir", at, "-MD", "-MF", at / "depends", self.root / file, "-o", at / "kernels.cubin"),
            ]
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise CompileError(f"{file} does not compile for sm_{arch}:\n{done.stdout}{done.stderr}")
            functions = parse_ptxas(done.stdout + done.stderr)
            (ptx,) = at.glob("*.ptx")
            bounds = launch_bounds(ptx.read_text())
            sections = section_sizes((at / "kernels.cubin").read_bytes())
            headers = [path for path in dependencies((at / "depends").read_text()) if path != str(self.root / file)]
        kernels = [
            Kernel(
                **{**numbers, "entry": bool(numbers["entry"])},
                **{"file": file, "name": short_name(name), "arch": arch, "threads": bounds.get(function)},
                **{"code": sections.get(f".text.{function}", 0), "constant": constant_bytes(sections, function)},
            )
            for (function, numbers), name in zip(functions.items(), demangled(list(functions)), strict=True)
        ]
        read = [self.root / file, *map(Path, headers)]
        if max(path.stat().st_mtime for path in read) < started:  # else it may have been another text that was compiled
            key = self._key(arch, says, [path.read_bytes() for path in read])
            self._keep(file, arch, {"key": key, "headers": headers, "kernels": [asdict(kernel) for kernel in kernels]})
        return kernels

    def _keep(self, file: str, arch: str, record: dict[str, object]) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.cache, delete=False) as whole:
            json.dump(record, whole, indent=1)
        Path(whole.name).replace(self._record(file, arch))  # at once: another process reads the old one or the new one


def dependencies(rule: str) -> list[str]:
    """The files that a make rule names after its target."""
    words = re.split(r"(?<!\\)\s+", rule.partition(" : ")[2].replace("\\\n", " ").strip())
    return [word.replace("\\ ", " ") for word in words]


def demangled(names: list[str]) -> list[str]:
    filt = shutil.which("c++filt") or shutil.which("cu++filt") or shutil.which("cu++filt", path="/usr/local/cuda/bin")
    if filt is None:
        raise RuntimeError(
            "neither c++filt (binutils) nor cu++filt (CUDA) is installed: kernels have no readable names"
        )
    return _say(filt, text="\n".join(names)).splitlines()
