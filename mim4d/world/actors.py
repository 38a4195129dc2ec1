"""Everything that is annotated: what it is, how it moves, and where it may stand without touching anything else."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.geometry import KERB_HEIGHT, Path, boxes_overlap, street_path, yaw_matrix
from mim4d.world.mesh import NOTHING, Mesh
from mim4d.world.models import KINDS
from mim4d.world.roads import LANE, PARKING, WALKWAY, Roads

Array = NDArray[np.float64]

EGO_HALF = (2.4, 1.0)  # half length and half width of the ego vehicle, metres
EGO_CENTRE = 1.4  # its middle lies this far ahead of the rear axle, where the ego frame sits
STEP = 0.1  # seconds between the moments at which overlaps are checked
MARGIN = 0.35  # metres kept between any two things
TRIES = 20  # places tried per thing wanted
NEVER_NEAR = 75.0  # what stays further than this from the ego, metres, is not worth having
LARGE, LARGE_GAP = 6.0, 6.0  # things longer than this keep this far from the ego, so as not to fill a view


@dataclass(frozen=True)
class Speed:
    """Length travelled as a function of time: v0 t + a swing of the speed by +-swing with angular frequency omega."""

    v0: float  # m/s at t = 0
    swing: float = 0.0
    omega: float = 1.0

    def length(self, t: float | Array) -> float | Array:
        return self.v0 * t + self.swing / self.omega * (1.0 - exact.cos(self.omega * t))

    def at(self, t: float | Array) -> float | Array:
        return self.v0 + self.swing * exact.sin(self.omega * t)


@dataclass(frozen=True)
class Route:
    """A path driven from length ``s0`` on."""

    path: Path
    s0: float
    speed: Speed

    def pose(self, t: float | Array) -> tuple[Array, Array]:
        """Seconds (...) -> position on the ground (..., 3) and heading (...)."""
        return self.path.at(self.s0 + self.speed.length(t))


@dataclass(frozen=True)
class Actor:
    """One annotated thing. ``route`` None: it stands at ``position`` with heading ``yaw`` for the whole scene."""

    kind: str
    size: tuple[float, float, float]  # width, length, height
    mesh: Mesh  # about the centre of the box
    route: Route | None
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)  # on the ground
    yaw: float = 0.0
    attribute: str = ""

    @property
    def category(self) -> str:
        return KINDS[self.kind].category

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
        sin, cos = exact.sincos(float(yaw))
        return float(self.route.speed.at(t)) * np.array([cos, sin])

    def rotation(self, t: float) -> Array:
        return yaw_matrix(float(self.pose(t)[1]))


class Placer:
    """Puts actors into the scene one by one and refuses those that would come too close to others at any time."""

    def __init__(self, rng: np.random.Generator, roads: Roads, ego: Route, seconds: float) -> None:
        self.rng, self.roads, self.ego = rng, roads, ego
        self.times = np.arange(-0.2, seconds + 0.2 + STEP, STEP)
        xyz, yaw = ego.pose(self.times)
        self.ego_xy = xyz[:, :2]
        sin, cos = exact.sincos(yaw)
        middle = xyz[:, :2] + EGO_CENTRE * np.stack([cos, sin], -1)
        # A little more room around the ego: a bumper in the lens shows nothing else.
        self._centres, self._yaws = [middle], [yaw]
        self._halves = [np.array(EGO_HALF) + 0.6]
        self.actors: list[Actor] = []

    def make(
        self,
        kind: str,
        attribute: str,
        route: Route | None,
        position: tuple[float, float, float] = (0.0, 0.0, 0.0),
        yaw: float = 0.0,
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
        distance = exact.norm(centre[:, :2] - self.ego_xy).min()
        if distance > NEVER_NEAR or (l > LARGE and distance < l / 2 + LARGE_GAP):
            return False
        hit = boxes_overlap(
            centre[None, :, :2],
            heading[None],
            half,
            np.stack(self._centres),
            np.stack(self._yaws),
            np.stack(self._halves)[:, None],
        )
        if hit.any():
            return False
        self._centres.append(centre[:, :2])
        self._yaws.append(heading)
        self._halves.append(half)
        self.actors.append(replace(bare, mesh=spec.build(rng, w, l, h)))
        return True

    def stand(self, kind: str, uv: tuple[float, float], turn: float, z: float, attribute: str) -> bool:
        """Puts a standing thing at street coordinates, ``turn`` radians from the +u direction."""
        x, y = (float(p) for p in self.roads.bend.point(np.array(uv)))
        return self.make(kind, attribute, None, (x, y, z), float(self.roads.bend.yaw(uv[0])) + turn)


def _traffic(placer: Placer, wanted: int, kinds: list[str], seconds: float) -> None:
    roads, rng = placer.roads, placer.rng
    speeds: dict[tuple[bool, float], Speed] = {}
    for _ in range(TRIES * wanted):
        if wanted == 0:
            return
        kind = kinds[int(rng.integers(len(kinds)))]
        main = rng.random() < 0.72 or not roads.crossings_u
        sign = 1 if rng.random() < 0.5 else -1
        if main:
            t = roads.lane_v(int(rng.integers(roads.lanes_each_way))) * sign
            ends = [(-sign * 170.0, t), (sign * 170.0, t)]
        else:
            t = float(rng.choice(roads.crossings_u)) + sign * LANE / 2
            ends = [(t, -sign * roads.reach), (t, sign * roads.reach)]
        # One speed per lane: followers keep their distance.
        speed = speeds.setdefault((main, t), Speed(float(rng.uniform(4.0, 9.0) if main else rng.uniform(3.0, 6.0))))
        path = street_path(roads.bend, ends)
        near = path.points[:, :2] - placer.ego_xy.mean(0)
        s = float(path.s[exact.norm(near).argmin()] + rng.uniform(-55, 55) - speed.v0 * seconds / 2)
        attribute = "cycle.with_rider" if kind in ("motorcycle", "bicycle") else "vehicle.moving"
        wanted -= placer.make(kind, attribute, Route(path, s, speed))


def _parked(placer: Placer, wanted: int, kinds: list[str]) -> None:
    roads, rng = placer.roads, placer.rng
    for _ in range(TRIES * wanted):
        if wanted == 0:
            return
        sign = 1 if rng.random() < 0.5 else -1
        if rng.random() < 0.7:
            uv = (float(rng.uniform(-160, 160)), -sign * (roads.half_main - PARKING / 2))
            if any(abs(uv[0] - c) < roads.half_cross + 9 for c in roads.crossings_u):
                continue
            turn = 0.0 if sign > 0 else math.pi
        else:
            c = float(rng.choice(roads.crossings_u))
            v = float(rng.uniform(roads.half_main + 11, roads.reach - 5)) * (1 if rng.random() < 0.5 else -1)
            uv, turn = (c + sign * (roads.half_cross - PARKING / 2), v), sign * math.pi / 2
        kind = kinds[int(rng.integers(len(kinds)))]
        wanted -= placer.stand(kind, uv, turn + 0.02 * float(exact.normal(rng)), 0.0, "vehicle.parked")


def _walkers(placer: Placer, wanted: int, seconds: float) -> None:
    roads, rng = placer.roads, placer.rng
    for _ in range(TRIES * wanted):
        if wanted == 0:
            return
        u = float(rng.uniform(-150, 150))
        side = 1 if rng.random() < 0.5 else -1
        v = side * (roads.half_main + rng.uniform(1.5, WALKWAY - 0.6))
        block = min(roads.blocks, key=lambda b: abs(u - (b.u0 + b.u1) / 2))
        lo, hi = block.u0 + 0.5, block.u1 - 0.5
        what = rng.random()
        if what < 0.2:
            place = (float(np.clip(u, lo, hi)), v)
            wanted -= placer.stand("pedestrian", place, float(rng.uniform(-3, 3)), KERB_HEIGHT, "pedestrian.standing")
            continue
        direction = 1 if rng.random() < 0.5 else -1
        if what < 0.8:  # along the street
            path = street_path(roads.bend, [(lo, v), (hi, v)][::direction], kerbs=np.empty((0, 2)))
        else:  # over a crossing of the main road
            c = float(rng.choice(roads.crossings_u)) + (1 if rng.random() < 0.5 else -1) * (roads.half_cross + 2.1)
            far = roads.half_main + WALKWAY - 0.5
            span = (far - roads.half_main, far + roads.half_main)
            path = street_path(roads.bend, [(c, -far * direction), (c, far * direction)], kerbs=np.array([span]))
        speed = Speed(float(rng.uniform(0.8, 1.7)))
        room = path.length - speed.v0 * (seconds + 0.3) - 0.8  # the walk must not leave its path
        if room > 0:
            s = 0.4 + float(rng.uniform(0, room))
            wanted -= placer.make("pedestrian", "pedestrian.moving", Route(path, s, speed))


def _works(placer: Placer) -> None:
    """A construction site in the parking strip: excavator, barriers and cones around it, near the middle of the way."""
    roads, rng = placer.roads, placer.rng
    for _ in range(40):
        side = 1 if rng.random() < 0.5 else -1
        u = float(rng.uniform(-60, 60))
        if any(abs(u - c) < roads.half_cross + 16 for c in roads.crossings_u):
            continue
        v = side * (roads.half_main + 1.6)
        if not placer.stand(
            "construction_vehicle", (u, v), 0.1 * float(exact.normal(rng)), KERB_HEIGHT, "vehicle.stopped"
        ):
            continue
        for du in (-9.3, -6.2, -3.1, 0.0, 3.1, 6.2, 9.3):
            placer.stand("barrier", (u + du, side * (roads.half_main - 0.5)), math.pi / 2, 0.0, "")
        for du in (-11.0, -7.5, -2.5, 2.5, 7.5, 11.0):
            placer.stand("traffic_cone", (u + du, side * (roads.half_main - PARKING + 0.5)), 0.0, 0.0, "")
        return


def populate(rng: np.random.Generator, roads: Roads, ego: Route, seconds: float) -> list[Actor]:
    """All actors of a scene: every detection class is tried for, and none ever touches another or the ego."""
    placer = Placer(rng, roads, ego, seconds)
    more = 1.0 + seconds / 16.0  # a longer way passes more things
    _works(placer)
    for kind in ("bus", "truck", "motorcycle", "bicycle"):
        _traffic(placer, 1, [kind], seconds)
    _parked(placer, 1, ["trailer"])
    _traffic(placer, round(10 * more), ["car", "car", "car", "car", "truck", "bus", "motorcycle", "bicycle"], seconds)
    _parked(placer, round(13 * more), ["car", "car", "car", "car", "car", "truck"])
    _walkers(placer, round(13 * more), seconds)
    return placer.actors
