"""Held-out numbers: mean absolute errors of rendered colour and depth, and those of the best constant guess."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mim4d.data import ClipDataset, Trivial, collate
from mim4d.data.rays import Rays
from mim4d.engine.batches import load_batches
from mim4d.engine.logbook import Processes
from mim4d.engine.progress import Display
from mim4d.models import MIM4D

Numbers = dict[str, float]

DIRECT, RECONSTRUCTED, TRIVIAL = "direct", "reconstructed", "trivial"
TRIVIAL_RECONSTRUCTED = "trivial_reconstructed"


@dataclass
class RayErrors:
    """Running means over rays, so that clips with more rays (or more depth) weigh more.

    ``rgb_l1``: mean over rays and the three channels of |colour error|, colours in [0, 1]. ``depth_l1_m``: mean over
    LiDAR rays of |ray length error| in metres.
    """

    sums: Tensor = field(default_factory=lambda: torch.zeros(4))  # |rgb|, rays, |depth|, LiDAR rays

    def add(self, rgb: Tensor, depth: Tensor, rays: Rays, counts: Tensor) -> None:
        """Add rendered rays: rgb (..., 3), depth (...) m. Of the ``rays`` (...) those count that ``counts`` marks."""
        counts = counts.expand(rays.depth.shape)  # (...) bool
        colour = (rgb.float() - rays.rgb).abs().mean(dim=-1)  # (...)
        distance = (depth.float() - rays.depth).abs()  # (...)
        lidar = counts & rays.has_depth
        sums = (colour[counts].sum(), counts.sum(), distance[lidar].sum(), lidar.sum())
        self.sums = self.sums.to(rgb.device) + torch.stack([value.float() for value in sums])

    def numbers(self, processes: Processes) -> Numbers:
        """``{"rgb_l1", "depth_l1_m"}`` over the rays of all processes; not-a-number where there was no ray."""
        rgb, rays, depth, lidar = processes.reduce(self.sums.to(processes.device), "sum").tolist()
        return {"rgb_l1": rgb / rays if rays else float("nan"), "depth_l1_m": depth / lidar if lidar else float("nan")}


@contextmanager
def evaluating(model: MIM4D) -> Iterator[None]:
    """No mask, no jitter, no gradient, and the direct volume rendered even where training leaves it out."""
    was_training, config = model.training, model.config
    model.eval()
    model.config = dataclasses.replace(config, direct=True)
    try:
        with torch.no_grad():
            yield
    finally:
        model.config = config
        model.train(was_training)


def evaluate(
    model: MIM4D,
    clips: ClipDataset,
    indices: Sequence[int],
    processes: Processes,
    display: Display,
    *,
    trivial: Trivial | None = None,
    workers: int = 0,
    title: str = "evaluating",
) -> dict[str, Numbers]:
    """Errors over the key frames of held-out clips: whole images in, no mask, no jitter.

    Args:
        model: left in the mode (training or evaluation) that it came in.
        clips: held-out clips.
        indices: which of them; shared out among the processes.
        processes: device and reduction.
        display: for the progress bar.
        trivial: the constant guess, measured when given: as "trivial" on the rays of "direct", and as
            "trivial_reconstructed" on those of "reconstructed".
        workers: processes that read ahead.
        title: what the bar says.

    Returns:
        ``{"direct": {"rgb_l1", "depth_l1_m"}, "reconstructed": ..., "trivial": ...}``; paths that were not rendered are
        absent. "reconstructed" counts clips only that have another valid frame.
    """
    own = indices[processes.process_index :: processes.num_processes]
    batches = load_batches(clips, [[(0, index)] for index in own], collate, min(workers, len(own) // 4), pin=False)
    paths = [DIRECT]
    paths += [RECONSTRUCTED] * (model.config.reconstructed and len(clips.config.offsets) > 1)
    if trivial is not None:
        paths += [TRIVIAL, *([TRIVIAL_RECONSTRUCTED] * (RECONSTRUCTED in paths))]
    errors = {path: RayErrors() for path in paths}
    with evaluating(model):
        for host_batch in display.track(batches, title, len(own)):
            batch = host_batch.to(processes.device)
            output = model(batch)
            rebuilt = output.reconstructed_valid
            for path, render, valid in (
                (DIRECT, output.direct, batch.target_valid),
                (RECONSTRUCTED, output.reconstructed, rebuilt),
            ):
                if render is not None:
                    errors[path].add(render.rgb, render.depth, batch.rays, valid[:, :, None, None])
            if trivial is not None:
                camera = torch.arange(batch.rays.depth.shape[2])[:, None]  # (N, 1)
                rgb, depth = trivial.predict(camera, batch.rays.pixels[..., 1])  # (B, K, N, R, 3), (B, K, N, R)
                errors[TRIVIAL].add(rgb, depth, batch.rays, batch.target_valid[:, :, None, None])
                if RECONSTRUCTED in paths:
                    errors[TRIVIAL_RECONSTRUCTED].add(rgb, depth, batch.rays, rebuilt[:, :, None, None])
    return {path: error.numbers(processes) for path, error in errors.items()}
