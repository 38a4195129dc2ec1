"""``make gpu`` as far as it can be proven without a GPU: how each part calls its programs and judges what they do."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import gpu, gpu_cases, run, step  # noqa: E402
from benchmarks import nvcc as compiler  # noqa: E402
from benchmarks.ceilings import ceilings  # noqa: E402
from mim4d.errors import UserError  # noqa: E402

NVCC = compiler.find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
FACTS = {"device": "Toy GPU", "capability": [9, 0], "memory": 24 * 2**30, "absent": {}, "torch": "2.11", "python": "3"}


@pytest.fixture
def context(tmp_path: Path) -> gpu.Context:
    return gpu.Context(FACTS, tmp_path / "rows.jsonl", tmp_path / "logs")


def script(path: Path, text: str) -> Path:
    """A program: Python with this text, which sees its words as ``words``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -S\nimport json, os, sys\nwords = sys.argv[1:]\n{text}\n")
    path.chmod(0o755)
    return path


# --- the whole --------------------------------------------------------------------------------------------------------


def test_without_a_gpu_there_is_one_line_and_status_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"mim4d: no CUDA device: torch {torch.__version__}")
    assert done.stderr.count("\n") == 1


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.main(["sanitise"])
    assert stop.value.code == 2
    assert "no part sanitise; there are all, build, test, sanitize" in capsys.readouterr().err


def test_a_python_without_torch_says_so(tmp_path: Path) -> None:
    broken = script(tmp_path / "python3", "sys.exit(\"No module named 'torch'\")")
    assert gpu.probe(str(broken)) == "python3 cannot be asked about the GPU: No module named 'torch'"


def test_a_hanging_driver_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PROBE", 0.5)
    hanging = script(tmp_path / "python3", "import time; time.sleep(60)")
    assert "did not say within" in str(gpu.probe(str(hanging)))


def test_every_part_runs_and_one_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(context: gpu.Context) -> gpu.Outcome:
        raise ValueError("a fault of ours")

    good = lambda context: gpu.Outcome(True, "fine")
    facts = {**FACTS, "results": str(tmp_path / "toy-gpu.jsonl")}
    monkeypatch.setattr(gpu, "probe", lambda python: facts)
    monkeypatch.setattr(gpu, "note", lambda context, row: notes.append(row))
    notes: list[dict[str, Any]] = []
    for middle, rc in ((good, 0), (breaks, 1), (lambda context: gpu.Outcome(False, "no"), 1)):
        notes.clear()
        monkeypatch.setattr(gpu, "PARTS", {"build": good, "test": middle, "step": good})
        for arguments in ([], ["all"]):
            assert gpu.main([*arguments, "--logs", str(tmp_path)]) == rc
        assert [row["part"] for row in notes] == ["build", "test", "step"] * 2
        assert [row["ok"] for row in notes[:3]] == [True, rc == 0, True]
        assert ("test      FAILED" in capsys.readouterr().out) == bool(rc)
    assert gpu.main(["build", "--logs", str(tmp_path)]) == 0


def test_the_outcome_of_a_part_is_kept_with_its_provenance(context: gpu.Context, capsys: Any, monkeypatch: Any) -> None:
    row = {"kind": "part", "part": "test", "ok": True, "words": "3 passed", "seconds": 1.5}
    monkeypatch.setattr(sys, "stdin", [json.dumps(row)])
    assert gpu_cases.main(["note", "--backend", "cpu", "--json", str(context.results)]) == 0
    (kept,) = gpu.rows_in(context.results)
    assert {key: kept[key] for key in row} == row
    assert kept["torch"] == torch.__version__
    assert kept["revision"]
    gpu.note(replace(context, python=str(script(context.logs / "python", "sys.exit('no disk')"))), row)
    assert "could not be kept: ['no disk']" in capsys.readouterr().out


# --- time -------------------------------------------------------------------------------------------------------------


