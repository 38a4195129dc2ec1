"""How far validation scenes are from training scenes, in pictures and in streets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mim4d.world import exact
from mim4d.world.roads import Roads

Float32 = NDArray[np.float32]

THUMBNAIL = (32, 18)  # width, height of the grey pictures that are compared
LEVELS = 4  # of each colour in a histogram
SIDE, CELL, SHIFT = 100.0, 2.0, 20.0  # metres: of the compared square, of its cells, furthest shift
TURNS = 36
CHANNELS = ("CAM_FRONT", "CAM_BACK")


def describe(image: Image.Image) -> tuple[Float32, Float32]:
    """A picture as grey pixels of mean 0 and length 1 (P,), and as a histogram of colours that sums to 1 (64,)."""
    small = image.convert("RGB").resize(THUMBNAIL, Image.Resampling.BOX)
    rgb = np.asarray(small, np.float32).reshape(-1, 3)
    grey = rgb.mean(1) - rgb.mean()
    cell = np.minimum(rgb * (LEVELS / 256.0), LEVELS - 1).astype(np.intp)
    code = (cell[:, 0] * LEVELS + cell[:, 1]) * LEVELS + cell[:, 2]
    colours = np.bincount(code, minlength=LEVELS**3).astype(np.float32) / len(code)
    return grey / max(float(exact.norm(grey)), 1e-6), colours


def shape_distance(a: Float32, b: Float32) -> Float32:
    """1 - correlation of grey pictures (A, P) and (B, P) -> (A, B)."""
    return 1.0 - np.stack([exact.dot(a, row) for row in b], -1)


def colour_distance(a: Float32, b: Float32) -> Float32:
    """The share of pixels that would have to change colour, (A, C) and (B, C) -> (A, B)."""
    return np.stack([np.abs(a - row).sum(-1) / 2 for row in b], -1)


@dataclass(frozen=True)
class Nearest:
    """Distances to the nearest picture, (N,) each."""

    val_train: Float32  # from each of validation to the nearest of training
    train_train: Float32  # from each of training to the nearest of another training scene
    same_scene: Float32  # from each to the nearest of its own scene that is not itself


def nearest(distance: Float32, scene: NDArray[np.intp], validation: NDArray[np.bool_]) -> Nearest:
    """From distances (N, N) of all pictures, their scenes (N,) and whether they are for validation (N,)."""
    same = scene[:, None] == scene
    other = np.where(same, np.inf, distance)
    own = np.where(same & ~np.eye(len(scene), dtype=bool), distance, np.inf)
    train = ~validation
    across = other[train][:, train].min(1) if len(set(scene[train])) > 1 else np.empty(0, np.float32)
    return Nearest(other[validation][:, train].min(1), across, own.min(1))


def streets_mask(roads: Roads, centre: NDArray[np.float64], turn: float, side: float) -> NDArray[np.bool_]:
    """(C, C) cells of the square about ``centre``, turned by ``turn`` radians, that one can drive on."""
    cells = round(side / CELL)
    image = Image.new("1", (cells, cells))
    draw = ImageDraw.Draw(image)
    s, c = exact.sincos(turn)
    for polygon, _ in roads.segments:
        d = polygon - centre
        xy = np.stack([c * d[:, 0] - s * d[:, 1], s * d[:, 0] + c * d[:, 1]], -1) / CELL + cells / 2
        draw.polygon([(float(x), float(y)) for x, y in xy], fill=1)
    return np.asarray(image, bool)


def street_overlap(
    a: Roads, b: Roads, centres: tuple[NDArray[np.float64], NDArray[np.float64]], turns: int = TURNS
) -> float:
    """Intersection over union of the roads around two places, the best over all headings and shifts."""
    fixed = streets_mask(a, centres[0], 0.0, SIDE)
    best = 0.0
    for k in range(turns):
        wide = streets_mask(b, centres[1], 2 * np.pi * k / turns, SIDE + 2 * SHIFT)
        windows = sliding_window_view(wide, fixed.shape)[::2, ::2]
        both = (windows & fixed).sum((-1, -2))
        either = (windows | fixed).sum((-1, -2))
        best = max(best, float((both / np.maximum(either, 1)).max()))
    return best


def _line(name: str, values: Sequence[float] | Float32) -> str:
    v = np.asarray(values, np.float64)
    return f"| {name} | {np.median(v):.2f} | {v.min():.2f} | {v.max():.2f} |" if len(v) else f"| {name} | - | - | - |"


def markdown(root: Path) -> str:
    """The distances of a world's scenes, as a table."""
    from mim4d.world.generator import open_scene
    from mim4d.world.statistics import read_tables

    tables = read_tables(root)
    names = [s["name"] for s in tables["scene"]]
    scene_of = {r["token"]: r["scene_token"] for r in tables["sample"]}
    order = {s["token"]: i for i, s in enumerate(tables["scene"])}
    pictures, scene = [], []
    for row in tables["sample_data"]:
        if row["is_key_frame"] and Path(row["filename"]).parent.name in CHANNELS:
            with Image.open(root / row["filename"]) as image:
                pictures.append(describe(image))
            scene.append(order[scene_of[row["sample_token"]]])
    held = validation_scenes(root, names)
    of = np.array(scene)
    validation = np.array(held)[of]
    lines = ["| nearest neighbours | median | least | most |", "|---|---|---|---|"]
    for k, (what, measure) in enumerate((("grey", shape_distance), ("colours", colour_distance))):
        d = np.stack([p[k] for p in pictures])
        found = nearest(measure(d, d), of, validation)
        lines.append(_line(f"{what}: validation to training", found.val_train))
        lines.append(_line(f"{what}: training to another training scene", found.train_train))
        lines.append(_line(f"{what}: to the same scene", found.same_scene))
    worlds = [open_scene(root, name)[0] for name in names]
    middles = [w.ego.pose(w.seconds / 2)[0][:2] for w in worlds]
    pairs: dict[bool, list[float]] = {False: [], True: []}
    for i in range(len(worlds)):
        for j in range(i):
            if not (held[i] and held[j]):
                overlap = street_overlap(worlds[i].roads, worlds[j].roads, (middles[i], middles[j]))
                pairs[held[i] or held[j]].append(overlap)
    lines.append(_line("streets, overlap: validation and training", pairs[True]))
    lines.append(_line("streets, overlap: two training scenes", pairs[False]))
    return "\n".join(lines)


def validation_scenes(root: Path, names: list[str]) -> list[bool]:
    """Which scenes are for validation: the last ones, as many as the manifest's rule says."""
    from mim4d.world.recipe import scene_names

    made = json.loads((root / "world.json").read_text())
    _, held = scene_names(made["scenes"], made["version"])
    return [name in held for name in names]
