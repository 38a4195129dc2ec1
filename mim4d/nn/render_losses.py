"""Losses on what a renderer saw: those that need the field along the rays, and one on pictures.

Functions of tensors alone, so that any trainer of a signed distance field (SDF) can use them on the outputs of
:class:`mim4d.nn.SDFRenderer`: ``sdf`` and ``t`` there are metres, ``gradient`` has no unit. They need first derivatives
only, also :func:`eikonal_loss`: the renderer returns the SDF's gradient as a plain differentiable output.

Each returns a 0-dim mean over what ``mask`` marks, and 0 (with a gradient of 0) where nothing is marked.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where mask (broadcastable bool) is set; 0, with a gradient of 0, where nothing is."""
    mask = mask.expand_as(values)
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def eikonal_loss(gradient: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(|gradient| - 1)^2``: a field with this slope everywhere measures distance.

    Gropp et al. 2020 (implicit geometric regularisation), used by NeuS (Wang et al. 2021).

    Args:
        gradient: (..., S, 3) of the SDF with respect to the position, no unit.
        mask: (...) bool, rays that count.

    Returns:
        0-dim, no unit. At a gradient of zero, where the norm has none, the derivative is 0.
    """
    return masked_mean((torch.linalg.vector_norm(gradient, dim=-1) - 1).square(), mask[..., None])


def free_space_loss(sdf: Tensor, t: Tensor, depth: Tensor, mask: Tensor, truncation: float) -> Tensor:
    """Mean of ``relu(truncation - sdf) + relu(sdf - (depth - t))`` over the samples with ``t < depth - truncation``.

    Between the sensor and what it hit nothing is nearer than the truncation (Azinovic et al. 2022, neural RGB-D surface
    reconstruction, whose field stops growing there), and nothing is farther than the hit itself (the bounds of Ortiz et
    al. 2022, iSDF). A true distance field has loss 0, up to surfaces that the ray passes closely.

    Args:
        sdf: (..., S), metres.
        t: (..., S) metres along the ray, where the field was read.
        depth: (...) measured ray length, metres.
        mask: (...) bool, rays that were measured.
        truncation: metres.

    Returns:
        0-dim, metres.
    """
    ahead = depth[..., None] - t  # (..., S) metres to the hit
    broken = F.relu(truncation - sdf) + F.relu(sdf - ahead)
    return masked_mean(broken, mask[..., None] & (ahead > truncation))


def truncation_loss(sdf: Tensor, t: Tensor, depth: Tensor, mask: Tensor, truncation: float) -> Tensor:
    """Mean of ``|sdf - (depth - t)|`` over the samples within ``truncation`` of the measured surface.

    The distance along the ray stands in for the distance to the surface, as in Azinovic et al. 2022 (there
    squared): exact where the ray meets the surface head-on, too large elsewhere, which is why the truncation is small.

    Args:
        sdf, t, depth, mask, truncation: as :func:`free_space_loss`.

    Returns:
        0-dim, metres.
    """
    ahead = depth[..., None] - t
    return masked_mean((sdf - ahead).abs(), mask[..., None] & (ahead.abs() <= truncation))


def sparse_point_loss(sdf: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``|sdf|`` at points that lie on surfaces, such as LiDAR returns (as Fu et al. 2022, Geo-Neus).

    Args:
        sdf: (...) at the points, metres; :meth:`mim4d.nn.SDFRenderer.sdf` gives it.
        mask: (...) bool, points that count.

    Returns:
        0-dim, metres.
    """
    return masked_mean(sdf.abs(), mask)


def ssim(image: Tensor, target: Tensor, window: int = 3) -> Tensor:
    """Structural similarity of two pictures in every window (Wang et al. 2004).

    ``(2 m_x m_y + c_1) (2 s_xy + c_2) / ((m_x^2 + m_y^2 + c_1) (s_x^2 + s_y^2 + c_2))`` with means m, variances and
    covariance s over a square window of equal weights, c_1 = 0.01^2, c_2 = 0.03^2.

    Args:
        image, target: (..., H, W), values in [0, 1].
        window: pixels along the window's side.

    Returns:
        (..., H - window + 1, W - window + 1) in [-1, 1]; 1 where the windows are equal.

    Raises:
        ValueError: the pictures differ in shape, or are smaller than the window.
    """
    if image.shape != target.shape or image.dim() < 2 or min(image.shape[-2:]) < window or window < 1:
        raise ValueError(
            f"ssim: image has shape {tuple(image.shape)} and target {tuple(target.shape)}, wanted the same shape "
            f"(..., H, W) with H and W of at least the window, {window}"
        )
    size = image.shape[-2:]

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x.reshape(-1, 1, *size), window, stride=1).reshape(*image.shape[:-2], *inner)

    inner = (size[0] - window + 1, size[1] - window + 1)
    m_x, m_y = mean(image), mean(target)
    # Means of centred values: a difference of squares would cancel in a flat window.
    middle = image.mean(dim=(-2, -1), keepdim=True).detach()
    x, y = image - middle, target - middle
    d_x, d_y = m_x - middle, m_y - middle
    s_x, s_y, s_xy = mean(x * x) - d_x * d_x, mean(y * y) - d_y * d_y, mean(x * y) - d_x * d_y
    light = (2 * m_x * m_y + 0.01**2) / (m_x.square() + m_y.square() + 0.01**2)
    return light * (2 * s_xy + 0.03**2) / (s_x + s_y + 0.03**2)


def ssim_loss(image: Tensor, target: Tensor, mask: Tensor, window: int = 3) -> Tensor:
    """Mean of ``(1 - ssim) / 2`` over all windows (as Godard et al. 2017).

    Args:
        image, target: (..., C, H, W), values in [0, 1].
        mask: (...) bool, pictures that count.
        window: pixels along the window's side.

    Returns:
        0-dim in [0, 1], no unit.
    """
    return masked_mean((1 - ssim(image, target, window)) / 2, mask[..., None, None, None])
