"""Checkpoints: a folder per step, written whole or not at all, read without pickle.

``checkpoints/step-000024/`` holds ``model.safetensors`` (weights and buffers under the model's own names),
``optimizer.safetensors`` (``<parameter name>.exp_avg`` ...) and ``state.json`` (the step and what a resumed run has to
agree with). Learning rate, order of clips and every random draw follow from the seed and the step, so no generator or
scheduler state is needed: see :mod:`mim4d.engine.optim` and :mod:`mim4d.engine.batches`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mim4d.errors import UserError

_NAME = re.compile(r"step-(\d{6,})")


def folder(run: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return run / "checkpoints" / f"step-{step:06d}"


def steps_saved(run: Path) -> list[int]:
    """Steps with a checkpoint, ascending."""
    found = (_NAME.fullmatch(path.name) for path in (run / "checkpoints").glob("step-*") if path.is_dir())
    return sorted(int(match.group(1)) for match in found if match)


def latest(run: Path) -> Path | None:
    """The newest checkpoint, or None."""
    steps = steps_saved(run)
    return folder(run, steps[-1]) if steps else None


def save(
    run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int = 0
) -> Path:
    """Write the checkpoint of ``step`` and drop all but the newest ``keep`` (0: none is dropped).

    Everything goes into a hidden folder beside it, is flushed to the disk and then renamed: a crash leaves the old
    checkpoints as they were. ``state`` must be fit for JSON; the step is added to it.
    """
    final = folder(run, step)
    if final.is_dir():  # a run computes the same again, so the same content, tensor by tensor
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_file(
            _storable(model.state_dict()), temporary / "model.safetensors", metadata={"format": "pt", "step": str(step)}
        )
        save_file(_optimizer_tensors(optimizer), temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps({**state, "step": step}, indent=1), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        os.rename(temporary, final)
        _flush(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if keep:
        for old in steps_saved(run)[:-keep]:
            shutil.rmtree(folder(run, old))
    return final


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Put the checkpoint's weights (and optimiser state) in place; returns its ``state``.

    Raises :class:`UserError` for a checkpoint that cannot be read or belongs to another model.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        weights = load_file(path / "model.safetensors")
        moments = load_file(path / "optimizer.safetensors") if optimizer is not None else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"cannot read the checkpoint {path} ({error}); remove that folder to go back to an older one"
        ) from None
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint {path} does not fit this model: {reason}") from None
    if optimizer is not None:
        _restore_optimizer(optimizer, moments, path)
    return state


def clean(run: Path) -> None:
    """Remove what a crash while saving left behind."""
    for path in (run / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _storable(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # safetensors stores dense tensors that own their memory: channels-last and tied weights are written out plainly
    stored: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        stored[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return stored


def _named_parameters(optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.Tensor]]:
    return [
        (name, parameter)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    ]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in _named_parameters(optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = torch.as_tensor(value).detach()
    return _storable(tensors)


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], path: Path) -> None:
    states: dict[str, dict[str, torch.Tensor]] = {}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition(".")
        states.setdefault(name, {})[key] = tensor
    for name, parameter in _named_parameters(optimizer):
        # a parameter that never had a gradient has no state; AdamW makes it at its first one
        for key, tensor in states.pop(name, {}).items():
            if tensor.ndim == 0:
                optimizer.state[parameter][key] = tensor  # the step count lives on the host, as AdamW makes it
                continue
            if tensor.shape != parameter.shape:
                raise UserError(f"the checkpoint {path} does not fit this model: optimiser state of {name}")
            moved = torch.empty_like(parameter, dtype=tensor.dtype)  # keeps the parameter's memory order
            moved.copy_(tensor)
            optimizer.state[parameter][key] = moved.detach()
    if states:
        raise UserError(f"the checkpoint {path} does not fit this model: optimiser state of {next(iter(states))}")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
