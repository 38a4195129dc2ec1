"""MIM4D: masked multi-view video in, volumes and renderings and a loss out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mim4d.data.clips import ClipBatch
from mim4d.errors import UserError
from mim4d.nn import RenderOutput, SDFField, SDFRenderer, VoxelGrid

from .backbone import create_backbone
from .image_encoder import ImageEncoder
from .masking import block_mask, ray_mask
from .render_decoder import WEIGHTS, RenderDecoder
from .view_transform import ViewTransform
from .voxel_decoder import VoxelDecoder
from .voxel_encoder import VoxelEncoder


@dataclass
class ModelConfig:
    """All that the model is made of. None of it depends on the number of frames, cameras or rays, or the image size."""

    bounds: tuple[float, float, float, float, float, float] = (-51.2, -51.2, -3.0, 51.2, 51.2, 5.0)
    """xmin ymin zmin xmax ymax zmax of the volume, metres in frame coordinates."""
    grid: tuple[int, int, int] = (128, 128, 5)
    """Voxels along x, y, z."""
    channels: int = 32
    """Features per voxel."""

    backbone: str = "convnext_small"
    """A timm model of the ConvNeXt or ResNet families."""
    pretrained: bool = True
    """Start from timm's weights where its hub can be reached; a notice says when it could not."""
    backbone_checkpoint: str = ""
    """File with backbone weights (.safetensors or .pth); goes before pretrained."""
    drop_path: float = 0.2
    """Stochastic depth of the backbone."""
    feature_stride: Literal[4, 8, 16, 32] = 16
    """Image pixels per lifted feature."""
    neck_channels: int = 256
    """Width of the feature pyramid and the depth net."""
    lift_channels: int = 64
    """Features lifted per pixel."""
    depth_bins: int = 118
    """Depth bins per pixel."""
    depth_min: float = 1.0
    """Near end of the depth bins, metres."""
    depth_max: float = 60.0
    """Far end of the depth bins, metres."""
    view_transform: Literal["push", "pull"] = "push"
    """How images become volumes: pixels push their features along their rays, or voxels pull theirs from the images."""
    pull_levels: int = 2
    """Levels of the feature pyramid that voxels are pulled from: that of feature_stride and coarser ones."""

    mask_ratio: float = 0.3
    """Share of the blocks of every image that training hides."""
    mask_block: int = 32
    """Pixels along a block's side."""
    local_mask: bool = False
    """Hide the image cells that hold a drawn ray, in target frames."""
    local_mask_cells: int = 50
    """Such cells along the image's width."""
    local_mask_max: float = 0.4
    """At most this share of them is hidden."""
    mask_token: bool = False
    """Learned vectors, instead of zeros, where a stage of the backbone is hidden."""

    short_dim: int = 128
    """Width of the branch that sees the nearest frame on each side; 0 leaves it out."""
    short_heads: int = 4
    """Attention heads of the short branch."""
    long_dim: int = 64
    """Width of the branch that sees all frames; 0 leaves it out."""
    long_heads: int = 2
    """Attention heads of the long branch."""
    decoder_layers: int = 2
    """Attention layers of each branch."""
    points: int = 4
    """Places that a query reads per head and frame."""
    average_frames: bool = False
    """Average the frames instead of weighing them by one soft-max over frames and points."""

    n_uniform: int = 72
    """Sections of a ray by equal division."""
    n_importance: int = 24
    """Sections of a ray near the surface that the first look found."""
    mode: Literal["trilinear", "smoothstep", "bicubic", "tricubic"] = "trilinear"
    """How the renderer reads the volume."""
    near: float = 1.0
    """Metres before which a ray sees nothing."""
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Colour behind everything."""
    render_chunk: int = 8192
    """Rays per pass of the renderer."""

    rgb_weight: float = 10.0
    """Weight of the colour loss."""
    depth_weight: float = 10.0
    """Weight of the depth loss (in units of the largest coordinate of the bounds)."""
    eikonal_weight: float = 0.0
    """Weight of the loss that gives the signed distance a slope of 1 along all rays."""
    free_space_weight: float = 0.0
    """Weight of the loss on distances too small or too large between the sensor and a LiDAR return (same units)."""
    truncation_weight: float = 0.0
    """Weight of the loss on the signed distance within model.truncation of a LiDAR return (same units)."""
    sparse_point_weight: float = 0.0
    """Weight of the loss that makes the signed distance zero at LiDAR returns (same units)."""
    ssim_weight: float = 0.0
    """Weight of the structural dissimilarity of rendered patches; needs data.patch of 3 or more."""
    truncation: float = 0.1
    """Metres around a LiDAR return that belong to its surface; what is nearer to the sensor is free space."""
    direct: bool = True
    """Render the volume that the target frame's own images gave."""
    reconstructed: bool = True
    """Rebuild the target's volume from the other frames and render it."""
    checkpointing: bool = False
    """Recompute backbone blocks and attention layers in the backward pass: less memory, more time."""

    def weights(self) -> list[tuple[str, float]]:
        """The names and weights of the rendering losses."""
        return [(name, getattr(self, f"{name}_weight")) for name in WEIGHTS]

    def check(self) -> None:
        """Raises UserError naming the first option whose value cannot work."""
        for option, bad, need in (
            ("bounds", any(l >= h for l, h in zip(self.bounds[:3], self.bounds[3:], strict=True)), "needs min < max"),
            ("grid", min(self.grid) < 1, "must be positive"),
            ("channels", self.channels < 1, "must be positive"),
            ("drop-path", not 0 <= self.drop_path < 1, "must be in [0, 1)"),
            ("feature-stride", self.feature_stride not in (4, 8, 16, 32), "must be 4, 8, 16 or 32"),
            ("neck-channels", self.neck_channels < 1, "must be positive"),
            ("lift-channels", self.lift_channels < 1, "must be positive"),
            ("depth-bins", self.depth_bins < 1, "must be positive"),
            ("depth-min", not 0 <= self.depth_min < self.depth_max, "must lie between 0 and depth-max"),
            ("depth-min", self.depth_min == 0 and self.view_transform == "push", "must be positive to push pixels"),
            ("view-transform", self.view_transform not in ("push", "pull"), "must be push or pull"),
            ("pull-levels", self.pull_levels < 1, "must be positive"),
            (
                "pull-levels",
                self.view_transform == "pull" and self.feature_stride << (self.pull_levels - 1) > 32,
                f"goes beyond stride 32 from --model.feature-stride {self.feature_stride} on",
            ),
            ("mask-ratio", not 0 <= self.mask_ratio < 1, "must be in [0, 1)"),
            ("mask-block", self.mask_block < 1, "must be positive"),
            ("local-mask-cells", self.local_mask_cells < 1, "must be positive"),
            ("local-mask-max", not 0 <= self.local_mask_max < 1, "must be in [0, 1)"),
            ("short-dim", self.short_dim < 0, "must not be negative"),
            ("long-dim", self.long_dim < 0, "must not be negative"),
            ("short-dim", self.short_dim + self.long_dim == 0, "and long-dim are both 0: no branch is left"),
            ("short-heads", self.short_heads < 1 or self.short_dim % self.short_heads, "must divide short-dim"),
            ("long-heads", self.long_heads < 1 or self.long_dim % self.long_heads, "must divide long-dim"),
            ("decoder-layers", self.decoder_layers < 1, "must be positive"),
            ("points", self.points < 1, "must be positive"),
            ("n-uniform", self.n_uniform < 1, "must be positive"),
            ("n-importance", self.n_importance < 0, "must not be negative"),
            ("near", self.near <= 0, "must be positive"),
            ("background", any(not 0 <= c <= 1 for c in self.background), "is a colour: it must be in [0, 1]"),
            *((f"{name}-weight".replace("_", "-"), not w >= 0, "must not be negative") for name, w in self.weights()),
            ("truncation", not self.truncation > 0, "must be positive"),
            ("render-chunk", self.render_chunk < 1, "must be positive"),
            ("direct", not (self.direct or self.reconstructed), "and reconstructed are off: nothing to learn"),
        ):
            if bad:
                raise UserError(f"--model.{option} {getattr(self, option.replace('-', '_'))!r} {need}")


