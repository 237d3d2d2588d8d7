"""Preview of samples before training on them: decoded text with the masks marked, and fill of batches.

Owns what `openba data preview` shows, as plain values; printing is the command's. It builds nothing:
the mixture, or the pairs, of the step have to be there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from torch import Tensor

from openba.data.instruct import Pairs
from openba.json_types import JsonObject
from openba.model.loss import IGNORE
from openba.recipes.train import TrainRecipe, WindowsRecipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.batches import Batch, TrainingBatches
from openba.train.objectives import training_samples

OPEN = "⟦"
CLOSE = "⟧"
"""Around each sentinel and each span that the decoder has to write."""
_BINS = 10


def preview(
    recipe: TrainRecipe,
    data: Path,
    part: str | None,
    tokenizer: Tokenizer,
    samples: int,
    measured_samples: int = 1000,
) -> JsonObject:
    """Show the first samples of a training, and figures of the first `measured_samples`.

    Args:
        recipe: the training.
        data: output of the step that it reads, a mixture or a mix of task pairs.
        part: part of the mixture; none: `data` is a mix of task pairs.
        tokenizer: of the pipeline.
        samples: how many to show, at most one batch.
        measured_samples: how many the figures are of.

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
    # Whole steps: figures are of samples as a training reads them.
    step_count = max(1, min(measured_samples, len(batches.samples)) // recipe.batch)
    made_batches = [batch for step in range(step_count) for batch in batches.micro(step, 0, 1, recipe.batch)]
    shown_rows = [(batch, row) for batch in made_batches for row in range(len(batch.labels))][
        : min(samples, recipe.batch)
    ]
    sides = {
        "encoder": (recipe.encoder_length, np.concatenate([_lengths(b.mask) for b in made_batches])),
        "decoder": (
            recipe.decoder_length,
            np.concatenate([_lengths(b.labels != IGNORE) for b in made_batches]),
        ),
    }
    return {
        "samples": [_sample(batch, row, tokenizer) for batch, row in shown_rows],
        "measured": step_count * recipe.batch,
        "clipped": recipe.data.clipped if isinstance(recipe.data, WindowsRecipe) else [],
        "epochs": batches.epochs(recipe.steps),
        "lengths": {name: _figures(limit, lengths) for name, (limit, lengths) in sides.items()},
        "mixture": _pairs(data) if part is None else _sources(data / part),
    }


def marked(token_ids: list[int], tokenizer: Tokenizer) -> str:
    """Text of ids, control tokens written out; a sentinel and the span it stands for are in brackets.

    In labels that is all text between two sentinels, in the encoder's input the sentinel itself.
    """
    text = ""
    open_span: list[int] = []
    is_labels = bool(token_ids) and _is_sentinel(token_ids[0], tokenizer)
    for token_id in token_ids:
        if _is_sentinel(token_id, tokenizer) and is_labels:
            text += _bracketed(open_span, tokenizer)
            open_span = [token_id]
        elif _is_sentinel(token_id, tokenizer):
            text += tokenizer.show(open_span) + _bracketed([token_id], tokenizer)
            open_span = []
        else:
            open_span.append(token_id)
    return text + (_bracketed(open_span, tokenizer) if is_labels else tokenizer.show(open_span))


def _is_sentinel(token_id: int, tokenizer: Tokenizer) -> bool:
    return tokenizer.sentinel(99) <= token_id <= tokenizer.sentinel(0)


def _bracketed(token_ids: list[int], tokenizer: Tokenizer) -> str:
    return f"{OPEN}{tokenizer.show(token_ids)}{CLOSE}" if token_ids else ""


def _sample(batch: Batch, row: int, tokenizer: Tokenizer) -> JsonObject:
    encoder_ids = batch.encoder_ids[row][batch.mask[row]].tolist()
    label_ids = batch.labels[row][batch.labels[row] != IGNORE].tolist()
    return {
        "encoder": marked(encoder_ids, tokenizer),
        "labels": marked(label_ids, tokenizer),
        "encoder_tokens": len(encoder_ids),
        "label_tokens": len(label_ids),
    }


def _lengths(mask: Tensor) -> np.ndarray:
    return mask.sum(dim=1).numpy()


def _figures(length_limit: int, lengths: np.ndarray) -> JsonObject:
    bin_counts, _ = np.histogram(lengths, bins=_BINS, range=(0, length_limit))
    return {
        "limit": length_limit,
        "histogram": bin_counts.tolist(),
        "longest": int(lengths.max()),
        "fill": float(lengths.mean() / length_limit),
        "at_limit": int((lengths == length_limit).sum()),
    }


def _sources(part: Path) -> dict[str, int]:
    """Tokens by source of a part of a mixture."""
    table = pq.read_table(part / "documents.parquet", columns=["source", "tokens"])
    token_sums = table.group_by("source").aggregate([("tokens", "sum")]).sort_by("source")
    return dict(zip(token_sums["source"].to_pylist(), token_sums["tokens_sum"].to_pylist(), strict=True))


def _pairs(data: Path) -> dict[str, int]:
    """Return samples by task of a mix of pairs."""
    pairs = Pairs(data, "train")
    sample_counts = np.bincount([pairs.task(i) for i in range(len(pairs))], minlength=len(pairs.names))
    return dict(zip(pairs.names, sample_counts.tolist(), strict=True))
