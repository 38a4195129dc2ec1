"""The signed-distance and colour network that the renderer evaluates along rays."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOFTPLUS_BETA = 100.0
RELEASED = "render_model.field."  # what stands before the field's names in a checkpoint of the method's authors


class _ConditionedMLP(nn.Module):
    """Small MLP on a point whose every layer takes the condition in again: ``h <- lin_l(h + fc_c_l(c))``.

    ``weights`` lists the parameters in the order that :func:`mim4d.ops.sdf_march` takes.
    """

    def __init__(self, condition: int, hidden: int, out: int, layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.fc_p = nn.Linear(3, hidden)
        self.fc_c = nn.ModuleList(nn.Linear(condition, hidden) for _ in range(layers))
        for l in range(layers):
            self.add_module(f"lin{l}", nn.Linear(hidden, hidden if l < layers - 1 else out))

    def weights(self) -> list[Tensor]:
        tensors = [self.fc_p.weight, self.fc_p.bias]
        for l in range(self.layers):
            for layer in (self.get_submodule(f"lin{l}"), self.fc_c[l]):
                assert isinstance(layer, nn.Linear)
                tensors += [layer.weight, layer.bias]
        return tensors


class _Deviation(nn.Module):
    """The learned logarithm of the surface's sharpness."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.variance = nn.Parameter(torch.full((1,), start))


class SDFField(nn.Module):
    """Weights of the SDF and colour decoders, by the parameter names of the released ``render_model.field``.

    The field lives in scaled coordinates (the longest half-axis of the range is 1). With a point p and its feature f:
    ``h_0 = fc_p(p)``; ``h <- lin_l(h + fc_c_l(f))`` with softplus (beta 100) after all layers but the last; the last
    gives the signed distance and ``hidden`` geometry numbers. The colour decoder has the same form with ReLU, condition
    [direction, f, normal, geometry] and a sigmoid. Both keep torch's default linear initialisation.

    :func:`mim4d.ops.sdf_march` evaluates both along rays; ``forward`` here gives the distance alone, at any points.

    Args:
        channels: C of the volume's features.
        hidden: width of all layers and size of the geometry vector.
        sdf_layers, rgb_layers: layers after ``fc_p``.
        variance: v at the start; the sharpness is ``clip(exp(10 v), 1e-6, 1e6)``, about 20 at 0.3.
    """

    def __init__(
        self, channels: int = 32, hidden: int = 16, sdf_layers: int = 6, rgb_layers: int = 4, variance: float = 0.3
    ) -> None:
        super().__init__()
        self.channels, self.hidden = channels, hidden
        self.sdf_decoder = _ConditionedMLP(channels, hidden, 1 + hidden, sdf_layers)
        self.rgb_decoder = _ConditionedMLP(3 + channels + 3 + hidden, hidden, 3, rgb_layers)
        self.deviation_network = _Deviation(variance)

    def sdf_weights(self) -> list[Tensor]:
        """[fc_p.weight, fc_p.bias, then per layer lin.weight, lin.bias, fc_c.weight, fc_c.bias]."""
        return self.sdf_decoder.weights()

    def rgb_weights(self) -> list[Tensor]:
        """As :meth:`sdf_weights`, of the colour decoder."""
        return self.rgb_decoder.weights()

    def load_released(self, state: Mapping[str, Tensor]) -> list[str]:
        """Take the field's weights out of a checkpoint of the method's authors, whatever else it holds.

        Args:
            state: the checkpoint's weights by name; the field's have ``render_model.field.`` in their names, after any
                prefix. (The authors' renderer reads the volume at corners, ``align_corners=True``; ours at centres.)

        Returns:
            The names under that prefix that this field has no use for.

        Raises:
            ValueError: a weight is missing or has another shape; then nothing was changed.
        """
        given = {name.partition(RELEASED)[2]: value for name, value in state.items() if RELEASED in name}
        own = self.state_dict()
        wrong = [
            f"{name} is {tuple(given[name].shape) if name in given else 'missing'}, wanted {tuple(value.shape)}"
            for name, value in own.items()
            if name not in given or given[name].shape != value.shape
        ]
        if wrong:
            raise ValueError(f"SDFField.load_released: {'; '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}")
        self.load_state_dict({name: given[name] for name in own})
        return sorted(given.keys() - own.keys())

    def inv_s(self) -> Tensor:
        """The sharpness s, a 0-dim tensor: larger means a thinner surface (per scaled unit)."""
        return torch.exp(10.0 * self.deviation_network.variance).clamp(1e-6, 1e6).reshape(())

    def forward(self, points: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            points: (..., 3), scaled coordinates.
            features: (..., C), the volume read there.

        Returns:
            The signed distance (...), scaled units, and the geometry vector (..., hidden).
        """
        fc_p_weight, fc_p_bias, *layers = self.sdf_weights()
        h = F.linear(points, fc_p_weight, fc_p_bias)
        for l in range(0, len(layers), 4):
            weight, bias, u, c = layers[l : l + 4]
            h = F.linear(h + F.linear(features, u, c), weight, bias)
            if l + 4 < len(layers):
                h = F.softplus(h, beta=SOFTPLUS_BETA)
        return h[..., 0], h[..., 1:]
