"""One step of the voxel decoder, forward and backward: ``python -m benchmarks.decoder [--cells 128] [--frames 3]``.

MIM4D's sizes: BEV queries of a short branch (2 frames, 4 heads) and a long one (all other frames, 2 heads), 2 layers of
4 points each, with the frames as levels of ``ms_deform_attn``. The step runs once with each way to compute this op, in
turns; all else is the same. The outputs and gradients of all ways must agree, or no time is given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from benchmarks.ops.ms_deform_attn import formula
from mim4d import backends, ops
from mim4d.models.voxel_decoder import VoxelDecoder
from mim4d.nn import VoxelGrid

Attend = Callable[..., Tensor]


def ways(device: str) -> dict[str, Attend]:
    """Each backend that is there, and the formula of Deformable DETR in stock torch."""
    attend = ops.ms_deform_attn

    def within(backend: str) -> Attend:
        def call(*args: Tensor) -> Tensor:
            with ops.use_backend(backend):
                return attend(*args)

        return call

    def plain(value: Tensor, shapes: list[tuple[int, int]], starts: list[int], x: Tensor, a: Tensor) -> Tensor:
        return formula(shapes, {"value": value, "sampling_locations": x, "attention_weights": a})

    meta = {"dtype": torch.float32}
    there = backends.available("ms_deform_attn", torch.device(device), **meta)
    return {"grid_sample formula": plain, **{f"mim4d {b}": within(b) for b, why in there.items() if why is None}}


def step(cells: int, frames: int, device: str) -> Callable[[Attend], list[Tensor]]:
    """One clip: a target that is rebuilt from the other frames; results and gradients."""
    torch.manual_seed(0)
    half = 0.4 * cells
    grid = VoxelGrid((-half, -half, -3.0, half, half, 5.0), (cells, cells, 5))
    decoder = VoxelDecoder(grid, 32).to(device)
    volume = torch.randn(1, frames, 32, *grid.shape, device=device).requires_grad_()
    poses = torch.eye(4, device=device).repeat(1, frames, 1, 1)
    offsets = 0.5 * torch.arange(frames, device=device, dtype=torch.float32)[None]
    poses[:, :, 0, 3] = 4.0 * offsets  # metres: a car at 4 m/s
    valid = torch.ones(1, frames, dtype=torch.bool, device=device)
    targets = torch.tensor([[frames // 2]], device=device)

    def run(attend: Attend) -> list[Tensor]:
        with mock.patch.object(ops, "ms_deform_attn", attend):
            rebuilt, _ = decoder(volume, poses, offsets, valid, targets)
            gradients = torch.autograd.grad(rebuilt.square().sum(), (volume, decoder.fold[0].weight))
        return [rebuilt.detach(), *gradients]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=128, help="along x and y")
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="the best of so many counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run, rivals = step(args.cells, args.frames, args.device), ways(args.device)
    wanted: list[Tensor] = []
    for name, attend in rivals.items():
        found = run(attend)
        wanted = wanted or found
        for a, b in zip(found, wanted, strict=True):
            error = float((a - b).norm() / b.norm())
            if error > 1e-4:  # measured: 1e-6
                raise SystemExit(f"benchmarks.decoder: {name} is off by {error:.1e}")
    best = dict.fromkeys(rivals, float("inf"))
    for _ in range(args.rounds):
        for name, attend in rivals.items():
            begin = time.perf_counter()
            run(attend)
            if torch.device(args.device).type == "cuda":
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - begin)
    print(f"{args.cells} x {args.cells} queries, {args.frames} frames, {args.threads} thread(s), {args.device}")
    first = best["grid_sample formula"]
    for name, seconds in best.items():
        print(f"{name:20} {1e3 * seconds:9.1f} ms {first / seconds:6.2f} x")


if __name__ == "__main__":
    main()
