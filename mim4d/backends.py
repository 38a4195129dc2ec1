"""Which backend runs an op, why, and how to choose another one.

A CUDA tensor prefers ``cuda``, then ``triton``, then ``reference``; a CPU tensor ``cpu``, then ``reference``. A backend
runs if its library is there and its *predicate* has nothing against the call. Predicates see metadata alone (dtypes,
sizes, modes), never values, so the choice costs no synchronisation and ``torch.compile`` folds it away. Each answers
``None`` or the reason in words. ``with use_backend("reference"):`` or the variable ``MIM4D_BACKEND`` asks for one
backend by name; if it cannot run, the call raises with the reason and never falls back in silence.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.autograd import forward_ad

from . import _library, env
from .kernels import INTERPRETED

BACKENDS = ("cpu", "cuda", "triton", "reference")
_INTERPRETER = "TRITON_INTERPRET=1 before mim4d is imported"
ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

Predicate = Callable[..., str | None]
_predicates: dict[str, dict[str, Predicate]] = {}  # op -> backend -> predicate; filled while mim4d.ops is imported


def _known(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where}: backend is {name!r}, wanted one of {', '.join(BACKENDS)}")
    return name


_default = env.BACKEND.get() and _known(env.BACKEND.get(), env.BACKEND.name)
_asked: ContextVar[str] = ContextVar("mim4d_backend", default=_default)
_heard: ContextVar[dict[str, set[str]] | None] = ContextVar("mim4d_heard", default=None)  # of `listen`


class _Mirror(threading.local):
    """What ``_asked`` holds in this thread, for torch.compile: older ones cannot read a ContextVar."""

    def __init__(self) -> None:
        self.asked = _default


_traced = _Mirror()


def _asked_for() -> str:
    return _traced.asked if torch.compiler.is_compiling() else _asked.get()


def register(op: str, backend: str, can_run: Predicate) -> None:
    """Declare that ``backend`` implements ``op``. ``can_run(**meta)`` returns None, or why it cannot run that call."""
    _predicates.setdefault(op, {})[backend] = can_run


def reads_floats(dtype: torch.dtype, **_: object) -> str | None:
    """The predicate of kernels that are compiled for four dtypes, whatever else the call is."""
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"its kernel reads float16, bfloat16, float32 and float64, not {dtype}"
    return None


def adds_in_any_order(dtype: torch.dtype, **_: object) -> str | None:
    """The predicate of those of them whose backward adds by atomics alone."""
    if torch.are_deterministic_algorithms_enabled():
        return "its backward adds in no fixed order, and torch.use_deterministic_algorithms is on"
    return reads_floats(dtype)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Every op called inside runs on this backend: ``cpu``, ``cuda``, ``triton`` or ``reference``.

    Raises ValueError for an unknown name; an op that cannot run there raises ValueError with the reason when it is
    called.
    """
    before, _traced.asked = _traced.asked, _known(name, "mim4d.ops.use_backend")
    token = None if torch.compiler.is_compiling() else _asked.set(name)
    try:
        yield
    finally:
        _traced.asked = before
        if token is not None:
            _asked.reset(token)


def unserved(archs: str, capability: tuple[int, int]) -> str | None:
    """Why code for ``archs`` ("86;90a-real", as CMake names them) does not run on a GPU; None when it does.

    Machine code serves its major version from its minor on, PTX everything newer; what is compiled for "90a" serves 9.0
    alone, for "100f" its major version.
    """
    for arch in archs.split(";"):
        digits, kind = arch.partition("-")[::2]
        number = digits.rstrip("af")
        if not number.isdigit():
            continue
        built = int(number[:-1]), int(number[-1])
        ptx = kind in ("", "virtual")
        if digits.endswith("a"):
            serves = built == capability
        elif built[0] == capability[0]:
            serves = built <= capability
        else:
            serves = ptx and built <= capability and not digits.endswith("f")
        if serves:
            return None
    return f"it is built for {archs}, and this GPU has {capability[0]}.{capability[1]} (see TORCH_CUDA_ARCH_LIST)"


@functools.cache
def _unserved_by_build(index: int) -> str | None:
    archs = _library.build_info().get("archs")
    return unserved(archs, torch.cuda.get_device_capability(index)) if archs else None


