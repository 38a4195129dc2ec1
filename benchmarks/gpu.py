"""Prove and measure mim4d on a machine with a GPU: ``python -m benchmarks.gpu [all|PART ...]``, or ``make gpu``.

Parts, in order: build, test, sanitize, ceilings, bench, step; docs/gpu.md says what each does. They use the interpreter
that runs this and the torch it has, and fetch nothing. A part has ten minutes, and in bench each op has them: what is
running then is ended (``--limit``: another time); ``bench --op OP`` runs one. A part that fails does not keep the next
ones from running, but the exit status tells. Without a CUDA device it is 2.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import nvcc as compiler

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "gpu"
LIMIT = 600.0  # seconds of a part
MERCY = 20.0  # of them, for a program whose time is over to write down what it knows
WORKERS = 12  # of pytest-xdist at most; each holds a CUDA context
PROBE = 300.0  # seconds to ask for the GPU
CORE = ("torch", "numpy", "pytest")  # what must be there; the tests of other modules are named as absent
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
CUDA_BIN = "/usr/local/cuda/bin"  # where CUDA installs itself
FOUND = 99  # compute-sanitizer's exit status for an error that it found
PRESETS = {"mim4d": 40, "rtx3090": 22}  # GiB of GPU memory with which one step must fit
OUT_OF_MEMORY = 3  # exit status of benchmarks.step


@dataclass(frozen=True)
class Done:
    """What became of a program."""

    rc: int
    output: str
    expired: bool = False

    @property
    def why(self) -> str:
        """Its exit in words."""
        return "ran out of its time and was ended" if self.expired else f"exit status {self.rc}"

    @property
    def last(self) -> str:
        """The last line that it printed."""
        return next((line for line in reversed(self.output.splitlines()) if line.strip()), "")


@dataclass(frozen=True)
class Outcome:
    """What became of a part."""

    ok: bool
    words: str


@dataclass
class Context:
    """What every part is given."""

    facts: Mapping[str, Any]  # of benchmarks.gpu_cases
    results: Path
    logs: Path = LOGS
    python: str = sys.executable
    ops: tuple[str, ...] = ()  # of the benchmarks; none: all
    limit: float = LIMIT
    started: float = field(default_factory=time.monotonic)  # of the part

    @property
    def capability(self) -> str:
        return "{}.{}".format(*self.facts["capability"])

    def run(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> Done:
        """Run a program for as long as the part has time, showing what it prints and keeping it in a log."""
        left = self.limit - MERCY - (time.monotonic() - self.started)
        return execute(command, self.logs / f"{name}.log", left, environment)


def execute(command: list[str], log: Path, seconds: float, environment: Mapping[str, str] | None = None) -> Done:
    """Run a program in a process group of its own, which is ended as a whole when the time is over: first as by Ctrl-C,
    so that pytest still writes its report, then for good."""
    print(f"$ {' '.join(command)}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def listen() -> None:
        assert process.stdout is not None
        with log.open("w", encoding="utf-8") as file:
            for line in process.stdout:
                lines.append(line)
                file.write(line)
                sys.stdout.write(line)
                sys.stdout.flush()

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    expired = False
    try:
        process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        expired = True
        end(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(MERCY)
    finally:  # also when this program itself is interrupted, and for what the program has left behind
        end(process, signal.SIGKILL)
        process.wait()
    reader.join(5)
    return Done(process.returncode, "".join(lines), expired)


def end(process: subprocess.Popen[str], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


# --- build ------------------------------------------------------------------------------------------------------------


def missing_tools(python: str) -> list[str]:
    """What the build needs and does not find."""
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # where setup.py looks
    missing = [] if compiler.find_nvcc() else ["nvcc"]
    missing += [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool, path=path) is None]
    missing += [name for name in ("pip", "setuptools", "pybind11") if importlib.util.find_spec(name) is None]
    if "setuptools" not in missing and importlib.util.find_spec("wheel") is None:
        version = importlib.metadata.version("setuptools")
        if tuple(int(part) for part in version.split(".")[:2]) < (70, 1):
            missing.append(f"wheel (for setuptools {version})")
    return missing


def build_command(python: str) -> list[str]:
    return [python, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "-e", "."]


def build_environment(capability: str) -> dict[str, str]:
    return {"TORCH_CUDA_ARCH_LIST": capability, "MIM4D_BUILD": "cuda", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def part_build(context: Context) -> Outcome:
    missing = missing_tools(context.python)
    if missing:
        return Outcome(False, f"not found: {', '.join(missing)}")
    done = context.run("build", build_command(context.python), build_environment(context.capability))
    if done.rc or done.expired:
        return Outcome(False, f"pip install: {done.why}")
    done = context.run("check", [context.python, "-m", "benchmarks.gpu_cases", "check"])
    if done.rc or done.expired:
        faults = [line.removeprefix("WRONG: ") for line in done.output.splitlines() if line.startswith("WRONG: ")]
        return Outcome(False, f"the library does not serve this GPU: {'; '.join(faults) or done.why}")
    return Outcome(True, f"built for {context.capability}; every CUDA op gives what its float64 oracle gives")


# --- test -------------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """A junit report."""

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> tests
    absent: Counter[str] = field(default_factory=Counter)  # module that is not installed -> test files

    @property
    def on_cuda(self) -> int:
        """Passed tests of CUDA kernels, by the id that tests/helpers/cases.py gives their runs."""
        return sum(bool(re.search(r"[\[-]cuda[\]-]", name.replace("reference-cuda", ""))) for name in self.passed)


def test_command(python: str, junit: Path, workers: int) -> list[str]:
    options = ["-m", "gpu", "--continue-on-collection-errors", "-p", "no:cacheprovider", f"--junitxml={junit}"]
    shared = ["-n", str(workers), "--dist", "worksteal"] if workers else []
    return [python, "-m", "pytest", "tests", *options, *shared]


def test_workers() -> int:
    """Processes among which the tests are shared: most of a test is its oracle on the CPU and the compiler's time."""
    return min(WORKERS, len(os.sched_getaffinity(0))) if importlib.util.find_spec("xdist") else 0


