"""What every op promises, as checks: each takes a row of the table and a run, and raises AssertionError.

``tests/ops/test_contract.py`` walks the table through them; ``tests/ops/test_planted_faults.py`` shows that each
catches what it is there for. How torch sees an op (fakes, masks, graphs) is in ``helpers.contract_torch``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.cases import refusal, running
from helpers.op_info import Odd, OpInfo, Sample, WrongCall, mapped, tensors
from helpers.tolerances import assert_close

Run = tuple[str, str]  # backend, device
Arguments = Mapping[str, Any]
REFERENCE = ("reference", "cpu")


# ---- one call


def unordered(run: Run) -> bool:
    """Adds with atomics, in no fixed order: our kernels on a GPU, and torch's own there."""
    return run[0] in ("triton", "simt") or run[1] == "cuda"


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """What fails inside says for which sample."""
    try:
        yield
    except Exception as error:
        words = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        raise AssertionError(f"{name}: {words}") from error


def runnable(info: OpInfo, run: Run, samples: Sequence[Sample]) -> list[Sample]:
    """The samples that the run can take; where it takes none, the test is skipped with the reason."""
    meta = [info.meta(info.arguments(s)) for s in samples]
    able = [s for s, m in zip(samples, meta, strict=True) if refusal(info.op, *run, **m) is None]
    if samples and not able:
        with running(info.op, *run, **meta[0]):
            pass
    return able


@contextlib.contextmanager
def entered(info: OpInfo, run: Run, given: Arguments) -> Iterator[None]:
    with running(info.op, *run, **info.meta(given)):
        yield


def leafed(info: OpInfo, given: Arguments, needs: Sequence[str] | None = None) -> dict[str, Any]:
    """The same call with fresh leaves over the same memory for what is differentiated by, and no others."""
    needs = info.differentiable if needs is None else needs
    return {
        k: mapped(lambda t, k=k: t.detach().requires_grad_(k in needs and t.is_floating_point()), v)
        for k, v in given.items()
    }


def cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    return [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o) for o in outputs]


def gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor], seeds: Sequence[Tensor]) -> list[Tensor]:
    """By every leaf; zeros where the result does not depend on it."""
    pairs = [(o, s.to(o)) for o, s in zip(outputs, seeds, strict=True) if o.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if pairs and leaves:
        ends, starts = zip(*pairs, strict=True)
        found = torch.autograd.grad(ends, leaves, starts, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]


def results(
    info: OpInfo,
    run: Run,
    given: Arguments,
    *,
    needs: Sequence[str] | None = None,
    seeds: Callable[[Sequence[Tensor]], list[Tensor]] = cotangents,
) -> list[Tensor]:
    """Outputs, then gradients for random cotangents."""
    given = leafed(info, given, needs)
    with entered(info, run, given):
        outputs = tensors(info.function(**given))
        found = gradients(outputs, info.leaves(given, needs), seeds(outputs))
    return [*(o.detach() for o in outputs), *found]


def exact(info: OpInfo, given: Arguments, like: Sequence[Tensor]) -> list[Tensor]:
    """The same by the row's oracle in float64 on the CPU, for the same numbers and the same cotangents."""
    wide = lambda t: t.double().cpu() if t.is_floating_point() else t.cpu()
    given = leafed(info, {k: mapped(wide, v) for k, v in given.items()})
    outputs = tensors(info.oracle(**given))
    seeds = [s.to(found.dtype) for s, found in zip(cotangents(outputs), like, strict=False)]  # rounded as in the run
    return [*(o.detach() for o in outputs), *gradients(outputs, info.leaves(given), seeds)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(7.25), b.nan_to_num(7.25))


# ---- numbers


def check_values(
    info: OpInfo, run: Run, dtype: torch.dtype, samples: Sequence[Sample], *, poison: bool = False
) -> None:
    """Outputs and every gradient against the oracle and the reference in that dtype; ``poison``: as check_poison."""
    for sample in runnable(info, run, samples):
        with named(sample.name):
            given = info.cast(sample, dtype, run[1])
            with poisoned() if poison else contextlib.nullcontext():
                found = results(info, run, given)
            like = [found if run == REFERENCE else results(info, REFERENCE, info.cast(sample, dtype))]
            if run[1] != "cpu" and run[0] != "reference":  # where torch adds in another order
                like.append(results(info, ("reference", run[1]), info.cast(sample, dtype, run[1])))
            wanted = exact(info, given, found)
            assert len(found) == len(wanted), f"{len(found)} results and gradients, the oracle has {len(wanted)}"
            for i, (got, want, *own) in enumerate(zip(found, wanted, *like, strict=True)):
                with named(f"result {i}"):
                    assert_close(got, want, like=own, op=info.op if run[0] == "reference" else "")


def check_gradcheck(info: OpInfo, run: Run, samples: Sequence[Sample]) -> None:
    """Derivatives against differences, as many as are promised."""
    for sample in runnable(info, run, samples):
        given = leafed(info, info.cast(sample, torch.float64, run[1]))
        leaves = info.leaves(given)

        def function(*values: Tensor, given: Arguments = given) -> tuple[Tensor, ...]:
            new = iter(values)
            call = {k: mapped(lambda t: next(new), v) if k in info.differentiable else v for k, v in given.items()}
            return tuple(tensors(info.function(**call)))

        atomics = 1e-12 if unordered(run) else 0.0
        with named(sample.name), entered(info, run, given):
            fast = sum(t.numel() for t in leaves) > 50
            assert torch.autograd.gradcheck(function, leaves, nondet_tol=atomics, fast_mode=fast)
            if info.order == 2:
                assert torch.autograd.gradgradcheck(function, leaves, nondet_tol=atomics, fast_mode=True)


def check_refused_derivative(info: OpInfo, run: Run, sample: Sample) -> None:
    """One derivative more than promised is refused in words, never wrong in silence."""
    given = leafed(info, info.cast(sample, torch.float64, run[1]))
    with entered(info, run, given):
        outputs = tensors(info.function(**given))
        if info.order == 0:
            assert not any(o.requires_grad for o in outputs), "a result without a derivative requires grad"
            return
        leaves = info.leaves(given)
        for _ in range(info.order):
            total = sum((o.square().sum() for o in outputs if o.requires_grad), torch.zeros(()).to(outputs[0]))
            found = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
            outputs = [g for g in found if g is not None]
        total = sum((o.square().sum() for o in outputs if o.requires_grad), torch.zeros(()).to(outputs[0]))
        try:
            torch.autograd.grad(total, leaves, allow_unused=True)
        except RuntimeError as error:
            words = str(error)
        else:
            raise AssertionError(f"derivative {info.order + 1} was not refused")
    assert "has no derivative" in words, f"refused, but in words of torch: {words}"
    assert "use_backend" in words, "the refusal names no way out"


# ---- memory


def layouts(t: Tensor) -> dict[str, Tensor]:
    """The same values, stored otherwise. What lies between them is NaN, or a number that is no index."""
    alien = torch.nan if t.is_floating_point() else 2**31 - 2
    backwards = tuple(reversed(range(t.dim())))
    offset = t.new_full((t.numel() + 3,), alien)[3:].view(t.shape)
    rows = t.movedim(1, -1) if t.dim() > 2 else t  # and no row of them begins where a vector register may
    offset_rows = t.new_full((t.numel() + 1,), alien)[1:].view(rows.shape).copy_(rows)
    sliced = t.new_full([s + 2 for s in t.shape], alien)[(slice(1, -1),) * t.dim()]
    strided = t.new_full((*t.shape, 2), alien)[..., 1]
    return {
        "transposed": t.permute(backwards).contiguous().permute(backwards),
        "channels-last": t.movedim(1, -1).contiguous().movedim(-1, 1) if t.dim() > 2 else t.clone(),
        "offset": offset.copy_(t),
        "channels-last, offset": offset_rows.movedim(-1, 1) if t.dim() > 2 else offset_rows,
        "sliced": sliced.copy_(t),
        "strided": strided.copy_(t),
        "negated": torch._neg_view(-t) if t.is_floating_point() else t.clone(),
    }


def check_layouts(info: OpInfo, run: Run, samples: Sequence[Sample]) -> None:
    """Strides, offsets, lazy negation and expanded dimensions do not matter, of inputs and of cotangents."""
    for sample in runnable(info, run, samples):
        given = info.cast(sample, torch.float64, run[1])
        plain = results(info, run, given)
        for way in layouts(torch.zeros(1)):
            with named(f"{sample.name}, {way}"):
                lay = lambda t, way=way: layouts(t)[way]
                moved = {k: mapped(lay, v) for k, v in given.items()}
                found = results(info, run, moved, seeds=lambda outs, lay=lay: [lay(s) for s in cotangents(outs)])
                for got, want in zip(found, plain, strict=True):
                    assert_close(got, want.cpu(), op=info.op)
        for dim in range(2):
            with named(f"{sample.name}, expanded in dimension {dim}"):
                expanded = {k: mapped(lambda t, dim=dim: _repeated(t, dim), v) for k, v in given.items()}
                copied = {k: mapped(Tensor.contiguous, v) for k, v in expanded.items()}
                spread = lambda outs, dim=dim: [_repeated(s, dim) for s in cotangents(outs)]
                for got, want in zip(*(results(info, run, x, seeds=spread) for x in (expanded, copied)), strict=True):
                    assert_close(got, want.cpu(), op=info.op)


def _repeated(t: Tensor, dim: int) -> Tensor:
    """The first slice of a dimension in the place of all, with stride 0; indices stay."""
    if t.dim() <= dim or not t.shape[dim] or not t.is_floating_point():
        return t
    return t.narrow(dim, 0, 1).contiguous().expand(t.shape)


def check_no_damage(info: OpInfo, run: Run, samples: Sequence[Sample]) -> None:
    """Inputs and cotangents are as they were, by value and by torch's own count of changes."""
    for sample in runnable(info, run, samples):
        with named(sample.name):
            given = info.cast(sample, torch.float32 if torch.float32 in info.dtypes else torch.float64, run[1])
            seen: list[Tensor] = []
            before = [(t, t.clone(), t._version) for t in tensors(given)]

            def seeds(outputs: Sequence[Tensor], seen: list[Tensor] = seen) -> list[Tensor]:
                seen += cotangents(outputs)
                return seen

            results(info, run, given, seeds=seeds)
            for i, (t, copy, version) in enumerate(before):
                assert same_bits(t, copy), f"tensor {i} of the arguments was changed"
                assert t._version == version, f"tensor {i} of the arguments was written to"
            for i, (used, fresh) in enumerate(zip(seen, cotangents(seen), strict=True)):
                assert same_bits(used, fresh), f"cotangent {i} was changed"


class _Poison(TorchDispatchMode):
    """Memory that torch allocates inside any op is full of NaN (of the largest number, where it holds integers)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """What is not written shows: torch fills fresh memory with NaN while it is inside an op, also for the C++ ops.

    torch does so in deterministic mode alone. The mode is on within ops and off around them, so that predicates that
    stand aside for it (atomics on a GPU) do not see it and the kernel that they guard is tested.
    """
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with _Poison():
            yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before


def check_poison(info: OpInfo, run: Run, dtype: torch.dtype, samples: Sequence[Sample]) -> None:
    """Every element of every result and gradient is written."""
    check_values(info, run, dtype, samples, poison=True)


def check_leaks(info: OpInfo, run: Run, sample: Sample, calls: int = 8) -> None:
    """Nothing stays after a call: no tensor that only the garbage collector would free, no memory of C++.

    Tensors are counted exactly, and so are bytes on a GPU. The process may grow by a quarter of what the calls gave
    out, in the best of four rounds: an allocator that settles stops growing, a leak of a result never does.
    """
    if not runnable(info, run, [sample]):
        return
    given = info.cast(sample, torch.float32 if torch.float32 in info.dtypes else torch.float64, run[1])
    for _ in range(calls):  # caches, thread pools, the allocator's own
        size = sum(t.nbytes for t in results(info, run, given))
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            before = _live(run[1])
            for _ in range(calls):
                results(info, run, given)
            tensors_more, bytes_more, grown = (b - a for a, b in zip(before, _live(run[1]), strict=True))
            assert tensors_more <= 0, f"{tensors_more} tensors live on after {calls} calls"
            assert bytes_more <= 0, f"{bytes_more} bytes of the GPU live on after {calls} calls"
            if grown <= calls * size // 4:
                return
    finally:
        gc.enable()
    raise AssertionError(f"the process grew by {grown} bytes in {calls} calls that gave {size} each")


def _live(device: str) -> tuple[int, int, int]:
    """Tensors, bytes of the GPU, resident bytes of the process."""
    count = sum(issubclass(type(o), Tensor) for o in gc.get_objects())  # isinstance would wake lazy modules
    allocated = torch.cuda.memory_allocated() if device == "cuda" else 0
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # else a leak could live for long in what other tests have freed
        trim(0)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return count, allocated, resident


def check_determinism(info: OpInfo, run: Run, samples: Sequence[Sample]) -> None:
    """The same bits every time; with atomics, when torch.use_deterministic_algorithms asks for it, by who then runs."""
    for sample in runnable(info, run, samples):
        for strict in (False, True):
            with named(f"{sample.name}, {'deterministic' if strict else 'as it comes'}"):
                given = info.cast(sample, torch.float32 if torch.float32 in info.dtypes else torch.float64, run[1])
                torch.use_deterministic_algorithms(strict)
                try:
                    if strict and not runnable(info, run, [sample]):  # it stands aside: by who then runs
                        found = [_automatic(info, given) for _ in range(2)]
                    else:
                        found = [results(info, run, given) for _ in range(2)]
                finally:
                    torch.use_deterministic_algorithms(False)
                for i, (a, b) in enumerate(zip(*found, strict=True)):
                    if strict or not unordered(run):
                        assert same_bits(a, b), f"result {i} has other bits the second time"
                    else:
                        assert_close(a, b.double().cpu(), op=info.op)


def _automatic(info: OpInfo, given: Arguments) -> list[Tensor]:
    given = leafed(info, given)
    outputs = tensors(info.function(**given))
    return [*outputs, *gradients(outputs, info.leaves(given), cotangents(outputs))]


# ---- odd values, wrong calls, modes of torch


def check_odd(info: OpInfo, run: Run, dtype: torch.dtype, cases: Sequence[Odd]) -> None:
    """NaN and infinities do what the docs promise."""
    able = [s.name for s in runnable(info, run, [Sample(c.name, c.sample.args, c.sample.kwargs) for c in cases])]
    for case in (c for c in cases if c.name in able):
        with named(case.name):
            masks = (*case.nan, *(None,) * 9), (*case.free, *(None,) * 9)

            def seeds(outputs: Sequence[Tensor], masks: Any = masks) -> list[Tensor]:
                """Nothing for what is NaN or free."""
                clear = lambda s, mask: s if mask is None else torch.where(mask.to(s.device), 0.0, s)
                return [clear(clear(s, n), f) for s, n, f in zip(cotangents(outputs), *masks, strict=False)]

            found, twin = (
                results(info, run, info.cast(s, dtype, run[1]), seeds=seeds) for s in (case.sample, case.twin)
            )
            count = len(found) - len(info.leaves(info.arguments(case.sample)))
            for i, (got, want, nan, free) in enumerate(zip(found[:count], twin, *masks, strict=False)):
                got, want = got.cpu(), want.cpu()
                nan, free = (torch.zeros((), dtype=torch.bool) if m is None else m for m in (nan, free))
                assert got[nan.expand_as(got)].isnan().all(), f"result {i} is a number where NaN is promised"
                with named(f"result {i}"):
                    hidden = [torch.where(nan | free, 0.0, t) for t in (got, want)]
                    assert_close(hidden[0], hidden[1].double(), op=info.op)
            for i, (got, want) in enumerate(zip(found[count:], twin[count:], strict=True)):
                with named(f"gradient {i}"):
                    if case.gradients:
                        assert got.isfinite().all(), "is not finite"
                        assert_close(got, want.double().cpu(), op=info.op)


def check_wrong(info: OpInfo, wrong: WrongCall) -> None:
    """Refused before anything runs, in words that name op and argument."""
    words = rf"mim4d\.ops\.{info.op}: .*{wrong.match}"
    try:
        info.function(*wrong.args, **wrong.kwargs)
    except (TypeError, ValueError) as error:
        found = error
    else:
        raise AssertionError("was not refused")
    assert type(found) is wrong.error, f"{type(found).__name__}, wanted {wrong.error.__name__}: {found}"
    assert re.search(words, str(found)), f"{str(found)!r} does not match {words!r}"


def check_autocast(info: OpInfo, run: Run, sample: Sample, half: torch.dtype) -> None:
    """Autocast changes no number: it may narrow coordinates, which are widened again; without it they are refused.

    Also of the gradients, even if they are asked for inside; but for the bare reference, which torch differentiates.
    """
    inside = contextlib.nullcontext if run[0] == "reference" else lambda: torch.autocast(run[1], half)
    for dtype in (d for d in dict.fromkeys((torch.float32, half)) if d in info.dtypes):
        given = info.cast(sample, dtype, run[1])
        narrow = {k: mapped(lambda t: t.to(half), v) if k in info.coordinates else v for k, v in given.items()}
        wide = {k: mapped(Tensor.float, v) if k in info.coordinates else v for k, v in narrow.items()}
        for name, call, plain in (("as it is", given, given), ("narrowed", narrow, wide)):
            with named(f"{dtype}, {name}"):
                want = results(info, run, plain)
                leaves = leafed(info, call)
                with entered(info, run, call):
                    with torch.autocast(run[1], half):
                        outputs = tensors(info.function(**leaves))
                    with inside():
                        found = [*outputs, *gradients(outputs, info.leaves(leaves), cotangents(outputs))]
                for i, (a, b) in enumerate(zip(found, want, strict=True)):
                    with named(f"result {i}"):
                        if unordered(run):
                            assert_close(a, b.double().cpu(), like=[b.to(a.dtype)], op=info.op)
                        else:
                            assert same_bits(a, b.to(a.dtype)), "is another under autocast"
        if info.coordinates:
            try:
                results(info, run, narrow)
            except TypeError as error:
                refusal_words = str(error)
            else:
                raise AssertionError(f"{half} coordinates are taken outside autocast")
            assert info.op in refusal_words, refusal_words


def check_without_autograd(info: OpInfo, run: Run, sample: Sample) -> None:
    """no_grad and inference_mode: the same result, which asks for no gradient."""
    given = leafed(info, info.cast(sample, torch.float64, run[1]))
    with entered(info, run, given):
        want = [t.detach() for t in tensors(info.function(**given))]
        for mode in (torch.no_grad, torch.inference_mode):
            with named(mode.__name__), mode():
                found = tensors(info.function(**given))
                assert not any(t.requires_grad for t in found)
                assert all(map(same_bits, found, want)), "another result"
