"""Batches as a function of (seed, step): nothing to save, nothing to restore.

Owns which samples a step sees and how they become tensors. Sample `g` of a run (g = step * batch +
position) is found by a keyed order per epoch, and corrupted by numbers keyed by (seed, g), so
worker count and restarts change nothing. The corruption is `openba.data.denoise`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openba.data.denoise import Denoising, shuffled
from openba.data.instruct import Pairs
from openba.data.store import TokenStore
from openba.errors import UserError
from openba.model.model import IGNORE
from openba.recipes.train import DenoiserRecipe, InstructionRecipe, PrefixRecipe, TrainRecipe, UL2Recipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.packing import counted, packed

HELDOUT_SEED = 20231008
"""Held-out samples are corrupted the same way at every measurement and in every run."""

MOST_TASKS_APART = 20
"""Of more tasks than that, held-out samples are too few to measure each task apart."""

Pair = tuple[np.ndarray, np.ndarray]
"""Encoder and target ids of one sample."""


class Samples(Protocol):
    """Numbered samples of one split."""

    def __len__(self) -> int: ...
    def batch(self, items: np.ndarray, samples: np.ndarray, seed: int, pad: int) -> Batch:
        """Items (int64 `[B]`), drawn as samples of these numbers (int64 `[B]`)."""
        ...

    def lengths(self, items: np.ndarray, samples: np.ndarray, seed: int) -> np.ndarray:
        """Encoder and target tokens that `batch` will give them, int64 `[2, B]`."""
        ...

    def subsets(self, items: np.ndarray) -> list[str]:
        """What each item is measured apart as: its language, or its task; "" where it is neither."""
        ...

    def tasks(self, items: np.ndarray) -> np.ndarray:
        """Number of each item's task, int64 `[B]`: sources are exchanged within one."""
        ...


class DenoisedSamples:
    """Windows of a token store under one objective."""

    def __init__(self, store: TokenStore, recipe: UL2Recipe | PrefixRecipe, tokenizer: Tokenizer) -> None:
        self.store, self.length = store, recipe.length
        self.denoising = Denoising(recipe, tokenizer, IGNORE)

    def __len__(self) -> int:
        return self.store.count(self.length)

    def batch(self, items: np.ndarray, samples: np.ndarray, seed: int, pad: int) -> Batch:
        """Windows `items`, corrupted for samples of these numbers, cut to the longest of each side."""
        made = self.denoising.batch(self.store.windows(items, self.length), samples, seed)
        source, target = int(made.encoder_lengths.max()), int(made.target_lengths.max())
        return Batch(
            torch.from_numpy(made.encoder[:, :source]).long(),
            torch.from_numpy(np.arange(source) < made.encoder_lengths[:, None]),
            torch.from_numpy(made.decoder[:, :target]).long(),
            torch.from_numpy(made.labels[:, :target]).long(),
        )

    def lengths(self, items: np.ndarray, samples: np.ndarray, seed: int) -> np.ndarray:
        """Of the samples' corruption; the text does not matter."""
        return self.denoising.lengths(samples, seed)

    def tasks(self, items: np.ndarray) -> np.ndarray:
        """One task for all."""
        return np.zeros(len(items), np.int64)

    def subsets(self, items: np.ndarray) -> list[str]:
        """Language of the document that each window's middle lies in."""
        middles = items * self.length + self.length // 2
        rows = np.searchsorted(self.store.offsets, middles, "right") - 1
        return self.store.documents["language"].take(rows).to_pylist()


