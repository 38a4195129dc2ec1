"""Rays through a field that two small networks read from a volume, and the formulas of both decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.infos._reading import read_batch

BOX = (-1.0, -0.8, -0.2, 1.0, 0.9, 0.3)


def decoder(generator: torch.Generator, condition: int, out: int, hidden: int, layers: int) -> list[Tensor]:
    """Weights as ``torch.nn.Linear`` starts with them, in the order of the ops."""

    def linear(o: int, i: int) -> list[Tensor]:
        bound = max(i, 1) ** -0.5
        return [(torch.rand(*s, generator=generator, dtype=torch.float64) * 2 - 1) * bound for s in ((o, i), (o,))]

    weights = linear(hidden, 3)
    for l in range(layers):
        weights += linear(out if l == layers - 1 else hidden, hidden) + linear(hidden, condition)
    return weights


def rays(generator: torch.Generator, B: int, R: int) -> tuple[Tensor, Tensor]:
    """Origins inside the box, unit directions that lie flat; some leave the box."""
    rand = lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64)
    origins = (rand(B, R, 3) - 0.5) * torch.tensor([0.6, 0.6, 0.2])
    return origins, F.normalize((rand(B, R, 3) - 0.5) * torch.tensor([1.0, 1.0, 0.2]), dim=-1)


def decode(weights: list[Tensor], p: Tensor, condition: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    h = F.linear(p, weights[0], weights[1])
    for i in range(2, len(weights), 4):
        A, b, U, c = weights[i : i + 4]
        h = F.linear(h + F.linear(condition, U, c), A, b)
        if i + 4 < len(weights):
            h = act(h)
    return h


def field(
    volume: Tensor, p: Tensor, weights: list[Tensor], aabb: Any, mode: str, padding_mode: str, align: bool
) -> tuple[Tensor, Tensor]:
    """p (B,...,3) in scaled units -> features (B,...,C), [sdf, geometry] (B,...,1+G)."""
    low, high = (torch.tensor(x, dtype=p.dtype) for x in (aabb[:3], aabb[3:]))
    f = read_batch(volume, 2 * (p - low) / (high - low) - 1, mode, padding_mode, align)
    return f, decode(weights, p, f, lambda x: torch.logaddexp(100 * x, torch.zeros_like(x)) / 100)


def opacity(sdf: Tensor, half: Tensor, s: Tensor | float) -> Tensor:
    """clip((P - N + 1e-5) / (P + 1e-5), 0, 1) with P, N = sigmoid(s (sdf -+ half)), half <= 0.

    P - N = P (1 - N) (1 - e^(2 s half)): the difference itself would lose the digits that the table of tolerances asks
    for.
    """
    enter, past = torch.sigmoid(s * (sdf - half)), torch.sigmoid(-s * (sdf + half))
    return ((-enter * past * torch.expm1(2 * s * half) + 1e-5) / (enter + 1e-5)).clamp(0, 1)


def composite(alpha: Tensor) -> Tensor:
    """Weights, front to back."""
    through, weights = torch.ones_like(alpha[..., :1]), [alpha[..., :0]]
    for a in alpha.split(1, -1):
        weights.append(a * through)
        through = through * (1 - a + 1e-7)
    return torch.cat(weights, -1)
