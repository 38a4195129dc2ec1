"""Held-out numbers: which rays each of them counts."""

from __future__ import annotations

import pytest
import torch

from mim4d.data import collate, fit_trivial, open_datasets
from mim4d.engine.evaluate import evaluate
from mim4d.engine.progress import Display
from mim4d.models import build_model


class Alone:
    """One process."""

    device, num_processes, process_index = torch.device("cpu"), 1, 0

    def reduce(self, tensor: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        return tensor


def test_the_guess_beside_the_reconstruction_counts_the_same_clips(tiny):
    """A clip without another frame is in "direct" and "trivial" and not in the two numbers of the reconstruction."""
    train, held = open_datasets(tiny.data, seed=0)
    model, guess = build_model(tiny.model), fit_trivial(train)
    clips = [collate([held[index]]) for index in range(len(held))]
    rebuilt = [index for index, clip in enumerate(clips) if bool(clip.valid.sum() > 1)]
    assert 0 < len(rebuilt) < len(held)  # the first key frame of a scene has nothing before it

    def measure(indices):
        return evaluate(model, held, indices, Alone(), Display(quiet=True), trivial=guess)

    every, some = measure(range(len(held))), measure(rebuilt)
    assert every["trivial_reconstructed"] == pytest.approx(some["trivial"])
    assert every["reconstructed"] == pytest.approx(some["reconstructed"])
    assert every["trivial"]["depth_l1_m"] != pytest.approx(some["trivial"]["depth_l1_m"], rel=1e-6)
