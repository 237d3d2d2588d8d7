"""What is scored: predictions beside their right answers, and the two kinds of score over them.

Owns the form that every metric reads and the arithmetic of means and standard errors. Which metrics
there are stands in `metrics.py`.
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
"""A score of some of the items, given by their row numbers."""

BOOTSTRAP = 1000
"""Resamples of the items behind the standard error of a corpus score (sacreBLEU's default)."""
SEED = 12345  # sacreBLEU's own


class NotRunError(UserError):
    """A metric lacks something of its own; the others go on."""


@dataclass(frozen=True)
class Answers:
    """Items of one benchmark in order."""

    predictions: list[str]
    references: list[Sequence[str]]
    """All right answers of each item; `pass_at_k`: one program that checks an answer."""
    language: Language
    categories: list[str]
    positive: str | None = None
    attempts: Sequence[Sequence[str]] = ()
    """All answers of each item, where there are several."""
    k: Sequence[int] = (1,)
    prompts: list[str] = field(default_factory=list)
    losses: Sequence[Sequence[float]] = ()
    """Method `likelihood`: nats and tokens of each right answer."""
    own_metrics: Mapping[str, str] = field(default_factory=dict)
    """Metric of a user's file -> the file's text."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Metric -> folder of the model that it compares texts by."""

    @property
    def first(self) -> list[str]:
        """The first right answer of each item."""
        return [references[0] for references in self.references]


@dataclass(frozen=True)
class CorpusScore:
    """A score that is no mean over items: how it is computed, and what is reported beside it."""

    statistic: Statistic
    """In percent, but perplexity."""
    resamples: int = BOOTSTRAP
    """Of the bootstrap behind its standard error; 0: it has none."""
    beside: Scores = field(default_factory=dict)
    """Further keys of the result."""


def mean(name: str, values: Sequence[float]) -> Scores:
    """Mean over items and its standard error, in percent."""
    array = 100 * np.asarray(values, dtype=np.float64)
    stderr = array.std(ddof=1) / len(array) ** 0.5 if len(array) > 1 else 0.0
    return {name: float(array.mean()), f"{name}_stderr": float(stderr)}


def resampled(statistic: Statistic, items: int, resamples: int = BOOTSTRAP) -> float:
    """Standard error of a statistic of item numbers, from a bootstrap over the items."""
    drawn = np.random.default_rng(SEED).integers(items, size=(resamples, items))
    return float(np.std([statistic(rows) for rows in drawn], ddof=1))
