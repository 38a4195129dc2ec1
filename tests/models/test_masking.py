"""Block masks, ray masks, and what a mask does at coarser resolutions."""

from __future__ import annotations

import pytest
import torch

from mim4d.models.masking import Visibility, block_mask, ray_mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(128, 224), (96, 64), (70, 45)])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_block_mask_hides_exactly_the_share(size: tuple[int, int], ratio: float) -> None:
    visible = block_mask((2, 3), size, block=32, ratio=ratio, generator=seeded())
    assert visible.shape == (2, 3, *size)
    assert visible.dtype == torch.bool
    corners = visible[..., ::32, ::32].flatten(2)  # one pixel of each block, cut ones included
    blocks = -(-size[0] // 32) * -(-size[1] // 32)
    assert corners.shape[-1] == blocks
    assert ((~corners).sum(-1) == round(ratio * blocks)).all()
    drawn_out = corners.unflatten(-1, (-(-size[0] // 32), -1)).repeat_interleave(32, -2).repeat_interleave(32, -1)
    assert torch.equal(drawn_out[..., : size[0], : size[1]], visible)  # a block is hidden as a whole


def test_block_mask_is_drawn_anew_per_image_and_again_from_the_seed() -> None:
    first = block_mask((8,), (128, 224), generator=seeded())
    assert len({tuple(image.flatten().tolist()) for image in first[:, ::32, ::32]}) > 1
    assert torch.equal(first, block_mask((8,), (128, 224), generator=seeded()))
    assert not torch.equal(first, block_mask((8,), (128, 224), generator=seeded(1)))


def test_ray_mask_covers_the_cells_of_the_rays() -> None:
    pixels = torch.tensor([[[0.5, 0.5], [9.0, 3.9], [9.1, 3.0], [-1.0, 2.0], [4.0, 12.0]]])  # the last two are outside
    visible = ray_mask(pixels, (12, 20), cell=4, max_ratio=0.4, generator=seeded())
    wanted = torch.ones(1, 12, 20, dtype=torch.bool)
    wanted[0, 0:4, 0:4] = False
    wanted[0, 0:4, 8:12] = False
    assert torch.equal(visible, wanted)


def test_ray_mask_hides_at_most_its_share_and_only_ray_cells() -> None:
    pixels = torch.rand(3, 500, 2, generator=seeded()) * torch.tensor([200.0, 100.0])  # nearly every cell of 10 pixels
    pixels[2] = torch.rand(500, 2, generator=seeded()) * torch.tensor([50.0, 100.0])  # a quarter of the cells
    visible = ray_mask(pixels, (100, 200), cell=10, max_ratio=0.4, generator=seeded(1))
    hidden = ~visible[:, ::10, ::10]  # (3, 10, 20)
    holds = torch.zeros(3, 10, 20, dtype=torch.bool)
    for image in range(3):
        holds[image, (pixels[image, :, 1] // 10).long(), (pixels[image, :, 0] // 10).long()] = True
    assert (hidden & ~holds).sum() == 0
    assert hidden[:2].flatten(1).sum(1).tolist() == [80, 80]
    assert torch.equal(hidden[2], holds[2])  # below the limit: all of them
    assert not torch.equal(hidden[0] & holds[1], hidden[1] & holds[0])  # the choice is random


def test_ray_mask_counts_no_padding() -> None:
    pixels = torch.rand(1, 2000, 2, generator=seeded()) * torch.tensor(
        [120.0, 60.0]
    )  # also right of and below 100 x 50
    visible = ray_mask(pixels, (60, 120), cell=10, max_ratio=0.4, content=(50, 100), generator=seeded(1))
    hidden = ~visible[0, ::10, ::10]  # (6, 12)
    assert hidden.sum() == 20  # of 5 x 10 cells of content; 28 of the 72 with padding
    assert hidden[:5, :10].sum() == 20
    with pytest.raises(ValueError, match=r"content \(70, 100\) is larger"):
        ray_mask(pixels, (60, 120), cell=10, content=(70, 100))


@pytest.mark.parametrize("kwargs", [{"ratio": 1.5}, {"ratio": -0.1}, {"block": 0}])
def test_block_mask_refuses(kwargs: dict) -> None:
    with pytest.raises(ValueError, match="block_mask"):
        block_mask((1,), (32, 32), **kwargs)


@pytest.mark.parametrize("kwargs", [{"cell": 0}, {"cell": 4, "max_ratio": 2.0}])
def test_ray_mask_refuses(kwargs: dict) -> None:
    with pytest.raises(ValueError, match="ray_mask"):
        ray_mask(torch.zeros(1, 3, 2), (32, 32), **kwargs)


def test_a_position_is_visible_if_any_pixel_under_it_is() -> None:
    pixels = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    pixels[0, 0, 5, 2] = True
    seen = Visibility(pixels).at((2, 2))
    assert seen is not None
    assert seen.tolist() == [[[[0.0, 0.0], [1.0, 0.0]]]]
    x = torch.ones(1, 3, 2, 2)
    assert Visibility(pixels).apply(x).sum() == 3
    assert Visibility(None).apply(x) is x
