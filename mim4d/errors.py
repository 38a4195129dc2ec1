"""Mistakes in what the user gave: the one exception type for them, and the hint that goes with a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A wrong path, file, key or option. The message is one line: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """``'; did you mean x?'`` for the nearest of ``known``, or an empty string.

    A dotted name is also compared by its last part, so that ``train.seeed`` and ``seed`` both find ``train.seed``.
    """
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in reversed(names)}
    leaf = wrong.lstrip("-").rsplit(".", 1)[-1]
    if leaf in by_leaf or not close:
        close = [by_leaf[name] for name in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.75)] or close
    return f"; did you mean {close[0]}?" if close else ""
