"""Speed as a function of time, and a path driven at that speed. float64, metres, seconds, radians."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mim4d.world.geometry import Path

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Speed:
    """``values`` (m/s) at the rising ``times`` (s), a smooth step from each to the next, constant before and after.

    The step is the cubic 3 x^2 - 2 x^3: the acceleration is zero at its ends and at most 1.5 times the mean.
    """

    times: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def steady(cls, value: float) -> Speed:
        return cls((0.0,), (float(value),))

    @cached_property
    def _table(self) -> tuple[Array, Array, Array, Array]:
        """Times, values, steps of the value and lengths from the first time on, (K,) each; the last step is zero."""
        t, v = np.array(self.times, np.float64), np.array(self.values, np.float64)
        step = np.append(v[1:] - v[:-1], 0.0)
        lengths = (t[1:] - t[:-1]) * (v[:-1] + step[:-1] / 2)
        return t, v, step, np.concatenate([[0.0], np.cumsum(lengths)])

    def _where(self, t: float | Array) -> tuple[NDArray[np.intp], Array, Array]:
        """The knot before t, the share of its interval that has passed (0 to 1), and the seconds since."""
        times = self._table[0]
        t = np.asarray(t, np.float64)
        i = np.maximum(np.searchsorted(times, t, side="right") - 1, 0)
        since = t - times[i]
        width = np.append(times[1:] - times[:-1], 1.0)[i]
        return i, np.clip(since / width, 0.0, 1.0), since

    def at(self, t: float | Array) -> Array:
        """m/s at the times (...)."""
        i, x, _ = self._where(t)
        _, v, step, _ = self._table
        return v[i] + step[i] * x * x * (3.0 - 2.0 * x)

    def _travelled(self, t: float | Array) -> Array:
        i, x, since = self._where(t)
        times, v, step, lengths = self._table
        width = np.append(times[1:] - times[:-1], 1.0)[i]
        return lengths[i] + v[i] * since + step[i] * width * x * x * x * (1.0 - x / 2)

    def length(self, t: float | Array) -> Array:
        """Metres travelled from t = 0 on, at the times (...); negative before."""
        return self._travelled(t) - self._travelled(0.0)

    def when(self, length: float, until: float) -> float:
        """The time in [0, until] at which so many metres have been travelled; inf where they never are."""
        if float(self.length(until)) < length:
            return math.inf
        low, high = 0.0, until
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if float(self.length(middle)) < length else (low, middle)
        return high


@dataclass(frozen=True)
class Route:
    """A path driven from length ``s0`` on."""

    path: Path
    s0: float
    speed: Speed

    def pose(self, t: float | Array) -> tuple[Array, Array]:
        """Seconds (...) -> position on the ground (..., 3) and heading (...)."""
        return self.path.at(self.s0 + self.speed.length(t))


BRAKE, PULL = 1.6, 1.3  # mean deceleration and acceleration of a calm driver, m/s^2; at most 1.5 times that


def wander(rng: np.random.Generator, mean: float, swing: float, seconds: float) -> Speed:
    """A speed that rises and falls between ``mean`` -+ ``swing`` every three seconds or so."""
    times = [float(rng.uniform(-3.0, -1.0))]
    while times[-1] < seconds + 1.0:
        times.append(times[-1] + float(rng.uniform(2.5, 4.0)))
    return Speed(tuple(times), tuple(float(mean + swing * rng.uniform(-1.0, 1.0)) for _ in times))


def ease(start: float, *steps: tuple[float, float]) -> Speed:
    """A speed that is ``start`` and then, for each (time, value) in turn, reaches the value at that time or, where
    braking or pulling away calmly takes longer, as soon after the time before as it can.
    """
    knots: list[tuple[float, float]] = []
    now, value = -math.inf, start
    for time, target in steps:
        needed = max(abs(target - value) / (BRAKE if target < value else PULL), 0.25)
        begin = max(now, time - needed)
        if begin > now:
            knots.append((begin, value))
        now, value = begin + needed, target
        knots.append((now, value))
    times, values = zip(*knots, strict=True)
    return Speed(times, values)
