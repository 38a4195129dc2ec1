"""Weather and light of a scene: where the sun stands, what colour the light has, how far one sees, how wet it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact

Array = NDArray[np.float64]

WEATHERS = ("clear", "overcast", "rain", "fog")
LIGHTS = ("day", "low_sun", "dusk", "night")
# How often "mixed" draws each.
WEATHER_ODDS = (0.35, 0.27, 0.22, 0.16)
LIGHT_ODDS = (0.45, 0.25, 0.14, 0.16)


@dataclass(frozen=True)
class Air:
    """All colours are linear light, RGB."""

    weather: str  # one of WEATHERS
    light: str  # one of LIGHTS
    sun: Array  # (3,) unit, towards the sun (below the horizon it is kept just above it: it only tints the sky)
    sun_colour: Array  # (3,) of its direct light; zeros: nothing throws a shadow
    sky_colour: Array  # (3,) of the light that falls on what faces up
    bounce: Array  # (3,) of the light from below
    horizon: Array  # (3,) of the sky low down, and of the haze
    zenith: Array  # (3,)
    cloud_colour: Array  # (3,)
    cloud: float  # 0: only the clouds there are; 1: nothing but cloud
    glow: float  # strength of the sun's aureole in the sky
    haze: float  # metres over which the air takes away all but 1/e
    wet: float  # of the road, 0..1
    lamps: float  # strength of street lamps, windows, head and tail lights, 0..1
    exposure: float  # of every camera: what the light lacks, the shutter gives back in part
    lidar_reach: float  # LiDAR range over that in clear air

    @property
    def shadows(self) -> bool:
        return bool(self.sun_colour.max() > 0)


def draw(rng: np.random.Generator, weather: str, light: str, plain: bool) -> tuple[str, str]:
    """What "mixed" means for one scene: a clear day where ``plain``, else a draw. Other values stay as they are."""
    a, b = rng.random(2)
    if weather == "mixed":
        weather = "clear" if plain else WEATHERS[int(np.searchsorted(np.cumsum(WEATHER_ODDS), a))]
    if light == "mixed":
        light = "day" if plain else LIGHTS[int(np.searchsorted(np.cumsum(LIGHT_ODDS), b))]
    return weather, light


def make_air(rng: np.random.Generator, weather: str, light: str, heading: float) -> Air:
    """``heading``: of the street, radians. Every draw is made whatever the weather, so that it alone differs."""
    rgb = lambda *x: np.array(x, np.float64)
    # The sun looks along the street more than across it: otherwise the houses would put all of it in the shade.
    across, side = rng.uniform(0.25, 0.9), rng.integers(4)
    azimuth = heading + (across if side % 2 else -across) + (np.pi if side > 1 else 0.0)
    where, clear_haze, warm, thick = rng.uniform(0, 1, 4)
    low, high = {"day": (36, 58), "low_sun": (9, 16), "dusk": (2, 3), "night": (2, 3)}[light]
    height = float((low + (high - low) * where) * np.pi / 180)
    flat = float(exact.cos(height))
    sun = rgb(flat * float(exact.cos(azimuth)), flat * float(exact.sin(azimuth)), float(exact.sin(height)))

    sun_colour = rgb(3.5, 3.3 - 0.25 * warm, 2.95 - 0.7 * warm)
    sky, bounce = rgb(0.6, 0.74 - 0.03 * warm, 0.98 - 0.1 * warm), rgb(0.36, 0.335, 0.3)
    horizon, zenith = rgb(0.92, 1.02 - 0.03 * warm, 1.14 - 0.12 * warm), rgb(0.17, 0.38, 0.9)
    cloud_colour, cloud, glow, haze, wet, lamps, exposure = (
        rgb(1.2, 1.2, 1.2),
        0.0,
        1.0,
        900 + 900 * clear_haze,
        0.0,
        0.0,
        1.0,
    )
    if light == "low_sun":
        sun_colour = rgb(3.3, 2.15 + 0.25 * warm, 1.05 + 0.3 * warm)
        sky, bounce = 0.62 * sky, rgb(0.3, 0.25, 0.2)
        horizon, zenith, cloud_colour = rgb(1.15, 0.86, 0.6), rgb(0.16, 0.3, 0.62), rgb(1.25, 0.95, 0.75)
        glow, exposure, haze = 2.0, 1.25, 0.6 * haze
    elif light == "dusk":
        sun_colour = rgb(0, 0, 0)
        sky, bounce = rgb(0.15, 0.17, 0.26), rgb(0.075, 0.075, 0.09)
        horizon, zenith, cloud_colour = rgb(0.34, 0.25, 0.26), rgb(0.05, 0.09, 0.24), rgb(0.22, 0.17, 0.22)
        glow, exposure, lamps, haze = 0.12, 2.4, 0.55, 0.7 * haze
    elif light == "night":
        sun_colour = rgb(0, 0, 0)
        sky, bounce = rgb(0.011, 0.012, 0.019), rgb(0.007, 0.007, 0.009)
        horizon, zenith, cloud_colour = rgb(0.03, 0.026, 0.026), rgb(0.006, 0.007, 0.014), rgb(0.03, 0.026, 0.026)
        glow, exposure, lamps = 0.0, 3.9, 1.0
    if weather != "clear":
        # Cloud spreads what sun and sky gave over the whole sky, and keeps some of it back.
        total = sky + 0.3 * sun_colour
        grey = total.mean() * rgb(0.98, 1.0, 1.04) * 0.5 + 0.5 * total
        kept = {"overcast": 0.85, "rain": 0.58, "fog": 0.9}[weather]
        sky, sun_colour, glow, cloud = grey * kept, 0 * sun_colour, 0.0, 1.0
        bounce = 0.42 * sky
        horizon, zenith, cloud_colour = 0.95 * sky, 0.7 * sky, 0.8 * sky
        haze = {"overcast": 700 + 300 * thick, "rain": 220 + 130 * thick, "fog": 38 + 34 * thick}[weather]
        wet = 1.0 if weather == "rain" else 0.0
        exposure *= {"overcast": 1.1, "rain": 1.2, "fog": 0.9}[weather]
        if lamps > 0:  # the haze itself is lit by the town
            horizon, cloud_colour = horizon + 0.01 * lamps, cloud_colour + 0.006 * lamps
    reach = {"clear": 1.0, "overcast": 1.0, "rain": 0.85, "fog": 0.6}[weather]
    return Air(
        weather=weather,
        light=light,
        sun=sun,
        sun_colour=sun_colour,
        sky_colour=sky,
        bounce=bounce,
        horizon=horizon,
        zenith=zenith,
        cloud_colour=cloud_colour,
        cloud=float(cloud),
        glow=float(glow),
        haze=float(haze),
        wet=float(wet),
        lamps=float(max(lamps, 0.25) if weather in ("rain", "fog") else lamps),
        exposure=float(exposure),
        lidar_reach=reach,
    )
