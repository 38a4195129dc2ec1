"""The one table of ops. ``tests/helpers/op_info.py`` says how to add a row."""

from __future__ import annotations

from helpers.infos import voxel_sample
from helpers.op_info import OpInfo

OPS: tuple[OpInfo, ...] = (voxel_sample.INFO, voxel_sample.WITH_GRAD)
