"""Batches: a function of seed and step, the same samples for any number of workers, each once an epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openba.data.store import TokenStore
from openba.errors import UserError
from openba.model.loss import IGNORE
from openba.recipes.train import OptimRecipe, TrainRecipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.batches import (
    Batch,
    TrainingBatches,
    collate,
    heldout_batches,
)
from openba.train.objectives import heldout_groups, training_samples
from tests.harness.worker_groups import UL2

PREFIX = {"objective": "prefix", "length": 64}
PREFIX_LM = {"objective": "prefix_lm", "length": 60}
SPANS = {"objective": "span_corruption", "length": 60}


def recipe(data: dict[str, Any], **fields: Any) -> TrainRecipe:
    defaults = {
        "encoder_length": 66,
        "decoder_length": 66,
        "batch": 8,
        "budget": "10 steps",
        "evaluate_every": 5,
    }
    return TrainRecipe(data=data, optim=OptimRecipe(lr=1e-3), **{**defaults, **fields})


@pytest.fixture
def make(mixture_folder: Path, tokenizer: Tokenizer):
    """Batches of a recipe on a part of the mixture."""

    def make(data: dict[str, Any], part: str = "stage1", **fields: Any) -> TrainingBatches:
        train = recipe(data, **fields)
        samples = training_samples(train, mixture_folder, part, tokenizer)
        return TrainingBatches(samples, train, tokenizer.pad, tokenizer.size)

    return make


def heldout(*where: Any) -> list[Batch]:
    return [batch for _, batch in heldout_batches(*where)]


def rows(batches: Iterable[Batch]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(encoder ids, labels) of every sample, without padding."""
    return [
        (tuple(ids[mask].tolist()), tuple(labels[labels != IGNORE].tolist()))
        for batch in batches
        for ids, mask, labels in zip(batch.encoder_ids, batch.mask, batch.labels, strict=True)
        if batch.targets
    ]


