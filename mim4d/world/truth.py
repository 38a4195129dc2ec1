"""The truth that nuScenes lacks, in ``OUT/truth``: depth, normals, flow and instance ids of the key frames' images, the
instance of every LiDAR point, and occupancy. Functions that make the files while a scene is drawn, and their readers.

Files carry the token of the row that they belong to. Ids count a scene's things from 1; 0 is the still world and the
sky; ``instances/SCENE.json`` says which instance an id is.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mim4d.errors import UserError
from mim4d.world.exact import apply, dot, norm
from mim4d.world.geometry import yaw_matrix
from mim4d.world.occupancy import Occupancy, occupancy
from mim4d.world.scene import Hits, Moment, Scene
from mim4d.world.sensors import Camera, Rig, blocks, camera_view

Float32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ids = NDArray[np.uint16]
Root = str | os.PathLike[str]
T = TypeVar("T")

FOLDER = "truth"
DEPTH_UNIT = 1 / 256  # metres a step of a depth file
FLOW_UNIT = 1 / 64  # pixels a step of a flow file
FLOW_LIMIT = 511.0  # pixels; what moves further has no flow
NEAR = 0.1  # what comes closer than this to the next image's plane, or behind it, has no flow, metres
HIDDEN = 0.02  # a point is hidden where the next image sees something at least this much nearer, metres
# What there is, where it lies, and which rows have it.
KINDS = {
    "depth": (".png", "an image of a key frame"),
    "normals": (".png", "an image of a key frame"),
    "ids": (".png", "an image of a key frame"),
    "flow": (".npz", "an image of a key frame that has a next one"),
    "lidar": (".npy", "a sweep of LIDAR_TOP"),
    "occupancy": (".npz", "a sample"),
    "instances": (".json", "a scene"),
}


class Flow(NamedTuple):
    """Where every pixel's centre goes in the next image of the same camera."""

    flow: Float32  # (H, W, 2) right and down in pixels, 0 where not valid
    valid: Bools  # (H, W) the flow is known; what it points to may be outside the next image or hidden there
    visible: Bools  # (H, W) valid, and the next image shows the same point


@dataclass(frozen=True)
class Instance:
    token: str  # of the row of the table ``instance``; empty where the thing never comes near enough to be annotated
    category: str


def z_depth(camera: Camera, hits: Hits) -> Float32:
    """(H, W) metres along the camera's axis, inf in the sky."""
    return (hits.distance * camera.rays[:, 2]).reshape(camera.height, camera.width)


