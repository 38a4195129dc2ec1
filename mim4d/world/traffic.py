"""Who stands, walks and drives where: first one of every class that the LiDAR meets, then as much as wanted."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mim4d.world import exact
from mim4d.world.actors import Actor, Placer, Watch
from mim4d.world.coverage import KEY_SECONDS
from mim4d.world.geometry import KERB_HEIGHT, street_path
from mim4d.world.motion import PULL, Route, Speed, ease, wander
from mim4d.world.roads import BAY, PARKING, WALKWAY, Roads
from mim4d.world.streets import CROSS, MAIN, Heading, Streets, Way, lights
from mim4d.world.variants import KINDS

TRIES = 20  # places tried per thing wanted
PERSISTENT = 400  # and per thing that must be there
# How near the first of a class must come into sight, metres: well inside the range in which the nuScenes benchmark
# looks for it, and near enough for a dozen beams.
IN_SIGHT = {"pedestrian": 18.0, "bicycle": 15.0, "motorcycle": 18.0, "traffic_cone": 11.0, "barrier": 16.0}
VEHICLE_IN_SIGHT = 28.0
THROUGH = ("car",) * 20 + ("truck",) * 3 + ("bus", "motorcycle", "bicycle")
TURNING = ("car",) * 10 + ("truck",)
WAITING = ("car",) * 14 + ("truck",) * 2 + ("bus", "motorcycle")
PARKED = ("car",) * 11 + ("truck",)
# How many of each there are to try for in a short scene at normal density, near what nuScenes counts per key frame.
THROUGH_WANTED, TURNING_WANTED, PARKED_WANTED, PEOPLE_WANTED = 3.5, 1.5, 6.0, 3.5
QUEUE = 2  # longest queue at a light
KERB_GAP = 0.1  # metres that wide vehicles leave to the kerb
ROW_OF_BARRIERS, ROW_OF_CONES = 0.5, PARKING - 0.5  # metres from the kerb, on the road

CYCLES = ("motorcycle", "bicycle")


def _moving(kind: str) -> str:
    return "cycle.with_rider" if kind in CYCLES else "vehicle.moving"


class Traffic:
    """Fills a scene with actors, none of which ever touches another or the ego.

    One of every detection class, where there is room, comes near the ego at some key frame with nothing of the others
    in between. ``lights``: the junctions' lights, which all obey.
    """

    def __init__(self, rng: np.random.Generator, roads: Roads, ego: Route, seconds: float, reach: float = 1.0) -> None:
        """``reach`` scales how far away the first thing of a class may come into sight."""
        self.rng, self.roads, self.seconds, self.reach = rng, roads, seconds, reach
        self.placer = Placer(rng, roads, ego, seconds)
        self.streets, self.lights = Streets(roads), lights(rng, roads, ego, seconds)
        self.keys = np.arange(0.0, seconds + 1e-9, KEY_SECONDS)
        self._speeds: dict[tuple[object, ...], Speed] = {}
        self._more = 1.0 + seconds / 30.0  # a longer way passes more things

    def _pick(self, kinds: tuple[str, ...]) -> str:
        return kinds[int(self.rng.integers(len(kinds)))]

    def _sign(self) -> int:
        return 1 if self.rng.random() < 0.5 else -1

    def _junction(self) -> int:
        return int(self.rng.integers(len(self.roads.crossings_u)))

    def _heading(self, main: float) -> Heading:
        """A heading, along the main road with the given chance."""
        return (MAIN if self.rng.random() < main else CROSS)[int(self.rng.integers(2))]

    def _watch(self, kind: str) -> Watch:
        return Watch(self.reach * IN_SIGHT.get(kind, VEHICLE_IN_SIGHT), self.keys)

    def fill(self, density: float) -> list[Actor]:
        """``density`` 0: one thing of every class; 1: a busy town; 2: about twice as much."""
        self._works(density)
        for kind in ("bus", "trailer", "truck", "motorcycle", "bicycle", "car", "pedestrian"):
            self._one(kind)
        if density > 0:
            self._some(density, self._rack)
            self._some(density, self._sitter)
            self._some(density, self._stander)
            self._queues(density)
            self._some(TURNING_WANTED * density * self._more, self._turning)
            self._some(THROUGH_WANTED * density * self._more, self._through)
            self._some(PARKED_WANTED * density * self._more, lambda: self._park(self._pick(PARKED)))
            self._some(PEOPLE_WANTED * density * self._more, self._walker)
        return self.placer.actors

    def _some(self, wanted: float, place: Callable[[], bool]) -> None:
        """Tries until so many are placed; a fraction counts as the chance of one more."""
        missing = int(wanted + self.rng.random() * (wanted % 1 > 0))
        for _ in range(TRIES * missing):
            if missing == 0:
                return
            missing -= place()

    # ---- what must be there

    def _one(self, kind: str) -> None:
        """One thing of a class in the LiDAR's sight."""
        watch, leans = self._watch(kind), self.rng.random() < 0.7
        for n in range(PERSISTENT):
            if kind == "pedestrian":
                done = self._walker(watch)
            elif kind == "trailer" or (kind not in CYCLES and self.rng.random() < 0.4):
                done = self._park(kind, watch)
            elif kind in CYCLES and leans == (n < PERSISTENT / 2):
                done = self._lean(kind, watch)
            else:
                done = self._through(kind, watch)
            if done:
                return

    def _site(self) -> tuple[float, int] | None:
        """Puts an excavator beside the main road, in sight: where (u, side)."""
        roads, rng, kind = self.roads, self.rng, "construction_vehicle"
        for _ in range(PERSISTENT):
            side, u = self._sign(), float(rng.uniform(-130, 130))
            if any(abs(u - c) < roads.half_cross + 16 for c in roads.crossings_u):
                continue
            place, turn = (u, side * (roads.half_main + 1.6)), 0.1 * float(exact.normal(rng))
            if self.placer.stand(kind, place, turn, KERB_HEIGHT, "vehicle.stopped", self._watch(kind)):
                return u, side
        return None

    def _works(self, density: float) -> None:
        """A construction site in the parking strip: excavator, barriers and cones around it, and who works there."""
        roads, rng, placer = self.roads, self.rng, self.placer
        site = self._site()
        self._lone("barrier", ROW_OF_BARRIERS, math.pi / 2)
        self._lone("traffic_cone", ROW_OF_CONES, 0.0)
        if site is None or density == 0:
            return
        u, side = site
        for kind, places, inside, turn in (
            ("barrier", (0.0, -3.1, 3.1, -6.2, 6.2), ROW_OF_BARRIERS, math.pi / 2),
            ("traffic_cone", (2.5, -2.5, 8.5, -8.5), ROW_OF_CONES, 0.0),
        ):
            for du in places[: round(len(places) * math.sqrt(density))]:
                placer.stand(kind, (u + du, side * (roads.half_main - inside)), turn, 0.0, "")
        for _ in range(1 + int(rng.integers(3))):
            beyond = float(rng.uniform(-0.5, WALKWAY - 0.4))
            place = (u + float(rng.uniform(-8, 8)), side * (roads.half_main + beyond))
            z = KERB_HEIGHT if beyond > 0 else 0.0
            placer.stand("worker", place, float(rng.uniform(-3, 3)), z, "pedestrian.standing")

    def _lone(self, kind: str, inside: float, turn: float) -> None:
        """One cone or barrier in sight, beside a kerb or on a street corner."""
        roads, rng = self.roads, self.rng
        for _ in range(PERSISTENT):
            if rng.random() < 0.5:
                spot, z = self._beside(-inside), 0.0
                if spot is None:
                    continue
                uv, along = spot
            else:
                block = roads.blocks[int(rng.integers(len(roads.blocks)))]
                ends = ((block.u0, 1.0, block.street_before), (block.u1, -1.0, block.street_after))
                edge, inward, street = ends[int(rng.integers(2))]
                if not street:
                    continue
                out, along, z = math.copysign(1.0, block.near), 0.0, KERB_HEIGHT
                uv = (edge + inward * float(rng.uniform(0.8, 2.8)), block.near + out * float(rng.uniform(0.8, 2.8)))
            if self.placer.stand(kind, uv, along + turn, z, "", self._watch(kind)):
                return

    # ---- on the road

    def _allowed(self, kind: str, way: Way, s0: float, speed: Speed) -> bool:
        """Whether a vehicle meets no red light. What has passed the line before t = 0 is on its way."""
        for junction, line in way.stops:
            ahead = line - KINDS[kind].size[1] / 2 - s0
            if ahead > 0:
                t = speed.when(ahead, self.seconds)
                if t <= self.seconds and not self.lights[junction].green(way.main, t):
                    return False
        return True

    def _drive(self, kind: str, way: Way, s0: float, speed: Speed, watch: Watch | None = None) -> bool:
        """Sends a vehicle on its way unless it would come from, or get to, where the street ends."""
        if s0 < 0.0 or s0 + float(speed.length(self.seconds)) > way.path.length:
            return False
        return self.placer.make(kind, _moving(kind), Route(way.path, s0, speed), watch=watch)

    def _through(self, kind: str = "", watch: Watch | None = None) -> bool:
        """Somebody who drives straight on. One speed per lane: followers keep their distance."""
        rng = self.rng
        kind = kind or self._pick(THROUGH)
        h, junction = self._heading(0.72), self._junction()
        lane = int(rng.integers(self.roads.lanes_each_way)) if h in MAIN else 0
        way = self.streets.straight(h, junction, lane)
        if kind == "bicycle":
            speed = wander(rng, float(rng.uniform(3.0, 5.0)), 0.4, self.seconds)
        else:
            mean = float(rng.uniform(5.5, 9.5) if h in MAIN else rng.uniform(4.5, 7.5))
            key = (h, None if h in MAIN else junction, lane)
            speed = self._speeds.setdefault(key, wander(rng, mean, 0.9, self.seconds))
        t = float(rng.choice(self.keys))
        spread = 55.0 if watch is None else watch.near
        near = way.path.points[:, :2] - self.placer.ego.pose(t)[0][:2]
        s = float(way.path.s[exact.dot(near, near).argmin()]) + float(rng.uniform(-spread, spread))
        s0 = s - float(speed.length(t))
        return self._allowed(kind, way, s0, speed) and self._drive(kind, way, s0, speed, watch)

    def _turning(self) -> bool:
        """Somebody who slows down, turns at a junction and speeds up again."""
        rng = self.rng
        kind, h, junction = self._pick(TURNING), self._heading(0.5), self._junction()
        way = self.streets.turn(h, junction, "right" if rng.random() < 0.5 else "left")
        assert way.arc is not None
        slow = way.turning_speed * float(rng.uniform(0.8, 1.0))
        fast = slow + float(rng.uniform(1.0, 3.5))
        begin = float(rng.uniform(-2.0, self.seconds + 1.5))
        end = begin + (way.arc[1] - way.arc[0]) / slow
        speed = ease(fast, (begin, slow), (end, slow), (end + (fast - slow) / PULL, fast))
        s0 = way.arc[0] - float(speed.length(begin))
        return self._allowed(kind, way, s0, speed) and self._drive(kind, way, s0, speed)

    def _queues(self, density: float) -> None:
        """Who waits at red lights, and drives off when they turn green."""
        for junction, light in enumerate(self.lights):
            main = not light.main_first  # the road that has red
            for h in MAIN if main else CROSS:
                for lane in range(self.roads.lanes_each_way if main else 1):
                    longest = round(QUEUE * math.sqrt(density))
                    self._queue(h, junction, lane, int(self.rng.integers(longest + 1)), light.green_from(main))

    def _queue(self, h: Heading, junction: int, lane: int, waiting: int, green: float) -> None:
        rng, way = self.rng, self.streets.straight(h, junction, lane)
        front = next(s for i, s in way.stops if i == junction) - float(rng.uniform(0.2, 1.2))
        arrives = rng.random() < 0.5
        cruise = float(rng.uniform(5.0, 7.5))
        for n in range(waiting + int(arrives)):
            kind = self._pick(WAITING)
            length = {"truck": 8.2, "bus": 12.0, "motorcycle": 2.3}.get(kind, 5.0)  # a little more than it can have
            go = green + 0.7 + 0.9 * n
            off = ((go, 0.0), (go + cruise / PULL, cruise))
            middle = front - length / 2  # where it waits
            if n == waiting:  # the last one still comes
                halt = float(rng.uniform(0.2, 0.9)) * min(self.seconds, 10.0)
                if halt + 0.5 > go:
                    return
                speed = ease(cruise, (halt, 0.0), *(off if math.isfinite(go) else ()))
                s0 = middle - float(speed.length(halt))
            elif go < self.seconds + 0.3:
                speed, s0 = ease(0.0, *off), middle
            else:
                xyz, yaw = way.path.at(middle)
                where = (float(xyz[0]), float(xyz[1]), 0.0)
                attribute = "cycle.with_rider" if kind in CYCLES else "vehicle.stopped"
                self.placer.make(kind, attribute, None, where, float(yaw))
                front -= length + float(rng.uniform(1.2, 3.0))
                continue
            if self._allowed(kind, way, s0, speed):
                self._drive(kind, way, s0, speed)
            front -= length + float(rng.uniform(1.2, 3.0))

    # ---- beside the road

    def _beside(self, beyond: float) -> tuple[tuple[float, float], float] | None:
        """A place ``beyond`` the kerb (negative: on the road): street coordinates and the direction of the traffic on
        that side. None where a junction is too near.
        """
        roads, rng = self.roads, self.rng
        side = self._sign()
        if rng.random() < 0.65:
            u = float(rng.uniform(-160, 160))
            if any(abs(u - c) < roads.half_cross + 9 for c in roads.crossings_u):
                return None
            return (u, -side * (roads.half_main + beyond)), 0.0 if side > 0 else math.pi
        c = float(rng.choice(roads.crossings_u))
        v = float(rng.uniform(roads.half_main + 11, roads.reach - 5)) * self._sign()
        return (c + side * (roads.half_cross + beyond), v), side * math.pi / 2

    def _park(self, kind: str, watch: Watch | None = None) -> bool:
        """In a bay where there are bays and the vehicle fits, else along the kerb: what is wider than the strip reaches
        into the lane, not over the walkway.
        """
        spec = KINDS[kind]
        widest = spec.size[0] * (1 + 2 * spec.spread)
        spot = self._beside(-max(PARKING / 2, widest / 2 + KERB_GAP))
        if spot is None:
            return False
        uv, turn = spot
        bays = np.array(self.roads.bay_centres)
        if len(bays) and spec.size[1] < BAY:
            off = bays - uv
            nearest = int(exact.dot(off, off).argmin())
            if exact.norm(off[nearest]) > BAY:
                return False  # beside a junction
            uv = (float(bays[nearest, 0]), float(bays[nearest, 1]))
        attribute = "vehicle.stopped" if kind == "bus" else "vehicle.parked"
        return self.placer.stand(kind, uv, turn + 0.02 * float(exact.normal(self.rng)), 0.0, attribute, watch)

    def _lean(self, kind: str, watch: Watch | None = None) -> bool:
        """One two-wheeler without its rider, across the edge of the walkway."""
        spot = self._beside(1.25)
        if spot is None:
            return False
        uv, turn = spot
        across = turn + math.pi / 2 * self._sign() + 0.08 * float(exact.normal(self.rng))
        return self.placer.stand(f"bare_{kind}", uv, across, KERB_HEIGHT, "cycle.without_rider", watch)

    def _rack(self) -> bool:
        """A row of two-wheelers side by side."""
        spot = self._beside(1.25)
        if spot is None:
            return False
        uv, turn = spot
        along_u = abs(turn) != math.pi / 2
        kind = self._pick(("bare_bicycle", "bare_bicycle", "bare_motorcycle"))
        across = turn + math.pi / 2 * self._sign()
        placed = False
        for n in range(int(self.rng.integers(1, 3))):
            shift = 1.4 * n
            place = (uv[0] + shift, uv[1]) if along_u else (uv[0], uv[1] + shift)
            tilt = 0.06 * float(exact.normal(self.rng))
            placed |= self.placer.stand(kind, place, across + tilt, KERB_HEIGHT, "cycle.without_rider")
        return placed

    def _stander(self) -> bool:
        """Somebody who stands about."""
        spot = self._beside(float(self.rng.uniform(0.8, WALKWAY - 0.5)))
        if spot is None:
            return False
        kind = self._pick(("pedestrian",) * 8 + ("officer", "child"))
        turn = float(self.rng.uniform(-3, 3))
        return self.placer.stand(kind, spot[0], turn, KERB_HEIGHT, "pedestrian.standing")

    def _sitter(self) -> bool:
        """Somebody on a bench at the back of the walkway."""
        spot = self._beside(WALKWAY - 0.6)
        if spot is None:
            return False
        uv, turn = spot
        # With the traffic at one's right hand the road lies to the left of the walkway: sit facing it.
        facing = turn + math.pi / 2
        return self.placer.stand("sitter", uv, facing, KERB_HEIGHT, "pedestrian.sitting_lying_down")

    def _walker(self, watch: Watch | None = None) -> bool:
        """Somebody who walks along a street or over a crossing of the main road."""
        roads, rng = self.roads, self.rng
        speed = wander(rng, float(rng.uniform(0.9, 1.7)), 0.15, self.seconds)
        direction, kerbs = self._sign(), np.empty((0, 2))
        if rng.random() < 0.25:
            c = float(rng.choice(roads.crossings_u)) + self._sign() * (roads.half_cross + 2.1)
            far = roads.half_main + WALKWAY - 0.5
            ends = [(c, -far), (c, far)]
            kerbs = np.array([(far - roads.half_main, far + roads.half_main)])
        else:
            block = roads.blocks[int(rng.integers(len(roads.blocks)))]
            offset, out = float(rng.uniform(1.5, WALKWAY - 0.6)), math.copysign(1.0, block.near)
            edges = [e for e, street in ((block.u0, block.street_before), (block.u1, block.street_after)) if street]
            if edges and rng.random() < 0.35:  # along a cross street
                edge = edges[int(rng.integers(len(edges)))]
                u = edge + (offset if edge == block.u0 else -offset)
                ends = [(u, block.near + 0.5 * out), (u, out * (roads.reach - 0.5))]
            else:
                v = block.near + offset * out
                ends = [(block.u0 + 0.5, v), (block.u1 - 0.5, v)]
        path = street_path(roads.bend, ends[::direction], kerbs=kerbs)
        room = path.length - float(speed.length(self.seconds + 0.3)) - 0.8  # the walk must not leave its path
        if room <= 0:
            return False
        kind = self._pick(("pedestrian",) * 14 + ("child", "officer"))
        s0 = 0.4 + float(rng.uniform(0, room))
        return self.placer.make(kind, "pedestrian.moving", Route(path, s0, speed), watch=watch)
