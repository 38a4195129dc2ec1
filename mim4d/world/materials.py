"""What surfaces are made of."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Material(IntEnum):
    ASPHALT = 0
    CONCRETE = 1
    KERB = 2
    GRASS = 3
    PAVERS = 4
    BRICK = 5
    PLASTER = 6
    CURTAIN = 7
    SHOP = 8
    BLANK = 9
    CORRUGATED = 10
    GRAVEL = 11
    TILES = 12
    FOLIAGE = 13
    BARK = 14
    BODY_SIDE = 15
    BODY = 16
    GLASS = 17
    FRONT = 18
    REAR = 19
    TYRE = 20
    CONTAINER = 21
    BUS_SIDE = 22
    CLOTH = 23
    SKIN = 24
    METAL = 25
    STRIPES = 26
    POSTER = 27
    SHUTTERS = 28
    OFFICE = 29
    ENTRY = 30
    SIDE_GLASS = 31
    BUS_FRONT = 32
    LAMP = 33
    SIGNAL = 34
    SIGN = 35
    WOOD = 36
    AWNING = 37
    TRUCK_FRONT = 38


# Width of a tile in metres: how many texels a metre has decides the mip level.
TILE_METRES = np.array(
    [3.0, 2.0, 2.0, 4.0, 2.0, 3.0, 3.0, 3.0, 4.5, 3.0, 3.0, 3.0, 2.0, 2.5, 0.8, 4.4, 1.5, 1.5, 1.8, 1.8, 0.7, 3.0, 4.0]
    + [0.6, 0.3, 0.5, 0.8, 2.5, 3.0, 3.0, 4.5, 2.4, 2.6, 0.3, 0.6, 1.5, 1.0, 2.0, 2.4],
    np.float32,
)

_ALL = np.arange(len(Material))
WALLS = np.isin(
    _ALL,
    [
        Material.BRICK,
        Material.PLASTER,
        Material.CURTAIN,
        Material.SHOP,
        Material.SHUTTERS,
        Material.OFFICE,
        Material.ENTRY,
        Material.CORRUGATED,
    ],
)
LAMPS = np.isin(
    _ALL,
    [Material.FRONT, Material.REAR, Material.BUS_FRONT, Material.TRUCK_FRONT, Material.BODY_SIDE, Material.LAMP],
)  # where the mask says what shines, and not what mirrors
CAR_GLASS = np.isin(_ALL, [Material.GLASS, Material.SIDE_GLASS, Material.BUS_SIDE])
LACQUER = np.isin(
    _ALL, [Material.BODY, Material.BODY_SIDE, Material.FRONT, Material.REAR, Material.BUS_SIDE, Material.SIDE_GLASS]
)
MIRRORS = WALLS | CAR_GLASS
MASKED = MIRRORS | LAMPS | (_ALL == Material.SIGNAL)
PANE = np.where(WALLS, 0.14, 0.07).astype(np.float32)  # what glass mirrors head on; a coated front of glass more
PANE[Material.CURTAIN] = 0.22
GROUND = np.isin(_ALL, [Material.ASPHALT, Material.CONCRETE, Material.PAVERS, Material.KERB])
