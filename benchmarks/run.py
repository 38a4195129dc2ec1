"""Time the ops: ``python -m benchmarks.run [voxel_sample ...] [--preset rays] [--threads 1 2] [--json FILE]``.

Every rival is first compared with an oracle in float64; a wrong one gets no time. Rivals take turns and the best of the
repetitions counts. Ratios are to the first row of a table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.case import Case, best_times, error
from benchmarks.ops import voxel_sample
from mim4d import _library, backends

OPS = {"voxel_sample": voxel_sample}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def environment(device: str) -> dict[str, str]:
    """What a row needs to be understood later."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "cpu_isa": str(backends.status()["cpu_isa"]),
        "torch": torch.__version__,
        "revision": _library.build_info().get("revision", "not built"),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def measure(case: Case, threads: int, repeat: int, device: str) -> list[dict[str, object]]:
    """The rows of one table; prints it."""
    print(f"\n{case.op} {case.preset} {case.direction}, {threads} thread{'s' if threads > 1 else ''}")
    oracle = case.oracle()
    errors = {name: error(run(), oracle) for name, run in case.rivals.items()}
    right = {name: run for name, run in case.rivals.items() if errors[name] <= case.tolerance}
    best = best_times(right, repeat, device)
    rows: list[dict[str, object]] = []
    for name in case.rivals:
        if name not in best:
            print(f"  {name:<28} error {errors[name]:.1e}, allowed {case.tolerance:.0e}: no time")
            continue
        ratio = best[next(iter(best))] / best[name]
        rate = case.bytes / best[name] / 1e9
        print(f"  {name:<28}{best[name] * 1e3:9.3f} ms {ratio:7.2f} x {rate:8.2f} GB/s   error {errors[name]:.1e}")
        rows.append(
            {
                **{"op": case.op, "preset": case.preset, "direction": case.direction, "rival": name},
                **{"threads": threads, "ms": best[name] * 1e3, "ratio": ratio, "gb_s": rate, "error": errors[name]},
            }
        )
    return rows


def main() -> int:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"which ops (default: all of {', '.join(OPS)})")
    parser.add_argument("--preset", nargs="+", help="which inputs (default: all but tiny)")
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, cores}), help="CPU threads")
    parser.add_argument("--repeat", type=int, default=20, help="repetitions, of which the best counts")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="append the rows to this file, one JSON object a line")
    args = parser.parse_args()
    unknown = sorted(set(args.ops) - set(OPS))
    if unknown:
        parser.error(f"no benchmark of {', '.join(unknown)}; there are {', '.join(OPS)}")

    facts = environment(args.device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    rows: list[dict[str, object]] = []
    for op in args.ops or OPS:
        presets = OPS[op].PRESETS
        for preset in args.preset or [p for p in presets if p != "tiny"]:
            if preset not in presets:
                parser.error(f"{op} has no preset {preset}; it has {', '.join(presets)}")
            for case in OPS[op].cases(preset, args.device):
                for threads in [1] if args.device == "cuda" else args.threads:
                    torch.set_num_threads(threads)
                    rows += measure(case, threads, args.repeat, args.device)
    if args.json:
        with args.json.open("a") as file:
            file.writelines(json.dumps({**facts, **row}) + "\n" for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
