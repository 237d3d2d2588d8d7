"""Form of what is scored: predictions beside their references, and statistics over them.

Owns the form that every metric reads and the arithmetic of means and standard errors. The table of metrics
is in `metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from openba.errors import UserError

Language = Literal["zh", "en"]
Scores = dict[str, float | str]
Statistic = Callable[[np.ndarray], float]
"""Function of row numbers that returns the score of those items."""

BOOTSTRAP_RESAMPLES = 1000
"""Resamples of the items for the standard error of a corpus score (sacreBLEU's default)."""
SEED = 12345  # sacreBLEU's default


class NotRunError(UserError):
    """A metric lacks a model or library of its own; the other metrics are computed."""


@dataclass(frozen=True)
class Answers:
    """Answered items of one benchmark, in order."""

    predictions: list[str]
    references: list[Sequence[str]]
    """All right answers of each item; `pass_at_k`: one program that checks an answer."""
    language: Language
    categories: list[str]
    positive_label: str | None = None
    """Label that `f1` counts."""
    attempts: Sequence[Sequence[str]] = ()
    """All answers of each item, where there are several."""
    k: Sequence[int] = (1,)
    """Numbers of attempts that `pass_at_k` is estimated for."""
    prompts: list[str] = field(default_factory=list)
    losses: Sequence[Sequence[float]] = ()
    """Method `likelihood`: nats and number of tokens of each right answer."""
    user_metrics: Mapping[str, str] = field(default_factory=dict)
    """Metric of a user's file -> the file's text."""
    model_folders: Mapping[str, str] = field(default_factory=dict)
    """Metric -> folder of the model that it compares texts by."""

    @property
    def first_references(self) -> list[str]:
        """The first right answer of each item."""
        return [references[0] for references in self.references]


@dataclass(frozen=True)
class CorpusScore:
    """Score that is no mean over items, as a statistic of any of them."""

    statistic: Statistic
    """In percent, but perplexity."""
    resamples: int = BOOTSTRAP_RESAMPLES
    """Bootstrap resamples for its standard error; 0: none is computed."""
    extra_scores: Scores = field(default_factory=dict)
    """Further keys of the result."""


def mean_score(name: str, values: Sequence[float]) -> Scores:
    """Return the mean over items and its standard error, in percent, under `name` and `name_stderr`."""
    # In fp64: sums of thousands of fp32 values would lose digits that are reported.
    percents = 100 * np.asarray(values, dtype=np.float64)
    stderr = percents.std(ddof=1) / len(percents) ** 0.5 if len(percents) > 1 else 0.0
    return {name: float(percents.mean()), f"{name}_stderr": float(stderr)}


def bootstrap_stderr(statistic: Statistic, item_count: int, resamples: int = BOOTSTRAP_RESAMPLES) -> float:
    """Return the standard error of a statistic from a bootstrap over the items."""
    resampled_rows = np.random.default_rng(SEED).integers(item_count, size=(resamples, item_count))
    return float(np.std([statistic(rows) for rows in resampled_rows], ddof=1))
