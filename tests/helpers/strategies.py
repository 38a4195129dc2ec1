"""What hypothesis draws: the arguments of ``helpers.fuzz.check`` and ``check_refusal``, from the ranges of a row.

With ``tests/ops/test_fuzz.py`` the only module that imports hypothesis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from helpers import fuzz
from helpers.cases import refusal
from helpers.op_info import OpInfo, tensors

SEEDS = st.integers(0, 2**16)


def calls(info: OpInfo, run: str) -> SearchStrategy[dict[str, Any]]:
    """Valid calls that the run can take: keyword arguments of :func:`helpers.fuzz.check`."""
    floating, all_tensors = _names(info)
    kinds = {n: fuzz.PLACES if n in info.coordinates else fuzz.VALUES for n in floating}
    return st.fixed_dictionaries(
        {
            "sizes": _sizes(info, run),
            "seed": SEEDS,
            "dtype": _dtypes(info),
            "layouts": _some({n: st.sampled_from(fuzz.LAYOUTS) for n in all_tensors}),
            "values": _some({n: st.sampled_from(kind) for n, kind in kinds.items()}),
            "needs": st.lists(st.sampled_from(info.differentiable), unique=True).map(tuple)
            if info.differentiable
            else st.just(()),
        }
    )


def refusals(info: OpInfo, run: str) -> SearchStrategy[dict[str, Any]]:
    """Calls with one wrong argument: keyword arguments of :func:`helpers.fuzz.check_refusal`."""
    given = sorted(info.arguments(info.sample("", {})))
    return st.fixed_dictionaries(
        {
            "spoil": st.tuples(st.sampled_from(given), st.sampled_from(fuzz.SPOILS)),
            "sizes": _sizes(info, run),
            "seed": SEEDS,
            "dtype": _dtypes(info),
        }
    )


def _sizes(info: OpInfo, run: str) -> SearchStrategy[dict[str, Any]]:
    """Two ints are the ends of a range, anything else is a list of choices; some or all are left to their defaults."""

    def draw(name: str, choices: Sequence[Any]) -> SearchStrategy[Any]:
        if len(choices) == 2 and all(type(c) is int for c in choices):
            return st.integers(*choices)
        return st.sampled_from([c for c in choices if _can_run(info, run, {name: c})] or list(choices))

    return _some({name: draw(name, choices) for name, choices in info.ranges.items()})


def _can_run(info: OpInfo, run: str, sizes: dict[str, Any]) -> bool:
    given = info.arguments(info.sample("", sizes))
    return refusal(info.op, run, "cpu", **info.meta(given)) is None


def _dtypes(info: OpInfo) -> SearchStrategy[str]:
    return st.sampled_from([str(d).removeprefix("torch.") for d in reversed(info.dtypes)])  # shrinks towards float64


def _some(optional: dict[str, SearchStrategy[Any]]) -> SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


def _names(info: OpInfo) -> tuple[list[str], list[str]]:
    """Arguments that are floating tensors or lists of them; arguments that are tensors of any kind."""
    given = info.arguments(info.sample("", {}))
    known = {n: tensors(v) for n, v in given.items() if not hasattr(v, "__dataclass_fields__")}
    return (
        [n for n, found in known.items() if found and found[0].is_floating_point()],
        [n for n, found in known.items() if found],
    )
