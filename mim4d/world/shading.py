"""Colour of what a ray meets: textures, paint on the road, sun and its shadows, skylight, lamps, mirrors, haze, sky.

All in float32 and one row per channel, (3, P): numpy is several times slower where the short axis comes last.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mim4d.world.contact import under
from mim4d.world.lights import HEAD_COLOUR, LAMP_COLOUR, TAIL_COLOUR, vehicle_light
from mim4d.world.materials import GROUND, LACQUER, LAMPS, MASKED, MIRRORS, PANE, TILE_METRES, WALLS, Material
from mim4d.world.scene import Hits, Moment, Scene
from mim4d.world.textures import LEVELS, mip_level, town_atlas

Array = NDArray[np.float32]
F = np.float32

TAPS = 3  # samples of the road's paint along a stretched pixel
MACRO = F(1 / 37.0)  # large-scale stains: periods per metre
PAINT = (F(0.8), F(0.8), F(0.78))  # reflectance of white and of yellow markings
YELLOW = (F(0.75), F(0.48), F(0.07))
BARE = F(128 / 255)  # value of the ground's white channel where nothing is painted
TO_RED = F(-0.5)  # tiles from the green half of Material.SIGNAL to the red half
ROOM = (F(1.0), F(0.72), F(0.4))  # light from a room at night


def dot3(a: Array, b: Array) -> Array:
    """(3, P) and (3, P) or (3,) -> (P,)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _mean(rows: Array) -> Array:
    """(R, P) -> (P,)."""
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total * F(1 / len(rows))


def clearness(distance: Array, haze: float) -> Array:
    """What the air lets through: close to exp(-distance / haze), of which it is the (0, 2) Pade approximant."""
    t = distance * F(1 / haze)
    return 1 / (1 + t * (1 + t * F(0.5)))