def ray_length(depth: Float32, intrinsics: NDArray[np.float64]) -> Float32:
    """Depth along the camera's axis (H, W) -> length of the ray through the pixel's centre (H, W), both in metres."""
    height, width = depth.shape
    x = (np.arange(width) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(height) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
    return (depth * np.sqrt(1.0 + x * x + (y * y)[:, None])).astype(np.float32)


def normals(camera: Camera, moment: Moment, hits: Hits) -> Float32:
    """(H, W, 3) unit normals in camera coordinates on the side that the camera sees, 0 in the sky."""
    pose = moment.scene.ego_pose(moment.t)[:3, :3], camera.ego_from_cam[:3, :3]
    out = np.zeros((len(hits.face), 3), np.float32)
    for block in blocks(len(out)):
        face = hits.face[block]
        n = moment.normals[face].astype(np.float64)
        for rotation in pose:  # world -> ego -> camera
            n = apply(rotation.T, n)
        n[dot(n, camera.rays[block]) > 0] *= -1
        n[face < 0] = 0
        out[block] = n
    return out.reshape(camera.height, camera.width, 3)


def flow(camera: Camera, moment: Moment, hits: Hits, later: float) -> Flow:
    """The motion of every pixel's centre from a moment to the same camera's image at ``later`` (seconds).

    The still world moves because the camera does, things also by their own motion, and the sky, being infinitely far,
    because the camera turns.
    """
    scene = moment.scene
    now, then = scene.ego_pose(moment.t), scene.ego_pose(later)
    place = apply(then[:3, :3], camera.ego_from_cam[:3, 3]) + then[:3, 3]
    after = scene.at(later, camera_view(scene, camera, later))
    motion, state = np.zeros((len(hits.face), 2), np.float32), np.zeros(len(hits.face), np.uint8)
    for block in blocks(len(hits.face)):
        far = hits.face[block] < 0
        # Coordinates of the car, then of the map: directions for the sky, points for all else.
        ray = apply(camera.ego_from_cam[:3, :3], camera.rays[block].astype(np.float64))
        step = np.where(far, 1.0, hits.distance[block])[:, None] * ray
        direction = apply(now[:3, :3], step)
        point = apply(now[:3, :3], step + camera.ego_from_cam[:3, 3]) + now[:3, 3]
        for i in np.intersect1d(hits.owner[block], scene.moving):
            mine, actor = hits.owner[block] == i, scene.actors[i]
            (start, yaw), (end, turned) = actor.pose(moment.t), actor.pose(later)
            local = apply(yaw_matrix(float(yaw)).T, point[mine] - start)
            point[mine] = apply(yaw_matrix(float(turned)), local) + end
        to = np.where(far[:, None], direction, point - place)
        seen = apply(camera.ego_from_cam[:3, :3].T, apply(then[:3, :3].T, to))  # in coordinates of the next image
        z = np.maximum(seen[:, 2], NEAR)
        at = np.stack([seen[:, i] / z * camera.intrinsics[i, i] + camera.intrinsics[i, 2] for i in range(2)], -1)
        pixel = np.arange(block.start, block.stop)
        motion[block] = at - np.stack([pixel % camera.width, pixel // camera.width], -1) - 0.5
        valid = (seen[:, 2] > NEAR) & (np.abs(motion[block]) < FLOW_LIMIT).all(1)
        inside = np.flatnonzero(valid & (at >= 0).all(1) & (at < (camera.width, camera.height)).all(1))
        length = norm(to[inside])
        met = after.cast(place, (to[inside] / length[:, None]).astype(np.float32))
        same = (met.face == hits.face[block][inside]) | (~far[inside] & (met.distance > length - HIDDEN))
        state[block] = valid
        state[block.start + inside[same]] = 2
    motion[state == 0] = 0
    shape = (camera.height, camera.width)
    return Flow(motion.reshape(*shape, 2), (state > 0).reshape(shape), (state == 2).reshape(shape))


def _place(kind: str, name: str) -> str:
    return f"{FOLDER}/{kind}/{name}{KINDS[kind][0]}"


def _bytes(write: Callable[[io.BytesIO], None]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _png(pixels: NDArray[np.uint8] | Ids) -> bytes:
    return _bytes(lambda file: Image.fromarray(pixels).save(file, "PNG"))


def image_files(token: str, camera: Camera, moment: Moment, hits: Hits, later: float | None) -> dict[str, bytes]:
    """Depth, normals, ids and flow of an image: place in the world -> contents.

    hits: what :func:`mim4d.world.sensors.trace` gave for the image; later: seconds of the camera's next image, None for
    its last, which has no flow.
    """
    shape = (camera.height, camera.width)
    met = np.isfinite(hits.distance).reshape(shape)
    depth = np.where(met, np.minimum(np.rint(z_depth(camera, hits) / DEPTH_UNIT), 65535), 0)
    code = np.rint(normals(camera, moment, hits) * np.float32(127)) + np.float32(128)
    files = {
        _place("depth", token): _png(depth.astype(np.uint16)),
        _place("normals", token): _png(np.where(met[..., None], code, 0).astype(np.uint8)),
        _place("ids", token): _png((hits.owner + 1).reshape(shape).astype(np.uint16)),
    }
    if later is not None:
        motion, valid, visible = flow(camera, moment, hits, later)
        steps = np.rint(motion / np.float32(FLOW_UNIT)).astype(np.int16)
        state = valid.astype(np.uint8) + visible
        files[_place("flow", token)] = _bytes(lambda file: np.savez_compressed(file, flow=steps, state=state))
    return files


def sweep_files(token: str, owner: NDArray[np.int32]) -> dict[str, bytes]:
    """The ids of a sweep's points. owner (P,): as :func:`mim4d.world.sensors.sweep` gave it."""
    return {_place("lidar", token): _bytes(lambda file: np.save(file, (owner + 1).astype(np.uint16)))}


def sample_files(token: str, scene: Scene, rig: Rig, t: float) -> dict[str, bytes]:
    """The occupancy around the ego at a key frame, ``t`` seconds."""
    grid = occupancy(scene, rig, t)
    return {_place("occupancy", token): _bytes(lambda file: np.savez_compressed(file, **grid._asdict()))}


def instance_files(scene_name: str, scene: Scene, tokens: Sequence[str]) -> dict[str, bytes]:
    """Which instance an id is. tokens: one per actor, empty where it is never annotated."""
    rows = zip(tokens, scene.actors, strict=True)
    known = {i: {"token": token, "category": actor.category} for i, (token, actor) in enumerate(rows, 1)}
    return {_place("instances", scene_name): json.dumps(known, indent=0).encode()}


def _read(root: Root, kind: str, name: str, read: Callable[[Path], T]) -> T:
    ending, of = KINDS[kind]
    path = Path(root) / FOLDER / kind / f"{name}{ending}"
    if not (Path(root) / FOLDER).is_dir():
        raise UserError(f"{root} holds no folder {FOLDER!r}: make the world with extras=True (--extras)")
    if not path.is_file():
        raise UserError(f"{path} is not there: {name!r} must name {of}")
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as e:
        raise UserError(f"{path} cannot be read ({e}); make the world again") from e


def _pixels(path: Path) -> NDArray[np.generic]:
    with Image.open(path) as image:
        return np.asarray(image)


def load_depth(root: Root, sample_data_token: str) -> Float32:
    """(H, W) metres along the camera's axis at the pixels' centres, inf in the sky.

    Exact to 2 mm; what is 255.996 m away or more counts as 255.996. :func:`ray_length` gives the ray's length.
    Raises UserError where the token names no image of a key frame, or the world has no truth.
    """
    steps = _read(root, "depth", sample_data_token, _pixels)
    return np.where(steps == 0, np.float32(np.inf), steps.astype(np.float32) * np.float32(DEPTH_UNIT))


def load_normals(root: Root, sample_data_token: str) -> Float32:
    """(H, W, 3) unit normals of what is seen, towards the camera, in camera coordinates (x right, y down, z forward).

    0 in the sky. Stored with 8 bits a component: up to 0.4 degrees off. Raises as :func:`load_depth`.
    """
    code = _read(root, "normals", sample_data_token, _pixels)
    n = np.where((code == 0).all(-1, keepdims=True), 0.0, code.astype(np.float32) - 128.0)
    return (n / np.maximum(norm(n, keepdims=True), 1.0)).astype(np.float32)


def load_ids(root: Root, sample_data_token: str) -> Ids:
    """(H, W) ids of the things at the pixels' centres, 0: still world or sky. Raises as :func:`load_depth`."""
    return _read(root, "ids", sample_data_token, _pixels).astype(np.uint16)


def load_flow(root: Root, sample_data_token: str) -> Flow:
    """Motion to the next image of the same camera (``next`` in sample_data), to 1/128 pixel.

    Raises as :func:`load_depth`, and for the last image of a camera, which has no next.
    """

    def read(path: Path) -> Flow:
        with np.load(path) as file:
            state = file["state"]
            return Flow(file["flow"].astype(np.float32) * np.float32(FLOW_UNIT), state > 0, state == 2)

    return _read(root, "flow", sample_data_token, read)


def load_lidar_ids(root: Root, sample_data_token: str) -> Ids:
    """(P,) ids of a sweep's points, in the order of its file. Raises UserError where the token names no sweep."""
    return _read(root, "lidar", sample_data_token, lambda path: np.load(path))


def load_occupancy(root: Root, sample_token: str) -> Occupancy:
    """What fills the voxels around the ego at a sample. Raises UserError where the token names no sample."""

    def read(path: Path) -> Occupancy:
        with np.load(path) as file:
            return Occupancy(*(file[name] for name in Occupancy._fields))

    return _read(root, "occupancy", sample_token, read)


def load_instances(root: Root, scene_name: str) -> dict[int, Instance]:
    """Id -> instance, of all things of a scene. Raises UserError where there is no such scene."""
    rows = _read(root, "instances", scene_name, lambda path: json.loads(path.read_text()))
    return {int(i): Instance(**{f.name: row[f.name] for f in fields(Instance)}) for i, row in rows.items()}
