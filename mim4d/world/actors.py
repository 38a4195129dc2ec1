"""What is annotated: what it is, how it moves, and a placer that lets nothing touch anything else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.geometry import boxes_overlap, yaw_matrix
from mim4d.world.mesh import NOTHING, Mesh
from mim4d.world.motion import Route
from mim4d.world.roads import Roads
from mim4d.world.variants import KINDS

Array = NDArray[np.float64]

EGO_HALF = (2.4, 1.0)  # half length and half width of the ego vehicle, metres
EGO_CENTRE = 1.4  # its middle lies this far ahead of the rear axle, where the ego frame sits
STEP = 0.1  # seconds between the moments at which overlaps are checked
MARGIN = 0.35  # metres kept between any two things
NEVER_NEAR = 60.0  # what stays further than this from the ego, metres, is not worth having
LARGE, LARGE_GAP = 6.0, 6.0  # things longer than this keep this far from the ego, so as not to fill a view
MOVING = 0.5  # m/s from which a thing counts as moving, as in the statistics of the nuScenes paper
HIDING = 1.2  # metres of height from which a thing hides what is behind it from the LiDAR
SIGHT_POINTS = 32  # looked at between the LiDAR and what it is to see
STANDING = {
    "vehicle.moving": "vehicle.stopped",
    "pedestrian.moving": "pedestrian.standing",
}  # what an attribute becomes while the thing does not move


@dataclass(frozen=True)
class Actor:
    """One annotated thing. ``route`` None: it stands at ``position`` with heading ``yaw`` for the whole scene."""

    kind: str
    size: tuple[float, float, float]  # width, length, height
    mesh: Mesh  # about the centre of the box
    route: Route | None
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)  # on the ground
    yaw: float = 0.0
    attribute: str = ""  # while it moves, if it ever does

    @property
    def category(self) -> str:
        return KINDS[self.kind].category

    def attribute_at(self, t: float) -> str:
        """The attribute at the moment t: a car that waits at a light is stopped, then moving."""
        if self.route is not None and float(self.route.speed.at(t)) < MOVING:
            return STANDING.get(self.attribute, self.attribute)
        return self.attribute

    def pose(self, t: float | Array) -> tuple[Array, Array]:
        """Seconds (...) -> centre of the box (..., 3) in map coordinates and heading (...)."""
        if self.route is None:
            shape = np.shape(t)
            centre, yaw = np.broadcast_to(np.array(self.position), (*shape, 3)).copy(), np.full(shape, self.yaw)
        else:
            centre, yaw = self.route.pose(t)
        centre[..., 2] += self.size[2] / 2
        return centre, yaw

    def velocity(self, t: float) -> Array:
        """(2,) m/s at the moment t, map coordinates."""
        if self.route is None:
            return np.zeros(2)
        _, yaw = self.pose(t)
        return float(self.route.speed.at(t)) * np.array([exact.cos(float(yaw)), exact.sin(float(yaw))])

    def rotation(self, t: float) -> Array:
        return yaw_matrix(float(self.pose(t)[1]))


@dataclass(frozen=True)
class Watch:
    """Asks of a place that the ego's LiDAR, at some key frame, be this near and look at it freely."""

    near: float  # metres
    keys: Array  # (K,) seconds