class PairSamples:
    """Instruction pairs, finished in the data step."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, items: np.ndarray, samples: np.ndarray, seed: int, pad: int) -> Batch:
        """Pairs `items`; nothing random."""
        return collate([(self.pairs.source(i), self.pairs.target(i)) for i in items.tolist()], pad)

    def lengths(self, items: np.ndarray, samples: np.ndarray, seed: int) -> np.ndarray:
        """Of the pairs as they lie in the files."""
        return self.pairs.lengths(items)

    def tasks(self, items: np.ndarray) -> np.ndarray:
        """As the data step numbered them."""
        return np.array([self.pairs.task(index) for index in items.tolist()], np.int64)

    def subsets(self, items: np.ndarray) -> list[str]:
        """The task's name; "" where there are too many tasks to measure each apart."""
        if len(self.pairs.names) > MOST_TASKS_APART:
            return [""] * len(items)
        return [self.pairs.names[task] for task in self.tasks(items).tolist()]


@dataclass(frozen=True)
class Batch:
    """Padded ids of some samples."""

    encoder_ids: Tensor  # int64 [B, S], right-padded
    mask: Tensor  # bool [B, S], True: a token
    decoder_ids: Tensor  # int64 [B, T], labels shifted right, pad first
    labels: Tensor  # int64 [B, T], IGNORE where padded

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


def collate(pairs: list[Pair], pad: int) -> Batch:
    """Pad to the longest of each side."""
    encoder_ids = _padded([source for source, _ in pairs], pad)
    labels = _padded([target for _, target in pairs], IGNORE)
    first = torch.full((len(pairs), 1), pad)
    lengths = torch.tensor([len(source) for source, _ in pairs])
    mask = torch.arange(encoder_ids.shape[1]) < lengths[:, None]
    decoder_ids = torch.cat([first, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, pad)], dim=1)
    return Batch(encoder_ids, mask, decoder_ids, labels)


class TrainingBatches:
    """The batches of one run."""

    def __init__(
        self, samples: Samples, recipe: TrainRecipe, pad: int, vocab: int, padded: bool = False
    ) -> None:
        """`padded`: micro-batches have a number of samples, each padded to the recipe's lengths."""
        if len(samples) == 0:
            raise UserError("training data: no sample is long enough; lower data.length or add data")
        self.samples, self.recipe, self.pad, self.vocab = samples, recipe, pad, vocab
        self.padded = padded
        self.refused: list[int] = []
        """Windows or pairs that were passed over since the caller last took them from here."""

    def micro(self, step: int, rank: int, world: int, size: int) -> Iterator[Batch]:
        """This rank's micro-batches of optimiser step `step`, as many as every other rank's.

        Each has at most the tokens of `size` samples of the recipe's greatest lengths, on either side; or, if
        they are padded, `size` samples of these lengths.
        """
        samples = np.arange(step * self.recipe.batch, (step + 1) * self.recipe.batch, dtype=np.int64)
        items, seed = self._order(samples), self.recipe.seed
        for chosen in self._shares(items, samples, world, size)[rank]:
            # Workers wait for each other in every micro-batch: one with nothing left joins in, unlabelled.
            rows = np.array(chosen or [0])
            batch = self.samples.batch(items[rows], samples[rows], seed, self.pad)
            if self.padded:
                batch = _widened(batch, self.recipe.encoder_length, self.recipe.decoder_length, self.pad)
            yield self._sound(batch, items[rows]) if chosen else _unlabelled(batch)

    def _shares(self, items: np.ndarray, samples: np.ndarray, world: int, size: int) -> list[list[list[int]]]:
        """Places in the step's batch by worker and micro-batch."""
        if self.padded:
            return counted(len(samples), world, size)
        room = (size * self.recipe.encoder_length, size * self.recipe.decoder_length)
        return packed(self.samples.lengths(items, samples, self.recipe.seed), world, room)

    def _sound(self, batch: Batch, items: np.ndarray) -> Batch:
        """The batch without samples that would break a step: an id of no vocabulary, or an empty side."""
        ids = torch.cat([batch.encoder_ids, batch.decoder_ids, batch.labels.clamp(min=0)], 1)
        filled = batch.mask.any(1) & (batch.labels != IGNORE).any(1)
        bad = ~filled | (ids >= self.vocab).any(1) | (batch.encoder_ids < 0).any(1)
        if not bad.any():
            return batch
        self.refused += items[bad.numpy()].tolist()
        row, start = bad[:, None], torch.arange(batch.mask.shape[1]) == 0
        return Batch(
            batch.encoder_ids.masked_fill(row, self.pad),
            torch.where(row, start, batch.mask),  # one token, so that nothing attends to nothing
            batch.decoder_ids.masked_fill(row, self.pad),
            batch.labels.masked_fill(row, IGNORE),
        )

    def items(self, step: int) -> list[int]:
        """Windows or pairs that all workers together read in optimiser step `step`."""
        samples = np.arange(step * self.recipe.batch, (step + 1) * self.recipe.batch, dtype=np.int64)
        return self._order(samples).tolist()

    def _order(self, samples: np.ndarray) -> np.ndarray:
        return shuffled(samples, len(self.samples), self.recipe.seed)

    def epochs(self, steps: int) -> float:
        """How often the data is seen in so many steps."""
        return steps * self.recipe.batch / len(self.samples)


