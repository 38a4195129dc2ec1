"""What a call of ``voxel_sample`` costs: which copies of the volume are made, and which gradients are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.cases import running
from helpers.tolerances import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mim4d import _library, ops

SIZE = (2, 8, 3, 16, 16)
CHANNELS_LAST = torch.ops.mim4d.channels_last.default

needs_native = pytest.mark.skipif("ops_cpu" not in _library.loaded, reason="the native library is not built")


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


LAYOUTS: dict[str, tuple[Callable[[], Tensor], int]] = {  # and the copies that a pass must make of it
    "as torch lays it": (lambda: drawn(*SIZE), 1),
    "channels last": (lambda: drawn(*SIZE).contiguous(memory_format=torch.channels_last_3d), 0),
    "some of the items": (lambda: drawn(4, *SIZE[1:])[::2], 1),
    "some of the channels": (lambda: drawn(2, 12, *SIZE[2:])[:, 2:10], 1),
    "some of the slices": (lambda: drawn(2, 8, 5, *SIZE[3:])[:, :, 1:4], 1),
    "from channels last by torch": (lambda: drawn(2, 3, 16, 16, 8).permute(0, 4, 1, 2, 3), 0),
    "one channel": (lambda: drawn(2, 1, 3, 16, 16), 0),
    "y and x swapped": (lambda: drawn(2, 8, 3, 16, 16).transpose(3, 4), 2),  # as torch lays it, then channels last
}
each_layout = pytest.mark.parametrize("lay, copies", LAYOUTS.values(), ids=LAYOUTS)


def allocations(call: Callable[[], Any], least: int) -> int:
    """How many pieces of memory of ``least`` bytes or more torch's allocator hands out."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True, acc_events=True) as profile:
        call()
    assert profile.profiler is not None
    found = profile.profiler.kineto_results
    return sum(e.name() == "[memory]" and e.nbytes() >= least for e in found.events())


def native() -> Any:
    return running("voxel_sample", "cpu", "cpu", dtype=torch.float32, mode="trilinear")


@needs_native
@each_layout
@pytest.mark.parametrize("function", [ops.voxel_sample, ops.voxel_sample_with_grad])
def test_a_pass_copies_what_it_must(lay: Callable[[], Tensor], copies: int, function: Callable[..., Any]) -> None:
    volume, points = lay(), drawn(2, 5, 3)
    with native(), torch.no_grad():
        assert allocations(lambda: function(volume, points), volume.nbytes) == copies


@needs_native
@each_layout
def test_all_derivatives_share_one_copy(lay: Callable[[], Tensor], copies: int) -> None:
    """The chain of a loss on gradients allocates one gradient of the volume beside the copies of a single pass."""
    volume, points = lay().requires_grad_(), drawn(2, 5, 3).requires_grad_()

    def chain() -> None:
        (slope,) = torch.autograd.grad(ops.voxel_sample(volume, points).sum(), points, create_graph=True)
        torch.autograd.grad(slope.sum(), (volume, points))

    def normals() -> None:
        _, jacobian = ops.voxel_sample_with_grad(volume, points)
        torch.autograd.grad(jacobian.sum(), (volume, points))

    with native():
        assert allocations(chain, volume.nbytes) == copies + 1
        assert allocations(normals, volume.nbytes) == copies + 1


@needs_native
def test_one_copy_for_several_calls() -> None:
    """The documented way: lay the volume out once, and give that to every call."""
    volume, points = drawn(*SIZE).requires_grad_(), drawn(2, 5, 3).requires_grad_()

    def losses() -> None:
        shared = volume.contiguous(memory_format=torch.channels_last_3d)
        (ops.voxel_sample(shared, points).sum() + ops.voxel_sample(shared, -points).sum()).backward()

    with native():
        apart = ops.voxel_sample(volume, points).sum() + ops.voxel_sample(volume, -points).sum()
        want = torch.autograd.grad(apart, volume)[0]
        losses()
        assert_close(volume.grad.double(), want.double(), like=[want])
        volume.grad = None
        # the copy, two gradients, and their sum or the leaf's own
        assert allocations(losses, volume.nbytes) <= 4


class Masks(TorchDispatchMode):
    """What the ops of the namespace are asked for, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[bool]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith("mim4d") and name.endswith("_backward"):
            self.seen.append((name.removeprefix("mim4d::"), list(args[-1])))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("leaf", [True, False])
def test_what_nobody_asks_for_is_not_computed(leaf: bool) -> None:
    """The normals of a field are the gradient of the points: that of the volume would be thrown away."""
    volume, points = drawn(*SIZE).requires_grad_(), drawn(2, 5, 3).requires_grad_()
    if not leaf:
        volume, points = volume * 2, points * 0.5
    with Masks() as masks:
        out = ops.voxel_sample(volume, points)
        (slope,) = torch.autograd.grad(out.sum(), points, create_graph=True)
        slope.square().sum().backward()
        torch.autograd.grad(ops.voxel_sample(volume, points).sum(), volume)
        features, jacobian = ops.voxel_sample_with_grad(volume, points)
        torch.autograd.grad(features.sum() + jacobian.sum(), points)
    assert masks.seen == [
        ("voxel_sample_backward", [False, True]),
        ("voxel_sample_double_backward", [False, True, True]),
        ("voxel_sample_backward", [True, False]),
        ("voxel_sample_with_grad_backward", [False, True]),
    ]


def test_hooks_and_retained_gradients_are_served() -> None:
    volume, points = drawn(*SIZE).requires_grad_(), drawn(2, 5, 3).requires_grad_()
    inner = volume * 1
    inner.retain_grad()
    seen: list[Tensor] = []
    inner.register_hook(seen.append)
    ops.voxel_sample(inner, points).sum().backward()
    assert torch.equal(seen[0], inner.grad)
    assert torch.equal(volume.grad, inner.grad)
    assert points.grad is not None


# ---- the copy


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("C", [1, 3, 16, 33])
@each_layout
def test_channels_last_is_a_copy(lay: Callable[[], Tensor], copies: int, C: int, dtype: torch.dtype) -> None:
    volume = lay()[:, :1].expand(-1, C, -1, -1, -1) * torch.arange(1, C + 1).view(C, 1, 1, 1)
    volume = volume.to(dtype)
    found = CHANNELS_LAST(volume)
    assert torch.equal(found, volume)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert found.data_ptr() != volume.data_ptr()


@pytest.mark.parametrize("shape", [(0, 3, 2, 2, 2), (2, 0, 2, 2, 2), (1, 1, 1, 1, 1), (1, 17, 1, 1, 1100)])
def test_channels_last_of_odd_sizes(shape: tuple[int, ...]) -> None:
    assert torch.equal(CHANNELS_LAST(drawn(*shape)), drawn(*shape))


def test_channels_last_as_torch_wants_an_op() -> None:
    volume = drawn(1, 2, 2, 2, 3).double().requires_grad_()
    torch.library.opcheck(CHANNELS_LAST, (volume,))
    assert torch.autograd.gradcheck(CHANNELS_LAST, (volume,))
    assert torch.autograd.gradgradcheck(CHANNELS_LAST, (volume,))
