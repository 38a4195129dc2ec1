"""What view transforms compute from calibration alone, kept as long as calibration stands still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class _Kept(Generic[T]):
    """A value and the calibration it was computed from.

    On a CPU a copy of the calibration, compared by value: that is right however its memory is written to, and costs
    nothing beside the value. On a GPU comparing values would synchronise, so the very tensors are kept (their memory
    goes to no other tensor) with their version counters, which every write through torch moves.
    """

    calibration: tuple[Tensor, ...]
    versions: tuple[int, ...]
    sizes: tuple[int, ...]
    value: T

    @staticmethod
    def of(calibration: tuple[Tensor, ...], sizes: tuple[int, ...], value: T) -> _Kept[T] | None:
        """None where nobody could tell that the calibration was written to: GPU tensors of inference mode."""
        if calibration[0].device.type == "cpu":
            return _Kept(tuple(t.detach().clone() for t in calibration), (), sizes, value)
        if any(t.is_inference() for t in calibration):
            return None
        return _Kept(tuple(t.detach() for t in calibration), tuple(t._version for t in calibration), sizes, value)

    def fits(self, calibration: tuple[Tensor, ...], sizes: tuple[int, ...]) -> bool:
        pairs = list(zip(self.calibration, calibration, strict=True))
        if sizes != self.sizes or any(old.device != new.device or old.dtype != new.dtype for old, new in pairs):
            return False
        if not self.versions:
            return all(torch.equal(old, new) for old, new in pairs)
        return all(
            not new.is_inference()
            and new.data_ptr() == old.data_ptr()
            and new.shape == old.shape
            and new.stride() == old.stride()
            and new._version == version
            for (old, new), version in zip(pairs, self.versions, strict=True)
        )


class Calibrated(nn.Module, Generic[T]):
    """A module that keeps one value made of calibration.

    It is kept as long as calibration stands still: on the CPU equal values; on a GPU, where comparing values would
    synchronise, the same tensors, not written to through torch since. Nothing is kept under ``torch.compile`` and in
    inference mode, and nothing travels with a copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cache: _Kept[T] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def _keep(self, calibration: tuple[Tensor, ...], sizes: tuple[int, ...], make: Callable[[], T]) -> T:
        """The value for this calibration, from the cache where it fits; made without autograd."""
        keep = not torch.compiler.is_compiling()
        if keep and self._cache is not None and self._cache.fits(calibration, sizes):
            return self._cache.value
        # What is made in inference mode could not be saved for a later backward pass.
        keep = keep and not torch.is_inference_mode_enabled()
        with torch.no_grad():
            value = make()
        if keep:
            self._cache = _Kept.of(calibration, sizes, value)
        return value


def check_calibration(module: str, intrinsics: Tensor, frame_from_cam: Tensor, b: int, n: int) -> None:
    """Raises ValueError unless they are (b, n, 3, 3) and (b, n, 4, 4)."""
    if intrinsics.shape != (b, n, 3, 3) or frame_from_cam.shape != (b, n, 4, 4):
        raise ValueError(
            f"{module}: intrinsics and frame_from_cam wanted {(b, n, 3, 3)} and {(b, n, 4, 4)}, "
            f"got {tuple(intrinsics.shape)} and {tuple(frame_from_cam.shape)}"
        )
