"""The subcommands of ``mim4d``: their arguments, read by tyro from dataclasses, and what each of them calls."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

import mim4d
from mim4d.errors import UserError, did_you_mean

T = TypeVar("T")


@dataclass
class RenderArguments:
    """Draw a held-out clip with the newest weights of a run: one picture per camera, and a fresh report."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    step: int = -1
    """Step of the checkpoint; -1 takes the newest."""
    stride: int = 0
    """Render every n-th pixel; 0 takes the run's train.picture_stride."""
    clip: int = -1
    """Which held-out clip, counted from 0; -1 takes the one that the report shows."""


@dataclass
class InfoArguments:
    """Say what this machine and this build can do, and why not where not."""

    json: bool = False
    """Print JSON."""


def run(name: str, arguments: Sequence[str]) -> int:
    """Run the subcommand ``name`` with its command line; returns the exit code."""
    known = {"pretrain": _pretrain, "render": _render, "world": _world, "bench": _bench, "info": _info}
    return known[name](list(arguments))


def parse(
    kind: type[T], arguments: Sequence[str], prog: str, default: T | None = None, description: str | None = None
) -> T:
    """Read a dataclass from a command line; every mistake is a one-line :class:`UserError`. ``--help`` exits with 0."""
    options = _options(kind, default)
    for token in arguments:
        option = token.partition("=")[0]
        if option.startswith("--") and option[2:].replace("-", "_") not in options | {"help"}:
            raise UserError(f"unknown option {option}{_near(option, options)} ({prog} --help lists all)")
    extra: dict[str, Any] = {} if default is None else {"default": default}
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(kind, args=arguments, prog=prog, description=description, **extra)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_one_line(caught.getvalue())} ({prog} --help lists all)") from None


def _options(kind: type, default: Any) -> set[str]:
    """Names of all options with underscores: ``train.steps``, and ``train.no_compile`` beside ``train.compile``."""
    found: set[str] = set()
    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        inner = getattr(default, each.name, None)
        if dataclasses.is_dataclass(hints[each.name]):
            found |= {f"{each.name}.{name}" for name in _options(hints[each.name], inner)}
        else:
            found.add(each.name)
            if hints[each.name] is bool:
                found.add(f"no_{each.name}")
    return found


def _near(option: str, options: set[str]) -> str:
    return did_you_mean(option, [f"--{name.replace('_', '-')}" for name in options])


def _one_line(box: str) -> str:
    """The message out of tyro's frame (drawn in Unicode or ASCII): what stands above the first rule, in one line."""
    title, *rest = box.strip().splitlines() or [""]
    body: list[str] = []
    for line in rest:
        text = line.strip("│| ")
        if text.strip("─-"):
            body.append(text)
        elif body:
            break
    message = " ".join(body)
    if "Required" in title:
        names = [word for word in message.split() if word.startswith("--")]
        return f"missing: {', '.join(names) or message.partition(': ')[2].removesuffix(' (required)')}"
    return message or "wrong command line"


def _pretrain(arguments: list[str]) -> int:
    from mim4d.engine import config as configs
    from mim4d.engine.pretrain import pretrain

    given = {name: _value(arguments, name) for name in ("preset", "out")}
    run_config = Path(given["out"]) / "config.yaml" if given["out"] else None
    if given["preset"]:
        start = configs.load_preset(given["preset"])
    elif run_config is not None and run_config.is_file():
        start = configs.load_config(run_config)  # a run that is there is its own preset
    elif {"-h", "--help"} & set(arguments):
        start = configs.default_config()
    else:
        raise UserError(f"no preset given: --preset NAME, one of {', '.join(configs.preset_names())}, or a .yaml file")
    default = configs.PretrainArguments(
        data=dataclasses.replace(start.data, root=start.data.root or tyro.MISSING),
        model=start.model,
        train=start.train,
        preset=start.preset,
        out=tyro.MISSING,
    )
    description = (
        "Learn a 3D volume from masked multi-view video by rendering it. The options below override the preset "
        f"({', '.join(configs.preset_names())}, or a .yaml file); shown are the values of "
        f"{'preset ' + given['preset'] if given['preset'] else 'the code, since no --preset was named'}. "
        "A run folder that is there is continued: `mim4d pretrain --out RUN` is enough."
    )
    parsed = parse(configs.PretrainArguments, arguments, "mim4d pretrain", default, description)
    pretrain(parsed.config(), parsed.out)
    return 0


def _value(arguments: Sequence[str], name: str) -> str:
    """The value of ``--name VALUE`` or ``--name=VALUE`` (the last one counts), or an empty string."""
    value = ""
    for place, token in enumerate(arguments):
        if token == f"--{name}" and place + 1 < len(arguments):
            value = arguments[place + 1]
        elif token.startswith(f"--{name}="):
            value = token.partition("=")[2]
    return value


def _render(arguments: list[str]) -> int:
    given = parse(RenderArguments, arguments, "mim4d render")
    from mim4d.engine.render import render_run

    render_run(given.run, step=given.step, stride=given.stride, clip=given.clip)
    return 0


def _world(arguments: list[str]) -> int:
    from mim4d.engine import world

    default, description = world.defaults(_value(arguments, "preset"))
    return world.run(parse(world.WorldArguments, arguments, "mim4d world", default, description), arguments)


def _bench(arguments: list[str]) -> int:
    """The benchmarks are no part of the package: they live beside it, in a checkout, which this opens the door to."""
    root = Path(mim4d.__file__).resolve().parent.parent
    if not (root / "benchmarks" / "run.py").is_file():
        raise UserError(
            "mim4d bench needs a checkout of the repository: the benchmarks are not part of the installed package "
            "(git clone, make setup, then .venv/bin/mim4d bench)"
        )
    sys.path.insert(0, str(root))
    try:
        run = importlib.import_module("benchmarks.run")
    finally:
        sys.path.remove(str(root))
    return run.main(arguments, prog="mim4d bench")


def _info(arguments: list[str]) -> int:
    given = parse(InfoArguments, arguments, "mim4d info")
    from mim4d.engine.environment import describe, facts

    found = facts()
    print(json.dumps(found, indent=2) if given.json else describe(found))
    return 0
