"""Pull view transform: every voxel looks itself up in the images of all cameras (UVTR's form of lifting)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mim4d import ops

from ._calibrated import Calibrated, check_calibration
from .geometry import VoxelGrid, invert_rigid, project, transform_points


class VoxelPull(Calibrated[Tensor]):
    """Each voxel's centre is projected into each camera, and reads there, on every level of a feature pyramid, the
    bilinear feature times how much of that pixel stands at the voxel's depth (trilinear); cameras and levels add up.

    A camera counts only where the centre lies strictly inside its image and strictly between ``depth_min`` and
    ``depth_max``. Geometry is fp32, also under autocast. No parameters.

    Where the cameras see the voxels is kept as long as calibration stands still: on the CPU equal values; on a GPU,
    where comparing values would synchronise, the same tensors, not written to through torch since. Nothing is kept
    under ``torch.compile``, in inference mode, and where calibration is learned: then gradients reach it.

    Args:
        grid: the target voxels.
        depth_min, depth_max: metres along the camera's z that the depth bins divide evenly.

    Raises:
        ValueError: depth range empty.
    """

    def __init__(self, grid: VoxelGrid, depth_min: float, depth_max: float) -> None:
        super().__init__()
        if not 0.0 <= depth_min < depth_max:
            raise ValueError(f"VoxelPull: wanted 0 <= depth_min < depth_max, got {depth_min}, {depth_max}")
        self.grid = grid
        self.depth_min, self.depth_max = float(depth_min), float(depth_max)

    def extra_repr(self) -> str:
        return f"{self.grid}, depth {self.depth_min}..{self.depth_max} m"

    def places(self, intrinsics: Tensor, frame_from_cam: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Where each camera sees each voxel: (B, N, V, 3), (x, y, depth) in [-1, 1] over image and depth range.

        Behind a camera the depth is -1 or less, so that it does not count.
        """
        centres = self.grid.centres(intrinsics.device).view(-1, 3)  # (V, 3) frame
        seen = transform_points(invert_rigid(frame_from_cam.float()), centres)  # (B, N, V, 3) camera
        uv, depth = project(seen, intrinsics.float()[:, :, None])  # (B, N, V, 2) pixels, (B, N, V) metres
        x, y = uv[..., 0] * (2.0 / image_size[1]) - 1.0, uv[..., 1] * (2.0 / image_size[0]) - 1.0
        z = (depth - self.depth_min) * (2.0 / (self.depth_max - self.depth_min)) - 1.0
        return torch.stack((x, y, z), dim=-1)

    def forward(
        self,
        features: Sequence[Tensor],
        depth_probs: Sequence[Tensor],
        intrinsics: Tensor,
        frame_from_cam: Tensor,
        image_size: tuple[int, int],
    ) -> Tensor:
        """
        Args:
            features: one (B, N, C, h_l, w_l) for each level l; all cover the same image.
            depth_probs: one (B, N, D, h_l, w_l) for each level, the weight of each bin.
            intrinsics: (B, N, 3, 3), pixels of the (H, W) image.
            frame_from_cam: (B, N, 4, 4), camera to frame coordinates, metres.
            image_size: (H, W) of the image that the features cover.

        Returns:
            (B, C, Z, Y, X), stored channels last, in the dtype of the features, summed in fp32 at least.

        Raises:
            ValueError, TypeError: sizes and dtypes that do not agree.
        """
        if not features or len(features) != len(depth_probs):
            counts = f"{len(features)} and {len(depth_probs)}"
            raise ValueError(f"VoxelPull: features and depth_probs wanted as many levels, at least 1, got {counts}")
        b, n = features[0].shape[:2]
        check_calibration("VoxelPull", intrinsics, frame_from_cam, b, n)
        calibration = (intrinsics, frame_from_cam)
        if torch.is_grad_enabled() and (intrinsics.requires_grad or frame_from_cam.requires_grad):
            places = self.places(*calibration, image_size)
        else:
            places = self._keep(calibration, image_size, lambda: self.places(*calibration, image_size))
        if features[0].dtype == torch.float64:
            places = places.double()
        probs = [p if p.dtype != torch.float64 else p.to(places.dtype) for p in depth_probs]
        return ops.voxel_pull(list(features), probs, places).unflatten(2, self.grid.shape)
