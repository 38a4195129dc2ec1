"""Deformable attention over the levels of a feature pyramid, and over the frames of a clip."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4d import ops


def _ring(num_heads: int, num_points: int) -> Tensor:
    """Start offsets (M, P, 2) in cells: head m looks in direction 2 pi m / M, point p at distance p + 1 (max norm)."""
    angle = torch.arange(num_heads, dtype=torch.float32) * (2.0 * math.pi / num_heads)  # (M,)
    direction = torch.stack((angle.cos(), angle.sin()), dim=-1)  # (M, 2)
    direction = direction / direction.abs().amax(dim=-1, keepdim=True)
    return direction[:, None] * torch.arange(1, num_points + 1)[:, None]  # (M, P, 2)


def _check_heads(name: str, embed_dim: int, num_heads: int) -> None:
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(
            f"{name}: the width must be a multiple of the number of heads, got {embed_dim} and {num_heads}"
        )


def _coordinate_dtype(x: Tensor) -> torch.dtype:
    """Places and weights are fp32 whatever the values are: half a bfloat16 step is a quarter of a cell at 128 cells."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with the constructor order and parameter names of Deformable-DETR.

    Formula (Zhu et al., "Deformable DETR", eq. 3): each query reads, per head, ``n_points`` places of each of
    ``n_levels`` maps and sums them with weights that are soft-maxed over levels and points together.

    Args:
        d_model: width E of queries and values.
        n_levels: maps L.
        n_heads: M; must divide E.
        n_points: P places per head and level.
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__()
        _check_heads("MSDeformAttn", d_model, n_heads)
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets on a ring, uniform weights, Xavier projections: queries start by looking around themselves."""
        ring = _ring(self.n_heads, self.n_points)[:, None].expand(-1, self.n_levels, -1, -1)  # (M, L, P, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            query: (B, Q, E).
            reference_points: (B, Q, L, 2), (x, y) in [0, 1] over each map, or (B, Q, L, 4) boxes (cx, cy, w, h).
            input_flatten: (B, S, E), the maps flattened row by row and concatenated.
            input_spatial_shapes: (L, 2) int64, (height, width) of each map.
            input_level_start_index: (L,) int64, where each map starts in S.
            input_padding_mask: (B, S) bool, True where a value is padding and counts zero.

        Returns:
            (B, Q, E).

        Raises:
            ValueError: reference points are neither 2 nor 4 numbers.
        """
        b, q, _ = query.shape
        m, l, p = self.n_heads, self.n_levels, self.n_points
        value = self.value_proj(input_flatten)  # (B, S, E)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        dtype = _coordinate_dtype(value)
        offsets = self.sampling_offsets(query).reshape(b, q, m, l, p, 2).to(dtype)  # cells (dx, dy)
        weights = self.attention_weights(query).reshape(b, q, m, l * p).softmax(dim=-1)
        reference = reference_points[:, :, None, :, None].to(dtype)  # (B, Q, 1, L, 1, 2 or 4)
        if reference_points.shape[-1] == 2:
            width_height = input_spatial_shapes.flip(-1)[:, None]  # (L, 1, 2)
            locations = reference + offsets / width_height
        elif reference_points.shape[-1] == 4:
            locations = reference[..., :2] + offsets / p * reference[..., 2:] * 0.5
        else:
            raise ValueError(
                f"MSDeformAttn: reference_points wanted last size 2 or 4, got {reference_points.shape[-1]}"
            )
        out = ops.ms_deform_attn(
            value.unflatten(-1, (m, -1)),
            input_spatial_shapes,
            input_level_start_index,
            locations,
            weights.reshape(b, q, m, l, p),
        )  # (B, Q, E)
        return self.output_proj(out)


