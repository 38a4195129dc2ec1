"""What all modules promise: they compile whole, import without the training side, and agree across devices."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from helpers.op_info import mapped
from torch import Tensor, nn

from mim4d.nn import (
    LiftSplat,
    LiftSplatConv,
    MSDeformAttn,
    SDFField,
    SDFRenderer,
    TemporalDeformAttn,
    VoxelGrid,
    VoxelPull,
    VoxelSampler,
)

GRID = VoxelGrid((-8.0, -8.0, -2.0, 8.0, 8.0, 2.0), (8, 8, 2))


def sampler() -> tuple[nn.Module, tuple]:
    return VoxelSampler(), (torch.randn(1, 3, 2, 8, 8), torch.rand(1, 9, 3) * 2 - 1)


def attention() -> tuple[nn.Module, tuple]:
    shapes, starts = torch.tensor([(3, 4), (2, 2)]), torch.tensor([0, 12])
    return MSDeformAttn(8, 2, 2, 3), (
        torch.randn(1, 5, 8),
        torch.rand(1, 5, 2, 2),
        torch.randn(1, 16, 8),
        shapes,
        starts,
    )


def temporal() -> tuple[nn.Module, tuple]:
    frames = torch.randn(1, 3, 12, 8), torch.randn(1, 3, 8), torch.tensor([[True, False, True]])
    return TemporalDeformAttn(8, 2, 3), (torch.randn(1, 12, 8), *frames, (3, 4))


def lift() -> tuple[nn.Module, tuple]:
    intrinsics = torch.tensor([[8.0, 0, 8], [0, 8, 4], [0, 0, 1]])
    pose = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0.3], [0, 0, 0, 1]])
    views = torch.randn(1, 1, 4, 2, 4), torch.rand(1, 1, 6, 2, 4), intrinsics[None, None], pose[None, None]
    return LiftSplat(GRID, 1.0, 9.0, 6), (*views, (8, 16))


def lift_conv() -> tuple[nn.Module, tuple]:
    return LiftSplatConv(GRID, 1.0, 9.0, 6, 4, 3), lift()[1]


def pull() -> tuple[nn.Module, tuple]:
    features, probs, intrinsics, pose, size = lift()[1]
    levels = [features, features[..., :1, :3]], [probs, probs[..., :1, :3]]
    return VoxelPull(GRID, 1.0, 9.0), (*levels, intrinsics, pose, size)


def renderer() -> tuple[nn.Module, tuple]:
    directions = torch.nn.functional.normalize(torch.randn(1, 7, 3) * torch.tensor([1.0, 1.0, 0.1]), dim=-1)
    rendering = SDFRenderer(SDFField(4), GRID.bounds, n_uniform=12, n_importance=4)
    return rendering, (torch.randn(1, 4, 2, 8, 8), torch.zeros(1, 7, 3), directions)


CASES = [sampler, attention, temporal, lift, lift_conv, pull, pytest.param(renderer, marks=pytest.mark.slow)]


def tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output if isinstance(output, tuple) else vars(output).values()
    return [part for part in parts if isinstance(part, Tensor)]


@pytest.mark.parametrize("case", CASES)
def test_compiles_without_a_graph_break(case: Callable[[], tuple[nn.Module, tuple]]) -> None:
    torch.manual_seed(0)
    module, inputs = case()
    module.eval()
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")(*inputs)
    for a, b in zip(tensors(compiled), tensors(module(*inputs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [sampler, attention, temporal, lift, lift_conv, pull, renderer])
def test_a_gpu_gives_what_the_cpu_gives(case: Callable[[], tuple[nn.Module, tuple]]) -> None:
    torch.manual_seed(0)
    module, inputs = case()
    module.eval()
    on_cpu = tensors(module(*inputs))
    on_gpu = tensors(module.cuda()(*mapped(Tensor.cuda, inputs)))
    for a, b in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-3, atol=1e-3)


def test_import_needs_torch_and_numpy_alone() -> None:
    code = (
        "import sys, mim4d.nn; "
        "found = {'timm', 'nuscenes', 'accelerate', 'PIL', 'matplotlib', 'tyro'} & set(sys.modules); "
        "assert not found, found; assert not any(m.startswith(('mim4d.models', 'mim4d.data')) for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
