"""Measure a GPU's ceilings: ``python -m benchmarks.ceilings.ceilings [--json FILE]``.

``ceilings.cu`` is compiled for the GPU at hand and called through ctypes. Before and after it is timed, each kernel
must leave the result that only the whole of its work gives, to the last bit; one that does not gets no row. Times are
CUDA events around single runs; the best counts, and quantiles stand beside it.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import nvcc as compiler
from benchmarks import record

SOURCE = Path(__file__).with_name("ceilings.cu")
PACK = 16  # bytes that a thread moves at once
MIB = 2**20


def compile_command(nvcc: str, source: Path, out: Path, archs: list[str]) -> list[str]:
    """A shared library of machine code for ``archs`` ("90"), with the build's flags; a spilled register is an error."""
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    flags = [*compiler.build_flags(), compiler.WALL, "-Xcompiler=-fPIC", "-shared", *code]
    return [nvcc, *flags, "-I", str(compiler.CSRC), "-o", str(out), str(source)]


SIGNATURES = {  # without the stream, which comes last: pointer, int64, int, float
    "ceiling_copy": "ppli",
    "ceiling_read": "plipi",
    "ceiling_atomics": "ippli",
    "ceiling_mma": "ppipi",
    "ceiling_fma": "ffipi",
    "ceiling_launches": "pi",
}
TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}


class Library:
    """The kernels, compiled by nvcc, or by the emulator of the tests."""

    def __init__(self, path: Path, device: str = "cuda") -> None:
        self._library = ctypes.CDLL(str(path))
        self.device = device
        for name, types in SIGNATURES.items():
            getattr(self._library, name).argtypes = [*(TYPES[t] for t in types), ctypes.c_void_p]
        self._library.ceiling_error.restype = ctypes.c_char_p
        self.threads: int = self._library.ceiling_threads()
        self.chains: int = self._library.ceiling_chains()

    def __call__(self, name: str, *args: Tensor | float) -> None:
        """One call on torch's current stream; tensors are passed as their pointers."""
        stream = torch.cuda.current_stream().cuda_stream if self.device == "cuda" else None
        values = [arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in args]
        status = getattr(self._library, name)(*values, stream)
        if status:
            raise RuntimeError(f"{name}: {self._library.ceiling_error(status).decode()}")


@dataclass(frozen=True)
class Sizes:
    """How much work a run is. The defaults are for a GPU, a run taking from a tenth of a millisecond up."""

    blocks: int  # of the grids that loop: enough to fill the GPU
    dram: int = 4096 * MIB  # bytes, far more than any L2 holds
    l2: tuple[int, ...] = (4 * MIB, 8 * MIB, 16 * MIB, 40 * MIB)
    l2_traffic: int = 2048 * MIB  # bytes read in a run
    rows: int = 128 * 128 * 5  # of a volume
    channels: int = 32
    adds: int = 8 * 294_912  # row additions: the taps of 3072 rays of 96 samples
    groups: tuple[int, ...] = (1, 8, 500)  # neighbouring additions that hit one row
    steps: int = 4096  # of the arithmetic
    launches: int = 500
    repeat: int = 30
    seconds: float = 2.0  # for the repetitions of one ceiling; at least three are made


@dataclass
class Ceiling:
    """One thing to measure."""

    name: str
    what: str
    unit: str  # a rate, or "us": microseconds for each
    work: float  # of one run, in the unit's numerator; for "us" the number of them
    run: Callable[[], None]
    reset: Callable[[], object]  # before a run that is checked: an old result must not pass for a new one
    fault: Callable[[], str | None]  # how the result differs from that of all the work; None: not at all
    host: bool = False  # timed on the host, without waiting for the GPU
    facts: dict[str, Any] = field(default_factory=dict)  # more for the row


# --- what is measured -------------------------------------------------------------------------------------------------


