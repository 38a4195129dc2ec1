"""What machine, packages and backends a run has: for ``mim4d info`` and for ``summary.json``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from mim4d import __version__, backends, env
from mim4d import ops as ops  # the ops register themselves with the backends
from mim4d.errors import UserError

# extra -> the distributions that it brings
EXTRAS = {
    "train": (
        "timm",
        "nuscenes-devkit",
        "accelerate",
        "safetensors",
        "tyro",
        "rich",
        "pyyaml",
        "pillow",
        "matplotlib",
        "tensorboard",
    ),
    "world": ("embreex",),
}


def facts() -> dict[str, Any]:
    """Versions, processor, GPUs, build, backends of every op (None, or why it cannot run) and the extras' packages."""
    status: dict[str, Any] = backends.status()
    return {
        "mim4d": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernel_isa": status["cpu_isa"],
        "gpus": [gpu(index) for index in range(torch.cuda.device_count())],
        "build": status["build"],
        "libraries": status["libraries"],
        "asked_backend": status["asked"],
        "backends": {op: _with_devices(known) for op, known in status["ops"].items()},
        "extras": {extra: {name: version(name) for name in names} for extra, names in EXTRAS.items()},
    }


def _with_devices(known: dict[str, str | None]) -> dict[str, str | None]:
    """Backend -> why not, where a kernel that is there still needs a GPU."""
    needs_gpu = ("cuda", "triton") if not torch.cuda.is_available() else ()
    return {
        name: "there is no GPU" if reason is None and name in needs_gpu else reason for name, reason in known.items()
    }


def version(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu(index: int) -> str:
    """Name, compute capability and memory of one GPU."""
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"


def describe(found: dict[str, Any]) -> str:
    """:func:`facts` as text to read, or to paste into a bug report."""
    build = ", ".join(f"{name} {value}" for name, value in found["build"].items() if value)
    lines = [
        f"mim4d {found['mim4d']}, Python {found['python']}, torch {found['torch']}"
        f" (CUDA {found['torch_cuda'] or 'none'}), {found['platform']}",
        f"processor   {found['cpu']}, {found['cores']} cores, {found['threads']} threads",
        f"            torch uses {found['torch_cpu_capability']}, mim4d's kernels {found['kernel_isa']}",
        f"GPU         {'; '.join(found['gpus']) or 'none'}",
        f"build       {build or 'nothing native is built; every op runs as its reference'}",
    ]
    lines += [f"  {name:18s} {reason or 'loaded'}" for name, reason in found["libraries"].items()]
    lines.append(f"backends    asked for: {found['asked_backend']}")
    for op, known in found["backends"].items():
        lines.append(f"  {op}")
        lines += [f"    {name:16s} {reason or 'can run'}" for name, reason in known.items()]
    for extra, packages in found["extras"].items():
        missing = [name for name, installed in packages.items() if installed is None]
        state = f"missing: {', '.join(missing)} (pip install 'mim4d[{extra}]')" if missing else "complete"
        lines.append(f"extra       [{extra}] {state}")
    lines.append("variables   " + ", ".join(f"{each.name}={each.get()!r}" for each in env.VARIABLES))
    return "\n".join(lines)


def check_backend(device: torch.device) -> None:
    """Raise :class:`UserError` when ``MIM4D_BACKEND`` asks for a backend that cannot run every op on ``device``."""
    asked = env.BACKEND.get()
    if not asked:
        return
    if asked not in backends.BACKENDS:
        raise UserError(f"{env.BACKEND.name}={asked}: no such backend (there are: {', '.join(backends.BACKENDS)})")
    status = backends.status()["ops"]
    assert isinstance(status, dict)
    for op in status:
        # metadata-free questions only: is it the right device, is there a kernel, is its library loaded
        if asked in ("cpu", "cuda") and device.type != asked:
            reason: str | None = f"it runs on {asked} tensors, and this run is on {device.type}"
        else:
            reason = status[op].get(asked, "no kernel is written for it")
        if reason is not None:
            raise UserError(f"{env.BACKEND.name}={asked}: {op} cannot run there: {reason} (mim4d info shows all)")
