"""The sensor rig and what it measures: six cameras, one spinning LiDAR, and the ground truth behind both."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mim4d.world import exact
from mim4d.world.echo import RANGE_NOISE, echo
from mim4d.world.film import photograph
from mim4d.world.geometry import rigid, yaw_matrix
from mim4d.world.scene import Hits, Moment, Scene, View
from mim4d.world.shading import Shader

Array = NDArray[np.float64]
Float32 = NDArray[np.float32]

CAMERA_HZ, LIDAR_HZ, KEY_HZ = 12, 20, 2
LIDAR = "LIDAR_TOP"
BEAMS = 32
AZIMUTHS = 1084  # firings per turn
LIDAR_NEAR, LIDAR_FAR = 1.0, 95.0  # metres
# channel: heading in degrees, focal length over image width, place on the car (x, y, z) metres
CAMERAS: dict[str, tuple[float, float, tuple[float, float, float]]] = {
    "CAM_FRONT": (0.0, 0.79, (1.70, 0.0, 1.52)),
    "CAM_FRONT_RIGHT": (-55.0, 0.79, (1.55, -0.49, 1.50)),
    "CAM_FRONT_LEFT": (55.0, 0.79, (1.55, 0.49, 1.50)),
    "CAM_BACK": (180.0, 0.505, (0.03, 0.0, 1.57)),
    "CAM_BACK_LEFT": (110.0, 0.79, (1.03, 0.48, 1.56)),
    "CAM_BACK_RIGHT": (-110.0, 0.79, (1.03, -0.48, 1.56)),
}
FINE = ((0.83, 0.42), (0.26, 0.82), (0.41, 0.18))  # with the centre, four places spread over a pixel
EDGE = 0.12  # difference of display brightness (0..1) between surfaces that is smoothed
BLOCK = 1 << 15  # pixels cast and coloured at a time
OPTICAL = np.array(
    [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
)  # ego axes of a camera's x right, y down, z forward


def firing_offset(heading: float) -> float:
    """Seconds from a sweep's end to the moment a camera fires: when the turning beam passes its heading (degrees).

    The beam turns clockwise and ends a turn at the rear left camera, as on the nuScenes car.
    """
    return -((heading - 110.0) % 360.0) / 360.0 / LIDAR_HZ


@dataclass(frozen=True)
class Camera:
    channel: str
    width: int
    height: int
    intrinsics: Array  # (3, 3)
    ego_from_cam: Array  # (4, 4)
    gain: float  # exposure
    offset: float  # seconds between the key frame's LiDAR and this camera's firing
    rays: Float32  # (H * W, 3) unit directions in camera coordinates through the pixel centres

    @property
    def pixel(self) -> float:
        """Angle of a pixel in radians."""
        return 1.0 / float(self.intrinsics[0, 0])


@dataclass(frozen=True)
class Lidar:
    ego_from_lidar: Array  # (4, 4)
    rays: Float32  # (AZIMUTHS * BEAMS, 3) unit directions in LiDAR coordinates
    ring: Float32  # (AZIMUTHS * BEAMS,) beam number, 0 the lowest


@dataclass(frozen=True)
class Rig:
    cameras: dict[str, Camera]
    lidar: Lidar


def pixel_rays(intrinsics: Array, x: Array, y: Array) -> Float32:
    """(..., 3) unit directions in camera coordinates through places x, y (...) of the image, in pixels."""
    right = (x - intrinsics[0, 2]) / intrinsics[0, 0]
    down = (y - intrinsics[1, 2]) / intrinsics[1, 1]
    d = np.stack([right, down, np.ones_like(right)], -1)
    return (d / exact.norm(d, keepdims=True)).astype(np.float32)


def _tilt(rng: np.random.Generator, degrees: float) -> Array:
    """A small random rotation."""
    v = math.radians(degrees) * exact.normal(rng, 3).clip(-2, 2)
    angle = float(exact.norm(v))
    k = v / max(angle, 1e-12)
    m = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    sin, cos = exact.sincos(angle)
    return np.eye(3) + sin * m + (1 - cos) * exact.compose(m, m)


def make_rig(rng: np.random.Generator, image_size: tuple[int, int]) -> Rig:
    """A car's sensors with the small differences between one car and the next. image_size = (height, width)."""
    height, width = image_size
    cameras = {}
    for channel, (heading, focal, place) in CAMERAS.items():
        f = focal * width * (1 + 0.004 * exact.normal(rng))
        k = np.array(
            [
                [f, 0, width * (0.5 + 0.008 * exact.normal(rng))],
                [0, f, height * (0.54 + 0.008 * exact.normal(rng))],
                [0, 0, 1],
            ]
        )
        rotation = exact.compose(exact.compose(yaw_matrix(math.radians(heading)), OPTICAL), _tilt(rng, 0.4))
        pose = rigid(rotation, np.array(place) + 0.01 * exact.normal(rng, 3).clip(-2, 2))
        gain = 0.8 * float(1 + 0.03 * exact.normal(rng))
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        rays = pixel_rays(k, x.ravel(), y.ravel())
        cameras[channel] = Camera(channel, width, height, k, pose, gain, firing_offset(heading), rays)
    elevation = math.pi / 180 * np.linspace(-30.67, 10.67, BEAMS)
    azimuth = -2 * np.pi * np.arange(AZIMUTHS) / AZIMUTHS
    (sin_a, cos_a), (sin_e, cos_e) = (exact.sincos(x) for x in np.meshgrid(azimuth, elevation, indexing="ij"))
    rays = np.stack([cos_e * cos_a, cos_e * sin_a, sin_e], -1).reshape(-1, 3)
    ring = np.broadcast_to(np.arange(BEAMS), (AZIMUTHS, BEAMS)).reshape(-1)
    mount = rigid(exact.compose(yaw_matrix(-math.pi / 2), _tilt(rng, 0.3)), np.array([0.95, 0.0, 1.84]))
    return Rig(cameras, Lidar(mount, rays.astype(np.float32), ring.astype(np.float32)))


