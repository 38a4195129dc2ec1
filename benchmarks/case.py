"""What a benchmark is made of: an :class:`Entry` per op, and the :class:`Problem` that one preset, device and dtype
make of it: inputs, the right answer in every direction, and for every rival the calls that are verified and timed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.verify import TOLERANCES, Tolerance

Result = Tensor | Sequence[Tensor]
Arguments = dict[str, Any]

# direction -> how often a rival must be differentiable for it
DIRECTIONS = {"forward": 0, "backward": 1, "forward+backward": 1, "double backward": 2, "chain": 2}


OTHER = 0.875  # inputs times this are other inputs; it rounds nothing away in any dtype


class Absent(Exception):
    """A rival that cannot run here: the message says why, and is printed in its row."""


@dataclass(frozen=True)
class Preset:
    """Inputs of one workload."""

    what: str  # one line for people
    sizes: Mapping[str, Any]
    devices: tuple[str, ...] = ()  # where it is measured without being asked for by name
    compiled: tuple[str, ...] = ("cuda",)  # devices where waiting for torch.compile is worth it


@dataclass(frozen=True)
class Inputs:
    """Arguments of the public function in float64 on the CPU, and what a row's dtype makes of them."""

    args: Arguments
    differentiable: tuple[str, ...]
    stored: tuple[str, ...]  # in the dtype of the row; what else is floating is float32 (float64 in a float64 row)
    wide_result: bool = False  # results are in float32 for a half row, too

    def on(self, device: str, dtype: torch.dtype) -> Arguments:
        wide = torch.promote_types(dtype, torch.float32)

        def place(name: str, t: Tensor) -> Tensor:
            return t.to(device, (dtype if name in self.stored else wide) if t.is_floating_point() else t.dtype)

        return {name: each(value, lambda t, name=name: place(name, t)) for name, value in self.args.items()}


@dataclass(frozen=True)
class Rival:
    """One way to compute the op. ``make(device)`` gives the call, taking the op's arguments, or raises Absent."""

    name: str
    make: Callable[[str], Callable[..., Result]]
    order: int = 1  # how often it can be differentiated
    prepare: Callable[[Arguments], Arguments] = lambda args: args  # another layout, a cached index: not timed
    within: Callable[[], contextlib.AbstractContextManager[Any]] = (
        contextlib.nullcontext
    )  # entered outside of the clock
    backend: str | None = None  # which backend of mim4d it asks for
    peer: bool = False  # somebody else's package: its refusal is reported and is no failure of ours
    numpy: bool = False  # allocates through numpy and not through torch
    compiled: bool = False


@dataclass(frozen=True)
class Entry:
    """All that the benchmarks know of one op: its row in the registry."""

    op: str
    presets: Mapping[str, Preset]
    inputs: Callable[[Mapping[str, Any], torch.Generator], Inputs]
    oracle: Callable[..., Sequence[Tensor]]  # stock torch in float64, sharing no code with any rival
    rivals: Callable[[str], Sequence[Rival]]  # of a device; the first one is what the others are measured against
    flops: Callable[[Arguments], int]  # of a forward: two for each multiply-add of the formula
    order: int  # derivatives that the op promises
    work: Mapping[str, float] = field(default_factory=dict)  # flops of a direction in forwards, where not as FORWARDS
    tolerance: Mapping[torch.dtype, Tolerance] = field(default_factory=lambda: TOLERANCES)


# An adjoint multiplies twice where the forward does once; a second derivative does so for both.
FORWARDS = {"forward": 1.0, "backward": 2.0, "double backward": 4.0}


