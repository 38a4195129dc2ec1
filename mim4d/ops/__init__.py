"""The ops: hand-written kernels behind plain functions. Needs torch and numpy alone.

Every function checks its arguments, asks :mod:`mim4d.backends` who runs the call, and works in eager mode, under
autograd, ``torch.compile`` and autocast.
"""

from .. import _library
from ..backends import use_backend
from .voxel_sample import voxel_sample, voxel_sample_with_grad

_library.load()  # after the last schema is defined

__all__ = ["use_backend", "voxel_sample", "voxel_sample_with_grad"]
