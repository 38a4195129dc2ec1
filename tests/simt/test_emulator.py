"""The emulator: every instruction it offers, against numpy and torch, in several orders of threads. nvcc compiles the
same file."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import simt

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks.nvcc import find_nvcc

ORDERS = ("fwd", "rev", "rand:1", "rand:2")
NVCC = find_nvcc()
Call = Callable[..., int]


@pytest.fixture(scope="module", params=["plain", "SIMT_UCONTEXT"])
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    """The kernels with the hand-written switch of stacks, and with swapcontext()."""
    defines = () if request.param == "plain" else (request.param,)
    return ctypes.CDLL(str(simt.build("plain", "kernels", *defines)))


@pytest.fixture(params=ORDERS)
def call(library: ctypes.CDLL, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Call:
    """call(name, arrays and ints): launches a kernel in one order of threads, its blocks on two OS threads."""
    monkeypatch.setenv("SIMT_ORDER", request.param)
    monkeypatch.setenv("SIMT_THREADS", "2")

    def launch(name: str, *args: np.ndarray | int) -> int:
        given = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in args]
        return getattr(library, name)(*given)

    return launch


def integers(low: int, high: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, n).astype(np.int32)


# ---- blocks


def test_sum_of_a_block(call: Call) -> None:
    x = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    out = np.zeros(1, np.float32)
    assert call("sum", x, x.size, out, 20) == 0
    # float32 sums in another order: measured 2e-9 of the sum of magnitudes
    assert abs(float(out[0]) - x.sum(dtype=np.float64)) < 2e-8 * np.abs(x).sum(dtype=np.float64)


def test_scan_with_dynamic_shared_memory(call: Call) -> None:
    x = integers(-5, 9, 128 * 20 - 37)
    y = np.zeros_like(x)
    assert call("scan", x, y, x.size) == 0
    padded = np.zeros(128 * 20, np.int64)
    padded[: x.size] = x
    np.testing.assert_array_equal(y, padded.reshape(-1, 128).cumsum(1).reshape(-1)[: x.size])


def test_compaction(call: Call) -> None:
    x = integers(-5, 9, 128 * 20 - 37)
    out, count = np.zeros_like(x), np.zeros(1, np.int32)
    assert call("compact", x, x.size, out, count) == 0
    kept = x[x > 0]
    assert count[0] == kept.size
    np.testing.assert_array_equal(np.sort(out[: kept.size]), np.sort(kept))
    np.testing.assert_array_equal(out[kept.size :], 0)


@pytest.mark.parametrize("n", [0, 1, 20, 32])
def test_threads_that_end_early_do_not_count(call: Call, n: int) -> None:
    y = np.full(1, -1, np.float32)
    assert call("early_exit", y, n) == 0
    assert y[0] == (sum(range(n)) if n else -1)


@pytest.mark.parametrize("kind", ["mixed", "none", "all"])
def test_votes_of_a_block_of_three_dimensions(call: Call, kind: str) -> None:
    x = {"mixed": integers(-5, 6, 240), "none": np.zeros(240, np.int32), "all": np.ones(240, np.int32)}[kind]
    out = np.full((4, 60, 3), -1, np.int32)
    assert call("votes_of_block", x, out) == 0
    positive = (x > 0).reshape(4, 60)
    for b in range(4):
        assert (out[b] == [positive[b].sum(), positive[b].any(), positive[b].all()]).all()


def test_dynamic_shared_memory_begins_as_poison_in_every_block(call: Call) -> None:
    out = np.zeros(128 * 6, np.uint32)
    assert call("fresh_shared", out, 6) == 0
    assert (out == 0xFFFFFFFF).all()
    assert np.isnan(out.view(np.float32)).all()


# ---- warps


@pytest.mark.parametrize("width", [32, 16, 8, 1])
@pytest.mark.parametrize("argument", [0, 1, 3, 7, 17, 31])
def test_shuffles(call: Call, argument: int, width: int) -> None:
    x, out = integers(-1000, 1000, 32), np.zeros((4, 32), np.int32)
    assert call("shuffles", x, argument, width, out) == 0
    lane = np.arange(32)
    first = lane - lane % width
    sources = (
        first + argument % width,
        np.where(lane - argument >= first, lane - argument, lane),
        np.where(lane + argument < first + width, lane + argument, lane),
        np.where((lane ^ argument) < first + width, lane ^ argument, lane),
    )
    for row, source in zip(out, sources, strict=True):
        np.testing.assert_array_equal(row, x[source])


def test_a_lane_that_takes_no_part_gives_nan(call: Call) -> None:
    x, out = np.arange(32, dtype=np.float32), np.full(32, -1, np.float32)
    mask = 0x0000F0F7
    assert call("absent_lanes", x, mask, out) == 0
    for lane in range(32):
        there, neighbour = mask >> lane & 1, mask >> (lane + 1) % 32 & 1
        if not there:
            assert out[lane] == -1
        elif neighbour:
            assert out[lane] == (lane + 1) % 32
        else:
            assert np.isnan(out[lane])


@pytest.mark.parametrize("low, high", [(-3, 3), (1, 2), (-1, 0)])
def test_votes(call: Call, low: int, high: int) -> None:
    x, out = integers(low, high, 32), np.zeros((6, 32), np.uint32)
    assert call("votes", x, out) == 0
    bit = np.uint32(1) << np.arange(32, dtype=np.uint32)
    same = bool((x == x[0]).all())
    wanted = [
        [(bit * (x > 0)).sum()] * 32,
        [(x > 0).any()] * 32,
        [(x > 0).all()] * 32,
        [(bit * (x == v)).sum() for v in x],
        [0xFFFFFFFF if same else 0] * 32,
        [same] * 32,
    ]
    np.testing.assert_array_equal(out, np.array(wanted, np.uint32))


def test_reductions_over_half_warps(call: Call) -> None:
    x = np.random.default_rng(0).integers(0, 2**32, 32, dtype=np.uint32)
    out = np.zeros((8, 2, 16), np.uint32)
    assert call("reductions", x, out) == 0
    halves = x.reshape(2, 16)
    signed = halves.view(np.int32)
    wanted = [
        halves.sum(1, dtype=np.uint32),
        halves.min(1),
        halves.max(1),
        np.bitwise_and.reduce(halves, 1),
        np.bitwise_or.reduce(halves, 1),
        np.bitwise_xor.reduce(halves, 1),
        halves.sum(1, dtype=np.uint32),
        signed.min(1).view(np.uint32),
    ]
    for row, value in zip(out, wanted, strict=True):
        np.testing.assert_array_equal(row, np.repeat(value[:, None], 16, 1))


def test_syncwarp(call: Call) -> None:
    x, out = integers(0, 1000, 128), np.zeros(128, np.int32)
    assert call("reverse_in_warp", x, out) == 0
    np.testing.assert_array_equal(out, x.reshape(4, 32)[:, ::-1].reshape(-1))


def test_tiles_of_cooperative_groups(call: Call) -> None:
    x, out = integers(-9, 9, 128), np.zeros((5, 128), np.int32)
    assert call("tiles", x, out) == 0
    tile = x.reshape(16, 8)
    bits = ((tile > 0) << np.arange(8)).sum(1)
    down, up = np.roll(tile, -1, 1), np.roll(tile, 1, 1)
    down[:, -1], up[:, 0] = tile[:, -1], tile[:, 0]
    wanted = [np.repeat(tile.sum(1), 8), np.repeat(tile[:, 3], 8), np.repeat(bits, 8), np.arange(128), down + up]
    for row, value in zip(out, wanted, strict=True):
        np.testing.assert_array_equal(row, np.asarray(value).reshape(-1))


# ---- atomics


@pytest.mark.parametrize("name, dtype", [("int32", np.int32), ("uint32", np.uint32), ("uint64", np.uint64)])
def test_integer_atomics(call: Call, name: str, dtype: type) -> None:
    n = 3000
    i = np.arange(n, dtype=dtype)
    ones = np.array(-1).astype(dtype)
    out = np.array([0, 0, 5000, ones, 0, 0, 0, 0], dtype)
    assert call(f"atomics_{name}", out, n) == 0
    bits = np.bitwise_or.reduce(dtype(1) << (i % dtype(31)))
    wanted = [i.sum(), n - 1, 0, ~bits, bits, np.bitwise_xor.reduce(i), n, 42]
    assert [int(v) for v in out] == [int(v) for v in wanted]


def test_unsigned_atomics(call: Call) -> None:
    n = 3000
    out, tickets = np.array([10 * n, 0, 0, 0], np.uint32), np.zeros(n, np.uint32)
    assert call("atomics_unsigned", out, tickets, n) == 0
    assert out.tolist() == [7 * n, n % 7, -n % 7, n]
    assert (tickets == 1).all()


def test_floating_point_atomics(call: Call) -> None:
    n = 250  # whole numbers up to here are exact in bfloat16 too
    floats, doubles = np.zeros(8, np.float32), np.zeros(1)
    halves, pairs = torch.zeros(1, dtype=torch.float16), torch.zeros(2, dtype=torch.float16)
    brains, brain_pairs = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)
    raw = [t.view(torch.int16).numpy() for t in (halves, pairs, brains, brain_pairs)]
    assert call("atomics_float", floats, doubles, *raw, n) == 0
    assert floats.tolist() == [n, 0, n, 2 * n, n, 2 * n, 3 * n, 4 * n]
    assert doubles[0] == n / 2
    assert (halves.item(), pairs.tolist()) == (n, [n, 2 * n])
    assert (brains.item(), brain_pairs.tolist()) == (n, [n, n / 2])


def test_a_thread_that_waits_for_another_one_lets_it_run(call: Call) -> None:
    lock, counter = np.zeros(1, np.int32), np.zeros(3, np.int32)
    assert call("lock", lock, counter, 3) == 0
    assert (lock.tolist(), counter[0], counter[2]) == ([0], 3 * 64, 7)


# ---- halves and numbers

EVERY = np.arange(65536, dtype=np.uint16)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers rounded by torch."""
    return torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)


