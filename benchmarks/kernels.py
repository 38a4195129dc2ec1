"""Registers, spills, memory and theoretical occupancy of every CUDA kernel: ``make kernels``, or
``python -m benchmarks.kernels [--arch 86 90] [--write-docs]``. Needs nvcc, no GPU.

A kernel that spills registers must be listed in ``csrc/allowed_spills.txt`` with a reason. ``--write-docs`` renews the
tables of ``docs/ops``, between ``<!-- kernels -->`` and ``<!-- /kernels -->``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.nvcc import CSRC, ROOT, CompileError, Compiler, Kernel, architectures, find_nvcc, version
from benchmarks.occupancy import LIMITS

DOCS = ROOT / "docs" / "ops"
ALLOWED = CSRC / "allowed_spills.txt"
BEGIN, END = "<!-- kernels -->", "<!-- /kernels -->"


@dataclass(frozen=True)
class AllowedSpill:
    file: str
    kernel: str
    archs: tuple[str, ...]
    reason: str


def read_allowed(path: Path = ALLOWED) -> list[AllowedSpill]:
    allowed = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            columns = [column.strip() for column in line.split("|", 3)]
            if len(columns) != 4 or not all(columns) or not set(columns[2].split()) <= set(LIMITS):
                raise ValueError(
                    f"{path.name}:{number}: wanted 'file | kernel | {' '.join(LIMITS)} | reason', not {line}"
                )
            allowed.append(AllowedSpill(columns[0], columns[1], tuple(columns[2].split()), columns[3]))
    return allowed


def spill_problems(kernels: Sequence[Kernel], allowed: Sequence[AllowedSpill]) -> list[str]:
    """Spills that are not allowed, and lines of the list that allow nothing; among the architectures compiled."""
    listed = {(line.file, line.kernel, arch) for line in allowed for arch in line.archs}
    spills = {(k.file, k.name, k.arch): k for k in kernels if k.spill_stores or k.spill_loads}
    problems = [
        f"{k.file}: {k.name} spills on sm_{k.arch}: {k.spill_stores} bytes stored, {k.spill_loads} loaded; "
        f"give it more registers (__launch_bounds__) or less to hold, or list it with its reason in csrc/{ALLOWED.name}"
        for key, k in spills.items()
        if key not in listed
    ]
    archs = {k.arch for k in kernels}
    problems += [
        f"{file}: {name} does not spill on sm_{arch}: take it out of csrc/{ALLOWED.name}"
        for file, name, arch in sorted(listed - set(spills))
        if arch in archs
    ]
    return problems


def dotted(arch: str) -> str:
    return f"{arch[:-1]}.{arch[-1]}"


def _percent(kernel: Kernel) -> str:
    return "?" if kernel.occupancy is None else f"{kernel.occupancy.share:.0%}"


HEADER = ("kernel", "arch", "regs", "spills", "stack", "shared", "const", "block", "per SM", "occup.", "limit", "code")


def table(kernels: Sequence[Kernel]) -> list[tuple[str, ...]]:
    """The rows under HEADER: one per kernel and architecture."""
    rows = []
    for k in (k for k in kernels if k.entry):
        at = k.occupancy
        blocks, limits = ("?", "no launch bounds") if at is None else (str(at.blocks), ", ".join(at.limits))
        sizes = (k.stack, k.shared, k.constant, k.threads or "?")
        spills = f"{k.spill_stores}+{k.spill_loads}"
        row = (k.name, dotted(k.arch), k.registers, spills, *sizes, blocks, _percent(k), limits, k.code)
        rows.append(tuple(map(str, row)))
    return rows


def show(rows: Sequence[tuple[str, ...]]) -> None:
    """In colours where rich is installed and the terminal has the room, else as plain text, a whole row a line."""
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        console = None
    else:
        console = Console(highlight=False)
    if console is None or not console.is_terminal or console.width < sum(widths) + 2 * len(widths):
        for row in (HEADER, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    rich = Table(box=None, header_style="bold", padding=(0, 1))
    for name in HEADER:
        rich.add_column(name, justify="left" if name in ("kernel", "limit") else "right", no_wrap=True)
    before = ""
    for name, *cells in rows:
        spills = cells[2] != "0+0"
        rich.add_row("" if name == before else name, *cells, style="bold red" if spills else None)
        before = name
    console.print(rich)


def pages(kernels: Sequence[Kernel], docs: Path = DOCS) -> dict[Path, list[Kernel]]:
    """The page of each op, with its kernels."""
    listed: dict[Path, list[Kernel]] = {}
    for kernel in (k for k in kernels if k.entry):
        listed.setdefault(docs / f"{kernel.file.split('/')[0]}.md", []).append(kernel)
    return listed


def _one_or_each(kernels: Sequence[Kernel], values: Sequence[str], nothing: str) -> str:
    """A value that is the same on every architecture once, else each that is not nothing with its architecture."""
    if len(set(values)) == 1:
        return values[0]
    return ", ".join(f"{v} ({dotted(k.arch)})" for k, v in zip(kernels, values, strict=True) if v != nothing)


def docs_block(kernels: Sequence[Kernel], nvcc_version: str) -> str:
    """What a page says of its kernels, markers included."""
    archs = list(dict.fromkeys(k.arch for k in kernels))
    rows = [
        f"Compiled by nvcc {nvcc_version} with the flags of the build; `make kernels` prints more. For each "
        "compute capability: registers of a thread,\nand theoretical occupancy, the share of an SM's warps that can be "
        "resident. Shared memory is the static one.",
        "",
        "| kernel | block | shared | spills | " + " | ".join(map(dotted, archs)) + " |",
        "|---" * (4 + len(archs)) + "|",
    ]
    for name in dict.fromkeys(k.name for k in kernels):
        own = [k for k in kernels if k.name == name]
        spills = ["none" if not k.spill_stores + k.spill_loads else f"{k.spill_stores}+{k.spill_loads} B" for k in own]
        columns = [
            f"`{name}`",
            _one_or_each(own, [str(k.threads or "?") for k in own], ""),
            _one_or_each(own, [f"{k.shared} B" for k in own], "0 B"),
            _one_or_each(own, spills, "none"),
            *(f"{k.registers}, {_percent(k)}" for k in own),
        ]
        rows.append(f"| {' | '.join(columns)} |")
    return "\n".join((BEGIN, *rows, END))


def read_block(page: Path) -> str:
    """The block of a page as it is now, markers included."""
    text = page.read_text() if page.exists() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} wants a place for its kernels: a line {BEGIN} and below it a line {END}")
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def write_docs(kernels: Sequence[Kernel], nvcc_version: str, docs: Path = DOCS) -> list[Path]:
    """Renew the blocks; the pages that changed."""
    changed = []
    for page, own in pages(kernels, docs).items():
        old, new = read_block(page), docs_block(own, nvcc_version)
        if old != new:
            page.write_text(page.read_text().replace(old, new))
            changed.append(page)
    return changed


def _progress(done: int, total: int, name: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[Kcompiling {name} ({done + 1} of {total})", end="", file=sys.stderr, flush=True)
    elif done == 0:
        print(f"compiling: nvcc runs {total} times, once a file and architecture", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=LIMITS, help=f"architectures (default: {' '.join(LIMITS)})")
    parser.add_argument("--write-docs", action="store_true", help="renew the tables of docs/ops")
    args = parser.parse_args(argv)
    nvcc = find_nvcc()
    if nvcc is None:
        parser.error("nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda")
    known = architectures(nvcc)
    unknown = [arch for arch in args.arch or LIMITS if arch not in known]
    if unknown and (args.arch or args.write_docs):
        parser.error(f"nvcc {version(nvcc)} does not know sm_{', sm_'.join(unknown)}")
    if args.arch and args.write_docs:
        parser.error("the tables of the docs hold every architecture: --write-docs without --arch")
    try:
        kernels = Compiler(nvcc).kernels(args.arch or known, _progress)
    except CompileError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    show(table(kernels))
    print(
        f"\nnvcc {version(nvcc)}; bytes; spills are stores + loads; occupancy is theoretical, with static memory alone"
    )
    if unknown:
        print(f"not compiled: nvcc {version(nvcc)} does not know sm_{', sm_'.join(unknown)}")
    problems = spill_problems(kernels, read_allowed())
    print("\n".join(problems) or "no spill that is not allowed")
    if args.write_docs:
        try:
            changed = write_docs(kernels, version(nvcc))
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        print("\n".join(f"renewed {page.relative_to(ROOT)}" for page in changed) or "the docs were up to date")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
