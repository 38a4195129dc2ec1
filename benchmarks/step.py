"""One training step on clips made of random numbers: ``python -m benchmarks.step --preset mim4d [--json FILE]``.

Forward and backward passes and the optimiser, as ``mim4d pretrain`` runs them, at the sizes of a preset; no data set,
no trained weights, nothing fetched. The loss must be finite and every parameter must move, or no time is given. What is
timed holds no reading of images: the clip lies on the device.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks import record

if TYPE_CHECKING:
    from mim4d.data.clips import ClipBatch, DataConfig
    from mim4d.engine.config import PretrainConfig, TrainConfig

NEEDS = {"timm": "the image backbone", "yaml": "the presets (pyyaml)"}
OUT_OF_MEMORY = 3  # exit status


def random_clips(config: DataConfig, batch: int = 1, seed: int = 0) -> ClipBatch:
    """Clips of the sizes of a configuration: random images, level cameras around a car that drives at 4 m/s, rays below
    the sky line, half of them with a depth inside of the LiDAR bounds."""
    from mim4d.data.clips import ClipBatch
    from mim4d.data.rays import Rays
    from mim4d.data.transforms import padded_size

    generator = torch.Generator().manual_seed(seed)
    height, width = config.image_size
    frames, cameras = len(config.offsets), len(config.cameras)
    targets = min(config.targets, frames)
    key = config.offsets.index(0.0)

    images = torch.zeros(batch, frames, cameras, 3, *padded_size(config.image_size, config.pad_multiple))
    content = images[..., :height, :width]
    content.copy_(torch.rand(content.shape, generator=generator))
    focal = 0.79 * width  # as nuScenes' cameras have it
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    poses = torch.eye(4).repeat(cameras, 1, 1)
    for pose, yaw in zip(poses, torch.arange(cameras) * 2 * math.pi / cameras, strict=True):
        c, s = math.cos(yaw), math.sin(yaw)
        pose[:3] = torch.tensor([[s, 0, c, c], [-c, 0, s, s], [0, -1, 0, 1.5]])
    offsets = torch.tensor(config.offsets)
    key_from_frame = torch.eye(4).repeat(frames, 1, 1)
    key_from_frame[:, 0, 3] = 4.0 * offsets

    shape = (batch, targets, cameras, config.rays_per_camera)
    low = torch.tensor([0.0, config.sky * height])
    pixels = low + torch.rand(*shape, 2, generator=generator) * (torch.tensor([width, height]) - low)
    seen = torch.cat(((pixels - intrinsics[:2, 2]) / focal, torch.ones(*shape, 1)), -1)
    directions = nn.functional.normalize(torch.einsum("nij,bknrj->bknri", poses[:, :3, :3], seen), dim=-1)
    origins = poses[:, None, :3, 3].expand(*shape, 3).clone()
    depth = 2.0 + 53.0 * torch.rand(shape, generator=generator)
    if config.lidar_bounds is not None:
        bounds = torch.tensor(config.lidar_bounds)
        walls = torch.where(directions > 0, bounds[3:], bounds[:3])
        depth = torch.minimum(depth, 0.98 * ((walls - origins) / directions).amin(-1))
    has_depth = torch.rand(shape, generator=generator) < 0.5
    others = [t for t in range(frames) if t != key]
    return ClipBatch(
        images=images,
        content=config.image_size,
        intrinsics=intrinsics.expand(batch, frames, cameras, 3, 3).clone(),
        frame_from_cam=poses.expand(batch, frames, cameras, 4, 4).clone(),
        key_from_frame=key_from_frame.expand(batch, frames, 4, 4).clone(),
        offsets=offsets.expand(batch, frames).clone(),
        valid=torch.ones(batch, frames, dtype=torch.bool),
        key=key,
        targets=torch.tensor([key, *others][:targets]).expand(batch, targets).clone(),
        target_valid=torch.ones(batch, targets, dtype=torch.bool),
        rays=Rays(
            origins=origins,
            directions=directions,
            rgb=torch.rand(*shape, 3, generator=generator),
            depth=torch.where(has_depth, depth, 0.0),
            has_depth=has_depth,
            pixels=pixels,
        ),
        tokens=[f"random-{i}" for i in range(batch)],
    )


def set_rate(optimizer: torch.optim.Optimizer, train: TrainConfig, factor: float = 1.0) -> None:
    """The peak learning rate times ``factor``."""
    from mim4d.engine.optim import peak_lr, set_lr

    set_lr(optimizer, factor * peak_lr(train))


def one_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clips: ClipBatch,
    train: TrainConfig,
    seed: int,
    mark: Callable[[str], None] = lambda phase: None,
) -> tuple[Tensor, Tensor]:
    """One optimiser step of ``train.accumulate`` passes; the mean loss and the gradient's norm, on the device.

    ``mark(phase)`` is called at the end of each forward and backward pass and of the optimiser.
    """
    optimizer.zero_grad(set_to_none=True)
    device = clips.images.device.type
    total = torch.zeros((), device=device)
    for part in range(train.accumulate):
        generator = torch.Generator().manual_seed(1000 * seed + part)
        with torch.autocast(device, torch.bfloat16, enabled=train.precision == "bf16"):
            loss = model(clips, generator).loss / train.accumulate
        mark("forward")
        loss.backward()
        mark("backward")
        total += loss.detach().float()
    norm = nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm)
    optimizer.step()
    mark("optimizer")
    return total, norm


def fault_of(model: nn.Module, before: dict[str, Tensor], losses: list[float], norms: list[float]) -> str | None:
    """Why the steps were not those of a training that works; None when they were."""
    if not all(math.isfinite(value) for value in (*losses, *norms)):
        return f"not finite: losses {losses}, gradient norms {norms}"
    after = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    odd = [name for name, value in after.items() if not torch.isfinite(value).all()]
    if odd:
        return f"{len(odd)} of {len(after)} parameters are not finite, {odd[0]} the first"
    still = [name for name, value in after.items() if torch.equal(value, before[name])]
    if still:
        return f"{len(still)} of {len(after)} parameters did not move, {still[0]} the first"
    return None


def measure(config: PretrainConfig, device: str, *, warmup: int = 2, steps: int = 5) -> dict[str, Any]:
    """The row of a preset. ``outcome`` is "ok", "out of memory", or what is wrong; times and memory only when "ok"."""
    train, data = config.train, config.data
    row: dict[str, Any] = {
        **{"kind": "step", "preset": config.preset, "precision": train.precision, "compiled": train.compile},
        **{"checkpointing": config.model.checkpointing, "clips": train.batch, "passes": train.accumulate},
        **{"frames": len(data.offsets), "cameras": len(data.cameras), "image": list(data.image_size)},
        **{"rays": min(data.targets, len(data.offsets)) * len(data.cameras) * data.rays_per_camera},
    }
    try:
        return {**row, **_measure(config, device, warmup, steps)}
    except torch.OutOfMemoryError as error:
        facts = {"peak_mb": torch.cuda.max_memory_allocated() / 2**20} if device == "cuda" else {}
        words = str(error).partition(" If reserved")[0]
        return {**row, "outcome": "out of memory", "words": words, **facts}


def _measure(config: PretrainConfig, device: str, warmup: int, steps: int) -> dict[str, Any]:
    from mim4d.engine.optim import build_optimizer
    from mim4d.models import build_model

    train = config.train
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.manual_seed(train.seed)
    model = build_model(replace(config.model, pretrained=False, backbone_checkpoint="")).to(device).train()
    if train.channels_last:
        model.image_encoder.to(memory_format=torch.channels_last)
    if train.compile:
        model.compile()
    optimizer = build_optimizer(model, train, model.image_encoder.backbone, model.renderer.field)
    set_rate(optimizer, train)
    clips = random_clips(config.data, train.batch).to(device)
    before = {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}

    results: list[tuple[Tensor, Tensor]] = []
    seconds: list[float] = []
    for step in range(warmup + steps):
        if step == warmup and device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        wait()
        start = time.perf_counter()
        results.append(one_step(model, optimizer, clips, train, step))
        wait()
        seconds.append(time.perf_counter() - start)
    memory: dict[str, float] = {}
    if device == "cuda":
        memory = {
            "peak_mb": torch.cuda.max_memory_allocated() / 2**20,
            "reserved_mb": torch.cuda.max_memory_reserved() / 2**20,
        }
    phases = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)  # with a wait after each: a little more in all
    last = time.perf_counter()

    def mark(phase: str) -> None:
        nonlocal last
        wait()
        now = time.perf_counter()
        phases[phase] += (now - last) * 1e3
        last = now

    # Behind layer scales of 1e-6 gradients are so small that the usual rate moves a weight by less than its rounding.
    set_rate(optimizer, train, 1000.0)
    results.append(one_step(model, optimizer, clips, train, warmup + steps, mark))
    losses, norms = ([float(value) for value in values] for values in zip(*results, strict=True))
    fault = fault_of(model, before, losses, norms)
    if fault is not None:
        return {"outcome": fault}
    found = sorted(seconds[warmup:])
    return {
        **{"outcome": "ok", "ms": found[len(found) // 2] * 1e3, "ms_best": found[0] * 1e3, "ms_worst": found[-1] * 1e3},
        **{"repeat": len(found), **memory, "phases_ms": phases},
        **{"losses": losses, "parameters": sum(value.numel() for value in before.values())},
    }


def shown(row: dict[str, Any]) -> str:
    """A row in words."""
    name = f"{row['preset']}: {row['passes']} pass(es) of {row['clips']} clip(s), {row['frames']} frames x "
    name += f"{row['cameras']} cameras of {row['image'][0]} x {row['image'][1]}, {row['rays']} rays, {row['precision']}"
    if row["outcome"] != "ok":
        detail = f" after {row['peak_mb']:.0f} MB: {row['words']}" if "peak_mb" in row else ""
        return f"{name}: {row['outcome'].upper() if row['outcome'] == 'out of memory' else row['outcome']}{detail}"
    text = f"{name}: {row['ms']:.1f} ms a step (best {row['ms_best']:.1f}, worst {row['ms_worst']:.1f})"
    if "peak_mb" in row:
        text += f", {row['peak_mb']:.0f} MB at most ({row['reserved_mb']:.0f} reserved)"
    phases = ", ".join(f"{phase} {ms:.1f}" for phase, ms in row["phases_ms"].items())
    return f"{text}; {phases} ms; loss {row['losses'][0]:.4g} -> {row['losses'][-1]:.4g}, every parameter moved"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mim4d", help="name of a preset, or a .yaml file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two that warm up")
    parser.add_argument("--json", type=Path, help="append the row to this file")
    args = parser.parse_args(arguments)
    absent = [f"{name} for {use}" for name, use in NEEDS.items() if importlib.util.find_spec(name) is None]
    if absent:
        print(f"mim4d: the step needs {' and '.join(absent)}, not installed here", file=sys.stderr)
        return 1
    if args.device == "cuda" and not torch.cuda.is_available():
        print("mim4d: no CUDA device", file=sys.stderr)
        return 2
    from mim4d.engine.config import load_preset

    row = measure(load_preset(args.preset), args.device, steps=args.steps)
    print(shown(row), flush=True)
    if args.json:
        record.append(args.json, [{**record.environment(args.device), **row}])
    return {"ok": 0, "out of memory": OUT_OF_MEMORY}.get(row["outcome"], 1)


if __name__ == "__main__":
    sys.exit(main())
