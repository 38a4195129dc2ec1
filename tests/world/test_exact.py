"""exact.py against the C library and against identities; that its bits do not depend on the CPU: test_same_bytes.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mim4d.world import exact

Array = NDArray[np.float64]
N = 20_000


def _uniform(low: float, high: float, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(low, high, N)


def _wide(seed: int = 0) -> Array:
    """Magnitudes from 2**-900 to 2**900."""
    rng = np.random.default_rng(seed)
    return np.ldexp(rng.uniform(-1, 1, N), rng.integers(-900, 900, N))


AROUND_QUADRANTS = np.nextafter(np.arange(-N / 2, N / 2) * (math.pi / 2), np.inf)
MODERATE = np.ldexp(_uniform(-1, 1, 3), np.random.default_rng(4).integers(-60, 60, N))
# function, its reference, arguments, the largest difference in units of the last place. It is a whole number; measured
# are these, but for atan2 of wide numbers: 1. The C library's own error counts with it.
CASES: list[tuple[Any, Callable[..., float], tuple[Array, ...], float]] = [
    (exact.sin, math.sin, (_uniform(-8, 8),), 1.0),
    (exact.sin, math.sin, (_uniform(-1e6, 1e6),), 1.0),
    (exact.sin, math.sin, (AROUND_QUADRANTS,), 1.0),
    (exact.cos, math.cos, (_uniform(-8, 8),), 1.0),
    (exact.cos, math.cos, (_uniform(-1e6, 1e6),), 1.0),
    (exact.cos, math.cos, (AROUND_QUADRANTS,), 1.0),
    (exact.tan, math.tan, (_uniform(-8, 8),), 2.0),
    (exact.asin, math.asin, (_uniform(-1, 1),), 2.0),
    (exact.acos, math.acos, (_uniform(-1, 1),), 2.0),
    (exact.atan2, math.atan2, (_uniform(-1, 1), _uniform(-1, 1, 1)), 2.0),
    (exact.atan2, math.atan2, (_wide(), np.ones(N)), 2.0),
    (exact.exp, math.exp, (_uniform(-1, 1),), 1.0),
    (exact.exp, math.exp, (_uniform(-708, 709),), 1.0),
    (exact.log, math.log, (_uniform(0.3, 3),), 1.0),
    (exact.log, math.log, (np.abs(_wide()),), 1.0),
    (exact.hypot, math.hypot, (MODERATE, _uniform(-1, 1)), 1.0),
]


@pytest.mark.parametrize(
    ("function", "reference", "arguments", "ulp"), CASES, ids=[f"{i}-{c[0].__name__}" for i, c in enumerate(CASES)]
)
def test_close_to_the_c_library(
    function: Any, reference: Callable[..., float], arguments: tuple[Array, ...], ulp: float
) -> None:
    got = function(*arguments)
    wanted = np.array([reference(*a) for a in zip(*(x.tolist() for x in arguments), strict=True)])
    error = np.abs(got - wanted) / np.spacing(np.abs(wanted))
    assert error.max() <= ulp, f"{error.max()} at {[x[error.argmax()] for x in arguments]}"


@pytest.mark.parametrize(
    ("function", "reference", "arguments"), [c[:3] for c in CASES], ids=[f"{i}" for i in range(len(CASES))]
)
def test_one_number_and_an_array_of_it_give_the_same_bits(
    function: Any, reference: object, arguments: tuple[Array, ...]
) -> None:
    some = tuple(a[::41] for a in arguments)
    assert np.array_equal(function(*some), [function(*a) for a in zip(*some, strict=True)])


@pytest.mark.parametrize("function", [exact.sin, exact.cos, exact.tan, exact.exp, exact.log, exact.asin, exact.acos])
def test_float32_is_rounded_once(function: Any) -> None:
    x = _uniform(0.01, 1).astype(np.float32)
    wide = function(x.astype(np.float64))
    got = function(x)
    assert got.dtype == np.float32
    if function is exact.exp:  # computed in float32; measured 0.93 over all of its range
        assert (np.abs(got - wide) / np.spacing(got)).max() < 1.0
    else:
        np.testing.assert_array_equal(got, wide.astype(np.float32))


def test_exp_of_float32_over_its_range() -> None:
    x = _uniform(-87, 88).astype(np.float32)
    wanted = np.array([math.exp(v) for v in x.tolist()])
    assert (np.abs(exact.exp(x) - wanted) / np.spacing(wanted.astype(np.float32))).max() < 1.0  # measured 0.93


def test_types() -> None:
    assert type(exact.sin(1.0)) is float
    assert type(exact.sin(1)) is float
    assert type(exact.sin(np.float64(1.0))) is np.float64
    assert type(exact.sin(np.float32(1.0))) is np.float32
    assert exact.exp(np.float32(1.0)).dtype == np.float32
    assert exact.atan2(np.float32(1.0), np.ones(3, np.float32)).dtype == np.float32
    assert exact.atan2(1.0, np.ones((2, 3))).shape == (2, 3)
    assert exact.sin(np.arange(4)).dtype == np.float64
    for empty in (np.empty(0), np.empty((0, 3), np.float32)):
        for function in (exact.sin, exact.exp, exact.log, exact.acos):
            got = function(empty)
            assert (got.shape, got.dtype) == (empty.shape, empty.dtype)
    for shape in ((), (1,), (2, 0, 3)):
        assert np.shape(exact.hypot(np.zeros(shape), np.zeros(shape))) == shape


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("wrap", [float, lambda x: np.array([x])[()], lambda x: np.array([x, x])])
def test_special_values(wrap: Callable[[float], Any]) -> None:
    inf, nan = math.inf, math.nan
    same = lambda got, wanted: np.testing.assert_array_equal(got, wrap(wanted))
    for function in (exact.sin, exact.cos, exact.tan):
        same(function(wrap(inf)), nan)
        same(function(wrap(nan)), nan)
    same(exact.exp(wrap(inf)), inf)
    same(exact.exp(wrap(-inf)), 0.0)
    same(exact.exp(wrap(1000.0)), inf)
    same(exact.exp(wrap(0.0)), 1.0)
    same(exact.exp(wrap(-745.0)), 5e-324)
    same(exact.exp(wrap(nan)), nan)
    same(exact.log(wrap(0.0)), -inf)
    same(exact.log(wrap(inf)), inf)
    same(exact.log(wrap(-1.0)), nan)
    same(exact.log(wrap(-2.0)), nan)
    same(exact.log(wrap(1.0)), 0.0)
    same(exact.log(wrap(5e-324)), math.log(5e-324))
    same(exact.asin(wrap(1.0)), math.pi / 2)
    same(exact.acos(wrap(-1.0)), math.pi)
    same(exact.acos(wrap(1.0)), 0.0)
    same(exact.acos(wrap(1.5)), nan)
    for y, x in [(0.0, 0.0), (0.0, -0.0), (-0.0, -0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (-0.0, -1.0), (1.0, 1.0)]:
        same(exact.atan2(wrap(y), wrap(x)), math.atan2(y, x))
    for y, x in [(inf, inf), (-inf, inf), (inf, -inf), (1.0, -inf), (1.0, inf), (inf, 1.0), (nan, 1.0), (1.0, nan)]:
        same(exact.atan2(wrap(y), wrap(x)), math.atan2(y, x))


def test_right_angles() -> None:
    turns = np.arange(-40, 41)
    s, c = exact.sincos(turns * (math.pi / 2))
    np.testing.assert_array_equal(np.round(s), [(0, 1, 0, -1)[k % 4] for k in turns])
    np.testing.assert_array_equal(np.round(c), [(1, 0, -1, 0)[k % 4] for k in turns])
    # What the argument's own rounding leaves: measured 5.9e-15, and a float near 40 right angles is exact to 3.6e-15.
    np.testing.assert_allclose(s, np.round(s), atol=6e-15)
    np.testing.assert_allclose(c, np.round(c), atol=6e-15)


def test_the_circle() -> None:
    x = _uniform(-100, 100)
    s, c = exact.sincos(x)
    np.testing.assert_allclose(s * s + c * c, 1, atol=5e-16)  # measured 2.3e-16
    np.testing.assert_allclose(
        exact.atan2(s, c), (x + math.pi) % (2 * math.pi) - math.pi, atol=3e-14
    )  # measured 1.5e-14


@pytest.mark.parametrize("function", [exact.exp, exact.log, exact.asin, exact.tan, lambda x: exact.atan2(x, 1.0)])
def test_rising(function: Any) -> None:
    """Where a kernel changes its piece, and next to each other, results never fall by more than their error."""
    centres = np.concatenate([np.arange(1, 17) / 16, [math.log(2) / 2, math.sqrt(0.5), 0.1]])
    near = (centres[:, None] * (1 + np.arange(-20, 21) * 2.0**-52)).clip(0, 1)  # 41 neighbours about each
    y = function(near)
    assert (np.diff(y, axis=1) >= -4 * np.spacing(np.abs(y[:, 1:]))).all()
    assert (np.diff(function(np.linspace(0.001, 1, 5001))) > 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products(dtype: type) -> None:
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)
    eps = np.finfo(dtype).eps
    m, v = draw(3, 3), draw(50, 3)
    for got, wanted in (
        (exact.apply(m, v), v.astype(np.float64) @ m.T),
        (exact.apply(draw(5, 1, 3, 3) * 0 + m, v.reshape(5, 10, 3)), (v.astype(np.float64) @ m.T).reshape(5, 10, 3)),
        (exact.apply(m[:2, :2], v[:, :2]), v[:, :2].astype(np.float64) @ m[:2, :2].T),
        (exact.compose(m, m.T), m.astype(np.float64) @ m.T),
        (exact.compose(m, v.T), m.astype(np.float64) @ v.T),
        (exact.dot(v, v[0]), v.astype(np.float64) @ v[0]),
        (exact.norm(v), np.sqrt((v.astype(np.float64) ** 2).sum(1))),
        (exact.norm(v, axis=0, keepdims=True), np.sqrt((v.astype(np.float64) ** 2).sum(0, keepdims=True))),
    ):
        assert (got.dtype, got.shape) == (dtype, wanted.shape)
        np.testing.assert_allclose(got, wanted, atol=60 * eps, rtol=60 * eps)
    length = exact.norm(np.array([3.0, 4.0]))
    assert type(length) is np.float64
    assert length == 5.0


def test_waves_are_the_inverse_fourier_transform() -> None:
    re, im = np.random.default_rng(0).standard_normal((2, 64, 64))
    wanted = np.fft.ifft2(re + 1j * im).real * 64 * 64
    np.testing.assert_allclose(exact.waves(re, im), wanted, atol=3e-13)  # measured 1.3e-13, values to 270


def test_normal_numbers_are_numpy_s_but_for_the_tails() -> None:
    got, wanted = (
        f(np.random.default_rng(0), (200, 1000)) for f in (exact.normal, np.random.Generator.standard_normal)
    )
    tails = np.abs(wanted) > 3.5
    assert 20 < tails.sum() < 200  # 93 expected
    np.testing.assert_array_equal(got[~tails], wanted[~tails])
    np.testing.assert_array_equal(np.abs(got[tails]), 3.5)
    assert isinstance(exact.normal(np.random.default_rng(0)), float)


def test_rotations_stay_rotations() -> None:
    angle = _uniform(-10, 10)[:500]
    s, c, zero, one = *exact.sincos(angle), np.zeros(500), np.ones(500)
    turn = np.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).reshape(-1, 3, 3)
    gram = exact.compose(turn, turn.transpose(0, 2, 1))
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=5e-16)  # measured 2.3e-16
    back = exact.apply(turn.transpose(0, 2, 1), exact.apply(turn, np.ones(3)))
    np.testing.assert_allclose(back, 1, atol=1e-15)  # measured 3.4e-16


def test_memory_layout_does_not_matter() -> None:
    v = np.random.default_rng(0).standard_normal((500, 7))
    turned = np.asfortranarray(v)
    assert np.array_equal(exact.norm(v), exact.norm(turned))
    assert np.array_equal(exact.dot(v, v), exact.dot(turned, v))