def each(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """``f`` of a tensor, or of every tensor in a list; anything else as it is."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(t, Tensor) for t in value):
        return [f(t) for t in value]
    return value


def flat(args: Arguments, names: Sequence[str]) -> list[Tensor]:
    """The tensors of some arguments, lists opened."""
    return [t for name in names for t in tensors(args[name]) if isinstance(t, Tensor)]


def tensors(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def leaves(args: Arguments, names: Sequence[str]) -> Arguments:
    """The arguments with fresh leaves of autograd, over the same memory, in place of the differentiable ones."""
    return {k: each(v, lambda t: t.detach().requires_grad_()) if k in names else v for k, v in args.items()}


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor], **options: bool) -> Any:
    return torch.autograd.grad(outputs, inputs, seeds, allow_unused=True, materialize_grads=True, **options)


@dataclass
class Run:
    """One rival in one direction: what is verified is what is timed."""

    rival: Rival
    direction: str
    device: str
    call: Callable[[], Sequence[Tensor]]
    inputs: Sequence[Tensor] = ()  # what its result follows from, as the rival is given it
    last: Sequence[Tensor] | None = None  # result of the newest timed call

    @contextlib.contextmanager
    def inside(self) -> Any:
        with self.rival.within(), torch.set_grad_enabled(self.direction != "forward"):
            yield

    def once(self) -> Sequence[Tensor]:
        with self.inside():
            return self.call()

    def dodges(self) -> str:
        """How it gets around the work, or an empty text: other inputs must give another result and be left alone.

        The inputs change below autograd, in the memory where they lie: neither an address nor a version tells. A rival
        that keeps an old result is found, and one that writes on the copy in another layout that was made for it.
        """
        old = [t.detach().clone() for t in self.last or ()]
        kept = [t.detach().clone() for t in self.inputs]
        try:
            for t in self.inputs:
                t.data.mul_(OTHER)
            new = self.once()
            if not all(torch.equal(t, k * OTHER) for t, k in zip(self.inputs, kept, strict=True)):
                return "it writes on its inputs"
            same = all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
            return "it returns an old result for new inputs" if same else ""
        finally:
            for t, k in zip(self.inputs, kept, strict=True):
                t.data.copy_(k)


class Problem:
    """An entry on one preset, device and dtype."""

    def __init__(self, entry: Entry, preset: str, device: str, dtype: torch.dtype, seed: int = 0) -> None:
        self.entry, self.preset, self.device, self.dtype = entry, preset, device, dtype
        g = torch.Generator().manual_seed(seed)
        inputs = entry.inputs(entry.presets[preset].sizes, g)
        self.names = inputs.differentiable
        self.args = inputs.on(device, dtype)
        self.tolerance = entry.tolerance[dtype]
        wide = torch.promote_types(dtype, torch.float32) if inputs.wide_result else dtype

        def noise(like: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
            drawn = [torch.randn(t.shape, generator=g, dtype=torch.float64) for t in like]
            return [t.to(device, d) for t, d in zip(drawn, dtypes, strict=True)]

        # The oracle sees the inputs as the dtype of the row has rounded them.
        exact = leaves({k: each(v, _double) for k, v in self.args.items()}, self.names)
        own = flat(exact, self.names)
        outputs = list(entry.oracle(**exact))
        self.answers: dict[str, list[Tensor]] = {"forward": [t.detach() for t in outputs]}
        self.cotangents = noise(outputs, [wide] * len(outputs))
        self.seeds: list[Tensor] = []
        self._idle = 0  # bytes of inputs that no result depends on: cells that no ray meets
        if entry.order:
            above = [t.double().requires_grad_(entry.order > 1) for t in self.cotangents]
            first = gradients(outputs, own, above, create_graph=entry.order > 1)
            self.answers["backward"] = [t.detach() for t in first]
            self.answers["forward+backward"] = self.answers["backward"]
            slopes = iter(first)
            for name in self.names:
                for t in flat(self.args, [name]):
                    unused = int((next(slopes) == 0).sum()) * t.element_size()
                    self._idle += unused if name in inputs.stored else 0  # a point far outside must be read to know it
            if entry.order > 1:
                self.seeds = noise(first, [t.dtype for t in flat(self.args, self.names)])
                second = gradients(first, [*own, *above], [t.double() for t in self.seeds])
                self.answers["double backward"] = self.answers["chain"] = [t.detach() for t in second]
        self._given = [*flat(self.args, list(self.args)), *self.cotangents, *self.seeds]
        self._before = [t.clone() for t in self._given]
        self._results = sum(t.numel() for t in outputs) * torch.empty((), dtype=wide).element_size()

    @property
    def directions(self) -> list[str]:
        return list(self.answers)

    def bytes(self, direction: str) -> int:
        """Compulsory traffic: every input that the result depends on read once, every result written once."""
        read, own = _bytes(flat(self.args, list(self.args))), _bytes(flat(self.args, self.names))
        read, seeds, above = read - self._idle, own - self._idle, self._results
        moved = {
            "forward": read + self._results,
            "backward": read + above + own,  # inputs and cotangents -> gradients
            "double backward": read + above + seeds + own + above,  # and seeds -> gradients, and the cotangents' own
        }
        return sum(moved[part] for part in PARTS[direction])

    def flops(self, direction: str) -> int:
        forwards = {**FORWARDS, **self.entry.work}
        return round(self.entry.flops(self.args) * sum(forwards[part] for part in PARTS[direction]))

    def shapes(self) -> dict[str, Any]:
        """Shapes of the tensors, for the record."""
        return {
            name: [list(t.shape) for t in tensors(value)] if isinstance(value, list) else list(value.shape)
            for name, value in self.args.items()
            if flat({name: value}, [name])
        }

    def untouched(self) -> bool:
        """Whether the inputs are what they were: a rival that writes on them, or on the cotangents of a backward, would
        change what all others compute."""
        return all(torch.equal(now, before) for now, before in zip(self._given, self._before, strict=True))

    def restore(self) -> None:
        """The inputs as they were, for the rivals after one that wrote on them."""
        for now, before in zip(self._given, self._before, strict=True):
            now.copy_(before)

    def run(self, rival: Rival, call: Callable[..., Result], direction: str) -> Run:
        """The calls of ``rival`` in a direction. What a backward starts from is computed here, outside of the clock."""
        args = rival.prepare(self.args)

        def outputs(values: Arguments) -> list[Tensor]:
            return tensors(call(**values))

        def first(values: Arguments, above: Sequence[Tensor], **options: bool) -> Any:
            found = outputs(values)
            seeds = [c.to(o.dtype) for o, c in zip(found, above, strict=True)]
            return gradients(found, flat(values, self.names), seeds, **options)

        def again() -> Callable[[], Sequence[Tensor]]:
            own, above = leaves(args, self.names), [t.detach().requires_grad_() for t in self.cotangents]
            grads, ends = first(own, above, create_graph=True), [*flat(own, self.names), *above]
            if direction == "double backward":
                made.inputs = self.seeds
            return lambda: gradients(grads, ends, self.seeds, retain_graph=True)

        def backward() -> Callable[[], Sequence[Tensor]]:
            own = leaves(args, self.names)
            found = outputs(own)
            made.inputs = seeds = [c.to(o.dtype) for o, c in zip(found, self.cotangents, strict=True)]
            return lambda: gradients(found, flat(own, self.names), seeds, retain_graph=True)

        given = flat(args, self.names or [name for name in args if flat(args, [name])])
        made = Run(rival, direction, self.device, lambda: [], [t for t in given if t.is_floating_point()])
        with made.inside():
            made.call = {
                "forward": lambda: lambda: outputs(args),
                "backward": backward,
                "forward+backward": lambda: lambda: first(leaves(args, self.names), self.cotangents),
                "double backward": again,
                "chain": lambda: lambda: again()(),
            }[direction]()
        return made


PARTS = {
    "forward": ("forward",),
    "backward": ("backward",),
    "forward+backward": ("forward", "backward"),
    "double backward": ("double backward",),
    "chain": ("forward", "backward", "double backward"),
}


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _bytes(found: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in found)
