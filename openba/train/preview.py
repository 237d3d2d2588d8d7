"""Look at samples before training on them: decoded text with the masks marked, and what fills a batch.

Owns what `openba data preview` shows, as plain values; printing is the command's. It builds nothing:
the mixture, or the pairs, of the step have to be there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from torch import Tensor

from openba.data.instruct import Pairs
from openba.model.model import IGNORE
from openba.recipes.train import TrainRecipe, UL2Recipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.batches import Batch, TrainingBatches, training_samples

OPEN, CLOSE = "⟦", "⟧"
"""Around each sentinel and each span that the decoder has to write."""
_BINS = 10


def preview(
    recipe: TrainRecipe,
    data: Path,
    part: str | None,
    tokenizer: Tokenizer,
    samples: int,
    measured: int = 1000,
) -> dict[str, Any]:
    """Show the first samples of a training, and figures of the first `measured`.

    Args:
        recipe: the training.
        data: output of the step that it reads, a mixture or a mix of task pairs.
        part: part of the mixture; none: `data` is a mix of task pairs.
        tokenizer: of the pipeline.
        samples: how many to show, at most one batch.
        measured: how many the figures are of.

    Returns:
        `samples`: encoder and labels as text, tokens of each. `lengths`: per side the histogram over ten
        equal bins up to the recipe's length, the longest, the mean fill of that length, and how many
        stand at it (which is where a sample was cut, if the recipe cuts). `mixture`: tokens by source
        (pairs: samples by task). `clipped`: a line for each denoiser that the sentinels do not suffice for.

    Raises:
        UserError: the data is not readable, or no sample is long enough.
    """
    batches = TrainingBatches(
        training_samples(recipe, data, part, tokenizer), recipe, tokenizer.pad, tokenizer.size
    )
    counted = max(1, min(measured, len(batches.samples)) // recipe.batch)
    made = [batch for step in range(counted) for batch in batches.micro(step, 0, 1, recipe.batch)]
    shown = [(batch, row) for batch in made for row in range(len(batch.labels))][: min(samples, recipe.batch)]
    sides = {
        "encoder": (recipe.encoder_length, np.concatenate([_lengths(b.mask) for b in made])),
        "decoder": (recipe.decoder_length, np.concatenate([_lengths(b.labels != IGNORE) for b in made])),
    }
    return {
        "samples": [_sample(batch, row, tokenizer) for batch, row in shown],
        "measured": counted * recipe.batch,
        "clipped": recipe.data.clipped if isinstance(recipe.data, UL2Recipe) else [],
        "epochs": batches.epochs(recipe.steps),
        "lengths": {name: _figures(limit, lengths) for name, (limit, lengths) in sides.items()},
        "mixture": _pairs(data) if part is None else _sources(data / part),
    }


def marked(ids: list[int], tokenizer: Tokenizer) -> str:
    """Text of ids, control tokens written out; a sentinel and the span it stands for are in brackets.

    In labels that is all text between two sentinels, in the encoder's input the sentinel itself.
    """
    found, run = "", list[int]()
    labels = bool(ids) and _is_sentinel(ids[0], tokenizer)
    for i in ids:
        if _is_sentinel(i, tokenizer) and labels:
            found, run = found + _bracketed(run, tokenizer), [i]
        elif _is_sentinel(i, tokenizer):
            found, run = found + tokenizer.show(run) + _bracketed([i], tokenizer), []
        else:
            run.append(i)
    return found + (_bracketed(run, tokenizer) if labels else tokenizer.show(run))


def _is_sentinel(i: int, tokenizer: Tokenizer) -> bool:
    return tokenizer.sentinel(99) <= i <= tokenizer.sentinel(0)


def _bracketed(ids: list[int], tokenizer: Tokenizer) -> str:
    return f"{OPEN}{tokenizer.show(ids)}{CLOSE}" if ids else ""


def _sample(batch: Batch, row: int, tokenizer: Tokenizer) -> dict[str, Any]:
    encoder = batch.encoder_ids[row][batch.mask[row]].tolist()
    labels = batch.labels[row][batch.labels[row] != IGNORE].tolist()
    return {
        "encoder": marked(encoder, tokenizer),
        "labels": marked(labels, tokenizer),
        "encoder_tokens": len(encoder),
        "label_tokens": len(labels),
    }


def _lengths(mask: Tensor) -> np.ndarray:
    return mask.sum(dim=1).numpy()


def _figures(limit: int, lengths: np.ndarray) -> dict[str, Any]:
    counts, _ = np.histogram(lengths, bins=_BINS, range=(0, limit))
    return {
        "limit": limit,
        "histogram": counts.tolist(),
        "longest": int(lengths.max()),
        "fill": float(lengths.mean() / limit),
        "at_limit": int((lengths == limit).sum()),
    }


def _sources(part: Path) -> dict[str, int]:
    """Tokens by source of a part of a mixture."""
    table = pq.read_table(part / "documents.parquet", columns=["source", "tokens"])
    sums = table.group_by("source").aggregate([("tokens", "sum")]).sort_by("source")
    return dict(zip(sums["source"].to_pylist(), sums["tokens_sum"].to_pylist(), strict=True))


def _pairs(data: Path) -> dict[str, int]:
    """Samples by task of a mix of pairs."""
    pairs = Pairs(data, "train")
    numbers = np.bincount([pairs.task(i) for i in range(len(pairs))], minlength=len(pairs.names))
    return dict(zip(pairs.names, numbers.tolist(), strict=True))
