"""One fuzzed call of an op: how it is made from plain numbers and words, and what must be true of it.

``check("voxel_sample", "cpu", sizes={"N": 3}, layouts={"volume": "step"}, values={"points": "kinks"})`` makes the call
and looks at it. A failing example is printed as such a line. ``helpers.strategies`` draws the arguments;
``tests/ops/test_fuzz.py`` runs them.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from helpers.cases import running
from helpers.infos import OPS
from helpers.op_info import OpInfo, mapped, tensors
from helpers.tolerances import assert_close
from mim4d import backends, ops

ROWS: dict[str, OpInfo] = {info.op: info for info in OPS}
LAYOUTS = ("plain", "offset", "reversed", "channels_last", "sliced", "step", "expanded", "expanded_last")
VALUES = ("normal", "zeros", "whole", "huge", "tiny", "denormal", "inf", "nan")
PLACES = ("normal", "kinks", "far", "denormal", "nan")  # for coordinates
SPOILS = ("None", "list", "rank", "size", "empty", "dtype", "int", "complex", "meta")
_CALM = ("normal", "zeros", "huge")  # where the row's own oracle, in stock torch, is right and far from every kink
# NeuS' opacity is a small difference of sigmoids near 1. In float32 that is noise where nothing is near (measured, 60
# cases: edges 9e-4 of the ray, rgb 5e-5, gradients up to 4e-2 of their largest element): as for halves, a result may be
# twice as far from the oracle as the reference in that dtype. A ray that leaves all bounds promises no gradients.
ROUGH = ("sdf_march", "sdf_sample")
_BOUNDLESS = {"huge", "tiny", "far", "inf", "nan"}
_CENTRES = tuple(sorted({j / n for n in range(1, 10) for j in range(-n - 1, n + 2)}))


def line(op: str, run: str, **case: Any) -> str:
    """What a person pastes into Python, at the root of the repository, to make this call again."""
    words = "".join(f", {name}={value!r}" for name, value in case.items() if value not in ({}, (), None))
    return (
        "import sys; sys.path.insert(0, 'tests'); from helpers import fuzz; "
        f"fuzz.{'check' if 'spoil' not in case else 'check_refusal'}({op!r}, {run!r}{words})"
    )


# ---- from words to tensors


def arguments(
    info: OpInfo,
    sizes: Mapping[str, Any],
    seed: int,
    dtype: str,
    layouts: Mapping[str, str],
    values: Mapping[str, str],
) -> dict[str, Any]:
    """The arguments of one call, by name. Layouts and values are named per argument; a list takes them as a whole."""
    g = torch.Generator().manual_seed(seed)
    made = info.cast(info.sample("", sizes, seed), getattr(torch, dtype))
    for name, value in made.items():
        if isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor)):
            kind, how, placed = values.get(name, "normal"), layouts.get(name, "plain"), name in info.coordinates
            made[name] = mapped(lambda t, k=kind, h=how, p=placed: laid(revalued(t, k, g, p), h), value)
    return made


def revalued(t: Tensor, kind: str, g: torch.Generator, placed: bool = False) -> Tensor:
    """The tensor with other values; ``placed``: coordinates, of which single ones are replaced."""
    if kind == "normal" or not t.is_floating_point():
        return t
    some = torch.rand(t.shape, generator=g) < 0.3
    sign = torch.where(torch.rand(t.shape, generator=g) < 0.5, -1.0, 1.0)
    choose = lambda x: torch.tensor(x, dtype=torch.float64)[torch.randint(len(x), t.shape, generator=g)].to(t.dtype)
    half = t.dtype == torch.float16
    if kind == "zeros":
        return (0.0 * sign).to(t.dtype)
    if kind == "whole":
        return t.round()
    if kind == "huge" and not placed:
        return t * (1e3 if half else 1e30)
    if kind == "tiny":
        return t * (1e-2 if half else 1e-36)
    if kind == "denormal":
        return torch.where(some, (sign * torch.finfo(t.dtype).smallest_normal / 8).to(t.dtype), t)
    if kind == "kinks":
        return torch.where(some, choose(_CENTRES), t)
    if kind in ("far", "huge"):
        return torch.where(some, choose([1e30, -1e30, torch.inf, -torch.inf, 50.0, -50.0]), t)
    return torch.where(some, (sign * {"inf": torch.inf, "nan": torch.nan}[kind]).to(t.dtype), t)


def laid(t: Tensor, how: str) -> Tensor:
    """The same values in another layout, but for the expanded ones, which repeat the first slice of a dimension.

    What lies between and around the values is NaN, or a number that no index may be.
    """
    alien = torch.nan if t.is_floating_point() else 2**31 - 2
    longer = [d for d in range(t.dim()) if t.shape[d] > 1]
    if how.startswith("expanded"):
        if not longer or not t.is_floating_point():
            return t.contiguous()
        d = longer[-1 if how == "expanded_last" else 0]
        return t.narrow(d, 0, 1).contiguous().expand(t.shape)
    if how == "reversed" and t.dim() > 1:
        order = tuple(reversed(range(t.dim())))
        return t.permute(order).contiguous().permute(order)
    if how == "channels_last" and t.dim() > 2:
        return t.movedim(1, -1).contiguous().movedim(-1, 1)
    if how == "sliced" and t.dim() > 0:
        view = t.new_full([s + 2 for s in t.shape], alien)[(slice(1, -1),) * t.dim()]
    elif how == "step" and t.dim() > 0:
        doubled = [s * 2 if d in (0, t.dim() - 1) else s for d, s in enumerate(t.shape)]
        view = t.new_full(doubled, alien)[::2]
        view = view[..., ::2] if t.dim() > 1 else view
    elif how != "plain":  # one element off: no vector of the memory is aligned
        view = t.new_full((t.numel() + 1,), alien)[1:].view(t.shape)
    else:
        return t.contiguous()
    return view.copy_(t)


# ---- what must be true of a call


def check(
    op: str,
    run: str,
    *,
    sizes: Mapping[str, Any] = {},
    seed: int = 0,
    dtype: str = "float32",
    layouts: Mapping[str, str] = {},
    values: Mapping[str, str] = {},
    needs: Sequence[str] = (),
) -> None:
    """A valid call: result and gradients are right, laid out as the fake says, the same bits again, and the inputs are
    as they were."""
    info = ROWS[op]
    given = arguments(info, sizes, seed, dtype, layouts, values)
    before = [stored(t) for t in tensors([*given.values()])]
    with entered(info, run, given):
        found, again = (results(info, given, needs, seed) for _ in range(2))
    assert all(map(same_bits, before, map(stored, tensors([*given.values()])))), "an input was changed"
    # Blocks of the emulator that share out several OS threads add with atomics in no fixed order.
    ordered = run != "simt" or os.environ.get("SIMT_THREADS", "1") == "1"
    for name, x, y in zip(names(info, found, needs), found, again, strict=True):
        assert same_bits(x, y) or not ordered, f"{name}: a second call gives other bits"

    fake = results(info, each(as_meta, given), needs, seed)
    outputs = len(found) - len(info.leaves(given, needs))
    for i, (name, x, y) in enumerate(zip(names(info, found, needs), found, fake, strict=True)):
        # A reference that is called as it is gets its gradients from torch's own autograd, in torch's own layout.
        check_layout(name, x, y, strides=run != "reference" or i < outputs)

    exact, like, noise = expectations(
        info, given, dtype, layouts, values, functools.partial(results, info, needs=needs, seed=seed, found=found)
    )
    unbounded = op in ROUGH and not _BOUNDLESS.isdisjoint(values.values())
    for i, (name, x) in enumerate(zip(names(info, found, needs), found, strict=True)):
        overflows = "huge" in values.values() or [*values.values()].count("far") > 1
        if unbounded and (i >= outputs or overflows):
            break  # nothing but the layout can be told
        try:
            check_value(op, name, x, like[i], [e[i] for e in exact])
        except AssertionError:
            more, level = noise()
            either = [e[i] for e in (*exact, *more)]
            check_value(op, name, x, like[i], either, level[i])


def expectations(
    info: OpInfo,
    given: Mapping[str, Any],
    dtype: str,
    layouts: Mapping[str, str],
    values: Mapping[str, str],
    run: Callable[..., list[Tensor]],
) -> tuple[list[list[Tensor]], list[Tensor], Callable[[], tuple[list[list[Tensor]], list[float]]]]:
    """What is right in float64, of which any will do; what the reference makes of the call itself; and, asked for where
    that is not enough, more that is right and how far roundings alone carry each result."""
    truth = on_reference(info.op)
    calm = all(values.get(n, "normal") in _CALM for n in given) and all(
        values.get(n, "normal") == "normal" and not layouts.get(n, "").startswith("expanded") for n in info.coordinates
    )
    wide = each(lambda t: t.double() if t.is_floating_point() else t, given)
    like = run(given, function=truth)
    if calm:
        exact = [run(wide, function=info.oracle)]
    else:
        exact = [run(moved, function=truth) for moved in neighbours(info, wide, dtype)]

    @functools.cache
    def noise() -> tuple[list[list[Tensor]], list[float]]:
        moved = shakes(wide, dtype)
        more = [run(m, function=truth) for m in moved]
        noisy = [run(narrowed(m, given), function=truth) for m in moved]
        apart = lambda x, y: float((x.double() - y.double()).nan_to_num(0, 0, 0).norm(torch.inf))
        rough = 2 if info.op in ROUGH else 0
        return more, [
            4 * max(apart(n[i], own) for n in noisy)
            + (rough if own.dtype == torch.float32 else 0) * apart(own, exact[0][i])
            for i, own in enumerate(like)
        ]

    return exact, like, noise


def on_reference(op: str) -> Callable[..., Any]:
    """The public function as it is in mim4d, by its reference."""

    def function(**given: Any) -> Any:
        with backends.use_backend("reference"):
            return getattr(ops, op)(**given)

    return function


def check_refusal(
    op: str, run: str, *, spoil: tuple[str, str], sizes: Mapping[str, Any] = {}, seed: int = 0, dtype: str = "float32"
) -> None:
    """A call with one wrong argument: refused in words, or right after all. Nothing else is ever raised."""
    info = ROWS[op]
    given = arguments(info, sizes, seed, dtype, {}, {})
    name, how = spoil
    value = given[name]
    last = isinstance(value, (list, tuple)) and len(value) and isinstance(value[-1], Tensor)
    wrong = spoiled(value[-1] if last else value, how)
    broken = given | {name: [*value[:-1], wrong] if last else wrong}
    try:
        with entered(info, run, given):
            found = tensors(info.function(**broken))
    except (TypeError, ValueError) as error:
        if "mim4d" not in str(error):
            raise AssertionError("refused, but not in words of ours") from error
        return
    was = tensors(value)[0].is_floating_point() if tensors(value) else False
    needed = inspect.signature(info.function).parameters[name].default is inspect.Parameter.empty
    hopeless = (how == "None" and needed) or (how in ("int", "complex") and was)
    assert not hopeless, f"{name} = {how} was taken"
    fake = tensors(info.function(**each(as_meta, broken)))
    for i, (x, y) in enumerate(zip(found, fake, strict=True)):
        check_layout(f"output {i}", x, y)


def spoiled(value: Any, how: str) -> Any:
    """One argument that is not what it should be."""
    if how == "None":
        return None
    if not isinstance(value, Tensor):
        return {"list": [value], "int": 7, "dtype": "nonsense"}.get(how, 1.5)
    if how == "list":
        return value.tolist()
    if how == "rank":
        return value.unsqueeze(0)
    if how == "size":
        return torch.cat([value, value[..., :1]], -1) if value.dim() and value.shape[-1] else value.new_zeros(2)
    if how == "empty":
        return value[..., :0] if value.dim() else value.new_zeros(0)
    if how == "dtype":
        return value.to({torch.float32: torch.float64, torch.float64: torch.float32}.get(value.dtype, torch.float32))
    if how == "meta":
        return value.to("meta")
    return value.to({"int": torch.int64, "complex": torch.complex64}[how])


# ---- parts


def entered(info: OpInfo, run: str, given: Mapping[str, Any]) -> AbstractContextManager[None]:
    return running(info.op, run, "cpu", **info.meta(given))


def results(
    info: OpInfo,
    given: Mapping[str, Any],
    needs: Sequence[str],
    seed: int,
    found: Sequence[Tensor] = (),
    function: Callable[..., Any] | None = None,
) -> list[Tensor]:
    """Outputs, and the gradients of ``needs`` for random cotangents; in the dtypes of ``found`` where that is given."""
    wanted = {n: mapped(lambda t: t.detach().requires_grad_(), given[n]) for n in needs if n in given}
    given = {**given, **wanted}
    with torch.enable_grad():
        outputs = tensors((function or info.function)(**given))
    g = torch.Generator().manual_seed(seed + 1)
    cotangents = [torch.randn(o.shape, generator=g) for o in outputs]
    for i, o in enumerate(outputs):  # rounded as for the call that is looked at
        cotangents[i] = cotangents[i].to(found[i].dtype if found else o.dtype).to(o)
    leaves = info.leaves(given, list(wanted))
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    grads: Sequence[Tensor | None] = [None] * len(leaves)
    if pairs and leaves:
        ends, seeds = zip(*pairs, strict=True)
        grads = torch.autograd.grad(ends, leaves, seeds, allow_unused=True)
    zero = lambda t: torch.zeros_like(t, memory_format=torch.contiguous_format)
    return [o.detach() for o in outputs] + [zero(t) if x is None else x for x, t in zip(grads, leaves, strict=True)]


def names(info: OpInfo, found: Sequence[Tensor], needs: Sequence[str]) -> list[str]:
    return [f"result {i} of {len(found)} (outputs, then gradients of {', '.join(needs)})" for i in range(len(found))]


def neighbours(info: OpInfo, given: Mapping[str, Any], dtype: str) -> list[dict[str, Any]]:
    """The call, and the same with its coordinates moved by the rounding of their dtype, to every side: at a kink, what
    one rounding away is right is right."""
    eps = torch.finfo(torch.float64 if dtype == "float64" else torch.float32).eps
    found = [dict(given)]
    for signs in itertools.product((-1.0, 1.0), repeat=3):

        def move(t: Tensor, signs: tuple[float, ...] = signs) -> Tensor:
            if not t.is_floating_point() or not t.dim():
                return t
            side = torch.tensor(signs, dtype=t.dtype).repeat(t.shape[-1] // 3 + 1)[: t.shape[-1]]
            return torch.where(t.isfinite(), t + 4 * eps * side * (1 + t.abs()), t)

        found.append({n: mapped(move, v) if n in info.coordinates else v for n, v in given.items()})
    return found


def shakes(given: Mapping[str, Any], dtype: str) -> list[dict[str, Any]]:
    """The same with every number moved by a few roundings of the dtype, at random: what an ill-conditioned function
    makes of inputs that no one could tell apart is right, and an error that the reference in this dtype shows from one
    of them to the next is noise of the formula (NeuS' opacity is a small difference of sigmoids near 1)."""
    g = torch.Generator().manual_seed(0)
    eps = 8 * torch.finfo(torch.float64 if dtype == "float64" else torch.float32).eps

    def move(t: Tensor) -> Tensor:
        moved = t * (1 + eps * torch.randn(t.shape, generator=g, dtype=torch.float64))
        return torch.where(t.isfinite() & (t != 0), moved, t)

    return [each(lambda t: move(t) if t.is_floating_point() else t, given) for _ in range(6)]


def narrowed(wide: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in the dtypes that a call has."""

    def to(like: Any) -> Callable[[Tensor], Tensor]:
        return lambda t: t.to(tensors(like)[0].dtype) if t.is_floating_point() else t

    return {name: mapped(to(given[name]), value) for name, value in wide.items()}


def check_layout(name: str, found: Tensor, fake: Tensor, strides: bool = True) -> None:
    """Shape, dtype and (of more than one element along a dimension) stride, as the fake promises them."""
    got, want = (tuple(found.shape), found.dtype), (tuple(fake.shape), fake.dtype)
    assert got == want, f"{name}: {got}, and its fake says {want}"
    if strides and found.numel():
        kept = [d for d in range(found.dim()) if found.shape[d] > 1]
        got, want = [found.stride(d) for d in kept], [fake.stride(d) for d in kept]
        assert got == want, f"{name}: strides {got} of {tuple(found.shape)}, and its fake says {want}"


def check_value(
    op: str,
    name: str,
    found: Tensor,
    like: Tensor,
    exact: Sequence[Tensor],
    noise: float = 0.0,
) -> None:
    """Between the smallest and the largest of ``exact``, up to ``noise`` and the tolerances. Where those are not
    finite, nor is the result; where they do not agree on that, or the dtype overflows, anything goes."""
    if not found.is_floating_point():
        assert torch.equal(found, exact[0]), f"{name}: {found}, wanted {exact[0]}"
        return
    near = torch.stack([x.detach().double() for x in exact])
    assert tuple(found.shape) == tuple(near.shape[1:]), f"{name}: {tuple(found.shape)}, wanted {tuple(near.shape[1:])}"
    finite = near.isfinite()
    lost = ~finite.any(0)
    assert not found[lost].isfinite().any(), f"{name}: finite where the float64 reference is not"
    room = torch.finfo(found.dtype).max / 16
    known = finite.all(0) & (near.nan_to_num(0, 0, 0).abs().amax(0) < room)
    low, high = near.amin(0)[known] - noise, near.amax(0)[known] + noise
    got, own = found[known], like[known]
    assert got.isfinite().all(), f"{name}: {got[~got.isfinite()][0]} where the float64 reference is finite"
    target = got.double().clamp(low, high)
    own = (own.double() - own.double().clamp(low, high) + target).to(own.dtype)
    try:
        assert_close(got, target, like=[own], op=op)
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from None


def each(function: Callable[[Tensor], Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: mapped(function, value) for name, value in given.items()}


def as_meta(t: Tensor) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


def stored(t: Tensor) -> Tensor:
    """Every byte of the memory that a tensor lies in."""
    return torch.tensor([], dtype=torch.uint8).set_(t.untyped_storage()).clone()


def same_bits(x: Tensor, y: Tensor) -> bool:
    # a copy: of one element any stride is contiguous, and only 1 is one of bytes
    as_bytes = lambda t: t.detach().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)
    return torch.equal(as_bytes(x), as_bytes(y)) if x.numel() or y.numel() else x.shape == y.shape
