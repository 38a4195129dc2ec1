"""The difficulty knobs of a world: weather, light, and how much texture, sensor noise and traffic there is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from mim4d.errors import UserError, did_you_mean

Weather = Literal["clear", "overcast", "rain", "fog", "mixed"]
Light = Literal["day", "low_sun", "dusk", "night", "mixed"]
WEATHERS: tuple[str, ...] = get_args(Weather)
LIGHTS: tuple[str, ...] = get_args(Light)
RANGES: dict[str, tuple[float, float]] = {"texture": (0.0, 2.0), "sensor_noise": (0.0, 10.0), "traffic": (0.0, 3.0)}


@dataclass(frozen=True)
class Knobs:
    """How hard a world is to see through. "mixed" lets every scene draw its own. A value out of range: UserError."""

    weather: Weather = "mixed"
    light: Light = "mixed"
    texture: float = 1.0
    """Contrast of every surface's pattern: 0 leaves plain colours, 1 is the world as designed."""
    sensor_noise: float = 1.0
    """Scales the noise of cameras and LiDAR; 0 leaves none."""
    traffic: float = 1.0
    """Scales the number of things that stand or move on and along the roads; 0 leaves one of every class."""

    def __post_init__(self) -> None:
        for name, known in (("weather", WEATHERS), ("light", LIGHTS)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                hint = did_you_mean(value, known) if isinstance(value, str) else ""
                raise UserError(f"{name}: got {value!r}{hint}; want one of {', '.join(known)}")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not low <= value <= high:
                raise UserError(f"{name}: got {value!r}, want {low:g} to {high:g}")
            object.__setattr__(self, name, float(value))  # 1 and 1.0 make the same world and the same manifest

    def record(self) -> dict[str, Any]:
        """As the manifest keeps them; :meth:`read` is the way back."""
        return asdict(self)

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> Knobs:
        """Knobs of a manifest. KeyError where one is missing, UserError for a value out of range."""
        return cls(**{f.name: recorded[f.name] for f in fields(cls)})


STANDARD = Knobs()
