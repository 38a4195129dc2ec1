"""What torch asks of an op, as checks: fakes, ``opcheck``, the masks of backward ops, one graph for every size.

Nothing here knows an op's internals: a call of the public function is run with a mode that writes down every op of its
namespace with its arguments, the backward ops too, and those calls are examined.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from helpers.contract import Arguments, Run, cotangents, entered, gradients, leafed, named, runnable
from helpers.op_info import HALF, OpInfo, Sample, mapped, tensors
from helpers.tolerances import assert_close


class Call(NamedTuple):
    """What the dispatcher was asked, and what it answered."""

    op: Any  # OpOverload
    args: tuple[Any, ...]
    result: Any

    @property
    def name(self) -> str:
        return self.op._schema.name.partition("::")[2]

    @property
    def mask(self) -> list[bool] | None:
        """The last argument of a backward op: what is wanted of it."""
        last = self.args[-1] if self.args else None
        return last if isinstance(last, list) and last and all(isinstance(x, bool) for x in last) else None


class Recorder(TorchDispatchMode):
    """Writes down every op of a namespace."""

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self.namespace, self.calls = namespace, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name.startswith(self.namespace):
            assert not kwargs, f"{func} was called with {sorted(kwargs)}"
            self.calls.append(Call(func, args, result))
        return result


def record(
    info: OpInfo, run: Run, given: Arguments, needs: Sequence[str] | None = None
) -> tuple[list[Call], list[Tensor]]:
    """The ops behind one call and its derivatives, and the gradients."""
    given = leafed(info, given, needs)
    leaves = [t for t in info.leaves(given, needs) if t.requires_grad]
    with entered(info, run, given), Recorder(info.namespace) as recorder:
        outputs = tensors(info.function(**given))
        if not leaves:
            return recorder.calls, []
        if info.order < 2:
            return recorder.calls, gradients(outputs, leaves, cotangents(outputs))
        found = torch.autograd.grad(outputs, leaves, cotangents(outputs), create_graph=True)
        again = [g for g in found if g.requires_grad]
        torch.autograd.grad(again, leaves, cotangents(again), allow_unused=True)
        return recorder.calls, [g.detach() for g in found]


def calls_of(info: OpInfo, run: Run, sample: Sample, dtype: torch.dtype = torch.float32) -> list[Call]:
    calls, _ = record(info, run, info.cast(sample, dtype if dtype in info.dtypes else torch.float64, run[1]))
    assert calls, f"{info.op} went past the dispatcher"
    return calls


def with_masks(call: Call) -> list[Call]:
    """A backward op once for each set of wanted gradients; any other op as it is."""
    if call.mask is None:
        return [call]
    masks = itertools.product([True, False], repeat=len(call.mask))
    return [call._replace(args=(*call.args[:-1], list(mask))) for mask in masks]


def check_fakes(info: OpInfo, run: Run, samples: Sequence[Sample]) -> None:
    """Shapes, strides and dtypes of the fakes are those of the kernels. The first sample: of backward ops with every
    mask, and in half too, where gradients may differ in dtype."""
    for i, sample in enumerate(runnable(info, run, samples)):
        for dtype in [torch.float32, *(d for d in info.dtypes if d in HALF and not i)]:
            recorded = calls_of(info, run, sample, dtype)
            for call in recorded if i else [c for first in recorded for c in with_masks(first)]:
                with named(f"{sample.name}, {dtype}, {call.name} {call.mask or ''}"):
                    args = tree_map_only(Tensor, Tensor.detach, call.args)
                    with entered(info, run, info.cast(sample, dtype, run[1])):
                        real = call.op(*args)
                    with FakeTensorMode() as mode:
                        fake = call.op(*tree_map_only(Tensor, mode.from_tensor, args))
                    same_form(tensors(real), tensors(fake))


def check_meta(info: OpInfo, run: Run, samples: Sequence[Sample]) -> None:
    """The public function gives on meta tensors what it gives on real ones, without the values."""
    for sample in runnable(info, run, samples):
        for dtype in info.dtypes:
            with named(f"{sample.name}, {dtype}"):
                given = info.cast(sample, dtype, run[1])
                with entered(info, run, given):
                    real = tensors(info.function(**given))
                fake = tensors(info.function(**{k: mapped(lambda t: t.to("meta"), v) for k, v in given.items()}))
                assert all(t.device.type == "meta" for t in fake)
                same_form(real, fake)


def same_form(real: Sequence[Tensor], fake: Sequence[Tensor]) -> None:
    assert len(real) == len(fake), f"{len(real)} results, the fake gives {len(fake)}"
    for i, (a, b) in enumerate(zip(real, fake, strict=True)):
        assert a.shape == b.shape, f"result {i} has shape {tuple(a.shape)}, its fake {tuple(b.shape)}"
        assert a.dtype == b.dtype, f"result {i} is {a.dtype}, its fake {b.dtype}"
        if a.numel():  # of no elements, and of dimensions of one, the stride means nothing
            steps = [[s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1] for t in (a, b)]
            assert steps[0] == steps[1], f"result {i} has strides {a.stride()}, its fake {b.stride()}"


def check_opcheck(info: OpInfo, run: Run, samples: Sequence[Sample]) -> None:
    """torch's own examination: of every op behind the call, of backward ops with every mask."""
    quick = ("test_schema", "test_faketensor")
    for sample in runnable(info, run, samples):
        for first in calls_of(info, run, sample):
            promised = first.name == info.op or (info.order == 2 and first.name == f"{info.op}_backward")
            for i, call in enumerate(with_masks(first)):
                with named(f"{sample.name}, {call.name} {call.mask or ''}"):
                    keep = lambda t: t.detach().clone().requires_grad_(t.requires_grad and promised)  # noqa: B023
                    args = tree_map_only(Tensor, keep, call.args)
                    every = {} if i == 0 else {"test_utils": quick}
                    with entered(info, run, info.cast(sample, torch.float32, run[1])):
                        torch.library.opcheck(call.op, args, **every)


