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
from openba.train.batches import HELDOUT_SEED, Batch, Samples, heldout_batches
from openba.train.engine import Engine
from openba.train.objectives import heldout_groups
from openba.train.source_use import lenders

_COLUMNS = 9
"""Of the sums that a measurement needs, see `_columns`."""


class HeldOut:
    """Fixed held-out samples; the same at every measurement and, of one mixture, in every run."""

    def __init__(self, recipe: TrainRecipe, data: Path, tokenizer: Tokenizer, micro_batch: int) -> None:
        self.recipe = recipe
        self.micro_batch = micro_batch
        self.pad = tokenizer.pad
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
        # The same samples and corruption each time: only the model has changed between measurements.
        engine.mode(training=False)
        column_sums = torch.zeros(len(self.groups), len(self.subsets), _COLUMNS, dtype=torch.float64)
        for group, samples in enumerate(self.groups.values()):
            for sample_numbers, batch in heldout_batches(
                samples, self.recipe, engine.data_rank, engine.data_world, self.micro_batch, self.pad
            ):
                subset_numbers = [self.subsets.index(subset) for subset in samples.subsets(sample_numbers)]
                scores = engine.evaluate(batch)
                # The same labels with another sample's source: what is lost is what the source gave.
                other_scores = engine.evaluate(
                    self._with_source(batch, samples, self.lenders[group][sample_numbers])
                )
                score_rows = _columns(scores, other_scores[:, 0] - scores[:, 0])
                column_sums[group].index_add_(0, torch.tensor(subset_numbers), score_rows)
        # One reduction of all sums: workers had different samples, and the means are over all of them.
        engine.mode(training=True)
        return self._figures(torch.tensor(engine.sum(column_sums.flatten().tolist())).view(column_sums.shape))

    def _figures(self, group_columns: torch.Tensor) -> dict[str, float]:
        groups = {name: group_columns[row] for row, name in enumerate(self.groups) if name != "loss"}
        figures: dict[str, float] = {}
        for name, group_sums in {"loss": group_columns.sum(0), **groups}.items():
            name_prefix = "" if name == "loss" else f"{name}_"
            by_subset = {f"_{subset}": group_sums[k] for k, subset in enumerate(self.subsets) if subset}
            for ending, column_sums in {"": group_sums.sum(0), **by_subset}.items():
                loss, hits, token_count, source_gain = column_sums[:4].tolist()
                if token_count == 0:
                    continue
                figures[name + ending] = loss / token_count
                figures[f"{name_prefix}accuracy{ending}"] = hits / token_count
                if ending and name_prefix:
                    continue
                figures[f"{name}{ending}_error"] = _standard_error(loss, token_count, column_sums[4:7])
                if column_sums[7] > 0:  # else no sample had another's source
                    shuffled_name = f"loss{ending}_shuffled" if ending else f"{name_prefix}shuffled"
                    figures[shuffled_name] = (loss + source_gain) / token_count
                    figures[f"{shuffled_name}_error"] = _standard_error(
                        source_gain, token_count, column_sums[[7, 8, 6]]
                    )
        return figures

    def _with_source(self, batch: Batch, samples: Samples, sample_numbers: np.ndarray) -> Batch:
        """Give each sample of the batch the source of another."""
        other_batch = samples.batch(sample_numbers, sample_numbers, HELDOUT_SEED, self.pad)
        return replace(batch, encoder_ids=other_batch.encoder_ids, mask=other_batch.mask)

    def _measured(self, samples: Samples) -> np.ndarray:
        """Numbers of the samples that are measured."""
        return np.arange(min(len(samples), self.recipe.heldout_batches * self.recipe.batch))

    def _lenders(self, samples: Samples) -> np.ndarray:
        sample_numbers = self._measured(samples)
        return lenders(
            samples.lengths(sample_numbers, sample_numbers, HELDOUT_SEED)[0], samples.tasks(sample_numbers)
        )

    def _subsets(self) -> list[str]:
        """Names of the subsets of the measured samples, the same on all workers."""
        subset_names = {
            subset for samples in self.groups.values() for subset in samples.subsets(self._measured(samples))
        }
        return sorted(subset_names)


def _columns(scores: torch.Tensor, source_gain: torch.Tensor) -> torch.Tensor:
    """Columns that are summed over samples, float64 `[rows, 9]`.

    Loss, likeliest tokens, tokens, gain of the right source over another one; loss^2, loss * tokens,
    tokens^2, gain^2, gain * tokens.
    """
    loss = scores[:, 0]
    tokens = scores[:, 2]
    products = [loss * loss, loss * tokens, tokens * tokens, source_gain * source_gain, source_gain * tokens]
    return torch.cat([scores, torch.stack([source_gain, *products], dim=1)], dim=1)


def _standard_error(value_sum: float, token_sum: float, square_sums: torch.Tensor) -> float:
    """Return the standard error of the ratio `total / tokens` of sums over samples of different length.

    `squares`: sums of value^2, value * tokens and tokens^2.
    """
    ratio = value_sum / token_sum
    value_squared, value_tokens, tokens_squared = square_sums.tolist()
    residual = value_squared - 2 * ratio * value_tokens + ratio * ratio * tokens_squared
    return math.sqrt(max(0.0, residual)) / token_sum
