"""One scene: streets, town, actors, the ego's way, and the ray caster over all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim4d.errors import UserError
from mim4d.world import exact
from mim4d.world.actors import EGO_CENTRE, EGO_HALF, Actor
from mim4d.world.air import Air, draw, make_air
from mim4d.world.caster import make_caster
from mim4d.world.contact import Contact
from mim4d.world.coverage import ENOUGH, missing
from mim4d.world.geometry import rigid, yaw_matrix
from mim4d.world.ground import Ground
from mim4d.world.knobs import STANDARD, Knobs
from mim4d.world.layouts import lay_out
from mim4d.world.lights import LampLight
from mim4d.world.markings import mark
from mim4d.world.mesh import NOTHING, Mesh, join
from mim4d.world.motion import PULL, Route, ease, wander
from mim4d.world.roads import TILE_SIZE, Roads
from mim4d.world.streets import EAST, Streets
from mim4d.world.styles import TRAIN_STYLES, VAL_STYLES, Style
from mim4d.world.town import Town
from mim4d.world.traffic import Traffic

Array = NDArray[np.float64]
Float32 = NDArray[np.float32]

PLANS = ("bend", "bend", "right", "left")  # what the ego does in one scene after another
PAINT_WITHIN = 60.0  # road markings are drawn this far from the ego's way, metres
ATTEMPTS = 48  # to find room for every class in the LiDAR's sight
WAITS_FROM, WAITS = 10.0, 0.5  # scenes this long (seconds) let the ego wait at a light, with this chance
ACTOR_RANGE = 130.0  # moving actors beyond this distance from the ego are left out of a cast, metres


@dataclass(frozen=True)
class Hits:
    """What P rays met."""

    distance: Float32  # (P,) metres along the unit direction, inf where nothing was met
    face: NDArray[np.int32]  # (P,) triangle number, -1 where nothing was met
    u: Float32  # (P,) barycentric weight of the triangle's second corner
    v: Float32  # (P,) of its third
    owner: NDArray[np.int32]  # (P,) index of the actor met, -1 for the still world and the sky


@dataclass(frozen=True)
class View:
    """What a camera can look at: a cone about ``axis`` (2,) from ``place`` (2,), seen from above, map coordinates."""

    place: Array
    axis: Array
    half_angle: float  # radians

    def meets(self, centre: Array, radius: Array) -> NDArray[np.bool_]:
        """Which of the discs (A, 2), (A,) reach into the cone."""
        to = centre - self.place
        distance = exact.norm(to)
        off = exact.acos(np.clip(exact.dot(to, self.axis) / np.maximum(distance, 1e-9), -1.0, 1.0))
        return (distance < radius) | (
            off < self.half_angle + exact.asin(np.clip(radius / np.maximum(distance, 1e-9), 0.0, 1.0))
        )


class Scene:
    """The world of one scene as a function of time (seconds from its first key frame).

    Geometry lives in map coordinates (float64); the ray caster works in float32 about ``origin``, the middle of the
    ego's way, so that millimetres survive. ``roads``, ``actors``, ``ego`` and ``style`` say what is there.
    """

    def __init__(
        self,
        *,
        seed: int,
        index: int,
        validation: bool,
        seconds: float,
        tile: tuple[float, float],
        knobs: Knobs = STANDARD,
    ) -> None:
        """``tile``: map coordinates of the lower left corner of the square that the scene owns."""
        rng = lambda *part: np.random.default_rng([seed, index, int(validation), *part])
        self.seed, self.index, self.validation, self.seconds, self.knobs = seed, index, validation, seconds, knobs
        styles = VAL_STYLES if validation else TRAIN_STYLES
        self.style: Style = styles[(seed + index) % len(styles)]
        self.ego, self.roads = self.streets(seed=seed, index=index, validation=validation, seconds=seconds, tile=tile)
        mark(rng(4), self.roads)
        sky = rng(3)
        # "mixed": the first town of every map has a clear day, so that the smallest worlds are easy to look at.
        weather, light = draw(sky, knobs.weather, knobs.light, plain=tile == (0.0, 0.0))
        self.air: Air = make_air(sky, weather, light, self.roads.bend.heading)
        self.sun = self.air.sun  # (3,) unit, towards it
        self.sky_shift = sky.uniform(0, 1, 2)  # of the clouds
        way = self.ego.pose(np.linspace(-0.1, seconds + 0.1, 64))[0][:, :2]  # (64, 2)
        self.origin = np.array([*way.mean(0), 0.0])
        for attempt in range(ATTEMPTS):
            tried = attempt / ATTEMPTS
            # Further away there is more room, nearer by fewer echoes are lost: try either.
            town = self._fill(rng(1, attempt), rng(2), way, 1.0 - 0.3 * tried if attempt % 2 else 1.0 + 0.5 * tried)
            lacking = missing(self, ENOUGH * (1.0 - 0.5 * tried))
            if not lacking:
                break
        else:
            raise UserError(f"seed {seed}: scene {index} has no room for {', '.join(lacking)}; choose another seed")
        corner, far = way.min(0) - PAINT_WITHIN, way.max(0) + PAINT_WITHIN
        self.ground = Ground(self.roads, (corner[0], corner[1]), (far[0], far[1]))
        # Relative to the origin, as the triangles are.
        here = self.origin[:2]
        things = [_outline(a) - here for a in self.actors if a.route is None]
        self.contact = Contact(corner - here, far - here, [f - here for f in town.feet], things)
        self.lamp_light = LampLight(np.array(town.lamps).reshape(-1, 2) - here, corner - here, far - here)

    def _fill(self, rng: np.random.Generator, town_rng: np.random.Generator, way: Array, reach: float) -> Town:
        """Actors, the town around those that stand, and the ray caster over both."""
        traffic = Traffic(rng, self.roads, self.ego, self.seconds, reach)
        self.actors: list[Actor] = traffic.fill(self.knobs.traffic)
        self.lights = traffic.lights  # of the junctions, in the order of roads.crossings_u
        standing = [a for a in self.actors if a.route is None]
        footprints = [(*a.position[:2], exact.hypot(a.size[0], a.size[1]) / 2, a.size[2]) for a in standing]
        occupied, ruled = np.array(footprints).reshape(-1, 4), [light.rules for light in self.lights]
        town = Town(town_rng, self.roads, self.style, way, occupied, self.origin, ruled)
        parts = [town.build(), *(head.mesh() for head in town.signals.values())]
        self.still = join(parts + [self._placed(i) for i, a in enumerate(self.actors) if a.route is None])
        self.moving = [i for i, a in enumerate(self.actors) if a.route is not None]
        # Moving actors, each about its own centre and heading along x.
        self.rest = join([NOTHING] + [self.actors[i].mesh.moved(np.eye(3), (0, 0, 0), i) for i in self.moving])
        self.rest_actor = np.repeat(np.arange(len(self.moving)), [len(self.actors[i].mesh) for i in self.moving])
        self.mesh = join([self.still, self.rest])  # all triangles; the looks of a face never change
        self.rest_normals = self.mesh.normals
        # (F,) whose signal a face shows: 2 * junction, 1 more for the main road's; -1 for what is no traffic light.
        self.signal = np.full(len(self.mesh), -1, np.int32)
        whose = np.repeat([-1, *town.signals], [len(part) for part in parts])
        self.signal[: len(whose)] = whose
        self.static = make_caster(self.still.vertices)
        size = np.array([self.actors[i].size for i in self.moving]).reshape(-1, 3)
        # From the middle of a moving actor to the end of its box or of its shadow, seen from above.
        flat = math.sqrt(self.sun[0] * self.sun[0] + self.sun[1] * self.sun[1])
        shadow = size[:, 2] * (flat / self.sun[2] if self.air.shadows else 0.0)
        self.shadow_reach = exact.hypot(size[:, 0], size[:, 1]) / 2 + shadow
        return town

    @classmethod
    def streets(
        cls, *, seed: int, index: int, validation: bool, seconds: float, tile: tuple[float, float]
    ) -> tuple[Route, Roads]:
        """The ego's way and the streets of the scene of these arguments, without the rest of it."""
        middle = (tile[0] + TILE_SIZE / 2, tile[1] + TILE_SIZE / 2)
        rng = np.random.default_rng([seed, index, int(validation), 0])
        return cls._plan(rng, PLANS[(seed + index) % len(PLANS)], middle, seconds)

    @staticmethod
    def _plan(rng: np.random.Generator, plan: str, centre: tuple[float, float], seconds: float) -> tuple[Route, Roads]:
        """Streets and a way through them: along the bend, or around a corner to the left or to the right."""
        roads = lay_out(rng, plan, centre)
        way = Streets(roads).straight(EAST, 1, 0) if plan == "bend" else Streets(roads).turn(EAST, 1, plan)
        v0, v1 = float(rng.uniform(5.5, 8.0)), float(rng.uniform(4.5, 6.5))
        waits = seconds >= WAITS_FROM and rng.random() < WAITS
        halt = float(rng.uniform(0.2, 0.4)) * seconds
        go = halt + float(rng.uniform(2.0, 5.0))
        line = dict(way.stops)[1] - EGO_CENTRE - EGO_HALF[0]  # where the ego waits
        steps = [(halt, 0.0), (go, 0.0)] if waits else []
        if way.arc is None:
            speed = ease(v0, *steps, (go + v0 / PULL, v0)) if waits else wander(rng, v0, 1.2, seconds)
            travelled = float(speed.length(seconds))
            free = way.path.length / 2 + rng.uniform(-25, 25) - travelled / 2
            s0 = line - float(speed.length(halt)) if waits else free
            return Route(way.path, float(np.clip(s0, 15.0, way.path.length - travelled - 15.0)), speed), roads
        slow, arc = way.turning_speed * float(rng.uniform(0.85, 1.0)), way.arc[1] - way.arc[0]
        begin = min(0.25 * seconds, float(rng.uniform(2.0, 5.0)))
        if waits:
            steps.append((go + slow / PULL, slow))
            begin = go + slow / PULL / 2 + (way.arc[0] - line) / slow
        else:
            steps.append((begin, slow))
        end = begin + arc / slow
        speed = ease(v0, *steps, (end, slow), (end + abs(v1 - slow) / PULL, v1))
        s0 = line - float(speed.length(halt)) if waits else way.arc[0] - float(speed.length(begin))
        return Route(way.path, s0, speed), roads

    def _placed(self, i: int) -> Mesh:
        actor = self.actors[i]
        return actor.mesh.moved(actor.rotation(0.0), actor.pose(0.0)[0] - self.origin, i)

    def ego_pose(self, t: float) -> Array:
        """(4, 4) ``global_from_ego`` at the moment t."""
        xyz, yaw = self.ego.pose(t)
        return rigid(yaw_matrix(float(yaw)), xyz)

    def at(self, t: float, view: View | None = None) -> Moment:
        """The scene at the moment t, ready for rays. With ``view`` only the actors that it can see or that can throw a
        shadow into it are there: rays that leave the view may miss others.
        """
        return Moment(self, t, view)


