"""What the tests know of an op: one row of the table that the contract tests, the emulator, fuzzing and ``make gpu``
walk.

A new op gets all of them by one row. How to add it:

1. Write ``tests/helpers/infos/<stem>.py`` with ``INFO = OpInfo(...)``; ``voxel_pull.py`` there is a good model.
   - ``build(generator, **sizes)`` makes one valid call in float64 on the CPU out of named sizes and options, all of
     them with defaults. Keep values off the kinks of the function: a derivative is measured there.
   - ``oracle`` takes the same arguments and computes the result in stock torch, by another way than the op's
     reference, differentiable. It knows nothing of mim4d.
   - ``cases``, ``edges``, ``tiny``, ``growing`` and ``big`` name sizes for ``build``; ``ranges`` gives what fuzzing may
     draw.
   - ``wrong`` lists calls that must be refused, ``odd`` what the docs promise for NaN and infinities.
2. Add it to ``OPS`` in ``tests/helpers/infos/__init__.py``.

``tests/ops/test_<stem>.py`` then keeps what is true of this op alone: closed forms, and facts of its docs page.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Sample:
    """One valid call of a public function."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WrongCall:
    """A call that must raise ``error`` with a message that starts with the op and matches ``match``."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    error: type[Exception]
    match: str


@dataclass(frozen=True)
class Odd:
    """What NaN and infinities do: ``sample`` gives what its harmless ``twin`` gives, with the same finite gradients.

    ``nan`` and ``free`` are masks for each output (None: nowhere): there the result is NaN, or anything, and brings
    nothing to the gradients. ``gradients=False``: the docs promise nothing for them.
    """

    name: str
    sample: Sample
    twin: Sample
    nan: Sequence[Tensor | None] = ()
    free: Sequence[Tensor | None] = ()
    gradients: bool = True


@dataclass(frozen=True)
class OpInfo:
    """One row. Sizes are keyword arguments of ``build``; arguments are named as in the signature of ``function``."""

    op: str  # mim4d.ops.<op>, mim4d::<op>
    function: Callable[..., Any]
    build: Callable[..., Sample]
    oracle: Callable[..., Any]
    cases: Mapping[str, Mapping[str, Any]]  # name -> sizes: the sample inputs
    edges: Mapping[str, Mapping[str, Any]]  # empty in each dimension that may be, one element, one cell
    tiny: Mapping[str, Mapping[str, Any]]  # for gradcheck
    growing: tuple[Mapping[str, Any], ...]  # one compiled graph serves them all
    big: Mapping[str, Any]  # a result, or gradients, of about a megabyte in float32: leaks show
    ranges: Mapping[str, Sequence[Any]]  # what fuzzing draws each size from: the ends of a range of ints, or choices
    differentiable: tuple[str, ...] = ()  # in the order of the backward op's mask
    order: int = 1  # derivatives promised
    narrow: tuple[str, ...] = ()  # arguments that may be half; the other floating ones are at least float32
    coordinates: tuple[str, ...] = ()  # arguments that autocast may have narrowed: they are widened again
    dtypes: tuple[torch.dtype, ...] = DTYPES
    meta: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda arguments: {}  # for the predicates of the backends
    wrong: Callable[[], list[WrongCall]] = list
    odd: Callable[[], list[Odd]] = list
    namespace: str = "mim4d"  # of the dispatcher's ops

    def sample(self, name: str, sizes: Mapping[str, Any], seed: int = 0) -> Sample:
        made = self.build(torch.Generator().manual_seed(seed), **sizes)
        return dataclasses.replace(made, name=name)

    def samples(self, generator: torch.Generator) -> list[Sample]:
        return [dataclasses.replace(self.build(generator, **sizes), name=name) for name, sizes in self.cases.items()]

    def degenerate(self) -> list[Sample]:
        return [self.sample(name, sizes) for name, sizes in self.edges.items()]

    def arguments(self, sample: Sample) -> dict[str, Any]:
        """The arguments of a call by name, without those left to their defaults."""
        return dict(inspect.signature(self.function).bind(*sample.args, **sample.kwargs).arguments)

    def cast(self, sample: Sample, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
        """The arguments by name in one dtype: half for those that may be, else the accumulation dtype."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def to(name: str) -> Callable[[Tensor], Tensor]:
            wanted = dtype if name in self.narrow else wide
            return lambda t: t.to(device=device, dtype=wanted if t.is_floating_point() else t.dtype)

        return {name: mapped(to(name), value) for name, value in self.arguments(sample).items()}

    def leaves(self, arguments: Mapping[str, Any], names: Sequence[str] | None = None) -> list[Tensor]:
        """The differentiable tensors of a call, lists unrolled."""
        return [t for name in (self.differentiable if names is None else names) for t in tensors(arguments[name])]


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A nest of dicts, lists, tuples and dataclasses with every tensor replaced; all else as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: mapped(function, v) for name, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(function, v) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(function, v) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: mapped(function, getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value


def tensors(value: Any) -> list[Tensor]:
    """Every tensor of such a nest, in order: the results of an op as a list."""
    found: list[Tensor] = []
    mapped(lambda t: (found.append(t), t)[1], value)
    return found
