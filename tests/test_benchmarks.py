"""The benchmarks: complete, verified, interleaved, recorded; and no time for a result that is wrong."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import inputs, memory, record, roofline, run, table, timing, verify  # noqa: E402
from benchmarks.case import Absent, Entry, Inputs, Preset, Problem, Rival  # noqa: E402
from benchmarks.ops import ENTRIES  # noqa: E402
from benchmarks.report import Report  # noqa: E402
from benchmarks.session import Session  # noqa: E402
from mim4d import _library, cli, ops  # noqa: E402
from mim4d.errors import UserError  # noqa: E402

CEILING = roofline.Roofline(copy=1e10, cached=2e10, cache=1 << 20, flops=1e11)
QUICK = ["--preset", "tiny", "--threads", "1", "--seconds", "0", "--device", "cpu"]


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session()
    yield made
    made.close()


# ---- the registry


def test_no_op_is_forgotten() -> None:
    public = {op for op in _library.schemas if not op.endswith("backward")}
    within = {"build_pool_index"}  # timed as a part of voxel_pool: with the index kept, and without
    assert public - within == set(ENTRIES)
    assert all(callable(getattr(ops, op)) for op in public)


@pytest.mark.parametrize("op", ENTRIES)
def test_an_entry_is_complete(op: str) -> None:
    entry = ENTRIES[op]
    assert "tiny" in entry.presets
    for device in ("cpu", "cuda"):
        names = [name for name, preset in entry.presets.items() if device in preset.devices]
        assert any(not name.startswith("uniform") for name in names), f"{device}: nothing shaped as a model makes it"
        assert device == "cpu" or any("uniform" in name for name in names), f"{device}: nothing uniform"
        kinds = [rival.backend for rival in entry.rivals(device)]
        assert kinds[0] is None, "the first rival is what others can have without us"
        assert device in kinds
        assert "reference" in kinds


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("op", ENTRIES)
def test_every_rival_agrees_with_the_oracle(op: str, dtype: str, session: Session) -> None:
    found = session.open(op, "tiny", "cpu", dtype, only_ours=False)
    assert {name: state["wrong"] for name, state in found.items() if state["wrong"]} == {}
    present = [session.states[name].rival for name, state in found.items() if not state["absent"]]
    assert any(rival.backend for rival in present)
    assert any(rival.backend is None for rival in present)
    ours = next(state for name, state in found.items() if name == "mim4d reference")
    assert set(ours["verdicts"]) == set(session.problem.directions)


@pytest.mark.parametrize("op", ENTRIES)
def test_every_entry_gives_numbers(op: str, session: Session) -> None:
    session.open(op, "tiny", "cpu", "float32", only_ours=False)
    assert len(session.problem.directions) == (1, 3, 5)[ENTRIES[op].order]
    for direction in session.problem.directions:
        (rows,) = table.table(session, direction, CEILING, seconds=0)
        timed = [row for row in rows if row["status"] == "ok"]
        assert {row["status"] for row in rows} <= {"ok", "absent"}
        assert timed[0]["ratio"] == 1
        for row in timed:
            assert 0 < row["ms"] <= row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
            assert row["fraction"] == pytest.approx(row["bytes"] / row["ms"] * 1e3 / row["copy_gb_s"] / 1e9)
            assert row["peak_mb"] > 0
            assert row["flops"] > 0
            assert row["first_s"] > 0
        assert all(row["why"] for row in rows if row["status"] == "absent")


def test_compulsory_bytes_and_flops() -> None:
    problem = Problem(ENTRIES["voxel_sample"], "tiny", "cpu", torch.bfloat16)
    volume, points, out = 2 * 4 * 3 * 6 * 5, 4 * 48 * 3, 2 * 48 * 4
    met = 2 * int((problem.answers["backward"][0] != 0).sum())  # 48 points do not meet every cell
    assert 0 < met < volume
    assert problem.bytes("forward") == met + points + out
    assert problem.bytes("backward") == met + points + out + volume + points
    assert problem.bytes("forward+backward") == problem.bytes("forward") + problem.bytes("backward")
    assert problem.flops("forward") == 2 * 8 * 48 * 4
    assert problem.flops("forward+backward") == 3 * problem.flops("forward")
    assert problem.shapes() == {"volume": [1, 4, 3, 6, 5], "points": [1, 48, 3]}


def test_inputs_keep_off_the_kinks() -> None:
    assert inputs.near_kink(torch.tensor([0.0, 0.25]), 4).tolist() == [False, True]  # centres: -0.75, -0.25, 0.25, 0.75
    for op, name in (("voxel_sample", "points"), ("ms_deform_attn", "sampling_locations")):
        entry = ENTRIES[op]
        made = entry.inputs(entry.presets["tiny"].sizes, torch.Generator().manual_seed(0)).args
        assert made[name].dtype == torch.float64
    made = ENTRIES["voxel_sample"].inputs({"volume": (1, 3, 6, 5), "rays": (6, 20)}, torch.Generator().manual_seed(0))
    for axis, size in enumerate((5, 6, 3)):
        assert not inputs.near_kink(made.args["points"][..., axis], size).any()


# ---- a toy op with planted faults


def toy_inputs(sizes: Any, g: torch.Generator) -> Inputs:
    return Inputs({"x": torch.rand(256, generator=g, dtype=torch.float64) + 1}, ("x",), ("x",))


def right(x: Tensor) -> Tensor:
    return x * x


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0] * 1.99


def wrong_later(after: int) -> Callable[[Tensor], Tensor]:
    """Right for so many calls, then one element in a hundred is off."""
    calls = 0

    def call(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x * x + (0.01 * (torch.arange(len(x)) % 100 == 0) if calls > after else 0)

    return call


def unwritten(x: Tensor) -> Tensor:
    """Leaves the upper half of its result as the memory was."""
    out = torch.empty_like(x)
    out[:128] = x[:128] ** 2
    return out + 0 * x


def greedy(x: Tensor) -> Tensor:
    out = x * x
    with torch.no_grad():
        x.add_(1e-3)
    return out


def remembers() -> Callable[[Tensor], Tensor]:
    """Computes once for each address, version and shape of its input, as a cache of an index might."""
    known: dict[Any, Tensor] = {}

    def call(x: Tensor) -> Tensor:
        key = x.data_ptr(), x._version, x.shape
        if key not in known:
            known[key] = (x * x).detach()
        return known[key] + 0 * x

    return call


def takes_threads(x: Tensor) -> Tensor:
    torch.set_num_threads(torch.get_num_threads() + 1)
    return x * x


class WritesOnCotangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        out = grad * ctx.saved_tensors[0] * 2
        grad.zero_()
        return out


FAULTS = {
    "wrong forward": lambda x: x * x + 0.01,
    "wrong gradient": WrongGradient.apply,
    "wrong later": wrong_later(40),
    "NaN": lambda x: torch.where(torch.arange(256) == 7, torch.nan, x * x),
    "another shape": lambda x: (x * x)[:, None],
    "unwritten": unwritten,
    "writes on its inputs": greedy,
    "writes on the cotangents": WritesOnCotangent.apply,
    "remembers": remembers(),
    "takes threads": takes_threads,
}


def toy(faults: Sequence[str], name: str = "toy") -> Entry:
    rivals = [Rival("right", lambda device: right)]
    rivals += [Rival(fault, lambda device, f=FAULTS[fault]: f) for fault in faults]
    rivals += [Rival("healthy twin", lambda device: right)]
    exact: Callable[..., Sequence[Tensor]] = lambda x: [x**2]
    presets = {"tiny": Preset("a square", {}, ("cpu",))}
    return Entry(name, presets, toy_inputs, exact, lambda device: rivals, lambda args: 2 * len(args["x"]), order=1)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_rival_gets_no_time(fault: str, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "wrong later":
        monkeypatch.setitem(FAULTS, fault, wrong_later(8))
    monkeypatch.setitem(ENTRIES, "toy", toy([fault]))
    session.open("toy", "tiny", "cpu", "float32", only_ours=False)
    if fault == "wrong later":
        assert session.states[fault].right, "the gate before the clock sees it right"
    rows = {row["rival"]: row for row in table.table(session, "forward", CEILING, seconds=0)[0]}
    assert rows[fault]["status"] == "wrong"
    assert rows[fault]["why"]
    assert not {"ms", "ms_p50", "ratio", "gb_s"} & set(rows[fault])
    for healthy in ("right", "healthy twin"):
        assert rows[healthy]["status"] == "ok"
        assert rows[healthy]["ms"] > 0


def test_a_copy_in_another_layout_is_not_to_be_written_on(session: Session) -> None:
    """The rival's own copy is no input of the others, but what it computes is not the op either."""

    def sorts(x: Tensor) -> Tensor:
        out = x * x
        with torch.no_grad():
            x.copy_(x.flip(0).flip(0) if x[0] == first else x * 2)
        return out

    entry = toy([])
    session.problem = Problem(entry, "tiny", "cpu", torch.float32)
    first = session.problem.args["x"][0].clone()
    copied = Rival("copied", lambda device: sorts, prepare=lambda args: {"x": args["x"].clone()})
    session.admit([*entry.rivals("cpu"), copied])
    assert session.states["copied"].right
    rows = {row["rival"]: row for row in table.table(session, "forward", CEILING, seconds=0)[0]}
    assert rows["copied"]["why"] == "it writes on its inputs (forward)"
    assert rows["healthy twin"]["status"] == "ok"


