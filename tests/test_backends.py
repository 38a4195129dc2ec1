"""Which backend runs, why not another, and what is said when a library is missing."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.process import python
from torch.autograd import forward_ad

from mim4d import _library, backends, env, ops
from mim4d.ops import _check

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TRILINEAR = {"dtype": torch.float32, "mode": "trilinear"}


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> str:
    """An op with kernels everywhere, whose predicates refuse odd numbers."""
    refuse_odd = lambda n: f"{n} is odd" if n % 2 else None
    monkeypatch.setitem(backends._predicates, "toy", dict.fromkeys(("cpu", "cuda", "triton"), refuse_odd))
    return "toy"


def test_the_best_backend_that_can_run(op: str) -> None:
    assert backends.choose(op, device=CPU, n=2) == "cpu"
    assert backends.choose(op, device=CPU, n=3) == "reference"
    assert backends.choose(op, device=CUDA, n=2) == "cuda"
    assert backends.choose(op, device=CUDA, n=3) == "reference"
    assert backends.choose(op, device=torch.device("meta"), n=2) == "meta"


def test_what_ran_is_heard(op: str) -> None:
    backends.choose(op, device=CPU, n=2)  # nobody listens
    with backends.listen() as ran:
        assert ran == {}
        for n in (2, 3, 2):
            backends.choose(op, device=CPU, n=n)
        with ops.use_backend("cpu"), pytest.raises(ValueError, match="3 is odd"):
            backends.choose(op, device=CPU, n=3)  # what was refused did not run
        with backends.listen() as inner:
            backends.choose(op, device=CUDA, n=2)
    assert ran == {op: {"cpu", "reference"}}
    assert inner == {op: {"cuda"}}
    backends.choose(op, device=CUDA, n=2)
    assert ran == {op: {"cpu", "reference"}}


def test_forward_mode_differentiation_takes_the_reference(op: str) -> None:
    with forward_ad.dual_level():
        assert backends.choose(op, device=CPU, n=2) == "reference"
        with ops.use_backend("cpu"), pytest.raises(ValueError, match="cannot run: forward-mode differentiation is on"):
            backends.choose(op, device=CPU, n=2)
    assert backends.choose(op, device=CPU, n=2) == "cpu"


def test_triton_comes_after_cuda(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_library.absent, (op, "cuda"), "not built")
    assert backends.choose(op, device=CUDA, n=2) == "triton"
    assert backends.available(op, CUDA, n=2) == {"cuda": "not built", "triton": None, "reference": None}
    assert backends.available(op, CUDA, n=3) == {"cuda": "not built", "triton": "3 is odd", "reference": None}


@pytest.mark.parametrize(
    "archs, capability, serves",
    [
        ("86", (8, 6), True),
        ("86-real", (8, 6), True),
        ("86-real", (8, 9), True),  # machine code serves later minors
        ("86-real", (8, 0), False),
        ("86-real", (9, 0), False),
        ("86", (9, 0), True),  # its PTX is compiled by the driver
        ("86", (12, 0), True),
        ("86", (7, 5), False),
        ("75-real;90-real", (9, 0), True),
        ("75-real;90-real", (8, 6), False),
        ("90a", (9, 0), True),
        ("90a", (10, 0), False),
        ("100f-real", (10, 3), True),
        ("100f", (12, 0), False),
        ("120", (12, 1), True),
    ],
)
def test_which_gpus_a_build_serves(archs: str, capability: tuple[int, int], serves: bool) -> None:
    reason = backends.unserved(archs, capability)
    assert (reason is None) == serves
    assert serves or f"it is built for {archs}, and this GPU has {capability[0]}.{capability[1]}" in str(reason)


def test_a_gpu_without_code_says_so(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, index))
    monkeypatch.setattr(_library, "build_info", lambda: {"archs": "75-real"})
    backends._unserved_by_build.cache_clear()
    try:
        assert "it is built for 75-real" in str(backends.reason_against(op, "cuda", torch.device("cuda:0"), n=2))
        assert backends.reason_against(op, "cuda", torch.device("cuda:5"), n=2) is None
    finally:
        backends._unserved_by_build.cache_clear()


def test_the_question_for_the_gpu_breaks_no_graph(op: str) -> None:
    ask = lambda x: x + len(backends.choose(op, device=CUDA, n=2))
    x = torch.zeros(1)
    assert torch.equal(torch.compile(ask, fullgraph=True, backend="eager")(x), ask(x))


def test_an_explicit_choice_never_falls_back(op: str) -> None:
    with backends.use_backend("cpu"):
        assert backends.choose(op, device=CPU, n=2) == "cpu"
        with pytest.raises(ValueError, match="mim4d::toy: backend 'cpu' was asked for and cannot run: 3 is odd"):
            backends.choose(op, device=CPU, n=3)
        with pytest.raises(ValueError, match="runs on cpu tensors, not on cuda"):
            backends.choose(op, device=CUDA, n=2)
        with backends.use_backend("reference"):  # the inner one counts, and ends
            assert backends.choose(op, device=CPU, n=3) == "reference"
        with pytest.raises(ValueError, match="3 is odd"):
            backends.choose(op, device=CPU, n=3)
    with backends.use_backend("triton"), pytest.raises(ValueError, match="no kernel is written for it"):
        backends.choose("voxel_sample_with_grad", device=CUDA, **TRILINEAR)


def test_unknown_names_are_refused() -> None:
    wanted = r"use_backend: backend is 'gpu', wanted one of cpu, cuda, triton, reference"
    with pytest.raises(ValueError, match=wanted), ops.use_backend("gpu"):
        pass
    done = python("import mim4d.ops", MIM4D_BACKEND="gpu")
    assert done.returncode != 0
    assert "MIM4D_BACKEND: backend is 'gpu', wanted one of" in done.stderr
    done = python("import mim4d.ops", MIM4D_CPU_ISA="avx")
    assert done.returncode != 0
    assert "MIM4D_CPU_ISA is 'avx', wanted base, avx2 or avx512" in done.stderr
    done = python("import mim4d.ops", MIM4D_SKIP="ops_cpu,cuda")
    assert done.returncode != 0
    assert "MIM4D_SKIP is 'ops_cpu,cuda', wanted names of ops_cpu, ops_cuda, or nothing" in done.stderr


def test_use_backend_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), backends.use_backend("reference"):
        raise KeyError
    assert backends.status()["asked"] == (env.BACKEND.get() or "auto")
    assert backends._traced.asked == env.BACKEND.get()


def test_threads_do_not_disturb_each_other() -> None:
    """A enters, B enters, A leaves, B leaves: each sees its own choice all the time, torch.compile's view included."""
    turn = threading.Barrier(2, timeout=30)
    seen: dict[str, list[tuple[str, str]]] = {"reference": [], "cuda": []}

    def work(name: str, late: bool) -> None:
        look = lambda: seen[name].append((backends._asked.get(), backends._traced.asked))
        if late:
            turn.wait()
        with backends.use_backend(name):
            if not late:
                turn.wait()
            turn.wait()  # both are inside
            look()
            if late:
                turn.wait()  # the other one has left
                look()
        look()
        if not late:
            turn.wait()

    threads = [threading.Thread(target=work, args=arguments) for arguments in (("reference", False), ("cuda", True))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = env.BACKEND.get()
    assert seen == {
        "reference": [("reference", "reference"), (before, before)],
        "cuda": [("cuda", "cuda"), ("cuda", "cuda"), (before, before)],
    }
    assert backends._traced.asked == before


def test_voxel_sample_says_why_a_kernel_does_not_run() -> None:
    if "ops_cpu" not in _library.loaded:
        pytest.skip("the native library is not built")
    assert backends.available("voxel_sample", CPU, **TRILINEAR) == {"cpu": None, "reference": None}
    small = torch.float8_e4m3fn
    reason = backends.available("voxel_sample", CPU, dtype=small, mode="bicubic")["cpu"]
    assert reason == "its kernel reads float16, bfloat16, float32 and float64, not torch.float8_e4m3fn"
    with ops.use_backend("cuda"), pytest.raises(ValueError, match="cannot run: it runs on cuda tensors, not on cpu"):
        ops.voxel_sample(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 3), mode="tricubic")


