"""Push view transform: image features along their rays into the voxels they fall in (Lift, Splat)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4d import ops

from ._calibrated import Calibrated, check_calibration
from .geometry import VoxelGrid, transform_points, unproject


class LiftSplat(Calibrated[ops.PoolIndex]):
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
                f"{type(self).__name__}: wanted 0 < depth_min < depth_max and depth_bins >= 1, "
                f"got {depth_min}, {depth_max}, {depth_bins}"
            )
        self.grid = grid
        self.depth_min, self.depth_max, self.depth_bins = float(depth_min), float(depth_max), int(depth_bins)

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
        calibration = (intrinsics, frame_from_cam)
        return self._keep(
            calibration,
            (*feature_size, *image_size),
            lambda: ops.build_pool_index(self.cells(*calibration, feature_size, image_size), self.grid.shape),
        )

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
            raise ValueError(f"{type(self).__name__}: depth_probs wanted {wanted}, got {tuple(depth_probs.shape)}")
        check_calibration(type(self).__name__, intrinsics, frame_from_cam, b, n)
        index = self.index(intrinsics, frame_from_cam, (h, w), image_size)
        # Sums over hundreds of bins in half precision lose the small ones: both operands in fp32 at least.
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        return self._pool(features.to(dtype), depth_probs.to(dtype), index)

    def _pool(self, features: Tensor, depth_probs: Tensor, index: ops.PoolIndex) -> Tensor:
        return ops.voxel_pool(depth_probs, features, index, self.grid.shape)


class LiftSplatConv(LiftSplat):
    """:class:`LiftSplat` and the 3x3x3 convolution after it as one step, without the lifted volume.

    Both are linear, so the convolution's weights go to the pixels: with the cell v(p) of point p, and tap o in
    {-1, 0, 1}^3,

        out(x) = bias + sum_o sum_(p: v(p) = x + o) depth_p (W_o feature_p)

    A pixel is multiplied by all 27 taps once, and each product is pooled as if by a camera of its own, one cell beside:
    what would take ``27 * C_in * C_out`` products a voxel takes as many a pixel, of which there are far fewer, and
    the (B, C_in, Z, Y, X) volume is never there. Only where nothing non-linear stands between the two.

    The index has 27 times the points of LiftSplat's, kept as its is. ``conv`` is an ordinary ``nn.Conv3d`` (3x3x3,
    zero padding 1): its weights go in and out of checkpoints as those of the convolution that this takes the place of.

    Args:
        grid, depth_min, depth_max, depth_bins: see :class:`LiftSplat`.
        in_channels: of the features.
        out_channels: of the volume.
        bias: whether the convolution has one.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        depth_min: float,
        depth_max: float,
        depth_bins: int,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(grid, depth_min, depth_max, depth_bins)
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=bias)

    def cells(
        self, intrinsics: Tensor, frame_from_cam: Tensor, feature_size: tuple[int, int], image_size: tuple[int, int]
    ) -> Tensor:
        """For each tap of the convolution the cell that a point reaches by it: (B, 27 N, D, h, w) int32, taps first."""
        cells = super().cells(intrinsics, frame_from_cam, feature_size, image_size)  # (B, N, D, h, w)
        _, Y, X = self.grid.shape
        z, y, x = cells // (Y * X), cells // X % Y, cells % X
        found = []
        for dz, dy, dx in _TAPS:
            part = cells - (dz * Y + dy) * X - dx
            inside = cells >= 0
            for at, step, size in ((z, dz, self.grid.shape[0]), (y, dy, Y), (x, dx, X)):
                inside = inside & (at - step >= 0) & (at - step < size)
            found.append(torch.where(inside, part, -1))
        return torch.cat(found, dim=1)

    def _pool(self, features: Tensor, depth_probs: Tensor, index: ops.PoolIndex) -> Tensor:
        b, n, c, h, w = features.shape
        taps = self.conv.weight.permute(2, 3, 4, 0, 1).reshape(-1, c, 1, 1)  # (27 * out, in, 1, 1)
        with torch.autocast(features.device.type, enabled=False):
            products = F.conv2d(features.flatten(0, 1), taps.to(features.dtype))  # (B*N, 27 * out, h, w)
        products = products.view(b, n, len(_TAPS), -1, h, w).transpose(1, 2).flatten(1, 2)  # (B, 27 N, out, h, w)
        probs = depth_probs[:, None].expand(-1, len(_TAPS), -1, -1, -1, -1).flatten(1, 2)  # (B, 27 N, D, h, w)
        volume = ops.voxel_pool(probs, products, index, self.grid.shape)
        return volume if self.conv.bias is None else volume + self.conv.bias.to(volume.dtype).view(-1, 1, 1, 1)


_TAPS = [(z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)]  # in the order of a Conv3d's weight
