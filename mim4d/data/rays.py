"""Depth-aware rays: where LiDAR returns fall in an image, which of them become rays, and what each ray should see.

A ray starts at the camera centre, in the coordinates of the target frame (metres), and passes through a point of the
resized image. A ray through a LiDAR return passes exactly through it: ``return = origin + depth * direction``.
Everything is computed in float64 on the host and handed over as float32; every draw comes from :func:`stable_rng`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mim4d.data.frames import Array, LidarRecord, invert_rigid, transform
from mim4d.data.transforms import Image
from mim4d.data.verify import check_lidar_size
from mim4d.errors import UserError

Bounds = tuple[float, float, float, float, float, float]

EGO_RADIUS = 2.5
"""Returns closer to the LiDAR than this many metres are the ego car itself."""

MIN_DEPTH = 1e-3
"""Points at most this far (z-depth, metres) in front of a camera are not in its image."""


def stable_rng(*parts: int | str) -> np.random.Generator:
    """A random generator that depends on the given values alone: the same in every process and on every machine."""
    text = "\x1f".join(f"{type(part).__name__}={part}" for part in parts)
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little"))


@dataclass
class Rays:
    """Rays and their targets; all fields share their leading dimensions (..., R)."""

    origins: Tensor  # (..., R, 3) float32 m, in the target frame
    directions: Tensor  # (..., R, 3) float32, unit
    rgb: Tensor  # (..., R, 3) float32 in [0, 1]
    depth: Tensor  # (..., R) float32 m along the ray; 0 where there is no LiDAR return
    has_depth: Tensor  # (..., R) bool
    pixels: Tensor  # (..., R, 2) float32 x, y in the resized image

    def map(self, function: Callable[[Tensor], Tensor]) -> Rays:
        """The same function applied to every field."""
        return Rays(*(function(getattr(self, field.name)) for field in fields(self)))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Rays:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def blank(self) -> Rays:
        """The same rays with nothing to learn from: no depth, black."""
        return replace(
            self,
            rgb=torch.zeros_like(self.rgb),
            depth=torch.zeros_like(self.depth),
            has_depth=torch.zeros_like(self.has_depth),
        )

    @staticmethod
    def join(join: Callable[[list[Tensor]], Tensor], rays: Sequence[Rays]) -> Rays:
        """``join`` (as ``torch.stack`` or ``torch.cat``) applied field by field."""
        return Rays(*(join([getattr(item, field.name) for item in rays]) for field in fields(Rays)))


@dataclass(frozen=True)
class View:
    """One image at the working resolution, with where it was taken."""

    image: Image  # (H, W, 3) uint8 RGB, without padding
    intrinsics: Array  # (3, 3) of that image
    frame_from_cam: Array  # (4, 4)


@dataclass(frozen=True)
class Hits:
    """LiDAR returns seen by one camera, at most one per pixel (the nearest), ordered by pixel."""

    uv: Array  # (P, 2) x, y in the image
    depth: Array  # (P,) metres from the camera centre
    pixel: npt.NDArray[np.int64]  # (P,) row * W + column

    def __len__(self) -> int:
        return len(self.depth)

    def select(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Hits:
        return Hits(self.uv[chosen], self.depth[chosen], self.pixel[chosen])

    @staticmethod
    def join(parts: Sequence[Hits]) -> Hits:
        """All returns of several parts of one image, ordered by pixel."""
        pixel = np.concatenate([part.pixel for part in parts])
        both = Hits(np.concatenate([part.uv for part in parts]), np.concatenate([part.depth for part in parts]), pixel)
        return both.select(np.argsort(pixel, kind="stable"))


NO_HITS = Hits(np.zeros((0, 2)), np.zeros(0), np.zeros(0, dtype=np.int64))


def load_lidar(record: LidarRecord) -> Array:
    """The returns of a sweep without those of the ego car: (P, 3) metres in the LiDAR's coordinates.

    The file holds float32 x, y, z, intensity, ring. Values that are not finite are dropped.

    Raises:
        UserError: the file is missing, empty or ends within a return.
    """
    try:
        raw = np.fromfile(record.path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"missing LiDAR file: {record.path} ({error.strerror})") from None
    check_lidar_size(record.path, raw.size)
    points = raw.view("<f4").reshape(-1, 5)[:, :3].astype(np.float64)  # (P, 3)
    points = points[np.isfinite(points).all(axis=1)]
    return points[np.linalg.norm(points, axis=1) >= EGO_RADIUS]


def project(points: Array, intrinsics: Array) -> tuple[Array, Array]:
    """Camera points (P, 3) to x, y (P, 2) in the image and z-depth (P,) in metres; x, y are finite only where z > 0."""
    depth = points[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (points @ intrinsics.T)[:, :2] / depth[:, None], depth


def rays_through(uv: Array, view: View) -> tuple[Array, Array]:
    """Origins and unit directions (..., 3), in frame coordinates, of the rays through image points (..., 2)."""
    homogeneous = np.concatenate([uv, np.ones_like(uv[..., :1])], axis=-1)  # (..., 3)
    through = homogeneous @ np.linalg.inv(view.intrinsics).T @ view.frame_from_cam[:3, :3].T  # (..., 3)
    directions = through / np.linalg.norm(through, axis=-1, keepdims=True)
    return np.broadcast_to(view.frame_from_cam[:3, 3], directions.shape), directions


def sample_colour(image: Image, uv: Array) -> Array:
    """Bilinear colour in [0, 1] (..., 3) at image points (..., 2); the border pixels' colour extends outwards."""
    height, width = image.shape[:2]
    x = np.clip(uv[..., 0] - 0.5, 0, width - 1)
    y = np.clip(uv[..., 1] - 0.5, 0, height - 1)
    x0 = np.minimum(x.astype(np.int64), max(width - 2, 0))
    y0 = np.minimum(y.astype(np.int64), max(height - 2, 0))
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    bottom = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
    return (top * (1 - fy) + bottom * fy) / 255