def test_the_variable_chooses() -> None:
    program = (
        "import torch; from mim4d import backends, ops\n"
        "print(backends.choose('voxel_sample', device=torch.device('cpu'), dtype=torch.float32, mode='trilinear'))"
    )
    assert python(program, MIM4D_BACKEND="reference").stdout.strip() == "reference"
    done = python(program, MIM4D_BACKEND="cuda")
    assert "backend 'cuda' was asked for and cannot run: it runs on cuda tensors, not on cpu" in done.stderr


def test_nothing_loaded_still_works() -> None:
    program = (
        "import torch; from mim4d import backends, ops\n"
        "v = torch.ones(1, 2, 2, 2, 2, requires_grad=True)\n"
        "raw = torch.ops.mim4d.voxel_sample(v, torch.zeros(1, 3, 3), 0, 0, False)\n"
        "raw.sum().backward()\n"
        "print(float(ops.voxel_sample(v, torch.zeros(1, 3, 3)).sum()), float(v.grad.sum()))\n"
        "print(backends.report())"
    )
    done = python(program, MIM4D_SKIP="ops_cpu, ops_cuda")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6.0 6.0\n")
    assert "ops_cpu: switched off by MIM4D_SKIP" in done.stdout
    assert "voxel_sample: cpu (switched off by MIM4D_SKIP)" in done.stdout


