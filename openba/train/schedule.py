"""The learning rate as a function of the step. Nothing is stored, so nothing is restored."""

from __future__ import annotations

import math

from openba.recipes.train import OptimRecipe


def learning_rate(recipe: OptimRecipe, step: int, steps: int) -> float:
    """Rate of optimiser step `step` (0-based): linear warm-up, then cosine to min_lr or constant."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return recipe.lr
    decay = max(1, (recipe.decay or steps) - recipe.warmup)
    done = min(1.0, (step - recipe.warmup) / decay)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * done))
