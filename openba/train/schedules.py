"""Learning-rate schedules: the rate as a function of the step. Nothing is stored, so nothing is restored.

Each class is one schedule after its warm-up. A new one is a class here, a line in `SCHEDULES`, and its name
in `openba.recipes.train.ScheduleName`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from openba.recipes.train import OptimRecipe, ScheduleName


class Schedule(Protocol):
    """Share of the full rate after the warm-up."""

    def __init__(self, recipe: OptimRecipe, steps: int) -> None:
        """Take the recipe, and the optimiser steps of the whole budget."""
        ...

    def share(self, step: int) -> float:
        """Return the rate of step `step` (0-based, after the warm-up): 0 is `min_lr`, 1 is `lr`."""
        ...


@dataclass
class Constant:
    """The full rate to the end."""

    recipe: OptimRecipe
    steps: int

    def share(self, step: int) -> float:
        """See `Schedule`."""
        return 1.0


@dataclass
class Cosine:
    """Half a cosine to `min_lr` over `decay` steps, warm-up included; without `decay` over the budget."""

    recipe: OptimRecipe
    steps: int

    def share(self, step: int) -> float:
        """See `Schedule`."""
        return 0.5 * (1 + math.cos(math.pi * _decayed(self.recipe, step, self.steps)))


@dataclass
class Linear:
    """A straight line to `min_lr` over `decay` steps, warm-up included; without `decay` over the budget."""

    recipe: OptimRecipe
    steps: int

    def share(self, step: int) -> float:
        """See `Schedule`."""
        return 1.0 - _decayed(self.recipe, step, self.steps)


@dataclass
class InverseSqrt:
    """T5's `1 / sqrt(step)`, full at the end of the warm-up (arXiv 1910.10683, section 3.1.2)."""

    recipe: OptimRecipe
    steps: int

    def share(self, step: int) -> float:
        """See `Schedule`."""
        return math.sqrt(max(1, self.recipe.warmup) / max(1, self.recipe.warmup, step + 1))


@dataclass
class WarmupStableDecay:
    """The full rate, then a straight line to `min_lr` over the last `decay` steps (arXiv 2404.06395).

    Without `decay` the last tenth of the budget, as there. A checkpoint of the stable part can go on with
    another budget.
    """

    recipe: OptimRecipe
    steps: int

    def share(self, step: int) -> float:
        """See `Schedule`."""
        # Counted from the end, so that a longer budget moves the decay and changes nothing before it.
        decay_steps = self.recipe.decay or max(1, self.steps // 10)
        return max(0.0, min(1.0, (self.steps - step) / decay_steps))


SCHEDULES: Mapping[ScheduleName, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "inverse_sqrt": InverseSqrt,
    "linear": Linear,
    "wsd": WarmupStableDecay,
}


def learning_rate(recipe: OptimRecipe, step: int, total_steps: int) -> float:
    """Return the rate of optimiser step `step` (0-based) of `steps`: linear warm-up, then the schedule."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    # Exactly `lr`: min_lr + (lr - min_lr) may differ from it in the last bit.
    if recipe.schedule == "constant":
        return recipe.lr
    share = SCHEDULES[recipe.schedule](recipe, total_steps).share(step)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * share


def _decayed(recipe: OptimRecipe, step: int, total_steps: int) -> float:
    """Share of the decay that is done at a step, from 0 to 1."""
    decay_steps = max(1, (recipe.decay or total_steps) - recipe.warmup)
    return min(1.0, (step - recipe.warmup) / decay_steps)
