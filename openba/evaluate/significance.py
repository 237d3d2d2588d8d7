"""Paired tests: whether two models' answers to the same items differ by more than chance.

Owns McNemar's exact test of right and wrong, and a bootstrap over items for other scores. Sources: McNemar
1947; Koehn 2004 (the bootstrap, with p as sacreBLEU computes it: the share of resamples whose difference,
centred on their mean, is at least the observed one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openba.evaluate.answers import SEED, Statistic

MEAN_RESAMPLES = 10_000
STATISTIC_RESAMPLES = 1_000
"""Fewer: a statistic such as BLEU or F1 is computed anew for each resample."""
_CHUNK_VALUES = 2**22
"""Numbers drawn at a time, which bounds the memory."""


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two scores on the same items, the second minus the first, in percent points."""

    difference: float
    stderr: float
    interval: tuple[float, float]
    """95 % interval, percentiles of the bootstrap."""
    p: float
    """Two-sided probability of a difference at least as large by chance alone."""
    test: str
    items: int


def compare_values(
    one: Sequence[float], other: Sequence[float], categories: Sequence[str] | None = None
) -> PairedDifference:
    """Compare means of item values.

    Args:
        one: values of the first model, 0 to 1, item by item.
        other: values of the second, in the same order.
        categories: of each item, where the score is the mean over categories; categories are fixed, and
            items are resampled within each.
    """
    differences = 100 * (np.asarray(other, dtype=np.float64) - np.asarray(one, dtype=np.float64))
    if categories is None:
        groups = [differences]
    else:
        category_array = np.asarray(categories)
        groups = [differences[category_array == name] for name in np.unique(category_array)]
    generator = np.random.default_rng(SEED)
    resampled = np.mean([_resample_means(group, generator) for group in groups], axis=0)
    difference = float(np.mean([group.mean() for group in groups]))
    # McNemar's test is exact, but for right and wrong only and without weights of categories.
    is_binary = categories is None and all(value in (0.0, 1.0) for value in (*one, *other))
    if is_binary:
        p_value = mcnemar(one, other)
        return _summarise(difference, resampled, p_value, "McNemar", len(differences))
    p_value = _bootstrap_p(resampled, difference)
    return _summarise(difference, resampled, p_value, "paired bootstrap", len(differences))


def compare_statistics(one: Statistic, other: Statistic, item_count: int) -> PairedDifference:
    """Compare scores that are no mean over items, such as BLEU or F1, by their statistics."""
    rows = np.arange(item_count)
    difference = other(rows) - one(rows)
    generator = np.random.default_rng(SEED)
    resampled_rows = generator.integers(item_count, size=(STATISTIC_RESAMPLES, item_count))
    resampled = np.array([other(rows) - one(rows) for rows in resampled_rows])
    p_value = _bootstrap_p(resampled, difference)
    return _summarise(difference, resampled, p_value, "paired bootstrap", item_count)


def mcnemar(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the two-sided exact p of the items that only one of the two models has right."""
    from scipy.stats import binomtest

    # Items that both have right or wrong say nothing about the difference.
    gained = sum(second > first_only for first_only, second in zip(one, other, strict=True))
    lost = sum(first_only > second for first_only, second in zip(one, other, strict=True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _resample_means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the means of resamples of the values, `[MEAN_RESAMPLES]`."""
    chunk_size = max(1, _CHUNK_VALUES // len(values))
    means = []
    for batch_start in range(0, MEAN_RESAMPLES, chunk_size):
        resample_count = min(chunk_size, MEAN_RESAMPLES - batch_start)
        rows = generator.integers(len(values), size=(resample_count, len(values)))
        means.append(values[rows].mean(axis=1))
    return np.concatenate(means)


def _bootstrap_p(resampled: np.ndarray, difference: float) -> float:
    # The tolerance counts a resample that differs from the difference by rounding only.
    is_extreme = np.abs(resampled - resampled.mean()) >= abs(difference) - 1e-9
    return float((is_extreme.sum() + 1) / (len(resampled) + 1))


def _summarise(
    difference: float, resampled: np.ndarray, p_value: float, test: str, item_count: int
) -> PairedDifference:
    # Percentiles need no assumption about the distribution, which is skewed near 0 and 100 %.
    low, high = np.percentile(resampled, [2.5, 97.5])
    return PairedDifference(
        difference=round(difference, 4),
        stderr=round(float(resampled.std(ddof=1)), 4),
        interval=(round(float(low), 4), round(float(high), 4)),
        p=float(f"{p_value:.4g}"),
        test=test,
        items=item_count,
    )