@pytest.mark.parametrize("step", [0, 1, 1000])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_any_workers_and_micro_batches_see_the_same_samples(
    make: Any, step: int, world: int, size: int
) -> None:
    whole = rows(make(UL2).micro(step, 0, 1, 8))
    assert len(set(whole)) == 8
    split = [list(make(UL2).micro(step, rank, world, size)) for rank in range(world)]
    assert Counter(row for batches in split for row in rows(batches)) == Counter(whole)
    every = [batch for batches in split for batch in batches]
    assert all(int(b.mask.sum()) <= 66 * size and b.targets <= 66 * size for b in every)
    assert len({len(batches) for batches in split}) == 1
    assert len(every) <= world * -(-8 // (world * size))


def test_padded_micro_batches_are_the_same_samples_at_full_length(make: Any, tokenizer: Tokenizer) -> None:
    packed = make(UL2)
    padded = TrainingBatches(packed.samples, packed.recipe, tokenizer.pad, tokenizer.size, padded=True)
    split = [batch for rank in range(2) for batch in padded.micro(3, rank, 2, 3)]
    assert [(batch.encoder_ids.shape, batch.labels.shape) for batch in split] == [
        ((rows, 66), (rows, 66)) for rows in (3, 1, 3, 1)
    ]
    assert Counter(rows(split)) == Counter(rows(packed.micro(3, 0, 1, 8)))


def test_fault_26_a_sample_with_an_empty_side_has_no_part_in_the_step(make: Any) -> None:
    batches = make(UL2)
    (batch,) = batches.micro(0, 0, 1, 8)
    items = np.array(batches.items(0))
    mask, labels = batch.mask.clone(), batch.labels.clone()
    mask[2], labels[5] = False, IGNORE
    sound = batches._sound(Batch(batch.encoder_ids, mask, batch.decoder_ids, labels), items)
    assert sound.refused == tuple(items[[2, 5]].tolist())
    for row in (2, 5):
        assert sound.mask[row].sum() == 1  # nothing attends to nothing
        assert (sound.labels[row] == IGNORE).all()
    kept = [row for row in range(8) if row not in (2, 5)]
    assert torch.equal(sound.labels[kept], batch.labels[kept])
    assert torch.equal(sound.mask[kept], batch.mask[kept])


def test_seed_and_step_choose_the_samples(make: Any) -> None:
    first = rows(make(UL2).micro(3, 0, 1, 8))
    assert rows(make(UL2).micro(3, 0, 1, 8)) == first
    assert not set(first) & set(rows(make(UL2).micro(4, 0, 1, 8)))
    assert set(first) != set(rows(make(UL2, seed=7).micro(3, 0, 1, 8)))


def window(row: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens a prefix sample was made of."""
    encoder, labels = row
    return encoder[1:-2] + labels[1:-1]


def test_an_epoch_sees_every_sample_once(make: Any, mixture_folder: Path) -> None:
    batches, stream = make(PREFIX, "stage2", batch=7), TokenStore(mixture_folder / "stage2")
    count = stream.count(64)
    assert count % 7  # an epoch ends inside a batch
    seen = [window(row) for step in range(2 * count // 7 + 1) for row in rows(batches.micro(step, 0, 1, 7))]
    samples = [tuple(row) for row in stream.windows(np.arange(count), 64).tolist()]
    first, second = seen[:count], seen[count : 2 * count]
    assert Counter(first) == Counter(second) == Counter(samples)
    assert len({tuple(order) for order in (samples, first, second)}) == 3
    assert batches.epochs(2 * count) == 14.0


def test_a_prefix_lm_continues_each_window_from_a_position_of_its_own(
    make: Any, tokenizer: Tokenizer
) -> None:
    batches = make(PREFIX_LM)
    samples = [sample for step in range(40) for sample in rows(batches.micro(step, 0, 1, 8))]
    windows = [batches.samples.store.windows(np.array(batches.items(step)), 60) for step in range(40)]
    texts = {tuple(window) for step in windows for window in step.tolist()}
    sentinel = tokenizer.sentinel(0)
    lengths: Counter[int] = Counter()
    for encoder, labels in samples:
        assert encoder[0] == tokenizer.mode("S")
        assert encoder[-2:] == (sentinel, tokenizer.eos)
        assert (labels[0], labels[-1]) == (sentinel, tokenizer.eos)
        assert encoder[1:-2] + labels[1:-1] in texts
        lengths[len(labels) - 2] += 1
    assert max(lengths) <= 54  # 0.9 * 60
    # Uniform from 1 to 54: mean 27.5 with a standard error of 0.9 over 320 samples.
    assert sum(n * count for n, count in lengths.items()) / 320 == pytest.approx(27.5, abs=4)
    assert len(lengths) > 40


def test_span_corruption_masks_t5s_share_in_short_spans(make: Any, tokenizer: Tokenizer) -> None:
    batches = make(SPANS)
    for encoder, labels in rows(batches.micro(0, 0, 1, 8)):
        sentinels = [tokenizer.sentinel(n) for n in range(3)]
        assert encoder[0] == tokenizer.mode("R")
        assert [i for i in encoder if i in sentinels] == [i for i in labels if i in sentinels] == sentinels
        assert len(labels) == 9 + 3 + 1  # 15 % of 60 tokens in three spans, and </s>
        assert len(encoder) == 51 + 3 + 2


@pytest.mark.parametrize("data", [UL2, PREFIX, PREFIX_LM, SPANS], ids=lambda data: data["objective"])
def test_lengths_are_those_that_the_recipe_promises(make: Any, data: dict[str, Any]) -> None:
    batches = make(data)
    promised = {
        size for c in batches.recipe.data.corruptions() for size in c.sizes(batches.recipe.data.length)
    }
    for step in range(3):
        for encoder, labels in rows(batches.micro(step, 0, 1, 8)):
            assert (len(encoder), len(labels)) in promised
    assert batches.recipe.data.longest == tuple(map(max, zip(*promised, strict=True)))


def test_the_second_epoch_corrupts_anew(make: Any, mixture_folder: Path) -> None:
    count = TokenStore(mixture_folder / "stage2").count(64)
    batches = make(UL2, "stage2", batch=count)
    first, second = (set(rows(batches.micro(epoch, 0, 1, count))) for epoch in (0, 1))
    assert len(first) == count
    assert len(first & second) < count / 2  # S masks the same end whenever it is drawn


def test_stages_read_their_own_part(make: Any, mixture_folder: Path) -> None:
    stage2 = TokenStore(mixture_folder / "stage2").tokens(0, 20_000).tobytes()
    for row in rows(make(PREFIX, "stage1").micro(0, 0, 1, 8)):
        assert np.array(window(row), np.int32).tobytes() not in stage2
    for row in rows(make(PREFIX, "stage2").micro(0, 0, 1, 8)):
        assert np.array(window(row), np.int32).tobytes() in stage2


sides = st.lists(st.integers(1, 5000), min_size=1, max_size=9).map(lambda ids: np.array(ids, np.int32))


@given(pairs=st.lists(st.tuples(sides, sides), min_size=1, max_size=6))
def test_collate_pads_and_shifts_right(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    batch = collate(pairs, pad_id=0)
    assert rows([batch]) == [(tuple(source.tolist()), tuple(target.tolist())) for source, target in pairs]
    assert (batch.encoder_ids[~batch.mask] == 0).all()
    assert (batch.decoder_ids[:, 0] == 0).all()
    assert torch.equal(
        batch.decoder_ids[:, 1:], batch.labels[:, :-1].masked_fill(batch.labels[:, :-1] == IGNORE, 0)
    )
    assert (
        batch.encoder_ids.shape == batch.mask.shape == (len(pairs), max(len(source) for source, _ in pairs))
    )
    assert (
        batch.labels.shape == batch.decoder_ids.shape == (len(pairs), max(len(target) for _, target in pairs))
    )
    assert {t.dtype for t in (batch.encoder_ids, batch.decoder_ids, batch.labels)} == {torch.int64}
    assert batch.targets == sum(len(target) for _, target in pairs)
    assert batch.tokens == sum(len(source) + len(target) for source, target in pairs)


def test_data_too_short_for_one_sample_is_refused(make: Any) -> None:
    with pytest.raises(UserError, match=r"no sample is long enough; lower data\.length"):
        make({**PREFIX, "length": 20_001}, "stage2", encoder_length=11_000, decoder_length=11_000)


@pytest.mark.parametrize(("data", "names"), [(UL2, ["R", "S", "X"]), (PREFIX, ["loss"]), (SPANS, ["loss"])])
def test_held_out_samples_are_the_same_for_any_workers(
    mixture_folder: Path, tokenizer: Tokenizer, data: dict[str, Any], names: list[str]
) -> None:
    train = recipe(data, heldout_batches=2, batch=7)
    groups = heldout_groups(train, mixture_folder, tokenizer)
    assert list(groups) == names
    for name, samples in groups.items():
        whole = rows(heldout(samples, train, 0, 1, 20, tokenizer.pad))
        assert len(whole) == 14
        for world, size in ((2, 3), (4, 2), (5, 1)):
            split = [heldout(samples, train, r, world, size, tokenizer.pad) for r in range(world)]
            found = [row for batches in split for row in rows(batches) if row[1]]
            assert Counter(found) == Counter(whole)
            # As many forward passes on every worker: ZeRO-3 waits for all of them in each.
            assert len({len(batches) for batches in split}) == 1
        modes = {row[0][0] for row in whole}
        only_mode = {"prefix": "S", "span_corruption": "R"}.get(data["objective"], name)
        assert modes == {tokenizer.mode(only_mode)}


def test_held_out_is_limited_by_what_there_is(mixture_folder: Path, tokenizer: Tokenizer) -> None:
    train = recipe(PREFIX, heldout_batches=1000)
    samples = heldout_groups(train, mixture_folder, tokenizer)["loss"]
    whole = rows(heldout(samples, train, 0, 1, 50, tokenizer.pad))
    assert len(whole) == len(samples) == 6000 // 64


@pytest.mark.parametrize("data", [UL2, PREFIX, PREFIX_LM, SPANS], ids=lambda data: data["objective"])
def test_bounded_windows_make_samples_of_one_document_each(
    make: Any, mixture_folder: Path, tokenizer: Tokenizer, data: dict[str, Any]
) -> None:
    batches = make(data | {"windows": "bounded"})
    store = TokenStore(mixture_folder / "stage1")
    begins, lengths = batches.samples.windows.places(np.array(batches.items(2)))
    wanted = Counter(tuple(store.tokens(b, b + n).tolist()) for b, n in zip(begins, lengths, strict=True))
    assert len(set(lengths.tolist())) > 1
    special = {tokenizer.sentinel(number) for number in range(100)}
    made = [list(batches.micro(2, rank, 2, 2)) for rank in range(2)]
    seen: Counter[tuple[int, ...]] = Counter()
    for encoder, labels in (row for micro_batches in made for row in rows(micro_batches)):
        spans: dict[int, list[int]] = {}
        for token in labels[:-1]:  # </s> closes
            if token in special:
                spans[token] = []
            else:
                spans[list(spans)[-1]].append(token)
        text: list[int] = []
        for token in encoder[1:-1]:
            text += spans.pop(token) if token in spans else [token]
        assert not spans
        seen[tuple(text)] += 1
    assert seen == wanted


def test_lengths_of_bounded_windows_are_those_of_their_batches(make: Any) -> None:
    batches = make(UL2 | {"windows": "bounded"})
    items = np.array(batches.items(0))
    numbers = np.arange(8)
    batch = batches.samples.batch(items, numbers, 1234, batches.pad)
    encoder_lengths, target_lengths = batch.lengths
    lengths = batches.samples.lengths(items, numbers, 1234)
    assert (encoder_lengths, target_lengths) == (lengths[0].tolist(), lengths[1].tolist())


def test_any_workers_see_the_same_bounded_windows(make: Any) -> None:
    data = UL2 | {"windows": "bounded"}
    whole = rows(make(data).micro(1, 0, 1, 8))
    split = [batch for rank in range(4) for batch in make(data).micro(1, rank, 4, 1)]
    assert Counter(rows(split)) == Counter(whole)
    packed = make(data)
    padded = TrainingBatches(packed.samples, packed.recipe, packed.pad, packed.vocab, padded=True)
    assert Counter(rows(padded.micro(1, 0, 1, 8))) == Counter(whole)
