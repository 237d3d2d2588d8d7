"""Recipes of evaluation: a benchmark is a declaration, an expert names those it is checked by."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from openba.artifacts import Recipe
from openba.recipes.data import TaskRecipe

Metric = Literal[
    "accuracy",
    "bleu",
    "bleu_2",
    "call_arguments",
    "chrf",
    "distinct_2",
    "entity_f1",
    "exact_match",
    "f1",
    "gender_parity",
    "matthews",
    "mauve",
    "pass_at_k",
    "perplexity",
    "python_syntax",
    "question_exact_match",
    "repetition_2",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "sim",
    "token_f1",
]


class PaperValue(Recipe):
    """The figure in the paper that stands nearest, shown beside ours."""

    value: float
    where: str
    """Table and row, and how the paper's benchmark differs from this one."""


class BenchmarkRecipe(Recipe):
    """Held-out records of a task, how to answer them and how to score the answers."""

    version: int = 1
    """To be raised when prompt, items or scoring change under the same name; told with every score."""
    task: TaskRecipe
    language: Literal["zh", "en"]
    method: Literal["letters", "choice", "generate", "likelihood"]
    """`letters`: the likeliest of the bare letters as the next token after `answer_prefix` in the decoder
    (the release's way). `choice`: likelihood of each choice as continuation. `generate`: greedy decoding.
    `likelihood`: of the right answer, up to `max_new_tokens`; nothing is written."""
    answer_prefix: str = ""
    """What the decoder is given after `<extra_id_0>`, before the answer."""
    metrics: tuple[Metric, ...] = Field(min_length=1)
    """The first is the one that categories and groups are scored by."""
    positive: str | None = None
    """The target that `f1` counts as found."""
    extract: str | None = None
    """A regular expression; the answer is its first group where it matches last in what was generated."""
    groups: dict[str, tuple[str, ...]] = {}
    """Group -> its categories (see the task's `category`); a category may be in several."""
    average: Literal["item", "category"] = "item"
    """Scores of groups, and of all: mean over items, or mean over categories."""
    items: int | None = 100
    """Held-out records used, the first by id hash; null: all."""
    max_new_tokens: int = 64
    attempts: int = Field(default=1, ge=1)
    """Answers a record, drawn at `temperature`; `pass_at_k` says how many of them must be tried."""
    temperature: float = Field(default=0.8, gt=0)
    k: tuple[int, ...] = (1,)
    models: dict[Literal["mauve", "sim"], str] = {}
    """Metric -> folder of the transformers model that it compares texts by."""
    paper: PaperValue | None = None

    @model_validator(mode="after")
    def _complete(self) -> BenchmarkRecipe:
        if (self.method == "likelihood") != ("perplexity" in self.metrics) or (
            self.method == "likelihood" and len(self.metrics) > 1
        ):
            raise ValueError("method 'likelihood' and metric 'perplexity', alone, go together")
        if self.method in ("letters", "choice") and not (self.task.choices or self.task.options):
            raise ValueError(
                f"method {self.method!r} needs the task's choices or options; name them or use 'generate'"
            )
        if self.answer_prefix and self.method == "generate":
            raise ValueError("answer_prefix is for methods 'letters' and 'choice'; put it into the input")
        if self.extract is not None and re.compile(self.extract).groups < 1:
            raise ValueError(f"extract {self.extract!r} has no group that holds the answer")
        if ("f1" in self.metrics) != (self.positive is not None):
            raise ValueError("metric 'f1' and positive go together")
        if (self.groups or self.average == "category") and self.task.category is None:
            raise ValueError("groups and average 'category' need the task's category")
        if ("pass_at_k" in self.metrics) != (self.task.check is not None):
            raise ValueError("metric 'pass_at_k' and the task's check go together")
        if lacking := sorted({"mauve", "sim"} & set(self.metrics) - self.models.keys()):
            raise ValueError(
                f"metric {lacking[0]!r} compares by a model; name its folder as models.{lacking[0]}"
            )
        if max(self.k) > self.attempts:
            raise ValueError(f"k {max(self.k)} needs as many attempts; there are {self.attempts}")
        return self


class EvaluateStep(Recipe):
    """One model on several benchmarks."""

    benchmarks: dict[str, BenchmarkRecipe]
    encoder_length: int
    samples: int = 5
    """Generations kept per benchmark for the report."""
    prefix: Literal["R", "S", "X"] = "S"
    """The mode token that every prompt begins with (Figure 6(d) compares them)."""
    at: int | None = None
    """The step of the training whose weights are asked, one of those that it keeps; none: its last."""


class SuiteRecipe(Recipe):
    """configs/suite/*.yaml: benchmarks that are run together."""

    title: str
    benchmarks: dict[str, BenchmarkRecipe]