def read_junit(path: Path) -> Report:
    report = Report()
    for case in ET.parse(path).getroot().iter("testcase"):
        name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
        bad = [*case.findall("failure"), *case.findall("error")]
        skip = case.find("skipped")
        if bad:
            text = f"{bad[0].get('message')}\n{bad[0].text}"
            module = re.findall(r"No module named '(\w+)|ModuleNotFoundError: .* needs (\w+)", text)
            module = ["".join(names) for names in module]  # ours, in words of our own, or the interpreter's
            if "collection failure" in text and module and is_extra(module[-1]):
                report.absent[module[-1]] += 1
            else:
                report.failed.append(name)
        elif skip is not None:
            report.skipped[str(skip.get("message"))] += 1
        else:
            report.passed.append(name)
    return report


def is_extra(module: str) -> bool:
    """Whether a module may be absent: it is not part of the core, nor a file of ours."""
    return module not in CORE and not any((ROOT / folder / module).exists() for folder in (".", "tests"))


def part_test(context: Context) -> Outcome:
    junit = context.logs / "test.xml"
    junit.unlink(missing_ok=True)
    command = test_command(context.python, junit, test_workers())
    done = context.run("test", command, {"OMP_NUM_THREADS": "2"})
    if not junit.exists():
        return Outcome(False, f"pytest: {done.why}, no report: {done.last}")
    report = read_junit(junit)
    for module, count in report.absent.items():
        print(f"absent: {module} is not installed, so {count} test file(s) were not read")
    for module, use in context.facts["absent"].items():
        print(f"absent: {module} ({use})")
    for reason, count in report.skipped.most_common():
        print(f"skipped, {count}: {reason}")
    words = f"{len(report.passed)} passed ({report.on_cuda} on CUDA kernels), {len(report.failed)} failed, "
    words += f"{report.skipped.total()} skipped"
    if report.absent:
        words += f", files without {', '.join(report.absent)} not read"
    if report.failed:
        words += f"; failed: {', '.join(report.failed[:5])}{' ...' if len(report.failed) > 5 else ''}"
    if done.expired or done.rc not in (0, 1):
        return Outcome(False, f"pytest: {done.why}; until then {words}")
    if not report.on_cuda:
        return Outcome(False, f"no test of a CUDA kernel ran: {words}")
    ok = not report.failed and (done.rc == 0 or bool(report.absent))
    return Outcome(ok, words)


