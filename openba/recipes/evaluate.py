"""Recipes of evaluation: a benchmark is a declaration, an expert names those it is checked by."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from openba.artifacts import Recipe
from openba.recipes.data import TaskRecipe
from openba.recipes.numbers import (
    Attempts,
    Count,
    CountOrNone,
    Finite,
    NonNegativeSteps,
    Positive,
    Records,
    Size,
    Version,
)

METRICS: tuple[str, ...] = (
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
    "macro_f1",
    "matthews",
    "mauve",
    "normalised_match",
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
)
"""Metrics of the package; `openba.evaluate.metrics` has the functions."""

Metric = str
"""One of `METRICS`, or `module:function` of a file beside the benchmark's."""


EXTRACTORS = ("text", "letter", "answer", "short_answer", "code")
"""Names of `extract`; `openba.evaluate.extraction` has the functions."""

SCORING_VERSION = "6"
"""Raised when answers or scores change under the same declaration; part of every evaluation's identity."""

LOWER_IS_BETTER: frozenset[Metric] = frozenset({"perplexity", "repetition_2"})

MEANS_OF_ITEMS: frozenset[Metric] = frozenset(
    {
        "accuracy", "call_arguments", "exact_match", "normalised_match", "pass_at_k", "python_syntax",
        "repetition_2", "rouge_1", "rouge_2", "rouge_l", "sim", "token_f1",
    }
)  # fmt: skip
"""Metrics that give each item 0 to 1, its verdict."""

_WRITTEN: tuple[Metric, ...] = (
    "bleu", "bleu_2", "call_arguments", "chrf", "distinct_2", "entity_f1", "mauve", "pass_at_k",
    "python_syntax", "repetition_2", "rouge_1", "rouge_2", "rouge_l", "sim",
)  # fmt: skip
"""Metrics of text that a model writes, which no choice among given answers has."""


def is_mean_of_items(metric: Metric) -> bool:
    """Return whether the metric gives each item 0 to 1, as every metric of a user's own file does."""
    return metric in MEANS_OF_ITEMS or ":" in metric


def score_key(metric: Metric, k: Sequence[int] = (1,)) -> str:
    """Return the key of a metric's value in the scores."""
    return f"pass_at_{k[0]}" if metric == "pass_at_k" else metric


class PaperValue(Recipe):
    """The figure in the paper that stands nearest, shown beside ours."""

    value: Finite
    where: str
    """Table and row, and how the paper's benchmark differs from this one."""


