"""One seed, the same bytes on any machine: with all vector units and without them, and by rule."""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mim4d.world
from mim4d.world import caster

MAKE = """
import hashlib, sys
import numpy as np
from mim4d.world import Knobs, generate
generate(sys.argv[1] + "/day", seed=5, scenes=2, seconds=0.5, image_size=(48, 84))
wet = Knobs(weather="rain", light="night", texture=1.7, sensor_noise=2, traffic=1.5)  # puddles, lamps, haze, grain
generate(sys.argv[1] + "/night", seed=6, scenes=2, seconds=0.5, image_size=(32, 40), knobs=wet, extras=True)
x = np.linspace(-5, 5, 100_001, dtype=np.float32)
print(hashlib.md5(np.exp(x).tobytes() + np.sin(x).tobytes()).hexdigest())
"""


def _dispatched() -> list[str]:
    """What numpy would use of this CPU beyond its least, in numpy's own names."""
    try:
        from numpy._core import _multiarray_umath as umath
    except ModuleNotFoundError:
        from numpy.core import _multiarray_umath as umath
    return [f for f in umath.__cpu_dispatch__ if umath.__cpu_features__.get(f)]


def _lowered() -> dict[str, str]:
    """An environment in which numpy, the C library, the BLAS and libjpeg do with what every x86-64 has."""
    without = "AVX2,FMA,FMA4,AVX,AVX512F,AVX512VL,AVX512BW,AVX512DQ,AVX512CD,ERMS,SSE4_2,SSE4_1,SSSE3,BMI2"
    return {
        "NPY_DISABLE_CPU_FEATURES": " ".join(_dispatched()),
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=" + ",".join(f"-{f}" for f in without.split(",")),
        "OPENBLAS_CORETYPE": "Prescott",
        "JSIMD_FORCENONE": "1",
        "OMP_NUM_THREADS": "1",
    }


def _world(out: Path, env: dict[str, str]) -> tuple[dict[str, str], str]:
    """Makes a world in another process -> the digest of every file, and of what numpy itself computes."""
    env = {**os.environ, **env, "PYTHONPATH": str(Path(mim4d.world.__file__).parents[2])}  # this mim4d and no other
    done = subprocess.run([sys.executable, "-c", MAKE, str(out)], env=env, check=True, capture_output=True, text=True)
    files = {str(p.relative_to(out)): hashlib.md5(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()}
    return files, done.stdout.split()[-1]


@pytest.mark.slow
@pytest.mark.skipif(not caster.LIBRARY.exists(), reason=f"{caster.LIBRARY.name} is not built (make setup)")
def test_the_same_bytes_without_any_vector_unit(tmp_path: Path) -> None:
    plain, of_numpy = _world(tmp_path / "plain", {})
    lowered, of_lowered_numpy = _world(tmp_path / "lowered", _lowered())
    assert len(plain) > 300
    assert sorted(plain) == sorted(lowered)
    assert [f for f in plain if plain[f] != lowered[f]] == []
    if {"AVX2", "AVX512_SKX", "X86_V3", "X86_V4"} & set(_dispatched()):
        assert of_numpy != of_lowered_numpy, "nothing was lowered, so nothing was shown"


# What gives other bits on other machines: functions of the C library, of the BLAS, and those numpy has several of.
INEXACT = {
    *("sin", "cos", "tan", "arcsin", "arccos", "arctan", "arctan2", "asin", "acos", "atan", "atan2"),
    *("sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "asinh", "acosh", "atanh"),
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logaddexp", "pow", "power", "float_power", "cbrt"),
    *("hypot", "dist", "erf", "gamma", "sinc", "interp"),
    *(
        "dot",
        "vdot",
        "inner",
        "outer",
        "matmul",
        "einsum",
        "tensordot",
        "linalg",
        "fft",
        "convolve",
        "correlate",
        "cov",
    ),
    *("polyfit", "polyval", "geomspace", "logspace", "fsum", "sumprod", "fma"),
}
METHODS = {"dirichlet", "gamma", "beta", "chisquare", "lognormal", "exponential", "poisson", "vonmises", "dot"}
METHODS |= {"normal", "standard_normal", "standard_exponential", "standard_gamma", "laplace", "logistic", "rayleigh"}


def _inexact(tree: ast.AST) -> list[str]:
    """Lines that compute what differs from machine to machine."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.BinOp, ast.AugAssign)):
            if isinstance(node.op, ast.MatMult):
                found.append(f"{node.lineno}: @ (exact.apply, exact.compose, exact.dot)")
            elif isinstance(node.op, ast.Pow):
                whole = isinstance(node, ast.BinOp) and all(
                    isinstance(x, ast.Constant) and isinstance(x.value, int) for x in (node.left, node.right)
                )
                if not whole:
                    found.append(f"{node.lineno}: ** (multiply, or exact.exp and exact.log)")
        elif isinstance(node, ast.Attribute):
            of = node.value.id if isinstance(node.value, ast.Name) else ""
            if of in ("np", "math", "numpy") and node.attr in INEXACT:
                found.append(f"{node.lineno}: {of}.{node.attr} (mim4d.world.exact)")
            elif of != "exact" and node.attr in METHODS:
                found.append(f"{node.lineno}: .{node.attr} (mim4d.world.exact, or uniform numbers)")
        elif isinstance(node, ast.Name) and node.id == "pow":
            found.append(f"{node.lineno}: pow (multiply, or exact.exp and exact.log)")
        elif isinstance(node, ast.ImportFrom) and node.module in (
            "math",
            "numpy",
            "numpy.linalg",
            "numpy.fft",
            "cmath",
        ):
            bad = [a.name for a in node.names if a.name in INEXACT]
            found += [f"{node.lineno}: from {node.module} import {name}" for name in bad]
    return found


READERS = {"leakage", "statistics"}  # what looks at finished worlds and writes nothing into them
FILES = sorted(p for p in Path(mim4d.world.__file__).parent.rglob("*.py") if p.stem not in READERS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_nothing_computes_what_differs_from_machine_to_machine(path: Path) -> None:
    found = _inexact(ast.parse(path.read_text()))
    if path.stem == "exact":
        found = [line for line in found if "standard_normal" not in line]  # it cuts off what differs
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "a @ b",
        "a @= b",
        "x ** 2",
        "2 ** y",
        "x **= 2",
        "np.sin(x)",
        "math.hypot(x, y)",
        "np.linalg.norm(x)",
        "rng.gamma(1)",
    ]
    + [
        "from math import sin",
        "np.fft.rfft2(x)",
        "x.dot(y)",
        "rng.dirichlet((1, 1))",
        "self.rng.standard_normal(3)",
        "f(np.exp)",
        "pow(x, y)",
    ],
)
def test_the_rule_sees(line: str) -> None:
    assert _inexact(ast.parse(line))


@pytest.mark.parametrize(
    "line", ["exact.sin(x)", "2**10", "f(**fields)", "np.sqrt(x)", "exact.dot(a, b)", "math.floor(x)"]
)
def test_the_rule_lets_pass(line: str) -> None:
    assert not _inexact(ast.parse(line))


def test_the_rule_finds_the_room() -> None:
    assert {"exact", "scene", "sensors", "shading", "generator"} <= {p.stem for p in FILES}
