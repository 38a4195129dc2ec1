"""One table: the rivals of a problem in one direction, timed in the same rounds, as rows for people and for the
record."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.base import Base, Remote
from benchmarks.roofline import Roofline
from benchmarks.session import Session, read_error
from benchmarks.timing import Timed, Times, interleave
from benchmarks.verify import Error

NOISY = 1.25  # spread from which a row is marked

Row = dict[str, Any]


def table(
    session: Session,
    direction: str,
    ceiling: Roofline,
    seconds: float = 0.25,
    base: Base | None = None,
    others: dict[str, dict[str, Any]] | None = None,
) -> list[list[Row]]:
    """Rows of every rival in a direction, the first being what ratios are to: warm, and on a GPU with a cold L2 cache
    too.

    ``others`` is what :meth:`Session.open` answered in the base's process.
    """
    problem = session.problem
    timed: dict[str, Timed] = {}
    peaks: dict[str, int] = {}
    remote = {f"{name} @{base.name}": name for name in others or {}} if base else {}
    try:
        for name, state in session.states.items():
            if state.right and direction in state.verdicts:
                session.prepare(name, direction)
                peaks[name], timed[name] = session.peak(name, direction), session.runs[name, direction]
        for shown, name in remote.items():
            assert base is not None
            if _right((others or {})[name]) and direction in (others or {})[name]["verdicts"]:
                base.ask("prepare", rival=name, direction=direction)
                peaks[shown] = base.ask("peak", rival=name, direction=direction)
                timed[shown] = Remote(base, name, direction)
        tables = []
        for cold in (False, True) if problem.device == "cuda" else (False,):
            times = interleave(timed, cold=cold, seconds=seconds)
            for name, state in session.states.items():
                if name in times:
                    state.wrong = state.wrong or session.recheck(name, direction)
            for shown, name in remote.items():
                if shown in times:
                    assert base is not None
                    (others or {})[name]["wrong"] = base.ask("recheck", rival=name, direction=direction)
            rows = [_row(session, name, direction) for name in session.states]
            rows += [_other(session, shown, (others or {})[name], direction) for shown, name in remote.items()]
            rows = [
                row for row in rows if row["status"] == "wrong" or row["rival"] in times or row["status"] == "absent"
            ]
            right = {row["rival"]: times[row["rival"]] for row in rows if row["status"] == "ok"}
            for row in rows:
                if row["status"] == "ok":
                    row.update(_numbers(session, row["rival"], right, direction, cold, ceiling, peaks))
                row["cache"] = "cold" if cold else "warm"
            tables.append(rows)
            timed = {name: t for name, t in timed.items() if name in right}
        return tables
    finally:
        session.release()
        if base:
            base.ask("release")


def _row(session: Session, name: str, direction: str) -> Row:
    state = session.states[name]
    absent = state.absent or state.lacks.get(direction, "")
    status = "wrong" if state.wrong else "absent" if absent else "ok"
    verdict = state.verdicts.get(direction)
    row = _what(session, name, direction, status, state.wrong or absent, verdict and verdict.error)
    return {**row, "backend": state.rival.backend, "first_s": verdict.first_s if verdict else None}


def _other(session: Session, shown: str, answer: dict[str, Any], direction: str) -> Row:
    status = "absent" if answer["absent"] else "wrong" if answer["wrong"] else "ok"
    verdict = answer["verdicts"].get(direction)
    error = read_error(verdict["error"]) if verdict else None
    row = _what(session, shown, direction, status, answer["absent"] or answer["wrong"], error)
    backend = shown.split()[1].rstrip(",")
    return {**row, "backend": backend, "first_s": verdict["first_s"] if verdict else None}


def _what(session: Session, rival: str, direction: str, status: str, why: str, error: Error | None) -> Row:
    problem = session.problem
    worst = max(error.l2, error.element, error.number) if error else math.nan
    return {
        "op": problem.entry.op,
        "preset": problem.preset,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "direction": direction,
        "rival": rival,
        "shapes": problem.shapes(),
        "status": status,
        "why": why,
        "error": error.l2 if error and math.isfinite(worst) else None,
        "allowed": problem.tolerance.l2,
    }


def _numbers(
    session: Session,
    name: str,
    right: dict[str, Times],
    direction: str,
    cold: bool,
    ceiling: Roofline,
    peaks: dict[str, int],
) -> Row:
    problem, mine = session.problem, right[name]
    first = next(iter(right))
    moved, flops = problem.bytes(direction), problem.flops(direction)
    kind, copy = ceiling.bandwidth(moved, cold)
    return {
        "ms": mine.best * 1e3,
        **{f"ms_p{q}": mine.quantile(q / 100) * 1e3 for q in (20, 50, 80)},
        "spread": mine.spread,
        "noisy": mine.spread > NOISY,
        "rounds": len(mine.samples),
        "calls": mine.calls,
        "warm_up_s": mine.warm_up_s,
        "ratio": right[first].best / mine.best,
        "ratio_to": first,
        "ratio_p20": right[first].quantile(0.2) / mine.quantile(0.8),
        "ratio_p80": right[first].quantile(0.8) / mine.quantile(0.2),
        "peak_mb": peaks[name] / 1e6,
        "bytes": moved,
        "flops": flops,
        "gb_s": moved / mine.best / 1e9,
        "copy_gb_s": copy / 1e9,
        "copy_of": kind,
        "fraction": moved / mine.best / copy,
        "gflop_s": flops / mine.best / 1e9,
        "peak_gflop_s": ceiling.flops / 1e9,
        "flop_fraction": flops / mine.best / ceiling.flops if ceiling.compute_bound(flops, moved) else None,
    }


def _right(answer: dict[str, Any]) -> bool:
    return not answer["absent"] and not answer["wrong"]