# --- sanitize ---------------------------------------------------------------------------------------------------------


def find_sanitizer() -> str | None:
    places = [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = os.pathsep.join([os.environ.get("PATH", ""), *places, CUDA_BIN])
    return shutil.which("compute-sanitizer", path=folders)


def sanitizer_command(sanitizer: str, tool: str, log: Path, program: list[str]) -> list[str]:
    return [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--log-file", str(log), *program]


def verdict(done: Done, log: Path) -> tuple[int | None, str]:
    """How many errors compute-sanitizer found, None where it did not do its work, and why."""
    text = log.read_text(errors="replace") if log.exists() else ""
    counts = [int(n) for n in re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", text)]
    last = next((line for line in reversed((text or done.output).splitlines()) if line.strip("= \t")), "")
    if done.expired or not counts:
        return None, f"{done.why}; {last.strip('= ')}"
    if done.rc not in (0, FOUND) and not sum(counts):
        return None, f"the program itself failed, {done.why}"
    # An exit status that contradicts the summary is an error too: --error-exitcode is what others rely on.
    return max(sum(counts), int(done.rc == FOUND)), last.strip("= ")


def part_sanitize(context: Context) -> Outcome:
    sanitizer, nvcc = find_sanitizer(), compiler.find_nvcc()
    absent = [name for name, path in (("compute-sanitizer", sanitizer), ("nvcc", nvcc)) if path is None]
    if sanitizer is None or nvcc is None:
        return Outcome(False, f"not found: {', '.join(absent)}; nothing was checked")
    planted = context.logs / "gpu_planted"
    done = context.run("planted", planted_command(nvcc, planted, context.capability))
    if done.rc or done.expired:
        return Outcome(False, f"the planted faults do not compile: {done.why}")
    faults = []
    for tool in TOOLS:
        fault = sanitize_with(context, sanitizer, tool, planted)
        print(f"{tool}: {fault or 'finds the planted fault, and none in the kernels'}", flush=True)
        faults += [f"{tool}: {fault}"] if fault else []
    return Outcome(not faults, "; ".join(faults) or f"{', '.join(TOOLS)}: no error in the kernels of any op")


def planted_command(nvcc: str, out: Path, capability: str) -> list[str]:
    arch = capability.replace(".", "")
    flags = [*compiler.build_flags(), "-I", str(compiler.CSRC), f"-gencode=arch=compute_{arch},code=sm_{arch}"]
    return [nvcc, *flags, "-o", str(out), str(ROOT / "benchmarks" / "gpu_planted.cu")]


def sanitize_with(context: Context, sanitizer: str, tool: str, planted: Path) -> str | None:
    """What is wrong according to one tool, or with it."""
    # Each tensor is an allocation of its own: else a store behind it stays within torch's cache and is not seen.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    programs = {
        "faulty": [str(planted), tool, "faulty"],
        "healthy": [str(planted), tool, "healthy"],
        "ops": [context.python, "-m", "benchmarks.gpu_cases", "cases"],
    }
    for name, program in programs.items():
        log = context.logs / f"{tool}-{name}.txt"
        log.unlink(missing_ok=True)
        command = sanitizer_command(sanitizer, tool, log, program)
        done = context.run(f"{tool}-{name}", command, environment)
        errors, words = verdict(done, log)
        if errors is None:
            return f"could not check {name}: {words}"
        if name == "faulty":
            if not errors:
                return "does not find the planted fault: its silence would prove nothing"
        elif errors:
            return f"{errors} error(s) in {name}, see {log.name}: {words}"
        elif name == "ops" and not ran(done.output):
            return "the ops' small calls did not all run"
    return None


def ran(output: str) -> bool:
    """Whether gpu_cases reports calls of every op."""
    counts = [json.loads(found) for found in re.findall(r"^calls: (\{.*\})$", output, re.MULTILINE)]
    return bool(counts) and all(counts) and all(all(count.values()) for count in counts)


# --- ceilings, bench, step --------------------------------------------------------------------------------------------


def ceilings_command(python: str, results: Path) -> list[str]:
    return [python, "-m", "benchmarks.ceilings.ceilings", "--json", str(results)]


def bench_command(python: str, op: str, results: Path, plots: Path) -> list[str]:
    return [python, "-m", "benchmarks.run", op, "--device", "cuda", "--json", str(results), "--out", str(plots)]


def step_command(python: str, preset: str, results: Path) -> list[str]:
    return [python, "-m", "benchmarks.step", "--preset", preset, "--device", "cuda", "--json", str(results)]


def rows_in(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def measured(context: Context, name: str, command: list[str]) -> tuple[Done, list[dict[str, Any]]]:
    """Run a program that appends to the results; and the rows that it added."""
    before = len(rows_in(context.results))
    done = context.run(name, command)
    return done, rows_in(context.results)[before:]


def part_ceilings(context: Context) -> Outcome:
    done, rows = measured(context, "ceilings", ceilings_command(context.python, context.results))
    words = f"{len(rows)} ceilings measured, results exact"
    wrong = re.findall(r"^(.+?) +WRONG: .*$", done.output, re.MULTILINE)
    if done.rc or done.expired or not rows:
        return Outcome(False, f"{done.why}; {words}; wrong: {', '.join(wrong) or 'none'}")
    return Outcome(True, words)


def part_bench(context: Context) -> Outcome:
    """Each op in a process of its own with ten minutes of its own: one that crashes or takes long costs no other op
    its rows."""
    listed = context.run("bench-ops", [context.python, "-m", "benchmarks.gpu_cases", "ops"])
    if listed.rc or listed.expired:
        return Outcome(False, f"the benchmarks cannot be listed: {listed.why}: {listed.last}")
    known = json.loads(listed.last)
    unknown = sorted(set(context.ops) - set(known))
    if unknown:
        return Outcome(False, f"no benchmark of {', '.join(unknown)}; there are {', '.join(known)}")
    bad, words, on_cuda = [], [], 0
    for op in context.ops or known:
        context.started = time.monotonic()
        command = bench_command(context.python, op, context.results, context.logs / "bench" / op)
        done, rows = measured(context, f"bench-{op}", command)
        right = [row for row in rows if row.get("status") == "ok"]
        on_cuda += sum(row.get("backend") == "cuda" for row in right)
        words.append(f"{op} {len(right)}")
        if done.rc or done.expired or not right:
            bad.append(f"{op}: {done.why}")
    text = f"rows that are right: {', '.join(words)}; {on_cuda} of CUDA kernels"
    proven = on_cuda or context.ops  # an op may have no CUDA kernel yet; all of them together must have one
    return Outcome(bool(proven) and not bad, "; ".join([text, *bad]))


def part_step(context: Context) -> Outcome:
    memory = context.facts["memory"] / 2**30
    ok, words = True, []
    for preset, needs in PRESETS.items():
        done, rows = measured(context, f"step-{preset}", step_command(context.python, preset, context.results))
        if done.rc == 0 and rows:
            peak = rows[-1].get("peak_mb")
            words.append(f"{preset}: {rows[-1]['ms']:.0f} ms" + (f", {peak:.0f} MB" if peak else ""))
        elif done.rc == OUT_OF_MEMORY:
            words.append(f"{preset}: out of memory with {memory:.0f} GiB")
            ok = ok and memory < needs
        else:
            words.append(f"{preset}: {done.why}: {done.last}")
            ok = False
    return Outcome(ok and any(" ms" in word for word in words), "; ".join(words))


PARTS: dict[str, Callable[[Context], Outcome]] = {
    "build": part_build,
    "test": part_test,
    "sanitize": part_sanitize,
    "ceilings": part_ceilings,
    "bench": part_bench,
    "step": part_step,
}


# --- all --------------------------------------------------------------------------------------------------------------


def probe(python: str) -> Mapping[str, Any] | str:
    """The facts about this machine, or why there are none. In another process: a driver may hang, or end it."""
    command = [python, "-m", "benchmarks.gpu_cases", "facts"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PROBE, check=False)
    except subprocess.TimeoutExpired:
        return f"torch did not say within {PROBE:.0f} s whether there is a CUDA device"
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return f"{Path(python).name} cannot be asked about the GPU: {words[0]}"
    facts: dict[str, Any] = json.loads(lines[-1])
    if facts["device"] is None:
        return f"no CUDA device: torch {facts['torch']} (CUDA {facts['cuda']}) sees none"
    return facts


def run_parts(names: list[str], context: Context) -> dict[str, Outcome]:
    """The parts in turn, whatever becomes of each; a row of each beside the numbers, which mean little without it."""
    outcomes: dict[str, Outcome] = {}
    for name in names:
        print(f"\n=== {name} ===", flush=True)
        began = context.started = time.monotonic()
        try:
            outcomes[name] = PARTS[name](context)
        except Exception as error:  # a fault of ours in one part must not cost the others
            outcomes[name] = Outcome(False, f"{type(error).__name__}: {error}")
        seconds = time.monotonic() - began
        print(f"=== {name}: {'ok' if outcomes[name].ok else 'FAILED'} in {seconds:.0f} s: {outcomes[name].words}")
        note(context, {"kind": "part", "part": name, "seconds": seconds, **asdict(outcomes[name])})
    return outcomes


def note(context: Context, row: Mapping[str, Any]) -> None:
    """Append a row to the results, in another process: this one loads no torch."""
    command = [context.python, "-m", "benchmarks.gpu_cases", "note", "--json", str(context.results)]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(row), capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"the row of {row['part']} could not be kept: {done.stderr.strip().splitlines()[-1:]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all (the default), or some of {', '.join(PARTS)}")
    parser.add_argument("--results", type=Path, help="file for the rows (default: benchmarks/results/<device>.jsonl)")
    parser.add_argument("--logs", type=Path, default=LOGS, help="folder for logs (default: build/gpu)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for a part, and in bench for each op (600)")
    parser.add_argument("--op", nargs="+", default=[], help="ops of bench (default: all of them)")
    args = parser.parse_args(arguments)
    names = list(PARTS) if not args.parts or args.parts == ["all"] else args.parts
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are all, {', '.join(PARTS)}")
    facts = probe(sys.executable)
    if isinstance(facts, str):
        print(f"mim4d: {facts}", file=sys.stderr)
        return 2
    results = (args.results or Path(facts["results"])).resolve()
    logs = args.logs.resolve()
    print(f"{facts['device']} ({'.'.join(map(str, facts['capability']))}, {facts['memory'] / 2**30:.0f} GiB), ", end="")
    print(f"torch {facts['torch']}, Python {facts['python']}; rows go to {results}, logs to {logs}")
    outcomes = run_parts(names, Context(facts, results, logs, ops=tuple(args.op), limit=args.limit))
    print()
    for name, outcome in outcomes.items():
        print(f"{name:<10}{'ok' if outcome.ok else 'FAILED':<8}{outcome.words}")
    return 0 if all(outcome.ok for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
