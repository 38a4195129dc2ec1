"""The process of ``--base``: ``python benchmarks/worker.py FOLDER`` measures the mim4d that lies in FOLDER.

Requests and answers are lines of JSON on standard input and output; whatever else is printed goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main(folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a compiler that talks must not talk into the answers
    sys.path[0] = str(folder)  # instead of benchmarks/
    import mim4d

    found = Path(mim4d.__file__).resolve().parent
    if found != (folder / "mim4d").resolve():
        raise SystemExit(f"{folder} holds no mim4d: {found} was imported")
    sys.path[0] = str(HERE.parent)  # the benchmarks are those of the tree that asks
    from benchmarks.session import Session

    session = Session()
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        try:
            answer = {"answer": getattr(session, request.pop("do"))(**request)}
        except Exception as error:  # to be told on the other side, where the table is
            answer = {"fault": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