def test_times_from_before_a_rival_was_found_out_are_struck() -> None:
    what = {"op": "toy", "preset": "tiny", "dtype": "float32"}
    early = {**what, "rival": "late", "status": "ok", "why": "", "ms": 1.0}
    other = {**what, "rival": "right", "status": "ok", "why": "", "ms": 1.0}
    late = {**what, "rival": "late", "status": "wrong", "why": "found out"}
    assert run.struck([early, other, late]) == [late, other, late]
    assert run.struck([early, other]) == [early, other]


def test_what_fails_is_told_and_ours_counts_as_wrong(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("not on this machine")

    class NoGradient(WrongGradient):
        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise NotImplementedError("an older torch")

    entry = toy([])
    rivals = [
        *entry.rivals("cpu"),
        Rival("theirs", lambda device: fails),
        Rival("ours", lambda device: fails, backend="cpu"),
        Rival("forward alone", lambda device: NoGradient.apply),
    ]
    session.problem = Problem(entry, "tiny", "cpu", torch.float32)
    session.admit(rivals)
    forward, backward = (
        {row["rival"]: row for row in table.table(session, direction, CEILING, seconds=0)[0]}
        for direction in ("forward", "backward")
    )
    for rows in (forward, backward):
        assert (rows["theirs"]["status"], rows["ours"]["status"]) == ("absent", "wrong")
        assert "RuntimeError: not on this machine" in rows["ours"]["why"]
        assert rows["right"]["ms"] > 0
    assert forward["forward alone"]["ms"] > 0
    assert backward["forward alone"]["status"] == "absent"
    assert "an older torch" in backward["forward alone"]["why"]


def test_what_is_wrong_in_one_direction_gets_no_time_in_another(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENTRIES, "toy", toy(["wrong gradient"]))
    session.open("toy", "tiny", "cpu", "float32", only_ours=False)
    for direction in ("forward", "backward", "forward+backward"):
        (rows,) = table.table(session, direction, CEILING, seconds=0)
        assert [row["rival"] for row in rows if row["status"] == "ok"] == ["right", "healthy twin"]
        assert "backward" in next(row["why"] for row in rows if row["rival"] == "wrong gradient")


@pytest.mark.parametrize("fault", [None, "wrong forward"])
def test_the_exit_code_tells(
    fault: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(ENTRIES, "toy", toy([fault] if fault else []))
    path = tmp_path / "rows.jsonl"
    code = run.main(["toy", *QUICK, "--no-plot", "--json", str(path)])
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert code == (1 if fault else 0)
    assert ("WRONG" in out) == bool(fault)
    assert {row["rival"] for row in rows if "ms" in row} == {"right", "healthy twin"}
    if fault:
        assert f"{fault} is WRONG and gets no time: forward: error" in out


def test_rows_of_an_interrupted_run_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(ENTRIES, "toy", toy([]))
    honest, path = run.table, tmp_path / "rows.jsonl"

    def interrupted(session: Session, direction: str, *args: Any) -> Any:
        if direction == "backward":
            raise KeyboardInterrupt
        return honest(session, direction, *args)

    monkeypatch.setattr(run, "table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.main(["toy", *QUICK, "--json", str(path)])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["direction"] for row in rows} == {"forward"}
    assert {row["rival"] for row in rows if "ms" in row} == {"right", "healthy twin"}


def test_a_narrow_terminal_cuts_nothing_short() -> None:
    from benchmarks import report

    cells = ["a rival of a long name", "0.0578", "0.058 / 0.0586 / 0.06", "1.00 x", "0.10", "0.1%", "", "0.01", "2e-7"]
    names = lambda wide: [report.COLUMNS[i] for i in report.fitting([cells], wide)]
    assert names(132) == [name for name in report.COLUMNS if name != "of flops"]
    assert names(80) == ["", "best ms", "ratio", "of copy", "peak MB", "error"]
    assert {"", "best ms", "ratio", "error"} <= set(names(1))


def test_wrong_is_red(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rich_console = pytest.importorskip("rich.console", reason="colours are rich's")
    report = Report()
    report._console = rich_console.Console(force_terminal=True, color_system="standard", width=132)
    report.end([], [("toy", "a rival")])
    assert re.search(r"\x1b\[1;31m.*a rival", capsys.readouterr().out)


def test_comparing() -> None:
    one = [torch.ones(3).double()]
    assert verify.compare([torch.tensor([1.0, 1.0, 1.5])], one).l2 == pytest.approx(0.5 / 3**0.5)
    assert verify.compare([torch.tensor([1.0, 1.0, 1.5])], one).element == pytest.approx(0.5)
    loose = verify.Tolerance(10.0, 10.0)
    for broken in ([1.0, math.nan, 1.0], [1.0, math.inf, 1.0]):
        assert not verify.compare([torch.tensor(broken)], one).within(loose)
        both = verify.compare([torch.ones(3), torch.tensor(broken)], one * 2)  # max() of Python would lose a NaN
        assert not both.within(loose)
    assert not verify.compare([], one).within(loose)
    number = verify.compare([torch.tensor(1.01)], [torch.tensor(1.0).double()])
    assert not number.within(verify.Tolerance(1e-3, 1e-3))
    assert number.within(verify.Tolerance(1e-3, 1e-3, number=0.02))


def test_memory_is_poisoned_in_the_gate_alone() -> None:
    for count in (64, 1 << 20):
        with verify.poisoned("cpu"):
            assert torch.empty(count).isnan().all()
            assert not torch.zeros(count).any()
            assert not torch.are_deterministic_algorithms_enabled(), "others would run than those that are timed"
    torch.empty(1 << 16).fill_(1.0)
    assert not torch.empty(1 << 16).isnan().all()


# ---- the clock


def test_rivals_take_turns_in_shuffled_rounds() -> None:
    order: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def sample(self, calls: int, cold: bool) -> float:
            order.append(self.name)
            return 1e-3

    names = "abcd"
    times = timing.interleave({name: Fake(name) for name in names}, seconds=1e9, most=12)
    rounds = order[len(order) - 12 * len(names) :]
    turns = ["".join(rounds[i : i + 4]) for i in range(0, len(rounds), 4)]
    assert all(sorted(turn) == list(names) for turn in turns)
    assert len(set(turns)) > 4
    assert all(len(t.samples) == 12 for t in times.values())


def test_a_slow_rival_leaves_early_and_a_quick_one_is_repeated() -> None:
    class Fake:
        def __init__(self, seconds: float) -> None:
            self.seconds, self.calls = seconds, []

        def sample(self, calls: int, cold: bool) -> float:
            self.calls.append(calls)
            return self.seconds

    slow, quick = Fake(1.0), Fake(1e-6)
    times = timing.interleave({"slow": slow, "quick": quick}, seconds=0.01, least=3, most=20)
    assert len(times["slow"].samples) == 3
    assert len(times["quick"].samples) == 20
    assert times["quick"].calls == pytest.approx(100, abs=1)
    assert times["slow"].calls == 1


def test_quantiles() -> None:
    times = timing.Times(tuple(float(x) for x in range(11, 0, -1)), 1, 0.0)
    assert (times.best, times.quantile(0.2), times.quantile(0.5), times.quantile(0.8)) == (1.0, 3.0, 6.0, 9.0)
    assert times.spread == 3.0


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0), raising=False)
    assert "load average is 3.0" in (timing.busy("cpu", 2) or "")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0), raising=False)
    assert timing.busy("cpu", 2) is None


