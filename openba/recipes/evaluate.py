"""Recipes of evaluation: a benchmark is a declaration, an expert names those it is checked by."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from openba.artifacts import Recipe
from openba.recipes.data import TaskRecipe

Metric = Literal["accuracy", "bleu", "chrf", "rouge_l", "entity_f1", "exact_match", "python_syntax"]


class PaperValue(Recipe):
    """The figure in the paper that stands nearest, shown beside ours."""

    value: float
    where: str
    """Table and row, and how the paper's benchmark differs from this one."""


class BenchmarkRecipe(Recipe):
    """Held-out records of a task, how to answer them and how to score the answers."""

    task: TaskRecipe
    language: Literal["zh", "en"]
    method: Literal["choice", "generate"]
    """`choice`: likelihood of each of the task's choices as continuation. `generate`: greedy decoding."""
    metrics: tuple[Metric, ...]
    items: int = 100
    """Held-out records used, the first by id hash."""
    max_new_tokens: int = 64
    paper: PaperValue | None = None

    @model_validator(mode="after")
    def _choices(self) -> BenchmarkRecipe:
        if self.method == "choice" and not self.task.choices:
            raise ValueError("method 'choice' needs the task's choices; name them or use 'generate'")
        return self


class EvaluateStep(Recipe):
    """One model on several benchmarks."""

    benchmarks: dict[str, BenchmarkRecipe]
    encoder_length: int
    samples: int = 5
    """Generations kept per benchmark for the report."""
