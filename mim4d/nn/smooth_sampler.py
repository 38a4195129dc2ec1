"""The call of the ``smooth_sampler`` package, for code written against it: UniPAD's and MIM4D's renderers."""

from __future__ import annotations

import torch
from torch import Tensor

from mim4d import ops


class SmoothSampler:
    """Trilinear reading of volumes that can be differentiated twice, with the fractions smoothed if asked.

    ``from mim4d.nn import SmoothSampler`` takes the place of ``from smooth_sampler import SmoothSampler``: same call,
    same results, on every backend of :func:`mim4d.ops.voxel_sample`. New code calls the op itself: its result has the
    channels last, and needs no copy.
    """

    @staticmethod
    def apply(
        input: Tensor,
        grid: Tensor,
        padding_mode: str = "zeros",
        align_corners: bool = True,
        apply_smoothstep: bool = False,
    ) -> Tensor:
        """Read ``input`` at ``grid``, as ``torch.nn.functional.grid_sample``.

        Args:
            input: (N, C, D, H, W) floating.
            grid: (N, D_out, H_out, W_out, 3), (x, y, z) in [-1, 1].
            padding_mode: ``zeros``, ``border`` or ``reflection``.
            align_corners: True: -1 and 1 are the centres of the outer voxels. False: their outer faces.
            apply_smoothstep: replace the fraction t of every axis by t*t*(3-2t).

        Returns:
            (N, C, D_out, H_out, W_out), differentiable twice in ``input`` and ``grid``.
        """
        if padding_mode == "reflection":  # back and forth between -1 and 1, which `border` then reads
            grid, padding_mode = 1 - (torch.remainder(grid + 1, 4) - 2).abs(), "border"
        out = ops.voxel_sample(
            input,
            grid,
            mode="smoothstep" if apply_smoothstep else "trilinear",
            padding_mode=padding_mode,
            align_corners=align_corners,
        )
        return out.movedim(-1, 1).contiguous()  # as callers may `view` it
