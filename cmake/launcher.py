#!/usr/bin/env python3
"""A compiler launcher of CMake that compiles the same thing once: ``CMAKE_CXX_COMPILER_LAUNCHER="python3;THIS FILE"``.

The tests build the same sources for two versions of torch, which most of them know nothing of. An object is kept in
``build/objects`` under the hash of all that it depends on: the compiler, its flags but for where it searches headers
and what it writes, and the preprocessed source. Nothing else is asked, so that nothing old is ever taken for new.
Commands that are not one compilation of one C++ file run as they are, and so do those for a sanitizer: they come once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

STORE = Path(__file__).resolve().parents[1] / "build" / "objects"
ELSEWHERE = ("-o", "-MF", "-MT", "-MQ")  # each with a path in the next word: what is written, and where
SEARCHED = ("-I", "-isystem")


def split(command: list[str]) -> tuple[list[str], str, str] | None:
    """The flags that decide what is made, the source and the object; None for what is no compilation of one file."""
    flags, source, target = [], "", ""
    words = iter(command[1:])
    for word in words:
        if word in ELSEWHERE:
            path = next(words, "")
            target = path if word == "-o" else target
        elif word in SEARCHED:
            next(words, "")
        elif word.startswith(SEARCHED) or word in ("-MD", "-MMD"):
            continue
        elif word.endswith((".cpp", ".cu")) and not word.startswith("-"):
            if source:
                return None
            source = word
        else:
            flags.append(word)
    once = any(flag.startswith("-fsanitize") for flag in flags)
    return (flags, source, target) if "-c" in flags and source and target and not once else None


def preprocessed(command: list[str], target: str) -> bytes | None:
    """The source with all it includes; the file of dependencies that Ninja reads is written on the way."""
    words = [word for word in command if word != "-c"]
    place = words.index("-o")
    del words[place : place + 2]
    if "-MD" in words and "-MT" not in words:
        words += ["-MT", target]
    words += ["-E", "-fno-working-directory"]  # of two builds, which -g would have in the text
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout if done.returncode == 0 else None


def key(command: list[str], flags: list[str], source: str, text: bytes) -> str:
    compiler = shutil.which(command[0]) or command[0]
    about = os.stat(compiler)
    parts = [os.path.realpath(compiler), about.st_size, about.st_mtime_ns, *flags, Path(source).resolve()]
    return hashlib.sha256("\0".join(map(str, parts)).encode() + b"\0" + text).hexdigest()


def main(command: list[str]) -> int:
    parts = split(command)
    text = preprocessed(command, parts[2]) if parts else None
    if parts is None or text is None:
        return subprocess.run(command, check=False).returncode
    flags, source, target = parts
    kept = STORE / f"{key(command, flags, source, text)}.o"
    if kept.exists():
        shutil.copyfile(kept, target)
        return 0
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE)
    sys.stderr.buffer.write(done.stderr)
    if done.returncode == 0 and not done.stderr:  # a warning must be seen in every build
        STORE.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=STORE)
        os.close(handle)
        shutil.copyfile(target, name)
        os.replace(name, kept)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
