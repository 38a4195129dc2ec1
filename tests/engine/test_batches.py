"""The stream of clips: every clip once per epoch, the same for everybody, whatever the number of processes."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mim4d.engine.batches import StepSampler, Stream, epoch_order, load_batches, mix, spread, stream_entry
from mim4d.engine.signals import TrainingFailed
from mim4d.errors import UserError


@given(st.integers(0, 2**31), st.integers(0, 50), st.integers(1, 40))
def test_every_epoch_holds_every_clip_once(seed, epoch, clips):
    entries = [stream_entry(seed, epoch * clips + i, clips) for i in range(clips)]
    assert {e for e, _ in entries} == {epoch}
    assert sorted(i for _, i in entries) == list(range(clips))


def test_epochs_and_seeds_have_their_own_order():
    orders = {epoch_order(seed, epoch, 30) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_processes_share_out_what_one_process_would_take():
    alone = Stream(clips=7, batch=4, accumulate=2, seed=5)
    shared = Stream(clips=7, batch=2, accumulate=2, processes=2, seed=5)
    for step in range(5):
        whole = [entry for part in range(2) for entry in alone.batch_of(step, part, 0)]
        parts = [shared.batch_of(step, part, process) for part in range(2) for process in range(2)]
        assert [entry for some in parts for entry in some] == whole


def test_a_sampler_that_starts_later_goes_on_where_the_other_stopped():
    stream = Stream(clips=5, batch=2, accumulate=3, seed=1)
    whole = list(StepSampler(stream, 0, 6))
    assert list(StepSampler(stream, 0, 4)) + list(StepSampler(stream, 4, 6)) == whole
    assert len(StepSampler(stream, 4, 6)) == 6
    assert stream.epoch(0) == 0
    assert stream.epoch(5) == 6  # 5 steps x 6 clips = 30 = 6 epochs of 5


class Clips:
    """Stands in for the clips; the third is broken."""

    def load(self, index: int, epoch: int) -> torch.Tensor:
        if index == 3:
            raise UserError("missing image file: x.jpg")
        return torch.tensor([epoch, index])

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_every_clip_in_its_epoch(workers):
    stream = Stream(clips=3, batch=2, seed=3)
    batches = load_batches(Clips(), StepSampler(stream, 0, 20), torch.stack, workers, pin=False)
    got = [[tuple(entry) for entry in batch.tolist()] for batch in batches]
    assert got == [stream.batch_of(step, 0, 0) for step in range(20)]
    assert {epoch for batch in got for epoch, _ in batch} == set(range(14))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_the_data_comes_out_as_it_was(workers):
    batches = load_batches(Clips(), [[(0, 1)], [(0, 0), (0, 3)]], torch.stack, workers, pin=False)
    assert next(batches).tolist() == [[0, 1]]
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value) == "missing image file: x.jpg"


class DeadlyClips:
    """Reading the second clip kills the process, as running out of memory does."""

    def load(self, index: int, epoch: int) -> torch.Tensor:
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(index)


def test_a_dead_worker_is_one_line():
    batches = load_batches(DeadlyClips(), [[(0, 0)], [(0, 1)]], torch.stack, 1, pin=False)
    with pytest.raises(TrainingFailed, match=r"a process that loads clips died: .*fewer data.workers") as caught:
        list(batches)
    assert "\n" not in str(caught.value)


def test_mix_is_fixed_and_spreads():
    assert mix(0, 0) != mix(0) != mix(0, 1)
    assert mix(1, 2) != mix(2, 1)
    assert len({mix(0, step) for step in range(1000)}) == 1000
    assert all(0 <= mix(7, step) < 2**63 for step in range(100))


def test_spread_takes_the_middles_of_equal_parts():
    assert spread(10, 0) == list(range(10))
    assert spread(3, 5) == [0, 1, 2]
    assert spread(10, 2) == [2, 7]
    assert spread(9, 1) == [4]