class TemporalDeformAttn(nn.Module):
    """Deformable attention of BEV queries over the frames of a clip; the frames are the levels of ``ms_deform_attn``.

    It differs from :class:`MSDeformAttn` where a clip differs from a pyramid: any number of frames in any order shares
    one set of weights, a frame is told apart by a code (its time offset) that is added to the query for it alone, and
    a missing frame is taken out before the softmax, so that it has exactly no weight.

    Args:
        embed_dim: width E.
        num_heads: M; must divide E.
        num_points: P places per head and frame.
        average_frames: soft-max over the points of each frame and average the valid frames, instead of one soft-max
            over valid frames and points together.
    """

    def __init__(self, embed_dim: int, num_heads: int, num_points: int = 4, *, average_frames: bool = False) -> None:
        super().__init__()
        _check_heads("TemporalDeformAttn", embed_dim, num_heads)
        self.num_heads, self.num_points, self.average_frames = num_heads, num_points, average_frames
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As :meth:`MSDeformAttn.reset_parameters`. The ring's mean over heads is zero: no motion is assumed."""
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(_ring(self.num_heads, self.num_points).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query: Tensor, values: Tensor, codes: Tensor, valid: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            query: (B, Y*X, E), one per BEV cell; a query's reference is its cell's centre.
            values: (B, L, Y*X, E), the frames' maps on the same grid.
            codes: (B, L, E), added to the query when it asks frame l where to look and how much it counts.
            valid: (B, L) bool.
            size: (Y, X).

        Returns:
            The attended (B, Y*X, E), the sampling offsets (B, Y*X, M, L, P, 2) in cells (dx, dy), and the weights
            (B, Y*X, M, L, P). A head's weights sum to one over frames and points; all are zero if no frame is valid.
        """
        b, q, _ = query.shape
        y, x = size
        l, m, p = values.shape[1], self.num_heads, self.num_points
        offsets = self._per_frame(self.sampling_offsets, query, codes, (m, p, 2)).movedim(2, 3)  # (B, Q, M, L, P, 2)
        logits = self._per_frame(self.attention_weights, query, codes, (m, p)).movedim(2, 3)  # (B, Q, M, L, P)
        weights = self._normalise(logits.to(_coordinate_dtype(logits)), valid)
        value = self.value_proj(values).reshape(b, l * y * x, m, -1)  # (B, L*Y*X, M, E/M)

        dtype = _coordinate_dtype(value)
        rows = (torch.arange(y, device=query.device, dtype=dtype) + 0.5)[:, None].expand(y, x)
        columns = (torch.arange(x, device=query.device, dtype=dtype) + 0.5).expand(y, x)
        place = [
            (centre.reshape(q, 1, 1, 1) + shift) / n
            for centre, shift, n in zip((columns, rows), offsets.to(dtype).unbind(-1), (x, y), strict=True)
        ]
        locations = torch.stack(place, dim=-1)  # (B, Q, M, L, P, 2) in [0, 1]
        # Levels as Python numbers: they reach a kernel as arguments, not as a copy from the host.
        out = ops.ms_deform_attn(value, [(y, x)] * l, [i * y * x for i in range(l)], locations, weights)
        return self.output_proj(out), offsets, weights

    @staticmethod
    def _per_frame(layer: nn.Linear, query: Tensor, codes: Tensor, shape: tuple[int, ...]) -> Tensor:
        """``layer(query + code)`` for every pair of query and frame (B, Q, L, *shape), as the sum of its two halves."""
        of_query = layer(query)[:, :, None]  # (B, Q, 1, ...)
        of_code = F.linear(codes, layer.weight)[:, None]  # (B, 1, L, ...)
        return (of_query + of_code).unflatten(-1, shape)

    def _normalise(self, logits: Tensor, valid: Tensor) -> Tensor:
        """Weights (B, Q, M, L, P) from logits; exactly zero for frames that are not valid."""
        mask = valid[:, None, None, :, None]  # (B, 1, 1, L, 1)
        if self.average_frames:
            count = valid.sum(dim=-1).clamp(min=1)[:, None, None, None, None]
            return logits.softmax(dim=-1) * mask / count
        low = torch.finfo(logits.dtype).min  # finite, so that a row with no valid frame is no 0/0
        return logits.masked_fill(~mask, low).flatten(-2).softmax(dim=-1).unflatten(-1, logits.shape[-2:]) * mask