def test_peak_memory_counts_what_lives_at_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def double(x: Tensor) -> Tensor:
        a = torch.ones(1 << 18)  # 1 MiB
        b = a + 1  # and another
        del a
        c = b + 1  # never three
        return x * x + 0 * c[:256]

    def with_numpy(x: Tensor) -> Tensor:
        import numpy

        return x * x + float(numpy.zeros(1 << 18)[0])  # 2 MiB

    entry = toy([])
    rivals = [Rival("torch", lambda device: double), Rival("numpy", lambda device: with_numpy, numpy=True)]
    session.problem = Problem(entry, "tiny", "cpu", torch.float32)
    session.admit(rivals)
    session.prepare("torch", "forward")
    session.prepare("numpy", "forward")
    assert 2 << 20 <= memory.peak(session.runs["torch", "forward"].run) < 2.1 * (1 << 20)
    assert 2 << 20 <= memory.peak(session.runs["numpy", "forward"].run) < 2.2 * (1 << 20)


def test_the_ceilings_are_measured() -> None:
    found = roofline.measure("cpu", quick=True)
    assert found.copy > 1e8
    assert found.cached > 1e8
    assert found.flops > 1e8
    assert CEILING.bandwidth(1 << 10, cold=False) == ("cache", 2e10)
    assert CEILING.bandwidth(1 << 10, cold=True) == ("memory", 1e10)
    assert CEILING.bandwidth(1 << 20, cold=False) == ("memory", 1e10)
    assert CEILING.compute_bound(flops=100, moved=1)
    assert not CEILING.compute_bound(flops=1, moved=1)
    disturbed = roofline.Roofline(copy=1e8, cached=3e10, cache=1 << 20, flops=1e8)
    assert CEILING | disturbed == roofline.Roofline(copy=1e10, cached=3e10, cache=1 << 20, flops=1e11)