def memory(library: Library, sizes: Sizes) -> Iterator[Ceiling]:
    """Copying and reading what lies far outside of the L2, then reading what fits into it, or does not."""
    yield _copy(library, sizes)
    yield _read(library, sizes, "dram read", sizes.dram, 1)
    for size in sizes.l2:
        yield _read(library, sizes, "l2 read", size, max(1, sizes.l2_traffic // size))


def _copy(library: Library, sizes: Sizes) -> Ceiling:
    packs = sizes.dram // PACK
    data = _words(packs, library.device)
    out = torch.zeros_like(data)

    def fault() -> str | None:
        return None if torch.equal(data, out) else f"{int((data != out).sum())} of {data.numel()} words differ"

    return Ceiling(
        "dram copy",
        f"{packs * PACK / MIB:g} MiB, read and written",
        "GB/s",
        2 * packs * PACK / 1e9,
        partial(library, "ceiling_copy", data, out, packs, sizes.blocks),
        out.zero_,
        fault,
    )


def _words(packs: int, device: str) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randint(-(2**31), 2**31, (packs * PACK // 4,), generator=generator, dtype=torch.int32, device=device)


def _read(library: Library, sizes: Sizes, name: str, size: int, passes: int) -> Ceiling:
    packs = size // PACK
    data = _words(packs, library.device)
    sums = torch.zeros(sizes.blocks * library.threads // 32, dtype=torch.int32, device=library.device)
    wanted = passes * int(data.sum(dtype=torch.int64)) % 2**32

    def fault() -> str | None:
        got = int(sums.sum(dtype=torch.int64)) % 2**32
        return None if got == wanted else f"the sum of all words is {got}, not {wanted}"

    return Ceiling(
        name,
        f"{packs * PACK / MIB:g} MiB",
        "GB/s",
        passes * packs * PACK / 1e9,
        partial(library, "ceiling_read", data, packs, passes, sums, sizes.blocks),
        sums.zero_,
        fault,
        facts={"passes": passes},
    )


KINDS = (  # of ceiling_atomics: name, dtype, instruction from (9, 0) on, and before
    ("float", torch.float32, "red.f32", "red.f32"),
    ("float x 2", torch.float32, "red.v2.f32", "2 red.f32"),
    ("float x 4", torch.float32, "red.v4.f32", "4 red.f32"),
    ("half x 2", torch.float16, "red.f16x2", "red.f16x2"),
    ("bfloat16 x 2", torch.bfloat16, "red.bf16x2", "atom.cas loop"),
)
EXACT = 256  # the largest count up to which bfloat16 holds every whole number


def hits(sizes: Sizes, group: int, device: str) -> tuple[Tensor, Tensor]:
    """Codes (adds,) int32 for ceiling_atomics and the (rows,) that they sum to.

    ``group`` neighbouring additions hit the same row. The first 256 of a row add one, the others take it away: so each
    sum, and each of its parts in whatever order, is a whole number that every dtype holds exactly, and no addition can
    be missing or doubled without a trace.
    """
    generator = torch.Generator().manual_seed(group)
    count = sizes.adds // group
    if count <= sizes.rows:
        picked = torch.randperm(sizes.rows, generator=generator)[:count]
    else:
        picked = torch.randint(sizes.rows, (count,), generator=generator)
    rows = picked.repeat_interleave(group)
    order = rows.argsort(stable=True)
    counts = rows.bincount(minlength=sizes.rows)
    rank = torch.empty_like(rows)
    rank[order] = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows[order]]
    assert int(counts.max()) <= 2 * EXACT, "a row is hit too often for exact sums"
    codes = torch.where(rank < EXACT, rows, ~rows)
    sums = torch.where(counts <= EXACT, counts, 2 * EXACT - counts)
    return codes.int().to(device), sums.to(device)


def atomics(library: Library, sizes: Sizes, capability: tuple[int, int]) -> Iterator[Ceiling]:
    """Adding rows to a volume, as the backward kernels do, in every width and at three degrees of contention."""
    for group in sizes.groups:
        codes, sums = hits(sizes, group, library.device)
        contention = "uniform" if group == 1 else f"{group}-way"
        for kind, (name, dtype, instruction, before) in enumerate(KINDS):
            table = torch.zeros(sizes.rows, sizes.channels, dtype=dtype, device=library.device)
            yield Ceiling(
                "atomic rows",
                f"{name}, {contention}",
                "Gadd/s",
                len(codes) * sizes.channels / 1e9,
                partial(library, "ceiling_atomics", kind, table, codes, len(codes), sizes.channels),
                table.zero_,
                partial(_wrong_sums, table, sums),
                facts={"instruction": instruction if capability >= (9, 0) else before, "way": group},
            )


def _wrong_sums(table: Tensor, sums: Tensor) -> str | None:
    wrong = int((table.long() != sums[:, None]).sum())
    return f"{wrong} of {table.numel()} sums are wrong" if wrong else None


def arithmetic(library: Library, sizes: Sizes) -> Iterator[Ceiling]:
    """Chains of products on the tensor cores (mma.sync m16n8k16, bfloat16 in, float32 out) and of float32 FMAs."""
    device, threads = library.device, sizes.blocks * library.threads
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-1, 2, (16, 16), generator=generator).float()
    b = torch.randint(-1, 2, (8, 16), generator=generator).float()  # columns in a row
    product = (library.chains * sizes.steps * (a @ b.T)).to(device)
    assert 16 * library.chains * sizes.steps <= 2**24, "more steps than float32 sums exactly"
    tiles = torch.zeros(threads // 32, 16, 8, device=device)
    a, b = a.bfloat16().to(device), b.bfloat16().to(device)

    def tiles_fault() -> str | None:
        wrong = int((tiles != product).any(-1).any(-1).sum())
        return f"{wrong} of {len(tiles)} warps have a wrong product" if wrong else None

    yield Ceiling(
        "mma",
        "m16n8k16 bfloat16, float32 sums",
        "TFLOP/s",
        len(tiles) * library.chains * sizes.steps * 2 * 16 * 8 * 16 / 1e12,
        partial(library, "ceiling_mma", a, b, sizes.steps, tiles, sizes.blocks),
        tiles.zero_,
        tiles_fault,
    )
    sums = torch.zeros(sizes.blocks, library.threads, device=device)
    start = library.chains * (sizes.steps + torch.arange(library.threads, device=device))
    wanted = (start + sum(range(library.chains))).float()

    def sums_fault() -> str | None:
        wrong = int((sums != wanted).sum())
        return f"{wrong} of {sums.numel()} threads have a wrong sum" if wrong else None

    yield Ceiling(
        "fma",
        "float32",
        "TFLOP/s",
        2 * threads * library.chains * sizes.steps / 1e12,
        partial(library, "ceiling_fma", 1.0, 1.0, sizes.steps, sums, sizes.blocks),
        sums.zero_,
        sums_fault,
    )


def launches(library: Library, sizes: Sizes) -> Iterator[Ceiling]:
    """A kernel that only counts itself: in a stream, replayed from a CUDA graph, and an eager torch op beside it."""
    count = sizes.launches
    counter = torch.zeros(1, dtype=torch.int32, device=library.device)

    in_stream = partial(library, "ceiling_launches", counter, count)

    def in_torch() -> None:
        for _ in range(count):
            counter.add_(1)

    def fault() -> str | None:
        return None if int(counter) == count else f"{int(counter)} of {count} launches counted"

    ways = [("stream, on the device", in_stream, False), ("stream, on the host", in_stream, True)]
    ways.append(("eager torch op, on the host", in_torch, True))
    if library.device == "cuda":
        graph = torch.cuda.CUDAGraph()
        in_stream()  # before the capture: loading a kernel may not be captured
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            in_stream()
        ways.append(("graph, on the device", graph.replay, False))
    for what, run, host in ways:
        yield Ceiling("launch", what, "us", count, run, counter.zero_, fault, host=host)


def every(library: Library, sizes: Sizes, capability: tuple[int, int]) -> Iterator[Ceiling]:
    yield from memory(library, sizes)
    yield from atomics(library, sizes, capability)
    yield from arithmetic(library, sizes)
    yield from launches(library, sizes)


# --- how it is measured -----------------------------------------------------------------------------------------------


def checked(ceiling: Ceiling) -> str | None:
    """One run from a clean slate, and what is wrong with its result."""
    ceiling.reset()
    ceiling.run()
    return ceiling.fault()  # reads the result: waits for the run


def times(ceiling: Ceiling, device: str, repeat: int, seconds: float) -> list[float]:
    """Seconds of each of up to ``repeat`` runs, fewer (but three) where they would take longer than ``seconds``."""
    if device == "cpu" or ceiling.host:
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        found: list[float] = []
        while len(found) < repeat and (len(found) < 3 or sum(found) < seconds):
            wait()
            start = time.perf_counter()
            ceiling.run()
            found.append(time.perf_counter() - start)
        wait()
        return found
    pilot = _events(ceiling.run, 1)[0]
    return _events(ceiling.run, max(3, min(repeat, int(seconds / pilot))))


def _events(run: Callable[[], None], repeat: int) -> list[float]:
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeat)]
    torch.cuda.synchronize()
    for start, end in pairs:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def measure(ceiling: Ceiling, device: str, repeat: int, seconds: float) -> dict[str, Any] | str:
    """A row, or why there is none."""
    fault = checked(ceiling)
    if fault is None:
        found = sorted(times(ceiling, device, repeat, seconds))
        fault = checked(ceiling)
    if fault is not None:
        return fault

    def value(seconds: float) -> float:
        return seconds / ceiling.work * 1e6 if ceiling.unit == "us" else ceiling.work / seconds

    def quantile(q: float) -> float:
        return found[min(len(found) - 1, math.floor(q * len(found)))]

    return {
        **{"kind": "ceiling", "name": ceiling.name, "what": ceiling.what, "unit": ceiling.unit},
        **{"value": value(found[0]), "median": value(quantile(0.5)), "ms": found[0] * 1e3, "repeat": len(found)},
        **{f"ms_q{round(100 * q)}": quantile(q) * 1e3 for q in (0.1, 0.5, 0.9)},
        **{"checked": "exact", **ceiling.facts},
    }


def report(ceilings: Iterator[Ceiling], device: str, repeat: int, seconds: float) -> tuple[list[dict[str, Any]], int]:
    """Measure and print them all; the rows, and how many were wrong."""
    rows: list[dict[str, Any]] = []
    wrong = 0
    print(f"{'ceiling':<14}{'':<36}{'best':>10}{'median':>10}  unit     times, ms: best, median, 90 %")
    for ceiling in ceilings:
        row = measure(ceiling, device, repeat, seconds)
        if isinstance(row, str):
            print(f"{ceiling.name:<14}{ceiling.what:<36} WRONG: {row}", flush=True)
            wrong += 1
            continue
        print(
            f"{ceiling.name:<14}{ceiling.what:<36}{row['value']:>10.4g}{row['median']:>10.4g}  {ceiling.unit:<8}"
            f" {row['ms']:.4f}, {row['ms_q50']:.4f}, {row['ms_q90']:.4f}  {row.get('instruction', '')}".rstrip(),
            flush=True,
        )
        rows.append(row)
    return rows, wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="append the rows to this file, one JSON object a line")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("mim4d: no CUDA device", file=sys.stderr)
        return 2
    nvcc = compiler.find_nvcc()
    if nvcc is None:
        print(
            "mim4d: no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda: ceilings.cu is not compiled", file=sys.stderr
        )
        return 1
    facts = torch.cuda.get_device_properties(0)
    arch = f"{facts.major}{facts.minor}"
    out = compiler.ROOT / "build" / "ceilings" / f"ceilings-sm_{arch}.so"
    out.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(compile_command(nvcc, SOURCE, out, [arch]), check=True)
    free = torch.cuda.mem_get_info()[0]
    library = Library(out)
    # As many blocks as fit at once, 8 on a multiprocessor of sm_90, 6 of sm_86: two more would run alone at the end.
    blocks = facts.max_threads_per_multi_processor // library.threads * facts.multi_processor_count
    sizes = Sizes(blocks=blocks, dram=min(Sizes(1).dram, free // 4 // MIB * MIB))
    print(f"{facts.name}, {facts.multi_processor_count} multiprocessors, L2 {facts.L2_cache_size / MIB:g} MiB")
    ceilings = every(library, sizes, (facts.major, facts.minor))
    rows, wrong = report(ceilings, "cuda", sizes.repeat, sizes.seconds)
    if args.json:
        size = {"l2_bytes": facts.L2_cache_size, "multiprocessors": facts.multi_processor_count}
        record.append(args.json, [{**record.environment("cuda"), **row, **size} for row in rows])
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
