"""``mim4d world``: its arguments, and how they become a call of :func:`mim4d.world.generate`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import tyro

from mim4d.engine.progress import Display
from mim4d.errors import UserError
from mim4d.world import Knobs, generate
from mim4d.world.knobs import STANDARD, Light, Weather


@dataclass
class WorldArguments:
    """Make a synthetic driving data set in nuScenes format: version v1.0-mini, six cameras at 12 Hz, LiDAR, sweeps."""

    out: tyro.conf.Positional[Path]
    """Folder to write."""
    seed: int = 0
    """The same seed makes the same world."""
    scenes: int = 2
    """Scenes; the last fifth, at least one, is held out (split mini_val)."""
    seconds: float = 4.0
    """Length of each scene."""
    image_size: str = "128x224"
    """Height x width of the images in pixels."""
    weather: Weather = STANDARD.weather
    """mixed: every scene its own."""
    light: Light = STANDARD.light
    """Time of day; mixed: every scene its own."""
    texture: float = STANDARD.texture
    """Contrast of the surfaces' patterns; 0: plain colours."""
    sensor_noise: float = STANDARD.sensor_noise
    """Scales the noise of cameras and LiDAR; 0: none."""
    traffic: float = STANDARD.traffic
    """Scales the number of cars, people and other things."""


def run(given: WorldArguments) -> int:
    """Make the world; returns the exit code. Mistakes are raised as UserError."""
    knobs = Knobs(**{name: getattr(given, name) for name in STANDARD.record()})
    size = image_size(given.image_size)
    with Display().count("making the world") as progress:
        generate(
            given.out,
            seed=given.seed,
            scenes=given.scenes,
            seconds=given.seconds,
            image_size=size,
            knobs=knobs,
            progress=progress,
        )
    print(f"wrote {given.out}: --data.root {given.out} --data.version v1.0-mini")
    return 0


def image_size(text: str) -> tuple[int, int]:
    """``128x224`` -> (128, 224). UserError for anything else."""
    size = re.fullmatch(r"(\d+)x(\d+)", text)
    if size is None or 0 in (height := int(size.group(1)), width := int(size.group(2))):
        raise UserError(f"--image-size is HEIGHTxWIDTH in pixels, as 128x224, not {text!r}")
    return height, width
