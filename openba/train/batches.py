"""Batches as a function of (seed, step): nothing to save, nothing to restore.

Owns which samples a step sees and how they become tensors. Sample `g` of a run (g = step * batch +
position) is found by a keyed order per epoch, and corrupted by numbers keyed by (seed, g), so
worker count and restarts change nothing. The corruption is `openba.data.denoise`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openba.data.denoise import Denoising, shuffled
from openba.data.instruct import Pairs
from openba.data.store import TokenStore
from openba.data.windows import windows_of
from openba.errors import UserError
from openba.model.flat_batch import FlatBatch
from openba.model.loss import IGNORE
from openba.recipes.train import TrainRecipe, WindowsRecipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.packing import counted, packed
from openba.train.source_use import label_entropies

HELDOUT_SEED = 20231008
"""Held-out samples are corrupted the same way at every measurement and in every run."""

MOST_TASKS_APART = 20
"""Of more tasks than that, held-out samples are too few to measure each task apart."""

Pair = tuple[np.ndarray, np.ndarray]
"""Encoder and target ids of one sample."""


class Samples(Protocol):
    """Numbered samples of one split."""

    def __len__(self) -> int: ...
    def batch(self, item_numbers: np.ndarray, sample_numbers: np.ndarray, seed: int, pad_id: int) -> Batch:
        """Items (int64 `[B]`), drawn as samples of these numbers (int64 `[B]`)."""
        ...

    def lengths(self, item_numbers: np.ndarray, sample_numbers: np.ndarray, seed: int) -> np.ndarray:
        """Return the encoder and target tokens that `batch` will give them, int64 `[2, B]`."""
        ...

    def subsets(self, item_numbers: np.ndarray) -> list[str]:
        """Name by which each item is measured apart: its language or task; "" for neither."""
        ...

    def tasks(self, item_numbers: np.ndarray) -> np.ndarray:
        """Return the number of each item's task, int64 `[B]`: sources are exchanged within one."""
        ...

    def label_entropies(self) -> dict[str, float]:
        """Loss by task of the best answer without the source, see `source_use.label_entropies`."""
        ...


class DenoisedSamples:
    """Windows of a token store under one objective."""

    def __init__(self, store: TokenStore, recipe: WindowsRecipe, tokenizer: Tokenizer) -> None:
        self.store = store
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.windows = windows_of(store, recipe)
        self._denoisings: dict[int, Denoising] = {}

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, item_numbers: np.ndarray, sample_numbers: np.ndarray, seed: int, pad_id: int) -> Batch:
        """Windows `items`, corrupted for samples of these numbers, cut to the longest of each side."""
        begins, lengths = self.windows.places(item_numbers)
        parts = [
            (
                rows,
                self._denoising(length).batch(
                    self.store.rows(begins[rows], length), sample_numbers[rows], seed
                ),
            )
            for length, rows in _by_length(lengths)
        ]
        encoder_lengths = np.empty(len(lengths), np.int64)
        for rows, made in parts:
            encoder_lengths[rows] = made.encoder_lengths
        source_width = int(encoder_lengths.max())
        target_width = max(int(made.target_lengths.max()) for _, made in parts)
        return Batch(
            _joined([(rows, made.encoder) for rows, made in parts], source_width, pad_id),
            torch.from_numpy(np.arange(source_width) < encoder_lengths[:, None]),
            _joined([(rows, made.decoder) for rows, made in parts], target_width, pad_id),
            _joined([(rows, made.labels) for rows, made in parts], target_width, IGNORE),
        )

    def lengths(self, item_numbers: np.ndarray, sample_numbers: np.ndarray, seed: int) -> np.ndarray:
        """Lengths by the samples' corruption and the windows' lengths; the text does not matter."""
        sample_lengths = np.empty((2, len(item_numbers)), np.int64)
        for length, rows in _by_length(self.windows.places(item_numbers)[1]):
            sample_lengths[:, rows] = self._denoising(length).lengths(sample_numbers[rows], seed)
        return sample_lengths

    def tasks(self, item_numbers: np.ndarray) -> np.ndarray:
        """One task for all."""
        return np.zeros(len(item_numbers), np.int64)

    def label_entropies(self) -> dict[str, float]:
        """Return nothing: windows have no labels."""
        return {}

    def subsets(self, item_numbers: np.ndarray) -> list[str]:
        """Language of the document that each window's middle lies in."""
        begins, lengths = self.windows.places(item_numbers)
        middles = begins + lengths // 2
        rows = np.searchsorted(self.store.offsets, middles, "right") - 1
        return self.store.documents["language"].take(rows).to_pylist()

    def _denoising(self, length: int) -> Denoising:
        """Return the objective for windows of one length: shares of the window become numbers of tokens."""
        if length not in self._denoisings:
            self._denoisings[length] = Denoising(self.recipe.at_length(length), self.tokenizer, IGNORE)
        return self._denoisings[length]


