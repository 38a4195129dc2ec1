"""What makes a world: its arguments, checked, as the manifest records them, and the scenes that follow from them."""

from __future__ import annotations

import datetime
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from mim4d.errors import UserError
from mim4d.world.knobs import STANDARD, Knobs
from mim4d.world.maps import LOCATIONS
from mim4d.world.roads import TILE_SIZE

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
MINI, TRAINVAL = "v1.0-mini", "v1.0-trainval"
MOST, MOST_HELD = 850, 150  # scenes in the devkit's splits train and val together, and in val
MOST_PIXELS = 1 << 22  # of an image: two processes that draw such images stay below 2 GB
FORMAT = 3  # raised whenever the same arguments give another world
EPOCH = datetime.date(2026, 1, 1)
EPOCH_US = 1_767_268_800_000_000  # its noon, UTC
DAY_US = 86_400_000_000


def held_out(scenes: int) -> int:
    """How many of the scenes are for validation: the last fifth, at least one, at most as many as the devkit names."""
    return min(max(1, scenes // 5), MOST_HELD)


def default_version(scenes: int) -> str:
    return MINI if scenes <= len(MINI_TRAIN) + len(MINI_VAL) else TRAINVAL


def scene_names(scenes: int, version: str = MINI) -> tuple[list[str], list[str]]:
    """Names of the training and of the validation scenes, from the splits that the devkit has for the version.

    ``scenes`` and ``version`` are a :class:`Recipe`'s, so that there are names enough.
    """
    validation = held_out(scenes)
    train, held = (list(MINI_TRAIN), list(MINI_VAL)) if version == MINI else _devkit_names()
    return train[: scenes - validation], held[:validation]


@functools.cache
def _devkit_names() -> tuple[list[str], list[str]]:
    try:
        from nuscenes.utils import splits
    except ImportError as e:
        raise UserError(
            f"{TRAINVAL} takes its scenes' names from nuscenes-devkit, which is missing ({e}): "
            "pip install 'mim4d[world]'"
        ) from None
    return list(splits.train), list(splits.val)


@dataclass(frozen=True)
class Slot:
    """The place of one scene in the data set."""

    index: int
    name: str
    location: str
    validation: bool
    tile: tuple[int, int]  # column and row of its square on the location's map

    @property
    def corner(self) -> tuple[float, float]:
        """Map coordinates of the lower left corner of its square, metres."""
        return self.tile[0] * TILE_SIZE, self.tile[1] * TILE_SIZE

    @property
    def start_us(self) -> int:
        """Timestamp of the first key frame: every scene has a day of its own."""
        return EPOCH_US + self.index * DAY_US

    @property
    def date(self) -> str:
        return (EPOCH + datetime.timedelta(days=self.index)).isoformat()

    @property
    def vehicle(self) -> str:
        return f"w{self.index:03d}"

    @property
    def logfile(self) -> str:
        return f"{self.vehicle}-{self.date}-12-00-00+0000"


@dataclass(frozen=True)
class Recipe:
    """The arguments of a world. UserError names one that is out of range."""

    seed: int = 0
    scenes: int = 2
    seconds: float = 4.0
    image_size: tuple[int, int] = (128, 224)  # height, width
    version: str = ""  # empty: mini up to ten scenes, trainval beyond
    knobs: Knobs = STANDARD
    extras: bool = False

    def __post_init__(self) -> None:
        whole = lambda x: isinstance(x, (int, np.integer)) and not isinstance(x, bool)
        settle = lambda name, value: object.__setattr__(self, name, value)
        if not whole(self.seed) or self.seed < 0:
            raise UserError(f"seed: got {self.seed!r}, want a whole number from 0 on")
        if not whole(self.scenes):
            raise UserError(f"scenes: got {self.scenes!r}, want a whole number")
        if not 2 <= self.scenes <= MOST:
            raise UserError(f"scenes: got {self.scenes}, want 2 to {MOST}: one to train on and one held out at least")
        settle("version", self.version or default_version(self.scenes))
        if self.version not in (MINI, TRAINVAL):
            raise UserError(f"version: got {self.version!r}, want {MINI} or {TRAINVAL}")
        if self.version == MINI and self.scenes > len(MINI_TRAIN) + len(MINI_VAL):
            raise UserError(
                f"version: {MINI} holds {len(MINI_TRAIN) + len(MINI_VAL)} scenes at most (nuscenes-devkit's splits "
                f"mini_train and mini_val name no more), not {self.scenes}; want {TRAINVAL}"
            )
        seconds = self.seconds
        number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not number or not math.isfinite(seconds) or not 0.5 <= seconds <= 20:
            raise UserError(f"seconds: got {seconds!r}, want 0.5 to 20 (nuScenes scenes last 20 s)")
        try:
            height, width = self.image_size
        except (TypeError, ValueError):
            raise UserError(f"image_size: got {self.image_size!r}, want (height, width)") from None
        if not (whole(height) and whole(width) and 32 <= height <= 4096 and 32 <= width <= 4096):
            raise UserError(
                f"image_size: got {self.image_size!r}, want height and width in whole pixels from 32 to 4096"
            )
        if height * width > MOST_PIXELS:
            raise UserError(f"image_size: got {self.image_size!r}, want {MOST_PIXELS} pixels at most, as 2048x2048")
        if not isinstance(self.knobs, Knobs):
            raise UserError(f"knobs: got {self.knobs!r}, want a mim4d.world.Knobs")
        if not isinstance(self.extras, bool):
            raise UserError(f"extras: got {self.extras!r}, want True or False")
        settle("seed", int(self.seed))
        settle("scenes", int(self.scenes))
        settle("seconds", float(seconds))
        settle("image_size", (int(height), int(width)))

    def record(self) -> dict[str, Any]:
        """As the manifest keeps it; :meth:`read` is the way back."""
        made = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"format": FORMAT, **made, "image_size": list(self.image_size), "knobs": asdict(self.knobs)}

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> Recipe:
        """KeyError, TypeError or UserError for anything that :meth:`record` did not make, another format among them."""
        if recorded["format"] != FORMAT:
            raise UserError(f"made by another version of mim4d (format {recorded['format']}, this one makes {FORMAT})")
        values = {f.name: recorded[f.name] for f in fields(cls)}
        return cls(**{**values, "image_size": tuple(values["image_size"]), "knobs": Knobs.read(values["knobs"])})

    @property
    def token_root(self) -> str:
        """Enters every token, so that two different worlds share none; the truth beside a world makes it no other."""
        made = {name: value for name, value in self.record().items() if name != "extras"}
        return f"mim4d-world/{json.dumps(made, sort_keys=True)}"

    def slots(self) -> list[Slot]:
        """The scenes: three towns' maps for training, the fourth for validation, tiles in a square on each."""
        train, validation = scene_names(self.scenes, self.version)
        places = [(name, LOCATIONS[i % 3], i // 3, False) for i, name in enumerate(train)]
        places += [(name, LOCATIONS[3], i, True) for i, name in enumerate(validation)]
        slots = []
        for index, (name, location, number, held) in enumerate(places):
            columns, _ = grid(sum(location == other for _, other, _, _ in places))
            slots.append(Slot(index, name, location, held, (number % columns, number // columns)))
        return slots


def grid(tiles: int) -> tuple[int, int]:
    """Columns and rows of the nearly square arrangement of so many tiles."""
    columns = math.isqrt(max(tiles - 1, 0)) + 1
    return columns, -(-tiles // columns)
