"""How calls are timed: rivals take turns in shuffled rounds, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from benchmarks.case import Run

SHORTEST = 1e-4  # seconds that one sample should last; shorter calls are repeated within it
BRIEF = 5e-3  # seconds: what takes less is called once more before each sample, its data back in the caches
PATIENCE = 1.0  # seconds after which warming up ends, steady or not


class Timed(Protocol):
    """What can be timed: a rival of this process, or one of the base revision in another."""

    def sample(self, calls: int, cold: bool) -> float:
        """Seconds of one call, as the mean of ``calls`` of them in a row."""


@dataclass(frozen=True)
class Times:
    """Samples of one rival, seconds a call."""

    samples: tuple[float, ...]
    calls: int  # in each sample
    warm_up_s: float

    @property
    def best(self) -> float:
        return min(self.samples)

    def quantile(self, q: float) -> float:
        ordered = sorted(self.samples)
        place = q * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    @property
    def spread(self) -> float:
        """How much the machine disturbed: the 80th over the 20th percentile."""
        return self.quantile(0.8) / self.quantile(0.2)


class Local:
    """A :class:`Run` of this process under the clock of its device."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._newest = BRIEF  # seconds of a call in the sample before

    def sample(self, calls: int, cold: bool) -> float:
        run = self.run
        with run.inside():
            if run.device != "cuda":
                if self._newest < BRIEF:  # else a rival of another process, which waited, would begin colder
                    run.call()
                start = time.perf_counter()
                for _ in range(calls):
                    run.last = run.call()
                self._newest = (time.perf_counter() - start) / calls
                return self._newest
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if cold:
                flush()
            begin.record()
            for _ in range(calls):
                run.last = run.call()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3 / calls


_scratch: list[torch.Tensor] = []


def flush() -> None:
    """Overwrite what the L2 cache of the GPU holds: four times its size."""
    if not _scratch:
        size = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 << 20
        _scratch.append(torch.empty(size, dtype=torch.float32, device="cuda"))
    _scratch[0].zero_()


def warm_up(timed: Timed, cold: bool) -> tuple[int, float]:
    """Call until two calls in a row take the same time within a tenth; returns calls per sample and seconds spent.

    The gate has called before: what is left of compilation and tuning (for another number of threads, say) ends here.
    """
    began, seen = time.perf_counter(), []
    while True:
        seen.append(timed.sample(1, cold))
        spent = time.perf_counter() - began
        steady = len(seen) > 1 and max(seen[-2:]) <= 1.1 * min(seen[-2:])
        if steady or len(seen) == 50 or (spent > PATIENCE and len(seen) > 1):
            calls = 1 if cold else max(1, math.ceil(SHORTEST / max(min(seen[-2:]), 1e-9)))
            return calls, spent


def interleave(
    rivals: Mapping[str, Timed],
    *,
    cold: bool = False,
    seconds: float = 0.25,
    least: int = 4,
    most: int = 100,
    seed: int = 0,
    after: Callable[[str], None] = lambda name: None,
) -> dict[str, Times]:
    """Time all rivals in rounds, each round in another order.

    A rival takes part until it has had ``seconds`` of its own, ``least`` rounds at least and ``most`` at most; so a
    slow one leaves early and a quick one gets many samples, all of them among those of the others.
    """
    calls, warm = {}, {}
    for name, timed in rivals.items():
        calls[name], warm[name] = warm_up(timed, cold)
    order, shuffle = list(rivals), random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in rivals}
    for done in range(most):
        order = [n for n in order if done < least or sum(samples[n]) * calls[n] < seconds]
        if not order:
            break
        shuffle.shuffle(order)
        for name in order:
            samples[name].append(rivals[name].sample(calls[name], cold))
            after(name)
    return {name: Times(tuple(samples[name]), calls[name], warm[name]) for name in rivals}


def busy(device: str, cores: int) -> str | None:
    """Why times of this moment deserve little trust; None when the machine is quiet."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        others = total - free - torch.cuda.memory_reserved()
        return f"others hold {others / 2**30:.1f} GiB of the GPU's memory" if others > 2 << 30 else None
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return f"the load average is {load:.1f} on {cores} cores" if load > 0.3 * cores else None