def neighbourhood() -> np.ndarray:
    """float32: every finite half and bfloat16, the middles between neighbours, and what lies next to those."""
    halves = np.sort(EVERY[:0x7C01].view(np.float16).astype(np.float32))
    halves[-1] = 65536
    brains = (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32)
    found = [halves, brains]
    for x in (halves, brains):
        middle = ((x[:-1].astype(np.float64) + x[1:]) / 2).astype(np.float32)
        found += [middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))]
    x = np.concatenate([*found, np.array([np.inf, 65519.99, 65520, 3.39e38], np.float32)])
    return np.concatenate([x, -x])


def test_every_half_is_widened_exactly(call: Call) -> None:
    y = np.zeros(65536, np.float32)
    assert call("widen_half", EVERY, y, 65536) == 0
    np.testing.assert_array_equal(y, EVERY.view(np.float16).astype(np.float32))  # NaN where NaN
    np.testing.assert_array_equal(np.signbit(y[[0, 0x8000]]), [False, True])
    assert call("widen_bfloat16", EVERY, y, 65536) == 0
    np.testing.assert_array_equal(y, (EVERY.astype(np.uint32) << 16).view(np.float32))


def test_floats_are_rounded_to_nearest_even(call: Call) -> None:
    x = neighbourhood()
    y = np.zeros(x.size, np.uint16)
    assert call("round_half", x, y, x.size) == 0
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y, x.astype(np.float16).view(np.uint16))
    assert call("round_bfloat16", x, y, x.size) == 0
    np.testing.assert_array_equal(y, bfloat16(x))


