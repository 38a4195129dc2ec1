"""Writes the files of one scene: images, sweeps, and what is counted in them for the annotations."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mim4d.world import exact, truth
from mim4d.world.files import Note
from mim4d.world.geometry import yaw_matrix
from mim4d.world.maps import token
from mim4d.world.recipe import Recipe, Slot
from mim4d.world.scene import Hits, Moment, Scene
from mim4d.world.sensors import (
    CAMERA_HZ,
    CAMERAS,
    KEY_HZ,
    LIDAR,
    LIDAR_HZ,
    Camera,
    Rig,
    camera_view,
    render,
    sweep,
    trace,
)
from mim4d.world.shading import Shader

Array = NDArray[np.float64]
Put = Callable[[str, bytes], int]  # (place in the world, contents) -> size

CHANNELS = (*CAMERAS, LIDAR)
JPEG_QUALITY = 92
SURFACE_POINTS = 40  # tested per actor and camera for visibility


def key_frames(seconds: float) -> int:
    """Number of key frames of a scene of so many seconds: both ends count."""
    return int(seconds * KEY_HZ + 1e-9) + 1


def frame_count(seconds: float, channel: str) -> int:
    """Files of a channel in a scene of so many seconds."""
    return (key_frames(seconds) - 1) * per_key(channel) + 1


def per_key(channel: str) -> int:
    """Files of a channel from one key frame to the next."""
    return (LIDAR_HZ if channel == LIDAR else CAMERA_HZ) // KEY_HZ


def scene_files(seconds: float) -> int:
    """Images and sweeps of a scene."""
    return sum(frame_count(seconds, channel) for channel in CHANNELS)


@dataclass(frozen=True)
class Shot:
    """One file of a sensor."""

    channel: str
    frame: int
    key: bool  # of a key frame
    sample: int  # the key frame that it belongs to: what lies between two belongs to the later one
    t_us: int  # microseconds since the scene's first key frame
    place: str  # relative to the world


def shots(slot: Slot, rig: Rig, channel: str, frames: Iterable[int]) -> Iterator[Shot]:
    rate, offset = (LIDAR_HZ, 0.0) if channel == LIDAR else (CAMERA_HZ, rig.cameras[channel].offset)
    suffix, every = "pcd.bin" if channel == LIDAR else "jpg", per_key(channel)
    for frame in frames:
        key, t_us = frame % every == 0, round((frame / rate + offset) * 1e6)
        name = f"{slot.logfile}__{channel}__{slot.start_us + t_us}.{suffix}"
        place = f"{'samples' if key else 'sweeps'}/{channel}/{name}"
        yield Shot(channel, frame, key, -(-frame // every), t_us, place)


class SceneWriter:
    """Writes a scene's files in any order and any division, always with the same bytes."""

    def __init__(self, recipe: Recipe, slot: Slot, scene: Scene, rig: Rig, shader: Shader) -> None:
        self.recipe, self.slot, self.scene, self.rig, self.shader = recipe, slot, scene, rig, shader
        rng = np.random.default_rng([recipe.seed, slot.index, 23])
        self.surface = [self._surface_points(rng, i) for i in range(len(scene.actors))]

    def stream(self, channel: str, frame: int) -> np.random.Generator:
        """The randomness of one file: whoever writes it, whenever, draws the same."""
        return np.random.default_rng([self.recipe.seed, self.slot.index, 22, CHANNELS.index(channel), frame])

    def write(self, channel: str, frames: range, put: Put, done: Callable[[], None]) -> Note:
        """Writes these frames of a channel; returns what :class:`mim4d.world.tables.SceneRows` wants to know of them.

        ``done`` is called after every image or sweep.
        """
        files: dict[str, int] = {}

        def store(place: str, data: bytes) -> int:
            files[place] = put(place, data)
            return files[place]

        make = self._sweeps if channel == LIDAR else self._images
        counted = make(shots(self.slot, self.rig, channel, frames), store, done)
        return {"files": files, **counted}

    def _sweeps(self, wanted: Iterable[Shot], put: Put, done: Callable[[], None]) -> dict[str, Any]:
        """Every sweep; at key frames the points in each actor's box are counted."""
        counts: dict[int, list[int]] = {}
        for shot in wanted:
            t = shot.t_us / 1e6
            points, owner = sweep(self.scene, self.rig.lidar, t, self.stream(shot.channel, shot.frame))
            put(shot.place, points.tobytes())
            if self.recipe.extras:
                for place, data in self._sweep_truth(shot, owner).items():
                    put(place, data)
            if shot.key:
                pose = exact.compose(self.scene.ego_pose(t), self.rig.lidar.ego_from_lidar)
                xyz = exact.apply(pose[:3, :3], points[:, :3].astype(np.float64)) + pose[:3, 3]
                counts[shot.sample] = [
                    count_points(xyz, actor.pose(t)[0], actor.rotation(t), actor.size) for actor in self.scene.actors
                ]
            done()
        return {"points": counts}

    def _images(self, wanted: Iterable[Shot], put: Put, done: Callable[[], None]) -> dict[str, Any]:
        """Every image; at key frames it is counted how much of each actor it shows."""
        counts: dict[str, dict[int, list[int]]] = defaultdict(dict)
        for shot in wanted:
            camera, t = self.rig.cameras[shot.channel], shot.t_us / 1e6
            moment = self.scene.at(t, camera_view(self.scene, camera, t))
            buffer = io.BytesIO()  # Pillow hides why a disk takes no more
            hits = trace(camera, moment)
            image = Image.fromarray(render(self.shader, camera, moment, hits))
            image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
            put(shot.place, buffer.getvalue())
            if shot.key and self.recipe.extras:
                for place, data in self._image_truth(shot, camera, moment, hits).items():
                    put(place, data)
            if shot.key:
                counts["inside"][shot.sample], counts["seen"][shot.sample] = self._visible(camera, moment)
            done()
        return dict(counts)

    def token(self, *parts: object) -> str:
        return token(self.recipe.token_root, self.slot.name, *parts)

    def _sweep_truth(self, shot: Shot, owner: NDArray[np.int32]) -> dict[str, bytes]:
        files = truth.sweep_files(self.token("data", shot.channel, shot.frame), owner)
        if shot.key:
            files |= truth.sample_files(self.token("sample", shot.sample), self.scene, self.rig, shot.t_us / 1e6)
        return files

    def _image_truth(self, shot: Shot, camera: Camera, moment: Moment, hits: Hits) -> dict[str, bytes]:
        following = range(shot.frame + 1, frame_count(self.recipe.seconds, shot.channel))[:1]
        later = [after.t_us / 1e6 for after in shots(self.slot, self.rig, shot.channel, following)]
        me = self.token("data", shot.channel, shot.frame)
        return truth.image_files(me, camera, moment, hits, later[0] if later else None)

    def _surface_points(self, rng: np.random.Generator, actor: int) -> NDArray[np.float32]:
        """(SURFACE_POINTS, 3) points spread over an actor's faces by area, about its centre."""
        v = self.scene.actors[actor].mesh.vertices  # (F, 3, 3)
        area = exact.norm(np.cross(v[:, 1] - v[:, 0], v[:, 2] - v[:, 0]))
        face = rng.choice(len(v), SURFACE_POINTS, p=area / area.sum())
        # Evenly over a triangle: the distance from its first corner goes with the square root.
        a, b = np.sqrt(rng.random(SURFACE_POINTS)), rng.random(SURFACE_POINTS)
        w = np.stack([1 - a, a * (1 - b), a * b], 1)  # (S, 3)
        return (v[face] * w[:, :, None]).sum(1).astype(np.float32)

    def _on_actor(self, i: int, t: float) -> Array:
        """(SURFACE_POINTS, 3) an actor's surface points in map coordinates."""
        centre, yaw = self.scene.actors[i].pose(t)
        return centre + exact.apply(yaw_matrix(float(yaw)), self.surface[i])

    def _visible(self, camera: Camera, moment: Moment) -> tuple[list[int], list[int]]:
        """Counts, per actor, surface points inside this image and those of them that nothing else hides."""
        pose = exact.compose(self.scene.ego_pose(moment.t), camera.ego_from_cam)
        centre = pose[:3, 3]
        points = np.stack([self._on_actor(i, moment.t) for i in range(len(self.scene.actors))])  # (A, S, 3)
        local = exact.apply(pose[:3, :3].T, points - centre)
        z = np.maximum(local[..., 2], 1e-3)
        u = local[..., 0] / z * camera.intrinsics[0, 0] + camera.intrinsics[0, 2]
        v = local[..., 1] / z * camera.intrinsics[1, 1] + camera.intrinsics[1, 2]
        inside = (local[..., 2] > 0.1) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
        actor, point = np.nonzero(inside)
        if len(actor) == 0:
            return [0] * len(inside), [0] * len(inside)
        d = points[actor, point] - centre
        d /= exact.norm(d, keepdims=True)
        own = moment.cast(centre, d.astype(np.float32)).owner == actor
        seen = np.bincount(actor[own], minlength=len(self.scene.actors))
        return inside.sum(1).tolist(), seen.tolist()


def count_points(points: Array, centre: Array, rotation: Array, size: tuple[float, float, float]) -> int:
    """LiDAR points inside a box, its faces included."""
    reach = max(size)
    near = points[(np.abs(points[:, 0] - centre[0]) < reach) & (np.abs(points[:, 1] - centre[1]) < reach)]
    local = np.abs(exact.apply(rotation.T, near - centre))
    width, length, height = size
    return int((local <= np.array([length, width, height]) / 2).all(1).sum())
