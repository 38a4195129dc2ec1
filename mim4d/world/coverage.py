"""Whether the LiDAR meets something of every detection class: the promise that no split lacks one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.echo import RANGE_NOISE, echo
from mim4d.world.taxonomy import CLASSES, DETECTION

if TYPE_CHECKING:
    from mim4d.world.scene import Scene

KEY_SECONDS = 0.5  # between key frames
MAST = (0.95, 0.0, 1.84)  # about where the LiDAR sits in the ego frame
NEARER = 0.85  # of the benchmark's range: a wheel's breadth decides nothing
ENOUGH = 4.0  # echoes to be expected in a thing's box with half the firings; twice as many fire


def _fan() -> NDArray[np.float32]:
    """(R, 3) the directions of a level LiDAR's 32 beams at every second firing, without those that look up."""
    elevation = np.radians(np.linspace(-30.67, 10.67, 32))[:, None]
    azimuth = 2 * np.pi * np.arange(542) / 542
    se, ce = exact.sincos(elevation[elevation[:, 0] < np.radians(5.0)])
    sa, ca = exact.sincos(azimuth)
    rays = np.stack(np.broadcast_arrays(ce * ca, ce * sa, se), -1)
    return rays.reshape(-1, 3).astype(np.float32)


def _expected(scene: Scene, t: float, rays: NDArray[np.float32]) -> NDArray[np.float64]:
    """(A,) how many points of a sweep along the rays may be expected in the box of every actor."""
    pose, moment, size = scene.ego_pose(t), scene.at(t), len(scene.actors)
    eye = exact.apply(pose[:3, :3], np.array(MAST)) + pose[:3, 3]
    hits = moment.cast(eye, rays)
    on = np.flatnonzero(hits.owner >= 0)
    owner, distance, ray = hits.owner[on], hits.distance[on], rays[on]
    _, lost = echo(moment, hits.face[on], distance, ray)
    kept = np.clip(1.0 - lost, 0.0, 1.0)
    inside = np.zeros(len(on))
    for i in np.unique(owner):
        mine, actor = owner == i, scene.actors[i]
        half = np.array([actor.size[1], actor.size[0], actor.size[2]]) / 2
        for noise in (-RANGE_NOISE, RANGE_NOISE):  # of either sign, so that points leave the box
            r = distance[mine] + noise * scene.knobs.sensor_noise
            local = exact.apply(actor.rotation(t).T, eye + r[:, None] * ray[mine] - actor.pose(t)[0])
            inside[mine] += 0.5 * (np.abs(local) <= half).all(1)
    return np.bincount(owner, kept * inside, size).astype(np.float64)


def missing(scene: Scene, enough: float = ENOUGH) -> list[str]:
    """Detection classes of which too little is met at every key frame; looks only until enough of all has been."""
    rays = _fan()
    kind, reach = zip(*(DETECTION[a.category] for a in scene.actors), strict=True)
    left = set(CLASSES)
    for t in np.arange(0.0, scene.seconds + 1e-9, KEY_SECONDS):
        here = scene.ego_pose(float(t))[:3, 3]
        for i in np.flatnonzero(_expected(scene, float(t), rays) >= enough):
            offset = scene.actors[i].pose(float(t))[0] - here
            if exact.hypot(float(offset[0]), float(offset[1])) < NEARER * reach[i]:
                left.discard(kind[i])
        if not left:
            break
    return sorted(left)