# ---- the record


def test_provenance_is_complete_and_the_record_only_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/run.py", "toy", "--json=/tmp/x/rows.jsonl"])
    facts = record.environment("cpu")
    assert set(record.PROVENANCE) <= set(facts)
    assert facts["device"]
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["argv"] == ["run.py", "toy", "--json=rows.jsonl"]
    assert record.environment("cpu", "abc")["revision"] == "abc"
    path = tmp_path / "folder" / "rows.jsonl"
    record.append(path, [{**facts, "ms": 1.0}])
    record.append(path, [{**facts, "ms": 2.0}])
    assert [json.loads(line)["ms"] for line in path.read_text().splitlines()] == [1.0, 2.0]
    with pytest.raises(ValueError, match="a row without torch cannot be recorded"):
        record.append(path, [{k: v for k, v in facts.items() if k != "torch"}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.append(path, [{**facts, "ms": math.nan}])
    assert len(path.read_text().splitlines()) == 2
    assert record.results_file("cpu").parent == ROOT / "benchmarks" / "results"


def test_libraries_older_than_their_sources_are_told(tmp_path: Path) -> None:
    for name in ("csrc/op/op.cpp", "mim4d/ops_cpu.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source, library = tmp_path / "csrc/op/op.cpp", tmp_path / "mim4d/ops_cpu.so"
    os.utime(source, (1000, 1000))
    os.utime(library, (2000, 2000))
    assert record.outdated(tmp_path) is None
    os.utime(source, (3000, 3000))
    assert record.outdated(tmp_path) == "csrc/op/op.cpp"
    library.unlink()
    assert record.outdated(tmp_path) is None


def test_rows_of_a_run_can_be_understood_later(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert run.main(["sdf_sample", *QUICK, "--no-plot", "--json", str(path)]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    ours = next(row for row in rows if row["rival"] == "mim4d reference")
    known = {"kind": "op", "op": "sdf_sample", "preset": "tiny", "dtype": "float32", "direction": "forward"}
    assert ours.items() >= {**known, "backend": "reference", "status": "ok", "threads": 1, "cache": "warm"}.items()
    assert set(record.PROVENANCE) <= set(ours)
    assert ours["shapes"]["volume"] == [1, 3, 2, 5, 4]
    assert 0 < ours["error"] < ours["allowed"]


# ---- the command


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["voxel_smaple"], r"no benchmark of voxel_smaple; did you mean voxel_sample\? \(there are voxel_sample"),
        (["voxel_pool", "--preset", "tinny"], r"no preset tinny; did you mean tiny\?"),
        (["--presets", "tiny", "--nothing"], "unrecognized arguments: --presets --nothing"),
        (["--threads", "0", "--preset", "tiny"], "--threads takes numbers from 1 on"),
        (["--base", "no-such-branch", "--preset", "tiny"], "--base no-such-branch: git knows no such revision"),
    ],
)
def test_mistakes_are_told(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run.main([*arguments, "--device", "cpu", "--no-plot"])


def test_defaults_are_the_presets_of_the_device() -> None:
    options = run.parser("bench").parse_args(["--device", "cpu"])
    assert {op for op, _, _ in run.plan(options)} == set(ENTRIES)
    assert all("cpu" in ENTRIES[op].presets[preset].devices for op, preset, _ in run.plan(options))


def test_mim4d_bench_is_a_door_to_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--help"])
    assert stop.value.code == 0
    assert "usage: mim4d bench" in capsys.readouterr().out
    assert cli.main(["bench", "voxel_smaple"]) == 2
    assert "did you mean voxel_sample?" in capsys.readouterr().err
    monkeypatch.setattr("mim4d.__file__", "/nowhere/site-packages/mim4d/__init__.py")
    assert cli.main(["bench"]) == 2
    assert "mim4d bench needs a checkout of the repository" in capsys.readouterr().err


def test_the_core_alone_is_enough() -> None:
    """Without rich, matplotlib, scipy and torch-interpol: plain tables, no plot, and it says what is not there."""
    names = ("rich", "rich.console", "matplotlib", "scipy", "scipy.ndimage", "interpol", "PIL")
    code = f"import sys; sys.modules.update(dict.fromkeys({names!r}))\n"
    code += "from benchmarks.run import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "voxel_sample", *QUICK, "--direction", "forward"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "no plot: matplotlib is not installed" in done.stdout
    assert "absent: scipy map_coordinates: scipy is not installed" in done.stdout
    assert re.search(r"^mim4d reference +\d", done.stdout, re.MULTILINE)


def test_the_plot_shows_every_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    from benchmarks import plot

    monkeypatch.setitem(ENTRIES, "toy", toy(["wrong forward"]))
    path = tmp_path / "rows.jsonl"
    assert run.main(["toy", "voxel_pull", *QUICK, "--json", str(path), "--out", str(tmp_path)]) == 1
    png, svg = (tmp_path / f"ratios.{kind}" for kind in ("png", "svg"))
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.stat().st_size > 10_000
    words = svg.read_text()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    figure = plot.draw(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["toy", "voxel_pull"]
    for axes, op in zip(figure.axes, ("toy", "voxel_pull"), strict=True):
        cases = list(dict.fromkeys(plot.case(row) for row in rows if row["op"] == op))
        assert [label.get_text() for label in axes.get_yticklabels()] == cases
        assert len(cases) == 3
        assert axes.get_xscale() == "log"
        marks = [line for line in axes.lines if line.get_marker() in "oPDs^d"]
        assert len(marks) == sum(row["op"] == op and row["status"] == "ok" for row in rows)
        assert all(case in words for case in cases)
    assert "wrong forward: wrong" in words
    assert "absent: mim4d cpu" in words or any(row["rival"] == "mim4d cpu" and "ms" in row for row in rows)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="another revision needs git")
def test_another_revision_is_one_more_rival(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sha = record.git("rev-parse", "HEAD")[:12]
    folder = ROOT / "build" / f"base-{sha}"
    ours = not folder.exists()
    path = tmp_path / "rows.jsonl"
    try:
        code = run.main(["voxel_pool", *QUICK, "--base", "HEAD", "--no-plot", "--json", str(path)])
    finally:
        if ours and folder.exists():
            record.git("worktree", "remove", "--force", str(folder))
    out = capsys.readouterr().out
    assert code == 0, out
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert f"base {sha}: " in out
    for direction in ("forward", "backward", "forward+backward"):
        found = {row["rival"]: row for row in rows if row["direction"] == direction}
        other = found[f"mim4d reference @{sha}"]
        assert other["ms"] > 0
        assert other["error"] < other["allowed"]
        assert other["peak_mb"] > 0
        assert other["rounds"] == found["mim4d reference"]["rounds"]
    assert re.search(rf"mim4d reference: ~?[\d.]+ x as fast as at {sha}", out)


PLANTED = """
from benchmarks.session import Session

honest = Session.recheck


def recheck(self, rival, direction):
    if rival == "index_add" and direction == "forward":
        self.states[rival].wrong = "planted"
    return honest(self, rival, direction) or self.states[rival].wrong


Session.recheck = recheck
"""


def test_pytest_benchmark_over_the_same_registry(tmp_path: Path) -> None:
    """A rival that is wrong after it was timed fails and leaves no row; the others beside it have theirs."""
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    (tmp_path / "planted.py").write_text(PLANTED)
    limits = ["--benchmark-max-time=0", "--benchmark-min-rounds=1", "--benchmark-columns=min", "-p", "no:cacheprovider"]
    alone = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}  # a worker's child is none
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "benchmarks",
            "--benchmark-only",
            "-q",
            "-k",
            "voxel_pool",
            "-p",
            "planted",
            *limits,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**alone, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )
    assert done.returncode == 1, done.stdout
    assert re.search(r"\b3 failed, 1\d passed", done.stdout)  # once wrong, no time in the other directions either
    rows = re.findall(r"^test_op\[voxel_pool-tiny-forward-([\w ,]+)\] +[\d.]", done.stdout, re.MULTILINE)
    assert {"sort and cumsum", "mim4d reference"} <= set(rows)
    assert "index_add" not in rows
    assert "index_add is wrong and gets no time: planted" in done.stdout


def test_absent_rivals_say_why() -> None:
    refused = {rival.name: rival for entry in ENTRIES.values() for rival in entry.rivals("cpu") if rival.peer}
    assert {"torch-interpol", "scipy map_coordinates", "cupyx map_coordinates", "deformops", "mmcv"} <= set(refused)
    assert {"create_graph + nerfacc", "conch, cached index", "bev_pool_v2, cached index"} <= set(refused)
    for name in ("cupyx map_coordinates", "mmcv", "conch, cached index", "create_graph + nerfacc"):
        with pytest.raises(Absent, match=r"computes on cuda tensors here"):
            refused[name].make("cpu")
