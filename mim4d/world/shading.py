"""Colour of what a ray meets: textures, paint on the road, sun and its shadows, skylight, haze, sky. All in float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mim4d.world.scene import Hits, Scene
from mim4d.world.textures import LEVELS, TILE_METRES, Atlas, Material

Array = NDArray[np.float32]
F = np.float32

WALLS = np.isin(np.arange(len(Material)), [Material.BRICK, Material.PLASTER, Material.CURTAIN, Material.SHOP])
MACRO = 1 / 37.0  # large-scale stains: periods per metre


class Shader:
    """Colours the hits of one scene. Views agree: every term but haze, sun glint and exposure depends on the place alone."""

    def __init__(self, scene: Scene, atlas: Atlas) -> None:
        self.scene, self.atlas = scene, atlas
        mesh = scene.mesh
        self.material, self.tint, self.uv = mesh.material, mesh.tint, mesh.uv  # (F,), (F, 3), (F, 3, 2)
        self.surface = mesh.surface  # (F,)
        self.still = mesh.owner < 0  # (F,)
        self.texels_per_metre = (1 << (LEVELS - 1)) / TILE_METRES[self.material]  # (F,)
        warm = scene.warmth
        self.sun_colour = np.array([2.5, 2.38 - 0.18 * warm, 2.15 - 0.55 * warm], F)
        self.sky_colour = np.array([0.5, 0.6 - 0.03 * warm, 0.78 - 0.1 * warm], F)
        self.bounce = np.array([0.3, 0.28, 0.25], F)
        self.horizon = np.array([0.72, 0.78 - 0.03 * warm, 0.86 - 0.12 * warm], F)
        self.zenith = np.array([0.16, 0.32, 0.66], F)

    def colours(self, t: float, origin: NDArray[np.float64], directions: Array, hits: Hits, pixel: float) -> Array:
        """Linear light (P, 3) seen from ``origin`` (3,) along directions (P, 3); ``pixel``: angle of a pixel, radians."""
        rgb = self.sky(directions)
        seen = np.flatnonzero(hits.face >= 0)
        if len(seen) == 0:
            return rgb
        face, distance, d = hits.face[seen], hits.distance[seen], directions[seen]
        normal = hits.normals[face]
        o = (origin - self.scene.origin).astype(F)
        point = o + distance[:, None] * d
        facing = -(normal * d).sum(1)
        normal = np.where(facing[:, None] < 0, -normal, normal)
        footprint = distance * F(pixel) / np.sqrt(np.abs(facing) + F(0.03))
        albedo = self.albedo(face, hits.u[seen], hits.v[seen], point, footprint)
        slope = normal @ self.scene.sun.astype(F)
        lit = np.zeros(len(seen), F)
        toward = np.flatnonzero(slope > 0)
        start = point[toward] + normal[toward] * F(0.02)
        lit[toward] = self.scene.lit(t, start) * slope[toward]
        up = normal[:, 2:] * F(0.5) + F(0.5)
        light = lit[:, None] * self.sun_colour + up * self.sky_colour + (1 - up) * self.bounce
        clear = np.exp(-distance / F(self.scene.haze))[:, None]
        rgb[seen] = albedo * light * clear + self.horizon * (1 - clear)
        return rgb

    def albedo(self, face: NDArray[np.int32], u: Array, v: Array, point: Array, footprint: Array) -> Array:
        """Reflectance (P, 3) of points on faces; point (P, 3) relative to the scene's origin, footprint (P,) metres."""
        material = self.material[face]
        corner = self.uv[face]  # (P, 3, 2)
        w = np.stack([1 - u - v, u, v], 1)[:, :, None]
        uv = (corner * w).sum(1)
        ground = np.flatnonzero(material == Material.ASPHALT)
        uv[ground] = point[ground, :2] * F(1 / TILE_METRES[Material.ASPHALT])
        ratio = np.maximum(footprint * self.texels_per_metre[face], F(1)).astype(F)
        level = np.minimum((ratio.view(np.int32) >> 23) - 127, LEVELS - 1)
        texel = self.atlas.sample(material, uv[:, 0], uv[:, 1], level)
        base, tinted = texel[:, :3], texel[:, 3:]
        base *= 1 + tinted * (self.tint[face] - 1)
        wall = np.flatnonzero(WALLS[material])
        if len(wall):  # rooms differ behind their panes
            cell = np.floor(uv[wall]).astype(np.int64)
            key = (
                (cell[:, 0] * 73856093)
                ^ (cell[:, 1] * 19349663)
                ^ (self.surface[face[wall]].astype(np.int64) * 83492791)
            )
            value = ((key * 2654435761) >> 8 & 255).astype(F) / F(255)
            base[wall] *= 1 + (1 - tinted[wall]) * (value * F(1.6) - F(0.55))[:, None]
        if len(ground):
            low = self.scene.ground.low - self.scene.origin[:2]
            white, yellow = self.scene.ground.paint(
                point[ground, 0] - F(low[0]), point[ground, 1] - F(low[1]), footprint[ground]
            )
            plain = base[ground] * np.minimum(white * F(255 / 128), 1)[:, None]
            cover = np.maximum(white - F(128 / 255), 0)[:, None] * F(255 / 127)
            worn = base[ground, :1] * F(6.0)  # the asphalt's grain shows through the paint
            marked = plain * (1 - cover) + worn * F(0.72) * cover
            base[ground] = marked * (1 - yellow[:, None]) + worn * np.array([0.75, 0.5, 0.08], F) * yellow[:, None]
        still = self.still[face]
        a = point[:, 0] + F(0.6) * point[:, 2]
        b = point[:, 1] + F(0.8) * point[:, 2]
        stain = self.atlas.clouds(a * F(MACRO), b * F(MACRO))
        base *= (1 + F(0.13) * np.clip(stain, -2.5, 2.5) * still)[:, None]
        return base

    def sky(self, directions: Array) -> Array:
        """(P, 3) linear light of the sky: brighter to the horizon, clouds, a glow around the sun."""
        z = np.maximum(directions[:, 2:], 0)
        rgb = self.zenith + (self.horizon - self.zenith) * np.exp(-z * F(4))
        k = F(0.11) / (z[:, 0] + F(0.12))
        shift = self.scene.sky_shift.astype(F)
        cloud = self.atlas.clouds(directions[:, 0] * k + shift[0], directions[:, 1] * k + shift[1])
        cover = (np.clip(cloud * F(0.8) + F(0.1), 0, 1) * np.minimum(z[:, 0] * F(6), 1))[:, None]
        rgb += (np.array([0.95, 0.95, 0.96], F) - rgb) * cover
        glow = np.maximum(directions @ self.scene.sun.astype(F), 0)
        rgb += self.sun_colour * (F(0.25) * glow**8 + F(2.0) * (glow > F(0.9995)))[:, None]
        return rgb


def develop(linear: Array, gain: float) -> NDArray[np.uint8]:
    """Linear light -> 8-bit pixels: exposure, a soft shoulder for highlights, display curve (square root)."""
    x = linear * F(gain)
    x = x * (1 + x * F(0.12)) / (1 + x * F(0.62))
    return np.round(np.sqrt(np.clip(x, 0, 1)) * 255).astype(np.uint8)