def _by_length(lengths: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return each length with the rows that have it."""
    return [(length, np.flatnonzero(lengths == length)) for length in np.unique(lengths).tolist()]


def _joined(parts: list[tuple[np.ndarray, np.ndarray]], width: int, fill_id: int) -> Tensor:
    """Return rows of several arrays as one, int64 `[rows, width]`."""
    joined_ids = np.full((sum(len(rows) for rows, _ in parts), width), fill_id, np.int64)
    for rows, ids in parts:
        part_width = min(width, ids.shape[1])
        joined_ids[rows, :part_width] = ids[:, :part_width]
    return torch.from_numpy(joined_ids)


class PairSamples:
    """Instruction pairs, finished in the data step."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, item_numbers: np.ndarray, sample_numbers: np.ndarray, seed: int, pad_id: int) -> Batch:
        """Pairs `items`; nothing random."""
        return collate([(self.pairs.source(i), self.pairs.target(i)) for i in item_numbers.tolist()], pad_id)

    def lengths(self, item_numbers: np.ndarray, sample_numbers: np.ndarray, seed: int) -> np.ndarray:
        """Lengths of the pairs as they are in the files."""
        return self.pairs.lengths(item_numbers)

    def tasks(self, item_numbers: np.ndarray) -> np.ndarray:
        """Tasks as the data step numbered them."""
        return np.array([self.pairs.task(index) for index in item_numbers.tolist()], np.int64)

    def label_entropies(self) -> dict[str, float]:
        """Entropies of the tasks whose answers are a few labels."""
        return label_entropies(self.pairs)

    def subsets(self, item_numbers: np.ndarray) -> list[str]:
        """Return the task's name; "" where there are too many tasks to measure each apart."""
        if len(self.pairs.names) > MOST_TASKS_APART:
            return [""] * len(item_numbers)
        return [self.pairs.names[task] for task in self.tasks(item_numbers).tolist()]


@dataclass(frozen=True)
class Batch:
    """Padded ids of some samples."""

    encoder_ids: Tensor  # int64 [B, S], right-padded
    mask: Tensor  # bool [B, S], True: a token
    decoder_ids: Tensor  # int64 [B, T], labels shifted right, pad first
    labels: Tensor  # int64 [B, T], IGNORE where padded
    flat: FlatBatch | None = None
    """What the model computes of it, if it was laid out ahead."""
    refused: tuple[int, ...] = ()
    """Windows or pairs that are passed over: their rows have no labels."""

    @property
    def targets(self) -> int:
        """Labelled tokens."""
        return int((self.labels != IGNORE).sum())

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """Encoder and target tokens of each labelled sample.

        A sample without labels fills a place so that all workers have as many micro-batches, or was refused;
        how many there are depends on the workers, so they count for nothing.
        """
        targets = (self.labels != IGNORE).sum(1)
        labelled = targets > 0
        return self.mask.sum(1)[labelled].tolist(), targets[labelled].tolist()

    @property
    def tokens(self) -> int:
        """Encoder and target tokens of labelled samples."""
        encoder, targets = self.lengths
        return sum(encoder) + sum(targets)


def collate(pairs: list[Pair], pad_id: int) -> Batch:
    """Pad to the longest of each side."""
    encoder_ids = _padded([source for source, _ in pairs], pad_id)
    labels = _padded([target for _, target in pairs], IGNORE)
    first = torch.full((len(pairs), 1), pad_id)
    lengths = torch.tensor([len(source) for source, _ in pairs])
    mask = torch.arange(encoder_ids.shape[1]) < lengths[:, None]
    decoder_ids = torch.cat([first, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, pad_id)], dim=1)
    return Batch(encoder_ids, mask, decoder_ids, labels)


