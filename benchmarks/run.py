"""Time the ops: ``python -m benchmarks.run [voxel_sample ...]``, which is also ``make bench`` and ``mim4d bench``.

Every rival is first compared with an oracle in float64, results and gradients; a wrong one gets no time, is printed in
red, and the command ends with 1. Rivals take turns; ratios are to the first row of a table, more than 1 is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks import record, roofline, timing
from benchmarks.base import Base
from benchmarks.case import DIRECTIONS
from benchmarks.ops import ENTRIES
from benchmarks.report import Report
from benchmarks.session import Session
from benchmarks.table import table
from mim4d.errors import UserError, did_you_mean

DTYPES = {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}
KNOWN_DTYPES = ("float32", "float64", "float16", "bfloat16")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists all)")


def parser(prog: str) -> argparse.ArgumentParser:
    made = _Parser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    presets = "\n".join(
        f"  {op}: {', '.join(p + ''.join(f' [{d}]' for d in entry.presets[p].devices) for p in entry.presets)}"
        for op, entry in ENTRIES.items()
    )
    made.epilog = f"presets, and the devices where they are the default:\n{presets}"
    made.add_argument("ops", nargs="*", metavar="OP", help=f"which ops (default: all of {', '.join(ENTRIES)})")
    made.add_argument("--preset", nargs="+", metavar="NAME", help="which inputs (default: those of the device, below)")
    made.add_argument("--direction", nargs="+", choices=tuple(DIRECTIONS), help="default: all but chain")
    made.add_argument("--dtype", nargs="+", choices=KNOWN_DTYPES, help="default: float32; on a GPU bfloat16 too")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--threads", nargs="+", type=int, help="CPU threads (default: one, and all cores)")
    made.add_argument("--seconds", type=float, help="for each rival in a table (default: 0.1, on a GPU 0.25)")
    made.add_argument("--compile", action="store_true", help="torch.compile wherever it is a rival: minutes on a CPU")
    made.add_argument("--base", metavar="REF", help="measure this git revision in the same rounds, as one more rival")
    made.add_argument("--json", type=Path, metavar="FILE", help="append the rows to a file, one JSON object a line")
    made.add_argument("--save", action="store_true", help="append them to benchmarks/results/<device>.jsonl")
    made.add_argument("--revision", help="what the rows call the revision where there is no git")
    made.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the plot (default: runs/bench)")
    made.add_argument("--no-plot", action="store_true", help="no plot")
    return made


def plan(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(op, preset, dtype) of every problem that was asked for."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here")
    for op in options.ops:
        if op not in ENTRIES:
            raise UserError(f"no benchmark of {op}{did_you_mean(op, ENTRIES)} (there are {', '.join(ENTRIES)})")
    chosen = options.ops or list(ENTRIES)
    known = {preset for op in chosen for preset in ENTRIES[op].presets}
    for preset in options.preset or ():
        if preset not in known:
            raise UserError(f"no preset {preset}{did_you_mean(preset, known)} (there are {', '.join(sorted(known))})")
    problems = []
    for op in chosen:
        for name, preset in ENTRIES[op].presets.items():
            wanted = name in options.preset if options.preset else options.device in preset.devices
            if wanted:
                problems += [(op, name, dtype) for dtype in options.dtype or DTYPES[options.device]]
    return problems


def bench(options: argparse.Namespace, report: Report, rows: list[dict[str, Any]]) -> None:
    """Measure everything that was asked for; prints tables, adds to the rows."""
    problems, cores = plan(options), roofline.cores()
    threads = options.threads or sorted({1, cores})
    if options.device == "cuda":
        threads = [torch.get_num_threads()]
    if min(threads) < 1:
        raise UserError("--threads takes numbers from 1 on")
    seconds = {"cpu": 0.1, "cuda": 0.25}[options.device] if options.seconds is None else options.seconds
    warning = timing.busy(options.device, cores)
    if warning:
        report.warn(f"{warning}: do not trust close ratios")
    newer = record.outdated()
    if newer:
        report.warn(f"{newer} is newer than the libraries that are measured: `make setup` builds them")
    before, session = torch.get_num_threads(), Session()
    ceilings: dict[int, roofline.Roofline] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        stack.callback(session.close)
        base = stack.enter_context(Base(options.base, options.device)) if options.base else None
        facts = record.environment(options.device, options.revision)
        report.facts(facts, base and f"{base.name}: {base.note}")
        stack.enter_context(report.progress(len(problems)))
        for op, preset, dtype in problems:
            report.step(f"{op} {preset} {dtype}")
            what = {"op": op, "preset": preset, "device": options.device, "dtype": dtype}
            try:
                session.open(**what, only_ours=False, compile=options.compile)
            except torch.cuda.OutOfMemoryError as error:
                report.warn(f"{op} {preset} {dtype}: not measured, the oracle does not fit into memory ({error})")
                continue
            others = base.ask("open", **what) if base else {}
            report.problem(ENTRIES[op].presets[preset].what, session, others, base)
            for count in threads:
                session.threads(count)
                if base:
                    base.ask("threads", count=count)
                ceiling = roofline.measure(options.device, quick=preset == "tiny")
                # More threads reach no less, and a rate that was reached before was no mistake.
                known = [ceilings[other] for other in ceilings if other <= count]
                ceilings[count] = ceiling = functools.reduce(operator.or_, known, ceiling)
                for direction in session.problem.directions:
                    if direction not in (options.direction or [d for d in DIRECTIONS if d != "chain"]):
                        continue
                    found = table(session, direction, ceiling, seconds, base, others)
                    for group in found:
                        report.table(group, None if options.device == "cuda" else count)
                        rows += [{**facts, "threads": count, "kind": "op", **row} for row in group]


def struck(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the times that a rival had before it was found out on the same problem."""
    whose = ("op", "preset", "dtype", "rival")
    found = {tuple(row[k] for k in whose): row["why"] for row in reversed(rows) if row["status"] == "wrong"}
    without = {key for row in rows if row["status"] == "wrong" for key in row}
    return [
        {**{k: v for k, v in row.items() if k in without}, "status": "wrong", "why": found[who]}
        if row["status"] == "ok" and (who := tuple(row[k] for k in whose)) in found
        else row
        for row in rows
    ]


def main(arguments: Sequence[str] | None = None, prog: str = "python -m benchmarks.run") -> int:
    """Raises UserError for what the user got wrong. Returns 1 if any rival is wrong."""
    options = parser(prog).parse_args(arguments)
    report = Report()
    rows: list[dict[str, Any]] = []
    try:
        bench(options, report, rows)
    finally:  # also of a run that is interrupted, or that one case brings down
        rows = struck(rows)
        for path in (options.json, record.results_file(options.device) if options.save else None):
            if path is not None and rows:
                record.append(path, rows)
                report.say(f"{len(rows)} rows were added to {path}")
    if not options.no_plot and any(row["status"] == "ok" for row in rows):
        try:
            from benchmarks.plot import plot
        except ImportError as error:
            report.warn(f"no plot: {error.name} is not installed")
        else:
            written = plot(rows, options.out)
            report.say("wrote " + " and ".join(map(str, written)))
    wrong = sorted({(row["op"], row["rival"]) for row in rows if row["status"] == "wrong"})
    report.end(rows, wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        sys.exit(130)
