"""What a person sees while a run goes: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

T = TypeVar("T")


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Rate:
    """Seconds per step: a running mean that forgets (about the last 20 steps), started by the second step, because the
    first one pays for warming up."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._steps = 0

    def add(self, seconds: float) -> None:
        self._steps += 1
        if self.seconds is None or self._steps == 2:
            self.seconds = seconds
        else:
            self.seconds += (seconds - self.seconds) * max(0.05, 1.0 / self._steps)

    def left(self, steps: int) -> str:
        """Time left for ``steps`` steps; ``--`` before the first one."""
        return "--" if self.seconds is None else clock(self.seconds * steps)

    def text(self) -> str:
        if self.seconds is None:
            return "-- s/step"
        return f"{self.seconds:.2f} s/step" if self.seconds >= 0.1 else f"{1.0 / self.seconds:.1f} steps/s"


class Pace:
    """How fast a count goes, over the last ``SECONDS`` seconds, and how long the rest of it will take."""

    SECONDS = 30.0

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._seen: deque[tuple[float, int]] = deque()  # moment, count; what was there at the first call is no speed
        self._warm = False

    def text(self, done: int, total: int, now: float | None = None) -> str:
        """``23 files/s  0:12 left``; empty before the second count and at the end."""
        now = time.perf_counter() if now is None else now
        self._seen.append((now, done))
        if len(self._seen) == 3 and not self._warm:  # what came before the first count was getting ready, mostly
            self._seen.popleft()
            self._warm = True
        while now - self._seen[0][0] > self.SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        seconds, count = now - self._seen[0][0], done - self._seen[0][1]
        if seconds <= 0 or count <= 0 or done >= total:
            return ""
        rate = count / seconds
        shown = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{shown} {self._unit}/s  {clock((total - done) / rate)} left"


class Ticker:
    """Without a bar: how far a long count has come, as a plain line every ``SECONDS`` seconds."""

    SECONDS = 5.0

    def __init__(self, display: Display, title: str, pace: Pace | None = None) -> None:
        self._display, self._title, self._pace = display, title, pace
        self._last = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        note = self._pace.text(done, total, now) if self._pace else ""
        if now - self._last >= self.SECONDS:
            self._last = now
            self._display.line(f"{self._title}: {done} of {total}" + (f"  {note}" if note else ""))


class Display:
    """Lines and bars on standard output; silent where ``quiet`` (all processes of a run but the first)."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and sys.stdout.isatty()
        self._console = Console(highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """One plain line."""
        if self.quiet:
            return
        if self.live:
            self._console.print(text, markup=False)
        else:
            print(text, flush=True)

    def track(self, entries: Iterable[T], title: str, total: int) -> Iterator[T]:
        """Iterate with a bar that goes away at the end (elsewhere a line at the start and every few seconds)."""
        if not self.live:
            self.line(title)
            tick = Ticker(self, title)
            for done, entry in enumerate(entries, start=1):
                yield entry
                tick(done, total)
            return
        with self._bar() as bar:
            task = bar.add_task(title, total=total, note="")
            for entry in entries:
                yield entry
                bar.advance(task)

    @contextmanager
    def count(self, title: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
        """A callback (done, total) that moves a bar; without a terminal, a line every few seconds.

        ``unit``: what is counted, for a rate and the time left beside the count; empty shows neither.
        """
        pace = Pace(unit) if unit else None
        if not self.live:
            yield Ticker(self, title, pace)
            return
        with self._bar() as bar:
            task = bar.add_task(title, total=None, note="")
            yield lambda done, total: bar.update(
                task, completed=done, total=total, note=pace.text(done, total) if pace else ""
            )

    def steps(self, first: int, total: int, every: int) -> StepDisplay:
        """The display of the training loop."""
        return StepDisplay(self, first, total, every)

    def _bar(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        return Progress(*columns, console=self._console, transient=True)


class StepDisplay:
    """The training loop's bar, or now and then a line: losses, rate, time left.

    Lines come at multiples of ``every`` steps, at least ``LINE_SECONDS`` apart, and at the end: a log stays readable.
    """

    LINE_SECONDS = 5.0

    def __init__(self, display: Display, first: int, total: int, every: int) -> None:
        self._display, self._total, self._every, self._done = display, total, every, first
        self.rate = Rate()
        self._bar = display._bar() if display.live else None
        self._task = self._bar.add_task("training", total=total, completed=first, note="") if self._bar else None
        self._last = time.perf_counter()
        self._line = -math.inf  # when the last line came

    def __enter__(self) -> StepDisplay:
        if self._bar:
            self._bar.start()
        self._last = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, numbers: Mapping[str, Any]) -> None:
        """One step is done; ``numbers`` are the few to show (name -> text)."""
        now = time.perf_counter()
        self.rate.add(now - self._last)
        self._last, self._done = now, self._done + 1
        left = self._total - self._done
        shown = "  ".join(f"{name} {value}" for name, value in numbers.items())
        if self._bar and self._task is not None:
            self._bar.update(
                self._task, completed=self._done, note=f"{shown}  {self.rate.text()}  {self.rate.left(left)} left"
            )
        elif left == 0 or (self._done % self._every == 0 and now - self._line > self.LINE_SECONDS):
            self._line = now
            width = len(str(self._total))
            self._display.line(
                f"step {self._done:{width}d}/{self._total}  {shown}  {self.rate.text()}  {self.rate.left(left)} left"
            )

    def pause(self) -> None:
        """Time since the last step counts for nothing (a checkpoint was written)."""
        self._last = time.perf_counter()
