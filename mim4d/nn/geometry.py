"""Where things are: the voxel grid, rigid transforms and the pinhole camera.

Every formula here is written out in elementwise products and sums. Matrix multiplication is on the cast lists of
autocast and of TF32; a coordinate of 50 m in bfloat16 is wrong by up to 12 cm, so geometry never goes through it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VoxelGrid:
    """A box of equal cells in a frame's coordinates (x forward, y left, z up, metres).

    One convention everywhere: values live at cell centres (``align_corners=False``), and the cell of a point is
    ``floor((p - min) / cell_size)``. Volumes on this grid are ``(B, C, Z, Y, X)``.

    Args:
        bounds: ``(xmin, ymin, zmin, xmax, ymax, zmax)`` in metres.
        size: number of cells ``(X, Y, Z)``.

    Raises:
        ValueError: bounds are not six finite numbers with min < max, or a size is below one.
    """

    bounds: tuple[float, float, float, float, float, float]
    size: tuple[int, int, int]

    def __post_init__(self) -> None:
        if len(self.bounds) != 6 or not all(math.isfinite(b) for b in self.bounds):
            raise ValueError(f"VoxelGrid: bounds must be six finite numbers, got {self.bounds}")
        if any(low >= high for low, high in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f"VoxelGrid: bounds must have min < max on each axis, got {self.bounds}")
        if len(self.size) != 3 or any(n < 1 for n in self.size):
            raise ValueError(f"VoxelGrid: size must be three positive counts (X, Y, Z), got {self.size}")

    @property
    def lower(self) -> tuple[float, float, float]:
        """The corner (xmin, ymin, zmin), metres."""
        return self.bounds[0], self.bounds[1], self.bounds[2]

    @property
    def upper(self) -> tuple[float, float, float]:
        """The corner (xmax, ymax, zmax), metres."""
        return self.bounds[3], self.bounds[4], self.bounds[5]

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(Z, Y, X)``: the last three sizes of a volume."""
        return self.size[2], self.size[1], self.size[0]

    @property
    def cell_size(self) -> tuple[float, float, float]:
        """Metres of one cell along x, y, z."""
        x, y, z = ((h - l) / n for l, h, n in zip(self.lower, self.upper, self.size, strict=True))
        return x, y, z

    def normalise(self, points: Tensor) -> Tensor:
        """Metres to grid coordinates in [-1, 1], as ``torch.nn.functional.grid_sample`` counts them.

        Args:
            points: (..., 3) metres, (x, y, z). Computed in fp32 at least.

        Returns:
            (..., 3): -1 and +1 are the outer faces of the box.
        """
        axes = _at_least_fp32(points).unbind(-1)  # Python floats per axis: no copy from the host on a GPU
        scaled = [(a - l) * (2.0 / (h - l)) - 1.0 for a, l, h in zip(axes, self.lower, self.upper, strict=True)]
        return torch.stack(scaled, dim=-1)

    def centres(self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Cell centres (Z, Y, X, 3), metres."""
        axes = [
            low + (torch.arange(n, device=device, dtype=dtype) + 0.5) * step
            for low, n, step in zip(self.lower, self.size, self.cell_size, strict=True)
        ]
        z, y, x = torch.meshgrid(axes[2], axes[1], axes[0], indexing="ij")  # each (Z, Y, X)
        return torch.stack((x, y, z), dim=-1)

    def cells(self, points: Tensor) -> Tensor:
        """The linear cell ``(z * Y + y) * X + x`` of each point.

        Args:
            points: (..., 3) metres.

        Returns:
            (...) int32, -1 for points outside the box and for NaN.
        """
        inside: Tensor | None = None
        linear: Tensor | None = None
        stride = 1
        axes = _at_least_fp32(points).unbind(-1)
        for axis, low, step, n in zip(axes, self.lower, self.cell_size, self.size, strict=True):
            index = torch.floor((axis - low) / step)  # (...)
            here = (index >= 0) & (index < n)  # a NaN compares false
            part = torch.where(here, index, 0.0).to(torch.int32) * stride
            inside = here if inside is None else inside & here
            linear = part if linear is None else linear + part
            stride *= n
        assert inside is not None
        assert linear is not None
        return torch.where(inside, linear, -1)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply a rigid or affine 4x4 to points.

    Args:
        matrix: (..., 4, 4), ``b_from_a``.
        points: (..., P, 3) in a; leading sizes broadcast against the matrix's.

    Returns:
        (..., P, 3) in b.
    """
    columns = matrix[..., None, :3, :]  # (..., 1, 3, 4)
    x, y, z = points[..., 0:1], points[..., 1:2], points[..., 2:3]  # (..., P, 1)
    return x * columns[..., 0] + y * columns[..., 1] + z * columns[..., 2] + columns[..., 3]


def compose(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of 4x4 matrices (..., 4, 4) at full precision under autocast and TF32."""
    return (left[..., :, :, None] * right[..., None, :, :]).sum(dim=-2)


def invert_rigid(matrix: Tensor) -> Tensor:
    """The inverse of a rotation + translation (..., 4, 4): transposed rotation, rotated-back translation."""
    rotation = matrix[..., :3, :3].transpose(-1, -2)  # (..., 3, 3)
    translation = -(rotation * matrix[..., None, :3, 3]).sum(dim=-1)  # (..., 3)
    top = torch.cat((rotation, translation[..., None]), dim=-1)  # (..., 3, 4)
    return torch.cat((top, matrix[..., 3:, :]), dim=-2)


def project(points: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Pinhole projection: the image's corner is (0, 0), the centre of pixel i lies at i + 0.5.

    Args:
        points: (..., 3) metres in camera coordinates (x right, y down, z forward).
        intrinsics: (..., 3, 3) with last row (0, 0, 1); leading sizes broadcast against the points'.

    Returns:
        uv (..., 2) in pixels and depth (...) = z in metres. Where depth <= 0 the point is behind the camera and uv is
        finite but means nothing.
    """
    x, y, z = points.unbind(-1)
    tiny = torch.finfo(points.dtype).eps
    inverse = 1.0 / torch.where(z.abs() < tiny, tiny, z)
    ray = torch.stack((x * inverse, y * inverse), dim=-1)  # (..., 2)
    k = intrinsics[..., :2, :]  # (..., 2, 3)
    uv = ray[..., 0:1] * k[..., 0] + ray[..., 1:2] * k[..., 1] + k[..., 2]
    return uv, z


def unproject(uv: Tensor, depth: Tensor, intrinsics: Tensor) -> Tensor:
    """The inverse of :func:`project`: pixels and z-depth to camera coordinates.

    Args:
        uv: (..., 2) pixels.
        depth: (...) metres along z.
        intrinsics: (..., 3, 3) with last row (0, 0, 1); skewed and rotated images are allowed.

    Returns:
        (..., 3) metres.
    """
    a, b = intrinsics[..., 0, 0], intrinsics[..., 0, 1]
    c, d = intrinsics[..., 1, 0], intrinsics[..., 1, 1]
    du, dv = (uv - intrinsics[..., :2, 2]).unbind(-1)
    scale = depth / (a * d - b * c)
    return torch.stack(torch.broadcast_tensors((d * du - b * dv) * scale, (a * dv - c * du) * scale, depth), dim=-1)