def _world_rays(scene: Scene, t: float, ego_from_sensor: Array, rays: Float32) -> tuple[Array, Float32]:
    pose = exact.compose(scene.ego_pose(t), ego_from_sensor)
    return pose[:3, 3], exact.apply(pose[:3, :3].astype(np.float32), rays)


def camera_view(scene: Scene, camera: Camera, t: float) -> View:
    """What a camera can see at the moment t, a little more than its image."""
    pose = exact.compose(scene.ego_pose(t), camera.ego_from_cam)
    axis = pose[:2, 2] / exact.norm(pose[:2, 2])
    left, right = camera.intrinsics[0, 2], camera.width - camera.intrinsics[0, 2]
    # The corners of a tilted image reach a little further to the side than its middle row.
    half = float(exact.atan2(1.15 * max(left, right), camera.intrinsics[0, 0]))
    return View(pose[:2, 3], axis, half)


def look(scene: Scene, camera: Camera, t: float) -> Hits:
    """Ground truth of an image: the hit of every pixel's centre ray, row by row (H * W). ``distance`` is ray length."""
    return trace(camera, scene.at(t, camera_view(scene, camera, t)))


def camera_depth(scene: Scene, camera: Camera, t: float) -> Float32:
    """(H, W) ray length in metres of every pixel at the moment t, inf in the sky."""
    return look(scene, camera, t).distance.reshape(camera.height, camera.width)


def blocks(count: int, size: int = BLOCK) -> list[slice]:
    """0..count in pieces: what a piece needs stays in the processor's cache, and memory does not grow with images."""
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def trace(camera: Camera, moment: Moment) -> Hits:
    """The hit of every pixel's centre ray at a moment, row by row (H * W)."""
    parts = []
    for block in blocks(len(camera.rays)):
        origin, d = _world_rays(moment.scene, moment.t, camera.ego_from_cam, camera.rays[block])
        parts.append(moment.cast(origin, d))
    return Hits(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Hits)))


