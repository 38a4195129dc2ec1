"""Which voxels around the ego hold a surface, of what, and which of them the sensors can see."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mim4d.world.exact import apply, dot, norm
from mim4d.world.geometry import yaw_matrix
from mim4d.world.scene import Moment, Scene
from mim4d.world.sensors import LIDAR_FAR, LIDAR_NEAR, Rig

Array = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

LOW = (-51.2, -51.2, -3.0)  # corner of the grid in the ego frame of the sample's LIDAR_TOP, metres
CELL = (0.8, 0.8, 1.6)  # metres
SHAPE = (128, 128, 5)  # cells along x, y, z
# The classes of nuScenes' detection benchmark and the categories that they gather.
CLASSES = {
    "barrier": "movable_object.barrier",
    "bicycle": "vehicle.bicycle",
    "bus": "vehicle.bus",
    "car": "vehicle.car",
    "construction_vehicle": "vehicle.construction",
    "motorcycle": "vehicle.motorcycle",
    "pedestrian": "human.pedestrian",
    "traffic_cone": "movable_object.trafficcone",
    "trailer": "vehicle.trailer",
    "truck": "vehicle.truck",
}
LABELS: tuple[str, ...] = ("free", *CLASSES, "ground", "structure")
FREE, GROUND, STRUCTURE = 0, LABELS.index("ground"), LABELS.index("structure")
GROUND_HEIGHT = 0.3  # still faces that lie below it altogether (road, kerbs, walkways, lawns) are ground, metres
SLACK = 1e-3  # a surface this close to a voxel is in it, metres: rays are cast in float32
PAIRS = 1 << 16  # pairs of triangle and voxel tested at a time


class Occupancy(NamedTuple):
    """The voxels of a sample, each array (Z, Y, X). Cell (z, y, x) begins at ``LOW + (x, y, z) * CELL``."""

    label: NDArray[np.uint8]  # index into LABELS
    ids: NDArray[np.uint16]  # of the thing in the voxel, 0: none or the still world
    camera: Bools  # a camera sees the voxel: its centre or its nearest point lies in the image, and nothing before it
    lidar: Bools  # likewise for the LiDAR, between its lowest and highest beam and within its range


def occupancy(scene: Scene, rig: Rig, t: float) -> Occupancy:
    """The occupancy at the moment t. A voxel is occupied where a triangle meets it, whether anything sees it or not.

    Where several meet a voxel, things come before structures and those before the ground; of things, the first.
    """
    count = len(scene.actors)
    rank = np.zeros(SHAPE[::-1], np.int64).ravel()  # free, ground, structure, things from 3 on
    triangles, owner = _triangles(scene, t)
    still = np.where((triangles[..., 2] < GROUND_HEIGHT).all(1), 1, 2)
    face, cell = _touched((triangles - LOW) / CELL)
    np.maximum.at(rank, cell, np.where(owner < 0, still, count + 2 - owner)[face])
    thing = np.where(rank > 2, count + 2 - rank, -1)
    kinds = [label_of(a.category) for a in scene.actors]
    label = np.where(
        rank > 2,
        np.array([*kinds, FREE], np.uint8)[thing],
        np.array([FREE, GROUND, STRUCTURE], np.uint8)[np.minimum(rank, 2)],
    )
    shape = SHAPE[::-1]
    camera, lidar = _visible(scene, rig, t)
    return Occupancy(label.reshape(shape), (thing + 1).astype(np.uint16).reshape(shape), camera, lidar)


def label_of(category: str) -> int:
    """nuScenes' name of a category -> index into LABELS; what the benchmark does not look for is structure."""
    return next((LABELS.index(name) for name, start in CLASSES.items() if category.startswith(start)), STRUCTURE)


def _triangles(scene: Scene, t: float) -> tuple[Array, NDArray[np.int32]]:
    """(F, 3, 3) all triangles at the moment t in the ego frame, and their owners (F,)."""
    pose = scene.ego_pose(t)
    rest = scene.rest.vertices.astype(np.float64)  # moving things about their own centres
    for k, i in enumerate(scene.moving):
        mine, (centre, yaw) = scene.rest_actor == k, scene.actors[i].pose(t)
        rest[mine] = apply(yaw_matrix(float(yaw)), rest[mine]) + centre
    vertices = np.concatenate([scene.still.vertices + scene.origin, rest])
    return apply(pose[:3, :3].T, vertices - pose[:3, 3]), scene.mesh.owner


