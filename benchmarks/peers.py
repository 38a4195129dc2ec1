"""Other people's packages, each in the op's own convention. All are optional: what does not import is named with the
reason.

What each computes is checked by the same gate as our own kernels; nothing of them is copied or installed by us.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Absent, Arguments, Rival


def need(module: str, package: str, device: str, *devices: str) -> ModuleType:
    """The module, or Absent in words."""
    if device not in devices:
        raise Absent(f"{package} computes on {' and '.join(devices)} tensors here")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = importlib.util.find_spec(module.partition(".")[0]) is None
        raise Absent(f"{package} is not installed" if missing else f"{package} does not import: {error}") from None
    except Exception as error:  # a package that breaks on this torch is absent, not the end of the table
        raise Absent(f"{package} does not import: {type(error).__name__}: {error}") from None


# ---- voxel_sample


def interpol(name: str = "torch-interpol") -> Rival:
    """torch-interpol's ``grid_pull``: TorchScript, B-splines (order 1 is trilinear), positions in voxels in the order
    of
    the axes (z, y, x)."""

    def make(device: str) -> Callable[..., Tensor]:
        package = need("interpol", name, device, "cpu", "cuda")

        def call(volume: Tensor, points: Tensor, mode: str = "trilinear") -> Tensor:
            _only_linear(mode)
            place = _positions(volume, points)
            found = package.grid_pull(volume.to(place.dtype), place, interpolation=1, bound="zero", extrapolate=True)
            return found[..., 0, 0].transpose(1, 2).to(volume.dtype)

        return call

    return Rival(name, make, peer=True)


def scipy() -> Rival:
    """``scipy.ndimage.map_coordinates``, a channel at a time; it has no gradient."""

    def make(device: str) -> Callable[..., Tensor]:
        return _map_coordinates(need("scipy.ndimage", "scipy", device, "cpu"), lambda t: t.numpy(), torch.from_numpy)

    return Rival("scipy map_coordinates", make, order=0, peer=True, numpy=True)


def cupyx() -> Rival:
    """The same by CuPy, on the GPU."""

    def make(device: str) -> Callable[..., Tensor]:
        ndimage = need("cupyx.scipy.ndimage", "cupy", device, "cuda")
        cupy = importlib.import_module("cupy")
        return _map_coordinates(ndimage, cupy.from_dlpack, torch.from_dlpack)

    return Rival("cupyx map_coordinates", make, order=0, peer=True)


def _map_coordinates(
    ndimage: ModuleType, enter: Callable[..., Any], leave: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    def call(volume: Tensor, points: Tensor, mode: str = "trilinear") -> Tensor:
        _only_linear(mode)
        places, items = _positions(volume, points)[:, :, 0, 0], []
        for item, place in zip(volume.to(places.dtype), places, strict=True):
            where = enter(place.T.contiguous())  # (3, N)
            channels = [
                leave(ndimage.map_coordinates(enter(channel.contiguous()), where, order=1, mode="grid-constant"))
                for channel in item
            ]
            items.append(torch.stack(channels, -1))
        return torch.stack(items).to(volume.dtype)

    return call


def _only_linear(mode: str) -> None:
    if mode != "trilinear":
        raise Absent(f"its higher orders are B-splines, another curve than {mode}")


def _positions(volume: Tensor, points: Tensor) -> Tensor:
    """(B, N, 1, 1, 3) positions in voxels in the order z, y, x."""
    size = torch.tensor(volume.shape[:1:-1], dtype=points.dtype, device=points.device)  # X, Y, Z
    return (((points + 1) * size - 1) / 2).flip(-1)[:, :, None, None]


# ---- ms_deform_attn


def deformops() -> Rival:
    """deformops' multi-scale deformable attention, on the backend that it chooses."""

    def make(device: str) -> Callable[..., Tensor]:
        msda = need("deformops.registry", "deformops", device, "cpu", "cuda").msda

        def call(value: Tensor, sampling_locations: Tensor, attention_weights: Tensor, **levels: Tensor) -> Tensor:
            locations, weights = sampling_locations.to(value.dtype), attention_weights.to(value.dtype).flatten(3)
            return msda(value, levels["spatial_shapes"], levels["level_start_index"], locations, weights)

        return call

    return Rival("deformops", make, peer=True)


def mmcv() -> Rival:
    """The CUDA kernel of Deformable DETR, as mmcv carries it; float32 alone."""

    def make(device: str) -> Callable[..., Tensor]:
        module = need("mmcv.ops.multi_scale_deform_attn", "mmcv", device, "cuda")
        apply = module.MultiScaleDeformableAttnFunction.apply

        def call(value: Tensor, sampling_locations: Tensor, attention_weights: Tensor, **levels: Tensor) -> Tensor:
            start, shapes = levels["level_start_index"], levels["spatial_shapes"]
            found = apply(value.float(), shapes, start, sampling_locations, attention_weights.float(), value.shape[0])
            return found.to(value.dtype)

        return call

    return Rival("mmcv", make, peer=True)


def deformable_detr() -> Rival:
    """The CUDA extension that Deformable DETR's own ``models/ops`` builds; float32 alone."""

    def make(device: str) -> Callable[..., Tensor]:
        name = "MultiScaleDeformableAttention"
        extension = need(name, "Deformable DETR's extension", device, "cuda")

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Tensor:
                ctx.save_for_backward(*args)
                return extension.ms_deform_attn_forward(*args, args[0].shape[0])

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
                args = ctx.saved_tensors
                by = extension.ms_deform_attn_backward(*args, grad.contiguous(), args[0].shape[0])
                return by[0], None, None, by[1], by[2]

        def call(value: Tensor, sampling_locations: Tensor, attention_weights: Tensor, **levels: Tensor) -> Tensor:
            start, shapes = levels["level_start_index"], levels["spatial_shapes"]
            found = Function.apply(value.float(), shapes, start, sampling_locations, attention_weights.float())
            return found.to(value.dtype)

        return call

    return Rival("Deformable DETR", make, peer=True)