def test_doubles_are_rounded_once(call: Call) -> None:
    middle = neighbourhood().astype(np.float64)
    middle = middle[np.isfinite(middle) & (np.abs(middle) < 65504)]
    x = np.concatenate([middle, middle * (1 + 1e-12), middle * (1 - 1e-12)])  # through float32 these would tie
    y = np.zeros(x.size, np.uint16)
    assert call("round_double_half", x, y, x.size) == 0
    np.testing.assert_array_equal(y, x.astype(np.float16).view(np.uint16))


def test_nan_stays_nan(call: Call) -> None:
    x, y = np.array([np.nan, -np.nan], np.float32), np.zeros(2, np.uint16)
    for name in ("round_half", "round_bfloat16"):
        assert call(name, x, y, 2) == 0
        assert y.tolist() == [0x7FFF, 0x7FFF]  # the NaN that a GPU writes


@pytest.mark.parametrize("name, dtype", [("half", torch.float16), ("bfloat16", torch.bfloat16)])
def test_arithmetic_of_halves_is_rounded_after_each_step(call: Call, name: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 4000, generator=g) * 8).to(dtype)
    y = torch.zeros(3, 4000, dtype=dtype)
    raw = [t.view(torch.int16).numpy() for t in (a, b, y)]
    assert call(f"arithmetic_{name}", *raw, 4000) == 0
    x, z = a.double(), b.double()
    assert torch.equal(y[0], (x + z).to(dtype))
    assert torch.equal(y[1], (x * z).to(dtype))
    assert torch.equal(y[2], (x * z + x).to(dtype))


