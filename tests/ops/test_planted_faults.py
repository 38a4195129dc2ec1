"""Each check of the contract catches the fault that it is there for, and lets the healthy twin pass.

The twin is ``toy(x, w) = x * w^3``, an op with a double backward, defined as mim4d defines its own but in a namespace
for itself. A fault changes one thing of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import contract, contract_torch
from helpers.cases import generator
from helpers.op_info import Odd, OpInfo, Sample, WrongCall
from helpers.tolerances import errors
from torch import Tensor

from mim4d import _library, backends

RUN = ("dispatcher", "cpu")
NAMESPACE = "planted"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
kept: list[Any] = []  # what leaks


def plain(x: Tensor, w: Tensor) -> Tensor:
    """The reference."""
    return (x.to(w.dtype) * w**3).to(x.dtype)


class Toy:
    """The parts of the op; ``fault`` names the one that is wrong."""

    def __init__(self, fault: str) -> None:
        self.fault, self.op = fault, f"toy_{fault}".replace(" ", "_")
        args = "Tensor x, Tensor w"
        self.define(f"{self.op}({args}) -> Tensor", self.forward, self.fake, self.formula, self.setup)
        backward = f"{self.op}_backward(Tensor grad, {args}, bool[2] mask) -> (Tensor, Tensor)"
        self.define(backward, self.backward, self.fake_backward, self.second_formula, self.second_setup)
        grads = "Tensor? ggx, Tensor? ggw, Tensor grad"
        double = f"{self.op}_double_backward({grads}, {args}, bool[3] mask) -> (Tensor, Tensor, Tensor)"
        self.define(double, self.double_backward, self.fake_double, None, None)

    def define(self, schema: str, kernel: Any, fake: Any, formula: Any, setup: Any) -> None:
        name = schema.partition("(")[0]
        LIBRARY.define(schema)
        LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
        if formula is not None:
            torch.library.register_autograd(f"{NAMESPACE}::{name}", formula, setup_context=setup, lib=LIBRARY)
        elif self.fault != "third derivative is dropped":
            torch.library.register_autograd(f"{NAMESPACE}::{name}", _library._refuse(name), lib=LIBRARY)

    def call(self, suffix: str, *args: Any) -> Any:
        return getattr(getattr(torch.ops, NAMESPACE), self.op + suffix).default(*args)

    # ---- kernels

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        if self.fault == "input is changed":
            x.mul_(2)
        if self.fault == "input is written and restored":
            x.mul_(2).div_(2)
        if self.fault == "strides are ignored" and x.numel():
            x = torch.as_strided(x, x.shape, (x.shape[1], 1))
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        rows = len(x) - 1 if self.fault == "a row is not written" and len(x) > 1 else len(x)
        out[:rows] = plain(x[:rows], w)
        if self.fault == "bits differ":
            out *= 1 + torch.rand(()) * 1e-6
        if self.fault == "a NaN is hidden":
            out = out.nan_to_num(0.0)
        if self.fault == "a tensor leaks":
            kept.append(out)
        if self.fault == "a tensor waits for the garbage collector":
            ring: list[Any] = [out.detach()]
            ring.append(ring)
        if self.fault == "memory leaks":
            kept.append(bytes(bytearray(b"leak")) * (out.nbytes // 4))
        return out

    def backward(self, grad: Tensor, x: Tensor, w: Tensor, mask: Sequence[bool]) -> tuple[Tensor, Tensor]:
        if self.fault == "cotangent is changed":
            grad.neg_()
        wide, power = grad.to(w.dtype), 2 if self.fault == "wrong gradient" else 3
        terms = wide * x.to(w.dtype) * power * w**2
        if self.fault == "sums are half" and x.dtype == torch.bfloat16:
            terms = terms.to(x.dtype)
        by_x = (wide * w**3).to(x.dtype) if mask[0] or self.fault == "mask is ignored" else x.new_empty(0)
        by_w = terms.sum(0).to(w.dtype) if mask[1] or self.fault == "mask is ignored" else w.new_empty(0)
        return by_x.contiguous(), by_w

    def double_backward(
        self, ggx: Tensor | None, ggw: Tensor | None, grad: Tensor, x: Tensor, w: Tensor, mask: Sequence[bool]
    ) -> tuple[Tensor, ...]:
        ggx = torch.zeros_like(x) if ggx is None else ggx
        ggw = torch.zeros_like(w) if ggw is None else ggw
        six = 5 if self.fault == "wrong second derivative" else 6
        by_grad = ggx * w**3 + 3 * ggw * x * w**2
        by_w = (3 * ggx * grad * w**2 + six * ggw * grad * x * w).sum(0)
        found = by_grad.to(grad.dtype), (3 * ggw * grad * w**2).to(x.dtype), by_w.to(w.dtype)
        return tuple(f.contiguous() if m else f.new_empty(0) for f, m in zip(found, mask, strict=True))

    # ---- fakes

    def fake(self, x: Tensor, w: Tensor) -> Tensor:
        rows, columns = x.shape
        if self.fault == "wrong fake shape":
            rows = rows + 1
        if self.fault == "wrong fake stride":
            return x.new_empty(columns, rows).t()
        return x.new_empty(rows, columns, dtype=torch.float32 if self.fault == "wrong fake dtype" else x.dtype)

    def fake_backward(self, grad: Tensor, x: Tensor, w: Tensor, mask: Sequence[bool]) -> tuple[Tensor, Tensor]:
        if self.fault == "wrong fake dtype of a half gradient":
            x = x.to(w.dtype)
        return tuple(t.new_empty(t.shape if m else 0) for t, m in zip((x, w), mask, strict=True))  # type: ignore

    def fake_double(self, ggx: Any, ggw: Any, grad: Tensor, x: Tensor, w: Tensor, mask: Sequence[bool]) -> Any:
        return tuple(t.new_empty(t.shape if m else 0) for t, m in zip((grad, x, w), mask, strict=True))

    # ---- autograd

    def setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    def formula(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad)
        asked = [True, True] if self.fault == "needs_input_grad is ignored" else needs
        found = self.call("_backward", grad, *ctx.saved_tensors, asked)
        return tuple(f if n else None for f, n in zip(found, needs, strict=True))

    def second_setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.set_materialize_grads(False)

    def second_formula(self, ctx: Any, ggx: Tensor | None, ggw: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:3])
        found = self.call("_double_backward", ggx, ggw, *ctx.saved_tensors, needs)
        return *(f if n else None for f, n in zip(found, needs, strict=True)), None

    # ---- the public function

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            got = "it" if self.fault == "argument is not named" else "x"
            raise TypeError(f"mim4d.ops.{self.op}: {got} is {type(x).__name__}, wanted a Tensor")
        if x.dim() != 2 and self.fault != "wrong call is taken":
            raise ValueError(f"mim4d.ops.{self.op}: x has shape {tuple(x.shape)}, wanted (N, C)")
        if backends.choose(self.op, device=x.device) == "reference":
            return plain(x, w)
        if self.fault == "a size is a constant" and x.shape[0] > 6:
            x = x.clone()
        if self.fault == "graph is broken":
            torch._dynamo.graph_break()
        if self.fault == "autocast narrows":
            x = x @ torch.eye(x.shape[1], dtype=x.dtype)
        with (
            torch.enable_grad()
            if self.fault == "no_grad is ignored"
            else torch.autograd.grad_mode.set_grad_enabled(torch.is_grad_enabled())
        ):
            return self.call("", x, w)


def build(generator: torch.Generator, N: int = 5, C: int = 4) -> Sample:
    rand = lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64) + 0.5
    return Sample("", (rand(N, C), rand(C)))


@functools.cache
def row(fault: str) -> OpInfo:
    toy = Toy(fault)

    def function(x: Tensor, w: Tensor) -> Tensor:
        return toy(x, w)

    def odd() -> list[Odd]:
        twin = build(generator())
        x = twin.args[0].clone()
        x[1] = torch.nan
        mask = torch.zeros(5, 4, dtype=torch.bool)
        mask[1] = True
        return [Odd("nan", Sample("", (x, twin.args[1])), twin, nan=(mask,), gradients=False)]

    x, w = build(generator()).args
    return OpInfo(
        op=toy.op,
        function=function,
        build=build,
        oracle=lambda x, w: x * w.pow(3),
        cases={"plain": {}, "more": {"N": 300, "C": 3}},
        edges={"no-row": {"N": 0}, "one": {"N": 1, "C": 1}},
        tiny={"plain": {"N": 2, "C": 3}},
        growing=({"N": 5, "C": 6}, {"N": 7, "C": 8}, {"N": 11, "C": 9}),
        big={"N": 1024, "C": 512},
        ranges={},
        differentiable=("x", "w"),
        order=2,
        narrow=("x",),
        wrong=lambda: [
            WrongCall("list", ([1.0], w), {}, TypeError, "x is list, wanted a Tensor"),
            WrongCall("rank", (x[0], w), {}, ValueError, r"x has shape \(4,\), wanted \(N, C\)"),
        ],
        odd=odd,
        namespace=NAMESPACE,
    )


def samples(info: OpInfo) -> list[Sample]:
    return info.samples(generator()) + info.degenerate()


CHECKS: dict[str, Callable[[OpInfo], None]] = {
    "values": lambda info: contract.check_values(info, RUN, torch.float64, samples(info)),
    "values in bfloat16": lambda info: contract.check_values(info, RUN, torch.bfloat16, samples(info)),
    "gradcheck": lambda info: contract.check_gradcheck(info, RUN, [info.sample("tiny", info.tiny["plain"])]),
    "refused derivative": lambda info: contract.check_refused_derivative(info, RUN, info.sample("", {})),
    "layouts": lambda info: contract.check_layouts(info, RUN, [info.sample("", {})]),
    "no damage": lambda info: contract.check_no_damage(info, RUN, samples(info)),
    "poison": lambda info: contract.check_poison(info, RUN, torch.float64, samples(info)),
    "leaks": lambda info: contract.check_leaks(info, RUN, info.sample("", info.big)),
    "determinism": lambda info: contract.check_determinism(info, RUN, samples(info)),
    "odd": lambda info: contract.check_odd(info, RUN, torch.float32, info.odd()),
    "wrong": lambda info: [contract.check_wrong(info, w) for w in info.wrong()],
    "autocast": lambda info: contract.check_autocast(info, RUN, info.sample("", {}), torch.bfloat16),
    "without autograd": lambda info: contract.check_without_autograd(info, RUN, info.sample("", {})),
    "fakes": lambda info: contract_torch.check_fakes(info, RUN, samples(info)),
    "meta": lambda info: contract_torch.check_meta(info, RUN, samples(info)),
    "opcheck": lambda info: contract_torch.check_opcheck(info, RUN, [info.sample("", {})]),
    "masks": lambda info: contract_torch.check_masks(info, RUN, info.sample("", {})),
    "compile": lambda info: contract_torch.check_compile(info, RUN, [info.sample("", s) for s in info.growing]),
}
FAULTS = [  # the fault, the check that must catch it, what it says
    ("wrong gradient", "values", "result 2: .*element error"),
    ("wrong gradient", "gradcheck", "Jacobian mismatch|gradient"),
    ("wrong second derivative", "gradcheck", "Jacobian mismatch|gradient"),
    ("sums are half", "values in bfloat16", "result 2: .*error"),
    ("third derivative is dropped", "refused derivative", "was not refused|words of torch"),
    ("strides are ignored", "layouts", "error|NaN"),
    ("input is changed", "no damage", "tensor 0 of the arguments was changed"),
    ("input is written and restored", "no damage", "tensor 0 of the arguments was written to"),
    ("cotangent is changed", "no damage", "cotangent 0 was changed"),
    ("a row is not written", "poison", "NaN and infinity in different places|error"),
    ("a tensor leaks", "leaks", "tensors live on"),
    ("a tensor waits for the garbage collector", "leaks", "tensors live on"),
    ("memory leaks", "leaks", "the process grew by"),
    ("bits differ", "determinism", "other bits the second time"),
    ("a NaN is hidden", "odd", "a number where NaN is promised"),
    ("argument is not named", "wrong", "does not match"),
    ("wrong call is taken", "wrong", "was not refused"),
    ("autocast narrows", "autocast", "is another under autocast"),
    ("no_grad is ignored", "without autograd", "no_grad"),
    ("wrong fake shape", "fakes", r"has shape \(5, 4\), its fake \(6, 4\)"),
    ("wrong fake shape", "meta", r"has shape \(5, 4\), its fake \(6, 4\)"),
    ("wrong fake shape", "opcheck", "toy"),
    ("wrong fake stride", "fakes", r"has strides \(4, 1\), its fake \(1, 5\)"),
    ("wrong fake stride", "meta", r"has strides \(4, 1\), its fake \(1, 5\)"),
    ("wrong fake dtype of a half gradient", "fakes", r"is torch\.float16, its fake torch\.float32"),
    ("wrong fake dtype", "meta", r"is torch\.float16, its fake torch\.float32"),
    ("needs_input_grad is ignored", "masks", "was asked for"),
    ("mask is ignored", "masks", "the gradient of w was computed"),
    ("mask is ignored", "fakes", "its fake"),
    ("a size is a constant", "compile", "recompilation"),
    ("graph is broken", "compile", "size 0: .*"),
]


@pytest.mark.parametrize("check", CHECKS)
def test_the_healthy_twin_passes(check: str) -> None:
    CHECKS[check](row("healthy"))


@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered")  # the third derivative
@pytest.mark.parametrize(
    "fault, check, words", [pytest.param(*f, id=f"{f[0]}-{f[1]}".replace(" ", "_")) for f in FAULTS]
)
def test_a_planted_fault_is_caught(fault: str, check: str, words: str) -> None:
    try:
        with pytest.raises(AssertionError, match=words):
            CHECKS[check](row(fault))
    finally:
        kept.clear()


def test_only_the_second_derivative_is_wrong_there() -> None:
    """What else looks at the op finds nothing: the second derivative needs its own check."""
    for check in ("values", "opcheck", "masks", "fakes", "compile"):
        CHECKS[check](row("wrong second derivative"))


def test_every_check_has_its_fault() -> None:
    assert {check for _, check, _ in FAULTS} == set(CHECKS)


@pytest.mark.parametrize("found", [0.0, torch.inf, 1.0])
def test_only_a_nan_is_a_nan(found: float) -> None:
    oracle = torch.tensor([1.0, torch.nan], dtype=torch.float64)
    errors(oracle.float(), oracle)
    with pytest.raises(AssertionError, match="NaN and infinity in different places"):
        errors(torch.tensor([1.0, found]), oracle)
