"""Temporal decoder: a dropped frame's volume, rebuilt from the other frames of its clip (METHOD section 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mim4d import ops
from mim4d.nn import TemporalDeformAttn, VoxelGrid, compose, invert_rigid, transform_points

from .voxel_encoder import volume_norm


def warp_to_target(volume: Tensor, frame_from_target: Tensor, grid: VoxelGrid) -> tuple[Tensor, Tensor]:
    """Resample a frame's volume on the target's grid: index -> metres -> ``frame_from_target`` -> index.

    Trilinear, zeros outside the frame's box. Only the ego's motion is undone; what moved by itself stays where the
    frame saw it.

    Args:
        volume: (M, C, Z, Y, X) in the frame's coordinates.
        frame_from_target: (M, 4, 4), rigid, metres.
        grid: the grid of both.

    Returns:
        The volume in target coordinates (M, C, Z, Y, X), and valid (M, Z, Y, X) bool: the voxel's centre lies in the
        frame's box.
    """
    dtype = (
        torch.float64 if volume.dtype == torch.float64 else torch.float32
    )  # of coordinates, whatever the features are
    centres = grid.centres(volume.device, dtype).reshape(-1, 3)  # (Z*Y*X, 3) target, metres
    points = grid.normalise(transform_points(frame_from_target.to(dtype), centres))  # (M, Z*Y*X, 3) in the frame
    points = points.unflatten(1, grid.shape)  # (M, Z, Y, X, 3)
    valid = (points.abs() <= 1.0).all(dim=-1)
    read = ops.voxel_sample(volume, points, mode="trilinear", padding_mode="zeros", align_corners=False)
    return read.permute(0, 4, 1, 2, 3), valid


def sine_position_code(size: tuple[int, int], dim: int) -> Tensor:
    """Sine code of the cells of a (Y, X) map: (Y*X, dim). A quarter of the width each for sin y, cos y, sin x, cos x.

    Formula: Carion et al., "End-to-End Object Detection with Transformers", appendix; positions scaled to 0..2 pi.
    """
    bands = dim // 4
    frequency = 10000.0 ** (-torch.arange(bands) / max(bands, 1))  # (bands,)
    codes = []
    for n in size:
        angle = (torch.arange(n) + 0.5)[:, None] * (2.0 * math.pi / n) * frequency  # (n, bands)
        codes.append(torch.cat((angle.sin(), angle.cos()), dim=-1))  # (n, 2 bands)
    y, x = codes
    full = torch.cat((y[:, None].expand(-1, size[1], -1), x[None].expand(size[0], -1, -1)), dim=-1)  # (Y, X, 4 bands)
    return nn.functional.pad(full, (0, dim - 4 * bands)).flatten(0, 1)


class TimeCode(nn.Module):
    """Code of a signed time offset: sines and cosines of periods from 0.1 s to 12.8 s, the offset, a linear layer.

    The sines and the offset are odd, the cosines even: past and future at the same distance differ.

    Args:
        dim: width of the code.
    """

    periods: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("periods", 0.1 * 2.0 ** torch.arange(8.0), persistent=False)
        self.linear = nn.Linear(2 * 8 + 1, dim)

    def forward(self, seconds: Tensor) -> Tensor:
        """(...) seconds -> (..., dim)."""
        seconds = seconds.float()[..., None]
        angle = seconds * (2.0 * math.pi / self.periods)  # (..., 8)
        return self.linear(torch.cat((angle.sin(), angle.cos(), seconds), dim=-1))


class _DecoderLayer(nn.Module):
    """Deformable attention over frames, residual, norm; feed-forward, residual, norm."""

    def __init__(self, dim: int, heads: int, points: int, average_frames: bool) -> None:
        super().__init__()
        self.attention = TemporalDeformAttn(dim, heads, points, average_frames=average_frames)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(inplace=True), nn.Linear(2 * dim, dim))
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, position: Tensor, values: Tensor, codes: Tensor, valid: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended, offsets, weights = self.attention(x + position, values, codes, valid, size)
        x = self.norm1(x + attended)
        return self.norm2(x + self.ffn(x)), offsets, weights


class Branch(nn.Module):
    """Learned BEV queries that look at frames through a few layers of deformable attention.

    Args:
        size: (Y, X) of the BEV grid; the query table has one row per cell.
        dim, heads, points, layers: of the attention.
        average_frames: see :class:`mim4d.nn.TemporalDeformAttn`.
        checkpointing: recompute layers in the backward pass.
    """

    position: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        dim: int,
        heads: int,
        points: int,
        layers: int,
        average_frames: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.checkpointing = size, checkpointing
        self.query = nn.Parameter(torch.empty(size[0] * size[1], dim))
        nn.init.trunc_normal_(self.query, std=0.02)  # small: what a cell sees outweighs what it was born with
        self.register_buffer("position", sine_position_code(size, dim), persistent=False)
        self.layers = nn.ModuleList(_DecoderLayer(dim, heads, points, average_frames) for _ in range(layers))

    def forward(self, values: Tensor, codes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            values: (M, L, Y*X, E), the frames' BEV maps.
            codes: (M, L, E), their time codes.
            valid: (M, L) bool.

        Returns:
            (M, Y*X, E), and of the last layer the offsets (M, Y*X, heads, L, P, 2) in cells and the weights
            (M, Y*X, heads, L, P).
        """
        x = self.query.expand(values.shape[0], -1, -1)  # (M, Y*X, E)
        offsets = weights = x.new_zeros(0)
        for layer in self.layers:
            inputs = (x, self.position, values, codes, valid, self.size)
            if self.checkpointing and self.training:
                x, offsets, weights = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x, offsets, weights = layer(*inputs)
        return x, offsets, weights


