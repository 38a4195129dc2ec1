"""How much of a LiDAR's beam comes back, and what a sweep makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.materials import Material

if TYPE_CHECKING:
    from mim4d.world.scene import Moment

Float32 = NDArray[np.float32]

RANGE_NOISE = 0.02  # standard deviation, metres
REACH = 70.0  # over which a grey wall's echo fades, metres
STRAY = 0.005  # share of echoes lost for no reason
# Reflectance that the LiDAR sees, by material; paint and skin of cars multiply it by their tint.
REFLECT = np.full(len(Material), 0.35, np.float32)
REFLECT[[Material.ASPHALT, Material.TYRE]] = 0.12, 0.06
REFLECT[[Material.GLASS, Material.CURTAIN]] = 0.08, 0.2
REFLECT[[Material.METAL, Material.STRIPES, Material.POSTER, Material.BODY_SIDE, Material.BODY]] = (
    0.6,
    0.95,
    0.8,
    0.5,
    0.5,
)
PANES = np.isin(np.arange(len(Material)), [Material.GLASS, Material.SIDE_GLASS, Material.CURTAIN, Material.OFFICE])


def echo(moment: Moment, face: NDArray[np.int32], distance: Float32, directions: Float32) -> tuple[Float32, Float32]:
    """Of beams along directions (P, 3) that met faces (P,) at distances (P,): strength of the echo (P,), 0 to 1, and
    how likely it is lost (P,), where 1 and more means that it is.

    Echoes are lost where they are weak (far, dark, flat) or go astray in glass, and a few anywhere.
    ``knobs.sensor_noise`` scales the share that is lost.
    """
    scene = moment.scene
    material = scene.mesh.material[face]
    facing = np.abs(exact.dot(moment.normals[face], directions))
    reflect = REFLECT[material] * (0.4 + 0.6 * scene.mesh.tint[face].mean(1).clip(0, 1))
    signal = reflect * (0.25 + 0.75 * facing)
    # A wet road sends little back: the film of water mirrors the beam away.
    signal *= np.where(material == Material.ASPHALT, np.float32(1 - 0.6 * scene.air.wet), np.float32(1))
    far = distance / np.float32(REACH * scene.air.lidar_reach)  # rain and fog take range
    returned = np.minimum(1.3 * exact.exp(-far * far * (0.25 / (signal + 0.02))), 1 - STRAY)
    # A pane is a mirror: it sends back what meets it head on.
    head_on = facing * facing
    head_on *= head_on
    returned *= np.where(PANES[material], 0.1 + 0.9 * head_on * head_on, 1.0)
    return signal, np.float32(scene.knobs.sensor_noise) * (1 - returned)