@dataclass
class Output:
    """Result of one forward pass. Sizes (B, K, N, R) are clips, targets, cameras, rays per camera."""

    loss: Tensor  # 0-dim, the sum of the losses
    # 0-dim, weighted: rgb_PATH, depth_PATH and the optional ones that are on, PATH being direct or reconstructed
    losses: dict[str, Tensor]
    # 0-dim: rgb_l1_PATH (colours in [0, 1]), depth_l1_m_PATH (metres, LiDAR rays) and those of the optional losses, see
    # RenderLoss; NaN where there was no such ray
    metrics: dict[str, Tensor]
    direct: RenderOutput | None  # sizes (B, K, N, R)
    reconstructed: RenderOutput | None  # sizes (B, K, N, R)
    reconstructed_valid: Tensor  # (B, K) bool: the target exists and another frame was there to rebuild it from
    image_mask: Tensor | None  # (B, T, N, H, W) bool, True = visible; None: nothing hidden
    motion: Tensor | None  # (B, K, 2, Y, X) m/s (x, y) in target coordinates


class MIM4D(nn.Module):
    """The pre-training model (METHOD sections 3 to 6).

    In training mode images are masked and ray samples jittered; in evaluation neither.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.grid = VoxelGrid(config.bounds, config.grid)
        backbone = create_backbone(
            config.backbone,
            drop_path=config.drop_path,
            pretrained=config.pretrained,
            checkpoint_file=config.backbone_checkpoint,
            checkpointing=config.checkpointing,
        )
        self.image_encoder = ImageEncoder(
            backbone,
            stride=config.feature_stride,
            neck_channels=config.neck_channels,
            lift_channels=config.lift_channels,
            depth_bins=config.depth_bins,
            mask_token=config.mask_token,
            levels=config.pull_levels if config.view_transform == "pull" else 1,
        )
        self.view_transform = ViewTransform(
            self.grid, config.depth_min, config.depth_max, config.depth_bins, config.view_transform
        )
        self.voxel_encoder = VoxelEncoder(config.lift_channels, config.channels)
        self.voxel_decoder: VoxelDecoder | None = None
        if config.reconstructed:
            self.voxel_decoder = VoxelDecoder(
                self.grid,
                config.channels,
                short_dim=config.short_dim,
                short_heads=config.short_heads,
                long_dim=config.long_dim,
                long_heads=config.long_heads,
                layers=config.decoder_layers,
                points=config.points,
                average_frames=config.average_frames,
                checkpointing=config.checkpointing,
            )
        renderer = SDFRenderer(
            SDFField(config.channels),
            config.bounds,
            n_uniform=config.n_uniform,
            n_importance=config.n_importance,
            mode=config.mode,
            near=config.near,
            background=config.background,
            chunk=config.render_chunk,
        )
        self.render_decoder = RenderDecoder(renderer, dict(config.weights()), config.truncation)

    @property
    def renderer(self) -> SDFRenderer:
        """The renderer both volumes share."""
        return self.render_decoder.renderer

    def draw_mask(self, batch: ClipBatch, generator: torch.Generator | None = None) -> Tensor:
        """The visibility (B, T, N, H, W), True = visible, of a training step: global blocks, ray cells by option.

        Padding and missing frames are hidden too, whatever the options.
        """
        config = self.config
        b, t, n, _, h, w = batch.images.shape
        device = batch.images.device
        mask = _content_mask(batch.images, batch.content) & batch.valid[:, :, None, None, None]
        if config.mask_ratio > 0:
            drawn = block_mask(
                (b, t, n), (h, w), block=config.mask_block, ratio=config.mask_ratio, generator=generator, device=device
            )
            mask = mask & drawn
        if config.local_mask:
            cell = max(1, round(batch.content[1] / config.local_mask_cells))
            local = ray_mask(
                batch.rays.pixels,
                (h, w),
                cell=cell,
                max_ratio=config.local_mask_max,
                content=batch.content,
                generator=generator,
            )  # (B, K, N, H, W)
            local = local | ~batch.target_valid[:, :, None, None, None]
            is_target = batch.targets[..., None] == torch.arange(t, device=device)  # (B, K, T)
            for k in range(batch.targets.shape[1]):
                mask = mask & (local[:, None, k] | ~is_target[:, k, :, None, None, None])
        return mask

    def encode(
        self,
        images: Tensor,
        intrinsics: Tensor,
        frame_from_cam: Tensor,
        mask: Tensor | None = None,
        content: tuple[int, int] | None = None,
    ) -> Tensor:
        """Images to volumes, each frame in its own coordinates.

        Args:
            images: (B, T, N, 3, H, W), RGB in [0, 1].
            intrinsics: (B, T, N, 3, 3), pixels.
            frame_from_cam: (B, T, N, 4, 4).
            mask: (B, T, N, H, W) bool, True = visible; None: all of it.
            content: (H, W) without padding, which is hidden where there is no mask, and never lifted. None: no padding.

        Returns:
            V (B, T, C, Z, Y, X), fp32 or the autocast dtype.
        """
        leading = images.shape[:3]
        size = (images.shape[-2], images.shape[-1])
        if mask is None and content is not None and tuple(content) != size:
            mask = _content_mask(images, content)
        visible = None if mask is None else mask.flatten(0, 2)
        features, depth_probs, covered = self.image_encoder(images.flatten(0, 2), visible)
        lifted = self.view_transform(
            [f.unflatten(0, leading) for f in features],
            [p.unflatten(0, leading) for p in depth_probs],
            intrinsics,
            frame_from_cam,
            covered,
            content or size,
        )
        return self.voxel_encoder(lifted)

    def reconstruct(
        self, volume: Tensor, key_from_frame: Tensor, offsets: Tensor, valid: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Rebuild target volumes from the other frames; see :class:`mim4d.models.voxel_decoder.VoxelDecoder`.

        Returns:
            V^ (B, K, C, Z, Y, X) and motion (B, K, 2, Y, X) in m/s, or None without a short branch.

        Raises:
            ValueError: the model was built with ``reconstructed=False``, or the clip has one frame.
        """
        if self.voxel_decoder is None:
            raise ValueError("MIM4D.reconstruct: the model was built without a decoder (model.reconstructed is false)")
        return self.voxel_decoder(volume, key_from_frame, offsets, valid, targets)

    def render(
        self,
        volume: Tensor,
        origins: Tensor,
        directions: Tensor,
        edges: Tensor | None = None,
        jitter: Tensor | None = None,
    ) -> RenderOutput:
        """volume (M, C, Z, Y, X), rays (M, R, 3) in metres; see :class:`mim4d.nn.SDFRenderer`."""
        return self.renderer(volume, origins, directions, edges=edges, jitter=jitter)

    def forward(self, batch: ClipBatch, generator: torch.Generator | None = None) -> Output:
        """One pass: mask, encode, drop and rebuild the targets, render both volumes, compare.

        Args:
            batch: clips with rays for their targets.
            generator: source of masks and jitter; a CPU generator gives the same draw on every device. None: torch's.

        Returns:
            An :class:`Output`. Paths that are off, and the reconstruction of single-frame clips, are absent from it.
        """
        config = self.config
        mask: Tensor | None = None
        if self.training:
            mask = self.draw_mask(batch, generator)
        elif tuple(batch.content) != tuple(batch.images.shape[-2:]):
            mask = _content_mask(batch.images, batch.content)
        volume = self.encode(batch.images, batch.intrinsics, batch.frame_from_cam, mask, batch.content)

        b, t = batch.offsets.shape
        rows = torch.arange(b, device=volume.device)[:, None]
        other = batch.valid.sum(dim=1, keepdim=True) > batch.valid[rows, batch.targets].long()  # (B, K)
        rebuilt_valid = batch.target_valid & other
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        direct = reconstructed = motion = None
        if config.direct:
            own = volume[rows, batch.targets]  # (B, K, C, Z, Y, X)
            direct = self.render_decoder.render(own, batch.rays, generator)
            self._compare("direct", direct, own, batch, batch.target_valid, losses, metrics)
        if config.reconstructed and t > 1:
            rebuilt, motion = self.reconstruct(volume, batch.key_from_frame, batch.offsets, batch.valid, batch.targets)
            reconstructed = self.render_decoder.render(rebuilt, batch.rays, generator)
            self._compare("reconstructed", reconstructed, rebuilt, batch, rebuilt_valid, losses, metrics)
        if not losses:
            raise UserError("--model.direct is off and the clips have a single frame: nothing can be rendered")
        return Output(
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics=metrics,
            direct=direct,
            reconstructed=reconstructed,
            reconstructed_valid=rebuilt_valid,
            image_mask=mask,
            motion=motion,
        )

    def _compare(
        self,
        path: str,
        output: RenderOutput,
        volumes: Tensor,
        batch: ClipBatch,
        valid: Tensor,
        losses: dict[str, Tensor],
        metrics: dict[str, Tensor],
    ) -> None:
        found = self.render_decoder.loss(output, volumes, batch.rays, valid, batch.patch)
        losses |= {f"{name}_{path}": value for name, value in found.losses.items()}
        metrics |= {f"{name}_{path}": value for name, value in found.metrics.items()}


def _content_mask(images: Tensor, content: tuple[int, int]) -> Tensor:
    """(B, T, N, H, W) bool: images (B, T, N, 3, H, W) without the padding around their content (H, W)."""
    b, t, n, _, h, w = images.shape
    rows = torch.arange(h, device=images.device) < content[0]
    columns = torch.arange(w, device=images.device) < content[1]
    return (rows[:, None] & columns).expand(b, t, n, h, w)


def build_model(config: ModelConfig) -> MIM4D:
    """The model of a configuration, on the current default device (``torch.device("meta")`` builds shapes alone)."""
    return MIM4D(config)
