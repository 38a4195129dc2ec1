"""The ops: hand-written kernels behind plain functions. Needs torch and numpy alone.

Every function checks its arguments, asks :mod:`mim4d.backends` who runs the call, and works in eager mode, under
autograd, ``torch.compile`` and autocast.
"""

from .. import _library
from ..backends import use_backend
from .ms_deform_attn import ms_deform_attn
from .sdf_march import sdf_march, sdf_sample
from .voxel_pool import PoolIndex, build_pool_index, voxel_pool
from .voxel_pull import voxel_pull
from .voxel_sample import voxel_sample, voxel_sample_with_grad

_library.load()  # after the last schema is defined

__all__ = [
    "PoolIndex",
    "build_pool_index",
    "ms_deform_attn",
    "sdf_march",
    "sdf_sample",
    "use_backend",
    "voxel_pool",
    "voxel_pull",
    "voxel_sample",
    "voxel_sample_with_grad",
]
