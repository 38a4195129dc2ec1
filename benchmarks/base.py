"""``--base REF``: another revision of mim4d as one more rival, measured in the same rounds by a process of its own.

The revision is checked out beside the build (``build/base-<sha>``). The benchmarks, their inputs and oracles are this
tree's for both; ``mim4d`` alone is the other's. The process answers one request after the other over a pipe, and this
one waits meanwhile: no two rivals ever run at once.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks.record import ROOT, git
from mim4d.errors import UserError

NATIVE = ("csrc", "cmake", "CMakeLists.txt", "setup.py")


class Base:
    """The other revision and the process that measures it; a context manager."""

    def __init__(self, reference: str, device: str) -> None:
        try:
            self.sha = git("rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")
        except (OSError, subprocess.CalledProcessError):
            raise UserError(f"--base {reference}: git knows no such revision here") from None
        self.name, self.device = self.sha[:12], device
        self.folder = ROOT / "build" / f"base-{self.name}"
        self.note = ""  # where its native libraries come from
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Base:
        if not (self.folder / ".git").exists():
            git("worktree", "add", "--force", "--detach", str(self.folder), self.sha)  # force: it may have been deleted
        self.note = self._build()
        worker = [sys.executable, str(ROOT / "benchmarks" / "worker.py"), str(self.folder)]
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._process = subprocess.Popen(
            worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean, cwd=self.folder
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def ask(self, request: str, **arguments: Any) -> Any:
        """One request; a fault in the other process is raised here in its words."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": request, **arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(
                f"--base {self.name}: its process ended with code {process.wait(30)} (its words stand above)"
            )
        answer = json.loads(line)
        if "fault" in answer:
            raise RuntimeError(f"base {self.name}: {answer['fault']}")
        return answer["answer"]

    def _build(self) -> str:
        """Bring the native libraries of that revision into its folder; says how."""
        if os.environ.get("MIM4D_BUILD") == "none":
            return "nothing native (MIM4D_BUILD=none)"
        mode = os.environ.get("MIM4D_BUILD") or ("cpu" if self.device == "cpu" else "auto")
        stamp = self.folder / "build" / f".base-{torch.__version__}-{mode}"
        if not git("diff", "--name-only", self.sha, "--", *NATIVE):
            for built in stamp.parent.glob(".base-*"):  # what it was built to is replaced
                built.unlink()
            for library in (ROOT / "mim4d").glob("*.so"):
                target = self.folder / "mim4d" / library.name
                if not target.exists() or not filecmp.cmp(library, target, shallow=False):
                    shutil.copy2(library, target)
            return "the libraries of this tree: its native sources are the same"
        if not stamp.exists():
            command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
            done = subprocess.run(command, cwd=self.folder, env={**os.environ, "MIM4D_BUILD": mode}, check=False)
            if done.returncode:
                raise UserError(f"--base {self.name}: its native build failed (see above)")
            stamp.parent.mkdir(exist_ok=True)
            for built in stamp.parent.glob(".base-*"):
                built.unlink()
            stamp.touch()
        return "built from its own sources"


class Remote:
    """A rival in the base's process, under the clock of that process."""

    def __init__(self, base: Base, rival: str, direction: str) -> None:
        self.base, self.key = base, {"rival": rival, "direction": direction}

    def sample(self, calls: int, cold: bool) -> float:
        time.sleep(0.002)  # threads of the rival before stop spinning
        return float(self.base.ask("sample", calls=calls, cold=cold, **self.key))