def _touched(triangles: Array) -> tuple[Ints, Ints]:
    """Triangles (F, 3, 3) in cells -> pairs (M,), (M,) of a triangle and a linear cell that it meets."""
    slack, top = np.divide(SLACK, CELL), np.array(SHAPE) - 1
    low = np.maximum(np.floor(triangles.min(1) - slack), 0).astype(np.intp)
    high = np.minimum(np.floor(triangles.max(1) + slack), top).astype(np.intp)
    span = np.maximum(high - low + 1, 0)  # (F, 3)
    pairs = span.prod(1)
    face = np.repeat(np.arange(len(triangles)), pairs)
    number = np.arange(len(face)) - np.repeat(np.cumsum(pairs) - pairs, pairs)  # within the triangle's own cells
    x, rest = number % span[face, 0], number // span[face, 0]
    cell = np.stack([x, rest % span[face, 1], rest // span[face, 1]], -1) + low[face]  # (M, 3)
    met = np.empty(len(face), bool)
    for i in range(0, len(face), PAIRS):
        part = slice(i, i + PAIRS)
        met[part] = _meet(triangles[face[part]] - (cell[part, None] + 0.5), 0.5 + slack)
    x, y, z = cell[met].T
    return face[met], (z * SHAPE[1] + y) * SHAPE[0] + x


def _meet(v: Array, half: Array) -> NDArray[np.bool_]:
    """Separating-axis test of triangles (M, 3, 3) and the box of half sizes (3,) about 0."""
    apart = ((v.min(1) > half) | (v.max(1) < -half)).any(1)
    edges = v[:, (1, 2, 0)] - v  # (M, 3, 3)
    across = np.cross(edges[:, 0], edges[:, 1])
    apart |= np.abs(dot(across, v[:, 0])) > dot(np.abs(across), half)
    for k in range(3):
        for axis in range(3):
            # The axis across an edge and a side of the box, and all that lies along it.
            a, b = (axis + 1) % 3, (axis + 2) % 3
            wide, high = edges[:, k, b, None], edges[:, k, a, None]
            along = high * v[:, :, b] - wide * v[:, :, a]  # (M, 3)
            reach = (np.abs(high) * half[b] + np.abs(wide) * half[a])[:, 0]
            apart |= (along.min(1) > reach) | (along.max(1) < -reach)
    return ~apart


def centres() -> Array:
    """(Z, Y, X, 3) the voxels' centres in the ego frame, metres."""
    x, y, z = (LOW[i] + (np.arange(SHAPE[i]) + 0.5) * CELL[i] for i in range(3))
    return np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], -1)


def _visible(scene: Scene, rig: Rig, t: float) -> tuple[Bools, Bools]:
    """(Z, Y, X) which voxels the cameras see, and which the LiDAR, all of them as they stand at the moment t."""
    at, moment = centres().reshape(-1, 3), scene.at(t)
    camera, lidar = np.zeros(len(at), bool), np.zeros(len(at), bool)
    for c in rig.cameras.values():
        for to, before in _lines(at - c.ego_from_cam[:3, 3]):
            k, local = c.intrinsics, apply(c.ego_from_cam[:3, :3].T, to)
            z = np.maximum(local[:, 2], 1e-3)
            u, v = (local[:, i] / z * k[i, i] + k[i, 2] for i in range(2))
            inside = np.flatnonzero((local[:, 2] > 0.1) & (u >= 0) & (u < c.width) & (v >= 0) & (v < c.height))
            camera[inside] |= _free(moment, c.ego_from_cam[:3, 3], to[inside], before[inside])
    mount, steep = rig.lidar.ego_from_lidar, rig.lidar.rays[:, 2]
    for to, before in _lines(at - mount[:3, 3]):
        distance = np.maximum(norm(to), 1e-9)
        rise = apply(mount[:3, :3].T, to)[:, 2] / distance
        reach = (distance > LIDAR_NEAR) & (distance < LIDAR_FAR)
        inside = np.flatnonzero(reach & (rise >= steep.min()) & (rise <= steep.max()))
        lidar[inside] |= _free(moment, mount[:3, 3], to[inside], before[inside])
    return camera.reshape(SHAPE[::-1]), lidar.reshape(SHAPE[::-1])


def _lines(to: Array) -> list[tuple[Array, Array]]:
    """Lines from a sensor to voxels whose centres lie at ``to`` (P, 3): to the centre, and to the nearest point.

    Each with the length (P,) before the voxel. One alone will not do: a flat look at the road ends before the cell in
    whose upper part it lies, were it aimed at the middle.
    """
    half = np.divide(CELL, 2)
    # The share of the way to the centre that lies before the voxel: to the last of three planes that it passes.
    share = (1.0 - half / np.maximum(np.abs(to), 1e-9)).max(1).clip(0.0)
    nearest = np.clip(0.0, to - 0.98 * half, to + 0.98 * half)
    return [(to, share * norm(to)), (nearest, norm(nearest))]


def _free(moment: Moment, start: Array, to: Array, before: Array) -> Bools:
    """Which lines from ``start`` (3,) along ``to`` (P, 3), ego frame, meet nothing within the first ``before`` (P,)."""
    pose = moment.scene.ego_pose(moment.t)
    direction = apply(pose[:3, :3], to) / norm(to, keepdims=True)
    hits = moment.cast(apply(pose[:3, :3], start) + pose[:3, 3], direction.astype(np.float32))
    return hits.distance > before - SLACK