class VoxelDecoder(nn.Module):
    """Rebuild the volume of target frames from the other valid frames of the clip, and the motion seen on the way.

    Align every other frame to the target, fold height into channels, add the code of the signed time offset; a short
    branch looks at the nearest valid frame on each side, a long branch (narrower) at all of them; fuse, unfold. The
    target's own volume is never read. Clips of any length in any order: frames are told apart by time, not by place.

    Args:
        grid: the voxels.
        channels: C of the volumes.
        short_dim, short_heads, long_dim, long_heads: widths and heads of the branches; width 0 leaves a branch out.
        layers, points: of both branches.
        average_frames: see :class:`mim4d.nn.TemporalDeformAttn`.
        checkpointing: recompute attention layers in the backward pass.

    Raises:
        ValueError: both branches are left out.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        channels: int,
        *,
        short_dim: int = 128,
        short_heads: int = 4,
        long_dim: int = 64,
        long_heads: int = 2,
        layers: int = 2,
        points: int = 4,
        average_frames: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if short_dim + long_dim == 0:
            raise ValueError("VoxelDecoder: short_dim and long_dim are both 0, wanted at least one branch")
        self.grid = grid
        self.channels = channels
        z, y, x = grid.shape
        width = short_dim or long_dim
        self.fold = nn.Sequential(nn.Linear(channels * z, width, bias=False), nn.LayerNorm(width))
        self.time_code = TimeCode(width)
        self.short: Branch | None = None
        self.long: Branch | None = None
        if short_dim:
            self.short = Branch((y, x), short_dim, short_heads, points, layers, average_frames, checkpointing)
        if long_dim:
            self.long = Branch((y, x), long_dim, long_heads, points, layers, average_frames, checkpointing)
            self.reduce, self.reduce_norm = nn.Linear(width, long_dim), nn.LayerNorm(long_dim)
        self.fuse = nn.Conv2d(short_dim + long_dim, channels * z, 3, padding=1, bias=False)
        # As the voxel encoder ends: one renderer reads both volumes, so they should be distributed alike.
        self.norm = volume_norm(channels)

    def forward(
        self, volume: Tensor, key_from_frame: Tensor, offsets: Tensor, valid: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            volume: (B, T, C, Z, Y, X), each frame in its own coordinates, T >= 2.
            key_from_frame: (B, T, 4, 4), metres.
            offsets: (B, T) seconds, signed, on any common clock.
            valid: (B, T) bool.
            targets: (B, K) int64, frames to rebuild.

        Returns:
            The rebuilt volumes (B, K, C, Z, Y, X) in the targets' coordinates, and motion (B, K, 2, Y, X): velocity
            (x, y) in m/s of what is in each BEV cell, as far as the short branch's attention follows it; None without a
            short branch. Where no other frame is valid, both are finite and mean nothing.

        Raises:
            ValueError: the clip has one frame.
        """
        b, t = offsets.shape
        k = targets.shape[1]
        if t < 2:
            raise ValueError("VoxelDecoder: the clip has one frame, wanted at least two to rebuild one from another")
        # The indices of all frames but the target, in clip order: 0..T-2, stepping over it.
        others = torch.arange(t - 1, device=targets.device).expand(b, k, -1)
        others = others + (others >= targets[..., None])  # (B, K, L), L = T - 1
        rows = torch.arange(b, device=targets.device)[:, None]  # (B, 1)
        seen = valid[rows[..., None], others]  # (B, K, L)
        gap = (offsets[rows[..., None], others] - offsets[rows, targets][..., None]).float()  # (B, K, L) seconds
        key_from_other = key_from_frame[rows[..., None], others]  # (B, K, L, 4, 4)
        key_from_target = key_from_frame[rows, targets][:, :, None]  # (B, K, 1, 4, 4)
        other_from_target = compose(invert_rigid(key_from_other.float()), key_from_target.float())

        source = volume[rows[..., None], others].flatten(0, 2)  # (B*K*L, C, Z, Y, X)
        warped, inside = warp_to_target(source, other_from_target.flatten(0, 2), self.grid)
        m, l = b * k, t - 1
        gap, seen = gap.flatten(0, 1), seen.flatten(0, 1)  # (M, L)
        columns = warped.permute(0, 3, 4, 2, 1).flatten(3).flatten(1, 2)  # (M*L, Y*X, Z*C)
        bev = self.fold(columns).unflatten(0, (m, l))  # (M, L, Y*X, width), the height-channel transform
        codes = self.time_code(gap)  # (M, L, width)
        known = (
            inside.any(dim=1).flatten(1).unflatten(0, (m, l))[..., None]
        )  # (M, L, Y*X, 1): the frame saw this column
        values = (bev + codes[:, :, None]) * known

        parts: list[Tensor] = []
        motion: Tensor | None = None
        if self.short is not None:
            sides, side_seen = _nearest_sides(gap, seen)  # (M, 2)
            pick = torch.arange(m, device=sides.device)[:, None]
            x, shifts, weights = self.short(values[pick, sides], codes[pick, sides], side_seen)
            parts.append(x)
            motion = self._motion(shifts, weights, gap.gather(1, sides), side_seen).unflatten(0, (b, k))
        if self.long is not None:
            x, _, _ = self.long(self.reduce_norm(self.reduce(values)), self.reduce(codes), seen)
            parts.append(x)
        _, y, x_size = self.grid.shape
        fused = self.fuse(torch.cat(parts, dim=-1).transpose(1, 2).unflatten(-1, (y, x_size)))  # (M, C*Z, Y, X)
        rebuilt = torch.relu(self.norm(fused.unflatten(1, (self.channels, -1))))  # (M, C, Z, Y, X)
        return rebuilt.unflatten(0, (b, k)), motion

    def _motion(self, shifts: Tensor, weights: Tensor, gap: Tensor, seen: Tensor) -> Tensor:
        """Velocity (M, 2, Y, X) in m/s: where attention looks, over how long ago that was, weighted mean.

        A thing at x in the target frame, moving at v, is found at x + v gap in a frame ``gap`` seconds away. Frames
        without weight and a gap of zero count nothing.
        """
        usable = seen & (gap.abs() > 1e-3)  # (M, 2)
        rate = torch.where(usable, 1.0 / torch.where(usable, gap, 1.0), 0.0)  # (M, 2) 1/s
        velocity = shifts.float() * rate[:, None, None, :, None, None]  # (M, Q, heads, L, P, 2) cells per second
        mean = (velocity * weights.float()[..., None]).sum(dim=(3, 4)).mean(dim=2)  # (M, Q, 2)
        dx, dy = mean.unbind(-1)
        size = self.grid.cell_size
        _, y, x = self.grid.shape
        return torch.stack((dx * size[0], dy * size[1]), dim=1).unflatten(-1, (y, x))


def _nearest_sides(gap: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest valid frame before and after the target.

    Args:
        gap: (M, L) seconds from the target, signed.
        seen: (M, L) bool.

    Returns:
        Indices (M, 2) int64, [before, after], and whether there is one (M, 2) bool.
    """
    sides, found = [], []
    for sign in (-1.0, 1.0):
        distance = torch.where(seen & (gap * sign > 0), gap * sign, torch.inf)  # (M, L)
        nearest, index = distance.min(dim=1)
        sides.append(index)
        found.append(torch.isfinite(nearest))
    return torch.stack(sides, dim=1), torch.stack(found, dim=1)
