"""Elementary functions that give the same bits on every machine.

numpy's and the C library's sin, exp, hypot, matrix products and the like change in their last bits with the CPU's
vector units, the BLAS and the library's version: a world made of them would differ from machine to machine. Here all is
made of operations whose results IEEE 754 fixes, one rounding each (+ - * / sqrt, floor, ldexp, frexp, comparisons), in
a fixed order. numpy's ufuncs and Python's floats do just these, and neither fuses a product with a sum.

Floats and numpy scalars give their own type, arrays of float32 and float64 their own dtype, an array the same bits as
its numbers one by one. float32 is computed in float64 and rounded once, but for exp of arrays, norm, dot, apply and
compose, which stay in float32; whole numbers count as float64. Coefficients are Taylor's, exact fractions rounded once.
NaN and infinities behave as in numpy; zeros may lose their sign. Errors against 60 digits, in units of the last place
of the result, over 40 000 arguments each: sin and cos 0.83 within +-10^6, tan 1.9, asin 1.9, acos 1.8, atan2 1.6, exp
0.91 (in float32 0.93), log 0.91, hypot 1.2.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

V = TypeVar("V", bound="float | np.floating[Any] | NDArray[Any]")
Floats = NDArray[Any]

PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494")
LOG_2 = Fraction("0.693147180559945309417232121458176568075500134360255254120680")


def _split(value: Fraction, *bits: int) -> list[float]:
    """The value as a sum of floats: heads that end so many bits after the point, and the rest."""
    parts = []
    for b in bits:
        head = Fraction(math.floor(value * (1 << b)), 1 << b)
        parts.append(float(head))
        value -= head
    return [*parts, float(value)]


def _arctangent(x: Fraction) -> Fraction:
    """To 30 digits for x in [0, 1] by Euler's series: terms q^n (2 4 ... 2n) / (3 5 ... 2n+1), q = x^2 / (1 + x^2)."""
    scale, q = 1 << 120, x * x / (1 + x * x)
    term = total = math.floor(x / (1 + x * x) * scale)
    for n in range(1, 110):
        term = term * 2 * n * q.numerator // ((2 * n + 1) * q.denominator)
        total += term
    return Fraction(total, scale)


TWO_OVER_PI, ONE_OVER_LOG_2 = float(2 / PI), float(1 / LOG_2)
TURN = _split(PI / 2, 32, 64)  # products of the heads with whole numbers below 2^20 are exact
LOG, LOG_SINGLE = _split(LOG_2, 33), _split(LOG_2, 12)
RIGHT_ANGLE, STRAIGHT_ANGLE = _split(PI / 2, 52), _split(PI, 51)
ANGLES = [_split(_arctangent(Fraction(k, 8)), 52) for k in range(9)]  # of k / 8
HEADS, RESTS = (np.array(column) for column in zip(*ANGLES, strict=True))
# Coefficients from the highest power down.
SIGN = (1, -1)
SINE = [SIGN[n % 2] / math.factorial(2 * n + 1) for n in range(8, 0, -1)]  # x^17 ... x^3
COSINE = [SIGN[n % 2] / math.factorial(2 * n) for n in range(9, 1, -1)]  # x^18 ... x^4
EXPONENTIAL = [1 / math.factorial(n) for n in range(14, 1, -1)]  # x^14 ... x^2
EXPONENTIAL_SINGLE = EXPONENTIAL[-7:]  # x^8 ... x^2
ARCTANGENT = [SIGN[n % 2] / (2 * n + 1) for n in range(7, 0, -1)]  # x^15 ... x^3
LOGARITHM = [2 / (2 * n + 1) for n in range(11, 0, -1)]  # x^23 ... x^3 of log((1 + x) / (1 - x))

