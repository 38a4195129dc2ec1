"""Tables in the terminal: with rich where it is installed, plain otherwise. The core alone is enough."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.base import Base
    from benchmarks.session import Session

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Table
    from rich.text import Text
except ImportError:
    Console = None

# What a narrow terminal does without, in this order: names and ratios are never cut short.
SPARE = ("GB/s", "p20 / p50 / p80", "of flops", "peak MB")
COLUMNS = ("", "best ms", "p20 / p50 / p80", "ratio", "GB/s", "of copy", "of flops", "peak MB", "error")


class Report:
    """What a person sees."""

    def __init__(self) -> None:
        self._console = None
        if Console is not None:
            wide = None if sys.stdout.isatty() else 132
            self._console = Console(highlight=False, soft_wrap=True, width=wide)
        self._bar: Any = None
        self._task: Any = None

    def say(self, text: str, style: str = "") -> None:
        if self._console is not None:
            self._console.print(Text(text, style=style))
        else:
            print(_coloured(text, style), flush=True)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}", "yellow")

    def facts(self, found: dict[str, Any], base: str | None) -> None:
        names = ("device", "driver", "cpu_isa", "torch", "triton", "revision", "date")
        known = {name: found[name] for name in names if found[name] is not None}
        self.say(
            ", ".join(f"{name} {value}" for name, value in known.items()) + (" (edited)" if found["dirty"] else "")
        )
        if base:
            self.say(f"base {base}")

    @contextlib.contextmanager
    def progress(self, total: int) -> Iterator[None]:
        """A bar below the tables on a terminal, nothing elsewhere."""
        if self._console is None or not self._console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._console, transient=True) as self._bar:
            self._task = self._bar.add_task("", total=total)
            try:
                yield
            finally:
                self._bar = None

    def step(self, title: str) -> None:
        if self._bar is not None:
            first = not self._bar.tasks[0].description
            self._bar.update(self._task, description=title, advance=0 if first else 1)

    def problem(self, what: str, session: Session, others: dict[str, Any], base: Base | None) -> None:
        """The headline of a problem, and who is not there."""
        problem = session.problem
        name = f"{problem.entry.op} {problem.preset} {str(problem.dtype).removeprefix('torch.')}"
        self.say(f"\n{name}: {what}", "bold")
        absent = {name: state.absent for name, state in session.states.items() if state.absent}
        for name, state in session.states.items():
            absent |= {f"{name}, {direction}": why for direction, why in state.lacks.items()}
        if base:
            absent |= {f"{name} @{base.name}": answer["absent"] for name, answer in others.items() if answer["absent"]}
        for rival, why in absent.items():
            self.say(f"  absent: {rival}: {why}", "dim")
        slow = [
            f"{state.rival.name} {max(v.first_s for v in state.verdicts.values()):.1f} s"
            for state in session.states.values()
            if (state.rival.compiled or state.rival.peer) and state.verdicts
        ]
        if slow:
            self.say(f"  first call, compiling and tuning included, not in the times: {', '.join(slow)}", "dim")

    def table(self, rows: Sequence[dict[str, Any]], threads: int | None = None) -> None:
        shown = [row for row in rows if row["status"] != "absent"]
        if not shown:
            return
        head = shown[0]
        timed = [row for row in shown if row["status"] == "ok"]
        where = ""
        if timed:
            where = f", copy {timed[0]['copy_gb_s']:.1f} GB/s ({timed[0]['copy_of']})"
            where += f", {timed[0]['peak_gflop_s']:.0f} GFLOP/s" if timed[0]["flop_fraction"] is not None else ""
        to = f", ratios to {timed[0]['ratio_to']}" if timed else ""
        title = f"{head['direction']}, {_threads(threads)}{head['cache']}{to}{where}"
        lines = [(_cells(row), "bold red" if row["status"] == "wrong" else "") for row in shown]
        wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else 132
        kept = fitting([cells for cells, _ in lines], wide if self._console is None else self._console.width)
        lines = [([cells[i] for i in kept], style) for cells, style in lines]
        columns = [COLUMNS[i] for i in kept]
        if self._console is None:
            self._plain(title, columns, lines)
        else:
            self.say(title)
            made = Table(box=None, pad_edge=False)
            for i, column in enumerate(columns):
                made.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
            for cells, style in lines:
                made.add_row(*cells, style=style)
            self._console.print(made)
        for row in shown:
            if row["status"] == "wrong":
                self.say(f"  {row['rival']} is WRONG and gets no time: {row['why']}", "bold red")
        times = {row["rival"]: row["ms"] for row in timed}
        noisy = {row["rival"] for row in timed if row["noisy"]}
        for name, ms in times.items():
            ours, at, sha = name.partition(" @")
            if at and ours in times:
                doubt = "~" if {ours, name} & noisy else ""
                self.say(f"  {ours}: {doubt}{ms / times[ours]:.2f} x as fast as at {sha}")

    def _plain(self, title: str, columns: Sequence[str], lines: Sequence[tuple[Sequence[str], str]]) -> None:
        print(title)
        widths = _widths([columns, *(cells for cells, _ in lines)])
        for cells, style in [(columns, ""), *lines]:
            text = "  ".join(
                c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            )
            print(_coloured(text, style))
        sys.stdout.flush()

    def end(self, rows: Sequence[dict[str, Any]], wrong: Sequence[tuple[str, str]]) -> None:
        timed = [row for row in rows if row["status"] == "ok"]
        noisy = sum(row["noisy"] for row in timed)
        if noisy:
            self.warn(f"{noisy} of {len(timed)} times spread widely (marked ~): something else was running")
        for op, rival in wrong:
            self.say(f"WRONG: {op}: {rival}", "bold red")


def fitting(lines: Sequence[Sequence[str]], wide: int) -> list[int]:
    """Which columns to show: all that hold anything, but for the spare ones that do not fit."""
    widths = _widths([COLUMNS, *lines])
    kept = [i for i in range(len(COLUMNS)) if any(cells[i] for cells in lines)]
    for name in SPARE:
        if sum(widths[i] + 2 for i in kept) - 2 > wide:
            kept = [i for i in kept if COLUMNS[i] != name]
    return kept


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(cells[i]) for cells in lines) for i in range(len(lines[0]))]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    error = "not finite" if row["error"] is None else f"{row['error']:.1e}"
    if row["status"] == "wrong":
        return row["rival"], "WRONG", "", "", "", "", "", "", error
    flops = f"{row['flop_fraction']:.0%}" if row["flop_fraction"] is not None else ""
    middle = " / ".join(_short(row[f"ms_p{q}"]) for q in (20, 50, 80))
    ratio = f"{'~' if row['noisy'] else ''}{_ratio(row['ratio'])} x"
    numbers = f"{row['gb_s']:.2f}", f"{row['fraction']:.1%}", flops, f"{row['peak_mb']:.2f}"
    return row["rival"], _short(row["ms"]), middle, ratio, *numbers, error


def _threads(count: int | None) -> str:
    return "" if count is None else f"{count} thread{'s' if count > 1 else ''}, "


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.095 else f"{ratio:.1g}"


def _short(ms: float) -> str:
    return f"{ms:.4f}" if ms < 0.1 else f"{ms:.3f}" if ms < 10 else f"{ms:.1f}"


def _coloured(text: str, style: str) -> str:
    codes = {"bold red": "1;31", "yellow": "33", "bold": "1", "dim": "2"}
    return f"\033[{codes[style]}m{text}\033[0m" if style in codes and sys.stdout.isatty() else text