class Shader:
    """Colours the hits of one scene.

    Views agree: every term but haze, mirrors and exposure depends on the place alone.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.atlas = town_atlas(scene.seed, scene.index, scene.validation)
        mesh = scene.mesh
        self.material, self.surface = mesh.material, mesh.surface  # (F,)
        self.tint = np.ascontiguousarray(mesh.tint.T)  # (3, F)
        corner, second, third = mesh.uv[:, 0], mesh.uv[:, 1] - mesh.uv[:, 0], mesh.uv[:, 2] - mesh.uv[:, 0]
        self.uv = np.ascontiguousarray(np.concatenate([corner, second, third], 1))  # (F, 6)
        self.still = mesh.owner < 0  # (F,)
        self.bent = (mesh.bend != 0).any((1, 2))  # (F,)
        self.texels_per_metre = (F(1 << (LEVELS - 1)) / TILE_METRES)[self.material]  # (F,)
        self.half = np.array([(a.size[1], a.size[0]) for a in scene.actors], F).reshape(-1, 2) / 2  # (A, 2) of actors
        self.contrast = F(scene.knobs.texture)
        air = scene.air
        self.sun, self.sun_colour, self.sky_colour, self.bounce, self.horizon, self.zenith, self.cloud_colour = (
            np.asarray(x, F)
            for x in (
                air.sun,
                air.sun_colour,
                air.sky_colour,
                air.bounce,
                air.horizon,
                air.zenith,
                air.cloud_colour,
            )
        )

    def colours(
        self, moment: Moment, origin: NDArray[np.float64], directions: Array, hits: Hits, pixel: float
    ) -> Array:
        """Light (3, P) seen from ``origin`` (3,) along directions (P, 3); ``pixel``: its angle in radians.

        It is linear, and such that a camera of gain 1 shows it well: the exposure for the scene's light is in it.
        """
        air = self.scene.air
        rgb = np.empty((3, len(directions)), F)
        met = hits.face >= 0
        missed, seen = np.flatnonzero(~met), np.flatnonzero(met)
        if len(missed):
            rgb[:, missed] = self.sky(np.ascontiguousarray(directions[missed].T))
        if len(seen) == 0:
            return rgb * F(air.exposure)
        face, distance, u, v = hits.face[seen], hits.distance[seen], hits.u[seen], hits.v[seen]
        sight = np.ascontiguousarray(directions[seen].T)  # (3, P), as all that follow
        flat = np.ascontiguousarray(moment.normals[face].T)
        facing = dot3(flat, sight)
        # A face seen from behind (foliage, a thin sheet) is lit as if it faced the eye.
        flat *= np.where(facing > 0, F(-1), F(1))
        facing = np.abs(facing)
        point = sight * distance
        point += (origin - self.scene.origin).astype(F)[:, None]
        material = self.material[face]
        normal = self._rounded(moment, face, u, v, flat, point)
        signals = np.flatnonzero(material == Material.SIGNAL)
        shift = None
        if len(signals):
            shift = np.where(moment.green[self.scene.signal[face]], F(0), TO_RED)
        albedo, mask, room = self.albedo(face, material, u, v, point, flat, sight, distance * F(pixel), facing, shift)

        up = normal[2] * F(0.5) + F(0.5)
        open_ = self._openness(moment, face, point, flat)
        lit = np.zeros(len(seen), F)
        if air.shadows:
            slope = dot3(normal, self.sun)
            toward = np.flatnonzero(slope > 0)
            start = (point[:, toward] + flat[:, toward] * F(0.01)).T
            lit[toward] = moment.lit(start) * slope[toward]
        mirror, mirrored = self._mirrored(material, mask, point, normal, sight, facing, lit)
        made = self._made_light(moment, material, face, mask, room, point, normal, albedo) if air.lamps > 0 else None
        clear = clearness(distance, air.haze)
        for c in range(3):
            light = up * (self.sky_colour[c] - self.bounce[c]) + self.bounce[c]
            light *= open_
            if air.shadows:
                light += lit * self.sun_colour[c]
            light *= albedo[c]
            if made is not None:
                light += made[c]
            if len(signals):  # as bright by day as by night
                light[signals] += albedo[c, signals] * mask[signals] * F(2.2 / air.exposure)
            if len(mirror):
                light[mirror] += mirrored[c]
            light -= self.horizon[c]
            light *= clear
            light += self.horizon[c]
            rgb[c, seen] = light
        return rgb if air.exposure == 1 else rgb * F(air.exposure)

    def _rounded(self, moment: Moment, face: NDArray[np.int32], u: Array, v: Array, flat: Array, point: Array) -> Array:
        """(3, P) normals for light: of the rounded faces those between their corners', else the flat ones."""
        at = np.flatnonzero(self.bent[face])
        if len(at) == 0:
            return flat
        mesh, f = self.scene.mesh, face[at]
        leaves = self.material[f] == Material.FOLIAGE
        corners = mesh.bend[f]  # (Q, 3, 3)
        b, c = u[at, None], v[at, None]
        n = (corners[:, 0] * (1 - b - c) + corners[:, 1] * b + corners[:, 2] * c).T  # (3, Q)
        n /= np.sqrt(dot3(n, n)) + F(1e-6)
        moving = np.flatnonzero(f >= len(self.scene.still))
        if len(moving):
            cos, sin = moment.turn[mesh.owner[f[moving]]].T
            nx, ny = n[0, moving], n[1, moving]
            n[0, moving], n[1, moving] = nx * cos - ny * sin, nx * sin + ny * cos
        n *= np.where(dot3(n, flat[:, at]) < 0, F(-1), F(1))
        leafy = np.flatnonzero(leaves)
        if len(leafy):  # twigs and leaves look every way
            x, y, z = point[:, at[leafy]]
            k, rough = F(0.21), F(0.3) * self.contrast
            a = self.atlas.clouds((x + F(0.7) * z) * k, (y - F(0.6) * z) * k)
            b = self.atlas.clouds((y + F(0.8) * z) * k + F(0.4), (x + F(0.5) * z) * k)
            twig = n[:, leafy] + rough * np.stack([a, b, a - b])
            n[:, leafy] = twig / (np.sqrt(dot3(twig, twig)) + F(1e-6))
        out = flat.copy()
        out[:, at] = n
        return out

    def _openness(self, moment: Moment, face: NDArray[np.int32], point: Array, flat: Array) -> Array:
        """(P,) how much of the skylight comes through: less at the feet of walls and under things."""
        x, y, z = point
        # Upright faces: the ground before them takes the lower half of their view, and what stands on it some more.
        foot = np.maximum(z, 0) * F(2.2)
        out = 1 - F(0.42) / (1 + foot * foot) * (1 - np.abs(flat[2]))
        at = np.flatnonzero((z < F(0.35)) & (flat[2] > F(0.5)))
        if len(at) == 0:
            return out
        gx, gy = x[at], y[at]
        hidden = self.scene.contact.at(gx, gy)
        for k in np.flatnonzero(moment.present):
            i = self.scene.moving[k]
            centre = (moment.centre[k] - self.scene.origin).astype(F)
            half = self.half[i]
            near = np.flatnonzero((np.abs(gx - centre[0]) < half[0] + 1) & (np.abs(gy - centre[1]) < half[0] + 1))
            if len(near):
                more = under(gx[near], gy[near], centre, moment.turn[i], half)
                hidden[near] = np.maximum(hidden[near], more)
        out[at] = 1 - F(0.78) * hidden
        return out

    def _made_light(
        self,
        moment: Moment,
        material: NDArray[np.uint8],
        face: NDArray[np.int32],
        mask: Array,
        room: Array,
        point: Array,
        normal: Array,
        albedo: Array,
    ) -> Array:
        """(3, P) light that street lamps, vehicles and lit windows send to the eye."""
        strength = F(self.scene.air.lamps)
        white, red = vehicle_light(moment, point, normal)
        street = self.scene.lamp_light.at(point, normal)
        out = np.empty_like(point)
        for c in range(3):
            light = street * F(LAMP_COLOUR[c]) + white * F(HEAD_COLOUR[c]) + red * F(TAIL_COLOUR[c])
            out[c] = light * albedo[c] * strength
        lamps = LAMPS[material] & ((face >= len(self.scene.still)) | (material == Material.LAMP))
        on = np.flatnonzero((mask > F(0.02)) & lamps)
        if len(on):
            out[:, on] += albedo[:, on] * mask[on] * strength * F(2.6)
        inside = np.flatnonzero((mask > F(0.02)) & WALLS[material])
        if len(inside):
            key, shops = room[inside], material[inside] == Material.SHOP
            glow = np.where(shops, F(0.5), np.where(key > F(0.75), key * F(0.36), F(0.012)))
            glow *= mask[inside] * strength * self.contrast
            for c in range(3):
                out[c, inside] += glow * ROOM[c] * (F(0.35) + albedo[c, inside] * F(3))
        return out

    def _mirrored(
        self,
        material: NDArray[np.uint8],
        mask: Array,
        point: Array,
        normal: Array,
        sight: Array,
        facing: Array,
        lit: Array,
    ) -> tuple[NDArray[np.intp], Array]:
        """Which of the P points mirror, (Q,), and what they mirror, (3, Q): sky, sun, a street that is not traced.

        Glass, lacquer, and the road where it is wet.
        """
        wet = F(self.scene.air.wet)
        lacquer = LACQUER[material]
        glass = MIRRORS[material] & ~LAMPS[material] & (mask > F(0.05))
        chosen = lacquer | glass
        if wet > 0:
            chosen |= (normal[2] > F(0.9)) & GROUND[material]
        at = np.flatnonzero(chosen)
        n, d, lacquer, mask = normal[:, at], sight[:, at], lacquer[at], mask[at]
        glass = glass[at]
        cosine = np.clip(-dot3(n, d), 0, 1)
        r = d + n * (2 * cosine)
        base = np.where(glass, PANE[material[at]] * mask, F(0.028))
        most = np.where(glass, mask, F(0.5))
        ground = ~(lacquer | glass)
        if wet > 0:
            puddle = self.atlas.clouds(point[0, at] * F(1 / 23), point[1, at] * F(1 / 23))
            most[ground] = (F(0.3) + F(0.17) * np.clip(puddle[ground], -1.2, 1.5)) * wet
            base[ground] = F(0.02) * wet
        graze = 1 - cosine
        g2 = graze * graze
        share = base + (most - base) * (g2 * g2 * graze)
        # Low down a mirror sees the street; a wet road shows the sky at the end of it.
        shape = self.atlas.clouds(r[0] * F(0.2) + r[2] * F(0.06), r[1] * F(0.2))  # of roofs and what stands before them
        skyline = np.where(ground, F(-0.1), F(0.16) + F(0.1) * shape)
        high = np.clip((r[2] - skyline) * F(7), 0, 1)
        street_shade = 1 + F(0.4) * np.clip(shape, -2, 2)
        rise = np.clip(r[2], 0, 1)
        glint = np.maximum(dot3(r, self.sun), 0)
        for _ in range(6):
            glint = glint * glint
        glint *= np.where(lit[at] > 0, F(5), F(0))
        out = np.empty((3, len(at)), F)
        for c in range(3):
            street = self.bounce[c] * F(0.5) + self.sky_colour[c] * F(0.1) + self.sun_colour[c] * F(0.04)
            street = street * street_shade
            above = self.horizon[c] + (self.zenith[c] - self.horizon[c]) * rise
            out[c] = (street + (above - street) * high + glint * self.sun_colour[c]) * share
        return at, out

    def albedo(
        self,
        face: NDArray[np.int32],
        material: NDArray[np.uint8],
        u: Array,
        v: Array,
        point: Array,
        flat: Array,
        sight: Array,
        width: Array,
        facing: Array,
        shift: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """Reflectance (3, P) of points on faces, what mirrors or shines there (P,), a number of the room behind (P,).

        point (3, P) relative to the scene's origin; flat (3, P) normals; sight (3, P) direction; width (P,) of a pixel
        there in metres; facing (P,) the cosine between sight and normal; shift (P,) tiles to the right in the texture.
        """
        map6 = self.uv[face]  # (P, 6)
        x, y, z = point
        tu = map6[:, 0] + u * map6[:, 2] + v * map6[:, 4]
        if shift is not None:
            tu += shift
        tv = map6[:, 1] + u * map6[:, 3] + v * map6[:, 5]
        ground = np.flatnonzero(material == Material.ASPHALT)
        gx, gy = x[ground], y[ground]
        tu[ground], tv[ground] = gx / TILE_METRES[Material.ASPHALT], gy / TILE_METRES[Material.ASPHALT]
        # Between a pixel's width and its stretched length: a little blur, a little flicker.
        footprint = width / np.sqrt(facing + F(0.03))
        level = mip_level(footprint * self.texels_per_metre[face], LEVELS)
        texel = self.atlas.sample(material, tu, tv, level)  # (4, P)
        strength = self.contrast
        if strength != 1:
            mean = self.atlas.means[:, material]
            texel[:3] = np.clip(mean[:3] + (texel[:3] - mean[:3]) * strength, F(0.01), 1)
            if strength < 1:
                texel[3] = mean[3] + (texel[3] - mean[3]) * strength
        base, tinted = texel[:3], texel[3]
        # Stains as large as rooms; on walls they follow the wall.
        upright = np.abs(flat[2]) < F(0.5)
        across = np.where(upright, (x * flat[1] - y * flat[0]) * F(2) + F(9) * flat[0], x)
        along = np.where(upright, z * F(1.4) + F(5) * flat[1], y)
        stain = self.atlas.clouds(across * MACRO, along * MACRO)
        shade: Array = F(1) + (F(0.11) * strength) * np.maximum(stain, F(-2.5)) * self.still[face]
        if strength > 1:  # and grain that shows from near
            grain = self.atlas.clouds(across * F(0.31), along * F(0.31))
            shade *= 1 + F(0.1) * (strength - 1) * np.clip(grain, -2.5, 2.5)
        mask, room = np.zeros(len(face), F), np.zeros(len(face), F)
        masked = np.flatnonzero(MASKED[material])
        if len(masked):
            what = material[masked]
            found = self.atlas.mask(what, tu[masked], tv[masked], level[masked])
            if strength < 1:
                found = self.atlas.mean_masks[what] * (1 - strength) + found * strength
            mask[masked] = found
        wall = np.flatnonzero(WALLS[material])
        if len(wall):  # rooms differ behind their panes
            key = np.floor(tu[wall]).astype(np.int32).view(np.uint32) * np.uint32(73856093)
            key ^= np.floor(tv[wall]).astype(np.int32).view(np.uint32) * np.uint32(19349663)
            key ^= self.surface[face[wall]].astype(np.uint32) * np.uint32(83492791)
            room[wall] = ((key * np.uint32(2654435761)) >> np.uint32(24)).astype(F) * F(1 / 256)
            shade[wall] *= 1 + mask[wall] * (room[wall] * F(1.6) - F(0.7)) * min(strength, F(1))
        if self.scene.air.wet > 0:
            shade[flat[2] > F(0.9)] *= F(1 - 0.5 * self.scene.air.wet)
        for c in range(3):
            base[c] *= (1 + tinted * (self.tint[c, face] - 1)) * shade
        if len(ground):
            low = (self.scene.ground.low - self.scene.origin[:2]).astype(F)
            white, yellow = self._paint(gx - low[0], gy - low[1], sight[:, ground], width[ground])
            plain = np.minimum(white / BARE, 1)
            cover = np.maximum(white - BARE, 0) / (1 - BARE)
            grain = base[0, ground] * F(1 / 0.135)  # the asphalt's grain shows through the paint
            worn = F(0.55) + F(0.45) * grain
            for c in range(3):
                marked = base[c, ground] * plain
                marked += (worn * PAINT[c] - marked) * cover
                base[c, ground] = marked + (worn * YELLOW[c] - marked) * yellow
        return base, mask, room

    def _paint(self, x: Array, y: Array, direction: Array, width: Array) -> tuple[Array, Array]:
        """The road's paint (P,), (P,) averaged over pixels that flat sight (3, P) stretches along the line of sight."""
        flat = np.sqrt(direction[0] * direction[0] + direction[1] * direction[1])
        stretch = width / np.maximum(np.abs(direction[2]), F(0.01))  # a pixel's length on the road
        footprint = np.maximum(width, stretch * F(1 / TAPS))
        ax, ay = (direction[i] * (stretch / np.maximum(flat, F(1e-6))) for i in range(2))
        at = (np.arange(TAPS, dtype=F)[:, None] + F(0.5)) / TAPS - F(0.5)  # (TAPS, 1)
        taps = ((x + at * ax).ravel(), (y + at * ay).ravel(), np.tile(footprint, TAPS))
        white, yellow = (layer.reshape(TAPS, -1) for layer in self.scene.ground.paint(*taps))
        return _mean(white), _mean(yellow)

    def sky(self, directions: Array) -> Array:
        """(3, P) linear light of the sky along directions (3, P): brighter to the horizon, clouds, the sun's glow."""
        air = self.scene.air
        dx, dy, dz = directions
        z = np.maximum(dz, 0)
        t = z * F(4)
        fade = 1 / (1 + t * (1 + t * (F(0.5) + t * F(1 / 6))))
        k = F(0.035) / (z + F(0.1))
        shift = self.scene.sky_shift.astype(F)
        cloud = self.atlas.clouds(dx * k + shift[0], dy * k + shift[1], smooth=True)
        cover = np.clip(cloud * F(0.55) + F(0.12), 0, 1) * np.minimum(z * F(6), 1)
        shade = 1 + F(0.07 * air.cloud) * np.clip(cloud, -2, 2) * np.minimum(z * F(4), 1)
        cover = cover * F(1 - air.cloud) + F(0.85 * air.cloud) * (1 - fade)
        glow = np.maximum(dot3(directions, self.sun), 0)
        g2 = glow * glow
        g8 = g2 * g2
        g8 *= g8
        disc = F(3.0) * (glow > F(0.9995)) if air.shadows else F(0)
        shine = (F(0.2) * g8 + disc) * F(air.glow)
        warm = self.sun_colour if air.shadows else np.array([3.0, 1.4, 0.7], F)
        out = np.empty_like(directions)
        for c in range(3):
            clear = self.zenith[c] + (self.horizon[c] - self.zenith[c]) * fade
            out[c] = (clear + (self.cloud_colour[c] - clear) * cover) * shade + warm[c] * shine
        if air.weather == "fog":
            out[:] = self.horizon[:, None] * (1 - F(0.12) * z)
        return out
