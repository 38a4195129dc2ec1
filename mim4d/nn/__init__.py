"""Thin modules over :mod:`mim4d.ops`. They need torch and numpy alone, and no training side."""

from .bev_pool import bev_pool, bev_pool_v2
from .geometry import VoxelGrid, compose, invert_rigid, project, transform_points, unproject
from .lift_splat import LiftSplat, LiftSplatConv
from .ms_deform_attn import MSDeformAttn, TemporalDeformAttn
from .multi_scale_deformable import MultiScaleDeformableAttnFunction, patch_transformers
from .render_losses import (
    eikonal_loss,
    free_space_loss,
    sparse_point_loss,
    ssim,
    ssim_loss,
    truncation_loss,
)
from .sdf_field import SDFField
from .sdf_renderer import RenderOutput, SDFRenderer, View
from .smooth_sampler import SmoothSampler
from .voxel_pull import VoxelPull
from .voxel_sample import VoxelSampler

__all__ = [
    "LiftSplat",
    "LiftSplatConv",
    "MSDeformAttn",
    "MultiScaleDeformableAttnFunction",
    "RenderOutput",
    "SDFField",
    "SDFRenderer",
    "SmoothSampler",
    "TemporalDeformAttn",
    "View",
    "VoxelGrid",
    "VoxelPull",
    "VoxelSampler",
    "bev_pool",
    "bev_pool_v2",
    "compose",
    "eikonal_loss",
    "free_space_loss",
    "invert_rigid",
    "patch_transformers",
    "project",
    "sparse_point_loss",
    "ssim",
    "ssim_loss",
    "transform_points",
    "truncation_loss",
    "unproject",
]