# The kernels are written once for arrays and for plain floats, which are ten times quicker one by one. What plain
# floats refuse (floor of a NaN, an overflow) is left to the arrays.
ARRAYS = SimpleNamespace(
    floor=np.floor,
    sqrt=np.sqrt,
    frexp=np.frexp,
    ldexp=np.ldexp,
    where=np.where,
    signbit=np.signbit,
    minimum=np.minimum,
    maximum=np.maximum,
    whole=lambda x: np.fmax(x, 0.0).astype(np.int32) - np.fmax(-x, 0.0).astype(np.int32),
    angle=lambda k: (HEADS[k], RESTS[k]),
)
PLAIN = SimpleNamespace(
    floor=lambda x: float(math.floor(x)),
    sqrt=math.sqrt,
    frexp=math.frexp,
    ldexp=math.ldexp,
    where=lambda condition, a, b: a if condition else b,
    signbit=lambda x: math.copysign(1.0, x) < 0,
    minimum=min,
    maximum=max,
    whole=int,
    angle=ANGLES.__getitem__,
)
FEW = 12  # so many numbers are quicker one by one


def _run(kernel: Callable[..., Any], *inputs: Any) -> Any:
    """Calls kernel(*inputs, ARRAYS or PLAIN), which returns a tuple, and gives the results the type of the inputs."""
    inputs = tuple(x[()] if isinstance(x, np.ndarray) and x.ndim == 0 else x for x in inputs)
    if all(isinstance(x, (float, int)) for x in inputs):  # numpy's float64 is a float
        kind = np.float64 if any(isinstance(x, np.float64) for x in inputs) else float
        try:
            return tuple(map(kind, kernel(*map(float, inputs), PLAIN)))
        except (ArithmeticError, ValueError):
            return tuple(kind(out[0]) for out in kernel(*(np.array([float(x)]) for x in inputs), ARRAYS))
    dtype = np.float32 if np.result_type(*inputs) == np.float32 else np.float64
    wide = [np.asarray(x, np.float64) for x in inputs]
    if len(wide) > 1:
        wide = list(np.broadcast_arrays(*wide))
    shape = wide[0].shape
    outs: Any = None
    if 0 < wide[0].size <= FEW:
        with contextlib.suppress(ArithmeticError, ValueError):
            rows = [kernel(*x, PLAIN) for x in zip(*(w.ravel().tolist() for w in wide), strict=True)]
            outs = [np.array(out) for out in zip(*rows, strict=True)]
    if outs is None:
        outs = kernel(*map(np.atleast_1d, wide), ARRAYS)
    return tuple(out.astype(dtype, copy=False).reshape(shape)[() if shape == () else ...] for out in outs)


def _polynomial(x: Any, coefficients: list[float]) -> Any:
    total = coefficients[0] * x + coefficients[1]
    for c in coefficients[2:]:
        total *= x
        total += c
    return total


def _sin_cos(x: Any, o: SimpleNamespace) -> tuple[Any, Any]:
    turns = o.floor(x * TWO_OVER_PI + 0.5)
    head, part = x - turns * TURN[0], turns * TURN[1]
    near = head - part
    lost = turns * TURN[2] - ((head - near) - part)
    r = near - lost  # in [-pi/4, pi/4], and what its rounding lost
    rest = (near - r) - lost
    z = r * r
    s = r + (r * z * _polynomial(z, SINE) + rest)
    half = 0.5 * z
    one = 1.0 - half
    c = one + (((1.0 - one) - half) + (z * z * _polynomial(z, COSINE) - r * rest))
    quadrant = turns - 4.0 * o.floor(0.25 * turns)
    odd = (quadrant == 1.0) | (quadrant == 3.0)
    s, c = o.where(odd, c, s), o.where(odd, s, c)
    return o.where(quadrant >= 2.0, -s, s), o.where((quadrant == 1.0) | (quadrant == 2.0), -c, c)


def _tan(x: Any, o: SimpleNamespace) -> tuple[Any]:
    s, c = _sin_cos(x, o)
    return (s / c,)