def lidar_hits(points: Array, view: View, bounds: Bounds | None = None) -> Hits:
    """The returns (P, 3), in frame coordinates, that fall into an image.

    Of the returns in one pixel the nearest wins: what lies behind it the camera cannot see. Then returns outside
    ``bounds`` (xmin, ymin, zmin, xmax, ymax, zmax in frame coordinates) are dropped.
    """
    in_camera = transform(invert_rigid(view.frame_from_cam), points)  # (P, 3)
    height, width = view.image.shape[:2]
    ahead = np.flatnonzero(in_camera[:, 2] > MIN_DEPTH)
    uv, _ = project(in_camera[ahead], view.intrinsics)
    inside = ((uv >= 0) & (uv < [width, height])).all(axis=1)
    uv, index = uv[inside], ahead[inside]
    depth = np.linalg.norm(in_camera[index], axis=1)  # (P,)
    column_row = uv.astype(np.int64)
    pixel = column_row[:, 1] * width + column_row[:, 0]
    order = np.lexsort((depth, pixel))  # by pixel, the nearest first
    _, first = np.unique(pixel[order], return_index=True)
    nearest = order[first]
    if bounds is not None:
        point = points[index[nearest]]
        nearest = nearest[((point >= bounds[:3]) & (point <= bounds[3:])).all(axis=1)]
    return Hits(uv[nearest], depth[nearest], pixel[nearest])


def held_out(hits: Hits, fraction: float, *key: int | str) -> npt.NDArray[np.bool_]:
    """A mask (P,) of the returns that training never sees: a fixed fraction, the same for the same ``key`` and hits."""
    mask = np.zeros(len(hits), dtype=bool)
    mask[stable_rng("held out", *key).permutation(len(hits))[: round(fraction * len(hits))]] = True
    return mask


