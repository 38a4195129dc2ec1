"""Where a world grows: beside its folder, piece by piece, so that a stopped run goes on and a half-made world is none.

``.OUT.partial`` holds ``recipe.json`` (what is being made), ``world/`` (what becomes OUT by one rename at the end),
``notes/`` (a record of every finished piece) and ``temporary/`` (files being written). A file of ``world/`` or
``notes/`` appears whole, by a rename. A note is written after its piece's files are on the disk, so that what it says
holds even after a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mim4d.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # of file systems that know of none
GRACE = 2.0  # seconds that a killed run's worker processes may take to let go of the folder
WORLD, NOTES, TEMPORARY, RECIPE = "world", "notes", "temporary", "recipe.json"

Note = dict[str, Any]


class Folder:
    """The folder ``.OUT.partial`` of an unfinished world."""

    def __init__(self, path: Path) -> None:
        self.path, self.world = path, path / WORLD

    def put(self, place: str, data: bytes) -> int:
        """Writes a file of the world, whole or not at all; returns its size. ``place``: relative to the world."""
        return self._put(self.world / place, [data])

    def put_long(self, place: str, parts: Iterable[bytes]) -> int:
        """:meth:`put` of what need not fit into memory at once; the file is on the disk when this returns."""
        return self._put(self.world / place, parts, lasting=True)

    def scratch(self) -> Path:
        """A place for a file that something else writes; :meth:`adopt` takes it in."""
        return self.path / TEMPORARY / f"{os.getpid()}.scratch"

    def adopt(self, scratch: Path, place: str) -> int:
        """Makes a finished scratch file a file of the world; returns its size."""
        path = self.world / place
        path.parent.mkdir(parents=True, exist_ok=True)
        size = scratch.stat().st_size
        os.replace(scratch, path)
        return size

    def finish_piece(self, name: str, note: Note) -> None:
        """Notes a piece: ``note["files"]`` maps its files to their sizes, ``note["kept"]`` those that :meth:`keep` has
        written; the rest is what its maker has to tell.
        """
        for place in note["files"]:
            _sync(self.world / place)
        for folder in {(self.world / place).parent for place in note["files"]}:
            _sync(folder)
        self._put(self.path / NOTES / f"{name}.json", [json.dumps(note).encode()], lasting=True)

    def note(self, name: str) -> Note | None:
        """What :meth:`finish_piece` noted, if it did and all the piece's files are there in their sizes."""
        try:
            note: Note = json.loads((self.path / NOTES / f"{name}.json").read_bytes())
            there = all(os.stat(self.world / place).st_size == size for place, size in note["files"].items())
            there &= all(os.stat(self.kept(name)).st_size == size for name, size in note.get("kept", {}).items())
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # not a note: the piece is made again
        return note if there else None

    def keep(self, name: str, data: bytes) -> int:
        """Writes a file that is no part of the world, for later; see :meth:`kept`. Returns its size."""
        return self._put(self.path / NOTES / name, [data], lasting=True)

    def kept(self, name: str) -> Path:
        return self.path / NOTES / name

    def _put(self, path: Path, parts: Iterable[bytes], lasting: bool = False) -> int:
        temporary, size = self.path / TEMPORARY / f"{os.getpid()}", 0
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for part in parts:
                size += len(part)
                view = memoryview(part)
                while view:
                    view = view[os.write(handle, view) :]
            if lasting:
                os.fsync(handle)
        except OSError as e:  # a full disk is named by the file that found no room
            raise OSError(e.errno, e.strerror, str(path)) from e
        finally:
            os.close(handle)
        os.replace(temporary, path)
        return size

    # ---- from the first moment to the last

    def claim(self, recipe: Mapping[str, Any]) -> None:
        """UserError when what lies here is another world's, or nothing of ours."""
        found = sorted(p.name for p in self.path.iterdir() if p.name != TEMPORARY)
        if RECIPE not in found:
            if found:
                raise UserError(f"{self.path} holds {found[0]!r} and no unfinished world; move it out of the way")
            return
        try:
            other = json.loads((self.path / RECIPE).read_bytes())
        except ValueError:
            other = None
        if other != recipe:
            raise UserError(
                f"{self.path} holds an unfinished world made with {told(other, recipe)}; finish that one as it was "
                "begun, or delete the folder"
            )

    def begin(self, recipe: Mapping[str, Any]) -> None:
        """Starts a world, or takes up again what :meth:`claim` has found to be it."""
        shutil.rmtree(self.path / TEMPORARY, ignore_errors=True)
        (self.path / TEMPORARY).mkdir()
        if not (self.path / RECIPE).exists():
            self._put(self.path / RECIPE, [json.dumps(recipe).encode()], lasting=True)
        for name in (WORLD, NOTES):
            (self.path / name).mkdir(exist_ok=True)

    def finish(self, out: Path) -> None:
        """Makes the world ``out``, in one step, and removes the rest."""
        for folder in (self.world, *(p for p in self.world.rglob("*") if p.is_dir())):
            _sync(folder)
        os.rename(self.world, out)  # replaces an empty folder, fails on one that has filled meanwhile
        _sync(out.parent)
        self.remove()

    @property
    def emptied(self) -> bool:
        """Whether the world has moved out and only the clearing up was not finished."""
        return (self.path / RECIPE).is_file() and not self.world.exists()

    def remove(self) -> None:
        """Removes the folder; what names it as ours goes last, so that nobody wonders about half of it."""
        for name in (WORLD, NOTES, TEMPORARY):
            shutil.rmtree(self.path / name, ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def tidy(self) -> None:
        """After a failure: removes half-written files, and all of it where no piece is done."""
        shutil.rmtree(self.path / TEMPORARY, ignore_errors=True)
        if not self.started:
            self.remove()

    @property
    def started(self) -> bool:
        """Whether there is a finished piece."""
        notes = self.path / NOTES
        return notes.is_dir() and any(p.is_file() for p in notes.rglob("*"))


def told(found: object, wanted: Mapping[str, Any]) -> str:
    """Arguments of a world in a line, and what beside them sets it apart from the one that is wanted."""
    if not isinstance(found, dict):
        return "unknown arguments"
    flat = {**found, **found["knobs"]} if isinstance(found.get("knobs"), dict) else found
    line = ", ".join(f"{name}={value}" for name, value in flat.items() if name not in ("knobs", "format", "caster"))
    if found.get("format") != wanted["format"]:
        return f"{line} by another version of mim4d"
    if found.get("caster") != wanted.get("caster"):
        return (
            f"{line} by the {found.get('caster')} ray caster (here is {wanted.get('caster')}, which makes other bytes)"
        )
    return line


def _sync(path: Path) -> None:
    """Waits until a file's contents, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot do it for folders
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Makes the folder and holds it against other processes; gives its handle, which holds it for whoever inherits it.

    UserError when another process has it.
    """
    deadline = time.monotonic() + GRACE
    while True:
        path.mkdir(exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    break  # and not a folder that the process before us has just removed
        except OSError as e:
            if e.errno in NO_LOCKS:
                break
            if e.errno != errno.EWOULDBLOCK:
                os.close(handle)
                raise
            if time.monotonic() > deadline:
                os.close(handle)
                raise UserError(
                    f"another process is making this world (it holds {path}); wait for it, or stop it"
                ) from None
        os.close(handle)
        time.sleep(0.05)
    try:
        yield handle
    finally:
        os.close(handle)
