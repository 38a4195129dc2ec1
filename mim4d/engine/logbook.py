"""What a run writes down while it goes: ``metrics.jsonl`` (one row per logged step) and TensorBoard events."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

TENSORBOARD = "tensorboard"


class Processes(Protocol):
    """What is needed of :class:`accelerate.Accelerator` to put numbers of several processes together."""

    device: torch.device
    num_processes: int
    process_index: int

    def reduce(self, tensor: torch.Tensor, reduction: str = ...) -> torch.Tensor: ...


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all. Not-a-number becomes null, which JSON can hold."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(_finite(content), indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file. A last line that a crash cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Means:
    """Means of 0-dim tensors over passes and processes, kept on the device until they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}

    def add(self, name: str, value: torch.Tensor, counts: torch.Tensor | None = None) -> None:
        """Add a value; where ``counts`` (0-dim bool) is False it was not measured and is left out."""
        one = torch.ones((), device=self._device)
        weight = one if counts is None else counts.to(self._device, torch.float32)
        summand = torch.where(weight > 0, value.detach().to(self._device, torch.float32), 0.0)
        self._sums[name] = self._sums[name] + summand if name in self._sums else summand
        self._counts[name] = self._counts[name] + weight if name in self._counts else weight

    def numbers(self, processes: Processes) -> dict[str, float]:
        """The means by name, without those that nobody measured. Every process must have added the same names."""
        both = torch.stack([*self._sums.values(), *self._counts.values()])
        total = processes.reduce(both, "sum").tolist()
        size = len(self._sums)
        return {
            name: value / count
            for name, value, count in zip(self._sums, total[:size], total[size:], strict=True)
            if count > 0
        }


class Logbook:
    """Appends rows to ``RUN/metrics.jsonl`` and mirrors their numbers to ``RUN/tensorboard``.

    A run that continues at step n first drops the rows of later steps: they belong to work that is done again.
    """

    def __init__(self, run: Path, first_step: int) -> None:
        self.path = run / "metrics.jsonl"
        kept = [row for row in read_rows(self.path) if row["step"] <= first_step]
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        temporary.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _summary_writer(run / TENSORBOARD, first_step)

    def row(self, row: Mapping[str, Any]) -> None:
        """Write one row; it must hold ``step``."""
        self._file.write(json.dumps(_finite(dict(row))) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                self._board.add_scalar(f"train/{name}", value, row["step"])

    def evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Mirror held-out numbers to TensorBoard (``summary.json`` holds them for readers)."""
        for name, value in results.items():
            self._board.add_scalar(f"val/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._board.close()

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _summary_writer(folder: Path, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # purge_step: TensorBoard drops events of later steps, as the rows above
    return SummaryWriter(str(folder), purge_step=first_step + 1)
