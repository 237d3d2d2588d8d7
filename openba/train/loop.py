"""The loop: a generator of optimiser steps that knows nothing of logging, saving, Ray or MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from openba.recipes.train import TrainRecipe
from openba.train.batches import TrainingBatches
from openba.train.engine import Engine
from openba.train.schedule import learning_rate


@dataclass(frozen=True)
class StepInfo:
    """What one optimiser step did."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean cross entropy per target token over all workers, in nats."""
    lr: float
    gradient_norm: float | None
    tokens: int
    """Real (not padding) encoder and target tokens over all workers."""
    targets: int
    skipped: bool
    """The loss was not finite or above the limit, and the step left the weights as they were."""


def training_steps(
    engine: Engine, batches: TrainingBatches, recipe: TrainRecipe, micro_batch: int, start: int
) -> Iterator[StepInfo]:
    """Yield one StepInfo per optimiser step, from `start` to the recipe's budget."""
    for step in range(start, recipe.steps):
        # Dropout, as the data, follows from seed and step: a resumed run goes on as it would have.
        torch.manual_seed((recipe.seed * 1_000_003 + step) * engine.world + engine.rank)
        micro = list(batches.micro(step, engine.rank, engine.world, micro_batch))
        tokens, targets = (
            int(n) for n in engine.sum([sum(b.tokens for b in micro), sum(b.targets for b in micro)])
        )
        lr = learning_rate(recipe.optim, step, recipe.steps)
        losses, applied = 0.0, False
        for batch in micro:
            losses += engine.backward(batch, targets, recipe.skip_loss_above)
            applied = engine.step(lr)
        loss = engine.sum([losses])[0] / targets
        yield StepInfo(step + 1, loss, lr, engine.gradient_norm(), tokens, targets, not applied)
