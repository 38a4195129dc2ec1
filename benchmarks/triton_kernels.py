"""Registers, spills, shared memory and theoretical occupancy of every Triton kernel, compiled for GPUs that are not
there: ``python -m benchmarks.triton_kernels [--arch 86 90] [--json]``. Needs triton, no GPU and no nvcc.

Every module of ``mim4d.kernels`` lists as VARIANTS what of it is compiled; a kernel that no list names is a problem,
and so is one that spills registers. Results are kept by Triton itself, in ``build/triton``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import mim4d.kernels
from benchmarks.kernels import show, table
from benchmarks.nvcc import ROOT, Kernel, section_sizes
from mim4d.kernels import INTERPRETED, Variant

ARCHS = ("80", "86", "90", "100", "120")
CACHE = ROOT / "build" / "triton"


def modules() -> list[str]:
    """The files of mim4d.kernels."""
    paths = (path for folder in mim4d.kernels.__path__ for path in sorted(Path(folder).glob("*.py")))
    return [str(path) for path in paths if path.stem != "__init__"]


def load(path: str) -> ModuleType:
    """A file of kernels, as the module of mim4d.kernels that it is or would be."""
    name = f"mim4d.kernels.{Path(path).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _variants(module: ModuleType) -> tuple[Variant, ...]:
    return getattr(module, "VARIANTS", ())


def unlisted(modules: Sequence[ModuleType]) -> list[str]:
    """@triton.jit functions of these modules that none of their VARIANTS compiles, neither as a kernel nor as its
    helper."""
    from triton import JITFunction

    ahead = [variant.kernel for module in modules for variant in _variants(module)]
    reached = set()
    while ahead:
        function = ahead.pop().fn
        if function not in reached:
            reached.add(function)
            called = (function.__globals__.get(name) for name in function.__code__.co_names)
            ahead += [value for value in called if isinstance(value, JITFunction)]
    found = []
    for module in modules:
        own = [v for v in vars(module).values() if isinstance(v, JITFunction) and v.__module__ == module.__name__]
        names = sorted(v.__name__ for v in own if v.fn not in reached)
        found += [f"{Path(str(module.__file__)).name}: no entry of VARIANTS compiles {name}" for name in names]
    return found


def compiled(path: str, index: int, arch: str) -> Kernel:
    """One variant of one file for one architecture. Raises what Triton raises where it does not compile."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    variant: Variant = load(path).VARIANTS[index]
    names = variant.kernel.arg_names
    constant = lambda name: name in variant.constants
    source = ASTSource(
        fn=variant.kernel,
        signature={name: "constexpr" if constant(name) else variant.signature[name] for name in names},
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        # torch's allocations begin at multiples of 16 bytes and more; a launch sees that for itself
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if not constant(name) and variant.signature[name].startswith("*")
        },
    )
    binary = triton.compile(source, target=GPUTarget("cuda", int(arch), 32), options=dict(variant.options))
    cubin = binary.asm["cubin"]
    said = resource_usage(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump", cubin)
    sections = section_sizes(cubin)
    # A Triton kernel has no array of its own: what it has of a stack, ptxas spilled.
    return Kernel(
        file=f"mim4d/kernels/{Path(path).name}",
        name=variant.name,
        arch=arch,
        entry=True,
        threads=32 * binary.metadata.num_warps,
        registers=said["REG"],
        stack=said["STACK"],
        spill_stores=said["STACK"],
        spill_loads=said["STACK"],
        shared=binary.metadata.shared,
        constant=sum(size for name, size in said.items() if name.startswith("CONSTANT")),
        barriers=1 if binary.metadata.shared else 0,
        code=sections.get(f".text.{binary.metadata.name}", 0),
    )


def resource_usage(cuobjdump: Path, cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL, CONSTANT[0] ... of the one kernel of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = {name: int(value) for name, value in re.findall(r"([A-Z]+(?:\[\d+\])?):(\d+)", done.stdout)}
    if not {"REG", "STACK"} <= set(found):
        raise RuntimeError(f"{cuobjdump.name} -res-usage does not say registers and stack but: {done.stdout}")
    return found


def _attempt(job: tuple[str, int, str]) -> Kernel | str:
    path, index, arch = job
    try:
        return compiled(path, index, arch)
    except Exception as error:  # Triton, LLVM and ptxas have one of their own each
        lines = [line for line in str(error).splitlines() if line.strip()]
        name = load(path).VARIANTS[index].name
        return f"{Path(path).name}: {name} does not compile for sm_{arch}: {type(error).__name__}: " + " / ".join(lines)


def survey(archs: Sequence[str] = ARCHS, files: Iterable[str] | None = None) -> tuple[list[Kernel], list[str]]:
    """Every variant of every file on every architecture; and the problems: kernels that do not compile, spill, or are
    named by no list. Compiles in as many processes as there are cores."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE))
    paths = modules() if files is None else list(files)
    problems = unlisted([load(path) for path in paths])
    jobs = [(p, index, arch) for p in paths for index in range(len(_variants(load(p)))) for arch in archs]
    with ProcessPoolExecutor(min(len(os.sched_getaffinity(0)), len(jobs) or 1)) as pool:
        results = list(pool.map(_attempt, jobs, chunksize=len(archs)))
    kernels = [result for result in results if isinstance(result, Kernel)]
    problems += [result for result in results if isinstance(result, str)]
    problems += [f"{k.file}: {k.name} spills {k.stack} bytes on sm_{k.arch}" for k in kernels if k.stack]
    return kernels, problems


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=ARCHS, default=ARCHS, help="architectures (default: all)")
    parser.add_argument("--file", nargs="+", help="files of kernels (default: those of mim4d.kernels)")
    parser.add_argument("--json", action="store_true", help="kernels and problems as one JSON object")
    args = parser.parse_args(argv)
    if INTERPRETED:
        parser.error("under TRITON_INTERPRET kernels are interpreted, not compiled")
    if importlib.util.find_spec("triton") is None:
        parser.error("triton is not installed")
    kernels, problems = survey(args.arch, args.file)
    if args.json:
        print(json.dumps({"kernels": [asdict(kernel) for kernel in kernels], "problems": problems}))
    else:
        import triton

        show(table(kernels))
        print(f"\ntriton {triton.__version__}; bytes; shared memory is what a launch takes")
        print("\n".join(problems) or "every kernel is listed and compiles, and none spills")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
