"""Loss and next-token accuracy on held-out samples, by denoiser and language, over all workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.recipes.train import TrainRecipe
from openba.train.batches import heldout_batches, heldout_groups
from openba.train.engine import Engine


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
        self.languages = self._languages()

    def measure(self, engine: Engine) -> dict[str, float]:
        """Loss (nats a target token) and accuracy (equation 3, as a share). All workers call it together.

        Returns:
            `loss` and `accuracy`; where there are several denoisers `R` and `R_accuracy` and so on; where
            languages are known all of these also as `loss_zh`, `accuracy_zh`, `R_zh`, `R_accuracy_zh`...
        """
        engine.mode(training=False)
        sums = torch.zeros(len(self.groups), len(self.languages), 3, dtype=torch.float64)
        for group, samples in enumerate(self.groups.values()):
            for numbers, batch in heldout_batches(
                samples, self.recipe, engine.rank, engine.world, self.micro_batch, self.pad
            ):
                columns = [self.languages.index(language) for language in samples.languages(numbers)]
                sums[group].index_add_(0, torch.tensor(columns), engine.evaluate(batch))
        engine.mode(training=True)
        return self._figures(torch.tensor(engine.sum(sums.flatten().tolist())).view(sums.shape))

    def _figures(self, sums: torch.Tensor) -> dict[str, float]:
        groups = {name: sums[row] for row, name in enumerate(self.groups) if name != "loss"}
        figures: dict[str, float] = {}
        for name, part in {"loss": sums.sum(0), **groups}.items():
            accuracy = "accuracy" if name == "loss" else f"{name}_accuracy"
            known = {f"_{language}": part[k] for k, language in enumerate(self.languages) if language}
            for ending, (loss, right, count) in {"": part.sum(0), **known}.items():
                if count > 0:
                    figures[name + ending] = float(loss / count)
                    figures[accuracy + ending] = float(right / count)
        return figures

    def _languages(self) -> list[str]:
        """Of the samples that are measured, the same on all workers."""
        count = self.recipe.heldout_batches * self.recipe.batch
        found = {
            language
            for samples in self.groups.values()
            for language in samples.languages(np.arange(min(len(samples), count)))
        }
        return sorted(found)