def test_a_library_that_does_not_load_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ops_cpu.so").write_bytes(b"no library")
    for name, fresh in {"_ROOT": tmp_path, "loaded": set(), "failures": {}, "absent": {}}.items():
        monkeypatch.setattr(_library, name, fresh)
    _library.load()
    assert "ops_cpu.so: file too short" in _library.failures["ops_cpu"]
    assert f"running {torch.__version__}" in _library.failures["ops_cpu"]
    assert "ops_cuda.so is not built" in _library.failures["ops_cuda"]
    assert "file too short" in str(backends.reason_against("voxel_sample", "cpu", CPU, **TRILINEAR))


def test_a_library_of_older_sources_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if "ops_cpu" not in _library.loaded:
        pytest.skip("the native library is not built")
    monkeypatch.setattr(_library, "absent", {})
    monkeypatch.setattr(_library, "loaded", {"ops_cpu"})
    monkeypatch.setattr(_library, "failures", {"ops_cuda": "not built"})
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    schema = "newer_than_the_library(Tensor x) -> Tensor"
    with torch.library._scoped_library("mim4d", "FRAGMENT") as lib:
        lib.define(schema)
        monkeypatch.setitem(_library.schemas, "newer_than_the_library", schema)
        _library.load()
    assert "holds no kernel for it" in _library.absent["newer_than_the_library", "cpu"]
    assert ("voxel_sample", "cpu") not in _library.absent


def test_report_names_libraries_and_ops() -> None:
    report = backends.report()
    for name in ("ops_cpu", "ops_cuda", f"torch {torch.__version__}", "backend auto", *ops.__all__):
        if name in _library.schemas or name not in ops.__all__:
            assert name in report, name
    assert "_backward" not in report


@pytest.mark.parametrize("asked, looked_at", [("0", {"cpu"}), ("", {"cpu"}), ("1", {"cpu", "cuda"})])
def test_whose_values_are_looked_at(asked: str, looked_at: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of index tensors on a GPU under MIM4D_CHECK alone: reading them waits for the GPU."""
    monkeypatch.setenv("MIM4D_CHECK", asked)
    monkeypatch.setattr(_check, "Tensor", SimpleNamespace)  # no tensor is needed to ask, and no GPU
    index = {name: SimpleNamespace(device=torch.device(name)) for name in ("cpu", "cuda", "meta")}
    assert {name for name, value in index.items() if _check.readable(value)} == looked_at  # type: ignore[arg-type]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not any(map(_check.readable, index.values()))  # type: ignore[arg-type]


def test_every_variable_is_in_the_table() -> None:
    """And every MIM4D_ name that the package reads is a variable of env.py."""
    docs = Path(__file__).parent.parent / "docs" / "backends.md"
    assert env.table() in docs.read_text(), f"{docs} holds another table than mim4d.env.table()"
    known = {variable.name for variable in env.VARIABLES}
    for source in Path(backends.__file__).parent.rglob("*.py"):
        assert set(re.findall(r"MIM4D_[A-Z_]+", source.read_text())) <= known, source
