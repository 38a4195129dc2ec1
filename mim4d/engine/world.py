"""``mim4d world``: its arguments, and how they become a call of :func:`mim4d.world.generate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from mim4d.engine.progress import Display
from mim4d.engine.signals import Interrupted
from mim4d.errors import UserError, did_you_mean
from mim4d.world import Knobs, generate
from mim4d.world.generator import MANIFEST
from mim4d.world.knobs import STANDARD, Light, Weather
from mim4d.world.recipe import default_version

Preset = Literal["tiny", "small", "large"]


@dataclass
class WorldArguments:
    out: tyro.conf.Positional[Path]
    """Folder to write. What a stopped run has made waits beside it, and the same command goes on from there."""
    preset: Preset = "small"
    """Where the values below start from. tiny: 2 scenes of 1.5 s at 48x80; small: 2 of 4 s at 128x224; large: 10 of
    20 s at 256x704."""
    seed: int = 0
    """The same seed makes the same world."""
    scenes: int = 2
    """2 to 850; the last fifth, at least one, is held out (the devkit's validation split)."""
    seconds: float = 4.0
    """Length of each scene, 0.5 to 20."""
    image_size: str = "128x224"
    """Height x width of the images in pixels."""
    version: Literal["auto", "v1.0-mini", "v1.0-trainval"] = "auto"
    """Which of the devkit's splits name the scenes; auto: mini up to ten scenes, trainval beyond."""
    weather: Weather = STANDARD.weather
    """mixed: every scene its own."""
    light: Light = STANDARD.light
    """Time of day; mixed: every scene its own."""
    texture: float = STANDARD.texture
    """Contrast of the surfaces' patterns, 0 (plain colours) to 2."""
    sensor_noise: float = STANDARD.sensor_noise
    """Scales the noise of cameras and LiDAR, 0 (none) to 10."""
    traffic: float = STANDARD.traffic
    """Scales the number of cars, people and other things, 0 (one of every class) to 3."""
    extras: bool = False
    """Also write what nuScenes lacks: depth, normals, flow, instance ids, occupancy."""
    gallery: bool = False
    """Also write a page with pictures of the world (gallery.html), or only that where the world is there already."""
    workers: int = 0
    """Processes at most; 0: one per core, as far as 2 GB of memory hold them. The world does not depend on it."""


PRESETS = {
    "tiny": WorldArguments(Path(), "tiny", scenes=2, seconds=1.5, image_size="48x80"),
    "small": WorldArguments(Path(), "small", scenes=2, seconds=4.0, image_size="128x224"),
    "large": WorldArguments(Path(), "large", scenes=10, seconds=20.0, image_size="256x704"),
}
DESCRIPTION = (
    "Make a synthetic driving data set in nuScenes format: six cameras at 12 Hz, a LiDAR at 20 Hz, boxes, tracks and "
    "maps. Options override the preset; shown are the values of preset {}."
)


def defaults(preset: str) -> tuple[WorldArguments, str]:
    """The arguments that a preset stands for, all but ``out``, and the words above the list of options."""
    name = preset or "small"
    if name not in PRESETS:
        raise UserError(f"--preset is one of {', '.join(PRESETS)}, not {name!r}{did_you_mean(name, PRESETS)}")
    return replace(PRESETS[name], out=tyro.MISSING), DESCRIPTION.format(name)


def run(given: WorldArguments, options: Sequence[str]) -> int:
    """Make the world; returns the exit code. Mistakes are raised as UserError.

    ``options``: the command line as typed; where it names the folder and asks for a gallery and nothing else, a world
    that is there is taken as it is.
    """
    size = image_size(given.image_size)
    knobs = Knobs(**{name: getattr(given, name) for name in STANDARD.record()})
    if given.workers < 0:
        raise UserError(f"--workers is 0 (one per core) or more, not {given.workers}")
    only_gallery = given.gallery and len(options) == 2 and (given.out / MANIFEST).is_file()
    if not only_gallery:
        try:
            with Display().count("making the world", "files") as progress:
                generate(
                    given.out,
                    seed=given.seed,
                    scenes=given.scenes,
                    seconds=given.seconds,
                    image_size=size,
                    version="" if given.version == "auto" else given.version,
                    knobs=knobs,
                    extras=given.extras,
                    workers=given.workers or None,
                    progress=progress,
                )
        except KeyboardInterrupt:
            raise Interrupted("interrupted; the same command goes on from here", 130) from None
        version = default_version(given.scenes) if given.version == "auto" else given.version
        print(f"wrote {given.out}: --data.root {given.out} --data.version {version}")
    if given.gallery:
        from mim4d.viz.gallery import write_gallery

        with Display().count("drawing the gallery", "scenes") as progress:
            print(f"wrote {write_gallery(given.out, progress)}")
    return 0


def image_size(text: str) -> tuple[int, int]:
    """``128x224`` -> (128, 224). UserError for anything else."""
    size = re.fullmatch(r"(\d+)x(\d+)", text)
    if size is None or 0 in (height := int(size.group(1)), width := int(size.group(2))):
        raise UserError(f"--image-size is HEIGHTxWIDTH in pixels, as 128x224, not {text!r}")
    return height, width
