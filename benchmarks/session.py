"""The rivals of one problem through their life: verified, built for a table, timed, verified again.

The process that prints the table has one :class:`Session`; the process of ``--base`` has another, with our own ops
alone.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import re
from typing import Any

import torch

from benchmarks import memory
from benchmarks.case import DIRECTIONS, Absent, Problem, Rival
from benchmarks.ops import ENTRIES
from benchmarks.timing import Local
from benchmarks.verify import Error, Verdict, compare, gate

_REFUSED = re.compile(r"was asked for and cannot run: (.*)", re.DOTALL)


@dataclasses.dataclass
class State:
    """What is known of a rival."""

    rival: Rival
    call: Any = None
    absent: str = ""  # why it cannot run
    wrong: str = ""  # why it gets no time
    lacks: dict[str, str] = dataclasses.field(default_factory=dict)  # direction -> why it has none
    verdicts: dict[str, Verdict] = dataclasses.field(default_factory=dict)  # by direction

    @property
    def right(self) -> bool:
        return not self.absent and not self.wrong


class Session:
    def __init__(self) -> None:
        self.problem: Problem
        self.states: dict[str, State] = {}
        self.runs: dict[tuple[str, str], Local] = {}

    # ---- requests, which the base's process gets as JSON

    def open(
        self, op: str, preset: str, device: str, dtype: str, only_ours: bool = True, compile: bool = False
    ) -> dict[str, dict[str, Any]]:
        """Make the inputs and the oracle, and verify every rival in every direction. Returns what became of each."""
        self.close()
        entry = ENTRIES[op]
        torch.manual_seed(0)
        self.problem = Problem(entry, preset, device, getattr(torch, dtype))
        rivals = [r for r in entry.rivals(device) if not only_ours or (r.backend and not r.compiled)]
        self.admit(rivals, compile or device in entry.presets[preset].compiled)
        return {name: self.summary(name) for name in self.states}

    def admit(self, rivals: list[Rival], compile: bool = True) -> None:
        """Verify rivals on the problem that is open."""
        self.states = {rival.name: State(rival) for rival in rivals}
        for state in self.states.values():
            if state.rival.compiled and not compile:
                state.absent = "compiling takes longer than all the rest here (--compile)"
            else:
                self._verify(state)

    def prepare(self, rival: str, direction: str) -> None:
        """Build what the clock does not count; measure peak memory later with :meth:`peak`."""
        state = self.states[rival]
        run = self.problem.run(state.rival, state.call, direction)
        run.once()  # another number of threads may compile anew
        self.runs[rival, direction] = Local(run)

    def peak(self, rival: str, direction: str) -> int:
        return memory.peak(self.runs[rival, direction].run)

    def sample(self, rival: str, direction: str, calls: int, cold: bool) -> float:
        return self.runs[rival, direction].sample(calls, cold)

    def recheck(self, rival: str, direction: str) -> str:
        """Why the newest timed call of a rival is wrong; an empty text when it is right."""
        run, state = self.runs[rival, direction].run, self.states[rival]
        found = compare(run.last or [], self.problem.answers[direction])
        verdict = state.verdicts[direction]
        state.verdicts[direction] = dataclasses.replace(verdict, error=verdict.error | found)
        if not found.within(self.problem.tolerance):
            state.wrong = f"right at first, wrong after it was timed ({direction}: {describe(found)})"
        elif not self.problem.untouched():
            self.problem.restore()
            state.wrong = f"it writes on its inputs ({direction})"
        elif dodge := run.dodges():
            state.wrong = f"{dodge} ({direction})"
        return state.wrong

    def release(self) -> None:
        """Forget the runs of a table, and the graphs that they hold."""
        self.runs.clear()
        gc.collect()

    def close(self) -> None:
        self.release()
        self.states.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def threads(self, count: int) -> None:
        torch.set_num_threads(count)

    def summary(self, rival: str) -> dict[str, Any]:
        """A state as JSON can carry it."""
        state = self.states[rival]
        verdicts = {
            d: {"error": [_finite(x) for x in dataclasses.astuple(v.error)], "first_s": v.first_s}
            for d, v in state.verdicts.items()
        }
        return {"absent": state.absent, "wrong": state.wrong, "verdicts": verdicts}

    # ---- inside

    def _verify(self, state: State) -> None:
        rival, problem = state.rival, self.problem
        ours = rival.backend is not None and not rival.compiled
        direction, before = "forward", settings()
        try:
            state.call = rival.make(problem.device)
            restore(before)  # what a package sets when it is imported
            for direction in problem.directions:
                if rival.order < DIRECTIONS[direction]:
                    continue
                run = problem.run(rival, state.call, direction)
                verdict = gate(run.once, problem.answers[direction], problem.device)
                state.verdicts[direction] = verdict
                if not verdict.error.within(problem.tolerance):
                    state.wrong = f"{direction}: {describe(verdict.error)}"
                elif not problem.untouched():
                    state.wrong = f"it writes on its inputs ({direction})"
                elif changed := [name for name, value in settings().items() if value != before[name]]:
                    state.wrong = f"it changes torch's {', '.join(changed)} for all others ({direction})"
                if state.wrong:
                    problem.restore()
                    return
        except Absent as reason:
            state.absent = str(reason)
        except Exception as error:  # one rival that breaks must not take the table with it
            refused = _REFUSED.search(str(error)) if rival.backend else None
            words = " ".join(str(error).split())[:200]
            failed = f"failed: {type(error).__name__}: {words}"
            if refused:
                state.absent = refused.group(1)
            elif ours and not isinstance(error, torch.cuda.OutOfMemoryError):
                state.wrong = failed
            elif direction == "forward":
                state.absent = failed
            else:  # an older torch has no second derivative of grid_sample: what it has is measured
                missing = [d for d in problem.directions if d not in state.verdicts and DIRECTIONS[d] <= rival.order]
                state.lacks = dict.fromkeys(missing, failed)
        finally:
            restore(before)


def settings() -> dict[str, Any]:
    """What a rival could change of torch, and so the times and results of all that follow it."""
    return {
        "number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "TF32": torch.backends.cuda.matmul.allow_tf32,
    }


def restore(found: dict[str, Any]) -> None:
    torch.set_num_threads(found["number of threads"])
    torch.use_deterministic_algorithms(found["deterministic algorithms"])
    torch.set_default_dtype(found["default dtype"])
    torch.set_grad_enabled(found["grad mode"])
    torch.backends.cuda.matmul.allow_tf32 = found["TF32"]


def describe(error: Error) -> str:
    return f"error {error.l2:.1e}, elements {error.element:.1e}" + (
        f", number {error.number:.1e}" if error.number else ""
    )


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def read_error(numbers: list[float | None]) -> Error:
    """An error that came as JSON, where infinite ones are null."""
    return Error(*(math.inf if x is None else x for x in numbers))
