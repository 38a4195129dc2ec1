"""The best guess that looks at no image: each camera's mean colour and mean depth, row by row.

A road scene has much of its depth and colour in the row alone (near and grey below, far and bright above), so a model
has learned something only where it beats this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mim4d.data.clips import ClipDataset
from mim4d.data.rays import sample_colour
from mim4d.errors import UserError


@dataclass(frozen=True)
class Trivial:
    """Mean colour and ray depth of the training returns, per camera and image row."""

    rgb: Tensor  # (N, H, 3) float32 in [0, 1]
    depth: Tensor  # (N, H) float32 m

    def predict(self, camera: Tensor | int, y: Tensor) -> tuple[Tensor, Tensor]:
        """The guess at image rows.

        Args:
            camera: index of the camera, broadcast against y.
            y: (...) vertical image coordinate; outside the image the nearest row answers.

        Returns:
            rgb (..., 3) and depth (...) in metres, on y's device.
        """
        row = y.detach().floor().long().clamp(0, self.depth.shape[1] - 1).cpu()
        index = camera.cpu() if isinstance(camera, Tensor) else camera
        return self.rgb[index, row].to(y.device), self.depth[index, row].to(y.device)


def fit_trivial(
    dataset: ClipDataset, *, limit: int = 500, progress: Callable[[int, int], None] | None = None
) -> Trivial:
    """Average all LiDAR returns in the key frames of a training set (those that are not held out, not only drawn ones).

    A row without a return takes its camera's mean, a camera without any the mean of all.

    Args:
        dataset: training clips.
        limit: at most this many clips are read, evenly spaced: the means of more would differ by less than it costs.
        progress: called with (clips read, clips to read) after each.

    Raises:
        UserError: there is no LiDAR return at all.
    """
    cameras, height = len(dataset.config.cameras), dataset.config.image_size[0]
    sums = np.zeros((cameras, height, 5))  # returns, depth, r, g, b
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(limit, len(dataset))).round().astype(int))
    for done, index in enumerate(indices, start=1):
        for camera, (view, hits) in enumerate(dataset.key_cameras(int(index), drawn_only=True)):
            row = hits.pixel // view.image.shape[1]  # (P,)
            values = np.column_stack([np.ones(len(hits)), hits.depth, sample_colour(view.image, hits.uv)])  # (P, 5)
            np.add.at(sums[camera], row, values)
        if progress is not None:
            progress(done, len(indices))
    per_camera = sums.sum(axis=1)  # (N, 5)
    total = per_camera.sum(axis=0)  # (5,)
    if not total[0]:
        raise UserError("no LiDAR return falls into any training image: there is no depth to learn from")
    per_camera = np.where(per_camera[:, :1] > 0, per_camera, total)
    sums = np.where(sums[..., :1] > 0, sums, per_camera[:, None])
    mean = torch.from_numpy((sums[..., 1:] / sums[..., :1]).astype(np.float32))  # (N, H, 4)
    return Trivial(rgb=mean[..., 1:].contiguous(), depth=mean[..., 0].contiguous())
