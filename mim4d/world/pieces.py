"""The making of a world in pieces, each small enough to be lost: some frames of a sensor, a scene's rows, a map."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mim4d.errors import UserError
from mim4d.world.files import Folder
from mim4d.world.maps import Expansion, token, write_mask
from mim4d.world.recipe import Recipe, Slot, grid
from mim4d.world.scene import Scene
from mim4d.world.sensors import Rig, make_rig
from mim4d.world.shading import Shader
from mim4d.world.tables import SceneRows, map_place, text
from mim4d.world.truth import instance_files
from mim4d.world.writer import CHANNELS, LIDAR, SceneWriter, frame_count

PIECE_SECONDS = 2.0  # of work that a kill may cost, and that a worker may have left when all others are done
ROWS, MAP = "rows", "map"


@dataclass(frozen=True)
class Piece:
    """``kind``: a channel, of which frames ``first`` to ``stop`` are made, or ROWS of a scene, or MAP of a location."""

    group: str  # scene or location: pieces of one group share what is slow to build
    kind: str
    first: int = 0
    stop: int = 0

    @property
    def name(self) -> str:
        return f"{self.group}/{self.kind}-{self.first:04d}"

    @property
    def files(self) -> int:
        """Images or sweeps."""
        return self.stop - self.first

    def record(self) -> dict[str, Any]:
        return asdict(self)


def seconds_per_file(recipe: Recipe, channel: str) -> float:
    """Rough processor time for one file. It decides on the size of pieces, so it depends on the recipe alone."""
    if channel == LIDAR:
        return 0.02
    height, width = recipe.image_size
    return 0.006 + 8e-7 * height * width


def scene_pieces(recipe: Recipe, slot: Slot) -> Iterator[Piece]:
    """All files of a scene. The slowest come first, so that the last of them ends early."""
    for channel in CHANNELS:
        size = max(1, round(PIECE_SECONDS / seconds_per_file(recipe, channel)))
        count = frame_count(recipe.seconds, channel)
        parts = -(-count // size)
        edges = [count * i // parts for i in range(parts + 1)]  # all of nearly the same size
        for first, stop in pairwise(edges):
            yield Piece(slot.name, channel, first, stop)


def build(recipe: Recipe, slot: Slot) -> tuple[Scene, Rig]:
    """A scene as a function of time, and its sensors."""
    scene = Scene(
        seed=recipe.seed,
        index=slot.index,
        validation=slot.validation,
        seconds=recipe.seconds,
        tile=slot.corner,
        knobs=recipe.knobs,
    )
    return scene, make_rig(np.random.default_rng([recipe.seed, slot.index, 21]), recipe.image_size)


class Workshop:
    """Makes pieces of one world, in any order. It keeps the scene that it worked on last."""

    def __init__(self, recipe: Recipe, slots: list[Slot], folder: Folder) -> None:
        self.recipe, self.slots, self.folder = recipe, slots, folder
        self._writer: SceneWriter | None = None

    def make(self, piece: Piece, done: Callable[[], None]) -> None:
        """Writes the piece's files and notes it. ``done`` is called after every image or sweep."""
        if piece.kind == MAP:
            self._map(piece)
        elif piece.kind == ROWS:
            self._rows(piece)
        else:
            writer = self._scene(piece.group)
            note = writer.write(piece.kind, range(piece.first, piece.stop), self.folder.put, done)
            self.folder.finish_piece(piece.name, note)

    def _scene(self, name: str) -> SceneWriter:
        if self._writer is None or self._writer.slot.name != name:
            self._writer = None  # two scenes at once are too many
            slot = next(s for s in self.slots if s.name == name)
            scene, rig = build(self.recipe, slot)
            self._writer = SceneWriter(self.recipe, slot, scene, rig, Shader(scene))
        return self._writer

    def _rows(self, piece: Piece) -> None:
        writer = self._scene(piece.group)
        notes = [self.folder.note(p.name) for p in scene_pieces(self.recipe, writer.slot)]
        known = [note for note in notes if note is not None]
        if len(known) != len(notes):
            raise UserError(f"{self.folder.path}: files of {piece.group} went missing while the world was made")
        made = SceneRows(self.recipe, writer.slot, writer.scene, writer.rig, known)
        kept = {rows_file(piece.group, table): text(rows).encode() for table, rows in made.rows.items()}
        sizes = {place: self.folder.keep(place, data) for place, data in kept.items()}
        things = instance_files(piece.group, writer.scene, made.annotated) if self.recipe.extras else {}
        files = {place: self.folder.put(place, data) for place, data in things.items()}
        self.folder.finish_piece(piece.name, {"files": files, "kept": sizes})

    def _map(self, piece: Piece) -> None:
        """The streets of a location's scenes, as a mask and as vectors."""
        location, recipe = piece.group, self.recipe
        slots = [s for s in self.slots if s.location == location]
        all_roads = [
            Scene.streets(
                seed=recipe.seed, index=s.index, validation=s.validation, seconds=recipe.seconds, tile=s.corner
            )[1]
            for s in slots
        ]
        expansion = Expansion(token(recipe.token_root, location))
        for roads in all_roads:
            expansion.add(roads)
        columns, rows = grid(len(slots))
        files = {}
        place = f"maps/expansion/{location}.json"
        files[place] = self.folder.put(place, json.dumps(expansion.finish(columns, rows)).encode())
        place = map_place(recipe.token_root, location)
        scratch = self.folder.scratch()
        write_mask(scratch, all_roads, columns, rows)
        files[place] = self.folder.adopt(scratch, place)
        self.folder.finish_piece(piece.name, {"files": files})


def rows_file(scene: str, table: str) -> str:
    """Where a scene's rows of a table wait for those of the other scenes."""
    return f"{scene}/{table}.rows"
