"""Loss and next-token accuracy on held-out samples, by denoiser and language or task, over all workers.

Measured twice: with each sample's own source and with another's (`source_use.py`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from openba.errors import UserError
from openba.recipes.train import TrainRecipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.batches import HELDOUT_SEED, Batch, Samples, heldout_batches, heldout_groups
from openba.train.engine import Engine
from openba.train.source_use import lenders

_COLUMNS = 9
"""Of the sums that a measurement needs, see `_columns`."""


class HeldOut:
    """Fixed held-out samples; the same at every measurement and, of one mixture, in every run."""

    def __init__(self, recipe: TrainRecipe, data: Path, tokenizer: Tokenizer, micro_batch: int) -> None:
        self.recipe, self.micro_batch, self.pad = recipe, micro_batch, tokenizer.pad
        self.groups = heldout_groups(recipe, data, tokenizer)
        if empty := [name for name, samples in self.groups.items() if len(samples) == 0]:
            raise UserError(
                f"held-out data: no sample to measure {', '.join(empty)} on; "
                "raise heldout in the mixture or the tasks, or lower data.length"
            )
        self.subsets = self._subsets()
        self.lenders = [self._lenders(samples) for samples in self.groups.values()]

    def measure(self, engine: Engine) -> dict[str, float]:
        """Loss (nats a target token) and accuracy (equation 3, as a share). All workers call it together.

        Returns:
            `loss` and `accuracy`; where there are several denoisers `R` and `R_accuracy` and so on; where
            languages are known all of these also as `loss_zh`, `accuracy_zh`, `R_zh`, `R_accuracy_zh`...; of
            pairs of a few tasks the loss and accuracy of each. `loss_error` is the
            loss's standard error over samples. `shuffled` is the loss with another sample's
            source, `shuffled_error` the standard error of its distance from the loss; `R_shuffled` and so on
            those of a denoiser, `loss_TASK_shuffled` those of a task.
        """
        engine.mode(training=False)
        sums = torch.zeros(len(self.groups), len(self.subsets), _COLUMNS, dtype=torch.float64)
        for group, samples in enumerate(self.groups.values()):
            for numbers, batch in heldout_batches(
                samples, self.recipe, engine.data_rank, engine.data_world, self.micro_batch, self.pad
            ):
                columns = [self.subsets.index(subset) for subset in samples.subsets(numbers)]
                scores = engine.evaluate(batch)
                other = engine.evaluate(self._with_source(batch, samples, self.lenders[group][numbers]))
                rows = _columns(scores, other[:, 0] - scores[:, 0])
                sums[group].index_add_(0, torch.tensor(columns), rows)
        engine.mode(training=True)
        return self._figures(torch.tensor(engine.sum(sums.flatten().tolist())).view(sums.shape))

    def _figures(self, sums: torch.Tensor) -> dict[str, float]:
        groups = {name: sums[row] for row, name in enumerate(self.groups) if name != "loss"}
        figures: dict[str, float] = {}
        for name, part in {"loss": sums.sum(0), **groups}.items():
            prefix = "" if name == "loss" else f"{name}_"
            known = {f"_{subset}": part[k] for k, subset in enumerate(self.subsets) if subset}
            for ending, columns in {"": part.sum(0), **known}.items():
                loss, hits, count, gain = columns[:4].tolist()
                if count == 0:
                    continue
                figures[name + ending] = loss / count
                figures[f"{prefix}accuracy{ending}"] = hits / count
                if ending and prefix:
                    continue
                figures[f"{name}{ending}_error"] = _standard_error(loss, count, columns[4:7])
                if columns[7] > 0:  # else no sample had another's source
                    shuffled = f"loss{ending}_shuffled" if ending else f"{prefix}shuffled"
                    figures[shuffled] = (loss + gain) / count
                    figures[f"{shuffled}_error"] = _standard_error(gain, count, columns[[7, 8, 6]])
        return figures

    def _with_source(self, batch: Batch, samples: Samples, numbers: np.ndarray) -> Batch:
        """The batch with the sources of other samples."""
        other = samples.batch(numbers, numbers, HELDOUT_SEED, self.pad)
        return replace(batch, encoder_ids=other.encoder_ids, mask=other.mask)

    def _measured(self, samples: Samples) -> np.ndarray:
        """Numbers of the samples that are measured."""
        return np.arange(min(len(samples), self.recipe.heldout_batches * self.recipe.batch))

    def _lenders(self, samples: Samples) -> np.ndarray:
        numbers = self._measured(samples)
        return lenders(samples.lengths(numbers, numbers, HELDOUT_SEED)[0], samples.tasks(numbers))

    def _subsets(self) -> list[str]:
        """Of the samples that are measured, the same on all workers."""
        found = {
            subset for samples in self.groups.values() for subset in samples.subsets(self._measured(samples))
        }
        return sorted(found)


def _columns(scores: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """What is summed over samples, float64 `[rows, 9]`.

    Loss, likeliest tokens, tokens, gain of the right source over another one; loss^2, loss * tokens,
    tokens^2, gain^2, gain * tokens.
    """
    loss, tokens = scores[:, 0], scores[:, 2]
    products = [loss * loss, loss * tokens, tokens * tokens, gain * gain, gain * tokens]
    return torch.cat([scores, torch.stack([gain, *products], dim=1)], dim=1)


def _standard_error(total: float, tokens: float, squares: torch.Tensor) -> float:
    """Of the ratio `total / tokens` of two sums over independent samples of different length.

    `squares`: sums of value^2, value * tokens and tokens^2.
    """
    ratio = total / tokens
    value_squared, value_tokens, tokens_squared = squares.tolist()
    residual = value_squared - 2 * ratio * value_tokens + ratio * ratio * tokens_squared
    return math.sqrt(max(0.0, residual)) / tokens
