"""The one table of ops. ``tests/helpers/op_info.py`` says how to add a row."""

from __future__ import annotations

from helpers.infos import ms_deform_attn, sdf_march, sdf_sample, voxel_pool, voxel_pull, voxel_sample
from helpers.op_info import OpInfo

OPS: tuple[OpInfo, ...] = (
    voxel_sample.INFO,
    voxel_sample.WITH_GRAD,
    sdf_sample.INFO,
    sdf_march.INFO,
    ms_deform_attn.INFO,
    voxel_pool.INFO,
    voxel_pool.BUILD,
    voxel_pull.INFO,
)
