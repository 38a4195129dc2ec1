"""Fields whose surfaces are known, volumes and rays for them: what tests of the renderer share."""

from __future__ import annotations

import math

import torch

from mim4d.nn import SDFField, VoxelGrid

BOUNDS = (-40.0, -40.0, -4.0, 40.0, 40.0, 4.0)
GRID = VoxelGrid(BOUNDS, (20, 20, 4))


def plane_field(by_volume: bool, offset: float, sharpness: float = 1e4) -> SDFField:
    """Weights for sdf = offset - x (scaled units, exactly) and a constant colour; x from the point or from feature 0.

    Softplus(z) - softplus(-z) = z: two neurons carry a signed number through every layer without error.
    """
    field = SDFField(channels=3)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.zero_()
        decoder = field.sdf_decoder
        decoder.fc_p.bias[0], decoder.fc_p.bias[1] = offset, -offset
        if by_volume:
            decoder.fc_c[0].weight[0, 0], decoder.fc_c[0].weight[1, 0] = -1.0, 1.0
        else:
            decoder.fc_p.weight[0, 0], decoder.fc_p.weight[1, 0] = -1.0, 1.0
        for l in range(6):
            weight = decoder.get_submodule(f"lin{l}").weight
            if l == 0:  # h_0 = (z, -z) still carries the sign twice
                weight[0, 0] = weight[1, 1] = 1.0
            else:
                weight[0, 0] = 1.0
                weight[0, 1] = -1.0
                if l < 5:
                    weight[1] = -weight[0]
        field.rgb_decoder.lin3.bias.copy_(torch.tensor([0.0, 2.0, -2.0]))
        field.deviation_network.variance.fill_(math.log(sharpness) / 10)
    return field


def x_volume(grid: VoxelGrid = GRID) -> torch.Tensor:
    """Feature 0 is the cell centre's x in scaled units, the rest zero: (1, 3, Z, Y, X)."""
    volume = torch.zeros(1, 3, *grid.shape)
    volume[0, 0] = grid.centres()[..., 0] / max(abs(b) for b in grid.bounds)
    return volume


def fan(n: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays from (1, 0.5, 0.2) m, spread around x: origins and directions (1, n, 3)."""
    angle = torch.linspace(-0.6, 0.6, n)
    directions = torch.stack((angle.cos(), angle.sin(), torch.zeros(n)), -1)[None]
    return torch.tensor([1.0, 0.5, 0.2]).expand_as(directions), directions


def random_scene(seed: int = 0, channels: int = 3) -> tuple[SDFField, torch.Tensor]:
    torch.manual_seed(seed)
    return SDFField(channels), torch.randn(1, channels, *GRID.shape)
