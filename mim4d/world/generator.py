"""Makes a synthetic driving data set in the nuScenes format, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mim4d.errors import UserError
from mim4d.world.knobs import STANDARD, Knobs
from mim4d.world.maps import LOCATIONS, Expansion, write_mask
from mim4d.world.roads import TILE_SIZE
from mim4d.world.scene import Scene
from mim4d.world.sensors import Rig, make_rig
from mim4d.world.shading import Shader
from mim4d.world.tables import Tables, scene_files
from mim4d.world.textures import Atlas

# The scenes of nuscenes-devkit's splits of the same names: a version folder v1.0-mini may hold no others.
MINI_TRAIN = (
    "scene-0061",
    "scene-0553",
    "scene-0655",
    "scene-0757",
    "scene-0796",
    "scene-1077",
    "scene-1094",
    "scene-1100",
)
MINI_VAL = ("scene-0103", "scene-0916")
MANIFEST = "world.json"
FORMAT = 2  # raised whenever the same arguments give another world
EPOCH_US = 1_767_268_800_000_000  # 2026-01-01 12:00 UTC
DAY_US = 86_400_000_000

Progress = Callable[[int, int], None]


def scene_names(scenes: int) -> tuple[list[str], list[str]]:
    """Names of the training and of the validation scenes: the last fifth, at least one, is for validation.

    Raises UserError where the devkit's splits have too few names.
    """
    validation = max(1, scenes // 5)
    train = scenes - validation
    if train < 1 or train > len(MINI_TRAIN) or validation > len(MINI_VAL):
        raise UserError(
            f"scenes: got {scenes}, want 2 to {len(MINI_TRAIN) + len(MINI_VAL)} "
            " (nuscenes-devkit's splits mini_train and mini_val name no more)"
        )
    return list(MINI_TRAIN[:train]), list(MINI_VAL[:validation])


def _check(seed: int, scenes: int, seconds: float, image_size: tuple[int, int], knobs: Knobs) -> dict[str, object]:
    """The arguments as the manifest records them; UserError for those that make no world."""
    whole = lambda x: isinstance(x, (int, np.integer)) and not isinstance(x, bool)
    if not whole(seed) or seed < 0:
        raise UserError(f"seed: got {seed!r}, want a whole number from 0 on")
    if not whole(scenes):
        raise UserError(f"scenes: got {scenes!r}, want a whole number")
    scene_names(scenes)
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, (int, float))
        or not math.isfinite(seconds)
        or not 0.5 <= seconds <= 20
    ):
        raise UserError(f"seconds: got {seconds!r}, want 0.5 to 20 (nuScenes scenes last 20 s)")
    try:
        height, width = image_size
    except (TypeError, ValueError):
        raise UserError(f"image_size: got {image_size!r}, want (height, width)") from None
    if not (whole(height) and whole(width) and 32 <= height <= 4096 and 32 <= width <= 4096):
        raise UserError(f"image_size: got {image_size!r}, want height and width in whole pixels from 32 to 4096")
    if not isinstance(knobs, Knobs):
        raise UserError(f"knobs: got {knobs!r}, want a mim4d.world.Knobs")
    return {
        "format": FORMAT,
        "seed": int(seed),
        "scenes": int(scenes),
        "seconds": float(seconds),
        "image_size": [int(height), int(width)],
        "knobs": knobs.record(),
    }


def _existing(out: Path, wanted: dict[str, object]) -> bool:
    """Whether ``out`` already holds the wanted world. UserError where it holds anything else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out} is a file; give a folder for the world")
    if not any(out.iterdir()):
        return False
    try:
        found = json.loads((out / MANIFEST).read_text())
    except (OSError, ValueError):
        raise UserError(f"{out} is not empty and holds no synthetic world; choose another folder") from None
    if found == wanted:
        return True
    shown = ", ".join(f"{k}={v}" for k, v in found.items()) if isinstance(found, dict) else "unknown arguments"
    raise UserError(f"{out} already holds a world made with {shown}; choose another folder or delete it")


