"""Shares the pieces of a world among processes.

Workers are plain Python processes on two pipes, not ``multiprocessing``: a script that calls ``generate`` needs no
``__main__`` guard, and a worker whose parent is killed sees its pipe close and ends at once. They inherit the lock of
the unfinished folder, so nobody else takes it up while one of them still writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from mim4d.errors import UserError
from mim4d.world.caster import make_caster
from mim4d.world.files import Folder
from mim4d.world.pieces import MAP, ROWS, Piece, Workshop
from mim4d.world.recipe import Recipe, Slot

# The path begins with the current folder, whose json.py is not ours.
BOOT = (
    "import sys; sys.path[:] = filter(None, sys.path); import json; sys.path[:] = json.loads(sys.stdin.readline()); "
    "from mim4d.world.crew import serve; serve()"
)
# One thread per worker: with a worker on every core more of them would wait for each other.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Plan:
    """What is still to be made, and who should make what."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._waiting: dict[str, deque[Piece]] = {}  # by group
        self._files_left: dict[str, int] = {}  # pieces of a scene's sensors that are not finished
        self._rows: dict[str, Piece] = {}
        self._started: set[str] = set()
        for piece in pieces:
            waiting = self._waiting.setdefault(piece.group, deque())
            if piece.kind == ROWS:
                self._rows[piece.group] = piece
                continue
            waiting.append(piece)
            if piece.kind != MAP:
                self._files_left[piece.group] = self._files_left.get(piece.group, 0) + 1
        for scene in set(self._rows) - set(self._files_left):
            self._waiting[scene].append(self._rows[scene])

    def next(self, group: str | None) -> Piece | None:
        """A piece for a worker that knows ``group``: of that one, of one that nobody works on, of the longest one.

        None when all that is left waits for others to finish.
        """
        left = [g for g, waiting in self._waiting.items() if waiting]
        if not left:
            return None
        fresh = [g for g in left if g not in self._started]
        if group not in left or group is None:
            group = fresh[0] if fresh else max(left, key=lambda g: len(self._waiting[g]))
        self._started.add(group)
        return self._waiting[group].popleft()

    def finished(self, piece: Piece) -> None:
        """A scene's rows can be made when all its files are there."""
        if piece.kind in (ROWS, MAP):
            return
        self._files_left[piece.group] -= 1
        if self._files_left[piece.group] == 0 and piece.group in self._rows:
            self._waiting[piece.group].append(self._rows[piece.group])


def work_alone(plan: Plan, shop: Workshop, done: Callable[[], None]) -> None:
    """Makes all pieces in this process."""
    group: str | None = None
    while (piece := plan.next(group)) is not None:
        shop.make(piece, done)
        plan.finished(piece)
        group = group if piece.kind == MAP else piece.group


class _Worker:
    """A worker process as its parent sees it."""

    def __init__(self, order: dict[str, Any], lock: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(lock,),
            env={**os.environ, **ONE_THREAD},
        )
        self.group: str | None = None
        self.piece: Piece | None = None
        self._rest = b""
        self._send([p for p in sys.path if isinstance(p, str)])
        self._send(order)

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def _send(self, message: object) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def give(self, piece: Piece) -> None:
        self.piece = piece
        self.group = self.group if piece.kind == MAP else piece.group
        self._send(piece.record())

    def messages(self) -> list[dict[str, Any]]:
        """What it has said since; waits for it to say something."""
        data = os.read(self.output.fileno(), 1 << 16)
        if not data:
            raise self._lost()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def _lost(self) -> UserError:
        code = self.process.wait()
        why = f"by signal {-code} (9: the system ran out of memory, or somebody killed it)" if code < 0 else ""
        return UserError(f"a worker process was stopped {why or f'with status {code}'}")

    def stop(self) -> None:
        self.process.kill()  # it loses no more than the piece that it is at
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def work_together(
    plan: Plan, recipe: Recipe, slots: list[Slot], folder: Folder, lock: int, count: int, done: Callable[[], None]
) -> None:
    """Makes all pieces in ``count`` worker processes. ``lock``: handle of the folder's lock, which they hold too."""
    order = {"recipe": recipe.record(), "slots": [asdict(s) for s in slots], "folder": str(folder.path)}
    workers: list[_Worker] = []
    try:
        with selectors.DefaultSelector() as ready:
            for _ in range(count):
                worker = _Worker(order, lock)
                workers.append(worker)
                ready.register(worker.output, selectors.EVENT_READ, worker)
            while True:
                for worker in workers:
                    if worker.piece is None and (piece := plan.next(worker.group)) is not None:
                        worker.give(piece)
                if all(worker.piece is None for worker in workers):
                    return
                for key, _ in ready.select():
                    worker = key.data
                    for message in worker.messages():
                        if message == "file":
                            done()
                        elif message == "piece":
                            plan.finished(worker.piece)
                            worker.piece = None
                        else:
                            raise _error(message)
    finally:
        for worker in workers:
            worker.stop()


def _error(message: dict[str, Any]) -> Exception:
    """The exception that a worker met."""
    if "user" in message:
        return UserError(message["user"])
    if "errno" in message:
        return OSError(message["errno"], message["strerror"], message["filename"])
    if "memory" in message:
        return MemoryError(message["memory"])
    return RuntimeError(f"a worker process failed:\n{message['traceback']}")


def serve() -> None:
    """A worker's life: pieces come in on standard input, what becomes of them goes out on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    voice = os.dup(1)
    os.dup2(2, 1)  # whatever else prints must not talk into this

    def say(message: object) -> None:
        os.write(voice, json.dumps(message).encode() + b"\n")

    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    order = orders.get()
    slots = [Slot(**{**s, "tile": tuple(s["tile"])}) for s in order["slots"]]
    shop = Workshop(Recipe.read(order["recipe"]), slots, Folder(Path(order["folder"])))
    settle()
    while True:
        piece = Piece(**orders.get())
        try:
            shop.make(piece, lambda: say("file"))
            say("piece")
        except UserError as e:
            say({"user": str(e)})
        except OSError as e:
            say({"errno": e.errno, "strerror": e.strerror or str(e), "filename": e.filename})
        except MemoryError as e:
            say({"memory": str(e)})
        except Exception:
            say({"traceback": traceback.format_exc()})


def settle() -> None:
    """Casts a first ray while one core is in sight: embree, where that casts, starts a thread for each that it sees."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        make_caster(np.eye(3, dtype=np.float32)[None]).blocked(np.zeros((1, 3), np.float32), np.ones(3, np.float32))
    except UserError:
        pass  # the first piece says what is missing
    finally:
        os.sched_setaffinity(0, cores)


def _listen(orders: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Passes on what the parent says; when the parent is gone, so is this process."""
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(1)