def gone(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def wait_until(what: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    return what()


@pytest.mark.parametrize("stubborn", [False, True], ids=["obeys", "stubborn"])
def test_a_part_ends_in_its_time_with_all_its_processes(
    stubborn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program has a child, and may ignore the request to end."""
    monkeypatch.setattr(gpu, "MERCY", 1.0)
    ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN)" if stubborn else ""
    program = script(
        tmp_path / "program",
        f"""
import signal, subprocess, time
{ignore}
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("report written", flush=True)
""",
    )
    done = gpu.execute([str(program)], tmp_path / "log", 4.0)  # on a busy machine Python takes a second to start
    assert done.expired
    assert done.why == "ran out of its time and was ended"
    assert ("report written" in done.output) != stubborn
    assert (tmp_path / "log").read_text() == done.output
    child = int(done.output.split()[0])
    assert wait_until(lambda: gone(child))
    if stubborn:
        assert done.rc == -signal.SIGKILL


def test_the_time_of_a_part_is_shared_by_its_programs(context: gpu.Context, tmp_path: Path) -> None:
    program = script(tmp_path / "program", "print('here')")
    assert context.run("first", [str(program)]).rc == 0
    context.started -= gpu.LIMIT
    assert context.run("second", [str(program)]).expired


# --- build ------------------------------------------------------------------------------------------------------------


def test_the_build_fetches_nothing_and_wants_cuda() -> None:
    command = gpu.build_command("python3")
    assert command[:4] == ["python3", "-m", "pip", "install"]
    assert {"--no-index", "--no-deps", "--no-build-isolation"} < set(command)
    assert command[-2:] == ["-e", "."]
    environment = gpu.build_environment(gpu.Context(FACTS, Path(), Path()).capability)
    assert environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert environment["MIM4D_BUILD"] == "cuda"  # without nvcc an error, not a build without kernels


def test_what_the_build_misses_is_named(context: gpu.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "find_nvcc", lambda: None)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "pybind11" else object())
    monkeypatch.setenv("PATH", str(tmp_path))
    context.python = str(script(tmp_path / "cmake", ""))
    outcome = gpu.part_build(context)
    assert outcome == gpu.Outcome(False, "not found: nvcc, ninja, c++, pybind11")


@pytest.mark.parametrize(
    "pip, check, wanted",
    [
        ("", "", "built for 9.0"),
        ("sys.exit(3)", "", "pip install: exit status 3"),
        (
            "",
            "print('WRONG: ops_cuda: no such symbol'); sys.exit(1)",
            "does not serve this GPU: ops_cuda: no such symbol",
        ),
        ("", "os.abort()", "does not serve this GPU: exit status -6"),
    ],
    ids=["good", "pip fails", "library fails", "library aborts"],
)
def test_build(
    pip: str, check: str, wanted: str, context: gpu.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    body = f"""
if "pip" in words:
    open({str(said)!r}, "w").write(os.environ["TORCH_CUDA_ARCH_LIST"])
    {pip or "pass"}
else:
    {check or "pass"}
"""
    monkeypatch.setattr(gpu, "missing_tools", lambda python: [])
    context.python = str(script(tmp_path / "python", body))
    outcome = gpu.part_build(context)
    assert outcome.ok == wanted.startswith("built")
    assert wanted in outcome.words
    assert said.read_text() == "9.0"


# --- test -------------------------------------------------------------------------------------------------------------

SUITE = {
    "test_kernels.py": """
        import pytest
        @pytest.mark.gpu
        @pytest.mark.parametrize("run", ["reference-cuda", "cuda", "triton"])
        def test_op(run):
            if run == "triton":
                pytest.skip("no Triton kernel is written")
        @pytest.mark.gpu
        def test_other():
            assert FAILS == "no"
        def test_without_a_gpu():
            assert False
    """,
    "test_extra.py": "import a_module_that_nobody_has",
}


def junit_of(folder: Path, suite: dict[str, str]) -> tuple[gpu.Done, Path]:
    """What pytest itself, called as the part does, reports of such a suite."""
    folder.mkdir()
    for name, text in suite.items():
        lines = text.splitlines()
        (folder / name).write_text("\n".join(line.removeprefix("        ") for line in lines))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: x\n")
    junit = folder / "report.xml"
    command = gpu.test_command(sys.executable, junit, 0)
    command[command.index("tests")] = str(folder)
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return gpu.Done(done.returncode, done.stdout), junit


def test_the_suite_is_shared_where_xdist_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert gpu.test_command("python3", tmp_path / "x", 3)[-4:] == ["-n", "3", "--dist", "worksteal"]
    assert "-n" not in gpu.test_command("python3", tmp_path / "x", 0)
    assert 1 <= gpu.test_workers() <= gpu.WORKERS
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert gpu.test_workers() == 0


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[gpu.Done, Path]]:
    folder = tmp_path_factory.mktemp("suites")
    good = SUITE["test_kernels.py"].replace("FAILS", "'no'")
    suites = {
        "good": {"test_kernels.py": good},
        "failing": {"test_kernels.py": good.replace('== "no"', '== "yes"')},
        "extra absent": {**SUITE, "test_kernels.py": good},
        "told in our words": {
            "test_kernels.py": good,
            "test_world.py": "raise ModuleNotFoundError('this needs a_module_that_nobody_has: pip install it')",
        },
        "ours absent": {"test_kernels.py": good, "test_ours.py": "import mim4d.a_module_that_we_lack"},
        "no kernel": {"test_kernels.py": good.replace('run == "triton"', '"cuda" == run or run == "triton"')},
        "nothing": {"test_kernels.py": "def test_without_a_gpu(): pass"},
    }
    return {name: junit_of(folder / name, suite) for name, suite in suites.items()}


@pytest.mark.parametrize(
    "suite, ok, words",
    [
        ("good", True, "3 passed (1 on CUDA kernels), 0 failed, 1 skipped"),
        ("failing", False, "1 failed, 1 skipped; failed: test_kernels.test_other"),
        ("extra absent", True, "files without a_module_that_nobody_has not read"),
        ("told in our words", True, "files without a_module_that_nobody_has not read"),
        ("ours absent", False, "1 failed"),
        ("no kernel", False, "no test of a CUDA kernel ran: 2 passed"),
        ("nothing", False, "pytest: exit status 5"),
    ],
)
def test_what_pytest_reports_is_judged(
    suite: str,
    ok: bool,
    words: str,
    reports: dict[str, tuple[gpu.Done, Path]],
    context: gpu.Context,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done, junit = reports[suite]

    def run(self: gpu.Context, name: str, command: list[str], environment: Any = None) -> gpu.Done:
        context.logs.mkdir()
        shutil.copy(junit, context.logs / "test.xml")
        return done

    monkeypatch.setattr(gpu.Context, "run", run)
    outcome = gpu.part_test(replace(context, facts={**FACTS, "absent": {"timm": "the step"}}))
    assert outcome.ok == ok, outcome.words
    assert words in outcome.words
    out = capsys.readouterr().out
    assert "absent: timm (the step)" in out
    assert ("absent: a_module_that_nobody_has is not installed" in out) == (
        suite in ("extra absent", "told in our words")
    )


def test_pytest_that_dies_or_runs_out_of_time_has_not_passed(
    context: gpu.Context, reports: dict[str, tuple[gpu.Done, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.Context, "run", lambda self, *args: gpu.Done(1, "No module named pytest\n"))
    assert gpu.part_test(context) == gpu.Outcome(False, "pytest: exit status 1, no report: No module named pytest")
    context.logs.mkdir()

    def expires(self: gpu.Context, *args: Any) -> gpu.Done:
        shutil.copy(reports["good"][1], context.logs / "test.xml")
        return gpu.Done(2, "", expired=True)

    monkeypatch.setattr(gpu.Context, "run", expires)
    outcome = gpu.part_test(context)
    assert not outcome.ok
    assert "ran out of its time and was ended; until then 3 passed" in outcome.words


# --- sanitize ---------------------------------------------------------------------------------------------------------

# A compute-sanitizer that finds what is planted and nothing else, unless its name in the environment says otherwise.
SANITIZER = """
tool, log, status = (words[words.index(name) + 1] for name in ("--tool", "--log-file", "--error-exitcode"))
name = "faulty" if words[-1] == "faulty" else "healthy" if words[-1] == "healthy" else "ops"
fault = os.environ["FAULT"]
if fault == "refuses":
    open(log, "w").write("========= Error: Device not supported\\n")
    sys.exit(255)
errors = {"faulty": 1, "healthy": 0, "ops": 0}[name]
if (fault, name) in (("alarm", "ops"), ("nervous", "healthy"), ("quiet", "ops")):
    errors = 2
if fault == "blind":
    errors = 0
kind = f"RACECHECK SUMMARY: {errors} hazards displayed ({errors} errors, 0 warnings)"
if tool != "racecheck":
    kind = f"ERROR SUMMARY: {errors} errors"
open(log, "w").write(f"========= COMPUTE-SANITIZER\\n========= {kind}\\n")
if name == "ops":
    assert os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    if fault != "crash":
        print("calls: " + json.dumps({"voxel_sample": 0 if fault == "idle" else 56}))
    if fault == "crash":
        sys.exit(1)
sys.exit(int(status) if errors and fault != "quiet" else 0)
"""


@pytest.fixture
def sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script(tmp_path / "bin" / "nvcc", "open(words[words.index('-o') + 1], 'w')")
    found = script(tmp_path / "bin" / "compute-sanitizer", SANITIZER)
    for name in ("CUDA_HOME", "CUDA_PATH", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(gpu, "CUDA_BIN", "")
    return found


@pytest.mark.parametrize(
    "fault, words",
    [
        ("", "memcheck, racecheck, initcheck, synccheck: no error in the kernels of any op"),
        ("alarm", "memcheck: 2 error(s) in ops, see memcheck-ops.txt: ERROR SUMMARY: 2 errors"),
        ("nervous", "2 error(s) in healthy"),
        ("quiet", "2 error(s) in ops"),  # an exit status of 0 beside errors in the log
        ("blind", "does not find the planted fault: its silence would prove nothing"),
        ("refuses", "could not check faulty: exit status 255; Error: Device not supported"),
        ("idle", "the ops' small calls did not all run"),
        ("crash", "could not check ops: the program itself failed, exit status 1"),
    ],
    ids=lambda value: value.partition(" ")[0] or "clean" if isinstance(value, str) else None,
)
def test_sanitize(
    fault: str, words: str, context: gpu.Context, sanitizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", fault)
    if fault:
        monkeypatch.setattr(gpu, "TOOLS", ("memcheck",))
    outcome = gpu.part_sanitize(context)
    assert outcome.ok == (not fault), outcome.words
    assert words in outcome.words


def test_without_compute_sanitizer_nothing_passes(
    context: gpu.Context, sanitizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sanitizer.unlink()
    monkeypatch.setenv("PATH", str(sanitizer.parent))
    outcome = gpu.part_sanitize(context)
    assert outcome == gpu.Outcome(False, "not found: compute-sanitizer; nothing was checked")


@needs_nvcc
def test_the_planted_faults_compile_and_want_a_gpu(tmp_path: Path) -> None:
    command = gpu.planted_command(str(NVCC), tmp_path / "planted", "9.0")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for tool in gpu.TOOLS:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        words = [str(tmp_path / "planted"), tool, "healthy"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith(f"{tool} healthy: ")


def test_the_ops_calls_run_forward_and_backward() -> None:
    """On the CPU's kernels: the same program that runs under compute-sanitizer."""
    done = gpu_cases.run_calls("cpu", "cpu")
    assert {"voxel_sample"} <= set(done)
    assert min(done.values()) >= 10
    assert gpu.ran(f"calls: {json.dumps(done)}")
    assert not gpu.ran("calls: {}")
    assert not gpu.ran("")


def test_an_op_without_a_call_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_cases, "calls", lambda *args: iter(()))
    assert gpu_cases.main(["cases", "--backend", "cpu"]) == 1
    assert not gpu.ran(capsys.readouterr().out)


def test_a_wrong_answer_of_the_built_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_cases.faults_of_answers("cpu", "cpu") == []
    (info, *_) = gpu_cases.with_kernel("cpu")

    @functools.wraps(info.function)
    def wrong(**arguments: Any) -> torch.Tensor:
        return info.function(**arguments) * 1.001

    monkeypatch.setattr(gpu_cases, "with_kernel", lambda backend: [replace(info, function=wrong)])
    (fault,) = gpu_cases.faults_of_answers("cpu", "cpu")
    assert fault.startswith(f"{info.op}: AssertionError")


# --- bench and step as parts ------------------------------------------------------------------------------------------

ROW = {"op": "voxel_sample", "ms": 7.0, "status": "ok", "backend": "cuda"}
APPENDS = f"open(words[words.index('--json') + 1], 'a').write(json.dumps({ROW}) + '\\n')"


@pytest.mark.parametrize(
    "body, ok, words",
    [
        (APPENDS, True, "1 ceilings measured"),
        ("pass", False, "exit status 0; 0 "),
        (
            f"{APPENDS}; print('fma      float32     WRONG: 3 of 4'); sys.exit(1)",
            False,
            "exit status 1; 1 ceilings measured, results exact; wrong: fma      float32",
        ),
    ],
    ids=["good", "no row", "wrong"],
)
def test_ceilings(body: str, ok: bool, words: str, context: gpu.Context, tmp_path: Path) -> None:
    context.results.write_text('{"op": "an older row"}\n')
    context.python = str(script(tmp_path / "python", body))
    outcome = gpu.part_ceilings(context)
    assert outcome.ok == ok
    assert outcome.words.startswith(words)


@pytest.mark.parametrize(
    "second, ok, words",
    [
        (APPENDS, True, "rows that are right: first 1, second 1; 2 of CUDA kernels"),
        (APPENDS.replace("cuda", "reference"), True, "first 1, second 1; 1 of CUDA kernels"),
        (f"{APPENDS.replace('ok', 'wrong')}; sys.exit(1)", False, "first 1, second 0; 1 of CUDA kernels; second: exit"),
        ("os.abort()", False, "second: exit status -6"),
        ("pass", False, "second: exit status 0"),
        ("import time; time.sleep(60)", False, "second: ran out of its time"),
    ],
    ids=["good", "no kernel", "wrong", "aborts", "no row", "hangs"],
)
def test_bench(
    second: str, ok: bool, words: str, context: gpu.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ops; what becomes of the second does not touch the rows of the first."""
    body = f"""
if "ops" in words:
    print('["first", "second"]')
elif "first" in words:
    {APPENDS}
else:
    {second}
"""
    context.python = str(script(tmp_path / "python", body))
    if "sleep" in second:
        monkeypatch.setattr(gpu, "MERCY", 0.2)
        context.limit = 5.0
    outcome = gpu.part_bench(context)
    assert outcome.ok == ok, outcome.words
    assert words in outcome.words
    assert len(gpu.rows_in(context.results)) >= 1


def test_benchmarks_without_a_cuda_kernel_have_not_passed(context: gpu.Context, tmp_path: Path) -> None:
    body = f"if 'ops' in words: print('[\"only\"]')\nelse: {APPENDS.replace('cuda', 'reference')}"
    context.python = str(script(tmp_path / "python", body))
    assert gpu.part_bench(context) == gpu.Outcome(False, "rows that are right: only 1; 0 of CUDA kernels")
    context.python = str(script(tmp_path / "python", "sys.exit('no such module')"))
    outcome = gpu.part_bench(context)
    assert outcome == gpu.Outcome(False, "the benchmarks cannot be listed: exit status 1: no such module")


def test_one_op_of_the_benchmarks(context: gpu.Context, tmp_path: Path) -> None:
    """Alone it needs no CUDA kernel; all of them together do. Each op has the whole time of a part."""
    body = f"if 'ops' in words: print('[\"first\", \"second\"]')\nelse: {APPENDS.replace('cuda', 'reference')}"
    context.python, context.ops = str(script(tmp_path / "python", body)), ("second",)
    context.started -= gpu.LIMIT
    context.limit = gpu.LIMIT + 60
    assert gpu.part_bench(context) == gpu.Outcome(True, "rows that are right: second 1; 0 of CUDA kernels")
    context.ops = ("third",)
    assert gpu.part_bench(context).words == "no benchmark of third; there are first, second"


@pytest.mark.parametrize(
    "mim4d, rtx3090, gib, ok",
    [(0, 0, 80, True), (3, 0, 24, True), (3, 0, 80, False), (3, 3, 24, False), (3, 3, 8, False), (0, 1, 80, False)],
)
def test_one_step_must_fit_where_the_presets_say(
    mim4d: int, rtx3090: int, gib: int, ok: bool, context: gpu.Context, tmp_path: Path
) -> None:
    """Out of memory is told as such; it is a failure on a card that should be large enough."""
    body = f"rc = {mim4d} if 'mim4d' in words else {rtx3090}\nif rc == 0: {APPENDS}\nsys.exit(rc)"
    context.python = str(script(tmp_path / "python", body))
    outcome = gpu.part_step(replace(context, facts={**FACTS, "memory": gib * 2**30}))
    assert outcome.ok == ok, outcome.words
    assert outcome.words.count(f"out of memory with {gib} GiB") == [mim4d, rtx3090].count(3)
    assert outcome.words.count("7 ms") == [mim4d, rtx3090].count(0)


def test_the_programs_understand_their_commands(
    context: gpu.Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each gets as far as asking for the GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(step.importlib.util, "find_spec", lambda name: object())
    for module, command in (
        (ceilings, gpu.ceilings_command("python3", context.results)),
        *((step, gpu.step_command("python3", preset, context.results)) for preset in gpu.PRESETS),
    ):
        assert command[:3] == ["python3", "-m", module.__name__]
        assert module.main(command[3:]) == 2
        assert capsys.readouterr().err == "mim4d: no CUDA device\n"
    gpu_cases.main(["ops"])
    (op, *_) = json.loads(capsys.readouterr().out)
    command = gpu.bench_command("python3", op, context.results, context.logs)
    assert command[:3] == ["python3", "-m", run.__name__]
    with pytest.raises(UserError, match="torch sees no GPU"):
        run.main(command[3:])


# --- the page and the facts -----------------------------------------------------------------------------------------


def test_the_page_tells_every_part() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    for part in gpu.PARTS:
        assert f"make gpu-{part}" in page, part


def test_facts_name_what_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cases.importlib.util, "find_spec", lambda name: None if name == "timm" else object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_cases.facts()["absent"] == {"timm": gpu_cases.EXTRAS["timm"]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=2**37)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    facts = gpu_cases.facts()
    assert facts["results"] == str(ROOT / "benchmarks" / "results" / "nvidia-h200.jsonl")
    assert gpu.Context(facts, Path(), Path()).capability == "9.0"
