"""Rows that can be understood later: where, when, from which revision and with what a number was measured."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from mim4d import _library, backends

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PROVENANCE = (
    *("device", "driver", "cuda", "torch", "triton", "python", "cpu_isa", "threads"),
    *("revision", "dirty", "build", "date", "argv"),
)


def environment(device: str, revision: str | None = None) -> dict[str, Any]:
    """The provenance of a row, on ``cpu`` or ``cuda``. ``revision`` is what to say where there is no git."""
    sha, dirty = (revision, None) if revision else git_revision()
    return {
        "device": device_name(device),
        "driver": _driver() if device == "cuda" else None,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "cpu_isa": str(backends.status()["cpu_isa"]),
        "threads": torch.get_num_threads(),
        "revision": sha,
        "dirty": dirty,
        "build": _library.build_info().get("revision", "not built"),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "argv": [Path(sys.argv[0]).name, *(_without_folders(word) for word in sys.argv[1:])],
    }


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a file of JSON lines; what stands there stays. A row without its provenance is refused."""
    rows = list(rows)
    for row in rows:
        missing = [key for key in PROVENANCE if key not in row]
        if missing:
            raise ValueError(f"a row without {', '.join(missing)} cannot be recorded: {dict(row)}")
    lines = [json.dumps(dict(row), allow_nan=False) + "\n" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)


def results_file(device: str) -> Path:
    """The committed file of a device."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return RESULTS / f"{slug or 'unknown'}.jsonl"


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else processor()


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_revision() -> tuple[str, bool | None]:
    """The commit of this tree and whether files that git follows differ from it; what was built, where there is no
    git. The environment's MIM4D_REVISION says it of a tree that git does not know, a copy of a commit."""
    if told := os.environ.get("MIM4D_REVISION"):
        return told, None
    try:
        sha = git("rev-parse", "HEAD")
        return sha, bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        built = _library.build_info().get("revision", "unknown")
        return built.removesuffix("-dirty"), built.endswith("-dirty") or None


def outdated(root: Path = ROOT) -> str | None:
    """The native source that changed after the libraries were built, if one did: what would be measured is older."""
    built = [library.stat().st_mtime for library in (root / "mim4d").glob("ops_*.so")]
    sources = [path for path in [root / "CMakeLists.txt", *(root / "csrc").rglob("*")] if path.is_file()]
    newest = max(sources, key=lambda path: path.stat().st_mtime, default=None)
    if not built or newest is None or newest.stat().st_mtime <= max(built):
        return None
    return str(newest.relative_to(root))


def git(*words: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _driver() -> str | None:
    """Version of the NVIDIA driver, where its tool or its file in /proc tells."""
    try:
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout.split()
        return found[0] if found else None
    except (OSError, subprocess.SubprocessError):
        path = Path("/proc/driver/nvidia/version")
        match = re.search(r"Module\s+([\d.]+)", path.read_text()) if path.is_file() else None
        return match.group(1) if match else None


def _version(module: str) -> str | None:
    try:
        return str(__import__(module).__version__)
    except ImportError:
        return None


def _without_folders(word: str) -> str:
    """A word of the command line without the folders of this machine."""
    option, equals, value = word.rpartition("=")
    return option + equals + (value.rsplit(os.sep, 1)[-1] if value.startswith(os.sep) else value)