def draw_rays(
    view: View,
    hits: Hits,
    count: int,
    rng: np.random.Generator,
    *,
    sky: float = 0.4,
    exclude: npt.NDArray[np.int64] | None = None,
    repeat: bool = False,
    patch: int = 1,
) -> Rays:
    """Draw rays of one camera (METHOD section 2).

    Hit pixels are drawn without replacement. When there are too few, pixels below the sky line fill up, without depth
    and through their centres, each once; only when those run out too are pixels drawn again.

    Args:
        view: the image and its calibration.
        hits: the returns to draw from.
        count: rays to draw.
        rng: the source of every draw.
        sky: the share of rows, from the top, that is sky and never fills up.
        exclude: linear pixels that must not fill up (held out, for instance).
        repeat: fill up by going through the hits again, each as often as the others up to one, instead of with pixels
            without depth. Without any hit there is nothing to repeat and pixels fill up.
        patch: draw ``count / patch^2`` pixels that way and take the square of ``patch`` pixels a side around each,
            moved into the image at its border. A pixel with a return is seen through it, another through its centre.

    Returns:
        Rays with leading dimension (count,): LiDAR rays first, or patch after patch, each row by row.
    """
    if patch > 1:
        centres = draw_rays(view, hits, count // patch**2, rng, sky=sky, exclude=exclude, repeat=repeat)
        return _patches(view, hits, centres.pixels.numpy().astype(np.int64), patch)
    order = rng.permutation(len(hits))
    if repeat and len(hits):
        order = np.resize(order, count)
    chosen = hits.select(order[:count])
    missing = count - len(chosen)
    height, width = view.image.shape[:2]
    free = np.zeros(0, dtype=np.int64)
    if missing:
        taken = np.zeros(height * width, dtype=bool)
        taken[chosen.pixel] = True
        taken[exclude if exclude is not None else []] = True
        taken[: int(np.ceil(sky * height)) * width] = True
        candidates = np.flatnonzero(~taken)
        if not len(candidates):
            raise UserError(
                f"an image of {width}x{height} has no pixel left for {count} rays: lower --data.rays-per-camera, "
                "--data.sky or --data.holdout-fraction"
            )
        free = np.resize(rng.permutation(candidates), missing)
    centres = np.stack([free % width + 0.5, free // width + 0.5], axis=-1)  # (missing, 2)
    uv = np.concatenate([chosen.uv, centres])
    depth = np.concatenate([chosen.depth, np.zeros(missing)])
    return _rays(view, uv, depth)


def _patches(view: View, hits: Hits, middle: npt.NDArray[np.int64], patch: int) -> Rays:
    """Rays (M * patch^2,) of the squares around the pixels ``middle`` (M, 2), x and y."""
    height, width = view.image.shape[:2]
    corner = np.clip(middle - patch // 2, 0, [width - patch, height - patch])  # (M, 2)
    y, x = np.meshgrid(np.arange(patch), np.arange(patch), indexing="ij")
    square = (corner[:, None] + np.stack([x, y], axis=-1).reshape(1, -1, 2)).reshape(-1, 2)  # (M * patch^2, 2)
    uv, depth = square + 0.5, np.zeros(len(square))
    place = np.full(height * width, -1)
    place[hits.pixel] = np.arange(len(hits))
    index = place[square[:, 1] * width + square[:, 0]]
    met = index >= 0
    uv[met], depth[met] = hits.uv[index[met]], hits.depth[index[met]]
    return _rays(view, uv, depth)


def dense_rays(view: View, stride: int) -> Rays:
    """Rays through the centres of ``stride`` x ``stride`` blocks, without depth: leading dimensions (H // s, W // s).

    Raises:
        ValueError: stride below 1 or larger than the image.
    """
    height, width = view.image.shape[:2]
    if not 1 <= stride <= min(height, width):
        raise ValueError(f"dense_rays: stride must be in 1..{min(height, width)}, got {stride}")
    y, x = np.meshgrid(np.arange(height // stride), np.arange(width // stride), indexing="ij")
    uv = (np.stack([x, y], axis=-1) + 0.5) * stride  # (h, w, 2)
    return _rays(view, uv, np.zeros(uv.shape[:-1]))


def _rays(view: View, uv: Array, depth: Array) -> Rays:
    origins, directions = rays_through(uv, view)
    as_tensor = lambda array: torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return Rays(
        origins=as_tensor(origins),
        directions=as_tensor(directions),
        rgb=as_tensor(sample_colour(view.image, uv)),
        depth=as_tensor(depth),
        has_depth=torch.from_numpy(depth > 0),
        pixels=as_tensor(uv),
    )
