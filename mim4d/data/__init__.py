"""Driving data as clips: records, rays, batches. Knows no model.

``open_datasets(DataConfig(root=...))`` gives the training and the validation set; ``collate`` makes a batch of clips.
The parts are in :mod:`~mim4d.data.frames` (records), :mod:`~mim4d.data.nuscenes` (tables), :mod:`~mim4d.data.verify`
(checks), :mod:`~mim4d.data.transforms` (images), :mod:`~mim4d.data.rays`, :mod:`~mim4d.data.trivial` (the baseline) and
:mod:`~mim4d.data.maps` (``HdMap``: masks and vectors of the map around a place).
"""

from mim4d.data.clips import ClipBatch, ClipDataset, DataConfig, collate, open_datasets
from mim4d.data.frames import CAMERAS, CameraRecord, ClipRecord, FrameRecord, LidarRecord
from mim4d.data.maps import HdMap
from mim4d.data.rays import Rays
from mim4d.data.trivial import Trivial, fit_trivial

__all__ = [
    "CAMERAS",
    "CameraRecord",
    "ClipBatch",
    "ClipDataset",
    "ClipRecord",
    "DataConfig",
    "FrameRecord",
    "HdMap",
    "LidarRecord",
    "Rays",
    "Trivial",
    "collate",
    "fit_trivial",
    "open_datasets",
]
