"""Whether the LiDAR meets something of every detection class: the promise that no split lacks one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.taxonomy import CLASSES, DETECTION

if TYPE_CHECKING:
    from mim4d.world.scene import Scene

KEY_SECONDS = 0.5  # between key frames
MAST = (0.95, 0.0, 1.84)  # about where the LiDAR sits in the ego frame
NEARER = 0.85  # of the benchmark's range: a wheel's breadth decides nothing
ENOUGH = 4  # beams on one thing with half the firings: twice as many fire, and a few fail


def _fan() -> NDArray[np.float32]:
    """(R, 3) the directions of a level LiDAR's 32 beams at every second firing, without those that look up."""
    elevation = np.radians(np.linspace(-30.67, 10.67, 32))[:, None]
    azimuth = 2 * np.pi * np.arange(542) / 542
    se, ce = exact.sincos(elevation[elevation[:, 0] < np.radians(5.0)])
    sa, ca = exact.sincos(azimuth)
    rays = np.stack(np.broadcast_arrays(ce * ca, ce * sa, se), -1)
    return rays.reshape(-1, 3).astype(np.float32)


def missing(scene: Scene) -> list[str]:
    """Detection classes of which nothing is met well at any key frame; looks only until all have been."""
    rays = _fan()
    kind, reach = zip(*(DETECTION[a.category] for a in scene.actors), strict=True)
    left = set(CLASSES)
    for t in np.arange(0.0, scene.seconds + 1e-9, KEY_SECONDS):
        pose = scene.ego_pose(float(t))
        eye = exact.apply(pose[:3, :3], np.array(MAST)) + pose[:3, 3]
        owner = scene.at(float(t)).cast(eye, rays).owner
        count = np.bincount(owner[owner >= 0], minlength=len(scene.actors))
        for i in np.flatnonzero(count >= ENOUGH):
            offset = scene.actors[i].pose(float(t))[0] - pose[:3, 3]
            if exact.hypot(float(offset[0]), float(offset[1])) < NEARER * reach[i]:
                left.discard(kind[i])
        if not left:
            break
    return sorted(left)
