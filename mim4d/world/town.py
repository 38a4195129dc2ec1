"""What stands still: the ground, kerbs and walkways, houses, trees, lamps, signs, hedges."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np

from mim4d.world import furniture
from mim4d.world.exact import apply, atan2, hypot, norm, sincos
from mim4d.world.geometry import KERB_HEIGHT, yaw_matrix
from mim4d.world.houses import Houses, Span
from mim4d.world.lights import LAMP_HEIGHT
from mim4d.world.materials import TILE_METRES
from mim4d.world.materials import Material as M
from mim4d.world.mesh import RGB, WHITE, Builder, Mesh, colour
from mim4d.world.roads import WALKWAY, Block

LAMPS_WITHIN, TREES_WITHIN, FINE_WITHIN = 90.0, 75.0, 38.0  # metres from the ego's way
LAMPS_EVERY, LAMP_ARM = 26.0, 2.0  # metres
STRIP = 0.75  # trees, lamps and signs stand this far behind the kerb; people walk further in


def _span(a: float, b: float) -> Span:
    return (a, b) if a < b else (b, a)


def _onward(v: float, s: float) -> Span:
    """Street coordinates s along the main road."""
    return s, v


def _across(u: float, out: float, s: float) -> Span:
    """Street coordinates s along a cross street, to the side ``out`` of the main road."""
    return u, out * s


class Town(Houses):
    """Builds the still world of a scene near the ego's way."""

    def build(self) -> Mesh:
        self._ground()
        for block in self.roads.blocks:
            self._slab(block)
            self._houses(block)
            self._furniture(block)
        self._junctions()
        self._horizon()
        return self.b.mesh()

    # ---- the ground

    def _ground(self) -> None:
        x, y = self.roads.bend.origin
        r = 900.0
        tiles = 2 * r / float(TILE_METRES[M.ASPHALT])
        plane = [(x - r, y - r, 0.0), (x + r, y - r, 0.0), (x + r, y + r, 0.0), (x - r, y + r, 0.0)]
        self.b.quad(plane, M.ASPHALT, WHITE, (tiles, tiles))

    def _top(self, u: Span, v: Span, material: M, tint: RGB = WHITE, z: float = KERB_HEIGHT) -> None:
        """A level patch of street coordinates, cut along u so that it follows the bend."""
        metres = float(TILE_METRES[material])
        n = max(1, math.ceil((u[1] - u[0]) / 8.0))
        edges = np.linspace(*u, n + 1)
        for a, b in pairwise(edges):
            p = self._corners((a, b), v)
            size = ((b - a) / metres, (v[1] - v[0]) / metres)
            self.b.quad([(*q, z) for q in p], material, tint, size, (a / metres, v[0] / metres))

    def _kerb(self, a: tuple[float, float], b: tuple[float, float]) -> None:
        """The upright side of a slab; the slab lies to the left of a -> b."""
        length = hypot(b[0] - a[0], b[1] - a[1])
        n = max(1, math.ceil(length / 8.0))
        t = np.linspace(0, 1, n + 1)[:, None]
        p = self.roads.bend.point(np.asarray(a) * (1 - t) + np.asarray(b) * t)
        for i in range(n):
            corners = [(*p[i], 0.0), (*p[i + 1], 0.0), (*p[i + 1], KERB_HEIGHT), (*p[i], KERB_HEIGHT)]
            self.b.quad(corners, M.KERB, WHITE, (length / n / 2, 1))

    def _slab(self, k: Block) -> None:
        """A block's raised floor: kerb stones and walkway along the streets, the rest inside."""
        stone = 0.25
        out = 1.0 if k.v0 > 0 else -1.0
        near, far = k.near, out * max(abs(k.v0), abs(k.v1))
        self._top((k.u0, k.u1), _span(near, near + out * stone), M.KERB)
        self._top((k.u0, k.u1), _span(near + out * stone, near + out * WALKWAY), M.CONCRETE)
        inner = _span(near + out * WALKWAY, far)
        u0, u1 = k.u0, k.u1
        if k.street_before:
            u0 += WALKWAY
            self._top((k.u0, u0), inner, M.CONCRETE)
        if k.street_after:
            u1 -= WALKWAY
            self._top((u1, k.u1), inner, M.CONCRETE)
        self._top((u0, u1), inner, self.style.inner, (0.9, 0.85, 0.8))
        corners = [(k.u0, k.v0), (k.u1, k.v0), (k.u1, k.v1), (k.u0, k.v1)]
        for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
            self._kerb(a, b)

    # ---- houses

    def _gap(self, chance: float, widest: float) -> float:
        """Between two houses: none worth the name, or a passage."""
        rng = self.rng
        return float(rng.uniform(1.5, widest)) if self.style.gables or rng.random() < chance else 0.15

    def _houses(self, k: Block) -> None:
        """A row along the main road, rows along the cross streets behind it, and some taller ones over the roofs."""
        s, rng = self.style, self.rng
        out = 1.0 if k.v0 > 0 else -1.0
        near = abs(k.near) + WALKWAY
        u, stop = k.u0 + WALKWAY + 0.3, k.u1 - WALKWAY - 0.3
        while u < stop - 7:
            width, depth, back = min(rng.uniform(8, 20), stop - u), rng.uniform(9, 15), rng.uniform(*s.setback)
            if rng.random() < 0.12:
                self._park((u, u + width), near + 1, near + 14, out)
            else:
                self.house((u, u + width), _span(out * (near + back), out * (near + back + depth)))
            u += width + self._gap(0.35, 6.0)
        for street, edge, inward in ((k.street_before, k.u0, 1.0), (k.street_after, k.u1, -1.0)):
            v = near + 24.0
            while street and v < self.roads.reach - 9:
                width, depth, back = rng.uniform(8, 18), rng.uniform(9, 14), rng.uniform(*s.setback)
                width = min(width, self.roads.reach - WALKWAY - v)  # a back street may run along there
                a = edge + inward * (WALKWAY + back)
                self.house(_span(a, a + inward * depth), _span(out * v, out * (v + width)))
                v += width + self._gap(0.4, 7.0)
        for _ in range(6):
            u, v = rng.uniform(k.u0 + 28, k.u1 - 14), rng.uniform(near + 28, near + 60)
            if u + 14 < k.u1 - 28 and v + 12 < self.roads.reach:
                self.house((u, u + 14), _span(out * v, out * (v + 12)), taller=2)

    def _horizon(self) -> None:
        """A ring of tall blocks far out, so that no view ends in nothing."""
        rng, s = self.rng, self.style
        middle = self.way.mean(0)
        span = float(norm(self.way - middle).max())
        square = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
        for i in range(44):
            a = 2 * math.pi * (i + rng.uniform(-0.3, 0.3)) / 44
            d, width = span + rng.uniform(235, 300), rng.uniform(16, 34)
            turn = yaw_matrix(a + rng.uniform(-0.4, 0.4))[:2, :2]
            sin, cos = sincos(float(a))
            base = middle + d * np.array([cos, sin]) + width * apply(turn, square)
            floors = int(rng.integers(5, 13))
            tint = colour(np.array(s.tints[i % len(s.tints)]) * 0.9)
            self.b.prism(base, 0.0, floors * 3.2, s.walls[i % 3], M.GRAVEL, tint, up=floors, metres=3.0)

    # ---- what stands along the street

    def _furniture(self, k: Block) -> None:
        """Lamps at even distances along the kerbs, and trees and other things, between parked cars and people."""
        out = 1.0 if k.v0 > 0 else -1.0
        self._along(partial(_onward, k.near + out * STRIP), k.u0 + 6.0, k.u1 - 6.0, (0.0, -out))
        lo, hi = abs(k.near) + 8.0, self.roads.reach - 4.0
        for street, u, toward in (
            (k.street_before, k.u0 + STRIP, -1.0),
            (k.street_after, k.u1 - STRIP, 1.0),
        ):
            if street:
                self._along(partial(_across, u, out), lo, hi, (toward, 0.0))
        self._wires(k, out)

    def _along(self, place: Callable[[float], Span], lo: float, hi: float, road: Span) -> None:
        """Fills a kerb; place(s) gives street coordinates; ``road`` points to the street in them."""
        first = lo + float(self.rng.uniform(0, 6))
        lamps = np.arange(first, hi, LAMPS_EVERY)
        for at in lamps:
            self._lamp(*place(float(at)), road)
        stop = float(self.rng.uniform(lo + 4, max(hi - 4, lo + 5)))
        if self.rng.random() < 0.5 and hi - lo > 20:
            self._put(partial(furniture.bus_stop, self.rng), place(stop), road, 2.2)
        for at in self._stops(lo, hi):
            if np.abs(lamps - at).min(initial=9.0) > 1.5 and abs(at - stop) > 3.5:
                self._something(*place(at), road)

    def _stops(self, lo: float, hi: float) -> list[float]:
        """Places along a kerb, unevenly spaced."""
        out = []
        at = lo
        while at < hi:
            out.append(at)
            at += float(self.rng.uniform(0.25, 0.75)) / self.style.trees
        return out

    def _put(
        self,
        make: Callable[[], Mesh],
        uv: Span,
        facing: Span,
        radius: float,
        reach: float = TREES_WITHIN,
        into: Builder | None = None,
    ) -> bool:
        """Stands something on the walkway that faces along a direction of street coordinates, where there is room."""
        xy = self.roads.bend.point(np.array(uv))
        if not (self._free(xy, radius) and self._near(xy, reach)):
            return False
        yaw = float(self.roads.bend.yaw(uv[0])) + float(atan2(facing[1], facing[0]))
        (into or self.b).add(make(), yaw_matrix(yaw), (*xy, KERB_HEIGHT))
        return True

    def _something(self, u: float, v: float, road: Span) -> None:
        """A tree, mostly; else a bin, a bench, bollards, a hoarding, a cabinet, a hydrant."""
        what, side = self.rng.random(), float(self.rng.choice([-1.0, 1.0]))
        aside = (-road[1] * side, road[0] * side)
        if what < 0.62:
            self._tree(u, v)
        elif what < 0.7:
            self._put(furniture.bin_, (u, v), road, 0.5)
        elif what < 0.77:
            self._put(furniture.bench, (u, v), road, 1.0)
        elif what < 0.84:
            for i in range(4):
                self._put(furniture.bollard, (u + 1.6 * i * aside[0], v + 1.6 * i * aside[1]), road, 0.3)
        elif what < 0.91:
            self._put(partial(furniture.hoarding, self.rng), (u, v), aside, 0.8)
        elif what < 0.96:
            self._put(furniture.cabinet, (u, v), (-road[0], -road[1]), 0.7)
        else:
            self._put(furniture.hydrant, (u, v), road, 0.4)

    def _junctions(self) -> None:
        """Lights or signs at every corner, for the traffic that arrives on the near side of it."""
        hc, hm = self.roads.half_cross, self.roads.half_main
        for junction, (c, ruled) in enumerate(zip(self.roads.crossings_u, self.ruled, strict=True)):
            lights, stop = self.rng.random() < 0.65 or ruled, self.rng.random() < 0.5
            # Right-hand traffic: which way those face who arrive at the corner (east or west, north or south).
            for east, north, facing in (
                (-1, -1, (-1.0, 0.0)),
                (1, 1, (1.0, 0.0)),
                (1, -1, (0.0, -1.0)),
                (-1, 1, (0.0, 1.0)),
            ):
                uv = (c + east * (hc + 0.55), north * (hm + 0.55))
                main = facing[1] == 0.0
                if lights:
                    head = partial(furniture.traffic_light, hm - 1.5 if main else 0.0)
                    into = self.signals.setdefault(2 * junction + main, Builder(self.b.origin))
                    self._put(head, uv, facing, 0.3, LAMPS_WITHIN, into)
                elif not main:
                    sign = furniture.STOP if stop else furniture.YIELD
                    self._put(partial(furniture.road_sign, sign), uv, facing, 0.4)
                # Before the crossing, seen from the road: a speed limit or the crossing's own sign.
                far = (uv[0] + 7.5 * facing[0], uv[1] + 7.5 * facing[1])
                sign = furniture.CROSSING if not lights else furniture.LIMIT
                self._put(partial(furniture.road_sign, sign), far, facing, 0.4)

    def _wires(self, k: Block, out: float) -> None:
        """Power lines along one side of a cross street, where houses are low."""
        if not (k.street_before and self.style.floors[1] <= 4):
            return
        at = [(k.u0 + 0.5, out * v) for v in np.arange(abs(k.near) + 4.0, self.roads.reach, 26.0)]
        stands = [uv for uv in at if self._put(furniture.power_pole, uv, (0.0, 1.0), 0.4)]
        tops = [(self.roads.bend.point(np.array(uv)), float(self.roads.bend.yaw(uv[0]))) for uv in stands]
        for (a, yaw), (b, _) in pairwise(tops):
            sin, cos = sincos(yaw)
            for side in (-1.0, 1.0):
                shift = side * np.array([cos, sin])
                low = np.array([*((a + b) / 2 + shift), 7.7])
                ends = [np.array([*(p + shift), 8.3]) for p in (a, b)]
                for p, q in ((ends[0], low), (low, ends[1])):
                    self.b.limb(p, q, 0.018, 0.018, M.TYRE, sides=3)

    def _park(self, u: Span, near: float, far: float, out: float) -> None:
        v = _span(out * near, out * far)
        self._top(u, v, M.GRASS, z=KERB_HEIGHT + 0.02)
        for _ in range(int((u[1] - u[0]) * (far - near) / 40)):
            self._tree(float(self.rng.uniform(u[0] + 1, u[1] - 1)), float(self.rng.uniform(v[0] + 1, v[1] - 1)), False)
        if self.rng.random() < 0.4:
            width = u[1] - u[0] - 1.0
            tint = colour(self.rng.uniform(0.4, 1.0) * np.array([1.0, 0.95, 0.9]))
            place = (0.5 * (u[0] + u[1]), out * (near + 0.3))
            self._put(partial(furniture.fence, width, tint), place, (0.0, -out), 0.0)
            return
        hedge = self._corners((u[0] + 0.5, u[1] - 0.5), _span(out * near, out * (near + 0.7)))
        height = float(self.rng.uniform(0.8, 1.5))
        if self._near(hedge.mean(0), TREES_WITHIN):
            leaves = self.style.leaves
            self.b.prism(hedge, KERB_HEIGHT, KERB_HEIGHT + height, M.FOLIAGE, M.FOLIAGE, leaves, metres=2.5)

    def _tree(self, u: float, v: float, street: bool = True) -> None:
        rng = self.rng
        crown, yaw = float(rng.uniform(1.3, 2.3)), float(rng.uniform(0, 6.3))
        kind = int(rng.choice(4, p=self.style.forest))
        kind = 0 if kind == 3 and street else kind  # a conifer's skirt is no good beside a road
        height = (2 * crown if kind < 2 else 2.6 * crown) + float(rng.uniform(2.4, 4.0))
        tint = colour(np.array(self.style.leaves) * rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, 3), limit=2.0)
        seed = int(rng.integers(1 << 30))
        xy = self.roads.bend.point(np.array((u, v)))
        low = kind == 3
        room = self._free(xy, 1.0 if low else 0.6) and self._free(xy, 1.3 * crown, above=1.0 if low else 2.2)
        if not (room and self._near(xy, TREES_WITHIN)):
            return
        if low:
            crown = min(crown, 1.5)
        fine = self._near(xy, FINE_WITHIN)
        mesh = furniture.tree(np.random.default_rng(seed), kind, crown, height, tint, fine)
        self.b.add(mesh, yaw_matrix(yaw), (*xy, KERB_HEIGHT))

    def _lamp(self, u: float, v: float, road: Span) -> None:
        if self._put(partial(furniture.lamp_post, LAMP_ARM, LAMP_HEIGHT), (u, v), road, 0.4, LAMPS_WITHIN):
            end = self.roads.bend.point(np.array((u + LAMP_ARM * road[0], v + LAMP_ARM * road[1])))
            self.lamps.append(end)
