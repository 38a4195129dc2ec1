"""Argument checks that the wrappers share. Every message names op, argument, what was got and what is wanted."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import env

HALF = (torch.float16, torch.bfloat16)
T = TypeVar("T")


def tensor(op: str, name: str, value: object, *shape: int | str) -> None:
    """A tensor of this shape: an int must be met, a str only names its axis. Raises TypeError or ValueError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"mim4d.ops.{op}: {name} is {type(value).__name__}, wanted a Tensor ({_text(shape)})")
    fits = value.dim() == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"mim4d.ops.{op}: {name} has shape {tuple(value.shape)}, wanted ({_text(shape)})")


def _text(shape: Sequence[int | str]) -> str:
    return ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")


def tensors(op: str, name: str, value: object) -> list[Tensor]:
    """A list or tuple of tensors, as a list."""
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        raise TypeError(f"mim4d.ops.{op}: {name} is {type(value).__name__}, wanted a list of Tensors")
    for i, item in enumerate(value):
        if not isinstance(item, Tensor):
            raise TypeError(f"mim4d.ops.{op}: {name}[{i}] is {type(item).__name__}, wanted a Tensor")
    return list(value)


def converted(op: str, name: str, value: Any, convert: Callable[[Any], T], wanted: str) -> T:
    """An argument that is no tensor, as ``convert`` gives it; TypeError in words where that cannot take it."""
    try:
        return convert(value)
    except (TypeError, ValueError):
        raise TypeError(f"mim4d.ops.{op}: {name} is {value!r}, wanted {wanted}") from None


def floats(values: Any) -> list[float]:
    return [float(x) for x in values]


def ints(values: Any) -> list[int]:
    """No float is cut off: ``operator.index`` takes ints of every kind alone. It would tie a compiled graph to the
    value of an int, so those pass as they are."""
    return [x if isinstance(x, int) else operator.index(x) for x in values]


def device(op: str, name: str, value: Tensor, wanted: torch.device, of: str) -> None:
    if value.device != wanted:
        raise ValueError(f"mim4d.ops.{op}: {name} is on {value.device}, wanted {wanted} as {of}")


def floating(op: str, name: str, value: Tensor, widest: torch.dtype = torch.float64) -> None:
    """float16, bfloat16, float32 or, where ``widest`` is float64, float64."""
    if value.dtype not in (*HALF, torch.float32, widest):
        names = "float16, bfloat16 or float32" if widest == torch.float32 else "a floating dtype"
        raise TypeError(f"mim4d.ops.{op}: {name} is {value.dtype}, wanted {names}")


def coordinates(op: str, name: str, value: Tensor, wanted: torch.dtype, of: str) -> Tensor:
    """Coordinates, SDF and compositing are never half: what autocast narrowed is widened, anything else must fit."""
    if value.dtype == wanted:
        return value
    meta = value.device.type == "meta"  # has no autocast; torch raises when asked
    if value.dtype in HALF and not meta and torch.is_autocast_enabled(value.device.type):
        return value.to(wanted)
    raise TypeError(f"mim4d.ops.{op}: {name} is {value.dtype}, wanted {wanted} {of}")


def readable(value: Tensor) -> bool:
    """Whether the values of an index tensor are looked at: on the CPU, or everywhere under MIM4D_CHECK=1; never while
    torch traces."""
    looked_at = value.device.type == "cpu" or (env.CHECK.get() == "1" and value.device.type != "meta")
    return looked_at and type(value) is Tensor and not torch.compiler.is_compiling()