class BenchmarkRecipe(Recipe):
    """Held-out records of a task, how to answer them and how to score the answers."""

    version: Version = 1
    """To be raised when prompt, items or scoring change under the same name; reported with every score."""
    task: TaskRecipe
    language: Literal["zh", "en"]
    method: Literal["letters", "choice", "generate", "likelihood"]
    """`letters`: the likeliest of the bare letters as the next token after `answer_prefix` in the decoder
    (the release's way). `choice`: likelihood of each choice as continuation. `generate`: greedy decoding.
    `likelihood`: of the right answer, up to `max_new_tokens`; nothing is written."""
    answer_prefix: str = ""
    """What the decoder is given after `<extra_id_0>`, before the answer."""
    metrics: tuple[Metric, ...] = Field(min_length=1)
    """The first is the one that categories and groups are scored by. `module:function` is a metric of your
    own: the file MODULE.py beside this one has a function that takes `openba.evaluate.answers.Answers` and
    returns a number from 0 to 1 for each item."""
    own_metrics: dict[str, str] = {}
    """Metric of a file beside this one -> the file's text, filled in when this file is read. The text is
    hashed with the recipe and travels with it, so a job on another machine needs no copy of the file."""
    positive: str | None = None
    """The target that `f1` counts as found."""
    extract: str | None = None
    """How the answer is read out of what was generated: a name of `EXTRACTORS`, or a regular expression with
    one group, whose last match counts; none: all of it. Every attempt is read so."""
    stop: tuple[str, ...] = ()
    """What was generated ends before the first of these, such as `Question:`."""
    groups: dict[str, tuple[str, ...]] = {}
    """Group -> its categories (see the task's `category`); a category may be in several."""
    average: Literal["item", "category"] = "item"
    """Scores of groups, and of all: mean over items, or mean over categories."""
    items: Records | None = 100
    """Held-out records used, the first by id hash; null: all."""
    max_new_tokens: Size = 64
    attempts: Attempts = 1
    """Answers a record, drawn at `temperature`; `pass_at_k` says how many of them must be tried."""
    temperature: Positive = 0.8
    k: tuple[Count, ...] = Field(default=(1,), min_length=1)
    models: dict[Literal["mauve", "sim"], str] = {}
    """Metric -> folder of the transformers model that it compares texts by."""
    paper: PaperValue | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_sources(cls, data: Any) -> Any:
        """Move the file texts that `openba.config` puts beside names of metrics into a mapping."""
        metrics = data.get("metrics") if isinstance(data, dict) else None
        if not isinstance(metrics, list) or not any(isinstance(metric, dict) for metric in metrics):
            return data
        sources = {metric["name"]: metric["source"] for metric in metrics if isinstance(metric, dict)}
        names = [metric["name"] if isinstance(metric, dict) else metric for metric in metrics]
        return {**data, "metrics": names, "own_metrics": {**data.get("own_metrics", {}), **sources}}

    @model_validator(mode="after")
    def _can_work(self) -> BenchmarkRecipe:
        for fault in (*self._faults_of_method(), *self._faults_of_extract(), *self._faults_of_metrics()):
            raise ValueError(fault)
        return self

    def _faults_of_method(self) -> Iterator[str]:
        if (self.method == "likelihood") != (self.metrics == ("perplexity",)):
            yield "method 'likelihood' and metric 'perplexity', alone, go together"
        if self.method in ("letters", "choice"):
            if not (self.task.choices or self.task.options):
                needed = "needs the task's choices or options; name them or use 'generate'"
                yield f"method {self.method!r} {needed}"
            if written := sorted(set(self.metrics) & set(_WRITTEN)):
                yield f"metric {written[0]!r} scores written text; method {self.method!r} writes none"
        if self.answer_prefix and self.method == "generate":
            yield "answer_prefix is for methods 'letters' and 'choice'; put it into the input"
        if self.attempts > 1 and "pass_at_k" not in self.metrics:
            yield f"attempts {self.attempts}: only metric 'pass_at_k' looks at more than one; leave it out"

    def _faults_of_extract(self) -> Iterator[str]:
        if (self.extract is not None or self.stop) and self.method != "generate":
            yield f"extract and stop read written text; method {self.method!r} writes none"
        if any(not mark for mark in self.stop):
            yield "stop: an empty string ends every answer; leave it out"
        if self.extract is None or self.extract in EXTRACTORS:
            return
        try:
            # Compiled where the recipe is read: a faulty pattern would otherwise end an evaluation after its
            # answers.
            groups = re.compile(self.extract).groups
        except re.error as error:
            names = ", ".join(EXTRACTORS)
            yield f"extract {self.extract!r} is none of {names} and no regular expression: {error}"
            return
        if groups != 1:
            yield (
                f"extract {self.extract!r} has {groups} groups, not the one that holds the answer; "
                f"write (?:...) for others, or name one of {', '.join(EXTRACTORS)}"
            )

    def _faults_of_metrics(self) -> Iterator[str]:
        for metric in self.metrics:
            if metric not in METRICS and metric not in self.own_metrics:
                close_names = difflib.get_close_matches(metric, METRICS, 1)
                remedy = (
                    f"did you mean {close_names[0]!r}?" if close_names else f"known: {', '.join(METRICS)}"
                )
                yield f"metrics: no metric {metric!r} ({remedy}); one of your own is `module:function`"
        if repeated := [metric for metric in self.metrics if self.metrics.count(metric) > 1]:
            yield f"metric {repeated[0]!r} stands there twice"
        if ("f1" in self.metrics) != (self.positive is not None):
            yield "metric 'f1' and positive go together"
        if self.positive is not None and self.task.choices and self.positive not in self.task.choices:
            yield f"positive {self.positive!r} is not one of the choices {', '.join(self.task.choices)}"
        if self.task.category is None:
            if self.groups or self.average == "category":
                yield "groups and average 'category' need the task's category"
            for metric in sorted({"question_exact_match", "gender_parity"} & set(self.metrics)):
                yield f"metric {metric!r} needs the task's category: which items belong together"
        if ("pass_at_k" in self.metrics) != (self.task.check is not None):
            yield "metric 'pass_at_k' and the task's check go together"
        if self.task.check is not None and "{answer}" not in self.task.check.program:
            yield "task.check.program: {answer} is missing, so the program would not test the answer"
        if lacking := sorted({"mauve", "sim"} & set(self.metrics) - self.models.keys()):
            yield f"metric {lacking[0]!r} compares by a model; name its folder as models.{lacking[0]}"
        if max(self.k) > self.attempts:
            yield f"k {max(self.k)} needs as many attempts; there are {self.attempts}"


class EvaluateStep(Recipe):
    """One model on several benchmarks."""

    benchmarks: dict[str, BenchmarkRecipe]
    encoder_length: Size
    samples: CountOrNone = 5
    """Generations kept per benchmark for the report."""
    prefix: Literal["R", "S", "X"] = "S"
    """The mode token that every prompt begins with (Figure 6(d) compares them)."""
    at: NonNegativeSteps | None = None
    """The step of the training whose weights are asked, one of those that it keeps; none: its last."""


class BaselinesStep(Recipe):
    """Scores of classical models on the benchmarks of one evaluation."""

    benchmarks: dict[str, BenchmarkRecipe]
    trained: dict[str, tuple[str, ...]]
    """Benchmark -> tasks of the same records that the model was trained on; may be none."""


class SuiteRecipe(Recipe):
    """configs/suite/*.yaml: benchmarks that are run together."""

    title: str
    benchmarks: dict[str, BenchmarkRecipe]
