"""Packing: nothing left out, no micro-batch over its room, equal work, and nothing but lengths decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.config import CONFIGS, load
from openba.recipes.train import TrainRecipe, WindowsRecipe
from openba.train.packing import counted, packed

lengths = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=40)


@given(lengths, st.integers(1, 5), st.integers(1, 4))
def test_every_sample_once_and_no_micro_batch_too_full(
    lengths: list[tuple[int, int]], workers: int, size: int
) -> None:
    sizes, room = np.array(lengths).T, (60 * size, 40 * size)
    shares = packed(sizes, workers, room)
    assert sorted(n for bins in shares for samples in bins for n in samples) == list(range(len(lengths)))
    assert len(shares) == workers
    assert len({len(bins) for bins in shares}) == 1
    for bins in shares:
        assert all((sizes[:, samples].sum(1) <= room).all() for samples in bins)
    assert packed(sizes, workers, room) == shares


def test_a_sample_longer_than_a_micro_batch_has_its_own() -> None:
    assert [0] in packed(np.array([[9, 1, 1], [1, 1, 1]]), 1, (4, 4))[0]


def test_workers_get_equal_work_and_micro_batches_are_full() -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 500, (2, 512))
    shares = packed(sizes, 8, (8 * 500, 8 * 500))
    work = [sum(int(sizes[:, samples].sum()) for samples in bins) for bins in shares]
    assert max(work) - min(work) < 500
    full = [sizes[:, samples].sum(1).max() / 4000 for bins in shares for samples in bins]
    assert np.mean(full) > 0.85


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4))
def test_padded_micro_batches_have_a_number_of_samples(workers: int, each: int, size: int) -> None:
    shares = counted(workers * each, workers, size)
    assert [n for bins in shares for samples in bins for n in samples] == list(range(workers * each))
    assert [len(bins) for bins in shares] == [-(-each // size)] * workers
    assert max(len(samples) for bins in shares for samples in bins) <= size


@pytest.mark.parametrize("seed", range(3))
def test_a_step_of_stage_one_is_packed_near_its_lower_bound(seed: int) -> None:
    """4,096 samples, 8 workers, micro-batch 4: 94 at least; greedy packing took 103."""
    recipe = load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe)
    assert isinstance(recipe.data, WindowsRecipe)
    kinds = [corruption.sizes(recipe.data.length)[0] for corruption in recipe.data.corruptions()]
    sizes = np.array(kinds)[np.random.default_rng(seed).integers(len(kinds), size=4096)].T
    room = (4 * recipe.encoder_length, 4 * recipe.decoder_length)
    shares = packed(sizes, 8, room)
    assert len(shares[0]) <= 96
    assert sorted(n for bins in shares for samples in bins for n in samples) == list(range(4096))
    tokens = np.array([[sizes[:, samples].sum() for samples in bins] for bins in shares])
    assert tokens.sum(1).max() < 1.02 * tokens.sum(1).min()
    # Workers wait for each other in every micro-batch: those of one number are about as large.
    assert np.median(tokens.max(0) / tokens.min(0)) < 1.1


def test_more_micro_batches_than_samples_leave_some_empty() -> None:
    shares = packed(np.array([[9, 1], [1, 9]]), 4, (10, 10))
    assert sorted(samples for bins in shares for samples in bins) == [[], [], [0], [1]]
