"""Whether two models' answers to the same items differ by more than chance.

Owns the paired tests: McNemar's exact test of right and wrong, and a bootstrap over items for other scores.
Sources: McNemar 1947; Koehn 2004 (the bootstrap, p as sacreBLEU computes it: resamples whose difference,
centred on its mean, is at least the one found).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openba.evaluate.answers import SEED, Statistic

RESAMPLES_OF_MEANS = 10_000
RESAMPLES_OF_STATISTICS = 1_000
_CHUNK = 2**22  # numbers drawn at a time


@dataclass(frozen=True)
class Paired:
    """A difference of two scores on the same items, the second minus the first, in percent points."""

    difference: float
    stderr: float
    interval: tuple[float, float]
    """95 %, percentiles of the bootstrap."""
    p: float
    """Two-sided: how often chance alone makes a difference as large."""
    test: str
    items: int


def of_values(
    one: Sequence[float], other: Sequence[float], categories: Sequence[str] | None = None
) -> Paired:
    """Compare means of what each item gets, 0 to 1.

    Args:
        one: of the first model, item by item.
        other: of the second, in the same order.
        categories: of each item, where the score is the mean over categories; they are taken as they are
            and items are drawn within each.
    """
    differences = 100 * (np.asarray(other, dtype=np.float64) - np.asarray(one, dtype=np.float64))
    if categories is None:
        groups = [differences]
    else:
        names = np.asarray(categories)
        groups = [differences[names == name] for name in np.unique(names)]
    generator = np.random.default_rng(SEED)
    means = np.mean([_resampled_means(group, generator) for group in groups], axis=0)
    difference = float(np.mean([group.mean() for group in groups]))
    binary = categories is None and all(value in (0.0, 1.0) for value in (*one, *other))
    p = mcnemar(one, other) if binary else _p(means, difference)
    return _paired(difference, means, p, "McNemar" if binary else "paired bootstrap", len(differences))


def of_statistics(one: Statistic, other: Statistic, items: int) -> Paired:
    """Compare scores that are no mean over items, such as BLEU or F1, by their statistics."""
    rows = np.arange(items)
    difference = other(rows) - one(rows)
    drawn = np.random.default_rng(SEED).integers(items, size=(RESAMPLES_OF_STATISTICS, items))
    resampled = np.array([other(chosen) - one(chosen) for chosen in drawn])
    return _paired(difference, resampled, _p(resampled, difference), "paired bootstrap", items)


def mcnemar(one: Sequence[float], other: Sequence[float]) -> float:
    """Two-sided exact p of the items that only one of the two models has right."""
    from scipy.stats import binomtest

    gained = sum(b > a for a, b in zip(one, other, strict=True))
    lost = sum(a > b for a, b in zip(one, other, strict=True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _resampled_means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means of resamples of the values, `[RESAMPLES_OF_MEANS]`."""
    at_once = max(1, _CHUNK // len(values))
    counts = [min(at_once, RESAMPLES_OF_MEANS - begin) for begin in range(0, RESAMPLES_OF_MEANS, at_once)]
    drawn = (generator.integers(len(values), size=(count, len(values))) for count in counts)
    return np.concatenate([values[rows].mean(axis=1) for rows in drawn])


def _p(resampled: np.ndarray, difference: float) -> float:
    # The tolerance counts a resample that differs from the difference by rounding only.
    extreme = np.abs(resampled - resampled.mean()) >= abs(difference) - 1e-9
    return float((extreme.sum() + 1) / (len(resampled) + 1))


def _paired(difference: float, resampled: np.ndarray, p: float, test: str, items: int) -> Paired:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Paired(
        difference=round(difference, 4),
        stderr=round(float(resampled.std(ddof=1)), 4),
        interval=(round(float(low), 4), round(float(high), 4)),
        p=float(f"{p:.4g}"),
        test=test,
        items=items,
    )