def transformers() -> Rival:
    """The module that the transformers library's Deformable DETR family attends by, without a kernel from its hub."""

    def make(device: str) -> Callable[..., Tensor]:
        name = "transformers.models.deformable_detr.modeling_deformable_detr"
        module = need(name, "transformers", device, "cpu", "cuda").MultiScaleDeformableAttention()

        def call(value: Tensor, sampling_locations: Tensor, attention_weights: Tensor, **levels: Any) -> Tensor:
            shapes = levels["spatial_shapes"]
            wide = value.to(sampling_locations.dtype)
            found = module(wide, None, shapes, None, sampling_locations, attention_weights.to(wide.dtype), 64)
            return found.to(value.dtype)

        return call

    return Rival("transformers", make, peer=True, prepare=known_levels)


def known_levels(args: Arguments) -> Arguments:
    """The sizes as numbers, so that a formula in torch does not wait for a GPU to tell them."""
    return {**args, "spatial_shapes": [tuple(pair) for pair in args["spatial_shapes"].tolist()]}


# ---- sdf_march


def nerfacc(field: Callable[..., Any]) -> Rival:
    """The eager field of ``field(weigh)`` with nerfacc's scan for the transmittance."""

    def make(device: str) -> Callable[..., Any]:
        package = need("nerfacc", "nerfacc", device, "cuda")

        def weigh(alpha: Tensor) -> Tensor:  # (B, R, S)
            return package.render_weight_from_alpha(alpha.flatten(0, 1))[0].view_as(alpha)

        return lambda **args: field(weigh, **args)

    return Rival("create_graph + nerfacc", make, peer=True)


# ---- voxel_pool


class _Conch(torch.autograd.Function):
    """conch's kernels as one differentiable function; the intervals are made once by the caller."""

    @staticmethod
    def forward(ctx: Any, package: ModuleType, rows: Tensor, where: Tensor, starts: Tensor, lengths: Tensor, grid: Any):
        ctx.package = package
        ctx.save_for_backward(where, starts, lengths)
        return package.bev_pool(rows, where, starts, lengths, *grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, ctx.package.bev_pool_backward(grad.contiguous(), *ctx.saved_tensors), None, None, None, None


def conch(sorted_points: Callable[[Tensor, Sequence[int]], tuple[Tensor, Tensor, Tensor]]) -> Rival:
    """conch's Triton form of BEVFusion's interval kernel, over the outer product, with cached intervals.

    ``sorted_points(cells, grid)`` -> points in the order of their cells, first point and number of points of each cell.
    """

    def make(device: str) -> Callable[..., Tensor]:
        package = need("conch.ops.vision.bev_pool", "conch-triton-kernels", device, "cuda")

        def call(depth_probs: Tensor, features: Tensor, cells: Any, grid_shape: Sequence[int]) -> Tensor:
            order, where, starts, lengths = cells
            product = depth_probs.unsqueeze(-1) * features.permute(0, 1, 3, 4, 2).unsqueeze(2)  # (B, N, D, H, W, C)
            rows = product.reshape(-1, features.shape[2]).index_select(0, order)
            Z, Y, X = grid_shape
            grid = len(depth_probs), Z, X, Y
            found = _Conch.apply(package, rows, where, starts, lengths, grid)  # (B, Z, X, Y, C)
            return found.permute(0, 4, 1, 3, 2)

        return call

    def prepare(args: Arguments) -> Arguments:
        cells, (_, Y, X) = args["cells"], args["grid_shape"]
        order, starts, lengths = sorted_points(cells, args["grid_shape"])
        item = order // cells[0].numel()
        cell = cells.flatten()[order].long()
        where = torch.stack([cell % X, cell // X % Y, cell // (X * Y), item], -1).int()
        return {**args, "cells": (order, where, starts.int(), lengths.int())}

    return Rival("conch, cached index", make, prepare=prepare, peer=True)


def bev_pool_v2(sorted_points: Callable[[Tensor, Sequence[int]], tuple[Tensor, Tensor, Tensor]]) -> Rival:
    """BEVDet's kernel where its extension is built (it has no package); forward only here."""

    def make(device: str) -> Callable[..., Tensor]:
        kernel = need("bev_pool_v2_ext", "bev_pool_v2", device, "cuda")

        def call(depth_probs: Tensor, features: Tensor, cells: Any, grid_shape: Sequence[int]) -> Tensor:
            ranks, starts, lengths = cells
            rows = features.permute(0, 1, 3, 4, 2).contiguous()  # (B, N, H, W, C)
            out = features.new_zeros(depth_probs.shape[0], *grid_shape, features.shape[2])
            kernel.bev_pool_v2_forward(depth_probs.contiguous(), rows, out, *ranks, lengths, starts)
            return out.permute(0, 4, 1, 2, 3)

        return call

    def prepare(args: Arguments) -> Arguments:
        cells, (Z, Y, X) = args["cells"], args["grid_shape"]
        _, _, D, H, W = cells.shape
        order, starts, lengths = sorted_points(cells, args["grid_shape"])
        pixel = order // (D * H * W) * (H * W) + order % (H * W)
        voxel = cells.flatten()[order].long() + order // cells[0].numel() * (Z * Y * X)
        ranks = [order.int(), pixel.int(), voxel.int()]
        return {**args, "cells": (ranks, starts.int(), lengths.int())}

    return Rival("bev_pool_v2, cached index", make, order=0, prepare=prepare, peer=True)
