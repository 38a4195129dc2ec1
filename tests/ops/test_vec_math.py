"""The SIMD values' own exponential, logarithm and what is built on them, on every instruction set of this processor,
against the extended floats of NumPy."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.isa import LEVELS, supported

ROOT = Path(__file__).parent.parent.parent
FLAGS = ["-std=c++20", "-O2", "-fno-math-errno", "-fno-trapping-math", "-w", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
DTYPES = (np.float32, np.float64)
Function = Callable[[str, np.ndarray], np.ndarray]

each_level = pytest.mark.parametrize("level", LEVELS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    """tests/cpp/vec_math.cpp, compiled with the options of cmake/isa.cmake for each level that can run here."""
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler is not None, "a C++ compiler is not installed"
    text = (ROOT / "cmake" / "isa.cmake").read_text()
    found = {}
    for level in supported():
        options = re.search(rf"set\(MIM4D_FLAGS_{level} (.*)\)", text)
        assert options is not None, level
        path = tmp_path_factory.mktemp("vec_math") / f"{level}.so"
        names = [f"-DMIM4D_ISA={level}", f"-DMIM4D_ISA_{level}", *options[1].replace('"', "").split()]
        source = ROOT / "tests" / "cpp" / "vec_math.cpp"
        subprocess.run([compiler, *FLAGS, *names, source, "-o", path], check=True)
        found[level] = ctypes.CDLL(str(path))
    return found


def bind(libraries: dict[str, ctypes.CDLL], level: str) -> Function:
    if level not in libraries:
        pytest.skip(f"this processor has no {level}")

    def call(name: str, x: np.ndarray) -> np.ndarray:
        word = {"float32": "float", "float64": "double"}[x.dtype.name]
        padded = np.concatenate([x, np.zeros(-len(x) % 16, x.dtype)])
        out = np.empty_like(padded)
        pointer = ctypes.POINTER(ctypes.c_float if word == "float" else ctypes.c_double)
        function = getattr(libraries[level], f"{name}_{word}")
        function(padded.ctypes.data_as(pointer), out.ctypes.data_as(pointer), ctypes.c_int64(len(padded)))
        return out[: len(x)]

    return call


def spread(dtype: type, low: float, high: float, count: int = 200_001) -> np.ndarray:
    """Evenly, and around zero on every scale down to the denormal numbers."""
    tiny = np.finfo(dtype).smallest_subnormal
    scales = np.geomspace(float(tiny) * 2, 1, 2001).astype(dtype)
    values = np.concatenate([np.linspace(low, high, count), scales, -scales, [0.0, -0.0, tiny, -tiny]])
    return values[(values >= low) & (values <= high)].astype(dtype)


def ulps(got: np.ndarray, want: np.ndarray) -> float:
    """Largest error in units of eps times the result, of the smallest denormal number where that is more."""
    info = np.finfo(got.dtype)
    unit = np.maximum(np.abs(want) * np.longdouble(info.eps), np.longdouble(info.smallest_subnormal))
    return float((np.abs(got.astype(np.longdouble) - want) / unit).max())


def exact_sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.longdouble)))


def exact_softplus(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.longdouble)
    return np.maximum(x, 0) + np.log1p(np.exp(-100 * np.abs(x))) / 100


@each_level
@each_dtype
def test_exp(libraries: dict[str, ctypes.CDLL], level: str, dtype: type) -> None:
    run = bind(libraries, level)
    low, high = (-103.9, 88.7) if dtype == np.float32 else (-745.1, 709.7)  # to the least denormal, to the greatest
    x = spread(dtype, low, high)
    assert ulps(run("exp", x), np.exp(x.astype(np.longdouble))) < 1.5  # measured 0.74
    beyond = np.array([200, 1e30, np.inf, -200, -1e30, -np.inf], dtype) * (1 if dtype == np.float32 else 5)
    assert run("exp", beyond).tolist() == [np.inf] * 3 + [0.0] * 3
    assert np.isnan(run("exp", np.array([np.nan], dtype))).all()
    assert run("exp", np.array([0.0, -0.0], dtype)).tolist() == [1.0, 1.0]


@each_level
@each_dtype
def test_log1p(libraries: dict[str, ctypes.CDLL], level: str, dtype: type) -> None:
    run = bind(libraries, level)
    x = spread(dtype, 0, 1)
    assert ulps(run("log1p", x), np.log1p(x.astype(np.longdouble))) < 3  # measured 1.92
    assert np.isnan(run("log1p", np.array([np.nan], dtype))).all()


@each_level
@each_dtype
def test_expm1(libraries: dict[str, ctypes.CDLL], level: str, dtype: type) -> None:
    run = bind(libraries, level)
    x = spread(dtype, -40, 0)
    assert ulps(run("expm1", x), np.expm1(x.astype(np.longdouble))) < 3  # measured 0.94
    odd = run("expm1", np.array([-np.inf, -1e30, 0, np.nan], dtype))
    assert odd[:3].tolist() == [-1, -1, 0]
    assert np.isnan(odd[3])


@each_level
@each_dtype
def test_reciprocal(libraries: dict[str, ctypes.CDLL], level: str, dtype: type) -> None:
    x = np.geomspace(1e-20, 1e20, 100_000).astype(dtype)
    x = np.concatenate([x, -x])
    assert ulps(bind(libraries, level)("reciprocal", x), 1 / x.astype(np.longdouble)) < 1.5  # measured 0.5


@each_level
@each_dtype
def test_sigmoid(libraries: dict[str, ctypes.CDLL], level: str, dtype: type) -> None:
    run = bind(libraries, level)
    x = spread(dtype, -85, 85)  # the results are normal numbers
    assert ulps(run("sigmoid", x), exact_sigmoid(x)) < 3  # measured 1.55
    odd = run("sigmoid", np.array([np.inf, 1e30, -np.inf, -1e30, np.nan], dtype))
    assert odd[:4].tolist() == [1, 1, 0, 0]
    assert np.isnan(odd[4])


@each_level
@each_dtype
def test_softplus(libraries: dict[str, ctypes.CDLL], level: str, dtype: type) -> None:
    run = bind(libraries, level)
    x = spread(dtype, -0.8, 0.8)
    # exp(-100 |x|) carries the rounding of its argument, 80 / 2 units at most
    assert ulps(run("softplus", x), exact_softplus(x)) < 60  # measured 34
    assert np.abs(run("softplus", x) - exact_softplus(x)).max() < 0.25 * np.finfo(dtype).eps  # measured 0.12
    slope = run("softplus_slope", x)
    assert (
        np.abs(slope - exact_sigmoid(100 * x.astype(np.longdouble))).max() < 1.5 * np.finfo(dtype).eps
    )  # measured 0.75
    odd = np.array([np.inf, 1e30, 3.0, -3.0, -1e30, -np.inf, np.nan], dtype)
    value, slope = run("softplus", odd), run("softplus_slope", odd)
    assert value[:3].tolist() == odd[:3].tolist()
    assert slope[:3].tolist() == [1, 1, 1]
    assert (np.abs(value[3:6]) < 1e-100 if dtype == np.float64 else value[3:6] == 0).all()
    assert np.isnan(value[6])
    assert np.isnan(slope[6])


@each_level
@each_dtype
def test_tiles(libraries: dict[str, ctypes.CDLL], level: str, dtype: type) -> None:
    run = bind(libraries, level)
    n = getattr(libraries[level], f"width_{'float' if dtype == np.float32 else 'double'}")()
    tile = np.arange(n * n, dtype=dtype).reshape(n, n)
    size = max(n * n, 16)
    flat = np.zeros(size, dtype)
    flat[: n * n] = tile.ravel()
    assert (run("transpose", flat)[: n * n].reshape(n, n) == tile.T).all()
    assert (run("sums", flat)[:n] == tile.sum(1)).all()
