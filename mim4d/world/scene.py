"""One scene: streets, town, actors, the ego's way, and the ray caster over all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim4d.errors import UserError
from mim4d.world.actors import EGO_CENTRE, EGO_HALF, Actor
from mim4d.world.coverage import missing
from mim4d.world.geometry import rigid, yaw_matrix
from mim4d.world.ground import Ground
from mim4d.world.knobs import STANDARD, Knobs
from mim4d.world.mesh import NOTHING, Mesh, join
from mim4d.world.motion import PULL, Route, ease, wander
from mim4d.world.roads import TILE_SIZE, Roads, make_roads
from mim4d.world.streets import EAST, Streets
from mim4d.world.styles import TRAIN_STYLES, VAL_STYLES, Style
from mim4d.world.town import Town
from mim4d.world.traffic import Traffic

Array = NDArray[np.float64]
Float32 = NDArray[np.float32]

PLANS = ("bend", "bend", "right", "left")  # what the ego does in one scene after another
PAINT_WITHIN = 60.0  # road markings are drawn this far from the ego's way, metres
ATTEMPTS = 16  # to find room for every class in the LiDAR's sight
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


def _caster(vertices: Float32) -> Any:
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as e:
        raise UserError(f"the synthetic world needs embreex ({e}): pip install 'mim4d[world]'") from None
    scene = EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(vertices, np.float32))
    return scene


@dataclass(frozen=True)
class View:
    """What a camera can look at: a cone about ``axis`` (2,) from ``place`` (2,), seen from above, map coordinates."""

    place: Array
    axis: Array
    half_angle: float  # radians

    def meets(self, centre: Array, radius: Array) -> NDArray[np.bool_]:
        """Which of the discs (A, 2), (A,) reach into the cone."""
        to = centre - self.place
        distance = np.hypot(to[:, 0], to[:, 1])
        off = np.arccos(np.clip(to @ self.axis / np.maximum(distance, 1e-9), -1.0, 1.0))
        return (distance < radius) | (
            off < self.half_angle + np.arcsin(np.clip(radius / np.maximum(distance, 1e-9), 0.0, 1.0))
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
        self.index, self.seconds, self.knobs = index, seconds, knobs
        styles = VAL_STYLES if validation else TRAIN_STYLES
        self.style: Style = styles[(seed + index) % len(styles)]
        middle = (tile[0] + TILE_SIZE / 2, tile[1] + TILE_SIZE / 2)
        self.ego, self.roads = self._plan(rng(0), PLANS[(seed + index) % len(PLANS)], middle, seconds)
        way = self.ego.pose(np.linspace(-0.1, seconds + 0.1, 64))[0][:, :2]  # (64, 2)
        self.origin = np.array([*way.mean(0), 0.0])
        for attempt in range(ATTEMPTS):
            self._fill(rng(1, attempt), rng(2), way, 1.0 + 0.5 * attempt / ATTEMPTS)
            lacking = missing(self)
            if not lacking:
                break
        else:
            raise UserError(f"seed {seed}: scene {index} has no room for {', '.join(lacking)}; choose another seed")
        self.ground = Ground(self.roads, tuple(way.min(0) - PAINT_WITHIN), tuple(way.max(0) + PAINT_WITHIN))
        self._weather(rng(3))

    def _fill(self, rng: np.random.Generator, town_rng: np.random.Generator, way: Array, reach: float) -> None:
        """Actors, the town around those that stand, and the ray caster over both."""
        traffic = Traffic(rng, self.roads, self.ego, self.seconds, reach)
        self.actors: list[Actor] = traffic.fill(self.knobs.traffic)
        self.lights = traffic.lights  # of the junctions, in the order of roads.crossings_u
        standing = [a for a in self.actors if a.route is None]
        footprints = [(*a.position[:2], math.hypot(a.size[0], a.size[1]) / 2, a.size[2]) for a in standing]
        town = Town(town_rng, self.roads, self.style, way, np.array(footprints).reshape(-1, 4), self.origin).build()
        self.still = join([town] + [self._placed(i) for i, a in enumerate(self.actors) if a.route is None])
        self.moving = [i for i, a in enumerate(self.actors) if a.route is not None]
        # Moving actors, each about its own centre and heading along x.
        self.rest = join([NOTHING] + [self.actors[i].mesh.moved(np.eye(3), (0, 0, 0), i) for i in self.moving])
        self.rest_actor = np.repeat(np.arange(len(self.moving)), [len(self.actors[i].mesh) for i in self.moving])
        self.mesh = join([self.still, self.rest])  # all triangles; the looks of a face never change
        self.rest_normals = self.mesh.normals
        self.static = _caster(self.still.vertices)
        size = np.array([self.actors[i].size for i in self.moving]).reshape(-1, 3)
        self.radius = (np.linalg.norm(size, axis=1) / 2 + 0.2).astype(np.float32)  # of balls around moving actors

    def _weather(self, rng: np.random.Generator) -> None:
        # The sun looks along the street more than across it: otherwise the houses would put all of it in the shade.
        across, side = rng.uniform(0.25, 0.9), rng.integers(4)
        azimuth = self.roads.bend.heading + (across if side % 2 else -across) + (math.pi if side > 1 else 0.0)
        height = math.radians(rng.uniform(36, 60))
        flat = math.cos(height)
        self.sun = np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(height)])  # unit, towards it
        _, _, axes = np.linalg.svd(self.sun[None])
        self.sun_plane = axes[1:].T.astype(np.float32)  # (3, 2) two axes across the sunlight
        size = np.array([self.actors[i].size for i in self.moving]).reshape(-1, 3)
        # From the middle of a moving actor to the end of its box or of its shadow, seen from above.
        self.shadow_reach = np.hypot(size[:, 0], size[:, 1]) / 2 + size[:, 2] / math.tan(height)
        self.haze = float(rng.uniform(350, 700))  # metres over which the air takes away all but 1/e
        self.warmth = float(rng.uniform(0.0, 1.0))  # of the sunlight
        self.sky_shift = rng.uniform(0, 1, 2)  # of the clouds

    @staticmethod
    def _plan(rng: np.random.Generator, plan: str, centre: tuple[float, float], seconds: float) -> tuple[Route, Roads]:
        """Streets and a way through them: along the bend, or around a corner to the left or to the right."""
        each_way = 1 + int(rng.random() < 0.4)
        if plan == "bend":
            curvature = float(rng.choice([-1, 1]) * rng.uniform(1 / 260, 1 / 170))
            reach = 85.0
        else:
            curvature = float(rng.choice([-1, 1]) * rng.uniform(1 / 1500, 1 / 700))
            reach = 150.0
        first = float(rng.uniform(-12, 12))
        crossings = sorted([first, first + float(rng.uniform(70, 95)), first - float(rng.uniform(70, 95))])
        roads = make_roads(
            rng, centre, curvature=curvature, lanes_each_way=each_way, reach=reach, crossings_u=crossings
        )
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
    """A scene at one moment. ``t`` seconds; ``normals`` (F, 3) of all triangles, unit, outward."""

    def __init__(self, scene: Scene, t: float, view: View | None) -> None:
        self.scene, self.t = scene, t
        here = scene.ego.pose(t)[0]
        poses = [scene.actors[i].pose(t) for i in scene.moving]
        centre = np.array([c for c, _ in poses]).reshape(-1, 3)
        yaw = np.array([y for _, y in poses], np.float64)
        present = np.hypot(*(centre - here)[:, :2].T) < ACTOR_RANGE
        if view is not None:
            present &= view.meets(centre[:, :2], scene.shadow_reach)
        self._faces = np.flatnonzero(present[scene.rest_actor]).astype(np.int32)  # of the moving triangles
        actor = scene.rest_actor[self._faces]
        cos, sin = np.cos(yaw).astype(np.float32)[actor], np.sin(yaw).astype(np.float32)[actor]
        place = (centre - scene.origin).astype(np.float32)[actor, None]  # (F', 1, 3)
        vertices = _turn(scene.rest.vertices[self._faces], cos[:, None], sin[:, None]) + place
        self._dynamic = _caster(vertices) if len(vertices) else None
        # A ball around every actor that is present: most rays pass all of them by and need no second cast.
        self._middle = (centre - scene.origin).astype(np.float32)[present]  # (A, 3)
        self._radius = scene.radius[present]  # (A,)
        self.normals = scene.rest_normals.copy()
        self.normals[len(scene.still) + self._faces] = _turn(
            scene.rest_normals[len(scene.still) + self._faces], cos, sin
        )

    def cast(self, origins: Array, directions: Float32) -> Hits:
        """Nearest hits of rays from origins (3,) or (P, 3), map coordinates, along unit directions (P, 3)."""
        scene = self.scene
        d = np.ascontiguousarray(directions, np.float32)
        start = (np.asarray(origins, np.float64) - scene.origin).astype(np.float32)
        o = np.ascontiguousarray(np.broadcast_to(start, d.shape))
        hit = scene.static.run(o, d, output=1)
        distance, face, u, v = hit["tfar"], hit["primID"].astype(np.int32), hit["u"], hit["v"]
        if self._dynamic is not None:
            near = self._toward_actors(start, d) if start.ndim == 1 else np.arange(len(d))
            hit = self._dynamic.run(o[near], d[near], output=1)
            prim, reach = hit["primID"], hit["tfar"]
            closer = (prim >= 0) & ((reach < distance[near]) | (face[near] < 0))
            at = near[closer]
            distance[at], u[at], v[at] = reach[closer], hit["u"][closer], hit["v"][closer]
            face[at] = len(scene.still) + self._faces[prim[closer]]
        missed = face < 0
        distance[missed] = np.inf
        owner = scene.mesh.owner[face]
        owner[missed] = -1
        return Hits(distance, face, u, v, owner)

    def lit(self, points: Float32) -> NDArray[np.bool_]:
        """Whether the sun reaches points (P, 3) given relative to the scene's ``origin``."""
        p = np.ascontiguousarray(points, np.float32)
        d = np.ascontiguousarray(np.broadcast_to(self.scene.sun.astype(np.float32), p.shape))
        free = self.scene.static.run(p, d, query="OCCLUDED") < 0
        if self._dynamic is not None:
            near = self._behind_actors(p)
            free[near] &= self._dynamic.run(p[near], d[near], query="OCCLUDED") < 0
        return free

    def _toward_actors(self, start: Float32, directions: Float32) -> NDArray[np.intp]:
        """Which of the rays (P, 3) from one place meet a ball."""
        to = self._middle - start
        distance = np.maximum(np.linalg.norm(to, axis=1), 1e-6)
        sine = np.minimum(self._radius / distance, 1.0)
        cosine = np.where(distance > self._radius, np.sqrt(1.0 - sine**2), -1.0).astype(np.float32)
        return np.flatnonzero(((to / distance[:, None]) @ directions.T > cosine[:, None]).any(0))

    def _behind_actors(self, points: Float32) -> NDArray[np.intp]:
        """Which points (P, 3) see the sun through a ball: |q - c| < r in the plane that the sun looks down on."""
        q, c = points @ self.scene.sun_plane, self._middle @ self.scene.sun_plane  # (P, 2), (A, 2)
        bound = (c**2).sum(1) - self._radius**2  # (A,)
        return np.flatnonzero((2.0 * c @ q.T - bound[:, None] > (q**2).sum(1)).any(0))


def _turn(v: Float32, cos: Float32, sin: Float32) -> Float32:
    """Turns vectors (..., 3) about z by the angles of the given cosines and sines (...)."""
    out = np.empty_like(v)
    out[..., 0] = v[..., 0] * cos - v[..., 1] * sin
    out[..., 1] = v[..., 0] * sin + v[..., 1] * cos
    out[..., 2] = v[..., 2]
    return out