def _atan2(y: Any, x: Any, o: SimpleNamespace) -> tuple[Any]:
    up, along = abs(y), abs(x)
    steep = up > along
    low, high = o.where(steep, along, up), o.where(steep, up, along)
    even = low == high  # zeros and infinities among them
    t = o.where(even, o.where(high == 0.0, 0.0, 1.0), low) / o.where(even, 1.0, high)  # in [0, 1]
    eighths = o.floor(8.0 * t + 0.5)
    head, rest = o.angle(o.whole(eighths))
    c = 0.125 * eighths
    u = (t - c) / (1.0 + t * c)  # in [-1/16, 1/16]
    z = u * u
    angle = head + (u + (u * z * _polynomial(z, ARCTANGENT) + rest))
    angle = o.where(steep, (RIGHT_ANGLE[0] - angle) + RIGHT_ANGLE[1], angle)
    angle = o.where(o.signbit(x), (STRAIGHT_ANGLE[0] - angle) + STRAIGHT_ANGLE[1], angle)
    return (o.where(o.signbit(y), -angle, angle),)


def _exp(x: Any, o: SimpleNamespace) -> tuple[Any]:
    x = o.minimum(o.maximum(x, -800.0), 800.0)
    doublings = o.floor(x * ONE_OVER_LOG_2 + 0.5)
    r = (x - doublings * LOG[0]) - doublings * LOG[1]
    return (o.ldexp(1.0 + (r + r * r * _polynomial(r, EXPONENTIAL)), o.whole(doublings)),)


