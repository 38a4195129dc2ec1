"""The run folder: who may write into it, and whether what lies there can be continued.

``RUN/config.yaml``, ``summary.json``, ``metrics.jsonl``, ``report.html``, ``checkpoints/step-000024/``,
``renders/*.npz``, ``tensorboard/``. A command on a run of the same configuration continues it; of another configuration
is refused.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mim4d.engine.config import PretrainConfig, differences, load_config
from mim4d.errors import UserError

CONFIG, SUMMARY, METRICS, RENDERS, LOCK = "config.yaml", "summary.json", "metrics.jsonl", "renders", ".lock"


def check_folder(run: Path, config: PretrainConfig) -> bool:
    """Whether ``run`` holds a run to continue; :class:`UserError` where it holds something else."""
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
    """``summary.json``, or an empty dict where the run has not got that far."""
    path = run / SUMMARY
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); remove it to evaluate anew") from None


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the folder for this process, so that two trainings cannot write into one run. Ends with the process."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is training in {run}") from None
        yield
