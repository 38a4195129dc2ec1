"""What a benchmark compares, and how it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Run = Callable[[], Tensor | Sequence[Tensor]]


@dataclass
class Case:
    """One table: rivals that compute the same thing, the first being what the others are measured against."""

    op: str
    preset: str
    direction: str  # forward, backward
    rivals: dict[str, Run]  # name -> call that returns the result, or the gradients
    oracle: Run  # the same in float64
    tolerance: float  # largest relative error (L2) that a rival may have
    bytes: int  # compulsory traffic: every input read once, every output written once


def tensors(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def error(result: Tensor | Sequence[Tensor], oracle: Tensor | Sequence[Tensor]) -> float:
    """Largest error of any tensor in the L2 norm, relative to the oracle's."""
    pairs = zip(tensors(result), tensors(oracle), strict=True)
    return max(float((a.detach().double() - b).norm() / b.norm()) for a, b in pairs)


def best_times(runs: dict[str, Run], repeat: int, device: str) -> dict[str, float]:
    """Best of ``repeat`` seconds for each run. The runs take turns, so that a busy moment of the machine hits all of
    them."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeat):
        for name, run in runs.items():
            wait()
            start = time.perf_counter()
            run()
            wait()
            best[name] = min(best[name], time.perf_counter() - start)
    return best