def test_bits(call: Call) -> None:
    x = np.concatenate([integers(-(2**31), 2**31 - 1, 300), np.array([0, 1, -1, -(2**31)], np.int32)])
    out = np.zeros((x.size, 8), np.int32)
    assert call("bits", x, out, x.size) == 0

    def clz(v: int, bits: int) -> int:
        return bits - (v % 2**bits).bit_length()

    def ffs(v: int, bits: int) -> int:
        v %= 2**bits
        return (v & -v).bit_length()

    for v, row in zip(x.tolist(), out.tolist(), strict=True):
        word = v % 2**32
        reverse = int(f"{word:032b}"[::-1], 2)
        signed = reverse - 2**32 if reverse >= 2**31 else reverse
        wide = v << 24
        ones = (word << 20 | 1).bit_count()
        assert row == [word.bit_count(), clz(v, 32), ffs(v, 32), signed, ones, clz(v, 64), ffs(wide, 64), v]


def test_conversions_saturate_as_on_a_gpu(call: Call) -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e20, -1e20, np.inf, -np.inf, np.nan, 7, 2**31], np.float32)
    out = np.zeros((x.size, 5), np.int32)
    assert call("convert", x, out, x.size) == 0
    with np.errstate(invalid="ignore"):
        for column, rounding in enumerate((np.floor, np.ceil, np.rint, np.trunc)):
            wanted = np.clip(np.nan_to_num(rounding(x.astype(np.float64))), -(2**31), 2**31 - 1)
            np.testing.assert_array_equal(out[:, column], wanted.astype(np.int64))
        unsigned = np.clip(np.nan_to_num(np.rint(x.astype(np.float64))), 0, 2**32 - 1)
    np.testing.assert_array_equal(out[:, 4].view(np.uint32), unsigned.astype(np.uint32))


def test_numbers(call: Call) -> None:
    x = np.random.default_rng(0).uniform(0.1, 5, 200).astype(np.float32)
    out = np.zeros((x.size, 10), np.float32)
    assert call("numbers", x, out, x.size) == 0
    d = x.astype(np.float64)
    wanted = [np.exp(d), np.log(d), np.sin(d), np.cos(d), d**-0.5, np.clip(d, 0, 1), 1 / d]
    wanted += [np.minimum(d, 1) + np.maximum(d, 2), d * d + 1, d**1.5]
    # glibc's float32 functions: measured 6e-8 at most, relative to 1 + |value|
    np.testing.assert_allclose(out, np.stack(wanted, 1), rtol=2e-7, atol=2e-7)


# ---- launches


@pytest.mark.parametrize(
    "threads, grid_y, shared, allowed, error",
    [
        (128, 1, 512, 0, 0),
        (1025, 1, 8192, 0, 9),
        (0, 1, 0, 0, 9),
        (128, 65536, 512, 0, 9),
        (128, 1, 48 * 1024 + 1, 0, 1),
        (128, 1, 100 * 1024, 99 * 1024, 1),
        (128, 1, 100 * 1024, 100 * 1024, 0),
        (128, 1, 228 * 1024, 228 * 1024, 1),
    ],
)
def test_a_launch_that_a_gpu_refuses_is_refused(
    library: ctypes.CDLL, threads: int, grid_y: int, shared: int, allowed: int, error: int
) -> None:
    assert library.refused(threads, grid_y, shared, allowed) == error
    assert library.last_error() == 0


def test_memset_and_memcpy(library: ctypes.CDLL) -> None:
    x, y = integers(0, 9, 50), np.zeros(50, np.int32)
    pointer = [a.ctypes.data_as(ctypes.c_void_p) for a in (x, y)]
    assert library.copies(*pointer, 50) == 0
    np.testing.assert_array_equal(y, [-1, *x[:-1]])


def test_the_orders_do_differ(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else that results are the same in every order would say nothing."""
    x = np.arange(1, 128 * 4 + 1, dtype=np.int32)
    found = []
    for order in ORDERS:
        monkeypatch.setenv("SIMT_ORDER", order)
        out, count = np.zeros_like(x), ctypes.c_int(0)
        pointer = [a.ctypes.data_as(ctypes.c_void_p) for a in (x, out)]
        assert library.compact(pointer[0], x.size, pointer[1], ctypes.byref(count)) == 0
        found.append(out.tobytes())
    assert len(set(found)) == len(ORDERS)


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("name", ["kernels", "faults"])
def test_nvcc_compiles_the_same_file(name: str, tmp_path: Path) -> None:
    command = [str(NVCC), "-std=c++20", "-I", str(simt.ROOT / "csrc"), "-Xcompiler=-fPIC,-Wno-unknown-pragmas"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ("80", "90")]
    command += ["-c", str(simt.SOURCE / f"{name}.cu"), "-o", str(tmp_path / "kernels.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
