"""Occupancy: what the grid says agrees with what the sensors meet, and with another way to find it.

The numbers in comments were measured on the world of ``conftest.py`` (48 x 80).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from helpers.world_truth import Truth, carried, images, lift
from nuscenes.eval.detection.utils import category_to_detection_name

from mim4d.world import truth as extras
from mim4d.world.occupancy import CELL, LABELS, LOW, SHAPE, SLACK, _touched
from mim4d.world.scene import Hits
from mim4d.world.sensors import LIDAR_FAR, LIDAR_NEAR, look


def test_every_surface_lies_in_an_occupied_voxel(root: Path, truth: Truth) -> None:
    """All six images' hits, carried to the sample's moment; and that voxel holds the thing, or one that comes first."""
    known, total, things = extras.load_instances(root, truth.name), 0, 0
    for camera, row, t in images(truth):
        sample = truth.nusc.get("sample", row["sample_token"])
        lidar = truth.nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        occupancy = extras.load_occupancy(root, row["sample_token"])
        hits: Hits = look(truth.scene, camera, t)
        met = hits.face >= 0
        depth = (hits.distance * camera.rays[:, 2]).reshape(camera.height, camera.width)
        ids = hits.owner[met] + 1
        points = carried(truth, lift(truth, row, depth).reshape(-1, 3)[met], ids, t, truth.seconds(lidar["timestamp"]))
        pose = truth.scene.ego_pose(truth.seconds(lidar["timestamp"]))
        cell = np.floor(((points - pose[:3, 3]) @ pose[:3, :3] - LOW) / CELL).astype(int)
        inside = ((cell >= 0) & (cell < SHAPE)).all(1)
        x, y, z = cell[inside].T
        label, thing, own = occupancy.label[z, y, x], occupancy.ids[z, y, x], ids[inside]
        assert (label > 0).all()
        first = (thing > 0) & (thing <= np.where(own > 0, own, 65535))
        assert (first | ((own == 0) & (thing == 0))).all()
        for i in np.unique(thing[thing > 0]):
            assert [LABELS[n] for n in np.unique(label[thing == i])] == [category_to_detection_name(known[i].category)]
        assert np.isin(label[thing == 0], (LABELS.index("ground"), LABELS.index("structure"))).all()
        total, things = total + inside.sum(), things + (own > 0).sum()
    assert total > 20_000
    assert things > 1000
    assert len(known) == len(truth.scene.actors)


def test_triangles_meet_the_voxels_that_clipping_finds() -> None:
    """Against another method: a triangle cut to a cell by its six planes leaves something."""
    rng = np.random.default_rng(5)
    corner = rng.uniform(-2, SHAPE, (60, 1, 3))
    triangles = corner + rng.normal(0, rng.choice([0.3, 3.0, 30.0], (60, 1, 1)), (60, 3, 3))
    face, cell = _touched(triangles)
    found = set(zip(face.tolist(), cell.tolist(), strict=True))
    assert len(found) == len(face) > 1000
    checked = met = 0
    for f, triangle in enumerate(triangles):
        low = np.floor(triangle.min(0)).astype(int).clip(0, SHAPE)
        high = np.floor(triangle.max(0)).astype(int).clip(-1, np.array(SHAPE) - 1)
        cells = list(itertools.product(*(range(a, b + 1) for a, b in zip(low, high, strict=True))))
        for n in rng.permutation(len(cells))[:60]:
            x, y, z = cells[n]
            tight, wide = (_inside(triangle, np.array([x, y, z]), slack) for slack in (0.0, 1.01 * SLACK))
            checked += 1
            met += tight
            assert tight <= ((f, (z * SHAPE[1] + y) * SHAPE[0] + x) in found) <= wide
    assert 300 < met < checked - 300


def _inside(triangle: np.ndarray, cell: np.ndarray, slack: float) -> bool:
    """Whether anything of a triangle lies in a cell made larger by so many metres on all sides."""
    left = triangle
    for axis in range(3):
        more = slack / CELL[axis]
        left = _clipped(_clipped(left, axis, cell[axis] - more, 1.0), axis, cell[axis] + 1 + more, -1.0)
    return len(left) > 0


def _clipped(polygon: np.ndarray, axis: int, at: float, side: float) -> np.ndarray:
    """What of a polygon (P, 3) lies beyond a plane."""
    out = []
    for a, b in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        da, db = side * (a[axis] - at), side * (b[axis] - at)
        if da >= 0:
            out.append(a)
        if da * db < 0:
            out.append(a + (b - a) * (da / (da - db)))
    return np.array(out).reshape(-1, 3)


def test_seen_voxels_are_those_before_the_first_surface(root: Path, truth: Truth) -> None:
    row = truth.data("LIDAR_TOP", key_only=True)[1]
    occupancy = extras.load_occupancy(root, row["sample_token"])
    assert 0.1 < occupancy.camera.mean() < 0.5
    assert 0.1 < occupancy.lidar.mean() < 0.5
    # What the LiDAR's returns lie in it sees, but for cells that show only a corner (measured 0.91 and 0.92).
    points, mount = truth.points(row)[:, :3].astype(float), truth.rig.lidar.ego_from_lidar
    cell = np.floor((points @ mount[:3, :3].T + mount[:3, 3] - LOW) / CELL).astype(int)
    x, y, z = cell[((cell >= 0) & (cell < SHAPE)).all(1)].T
    assert occupancy.lidar[z, y, x].mean() > 0.88
    # Along a return's beam, what lies two diagonals before it is seen (0.995 and 0.996), and what lies two diagonals
    # behind it only where the view opens beside or above the surface (0.45 and 0.32).
    length = np.linalg.norm(points, axis=1)
    diagonal = float(np.linalg.norm(CELL))
    share = []
    for reach in (length - 2 * diagonal, length + 2 * diagonal):
        beam = points * (reach / length)[:, None]
        cell = np.floor((beam @ mount[:3, :3].T + mount[:3, 3] - LOW) / CELL).astype(int)
        inside = ((cell >= 0) & (cell < SHAPE)).all(1) & (reach > 2.0)
        x, y, z = cell[inside].T
        share.append(occupancy.lidar[z, y, x].mean())
    assert share[0] > 0.95
    assert share[1] < 0.6
    assert length.min() > LIDAR_NEAR
    assert length.max() < LIDAR_FAR + 1
