"""cmake/launcher.py: the same compilation is made once, and any other one is made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parent.parent / "cmake" / "launcher.py"
SOURCE = '#include "size.h"\nint size() { return SIZE; }\n'


class Place:
    """A tree of its own with the launcher in it, a source and its header, and a compiler that counts its calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        real = shutil.which(os.environ.get("CXX", "c++"))
        assert real is not None
        (root / "cmake").mkdir()
        shutil.copy(LAUNCHER, root / "cmake")
        (root / "include").mkdir()
        self.write(size=3)
        (root / "a.cpp").write_text(SOURCE)
        self.compiler = root / "compiler"
        self.compiler.write_text(
            f'#!/bin/sh\ncase " $* " in *" -E "*) ;; *) echo x >> {root}/calls ;; esac\nexec {real} "$@"\n'
        )
        self.compiler.chmod(0o755)

    def write(self, size: int) -> None:
        (self.root / "include" / "size.h").write_text(f"#define SIZE {size}\n")

    def compile(self, *flags: str, out: str = "a.o", folder: str = ".") -> tuple[int, subprocess.CompletedProcess]:
        """How often the compiler itself was called, and how it ended."""
        calls = self.root / "calls"
        calls.unlink(missing_ok=True)
        command = [str(self.compiler), "-O1", *flags, f"-I{self.root}/include", "-MD", "-MT", out, "-MF", f"{out}.d"]
        done = subprocess.run(
            [sys.executable, str(self.root / "cmake" / "launcher.py"), *command, "-o", out, "-c", f"{self.root}/a.cpp"],
            cwd=self.root / folder,
            capture_output=True,
            text=True,
            check=False,
        )
        return len(calls.read_text().split()) if calls.exists() else 0, done


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_same_compilation_is_made_once(place: Place) -> None:
    calls, done = place.compile()
    assert (calls, done.returncode, done.stderr) == (1, 0, "")
    (place.root / "other").mkdir()
    # another folder, where the object has another name, and more places to look for headers in
    calls, done = place.compile("-I", str(place.root / "elsewhere"), "-g1", out="b.o")
    assert calls == 1  # -g1 is another object
    calls, done = place.compile("-I", str(place.root), "-g1", out="c.o", folder="other")
    assert (calls, done.returncode, done.stderr) == (0, 0, "")
    assert (place.root / "other" / "c.o").read_bytes() == (place.root / "b.o").read_bytes()
    calls, done = place.compile(out="c.o")
    assert (calls, done.returncode, done.stderr) == (0, 0, "")
    assert (place.root / "c.o").read_bytes() == (place.root / "a.o").read_bytes()
    (rule,) = (place.root / "c.o.d").read_text().replace("\\\n", "").splitlines()[:1]
    assert rule.startswith("c.o:")
    assert "include/size.h" in rule


def test_any_other_compilation_is_made(place: Place) -> None:
    place.compile()
    assert place.compile("-O2")[0] == 1
    assert place.compile("-DSIZE_OF=2")[0] == 1
    place.write(size=4)
    assert place.compile()[0] == 1
    place.write(size=3)
    assert place.compile()[0] == 0
    place.compiler.write_text(place.compiler.read_text() + "# another compiler\n")
    assert place.compile()[0] == 1


def test_warnings_are_said_every_time_and_errors_pass_through(place: Place) -> None:
    (place.root / "a.cpp").write_text("static int unused() { return 1; }\n")
    for _ in range(2):
        calls, done = place.compile("-Wall")
        assert (calls, done.returncode) == (1, 0)
        assert "unused" in done.stderr
    (place.root / "a.cpp").write_text('#include "absent.h"\n')
    calls, done = place.compile()
    assert calls == 1
    assert done.returncode != 0
    assert "absent.h" in done.stderr
    (place.root / "a.cpp").write_text("int f( {\n")
    calls, done = place.compile()
    assert calls == 1
    assert done.returncode != 0


def test_other_commands_run_as_they_are(place: Place) -> None:
    launched = [sys.executable, str(place.root / "cmake" / "launcher.py")]
    assert subprocess.run([*launched, "sh", "-c", "exit 7"], check=False).returncode == 7
    assert place.compile("-fsanitize=undefined")[0] == 1
    assert place.compile("-fsanitize=undefined")[0] == 1
    assert not (place.root / "build" / "objects").exists()
