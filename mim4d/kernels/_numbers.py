"""Numbers that the host knows and a kernel reads on the device: where levels of a pyramid lie, the corners of a box."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import OPTIONS, Variant

COUNT = 8  # numbers that one launch of note_kernel takes
RUN_TIME = ["n", *"abcdefgh"]


@triton.jit(do_not_specialize=RUN_TIME)
def note_kernel(out, n, a, b, c, d, e, f, g, h):
    """out[:n] = a, b, ... for n <= 8."""
    tl.store(out, a, mask=n > 0)
    tl.store(out + 1, b, mask=n > 1)
    tl.store(out + 2, c, mask=n > 2)
    tl.store(out + 3, d, mask=n > 3)
    tl.store(out + 4, e, mask=n > 4)
    tl.store(out + 5, f, mask=n > 5)
    tl.store(out + 6, g, mask=n > 6)
    tl.store(out + 7, h, mask=n > 7)


def note(numbers: list[int], device: torch.device) -> Tensor:
    """The numbers as an int64 tensor on the device.

    They travel as arguments of a kernel: a copy from the host would wait for it, and no CUDA graph could hold it.
    """
    out = torch.empty(len(numbers), dtype=torch.int64, device=device)
    for i in range(0, len(numbers), COUNT):
        part = numbers[i : i + COUNT]
        with torch.cuda.device_of(out):
            note_kernel[(1,)](out[i:], len(part), *part, *[0] * (COUNT - len(part)), **OPTIONS)
    return out


def note_floats(numbers: list[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As :func:`note`. Triton would pass a float of Python in float32."""
    return (
        note(list(struct.unpack(f"{len(numbers)}q", struct.pack(f"{len(numbers)}d", *numbers))), device)
        .view(torch.float64)
        .to(dtype)
    )


def on_device(table: Tensor, device: torch.device) -> Tensor:
    """An int64 table where a kernel can read it; one on the CPU is :func:`note`-d down."""
    if table.device == device:
        return table.contiguous()
    return note(table.flatten().tolist(), device).view(table.shape)


def _variants() -> Iterator[Variant]:
    yield Variant("note", note_kernel, {"out": "*i64", **dict.fromkeys(RUN_TIME, "i64")}, {}, OPTIONS)


VARIANTS = tuple(_variants())
