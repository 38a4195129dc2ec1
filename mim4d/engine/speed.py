"""Step time of a run's own backends beside that of the references: measured on this machine, on one batch, in turns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mim4d import backends
from mim4d.data import ClipBatch
from mim4d.models import MIM4D

OWN, REFERENCE = "own", "reference"


def compare_step_times(model: MIM4D, batch: ClipBatch, rounds: int, seed: int = 0) -> dict[str, Any]:
    """Time forward and backward of a training step with the backends that this process uses, and with the references.

    Both take the same batch, masks and jitter. After a step of each that only warms up they take turns, and who goes
    first changes from round to round, so that what else the machine does hits both. Loading and the optimiser's own
    work are left out: they are the same. Weights, buffers and torch's generators are left as they were; gradients are
    dropped. A model that is compiled is timed as it stands in the code.

    Args:
        model: on the batch's device.
        batch: clips with rays.
        rounds: timed steps of each.
        seed: of masks and jitter.

    Returns:
        ``own`` and ``reference``, each with ``seconds`` (one per round) and ``backends`` (op -> the backends that its
        forward calls ran on in a timed step); ``rays`` and ``samples`` per ray that each volume is rendered with.
        ``reference`` is None where the process was asked to run on the references anyway. One that needs more memory
        than the GPU has holds ``failed``, in words, instead.
    """
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = model.training
    model.train()
    ways: dict[str, Callable[[], Any]] = {OWN: contextlib.nullcontext}
    if backends.status()["asked"] != REFERENCE:
        ways[REFERENCE] = lambda: backends.use_backend(REFERENCE)
    found: dict[str, Any] = {
        OWN: None,
        REFERENCE: None,
        "rays": batch.rays.depth.numel(),
        "samples": model.config.n_uniform + model.config.n_importance,
    }
    try:
        with _same_draws(batch.images.device):
            for turn in range(-1, rounds):
                for name in ways if turn % 2 else reversed(ways):
                    if "failed" not in (found[name] or {}):
                        _turn(model, batch, seed, name, ways[name], found, counts=turn >= 0)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])
    return found


def _turn(
    model: MIM4D, batch: ClipBatch, seed: int, name: str, way: Callable[[], Any], found: dict[str, Any], counts: bool
) -> None:
    """One step in one of the two ways, written into ``found[name]``."""
    try:
        with way(), backends.listen() as ran:
            seconds = _step(model, batch, seed)
    except torch.OutOfMemoryError:
        found[name] = {"failed": "more memory than the GPU has"}
        return
    if not counts:
        found[name] = {"seconds": [], "backends": {}}
        return
    found[name]["seconds"].append(seconds)
    # not of the step that warms up: an index of the geometry, which is kept, is built by whoever comes first
    found[name]["backends"] = {op: sorted(names) for op, names in ran.items()}


def _step(model: MIM4D, batch: ClipBatch, seed: int) -> float:
    device = batch.images.device
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    _wait(device)
    began = time.perf_counter()
    # not model(...): that would run, and for the references build anew, what torch.compile made of it
    model.forward(batch, generator).loss.backward()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _same_draws(device: torch.device) -> Iterator[None]:
    """torch's generators go on afterwards where they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
