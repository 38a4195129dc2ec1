"""What this device reaches with so many threads, measured right before the table it is compared with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Roofline:
    """Rates that plain torch reaches: a copy from memory and within the last cache, and a product of matrices."""

    copy: float  # bytes/s read and written, from and to memory
    cached: float  # the same, where both ends fit the last cache
    cache: int  # its bytes
    flops: float  # float32, flop/s

    def bandwidth(self, moved: int, cold: bool) -> tuple[str, float]:
        """Which copy a call is compared with: what it must move decides whether the cache can hold it."""
        return ("cache", self.cached) if moved <= self.cache // 2 and not cold else ("memory", self.copy)

    def __or__(self, other: Roofline) -> Roofline:
        """The higher of two measurements of one device: a busy moment can only lower a rate."""
        copy, cached = max(self.copy, other.copy), max(self.cached, other.cached)
        return Roofline(copy, cached, self.cache, max(self.flops, other.flops))

    def compute_bound(self, flops: int, moved: int) -> bool:
        return flops / max(self.flops, 1.0) > moved / max(self.copy, 1.0)


def measure(device: str, quick: bool = False) -> Roofline:
    """``quick`` takes smaller buffers, for the tiny preset, where nobody reads the fractions."""
    cache = last_cache(device)
    large = cache // 4 if quick else max(4 * cache, 64 << 20)
    size = 256 if quick else 4096 if device == "cuda" else 768
    precise = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # tensor cores are not what float32 kernels can use
    try:
        a, b = (torch.randn(size, size, device=device) for _ in range(2))
        out = torch.empty_like(a)
        product = _best(lambda: torch.mm(a, b, out=out), device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = precise
    return Roofline(_copy(large, device), _copy(cache // 4, device), cache, 2 * size**3 / product)


def last_cache(device: str) -> int:
    """Bytes of the last cache; 32 MiB where the system does not say."""
    if device == "cuda":
        return getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 32 << 20
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    found = [int(s[:-1]) * units[s[-1]] for s in sizes if s[-1:] in units and s[:-1].isdigit()]
    return max(found, default=32 << 20)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _copy(size: int, device: str) -> float:
    """Bytes read and written in a second by a copy of ``size`` bytes."""
    source = torch.ones(max(size, 64) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _best(lambda: target.copy_(source), device)


def _best(call: Callable[[], object], device: str, repeat: int = 7) -> float:
    call()
    best = float("inf")
    for _ in range(repeat):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
    return best
