"""Makes a synthetic driving data set in the nuScenes format: whole or not at all, and from where it was stopped."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mim4d.errors import UserError
from mim4d.world.caster import caster_kind
from mim4d.world.crew import Plan, work_alone, work_together
from mim4d.world.files import Folder, exclusive, told
from mim4d.world.knobs import STANDARD, Knobs
from mim4d.world.pieces import MAP, ROWS, Piece, Workshop, build, rows_file, scene_pieces, seconds_per_file
from mim4d.world.recipe import Recipe, Slot
from mim4d.world.scene import Scene
from mim4d.world.sensors import Rig
from mim4d.world.tables import TABLES, common_rows, join, map_rows, text
from mim4d.world.writer import scene_files

MANIFEST = "world.json"
WORTH = 3.0  # seconds of work for which another process is started
MEMORY = 1.9e9  # bytes that all processes together may take, where it is not said how many there shall be
WORKER_BYTES, PIXEL_BYTES = 130e6, 160  # that a worker takes, and takes more for every pixel of an image (measured)

Progress = Callable[[int, int], None]


def _existing(out: Path, wanted: dict[str, object]) -> bool:
    """Whether ``out`` already holds the wanted world. UserError where it holds anything else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out} is a file; give a folder for the world")
    if not any(out.iterdir()):
        for what, true in (("the root of a file system", out.is_mount()), ("the current folder", _is_here(out))):
            if true:
                raise UserError(f"{out} is {what}, which no finished world can replace; give a folder in it")
        return False
    try:
        found = json.loads((out / MANIFEST).read_text())
    except (OSError, ValueError):
        raise UserError(f"{out} is not empty and holds no synthetic world; choose another folder") from None
    if found == wanted:
        return True
    raise UserError(f"{out} already holds a world made with {told(found, wanted)}; choose another folder or delete it")


def _is_here(out: Path) -> bool:
    """Whether ``out`` is the current folder: replaced, it would leave this process and its shell in none."""
    try:
        return os.path.samefile(out, ".")
    except FileNotFoundError:  # we are in such a one already
        return False