@torch.compiler.assume_constant_result
def _unserved_device(index: int | None) -> str | None:
    """:func:`unserved` for one device and the native library that is there; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return _unserved_by_build(torch.cuda.current_device() if index is None else index)


def reason_against(op: str, backend: str, device: torch.device, **meta: object) -> str | None:
    """Why ``backend`` cannot run this call of ``op``; None when it can."""
    if backend == "reference":
        return None
    if forward_ad._current_level >= 0:  # torch.func.jvp and jacfwd enter a level too
        return "forward-mode differentiation is on, and torch gives ops of torch.library no tangents but zeros"
    if backend in _library.KEYS and device.type != backend:
        return f"it runs on {backend} tensors, not on {device.type}"
    can_run = _predicates.get(op, {}).get(backend)
    if can_run is None:
        return "no kernel is written for it"
    absent = _library.absent.get((op, backend))
    if absent is not None:
        return absent
    if backend == "triton" and device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"it runs on cuda tensors, not on {device.type} (on cpu interpreted: {_INTERPRETER})"
    unserved = _unserved_device(device.index) if backend == "cuda" else None
    if unserved is not None:
        return unserved
    return can_run(**meta)


@contextmanager
def listen() -> Iterator[dict[str, set[str]]]:
    """Hear which backends the ops called inside run on: op -> their names. Compiled code is not heard."""
    ran: dict[str, set[str]] = {}
    token = _heard.set(ran)
    try:
        yield ran
    finally:
        _heard.reset(token)


def choose(op: str, *, device: torch.device, **meta: object) -> str:
    """The backend that runs this call: the one asked for, else the first in order that can.

    On meta tensors nothing runs: the answer is "meta", and the op of the dispatcher, whose fake knows the shapes, gives
    the result.
    """
    backend = _choose(op, device, **meta)
    if not torch.compiler.is_compiling() and (ran := _heard.get()) is not None:
        ran.setdefault(op, set()).add(backend)
    return backend


def _choose(op: str, device: torch.device, **meta: object) -> str:
    if device.type == "meta":
        return "meta"
    asked = _asked_for()
    if asked:
        reason = reason_against(op, asked, device, **meta)
        if reason is not None:
            raise ValueError(f"mim4d::{op}: backend {asked!r} was asked for and cannot run: {reason}")
        return asked
    for backend in ORDER.get(device.type, ("reference",)):
        if reason_against(op, backend, device, **meta) is None:
            return backend
    return "reference"


def available(op: str, device: torch.device, **meta: object) -> dict[str, str | None]:
    """Every backend of a device with None (it can run this call) or the reason why not; best first."""
    return {b: reason_against(op, b, device, **meta) for b in ORDER.get(device.type, ("reference",))}


def status() -> dict[str, object]:
    """Facts for ``mim4d info``: versions, build, libraries (None or why missing), ops with the backends written for
    them."""
    info = _library.build_info()
    module = _library.extension()
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only",
        "threads": torch.get_num_threads(),
        "cpu_isa": "not built" if isinstance(module, str) else module.cpu_isa(),
        "asked": _asked.get() or "auto",
        "build": info,
        "libraries": {name: _library.failures.get(name) for name, _ in _library.KEYS.values()},
        "ops": {
            op: {b: _library.absent.get((op, b)) for b in (*_predicates.get(op, ()), "reference")}
            for op in _library.schemas
            if not op.endswith("_backward")
        },
    }


def report() -> str:
    """What :func:`status` knows, as text to read or to paste into a bug report."""
    facts = status()
    build, libraries, ops = facts["build"], facts["libraries"], facts["ops"]
    assert isinstance(build, dict)
    assert isinstance(libraries, dict)
    assert isinstance(ops, dict)
    lines = [
        f"torch {facts['torch']}, {facts['device']}, {facts['threads']} threads, CPU kernels for {facts['cpu_isa']}"
    ]
    lines += ["built with " + ", ".join(f"{k} {v}" for k, v in build.items() if v)] if build else []
    lines += [f"backend {facts['asked']}"]
    lines += [f"{name}: {reason or 'loaded'}" for name, reason in libraries.items()]
    for op, known in ops.items():
        lines += [f"{op}: " + ", ".join(b if why is None else f"{b} ({why})" for b, why in known.items())]
    return "\n".join(lines)