def check_masks(info: OpInfo, run: Run, sample: Sample) -> None:
    """For every set of inputs that need a gradient, the backward op is asked for exactly those; the rest is empty."""
    if not runnable(info, run, [sample]):
        return
    given = info.cast(sample, torch.float64, run[1])
    _, whole = record(info, run, given)
    full = dict(zip(info.differentiable, _split(info, given, whole), strict=True))
    for needs in itertools.product([True, False], repeat=len(info.differentiable)):
        wanted = [n for n, need in zip(info.differentiable, needs, strict=True) if need]
        with named(f"gradients of {', '.join(wanted) or 'nothing'}"):
            calls, found = record(info, run, given, wanted)
            backward = [c for c in calls if c.name == f"{info.op}_backward"]
            if not wanted:
                assert not backward, "the backward op was called"
                continue
            assert len(backward) == 1, f"the backward op was called {len(backward)} times"
            assert backward[0].mask == list(needs), f"the backward op was asked for {backward[0].mask}"
            parts = [tensors(part) for part in backward[0].result]
            for name, need, part in zip(info.differentiable, needs, parts, strict=True):
                assert need or all(t.numel() == 0 for t in part), f"the gradient of {name} was computed"
            for got, want in zip(found, [t for n in wanted for t in full[n]], strict=True):
                assert_close(got, want.cpu(), op=info.op)
    _check_frozen_elements(info, run, given, full)


def _check_frozen_elements(info: OpInfo, run: Run, given: Arguments, full: Mapping[str, list[Tensor]]) -> None:
    """Of a list, some elements alone may need a gradient."""
    for name in info.differentiable:
        if isinstance(given[name], Tensor) or len(given[name]) < 2:
            continue
        with named(f"every second of {name}"):
            call = leafed(info, given, [name])
            for t in call[name][::2]:
                t.requires_grad_(False)
            with entered(info, run, call):
                outputs = tensors(info.function(**call))
                found = gradients(outputs, call[name][1::2], cotangents(outputs))
            for got, want in zip(found, full[name][1::2], strict=True):
                assert_close(got, want.cpu(), op=info.op)


def _split(info: OpInfo, given: Arguments, flat: Sequence[Tensor]) -> list[list[Tensor]]:
    rest = iter(flat)
    return [list(itertools.islice(rest, len(tensors(given[name])))) for name in info.differentiable]


def check_compile(info: OpInfo, run: Run, samples: Sequence[Sample]) -> None:
    """torch.compile takes the call whole, once for every size, and the numbers and gradients are those of eager.

    The bare reference is traced and no more: to compile its derivatives too takes ten times as long.
    """
    if not runnable(info, run, samples):
        return
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager" if run[0] == "reference" else "aot_eager")

    kind = type(info.function(**info.arguments(samples[0])))
    names = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []

    def total(given: Arguments) -> Tensor:
        found = info.function(**given)
        parts = [found] if isinstance(found, Tensor) else [getattr(found, n) for n in names] if names else found
        outputs = [o for o in parts if isinstance(o, Tensor)]
        return sum((o.sin().sum() if o.is_floating_point() else o.float().sum() for o in outputs), 0.0)

    compiled, graphs = torch.compile(total, fullgraph=True, dynamic=True, backend=counter), []
    for i, sample in enumerate(samples):
        with named(f"size {i}"):
            dtype = torch.float32 if torch.float32 in info.dtypes else torch.float64
            given = leafed(info, info.cast(sample, dtype, run[1]))
            with entered(info, run, given):
                got, want = compiled(given), total(given)
                assert_close(got, want.detach().double().cpu(), op=info.op)
                ones = [torch.ones_like(got)]
                pair = (gradients([out], info.leaves(given), ones) for out in (got, want))
                for a, b in zip(*pair, strict=True):
                    assert_close(a, b.double().cpu(), op=info.op)
            graphs.append(counter.frame_count)
    torch._dynamo.reset()
    # Where floats are arguments, torch begins the first size anew to make them constants: two graphs, no recompilation.
    assert graphs[-1] == graphs[0], f"{graphs[-1] - graphs[0]} recompilations for {len(samples) - 1} further sizes"