def open_scene(root: str | os.PathLike[str], name: str) -> tuple[Scene, Rig, int]:
    """Builds again, as a function of time, a scene of a world that :func:`generate` wrote.

    Returns the scene, its sensors and the timestamp (microseconds) of its first key frame: with
    :func:`mim4d.world.sensors.look` and ``camera_depth`` the ground truth of every image is at hand.

    Raises UserError when ``root`` holds no synthetic world or no scene of that name.
    """
    try:
        recipe = Recipe.read(json.loads((Path(root) / MANIFEST).read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{root} holds no synthetic world ({MANIFEST} is missing or damaged)") from None
    except UserError as e:
        raise UserError(f"{root}: {e}") from None
    slots = recipe.slots()
    for slot in slots:
        if slot.name == name:
            return *build(recipe, slot), slot.start_us
    raise UserError(f"{root} holds no scene {name!r}; it holds {', '.join(slot.name for slot in slots)}")


def generate(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    scenes: int = 2,
    seconds: float = 4.0,
    image_size: tuple[int, int] = (128, 224),
    version: str = "",
    knobs: Knobs = STANDARD,
    extras: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a synthetic driving data set that nuscenes-devkit loads.

    out: folder to make. It appears whole, at the end. When it already holds the world of the same arguments nothing is
    done; a folder that holds anything else is refused. What a stopped run had made lies in ``.OUT.partial`` beside it,
    and a call with the same arguments goes on from there.
    seed: of everything random; the same arguments give the same bytes on any machine (docs/world.md).
    scenes: 2 to 850. The last fifth, at least one, is named from the devkit's validation split, the rest from its
    training split.
    seconds: length of a scene, 0.5 to 20: key frames at 2 Hz from 0 to ``seconds``, images at 12 Hz per camera, sweeps
    at 20 Hz.
    image_size: (height, width) of the images in pixels.
    version: "v1.0-mini", which has names for ten scenes, or "v1.0-trainval"; empty takes the first that holds them.
    knobs: weather, light, texture, sensor noise and traffic.
    extras: also write what nuScenes lacks (:mod:`mim4d.world.truth`); nothing else changes by it.
    workers: processes to share the work among, at most; None takes one per core, as far as 2 GB of memory hold them.
    The bytes do not depend on it.
    progress: called as progress(done, total) with counts of files, once at the start and after each file.

    Raises UserError for arguments out of range, a folder in use, a folder that cannot be written, too little memory, a
    ray caster that is missing or of another build. Where something is finished by then the message says where it lies.
    """
    recipe = Recipe(seed, scenes, seconds, image_size, version, knobs, extras)
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise UserError(f"workers: got {workers!r}, want a whole number from 1 on")
    wanted, out = recipe.record(), Path(os.path.realpath(out))
    partial = out.parent / f".{out.name}.partial"
    try:
        if _existing(out, wanted):
            _clear(partial)
            return
        slots = recipe.slots()
        begun = {**wanted, "caster": caster_kind()}  # two kinds of caster in one world would be the bytes of neither
        out.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(partial) as lock:
            folder = Folder(partial)
            if _existing(out, wanted):  # another process has finished it meanwhile
                folder.tidy()
                return
            folder.claim(begun)
            with _kept(folder, out):
                folder.begin(begun)
                _make(
                    recipe,
                    slots,
                    folder,
                    lock,
                    workers or default_workers(recipe),
                    progress or (lambda done, total: None),
                )
                folder.finish(out)
    except (OSError, MemoryError) as e:
        if why := _reason(out, e):
            raise UserError(why) from e
        raise


def _reason(out: Path, e: BaseException) -> str:
    """What went wrong, in a line for the user; empty for what is no matter of the folder or the machine."""
    if isinstance(e, UserError):
        return str(e)
    if isinstance(e, MemoryError):
        return f"not enough memory to make the world ({e or 'none left'}); take fewer workers or smaller images"
    if not isinstance(e, OSError) or isinstance(e, BrokenPipeError):  # a pipe: whoever read our progress is gone
        return ""
    # A file where a folder should be is seldom OUT itself.
    which = f" ({e.filename})" if isinstance(e, (FileExistsError, NotADirectoryError)) else ""
    return f"cannot write the world to {out}: {e.strerror or e}{which}"


def _clear(partial: Path) -> None:
    """Removes what a run left that was killed in its last moment."""
    if partial.is_dir():
        with contextlib.suppress(UserError), exclusive(partial):
            if Folder(partial).emptied:
                Folder(partial).remove()


@contextlib.contextmanager
def _kept(folder: Folder, out: Path) -> Iterator[None]:
    """Keeps what is done when the making stops, and says so."""
    try:
        yield
    except BaseException as e:
        folder.tidy()
        why = _reason(out, e)
        if not why or not folder.started:
            raise
        raise UserError(f"{why}; what is done lies in {folder.path}, and the same command goes on from there") from e


def cores() -> int:
    """Processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def default_workers(recipe: Recipe) -> int:
    """One per core, but no more than MEMORY holds."""
    height, width = recipe.image_size
    return max(1, min(cores(), int(MEMORY / (WORKER_BYTES + PIXEL_BYTES * height * width))))


def _make(recipe: Recipe, slots: list[Slot], folder: Folder, lock: int, workers: int, progress: Progress) -> None:
    """Makes what is not there yet: the pieces, then the tables, and the manifest as the last file."""
    total, done = len(slots) * scene_files(recipe.seconds), 0
    locations = dict.fromkeys(slot.location for slot in slots)
    pieces = [piece for slot in slots for piece in (*scene_pieces(recipe, slot), Piece(slot.name, ROWS))]
    pieces += [Piece(location, MAP) for location in locations]
    left = [piece for piece in pieces if folder.note(piece.name) is None]
    done = total - sum(piece.files for piece in left)
    progress(done, total)

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    plan = Plan(left)
    work = sum(piece.files * seconds_per_file(recipe, piece.kind) for piece in left)
    workers = min(workers, math.ceil(work / WORTH), len(left))
    if workers > 1:
        work_together(plan, recipe, slots, folder, lock, workers, step)
    else:
        work_alone(plan, Workshop(recipe, slots, folder), step)
    shared = {**common_rows(recipe.token_root), **map_rows(recipe.token_root, slots)}
    for table in TABLES:
        if table in shared:
            parts: Iterator[str] = iter([text(shared[table])])
        else:
            parts = (folder.kept(rows_file(slot.name, table)).read_text() for slot in slots)
        folder.put_long(f"{recipe.version}/{table}.json", join(parts))
    splits = {"world_train": [s.name for s in slots if not s.validation]}
    splits["world_val"] = [s.name for s in slots if s.validation]
    folder.put_long(f"{recipe.version}/splits.json", [json.dumps(splits, indent=1).encode() + b"\n"])
    folder.put_long(MANIFEST, [json.dumps(recipe.record(), indent=1).encode() + b"\n"])