def _exp_single(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same in float32 and in place: millions of pixels ask for it."""
    r = np.maximum(x, np.float32(-110))
    np.minimum(r, np.float32(90), out=r)
    doublings = r * np.float32(ONE_OVER_LOG_2)
    doublings += np.float32(0.5)
    np.floor(doublings, out=doublings)
    part = doublings * np.float32(LOG_SINGLE[0])
    r -= part
    np.multiply(doublings, np.float32(LOG_SINGLE[1]), out=part)
    r -= part
    np.multiply(r, np.float32(EXPONENTIAL_SINGLE[0]), out=part)
    for c in EXPONENTIAL_SINGLE[1:]:
        part += np.float32(c)
        part *= r
    part *= r
    part += r
    part += np.float32(1)
    np.fmin(doublings, np.float32(200), out=doublings)  # NaN is no whole number
    return np.ldexp(part, doublings.astype(np.int32), out=part)


def _log(x: Any, o: SimpleNamespace) -> tuple[Any]:
    m, exponent = o.frexp(x)
    low = m < 0.7071067811865476
    f = o.where(low, m + m, m) - 1.0
    n = exponent - 1.0 * low
    s = f / (2.0 + f)
    z = s * s
    out = n * LOG[0] - ((s * (f - z * _polynomial(z, LOGARITHM)) - n * LOG[1]) - f)
    out = o.where(x == 0.0, -math.inf, o.where(x == math.inf, x, out))
    return (o.where(x < 0.0, math.nan, out),)


def sincos(x: V) -> tuple[V, V]:
    """Sine and cosine of radians at the price of one. Beyond +-10^6 they lose digits as |x| grows."""
    if type(x) is float and -1e9 < x < 1e9:  # by far the most calls
        return _sin_cos(x, PLAIN)
    return _run(_sin_cos, x)


def sin(x: V) -> V:
    """As :func:`sincos`."""
    return sincos(x)[0]


def cos(x: V) -> V:
    """As :func:`sincos`."""
    return sincos(x)[1]


def tan(x: V) -> V:
    """Of radians, within +-10^6."""
    return _run(_tan, x)[0]


def atan2(y: V, x: V) -> V:
    """The angle of (x, y) in (-pi, pi]; atan2(0, 0) is 0."""
    return _run(_atan2, y, x)[0]


def asin(x: V) -> V:
    """In [-pi/2, pi/2]; NaN outside [-1, 1]."""
    return _run(lambda x, o: _atan2(x, o.sqrt((1.0 - x) * (1.0 + x)), o), x)[0]


def acos(x: V) -> V:
    """In [0, pi]; NaN outside [-1, 1]."""
    return _run(lambda x, o: _atan2(o.sqrt((1.0 - x) * (1.0 + x)), x, o), x)[0]


def exp(x: V) -> V:
    """Arrays of float32 stay in float32."""
    if isinstance(x, np.ndarray) and x.dtype == np.float32:
        return _exp_single(np.atleast_1d(x)).reshape(x.shape)  # type: ignore[return-value]  # V is the array
    return _run(_exp, x)[0]


def log(x: V) -> V:
    """Natural; -inf at 0 and NaN below."""
    return _run(_log, x)[0]


def hypot(x: V, y: V) -> V:
    """sqrt(x^2 + y^2), computed just so: no guard against squares that overflow."""
    return _run(lambda x, y, o: (o.sqrt(x * x + y * y),), x, y)[0]


def dot(a: Floats, b: Floats) -> Floats:
    """Sum over the last axis of a * b (broadcast), first to last."""
    a, b = np.asarray(a), np.asarray(b)
    total = a[..., 0] * b[..., 0]
    for i in range(1, a.shape[-1]):
        total = total + a[..., i] * b[..., i]
    return total


def norm(x: Floats, axis: int = -1, keepdims: bool = False) -> Floats:
    """Euclidean length along an axis, squares summed first to last. float32 is computed in float32."""
    x = np.moveaxis(np.asarray(x), axis, -1)
    out = np.sqrt(dot(x, x))
    return np.expand_dims(out, axis) if keepdims else out


def apply(m: Floats, v: Floats) -> Floats:
    """Matrices (..., n, k) times vectors (..., k), the leading axes broadcast -> (..., n)."""
    m, v = np.asarray(m), np.asarray(v)
    parts = [np.asarray(v[..., j], order="C") for j in range(v.shape[-1])]  # long rows are quicker than short ones
    rows = []
    for i in range(m.shape[-2]):
        total = m[..., i, 0] * parts[0]
        for j in range(1, len(parts)):
            total = total + m[..., i, j] * parts[j]
        rows.append(total)
    return np.stack(rows, -1)


def compose(a: Floats, b: Floats) -> Floats:
    """Products of matrices (..., n, k) and (..., k, m), the leading axes broadcast -> (..., n, m)."""
    a, b = np.asarray(a), np.asarray(b)
    total = a[..., :, :1] * b[..., :1, :]
    for i in range(1, a.shape[-1]):
        total = total + a[..., :, i : i + 1] * b[..., i : i + 1, :]
    return total


def _transform(re: Floats, im: Floats) -> tuple[Floats, Floats]:
    """Sums over k of (re + i im)[k] exp(2 pi i j k / n), j = 0 ... n-1, along the first axis; n a power of two."""
    n, columns = re.shape
    order = np.zeros(n, np.intp)
    half = 1
    while half < n:  # numbers 0 ... n-1 with their bits reversed
        order[half : 2 * half] = order[:half] + n // (2 * half)
        half *= 2
    re, im = re[order], im[order]
    half = 1
    while half < n:
        sin, cos = (w[:, None] for w in sincos(math.pi * np.arange(half) / half))
        (a, b), (c, d) = (x.reshape(-1, 2, half, columns).swapaxes(0, 1) for x in (re, im))
        turned_re, turned_im = b * cos - d * sin, b * sin + d * cos
        re = np.stack([a + turned_re, a - turned_re], 1).reshape(n, columns)
        im = np.stack([c + turned_im, c - turned_im], 1).reshape(n, columns)
        half *= 2
    return re, im


def waves(re: Floats, im: Floats) -> Floats:
    """The real part of the inverse discrete Fourier transform (times n^2) of re + i im, (n, n), n a power of two."""
    re, im = _transform(*(np.asarray(x, np.float64) for x in (re, im)))
    return _transform(re.T, im.T)[0].T


def normal(rng: np.random.Generator, shape: int | tuple[int, ...] | None = None) -> Any:
    """Normally distributed float64, cut off at +-3.5: beyond 3.65 numpy asks the C library's logarithm."""
    return np.clip(rng.standard_normal(shape), -3.5, 3.5)
