"""Which clips make up which step, as a pure function of the seed and the step.

The training clips form one endless stream: epoch after epoch, each in its own order drawn from (seed, epoch). Step s
takes the next ``clips_per_step`` entries of the stream, across the end of an epoch if need be, and the processes share
them out. So a resumed run needs the number of the step and nothing else, no clip is ever dropped, and a data set
smaller than a batch works: a clip that comes twice has another epoch, hence other rays.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mim4d.engine.signals import StopRequest, TrainingFailed
from mim4d.errors import UserError


def mix(*numbers: int) -> int:
    """One 63-bit seed out of several whole numbers (splitmix64 steps), the same on every machine."""
    mask, state = (1 << 64) - 1, 0
    for number in numbers:
        state = (state + (number & mask) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, clips: int) -> tuple[int, ...]:
    """The order in which epoch ``epoch`` goes through ``clips`` clips."""
    generator = torch.Generator().manual_seed(mix(seed, epoch, 1))
    return tuple(torch.randperm(clips, generator=generator).tolist())


def stream_entry(seed: int, position: int, clips: int) -> tuple[int, int]:
    """(epoch, index of the clip) at one position of the endless stream."""
    epoch, place = divmod(position, clips)
    return epoch, epoch_order(seed, epoch, clips)[place]


@dataclass(frozen=True)
class Stream:
    """The shape of a run's stream. ``batch`` clips per process and forward pass, ``accumulate`` passes per step."""

    clips: int
    batch: int
    accumulate: int = 1
    processes: int = 1
    seed: int = 0

    @property
    def clips_per_step(self) -> int:
        return self.batch * self.accumulate * self.processes

    def epoch(self, step: int) -> int:
        """The epoch in which step ``step`` begins."""
        return step * self.clips_per_step // self.clips

    def batch_of(self, step: int, part: int, process: int) -> list[tuple[int, int]]:
        """(epoch, clip) entries of forward pass ``part`` of step ``step`` on one process."""
        start = step * self.clips_per_step + (part * self.processes + process) * self.batch
        return [stream_entry(self.seed, start + i, self.clips) for i in range(self.batch)]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, clip) for the steps ``first`` to ``last`` - 1, ``accumulate`` batches per step."""

    def __init__(self, stream: Stream, first: int, last: int, process: int = 0) -> None:
        self.stream, self.first, self.last, self.process = stream, first, last, process

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first, self.last):
            for part in range(self.stream.accumulate):
                yield self.stream.batch_of(step, part, self.process)

    def __len__(self) -> int:
        return max(0, self.last - self.first) * self.stream.accumulate


class EpochItems(Dataset):
    """Clips under (epoch, index). A :class:`UserError` is handed on as a value: DataLoader would bury it in text."""

    def __init__(self, clips: Any) -> None:
        self.clips = clips

    def __getitem__(self, entry: tuple[int, int]) -> Any:
        epoch, index = entry
        try:
            return self.clips.load(index, epoch)
        except UserError as error:
            return error

    def __len__(self) -> int:
        return len(self.clips)


@dataclass(frozen=True)
class CollateOrFault:
    """``collate`` of a batch, or the first :class:`UserError` in it."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[Any]) -> Any:
        faults = [item for item in items if isinstance(item, UserError)]
        return faults[0] if faults else self.collate(items)


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches the whole foreground group, and a scheduler's SIGTERM often too; the loop wants to finish its step
    # with its workers alive. They end when the loop closes their queue, or when it is gone.
    for number in StopRequest.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def load_batches(
    clips: Any,
    entries: Sampler[list[tuple[int, int]]] | Sequence[list[tuple[int, int]]],
    collate: Any,
    workers: int,
    pin: bool,
) -> Iterator[Any]:
    """Batches of the clips named by ``entries``, in order, read ahead by ``workers`` processes (0: here).

    Raises :class:`UserError` as the clips raise it, and :class:`TrainingFailed` when a process dies.
    """
    loader = DataLoader(
        EpochItems(clips),
        batch_sampler=entries,
        collate_fn=CollateOrFault(collate),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_start_worker,
    )
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise TrainingFailed(
            f"a process that loads clips died: {reason} (out of memory, or /dev/shm too small: try fewer data.workers)"
        ) from None


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` indices evenly spread over ``count`` (the middles of equal parts); all of them for 0."""
    if wanted == 0 or wanted >= count:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