class Placer:
    """Puts actors into the scene one by one and refuses those that would come too close to others at any time."""

    def __init__(self, rng: np.random.Generator, roads: Roads, ego: Route, seconds: float) -> None:
        self.rng, self.roads, self.ego, self.seconds = rng, roads, ego, seconds
        self.times = np.arange(-0.2, seconds + 0.2 + STEP, STEP)
        xyz, yaw = ego.pose(self.times)
        self.ego_xy = xyz[:, :2]
        middle = xyz[:, :2] + EGO_CENTRE * np.stack([exact.cos(yaw), exact.sin(yaw)], -1)
        # A little more room around the ego: a bumper in the lens shows nothing else.
        self._centres, self._yaws = middle[None], yaw[None]  # (A, T, 2), (A, T)
        self._halves, self._heights = np.array([EGO_HALF]) + 0.6, np.zeros(1)  # (A, 2), (A,)
        self._sights: list[tuple[int, Array]] = []  # moment and points (S, 2) that must stay free
        self.actors: list[Actor] = []

    def make(
        self,
        kind: str,
        attribute: str,
        route: Route | None,
        position: tuple[float, float, float] = (0.0, 0.0, 0.0),
        yaw: float = 0.0,
        watch: Watch | None = None,
    ) -> bool:
        """Adds the actor unless something is in its way or it never comes near. True when it was added."""
        spec, rng = KINDS[kind], self.rng
        w, l, h = (
            float(s * np.clip(1 + spec.spread * exact.normal(rng), 1 - 2 * spec.spread, 1 + 2 * spec.spread))
            for s in spec.size
        )
        bare = Actor(kind, (w, l, h), NOTHING, route, position, yaw, attribute)
        centre, heading = bare.pose(self.times)
        half = np.array([l / 2 + MARGIN, w / 2 + MARGIN])
        to_ego = centre[:, :2] - self.ego_xy
        distance = exact.norm(to_ego[:, :2])
        if distance.min() > NEVER_NEAR or (l > LARGE and distance.min() < l / 2 + LARGE_GAP):
            return False
        if self._touches(centre[:, :2], heading, half):
            return False
        if h > HIDING and any(_inside(points, centre[i, :2], heading[i], half).any() for i, points in self._sights):
            return False
        if watch is not None:
            sight = self._sight(centre, distance, watch, l / 2)
            if sight is None:
                return False
            self._sights.append(sight)
        self._centres = np.concatenate([self._centres, centre[None, :, :2]])
        self._yaws = np.concatenate([self._yaws, heading[None]])
        self._halves = np.concatenate([self._halves, half[None]])
        self._heights = np.append(self._heights, h)
        self.actors.append(replace(bare, mesh=spec.build(rng, w, l, h)))
        return True

    def _touches(self, centre: Array, heading: Array, half: Array) -> bool:
        """Whether a box (T, 2), (T,), (2,) overlaps any of those placed at any time."""
        apart = self._centres - centre
        reach = exact.norm(self._halves) + float(exact.norm(half))
        near = (exact.norm(apart) < reach[:, None]).any(1)
        return bool(
            boxes_overlap(
                centre[None], heading[None], half, self._centres[near], self._yaws[near], self._halves[near][:, None]
            ).any()
        )

    def _sight(self, centre: Array, distance: Array, watch: Watch, end: float) -> tuple[int, Array] | None:
        """The clearest moment to look at a thing from: its number and the points in between, None if there is none."""
        moments = np.round((watch.keys - self.times[0]) / STEP).astype(int)
        for i in moments[np.argsort(distance[moments], kind="stable")]:
            if distance[i] > watch.near:
                return None
            start = self.ego_xy[i]
            stop = 1.0 - min(end / max(float(distance[i]), 1e-6), 0.9)
            points = start + (centre[i, :2] - start) * np.linspace(0.0, stop, SIGHT_POINTS)[:, None]
            hiding = np.flatnonzero(self._heights > HIDING)
            if not any(_inside(points, self._centres[a, i], self._yaws[a, i], self._halves[a]).any() for a in hiding):
                return int(i), points
        return None

    def stand(
        self, kind: str, uv: tuple[float, float], turn: float, z: float, attribute: str, watch: Watch | None = None
    ) -> bool:
        """Puts a standing thing at street coordinates, ``turn`` radians from the +u direction."""
        x, y = (float(p) for p in self.roads.bend.point(np.array(uv)))
        return self.make(kind, attribute, None, (x, y, z), float(self.roads.bend.yaw(uv[0])) + turn, watch)


def _inside(points: Array, centre: Array, yaw: float, half: Array) -> NDArray[np.bool_]:
    """Which of the points (S, 2) lie in a rectangle."""
    d = points - centre
    c, s = exact.cos(yaw), exact.sin(yaw)
    return (np.abs(d[:, 0] * c + d[:, 1] * s) < half[0]) & (np.abs(d[:, 1] * c - d[:, 0] * s) < half[1])
