"""Batches as a function of (seed, step): nothing to save, nothing to restore.

Owns which samples a step sees and how they are padded to tensors. Sample `g` of a run (g =
step * batch + position) is drawn from a permutation per epoch, and corrupted by a generator
keyed by (seed, g), so worker count and restarts change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from openba.data import denoise
from openba.data.instruct import Pairs
from openba.data.mixture import TokenStream
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.model.model import IGNORE
from openba.recipes.train import DenoiserRecipe, InstructionRecipe, PrefixRecipe, TrainRecipe, UL2Recipe

HELDOUT_SEED = 20231008
"""Held-out samples are corrupted the same way at every measurement and in every run."""


class Samples(Protocol):
    """Numbered samples of one split."""

    def __len__(self) -> int: ...
    def pair(self, index: int, sample: int, seed: int) -> denoise.Pair:
        """Encoder and target ids of item `index`, drawn as sample number `sample`."""
        ...


class DenoisedSamples:
    """Windows of a token stream under one objective."""

    def __init__(self, stream: TokenStream, recipe: UL2Recipe | PrefixRecipe, tokenizer: Tokenizer) -> None:
        self.stream, self.recipe, self.tokenizer = stream, recipe, tokenizer

    def __len__(self) -> int:
        return self.stream.count(self.recipe.length)

    def pair(self, index: int, sample: int, seed: int) -> denoise.Pair:
        """Encoder and target ids of window `index`, corrupted for sample number `sample`."""
        tokens = np.asarray(self.stream.sample(index, self.recipe.length))
        if isinstance(self.recipe, PrefixRecipe):
            return denoise.prefix(tokens, self.recipe, self.tokenizer)
        random = denoise.generator(seed, sample)
        denoiser = denoise.choose(self.recipe, random)
        return denoise.corrupt(tokens, denoiser, self.recipe, random, self.tokenizer)


class PairSamples:
    """Instruction pairs, finished in the data step."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def pair(self, index: int, sample: int, seed: int) -> denoise.Pair:
        """Pair `index`; nothing random."""
        return self.pairs.source(index), self.pairs.target(index)


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
    def tokens(self) -> int:
        """Real encoder and target tokens."""
        return int(self.mask.sum()) + self.targets


def collate(pairs: list[denoise.Pair], pad: int) -> Batch:
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

    def __init__(self, samples: Samples, recipe: TrainRecipe, pad: int) -> None:
        if len(samples) == 0:
            raise UserError("training data: no sample is long enough; lower data.length or add data")
        self.samples, self.recipe, self.pad = samples, recipe, pad

    def micro(self, step: int, rank: int, world: int, size: int) -> Iterator[Batch]:
        """This rank's micro-batches of optimiser step `step`, at most `size` samples each."""
        mine = range(step * self.recipe.batch + rank, (step + 1) * self.recipe.batch, world)
        for start in range(0, len(mine), size):
            yield collate([self._pair(g) for g in mine[start : start + size]], self.pad)

    def epochs(self, steps: int) -> float:
        """How often the data is seen in so many steps."""
        return steps * self.recipe.batch / len(self.samples)

    def _pair(self, sample: int) -> denoise.Pair:
        epoch, position = divmod(sample, len(self.samples))
        index = int(_permutation(self.recipe.seed, epoch, len(self.samples))[position])
        return self.samples.pair(index, sample, self.recipe.seed)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return denoise.generator(seed, 2**63 + epoch).permutation(count)


def training_samples(recipe: TrainRecipe, data: Path, part: str, tokenizer: Tokenizer) -> Samples:
    """What a stage or expert trains on: part `part` of a mixture, or the pairs of a task mix."""
    if isinstance(recipe.data, InstructionRecipe):
        return PairSamples(Pairs(data, "train"))
    return DenoisedSamples(TokenStream(data, part), recipe.data, tokenizer)


def heldout_groups(recipe: TrainRecipe, data: Path, tokenizer: Tokenizer) -> dict[str, Samples]:
    """Held-out samples by name: R, S and X apart for UL2, else one group `loss`."""
    if isinstance(recipe.data, InstructionRecipe):
        return {"loss": PairSamples(Pairs(data, "heldout"))}
    stream = TokenStream(data, "heldout")
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
) -> Iterator[Batch]:
    """This rank's part of the first `heldout_batches * batch` held-out samples; as many on every rank."""
    count = min(len(samples), recipe.heldout_batches * recipe.batch)
    mine = range(rank, count, world)
    for start in range(0, -(-count // world), size):
        own = mine[start : start + size]
        batch = collate([samples.pair(i, i, HELDOUT_SEED) for i in own or range(1)], pad)
        # ZeRO-3 gathers weights in each forward pass: a worker with nothing left joins in, unlabelled.
        yield batch if own else replace(batch, labels=torch.full_like(batch.labels, IGNORE))


def _padded(rows: list[np.ndarray], fill: int) -> Tensor:
    out = torch.full((len(rows), max(len(row) for row in rows)), fill, dtype=torch.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.from_numpy(np.asarray(row, dtype=np.int64))
    return out