def render(shader: Shader, camera: Camera, moment: Moment, hits: Hits | None = None) -> NDArray[np.uint8]:
    """(H, W, 3) RGB image of a moment. ``hits``: what :func:`trace` gave for it, where that is at hand.

    One ray through each pixel's centre; pixels at a visible border between two surfaces get three more.
    """
    scene = moment.scene
    hits = trace(camera, moment) if hits is None else hits
    linear = np.empty((3, len(camera.rays)), np.float32)
    for block in blocks(len(camera.rays)):
        origin, d = _world_rays(scene, moment.t, camera.ego_from_cam, camera.rays[block])
        part = Hits(*(getattr(hits, f.name)[block] for f in fields(Hits)))
        linear[:, block] = shader.colours(moment, origin, d, part, camera.pixel)
    surface = np.where(hits.face >= 0, scene.mesh.surface[hits.face], -1).reshape(camera.height, camera.width)
    green = np.sqrt(linear[1] * np.float32(camera.gain)).reshape(camera.height, camera.width)
    edge = _borders(surface, green)
    for block in blocks(len(edge), BLOCK // len(FINE)):
        at = edge[block]
        row, column = np.divmod(at, camera.width)
        x, y = (np.concatenate([place[i] + along for place in FINE]) for i, along in enumerate((column, row)))
        origin, d = _world_rays(scene, moment.t, camera.ego_from_cam, pixel_rays(camera.intrinsics, x, y))
        more = shader.colours(moment, origin, d, moment.cast(origin, d), camera.pixel)  # (3, 3 * E)
        linear[:, at] = (linear[:, at] + more.reshape(3, len(FINE), -1).sum(1)) / (1 + len(FINE))
    # The noise of an image follows from what it shows, so that the same moment gives the same bytes.
    key = [scene.seed, scene.index, 24, list(CAMERAS).index(camera.channel), round((moment.t + 1.0) * 1e6)]
    noise = scene.knobs.sensor_noise * math.sqrt(scene.air.exposure)
    return photograph(linear, (camera.height, camera.width), camera.gain, noise, key)


def _borders(surface: NDArray[np.int32], light: Float32) -> NDArray[np.intp]:
    """Linear indices of the pixels of (H, W) with a neighbour of another surface and of a brightness that differs."""
    border = np.zeros(surface.shape, bool)
    across = (surface[:, 1:] != surface[:, :-1]) & (np.abs(light[:, 1:] - light[:, :-1]) > EDGE)
    down = (surface[1:] != surface[:-1]) & (np.abs(light[1:] - light[:-1]) > EDGE)
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    return np.flatnonzero(border)


def sweep(scene: Scene, lidar: Lidar, t: float, rng: np.random.Generator) -> tuple[Float32, NDArray[np.int32]]:
    """One turn of the LiDAR, as if all beams fired at the moment t.

    nuScenes' sweeps are compensated for the car's own motion, and its boxes are drawn where their points lie: one
    moment gives both. What a real turn has beside that, things that move within it, is left out.

    Returns points (P, 5) [x, y, z in LiDAR coordinates, intensity 0..255, ring] and the actor (P,) each one lies on, or
    -1. Beams that meet nothing between LIDAR_NEAR and LIDAR_FAR return nothing, and some that do are lost, as
    :func:`mim4d.world.echo.echo` says. ``knobs.sensor_noise`` scales the noise of range and intensity.
    """
    amount = np.float32(scene.knobs.sensor_noise)
    origin, d = _world_rays(scene, t, lidar.ego_from_lidar, lidar.rays)
    moment = scene.at(t)
    hits = moment.cast(origin, d)
    noise = np.float32(RANGE_NOISE) * amount * exact.normal(rng, len(d)).astype(np.float32)
    luck = rng.random(len(d), dtype=np.float32)
    kept = np.flatnonzero((hits.distance > LIDAR_NEAR) & (hits.distance < LIDAR_FAR))
    face, r = hits.face[kept], hits.distance[kept]
    signal, lost = echo(moment, face, r, d[kept])
    strong = luck[kept] >= lost
    kept, r, signal = kept[strong], r[strong], signal[strong]
    xyz = lidar.rays[kept] * np.maximum(r + noise[kept], LIDAR_NEAR)[:, None]
    intensity = np.round(np.clip(255 * signal * (1 + amount * (0.2 * luck[kept] - 0.1)), 0, 255))
    points = np.concatenate([xyz, intensity[:, None], lidar.ring[kept, None]], 1).astype(np.float32)
    return points, hits.owner[kept]