class TrainingBatches:
    """The batches of one run."""

    def __init__(
        self,
        samples: Samples,
        recipe: TrainRecipe,
        pad: int,
        vocab: int,
        padded: bool = False,
        modes: Mapping[str, int] | None = None,
    ) -> None:
        """Take a run's samples.

        Args:
            samples: Of the training split.
            recipe: The run's.
            pad: Id of padding.
            vocab: Ids of the tokenizer.
            padded: Micro-batches have a number of samples, each padded to the recipe's lengths.
            modes: First encoder id of each denoiser's samples, whose losses are measured separately.
        """
        if len(samples) == 0:
            raise UserError("training data: no sample is long enough; lower data.length or add data")
        self.samples = samples
        self.recipe = recipe
        self.pad = pad
        self.vocab = vocab
        self.padded = padded
        self.modes = dict(modes or {})

    def micro(self, step: int, rank: int, world_size: int, micro_batch: int) -> Iterator[Batch]:
        """Yield this rank's micro-batches of optimiser step `step`, as many as every other rank's.

        Each has at most the tokens of `size` samples of the recipe's greatest lengths, on either side; or, if
        they are padded, `size` samples of these lengths.
        """
        sample_numbers = np.arange(step * self.recipe.batch, (step + 1) * self.recipe.batch, dtype=np.int64)
        item_numbers = self._order(sample_numbers)
        seed = self.recipe.seed
        # Shares follow from lengths alone, which every worker computes: they agree without a message.
        for chosen in self._shares(item_numbers, sample_numbers, world_size, micro_batch)[rank]:
            # Workers wait for each other in every micro-batch: one with nothing left joins in, unlabelled.
            rows = np.array(chosen or [0])
            batch = self.samples.batch(item_numbers[rows], sample_numbers[rows], seed, self.pad)
            if self.padded:
                batch = _widened(batch, self.recipe.encoder_length, self.recipe.decoder_length, self.pad)
            yield self._sound(batch, item_numbers[rows]) if chosen else _unlabelled(batch)

    def _shares(
        self, item_numbers: np.ndarray, sample_numbers: np.ndarray, world_size: int, micro_batch: int
    ) -> list[list[list[int]]]:
        """Places in the step's batch by worker and micro-batch."""
        if self.padded:
            return counted(len(sample_numbers), world_size, micro_batch)
        room = (micro_batch * self.recipe.encoder_length, micro_batch * self.recipe.decoder_length)
        return packed(self.samples.lengths(item_numbers, sample_numbers, self.recipe.seed), world_size, room)

    def _sound(self, batch: Batch, item_numbers: np.ndarray) -> Batch:
        """Drop samples that would break a step: an id outside the vocabulary, or an empty side."""
        ids = torch.cat([batch.encoder_ids, batch.decoder_ids, batch.labels.clamp(min=0)], 1)
        # Labels may be IGNORE, which is no id of the vocabulary either.
        is_filled = batch.mask.any(1) & (batch.labels != IGNORE).any(1)
        is_bad = ~is_filled | (ids >= self.vocab).any(1) | (batch.encoder_ids < 0).any(1)
        if not is_bad.any():
            return batch
        bad_row = is_bad[:, None]
        first_token = torch.arange(batch.mask.shape[1]) == 0
        return Batch(
            batch.encoder_ids.masked_fill(bad_row, self.pad),
            torch.where(bad_row, first_token, batch.mask),  # one token, so that nothing attends to nothing
            batch.decoder_ids.masked_fill(bad_row, self.pad),
            batch.labels.masked_fill(bad_row, IGNORE),
            refused=tuple(item_numbers[is_bad.numpy()].tolist()),
        )

    def items(self, step: int) -> list[int]:
        """Windows or pairs that all workers together read in optimiser step `step`."""
        sample_numbers = np.arange(step * self.recipe.batch, (step + 1) * self.recipe.batch, dtype=np.int64)
        return self._order(sample_numbers).tolist()

    def _order(self, sample_numbers: np.ndarray) -> np.ndarray:
        return shuffled(sample_numbers, len(self.samples), self.recipe.seed)

    def epochs(self, steps: int) -> float:
        """Return the passes over the data in so many steps."""
        return steps * self.recipe.batch / len(self.samples)


def heldout_batches(
    samples: Samples, recipe: TrainRecipe, rank: int, world_size: int, micro_batch: int, pad_id: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield this rank's part of the first `heldout_batches * batch` held-out samples, with their numbers.

    Every rank gets as many batches.
    """
    sample_count = min(len(samples), recipe.heldout_batches * recipe.batch)
    # In turn, so that no rank has more than one sample less than another.
    own_numbers = range(rank, sample_count, world_size)
    for start in range(0, -(-sample_count // world_size), micro_batch):
        chosen = own_numbers[start : start + micro_batch]
        chosen_numbers = np.array(chosen or range(1), np.int64)
        batch = samples.batch(chosen_numbers, chosen_numbers, HELDOUT_SEED, pad_id)
        # ZeRO-3 gathers weights in each forward pass: a worker with nothing left joins in, unlabelled.
        yield chosen_numbers, batch if chosen else _unlabelled(batch)


def _unlabelled(batch: Batch) -> Batch:
    return replace(batch, labels=torch.full_like(batch.labels, IGNORE))


def _widened(batch: Batch, source_width: int, target_width: int, pad_id: int) -> Batch:
    """Pad the batch to so many positions on either side."""
    source_padding = source_width - batch.mask.shape[1]
    target_padding = target_width - batch.labels.shape[1]
    return Batch(
        F.pad(batch.encoder_ids, (0, source_padding), value=pad_id),
        F.pad(batch.mask, (0, source_padding), value=False),
        F.pad(batch.decoder_ids, (0, target_padding), value=pad_id),
        F.pad(batch.labels, (0, target_padding), value=IGNORE),
    )


def _padded(rows: list[np.ndarray], fill_id: int) -> Tensor:
    padded_ids = torch.full((len(rows), max(len(row) for row in rows)), fill_id, dtype=torch.int64)
    for index, row in enumerate(rows):
        padded_ids[index, : len(row)] = torch.from_numpy(np.asarray(row, dtype=np.int64))
    return padded_ids
