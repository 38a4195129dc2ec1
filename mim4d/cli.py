"""The ``mim4d`` command: finds the subcommand, and turns every fault of the user's into one line.

Light on purpose: torch, the data libraries and the model are imported by the subcommand that needs them, so that help
and typing errors answer at once. Exit codes: 0 done, 1 the training failed, 2 wrong input, 128 + n stopped by signal n.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from mim4d import __version__, env
from mim4d.engine.signals import Interrupted, TrainingFailed
from mim4d.errors import UserError, did_you_mean

COMMANDS = {
    "pretrain": "learn a 3D volume from multi-view video; continues a run that is there",
    "render": "draw what a run has learned and refresh its report",
    "world": "make a synthetic driving data set in nuScenes format",
    "bench": "time the ops against their rivals, after checking them (in a checkout)",
    "info": "versions, processor, GPU, backends of every op and why",
}

USAGE = "\n".join(
    [
        f"mim4d {__version__}: masked multi-view video pre-training",
        "",
        "usage: mim4d COMMAND [OPTIONS]     (mim4d COMMAND --help lists the options)",
        "",
        *(f"  {name:10s} {text}" for name, text in COMMANDS.items()),
        "",
        "first steps:",
        "  mim4d world data/world",
        "  mim4d pretrain --preset demo --data.root data/world --data.version v1.0-mini --out runs/demo",
    ]
)

# package -> the extra of this project that brings it
EXTRAS = {
    **dict.fromkeys(("timm", "nuscenes", "pyquaternion", "accelerate", "safetensors", "tyro", "rich", "yaml"), "train"),
    **dict.fromkeys(("matplotlib", "tensorboard", "PIL"), "train"),
    "embreex": "world",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. ``arguments`` default to the process's own."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(arguments)
    except UserError as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        install = f"pip install 'mim4d[{EXTRAS[package]}]'"
        return _fail(f"the package {package!r} is missing; it comes with an extra: {install}", 2)
    except TrainingFailed as error:
        return _fail(str(error), 1)
    except Interrupted as stop:
        if os.environ.get("RANK", "0") == "0":  # the first of several processes speaks for all
            print(f"mim4d: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("mim4d: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk, a folder that is not ours to write
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return _fail(f"{error.filename or 'writing failed'}: {error.strerror}", 2)
    except ValueError as error:  # a misspelt MIM4D_BACKEND is found while the ops are imported
        if not str(error).startswith(env.BACKEND.name):
            raise
        return _fail(str(error), 2)


def _fail(message: str, code: int) -> int:
    print(f"mim4d: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)} (there are: {', '.join(COMMANDS)})")
    from mim4d.engine import commands

    return commands.run(name, rest)


if __name__ == "__main__":
    sys.exit(main())
