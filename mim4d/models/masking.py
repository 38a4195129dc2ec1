"""Which pixels an encoder may see, and how that knowledge travels through it.

Visibility is a boolean at pixel resolution, True = visible. It is an argument, never a global: it goes in with the
images and is reduced to each stage's resolution on the way. A position of a stage is visible if any pixel under it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


def _rank(noise: Tensor) -> Tensor:
    """The place of each element in the ascending order of its row, (..., n) int64."""
    return noise.argsort(dim=-1).argsort(dim=-1)


def _to_pixels(cells: Tensor, cell: int, size: tuple[int, int]) -> Tensor:
    """Cells (..., rows, columns) drawn out to pixels (..., H, W); the last row and column may be cut."""
    return cells.repeat_interleave(cell, dim=-2)[..., : size[0], :].repeat_interleave(cell, dim=-1)[..., : size[1]]


def _noise(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str | None) -> Tensor:
    """Uniform numbers drawn where the generator lives, then moved: one seed hides the same blocks on any device."""
    return torch.rand(shape, generator=generator, device=generator.device if generator else device).to(device)


def block_mask(
    batch: tuple[int, ...],
    image_size: tuple[int, int],
    *,
    block: int = 32,
    ratio: float = 0.3,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Global spatial mask: hide exactly ``round(ratio * blocks)`` square blocks of each image, drawn anew per image.

    Args:
        batch: leading sizes, one independent draw for each of their elements.
        image_size: (H, W) pixels; blocks at the right and bottom edge may be cut.
        block: pixels along a block's side.
        ratio: share of the blocks to hide, 0..1.
        generator: source of the draw; None uses torch's global one.
        device: where the mask is wanted.

    Returns:
        (*batch, H, W) bool, True = visible.

    Raises:
        ValueError: ratio outside 0..1 or block below 1.
    """
    if not 0.0 <= ratio <= 1.0 or block < 1:
        raise ValueError(f"block_mask: wanted ratio in 0..1 and block >= 1, got {ratio} and {block}")
    rows, columns = -(-image_size[0] // block), -(-image_size[1] // block)
    count = rows * columns
    rank = _rank(_noise((*batch, count), generator, device))  # (*batch, blocks)
    visible = (rank >= round(ratio * count)).unflatten(-1, (rows, columns))
    return _to_pixels(visible, block, image_size)


def ray_mask(
    pixels: Tensor,
    image_size: tuple[int, int],
    *,
    cell: int,
    max_ratio: float = 0.4,
    content: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Local spatial mask: hide the cells that hold a drawn ray, a random choice of them where they are too many.

    Args:
        pixels: (..., R, 2), (x, y) of the rays in the image; rays outside the content are ignored.
        image_size: (H, W) pixels.
        cell: pixels along a cell's side (METHOD: W / 50).
        max_ratio: at most this share of the cells that hold content is hidden.
        content: (h, w) pixels at the top left that hold the picture, the rest being padding; None: all of them.
        generator: source of the choice; None uses torch's global one.

    Returns:
        (..., H, W) bool, True = visible.

    Raises:
        ValueError: max_ratio outside 0..1, cell below 1 or a content larger than the image.
    """
    if not 0.0 <= max_ratio <= 1.0 or cell < 1:
        raise ValueError(f"ray_mask: wanted max_ratio in 0..1 and cell >= 1, got {max_ratio} and {cell}")
    height, width = image_size if content is None else content
    if height > image_size[0] or width > image_size[1]:
        raise ValueError(f"ray_mask: content {content} is larger than the image {image_size}")
    rows, columns = -(-image_size[0] // cell), -(-image_size[1] // cell)
    count = rows * columns
    filled = -(-height // cell) * -(-width // cell)  # cells with content
    x, y = pixels.unbind(-1)  # (..., R)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    where = torch.where(inside, (y // cell) * columns + x // cell, 0).long()
    hit = torch.zeros(*pixels.shape[:-2], count, device=pixels.device)
    hit = hit.scatter_reduce(-1, where, inside.to(hit.dtype), reduce="amax")  # (..., cells) 1 where a ray is
    noise = _noise(tuple(hit.shape), generator, pixels.device)
    order = _rank(noise - 2.0 * hit)  # cells with a ray first, in random order
    visible = (hit == 0) | (order >= int(max_ratio * filled))
    return _to_pixels(visible.unflatten(-1, (rows, columns)), cell, image_size)


@dataclass
class Visibility:
    """A visibility mask at every resolution a backbone works at; ``Visibility(None)`` hides nothing.

    Args:
        pixels: (M, 1, H, W) bool, True = visible, or None.
    """

    pixels: Tensor | None
    _levels: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    def at(self, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor | None:
        """The mask (M, 1, h, w) at a resolution: 1 where any pixel under the position is visible, else 0."""
        if self.pixels is None:
            return None
        if size not in self._levels:
            self._levels[size] = F.adaptive_max_pool2d(self.pixels.float(), size)
        return self._levels[size].to(dtype)

    def apply(self, x: Tensor) -> Tensor:
        """x (M, c, h, w) with zeros at the hidden positions of its own resolution."""
        mask = self.at((x.shape[-2], x.shape[-1]), x.dtype)
        return x if mask is None else x * mask
