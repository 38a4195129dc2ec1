"""Which instruction set a piece of machine code needs, read from its encoding.

In 64-bit mode the bytes C4 and C5 begin a VEX instruction (AVX, AVX2, FMA) and 62 an EVEX instruction (AVX-512), and
nothing else; the mask registers of AVX-512 have VEX instructions of their own. No list of mnemonics can go stale.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

LEVELS = ("base", "avx2", "avx512")
_FLAGS = {"avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512vl", "avx512bw", "avx512dq"}}
_FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_INSTRUCTION = re.compile(r"^ *[0-9a-f]+:\t([0-9a-f ]+?) *\t(.*)$")
_NAMESPACE = re.compile(r"^_Z+N[KVrRO]*5mim4d(?:4base|4avx2|6avx512)")
_SEGMENT_OR_ADDRESS = {"26", "2e", "36", "3e", "64", "65", "67"}
_OPERAND_SIZE_OR_REPEAT = {"66", "f2", "f3"}


def supported() -> tuple[str, ...]:
    """The levels that this processor has, lowest first, as the kernel of the operating system reports them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return LEVELS[:1]
    line = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    found = ["base"]
    for level in LEVELS[1:]:
        if not _FLAGS[level] <= flags:
            break
        found.append(level)
    return tuple(found)


def needs(encoding: str, text: str) -> str:
    """The lowest level that has an instruction, given its bytes ("c5 f8 58 c1") and objdump's words for it."""
    if re.search(r"%k[0-7]|%zmm", text):
        return "avx512"
    octets = encoding.split()
    while octets and octets[0] in _SEGMENT_OR_ADDRESS:
        octets.pop(0)
    if octets[:1] == ["62"]:
        return "avx512"
    if octets[:1] in (["c4"], ["c5"]):
        return "avx2"
    while octets and (octets[0] in _OPERAND_SIZE_OR_REPEAT or "40" <= octets[0] <= "4f"):
        octets.pop(0)
    # Behind 0F 38 and 0F 3A lies SSSE3 and later: no part of x86-64 as every processor has it, but of AVX2's.
    return "avx2" if octets[:2] in (["0f", "38"], ["0f", "3a"]) else "base"


def instructions(path: Path) -> Iterator[tuple[str, str, str]]:
    """(mangled function, instruction in words, lowest level that has it) for all code of an object or a library."""
    objdump = shutil.which("objdump")
    assert objdump is not None, "objdump (binutils) is not installed"
    # Without a limit on the width, objdump breaks long instructions into two lines, the second without words.
    command = [objdump, "--disassemble", "--wide", "--insn-width=16", path]
    function = "?"
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if begins := _FUNCTION.match(line):
            function = begins[1]
        elif found := _INSTRUCTION.match(line):
            yield function, found[2], needs(found[1], found[2])


def level_of(function: str) -> str:
    """For whom a function of ops_cpu.so is compiled: its namespace says so; what has none runs on every processor."""
    found = _NAMESPACE.match(function)
    return next(level for level in LEVELS if found[0].endswith(level)) if found else "base"


def check_code(path: Path, allowed: Callable[[str], str] = level_of) -> dict[str, str]:
    """No instruction of the file needs more than ``allowed(function)``. Returns the highest level that each allowed
    level was seen to need, so that the caller can tell that something was looked at."""
    seen: dict[str, str] = {}
    for function, text, level in instructions(path):
        limit = allowed(function)
        assert LEVELS.index(level) <= LEVELS.index(limit), f"{path.name}: {limit} code has {text!r} in {function}"
        seen[limit] = max(seen.get(limit, "base"), level, key=LEVELS.index)
    return seen


def check_symbols(path: Path, level: str) -> None:
    """An object of one level exports names of its own namespace alone, and no weak symbol: the linker merges those by
    name, and could keep the AVX-512 copy of one for every processor."""
    nm = shutil.which("nm")
    assert nm is not None, "nm (binutils) is not installed"
    command = [nm, "--demangle", "--defined-only", path]
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        kind, name = line[17:18], line[19:]
        assert kind not in "WVu", f"{path.name} ({level}): weak symbol {name}"
        if kind.isupper():
            assert name.startswith(f"mim4d::{level}::"), f"{path.name} ({level}): exports {name}"
