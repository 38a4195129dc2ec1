"""One scene: streets, town, actors, the ego's way, and the ray caster over all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim4d.errors import UserError
from mim4d.world.actors import Actor, Route, Speed, populate
from mim4d.world.geometry import rigid, street_path, yaw_matrix
from mim4d.world.ground import Ground
from mim4d.world.mesh import Mesh, join
from mim4d.world.roads import LANE, TILE_SIZE, Roads, make_roads
from mim4d.world.town import STYLES, TRAIN_STYLES, VAL_STYLES, Style, Town

Array = NDArray[np.float64]
Float32 = NDArray[np.float32]

ACTOR_RANGE = 130.0  # moving actors beyond this distance from the ego are left out of a cast, metres


@dataclass(frozen=True)
class Hits:
    """What P rays met."""

    distance: Float32  # (P,) metres along the unit direction, inf where nothing was met
    face: NDArray[np.int32]  # (P,) triangle number, -1 where nothing was met
    u: Float32  # (P,) barycentric weight of the triangle's second corner
    v: Float32  # (P,) of its third
    owner: NDArray[np.int32]  # (P,) index of the actor met, -1 for the still world and the sky
    normals: Float32  # (F, 3) of all triangles at this moment


def _caster(vertices: Float32):  # type: ignore[no-untyped-def]
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as e:
        raise UserError(f"the synthetic world needs embreex ({e}): pip install 'mim4d[world]'") from None
    scene = EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(vertices, np.float32))
    return scene


class Scene:
    """The world of one scene as a function of time (seconds from its first key frame).

    Geometry lives in map coordinates (float64); the ray caster works in float32 about ``origin``, the middle of the
    ego's way, so that millimetres survive. ``roads``, ``actors``, ``ego`` and ``style`` say what is there.
    """

    def __init__(self, *, seed: int, index: int, validation: bool, seconds: float, tile: tuple[float, float]) -> None:
        """``tile``: map coordinates of the lower left corner of the square that the scene owns."""
        rng = lambda part: np.random.default_rng([seed, index, int(validation), part])
        self.index, self.seconds = index, seconds
        names = VAL_STYLES if validation else TRAIN_STYLES
        self.style: Style = STYLES[names[(seed + index) % len(names)]]
        self.ego, self.roads = self._plan(rng(0), (tile[0] + TILE_SIZE / 2, tile[1] + TILE_SIZE / 2), seconds)
        self.actors: list[Actor] = populate(rng(1), self.roads, self.ego, seconds)
        way = self.ego.pose(np.linspace(-0.1, seconds + 0.1, 64))[0][:, :2]  # (64, 2)
        self.origin = np.array([*way.mean(0), 0.0])
        standing = [a for a in self.actors if a.route is None]
        occupied = np.array([(*a.position[:2], math.hypot(a.size[0], a.size[1]) / 2) for a in standing]).reshape(-1, 3)
        town = Town(rng(2), self.roads, self.style, way, occupied).build()
        still = [town] + [self._placed(i, 0.0) for i, a in enumerate(self.actors) if a.route is None]
        self._moving = [i for i, a in enumerate(self.actors) if a.route is not None]
        shift = lambda m: m.moved(np.eye(3), -self.origin)
        self._still = shift(join(still))
        self._mesh = join([self._still] + [self.actors[i].mesh.moved(np.eye(3), (0, 0, 0), i) for i in self._moving])
        self._still_normals = self._still.normals
        self._moving_normals = [self.actors[i].mesh.normals for i in self._moving]
        self._static = _caster(self._still.vertices)
        self._at: float | None = None
        margin = 60.0
        self.ground = Ground(self.roads, tuple(way.min(0) - margin), tuple(way.max(0) + margin))
        r = rng(3)
        azimuth, height = r.uniform(-math.pi, math.pi), math.radians(r.uniform(32, 58))
        self.sun = np.array(
            [math.cos(height) * math.cos(azimuth), math.cos(height) * math.sin(azimuth), math.sin(height)]
        )
        self.haze = float(r.uniform(350, 700))
        self.warmth = float(r.uniform(0.0, 1.0))
        self.sky_shift = r.uniform(0, 1, 2)

    @property
    def mesh(self) -> Mesh:
        """All triangles, still ones first. The looks are right at any time; moving vertices are about their own centres."""
        return self._mesh

    @staticmethod
    def _plan(rng: np.random.Generator, centre: tuple[float, float], seconds: float) -> tuple[Route, Roads]:
        """Chooses streets and a way through them: along the bend, or around a corner to the left or to the right."""
        plan = ("bend", "right", "left")[int(rng.integers(3))]
        each_way = 1 + int(rng.random() < 0.4)
        if plan == "bend":
            curvature = float(rng.choice([-1, 1]) * rng.uniform(1 / 260, 1 / 170))
            reach, v0, swing = 85.0, rng.uniform(6.0, 8.5), rng.uniform(0.8, 1.8)
        else:
            curvature = float(rng.choice([-1, 1]) * rng.uniform(1 / 1500, 1 / 700))
            reach, v0, swing = 150.0, rng.uniform(4.5, 5.8), rng.uniform(0.4, 0.9)
        first = float(rng.uniform(-12, 12))
        crossings = sorted([first, first + float(rng.uniform(70, 95)), first - float(rng.uniform(70, 95))])
        roads = make_roads(
            rng, centre, curvature=curvature, lanes_each_way=each_way, reach=reach, crossings_u=crossings
        )
        speed = Speed(float(v0), float(rng.choice([-1, 1]) * swing), float(rng.uniform(0.7, 1.2)))
        travelled = float(speed.length(seconds))
        if plan == "bend":
            path = street_path(roads.bend, [(-160.0, roads.lane_v(0)), (160.0, roads.lane_v(0))])
            middle = path.length / 2 + rng.uniform(-25, 25)
            s0 = float(np.clip(middle - travelled / 2, 5.0, path.length - travelled - 5.0))
            return Route(path, s0, speed), roads
        # The corner lies where the first half of the way ends, but no further than two seconds in.
        right = plan == "right"
        lane = roads.lane_v(each_way - 1 if right else 0)
        radius = 8.0 if right else 11.0
        turn_u = first - LANE / 2 if right else first + LANE / 2
        end = -140.0 if right else 140.0
        path = street_path(roads.bend, [(-160.0, lane), (turn_u, lane), (turn_u, end)], radius)
        before = turn_u + 160.0 - radius
        s0 = max(5.0, before - min(travelled * 0.4, 2.0 * v0))
        return Route(path, float(s0), speed), roads

    def _placed(self, i: int, t: float) -> Mesh:
        actor = self.actors[i]
        return actor.mesh.moved(actor.rotation(t), actor.pose(t)[0], i)

    def ego_pose(self, t: float) -> Array:
        """(4, 4) ``global_from_ego`` at the moment t."""
        xyz, yaw = self.ego.pose(t)
        return rigid(yaw_matrix(yaw), xyz)

    def _freeze(self, t: float) -> None:
        """Puts the moving actors where they are at the moment t."""
        if self._at == t:
            return
        vertices, normals = [], [self._still_normals]
        here = self.ego.pose(t)[0]
        for k, i in enumerate(self._moving):
            actor = self.actors[i]
            centre, yaw = actor.pose(t)
            rotation = yaw_matrix(yaw).astype(np.float32)
            near = np.hypot(*(centre - here)[:2]) < ACTOR_RANGE
            local = (centre - self.origin).astype(np.float32) if near else np.float32([0, 0, -1e4])
            vertices.append(actor.mesh.vertices @ rotation.T + local)
            normals.append(self._moving_normals[k] @ rotation.T)
        self._normals = np.concatenate(normals)
        self._dynamic = _caster(np.concatenate(vertices)) if vertices else None
        self._at = t

    def cast(self, t: float, origins: Array, directions: Float32) -> Hits:
        """Nearest hit of rays at the moment t.

        origins (3,) or (P, 3) in map coordinates, directions (P, 3) unit vectors.
        """
        self._freeze(t)
        d = np.ascontiguousarray(directions, np.float32)
        o = np.ascontiguousarray(
            np.broadcast_to((np.asarray(origins, np.float64) - self.origin).astype(np.float32), d.shape)
        )
        far = self._static.run(o, d, output=1)
        distance, face, u, v = far["tfar"], far["primID"].astype(np.int32), far["u"], far["v"]
        if self._dynamic is not None:
            near = self._dynamic.run(o, d, output=1)
            closer = (near["primID"] >= 0) & ((near["tfar"] < distance) | (face < 0))
            distance = np.where(closer, near["tfar"], distance)
            face = np.where(closer, near["primID"].astype(np.int32) + len(self._still), face)
            u, v = np.where(closer, near["u"], u), np.where(closer, near["v"], v)
        distance = np.where(face >= 0, distance, np.float32(np.inf))
        owner = np.where(face >= 0, self._mesh.owner[face], -1)
        return Hits(distance, face, u, v, owner, self._normals)

    def lit(self, t: float, points: Float32) -> NDArray[np.bool_]:
        """Whether the sun reaches points (P, 3) given relative to ``origin`` at the moment t."""
        self._freeze(t)
        p = np.ascontiguousarray(points, np.float32)
        d = np.ascontiguousarray(np.broadcast_to(self.sun.astype(np.float32), p.shape))
        free = self._static.run(p, d, query="OCCLUDED") < 0
        if self._dynamic is not None:
            free &= self._dynamic.run(p, d, query="OCCLUDED") < 0
        return free
