"""The run folder: who may write into it, and whether what lies there can be continued.

``RUN/config.yaml``, ``summary.json``, ``metrics.jsonl``, ``report.html``, ``checkpoints/step-000024/``,
``renders/*.npz``, ``tensorboard/``. A command on a run of the same configuration continues it; of another configuration
is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mim4d.engine.config import PretrainConfig, differences, load_config
from mim4d.errors import UserError

CONFIG, SUMMARY, METRICS, RENDERS, LOCK = "config.yaml", "summary.json", "metrics.jsonl", "renders", ".lock"

ERRORS = ("rgb_l1", "depth_l1_m")  # what is measured of every path
_MEND = "put a good one in its place, or name another --out"


def check_folder(run: Path, config: PretrainConfig) -> bool:
    """Whether ``run`` holds a run to continue; :class:`UserError` where it holds something else or cannot be written.

    Nothing is left behind: a folder that is not there yet is made on trial and removed.
    """
    try:
        continues = _holds_run(run, config)
        if os.environ.get("RANK", "0") == "0":  # one of several processes tries; its fault ends the others
            with _folder(run):
                pass
    except OSError as error:
        raise _unusable(run, error) from None
    return continues


def _unusable(run: Path, error: OSError) -> UserError:
    return UserError(f"--out {run} cannot be written ({error.strerror or error}); name another folder")


@contextmanager
def _folder(run: Path) -> Iterator[None]:
    """Make the folder; at the end, what was made goes again where nothing was put into it."""
    made = [path for path in (run, *run.parents) if not path.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        if not os.access(run, os.W_OK | os.X_OK):
            raise PermissionError(0, "no permission")
        yield
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _holds_run(run: Path, config: PretrainConfig) -> bool:
    if run.exists() and not run.is_dir():
        raise UserError(f"--out {run} is a file; name a folder")
    if not (run / CONFIG).is_file():
        strange = [path.name for path in run.iterdir() if path.name != LOCK] if run.is_dir() else []
        if strange:
            raise UserError(
                f"--out {run} holds other files ({sorted(strange)[0]} ...) and no run; name a new or empty folder"
            )
        return False
    changed = differences(load_config(run / CONFIG), config)
    if changed:
        raise UserError(
            f"{run} is a run of another configuration ({'; '.join(changed)}); "
            "give it the same one to continue it, or another --out"
        )
    return True


def existing_run(run: Path) -> PretrainConfig:
    """The configuration of a run that must be there."""
    if not run.is_dir():
        raise UserError(f"no such run: {run} (mim4d pretrain --out makes one)")
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is no run: it has no {CONFIG}")
    return load_config(run / CONFIG)


def read_summary(run: Path) -> dict[str, Any]:
    """``summary.json``, or an empty dict where the run has not got that far.

    Errors that were not-a-number (null in the file) are so again. Raises :class:`UserError` naming the file where it
    cannot be read or is not what a run writes.
    """
    path = run / SUMMARY
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); {_MEND}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it must hold keys and values); {_MEND}")
    for key, kind in (("finished", bool), ("steps", int), ("val", dict)):
        if not isinstance(content.get(key), kind):
            raise UserError(f"{path} is damaged ({key} is missing or wrong); {_MEND}")
    for group in ("val", "val_reconstructed"):
        moments = content.get(group, {})
        if not isinstance(moments, dict):
            raise UserError(f"{path} is damaged ({group} must hold keys and values); {_MEND}")
        for when, numbers in moments.items():
            if not isinstance(numbers, dict) or not all(_is_error(numbers.get(name, "")) for name in ERRORS):
                raise UserError(f"{path} is damaged ({group} {when} needs the numbers {', '.join(ERRORS)}); {_MEND}")
            numbers.update({name: float("nan") for name in ERRORS if numbers[name] is None})
    return content


def _is_error(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the folder for this process, so that two trainings cannot write into one run. Ends with the process.

    A new folder into which nothing was written meanwhile is removed again. Raises :class:`UserError` where another
    process holds it, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(_folder(run))
            file = stack.enter_context((run / LOCK).open("w", encoding="utf-8"))
        except OSError as error:
            raise _unusable(run, error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is training in {run}") from None
        stack.callback(_unlock, run)
        yield


def _unlock(run: Path) -> None:
    """Remove the lock from a folder that holds nothing else; elsewhere it stays, since others may wait for it."""
    with suppress(OSError):
        if [path.name for path in run.iterdir()] == [LOCK]:
            (run / LOCK).unlink()
