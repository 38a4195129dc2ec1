"""The calls of other people's deformable attention, for code written against them: mmcv's and Deformable DETR's
function, and the modules of the transformers library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mim4d import ops

Module = TypeVar("Module", bound=nn.Module)


def _attend(value: Tensor, shapes: Any, starts: Any, locations: Tensor, weights: Tensor) -> Tensor:
    """The op takes no half locations; their callers do, so what is narrow already is widened here."""
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    if weights.dtype == torch.float64:
        weights = weights.to(wide)
    return ops.ms_deform_attn(value, shapes, starts, locations.to(wide), weights)


class MultiScaleDeformableAttnFunction:
    """``from mim4d.nn import MultiScaleDeformableAttnFunction`` takes the place of the function of that name in
    ``mmcv.ops.multi_scale_deform_attn``, and of ``MSDeformAttnFunction`` in Deformable DETR's ``models/ops``: same
    call, same results, on every device and in every floating dtype.
    """

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor | Sequence[tuple[int, int]],
        value_level_start_index: Tensor | Sequence[int],
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """As :func:`mim4d.ops.ms_deform_attn`.

        Args:
            value: (B, S, M, D) floating.
            value_spatial_shapes: (L, 2), (H, W) of each level.
            value_level_start_index: (L,), where each level begins in S.
            sampling_locations: (B, Q, M, L, P, 2), (x, y) in [0, 1]; halves are widened.
            attention_weights: (B, Q, M, L, P).
            im2col_step: of no meaning here: any batch is taken at once.

        Returns:
            (B, Q, M*D) in the dtype of ``value``.
        """
        return _attend(value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights)


def _forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: Sequence[tuple[int, int]],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """``forward`` of transformers' ``MultiScaleDeformableAttention``. The levels as ints reach a GPU without a copy."""
    shapes = [(int(h), int(w)) for h, w in value_spatial_shapes_list]
    starts = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
    return _attend(value, shapes, starts, sampling_locations, attention_weights)


def patch_transformers(model: Module) -> Module:
    """Let a model of the transformers library attend by :func:`mim4d.ops.ms_deform_attn`: one line, weights untouched.

    ``model = mim4d.nn.patch_transformers(DeformableDetrForObjectDetection.from_pretrained(...))``. It holds for every
    model built on the library's ``MultiScaleDeformableAttention``: Deformable DETR, RT-DETR, Grounding DINO, OmDet,
    LW-DETR, RF-DETR and PP-DocLayout; not for RT-DETRv2, D-FINE, Mask2Former and OneFormer, which have functions of
    their own.

    Args:
        model: changed in place.

    Returns:
        The model.

    Raises:
        ValueError: it has no such module.
    """
    found = [m for m in model.modules() if type(m).__name__ == "MultiScaleDeformableAttention"]
    if not found:
        raise ValueError(
            f"mim4d.nn.patch_transformers: {type(model).__name__} has no MultiScaleDeformableAttention, "
            "wanted a model of transformers' Deformable DETR family"
        )
    for module in found:
        module.forward = _forward
    return model