def training_samples(recipe: TrainRecipe, data: Path, part: str | None, tokenizer: Tokenizer) -> Samples:
    """Samples that a training reads: windows of one part of a mixture, or the pairs of a task mix."""
    if isinstance(recipe.data, InstructionRecipe):
        return PairSamples(Pairs(data, "train"))
    assert part is not None  # `PipelineConfig` refuses a stage that reads a mixture and names no part
    return DenoisedSamples(TokenStore(data / part), recipe.data, tokenizer)


def heldout_groups(recipe: TrainRecipe, data: Path, tokenizer: Tokenizer) -> dict[str, Samples]:
    """Held-out samples by name: R, S and X apart for UL2, else one group `loss`."""
    if isinstance(recipe.data, InstructionRecipe):
        return {"loss": PairSamples(Pairs(data, "heldout"))}
    stream = TokenStore(data / "heldout")
    if isinstance(recipe.data, PrefixRecipe):
        return {"loss": DenoisedSamples(stream, recipe.data, tokenizer)}
    modes: dict[str, list[DenoiserRecipe]] = {}
    for denoiser in recipe.data.denoisers:
        modes.setdefault(denoiser.mode, []).append(denoiser)
    return {
        mode: DenoisedSamples(stream, recipe.data.model_copy(update={"denoisers": tuple(rows)}), tokenizer)
        for mode, rows in modes.items()
    }


def heldout_batches(
    samples: Samples, recipe: TrainRecipe, rank: int, world: int, size: int, pad: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """This rank's part of the first `heldout_batches * batch` held-out samples, with their numbers.

    Every rank gets as many batches.
    """
    count = min(len(samples), recipe.heldout_batches * recipe.batch)
    mine = range(rank, count, world)
    for start in range(0, -(-count // world), size):
        own = mine[start : start + size]
        numbers = np.array(own or range(1), np.int64)
        batch = samples.batch(numbers, numbers, HELDOUT_SEED, pad)
        # ZeRO-3 gathers weights in each forward pass: a worker with nothing left joins in, unlabelled.
        yield numbers, batch if own else _unlabelled(batch)


def _unlabelled(batch: Batch) -> Batch:
    return replace(batch, labels=torch.full_like(batch.labels, IGNORE))


def _widened(batch: Batch, source: int, target: int, pad: int) -> Batch:
    """The batch with so many places on either side."""
    left, right = source - batch.mask.shape[1], target - batch.labels.shape[1]
    return Batch(
        F.pad(batch.encoder_ids, (0, left), value=pad),
        F.pad(batch.mask, (0, left), value=False),
        F.pad(batch.decoder_ids, (0, right), value=pad),
        F.pad(batch.labels, (0, right), value=IGNORE),
    )


def _padded(rows: list[np.ndarray], fill: int) -> Tensor:
    out = torch.full((len(rows), max(len(row) for row in rows)), fill, dtype=torch.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.from_numpy(np.asarray(row, dtype=np.int64))
    return out