@contextlib.contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` in one step at the end.

    An exception removes it. A killed process cannot, so the next run does: the folder's owner holds a lock on it while
    it lives, and a folder that nobody holds is litter.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.partial-"
    for old in out.parent.glob(prefix + "*"):
        with contextlib.suppress(OSError):
            handle = os.open(old, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(handle)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    handle = os.open(work, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield work
        os.chmod(work, 0o755)
        os.rename(work, out)  # replaces an empty folder, fails on one that has filled meanwhile
    finally:
        os.close(handle)
        shutil.rmtree(work, ignore_errors=True)


def _layout(scenes: int) -> list[tuple[str, str, int, bool]]:
    """Per scene: name, location, number of its tile there, whether it is for validation. Towns differ by split."""
    train, validation = scene_names(scenes)
    out = [(name, LOCATIONS[i % 3], i // 3, False) for i, name in enumerate(train)]
    return out + [(name, LOCATIONS[3], i, True) for i, name in enumerate(validation)]


def _build(
    seed: int, seconds: float, image_size: tuple[int, int], knobs: Knobs, index: int, tile: int, validation: bool
) -> tuple[Scene, Rig]:
    place = (tile * TILE_SIZE, 0.0)
    scene = Scene(seed=seed, index=index, validation=validation, seconds=seconds, tile=place, knobs=knobs)
    return scene, make_rig(np.random.default_rng([seed, index, 21]), image_size)


def open_scene(root: str | os.PathLike[str], name: str) -> tuple[Scene, Rig, int]:
    """Builds again, as a function of time, a scene of a world that :func:`generate` wrote.

    Returns the scene, its sensors and the timestamp (microseconds) of its first key frame: with
    :func:`mim4d.world.sensors.look` and ``camera_depth`` the ground truth of every image is at hand.

    Raises UserError when ``root`` holds no synthetic world or no scene of that name.
    """
    try:
        made = json.loads((Path(root) / MANIFEST).read_text())
        seed, seconds, size = made["seed"], made["seconds"], tuple(made["image_size"])
        layout, knobs = _layout(made["scenes"]), Knobs.read(made["knobs"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{root} holds no synthetic world ({MANIFEST} is missing or damaged)") from None
    for index, (known, _, tile, validation) in enumerate(layout):
        if known == name:
            scene, rig = _build(seed, seconds, size, knobs, index, tile, validation)
            return scene, rig, EPOCH_US + index * DAY_US
    raise UserError(f"{root} holds no scene {name!r}; it holds {', '.join(k for k, *_ in layout)}")


def generate(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    scenes: int = 2,
    seconds: float = 4.0,
    image_size: tuple[int, int] = (128, 224),
    knobs: Knobs = STANDARD,
    progress: Progress | None = None,
) -> None:
    """Writes a synthetic driving data set that nuscenes-devkit loads as version v1.0-mini.

    out: folder to make. It appears whole, at the end. When it already holds the world of the same arguments nothing is
    done; a folder that holds anything else is refused.
    seed: of everything random; the same arguments give the same bytes on the same machine.
    scenes: 2 to 10. The last fifth, at least one, is named from the devkit's split mini_val, the rest from mini_train.
    seconds: length of a scene, 0.5 to 20: key frames at 2 Hz from 0 to ``seconds``, images at 12 Hz per camera, sweeps
    at 20 Hz.
    image_size: (height, width) of the images in pixels.
    knobs: weather, light, texture, sensor noise and traffic.
    progress: called as progress(done, total) with counts of files, once at the start and after each file.

    Raises UserError for arguments out of range, a folder in use, a folder that cannot be written, or missing embreex.
    """
    wanted = _check(seed, scenes, seconds, image_size, knobs)
    out = Path(out).absolute()
    try:
        if _existing(out, wanted):
            return
        with _workspace(out) as work:
            _write(work, seed, scenes, float(seconds), image_size, knobs, progress or (lambda done, total: None))
            (work / MANIFEST).write_text(json.dumps(wanted, indent=1) + "\n")
    except OSError as e:
        raise UserError(f"cannot write the world to {out}: {e.strerror or e}") from e


def _write(
    root: Path,
    seed: int,
    scenes: int,
    seconds: float,
    image_size: tuple[int, int],
    knobs: Knobs,
    progress: Progress,
) -> None:
    total, done = scenes * scene_files(seconds), 0
    progress(done, total)

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    atlas = Atlas(seed)
    tables = Tables(root, f"mim4d-world/{seed}/{scenes}/{seconds}/{image_size[0]}x{image_size[1]}")
    made: dict[str, list[tuple[str, Scene]]] = {}
    for index, (name, location, tile, validation) in enumerate(_layout(scenes)):
        scene, rig = _build(seed, seconds, image_size, knobs, index, tile, validation)
        start = EPOCH_US + index * DAY_US
        rng = np.random.default_rng([seed, index, 22])
        log = tables.add_scene(
            scene, rig, Shader(scene, atlas), name=name, location=location, start_us=start, rng=rng, done=step
        )
        made.setdefault(location, []).append((log, scene))
    (root / "maps" / "expansion").mkdir(parents=True)
    for location, entries in made.items():
        expansion = Expansion(tables.token(location))
        for _, scene in entries:
            expansion.add(scene.roads)
        (root / "maps" / "expansion" / f"{location}.json").write_text(json.dumps(expansion.finish(len(entries))))
        filename = f"maps/{tables.token('mask', location)}.png"
        write_mask(root / filename, [scene.roads for _, scene in entries], len(entries))
        tables.add_map(filename, [log for log, _ in entries])
    tables.write()
