"""The CUDA kernels of the project on the CPU, by the emulator of ``tests/simt``: build it, run ops with it, and run
Python under the sanitizers that it was built for."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from mim4d import _library, ops

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "simt"
VARIANTS = ("plain", "asan", "tsan")
_TAG = f"torch{torch.__version__}-py{sys.version_info.major}{sys.version_info.minor}"

assert ops is not None  # importing the ops defines their schemas


# ---- build


def _tool(name: str) -> str:
    """cmake and ninja come with this Python's environment, or are on PATH."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        raise RuntimeError(f"the emulated CUDA kernels need {name}, which was not found: pip install {name}")
    return path


def _run(command: list[str]) -> None:
    # A sanitizer that is preloaded into this process is for the tests, not for the compiler.
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


@functools.cache
def build(variant: str, target: str, *defines: str) -> Path:
    """The library of one variant, built now if anything has changed.

    ``target`` is ``ops`` (the emulated ops), ``kernels``, ``faults`` or, with asan, ``checked_cpu`` (the C++ kernels of
    the CPU). ``defines`` are preprocessor definitions for a build of its own, as ``SIMT_UCONTEXT``.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}, wanted one of {', '.join(VARIANTS)}")
    folder = ROOT / "build" / "simt" / "-".join([variant, *defines, _TAG])
    folder.mkdir(parents=True, exist_ok=True)
    configure = [
        *(_tool("cmake"), "-S", str(SOURCE), "-B", str(folder), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
        f"-DSIMT_VARIANT={variant}",
        f"-DMIM4D_TORCH_DIR={Path(torch.__file__).parent}",
        "-DCMAKE_CXX_FLAGS=" + " ".join(f"-D{name}" for name in defines),
    ]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed: test processes build one after the other
        stamp = folder / "configured"
        if not stamp.exists() or stamp.read_text() != "\n".join(configure):
            _run([*configure, "--fresh"])
            stamp.write_text("\n".join(configure))
        _run([_tool("cmake"), "--build", str(folder), "--target", target])
    return folder / f"{target}.so"


def library(variant: str = "plain") -> Path:
    """The library of the emulated ops."""
    return build(variant, "ops")


# ---- sanitizers

_RUNTIMES = {"plain": (), "asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}
_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "exitcode=66 report_thread_leaks=0",
}


@functools.cache
def _fixed_addresses() -> tuple[str, ...]:
    """ThreadSanitizer of older compilers cannot live with addresses that are too random."""
    try:
        works = subprocess.run(["setarch", "-R", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        works = False
    return ("setarch", "-R") if works else ()


def python(variant: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``python arguments`` in a process that can load this variant: its sanitizer must be there first."""
    compiler = os.environ.get("CXX", "c++")
    find = [[compiler, f"-print-file-name={name}"] for name in _RUNTIMES[variant]]
    preload = [subprocess.run(f, capture_output=True, text=True, check=True).stdout.strip() for f in find]
    env = {**os.environ, **_OPTIONS, "OMP_NUM_THREADS": "1", "PYTHONMALLOC": "malloc", **variables}
    if preload:
        env["LD_PRELOAD"] = ":".join(preload)
    prefix = _fixed_addresses() if variant == "tsan" else ()
    return subprocess.run(
        [*prefix, sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


# ---- ops

_namespaces: dict[str, torch.library.Library] = {}  # they live as long as the process
_variant: dict[str, str] = {}
_active: list[str] = []


def _load(namespace: str, path: Path) -> list[str]:
    """Loads the library once, with the schemas of ``mim4d`` in its namespace; the ops that it has a kernel for."""
    if namespace not in _namespaces:
        _namespaces[namespace] = torch.library.Library(namespace, "DEF")
        for schema in _library.schemas.values():
            _namespaces[namespace].define(schema)
        torch.ops.load_library(str(path))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return [op for op in _library.schemas if has_kernel(f"{namespace}::{op}", "CPU")]


def emulated_ops(variant: str = "plain") -> list[str]:
    """Loads the emulated ops; their names. There is one variant in a process, the first that was asked for."""
    if _variant.setdefault("loaded", variant) != variant:
        raise RuntimeError(f"the emulator's variant {_variant['loaded']} is in this process, {variant} was asked for")
    return _load("mim4d_simt", library(variant))


@contextmanager
def _standing_in(namespace: str, names: list[str]) -> Iterator[None]:
    """Within it, the dispatcher's CPU kernels of these ops are those of another namespace."""
    override = torch.library.Library("mim4d", "IMPL")
    try:
        with warnings.catch_warnings():  # torch 2.11 tells once per process that a kernel is overridden: it is meant
            warnings.filterwarnings("ignore", message=".*overrid", category=UserWarning)
            for op in names:
                override.impl(op, getattr(getattr(torch.ops, namespace), op).default, "CPU", allow_override=True)
        yield
    finally:
        override._destroy()


@contextmanager
def emulated(variant: str = "plain") -> Iterator[None]:
    """Within it, every op with a CUDA kernel runs that kernel, emulated, when the dispatcher has CPU tensors for it."""
    names = emulated_ops(variant)
    if _active:
        yield
        return
    with _standing_in("mim4d_simt", names):
        _active.append(variant)
        try:
            yield
        finally:
            _active.clear()


def checked_cpu() -> AbstractContextManager[None]:
    """Within it, the C++ kernels of the CPU are those that were built with Address- and UndefinedBehaviorSanitizer."""
    names = _load("mim4d_checked", build("asan", "checked_cpu"))
    native = [op for op in _library.schemas if (op, "cpu") not in _library.absent]
    if not names or names != native:
        raise RuntimeError(f"the checked library holds {names}, the package's own {native}")
    return _standing_in("mim4d_checked", names)