class Moment:
    """A scene at one moment. ``t`` seconds; ``normals`` (F, 3) of all triangles, unit, outward; ``green`` by the
    numbers of ``Scene.signal``.
    """

    def __init__(self, scene: Scene, t: float, view: View | None) -> None:
        self.scene, self.t = scene, t
        here = scene.ego.pose(t)[0]
        poses = [scene.actors[i].pose(t) for i in scene.moving]
        centre = np.array([c for c, _ in poses]).reshape(-1, 3)
        yaw = np.array([y for _, y in poses], np.float64)
        self.centre, self.yaw = centre, yaw  # (A, 3) map coordinates, (A,) of the moving actors
        present = exact.norm((centre - here)[:, :2]) < ACTOR_RANGE
        if view is not None:
            present &= view.meets(centre[:, :2], scene.shadow_reach)
        self.present = present  # (A,) which of them are there
        self._faces = np.flatnonzero(present[scene.rest_actor]).astype(np.int32)  # of the moving triangles
        actor = scene.rest_actor[self._faces]
        sin, cos = (x.astype(np.float32)[actor] for x in exact.sincos(yaw))
        place = (centre - scene.origin).astype(np.float32)[actor, None]  # (F', 1, 3)
        vertices = _turn(scene.rest.vertices[self._faces], cos[:, None], sin[:, None]) + place
        self._dynamic = make_caster(vertices) if len(vertices) else None
        # What the signals show; the last stands for what is none.
        green = [light.green(main, t) for light in scene.lights for main in (False, True)]
        self.green = np.array([*green, True])
        # Cosine and sine of every actor's heading, by its index; the last row is for the still world (-1).
        self.turn = np.zeros((len(scene.actors) + 1, 2), np.float32)
        self.turn[:, 0] = 1.0
        self.turn[scene.moving] = np.stack(exact.sincos(yaw)[::-1], 1)
        self.normals = scene.rest_normals.copy()
        self.normals[len(scene.still) + self._faces] = _turn(
            scene.rest_normals[len(scene.still) + self._faces], cos, sin
        )

    def cast(self, origins: Array, directions: Float32) -> Hits:
        """Nearest hits of rays from origins (3,) or (P, 3), map coordinates, along unit directions (P, 3)."""
        scene = self.scene
        d = np.ascontiguousarray(directions, np.float32)
        start = (np.asarray(origins, np.float64) - scene.origin).astype(np.float32)
        distance, face = np.full(len(d), np.inf, np.float32), np.full(len(d), -1, np.int32)
        u, v = np.zeros(len(d), np.float32), np.zeros(len(d), np.float32)
        scene.static.nearest(start, d, distance, face, u, v)
        if self._dynamic is not None:
            moving = np.full(len(d), -1, np.int32)
            self._dynamic.nearest(start, d, distance, moving, u, v)
            at = np.flatnonzero(moving >= 0)
            face[at] = len(scene.still) + self._faces[moving[at]]
        owner = scene.mesh.owner[face]
        owner[face < 0] = -1
        return Hits(distance, face, u, v, owner)

    def lit(self, points: Float32) -> NDArray[np.bool_]:
        """Whether the sun reaches points (P, 3) given relative to the scene's ``origin``."""
        sun = self.scene.sun.astype(np.float32)
        free = ~self.scene.static.blocked(points, sun)
        if self._dynamic is not None:
            at = np.flatnonzero(free)
            free[at] = ~self._dynamic.blocked(points[at], sun)
        return free


def _outline(actor: Actor) -> Array:
    """(4, 2) corners of a standing actor's box on the ground, map coordinates."""
    centre, yaw = actor.pose(0.0)
    half = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * (actor.size[1] / 2, actor.size[0] / 2)
    return exact.apply(yaw_matrix(float(yaw))[:2, :2], half) + centre[:2]


def _turn(v: Float32, cos: Float32, sin: Float32) -> Float32:
    """Turns vectors (..., 3) about z by the angles of the given cosines and sines (...)."""
    out = np.empty_like(v)
    out[..., 0] = v[..., 0] * cos - v[..., 1] * sin
    out[..., 1] = v[..., 0] * sin + v[..., 1] * cos
    out[..., 2] = v[..., 2]
    return out
