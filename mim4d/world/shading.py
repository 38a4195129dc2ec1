"""Colour of what a ray meets: textures, paint on the road, sun and its shadows, skylight, haze, sky.

All in float32 and one row per channel, (3, P): numpy is several times slower where the short axis comes last.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.scene import Hits, Moment, Scene
from mim4d.world.textures import LEVELS, TILE_METRES, Atlas, Material, mip_level

Array = NDArray[np.float32]
F = np.float32

WALLS = np.isin(np.arange(len(Material)), [Material.BRICK, Material.PLASTER, Material.CURTAIN, Material.SHOP])
TAPS = 4  # samples of the road's paint along a stretched pixel
MACRO = F(1 / 37.0)  # large-scale stains: periods per metre
PAINT = (F(0.8), F(0.8), F(0.78))  # reflectance of white and of yellow markings
YELLOW = (F(0.75), F(0.48), F(0.07))
BARE = F(128 / 255)  # value of the ground's white channel where nothing is painted


class Shader:
    """Colours the hits of one scene. Views agree: every term but haze and exposure depends on the place alone."""

    def __init__(self, scene: Scene, atlas: Atlas) -> None:
        self.scene, self.atlas = scene, atlas
        mesh = scene.mesh
        self.material, self.surface = mesh.material, mesh.surface  # (F,)
        self.tint = np.ascontiguousarray(mesh.tint.T)  # (3, F)
        corner, second, third = mesh.uv[:, 0], mesh.uv[:, 1] - mesh.uv[:, 0], mesh.uv[:, 2] - mesh.uv[:, 0]
        self.uv = np.ascontiguousarray(np.concatenate([corner, second, third], 1))  # (F, 6)
        self.still = (mesh.owner < 0).astype(F)  # (F,)
        self.texels_per_metre = (F(1 << (LEVELS - 1)) / TILE_METRES)[self.material]  # (F,)
        self.sun = scene.sun.astype(F)
        warm = scene.warmth
        self.sun_colour = np.array([3.4, 3.25 - 0.25 * warm, 2.95 - 0.75 * warm], F)
        self.sky_colour = np.array([0.62, 0.74 - 0.03 * warm, 0.95 - 0.1 * warm], F)
        self.bounce = np.array([0.4, 0.37, 0.33], F)
        self.horizon = np.array([0.95, 1.02 - 0.03 * warm, 1.12 - 0.14 * warm], F)
        self.zenith = np.array([0.2, 0.42, 0.92], F)

    def colours(
        self, moment: Moment, origin: NDArray[np.float64], directions: Array, hits: Hits, pixel: float
    ) -> Array:
        """Linear light (3, P) seen from ``origin`` (3,) along directions (P, 3); ``pixel``: its angle in radians."""
        rgb = np.empty((3, len(directions)), F)
        met = hits.face >= 0
        missed, seen = np.flatnonzero(~met), np.flatnonzero(met)
        rgb[:, missed] = self.sky(directions[missed])
        if len(seen) == 0:
            return rgb
        face, distance = hits.face[seen], hits.distance[seen]
        direction, normal = directions[seen], moment.normals[face]  # (P, 3)
        facing = exact.dot(normal, direction)
        # A face seen from behind (foliage, a thin sheet) is lit as if it faced the eye.
        side = np.where(facing > 0, F(-1), F(1))
        point = distance[:, None] * direction + (origin - self.scene.origin).astype(F)
        width = distance * F(pixel)
        albedo = self.albedo(face, hits.u[seen], hits.v[seen], point, direction, width, np.abs(facing))
        slope = exact.dot(normal, self.sun) * side
        toward = np.flatnonzero(slope > 0)
        start = point[toward] + normal[toward] * (side[toward] * F(0.01))[:, None]
        lit = np.zeros(len(seen), F)
        lit[toward] = moment.lit(start) * slope[toward]
        up = normal[:, 2] * side * F(0.5) + F(0.5)
        clear = exact.exp(distance * F(-1 / self.scene.haze))
        for c in range(3):
            light = lit * self.sun_colour[c] + up * (self.sky_colour[c] - self.bounce[c]) + self.bounce[c]
            rgb[c, seen] = (albedo[c] * light - self.horizon[c]) * clear + self.horizon[c]
        return rgb

    def albedo(
        self, face: NDArray[np.int32], u: Array, v: Array, point: Array, direction: Array, width: Array, facing: Array
    ) -> Array:
        """Reflectance (3, P) of points on faces.

        point (P, 3) relative to the scene's origin; direction (P, 3) of sight; width (P,) of a pixel there in metres;
        facing (P,) the cosine between sight and normal.
        """
        material = self.material[face]
        map6 = self.uv[face]  # (P, 6)
        x, y, z = point.T
        tu = map6[:, 0] + u * map6[:, 2] + v * map6[:, 4]
        tv = map6[:, 1] + u * map6[:, 3] + v * map6[:, 5]
        ground = np.flatnonzero(material == Material.ASPHALT)
        gx, gy = x[ground], y[ground]
        tu[ground], tv[ground] = gx / TILE_METRES[Material.ASPHALT], gy / TILE_METRES[Material.ASPHALT]
        # Between a pixel's width and its stretched length: a little blur, a little flicker.
        footprint = width / np.sqrt(facing + F(0.03))
        level = mip_level(footprint * self.texels_per_metre[face], LEVELS)
        texel = self.atlas.sample(material, tu, tv, level)  # (4, P)
        base, tinted = texel[:3], texel[3]
        stain = self.atlas.clouds((x + F(0.6) * z) * MACRO, (y + F(0.8) * z) * MACRO)
        shade = 1 + F(0.13) * np.clip(stain, -2.5, 2.5) * self.still[face]
        wall = np.flatnonzero(WALLS[material])
        if len(wall):  # rooms differ behind their panes
            key = np.floor(tu[wall]).astype(np.uint32) * np.uint32(73856093)
            key ^= np.floor(tv[wall]).astype(np.uint32) * np.uint32(19349663)
            key ^= self.surface[face[wall]].astype(np.uint32) * np.uint32(83492791)
            value = ((key * np.uint32(2654435761)) >> np.uint32(24)).astype(F)
            shade[wall] *= 1 + (1 - tinted[wall]) * (value * F(1.6 / 255) - F(0.55))
        for c in range(3):
            base[c] *= (1 + tinted * (self.tint[c, face] - 1)) * shade
        if len(ground):
            low = (self.scene.ground.low - self.scene.origin[:2]).astype(F)
            white, yellow = self._paint(gx - low[0], gy - low[1], direction[ground], width[ground])
            plain = np.minimum(white / BARE, 1)
            cover = np.maximum(white - BARE, 0) / (1 - BARE)
            grain = base[0, ground] * F(1 / 0.155)  # the asphalt's grain shows through the paint
            worn = F(0.55) + F(0.45) * grain
            for c in range(3):
                marked = base[c, ground] * plain
                marked += (worn * PAINT[c] - marked) * cover
                base[c, ground] = marked + (worn * YELLOW[c] - marked) * yellow
        return base

    def _paint(self, x: Array, y: Array, direction: Array, width: Array) -> tuple[Array, Array]:
        """The road's paint (P,), (P,) averaged over pixels that flat sight stretches along the line of sight."""
        flat = exact.norm(direction[:, :2])
        stretch = width / np.maximum(np.abs(direction[:, 2]), F(0.01))  # a pixel's length on the road
        footprint = np.maximum(width, stretch * F(1 / TAPS))
        ax, ay = (direction[:, i] * (stretch / np.maximum(flat, F(1e-6))) for i in range(2))
        at = (np.arange(TAPS, dtype=F)[:, None] + F(0.5)) / TAPS - F(0.5)  # (TAPS, 1)
        taps = ((x + at * ax).ravel(), (y + at * ay).ravel(), np.tile(footprint, TAPS))
        white, yellow = self.scene.ground.paint(*taps)
        return white.reshape(TAPS, -1).mean(0), yellow.reshape(TAPS, -1).mean(0)

    def sky(self, directions: Array) -> Array:
        """(3, P) linear light of the sky along directions (P, 3): brighter to the horizon, clouds, the sun's glow."""
        dx, dy, dz = directions.T
        z = np.maximum(dz, 0)
        fade = exact.exp(z * F(-4))
        k = F(0.035) / (z + F(0.1))
        shift = self.scene.sky_shift.astype(F)
        cloud = self.atlas.clouds(dx * k + shift[0], dy * k + shift[1], smooth=True)
        cover = np.clip(cloud * F(0.55) + F(0.12), 0, 1) * np.minimum(z * F(6), 1)
        glow = np.maximum(exact.dot(directions, self.sun), 0)
        narrow = glow * glow
        narrow *= narrow
        narrow *= narrow  # the eighth power
        shine = F(0.2) * narrow + F(3.0) * (glow > F(0.9995))
        out = np.empty((3, len(directions)), F)
        for c in range(3):
            clear = self.zenith[c] + (self.horizon[c] - self.zenith[c]) * fade
            out[c] = clear + (F(1.15) - clear) * cover + self.sun_colour[c] * shine
        return out


def develop(linear: Array, gain: float) -> NDArray[np.uint8]:
    """Linear light (3, P) -> 8-bit pixels (P, 3): exposure, a soft shoulder for highlights, square-root curve."""
    x = linear * F(gain)
    x = x * (1 + x * F(0.12)) / (1 + x * F(0.62))
    return np.ascontiguousarray(np.round(np.sqrt(np.clip(x, 0, 1)) * 255).astype(np.uint8).T)
