"""Push view transform: image features along their rays into the voxels they fall in (Lift, Splat)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mim4d import ops

from .geometry import VoxelGrid, transform_points, unproject


@dataclass(frozen=True)
class _Cached:
    """A pooling index and the calibration it was built from.

    On a CPU a copy of the calibration, compared by value: that is right however its memory is written to, and costs
    nothing beside the index. On a GPU comparing values would synchronise, so the very tensors are kept (their memory
    goes to no other tensor) with their version counters, which every write through torch moves.
    """

    calibration: tuple[Tensor, ...]
    versions: tuple[int, ...]
    sizes: tuple[int, ...]
    index: ops.PoolIndex

    @staticmethod
    def of(calibration: tuple[Tensor, ...], sizes: tuple[int, ...], index: ops.PoolIndex) -> _Cached | None:
        """None where nobody could tell that the calibration was written to: GPU tensors of inference mode."""
        if calibration[0].device.type == "cpu":
            return _Cached(tuple(t.detach().clone() for t in calibration), (), sizes, index)
        if any(t.is_inference() for t in calibration):
            return None
        return _Cached(tuple(t.detach() for t in calibration), tuple(t._version for t in calibration), sizes, index)

    def fits(self, calibration: tuple[Tensor, ...], sizes: tuple[int, ...]) -> bool:
        pairs = list(zip(self.calibration, calibration, strict=True))
        if sizes != self.sizes or any(old.device != new.device or old.dtype != new.dtype for old, new in pairs):
            return False
        if not self.versions:
            return all(torch.equal(old, new) for old, new in pairs)
        return all(
            not new.is_inference()
            and new.data_ptr() == old.data_ptr()
            and new.shape == old.shape
            and new.stride() == old.stride()
            and new._version == version
            for (old, new), version in zip(pairs, self.versions, strict=True)
        )


class LiftSplat(nn.Module):
    """Each pixel spreads its feature over depth bins along its ray; voxels sum what falls into them.

    Pixels lift from their centres: feature pixel (i, j) of an (h, w) map over an (H, W) image looks through image point
    ``((j + 0.5) W / w, (i + 0.5) H / h)``; bin d lies at the z-depth ``depth_min + (d + 0.5) delta``. Geometry is fp32,
    also under autocast. No parameters.

    The sorted index of which pixel-bin falls in which voxel (:func:`mim4d.ops.build_pool_index`) is kept as long as
    calibration stands still: on the CPU equal values; on a GPU, where comparing values would synchronise, the same
    tensors, not written to through torch since. Nothing is kept under ``torch.compile`` and in inference mode, and
    nothing travels with a copy.

    Args:
        grid: the target voxels.
        depth_min, depth_max: metres along the camera's z; bins divide this range evenly.
        depth_bins: D.

    Raises:
        ValueError: depth range empty or no bins.
    """

    def __init__(self, grid: VoxelGrid, depth_min: float, depth_max: float, depth_bins: int) -> None:
        super().__init__()
        if not 0.0 < depth_min < depth_max or depth_bins < 1:
            raise ValueError(
                "LiftSplat: wanted 0 < depth_min < depth_max and depth_bins >= 1, "
                f"got {depth_min}, {depth_max}, {depth_bins}"
            )
        self.grid = grid
        self.depth_min, self.depth_max, self.depth_bins = float(depth_min), float(depth_max), int(depth_bins)
        self._cache: _Cached | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def extra_repr(self) -> str:
        return f"{self.grid}, depth {self.depth_min}..{self.depth_max} m in {self.depth_bins} bins"

    def depths(self, device: torch.device | str | None = None) -> Tensor:
        """Bin centres (D,), metres."""
        step = (self.depth_max - self.depth_min) / self.depth_bins
        return self.depth_min + (torch.arange(self.depth_bins, device=device, dtype=torch.float32) + 0.5) * step

    def cells(
        self, intrinsics: Tensor, frame_from_cam: Tensor, feature_size: tuple[int, int], image_size: tuple[int, int]
    ) -> Tensor:
        """The linear voxel of every pixel and bin, (B, N, D, h, w) int32, -1 outside the grid."""
        h, w = feature_size
        device = intrinsics.device
        v = (torch.arange(h, device=device, dtype=torch.float32) + 0.5) * (image_size[0] / h)
        u = (torch.arange(w, device=device, dtype=torch.float32) + 0.5) * (image_size[1] / w)
        uv = torch.stack(torch.broadcast_tensors(u, v[:, None]), dim=-1)  # (h, w, 2)
        k = intrinsics.float()[:, :, None, None]  # (B, N, 1, 1, 3, 3)
        rays = unproject(uv, uv.new_ones(()), k)  # (B, N, h, w, 3) at one metre of depth
        points = rays[:, :, None] * self.depths(device)[:, None, None, None]  # (B, N, D, h, w, 3) camera
        b, n = intrinsics.shape[:2]
        points = transform_points(frame_from_cam.float(), points.reshape(b, n, -1, 3))  # (B, N, D*h*w, 3) frame
        return self.grid.cells(points).reshape(b, n, self.depth_bins, h, w)

    def index(
        self, intrinsics: Tensor, frame_from_cam: Tensor, feature_size: tuple[int, int], image_size: tuple[int, int]
    ) -> ops.PoolIndex:
        """The pooling index of this calibration, from the cache where it fits."""
        sizes = (*feature_size, *image_size)
        calibration = (intrinsics, frame_from_cam)
        keep = not torch.compiler.is_compiling()
        if keep and self._cache is not None and self._cache.fits(calibration, sizes):
            return self._cache.index
        # An index built in inference mode could not be saved for a later backward pass.
        keep = keep and not torch.is_inference_mode_enabled()
        with torch.no_grad():
            index = ops.build_pool_index(self.cells(*calibration, feature_size, image_size), self.grid.shape)
        if keep:
            self._cache = _Cached.of(calibration, sizes, index)
        return index

    def forward(
        self,
        features: Tensor,
        depth_probs: Tensor,
        intrinsics: Tensor,
        frame_from_cam: Tensor,
        image_size: tuple[int, int],
    ) -> Tensor:
        """
        Args:
            features: (B, N, C, h, w).
            depth_probs: (B, N, D, h, w), the weight of each bin.
            intrinsics: (B, N, 3, 3), pixels of the (H, W) image.
            frame_from_cam: (B, N, 4, 4), camera to frame coordinates, metres.
            image_size: (H, W) of the image that the features cover.

        Returns:
            (B, C, Z, Y, X), fp32 (fp64 for fp64 features): what fell into each voxel, summed.

        Raises:
            ValueError: sizes that do not agree.
        """
        b, n, _, h, w = features.shape
        wanted = (b, n, self.depth_bins, h, w)
        if depth_probs.shape != wanted:
            raise ValueError(f"LiftSplat: depth_probs wanted {wanted}, got {tuple(depth_probs.shape)}")
        if intrinsics.shape != (b, n, 3, 3) or frame_from_cam.shape != (b, n, 4, 4):
            raise ValueError(
                f"LiftSplat: intrinsics and frame_from_cam wanted {(b, n, 3, 3)} and {(b, n, 4, 4)}, "
                f"got {tuple(intrinsics.shape)} and {tuple(frame_from_cam.shape)}"
            )
        index = self.index(intrinsics, frame_from_cam, (h, w), image_size)
        # Sums over hundreds of bins in half precision lose the small ones: both operands in fp32 at least.
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        return ops.voxel_pool(depth_probs.to(dtype), features.to(dtype), index, self.grid.shape)
