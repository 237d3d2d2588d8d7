"""Scores of labels: accuracy, and F1, MCC, whole questions and gender parity where a benchmark has those.

Owns SuperGLUE's composite scores (Table 6). scikit-learn computes; an item's category says which items
belong together.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from sklearn.metrics import f1_score, matthews_corrcoef

from openba.evaluate.answers import Answers, Scores, mean, resampled

_RESAMPLES = 200  # a millisecond each


def accuracy(answers: Answers) -> list[float]:
    """1 where the answer is the right label."""
    return [
        float(text in references)
        for text, references in zip(answers.predictions, answers.references, strict=True)
    ]


def f1(answers: Answers) -> Scores:
    """F1 of the label that the benchmark calls positive, over all items (MultiRC's F1a)."""
    right, found = (
        np.array([text == answers.positive for text in side]) for side in (answers.first, answers.predictions)
    )
    return _resampled(
        "f1", lambda rows: float(f1_score(right[rows], found[rows], zero_division=0)), len(right)
    )


def matthews(answers: Answers) -> Scores:
    """Matthews correlation of the labels, times 100 (AX-b)."""
    right, found = np.array(answers.first), np.array(answers.predictions)

    def correlation(rows: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one label only: no correlation, scikit-learn says 0 and warns
            return float(matthews_corrcoef(right[rows], found[rows]))

    return _resampled("matthews", correlation, len(right))


def question_exact_match(answers: Answers) -> Scores:
    """Share of categories, each a question, of which every item is right (MultiRC's EM)."""
    whole: dict[str, bool] = defaultdict(lambda: True)
    for category, right in zip(answers.categories, accuracy(answers), strict=True):
        whole[category] &= bool(right)
    return mean("question_exact_match", list(whole.values())) | {"question_exact_match_n": len(whole)}


def gender_parity(answers: Answers) -> Scores:
    """Share of categories, each a minimal pair, whose items are answered alike (AX-g's GPS)."""
    given: dict[str, set[str]] = defaultdict(set)
    for category, text in zip(answers.categories, answers.predictions, strict=True):
        given[category].add(text)
    return mean("gender_parity", [len(texts) == 1 for texts in given.values()]) | {
        "gender_parity_n": len(given)
    }


def perplexity(answers: Answers) -> Scores:
    """Of the right answers, a token: less is better. The error is a bootstrap over the answers."""
    table = np.array(answers.losses, dtype=np.float64)

    def of(rows: np.ndarray) -> float:
        nats, tokens = table[rows].sum(0)
        return float(np.exp(nats / tokens))

    return {
        "perplexity": of(np.arange(len(table))),
        "perplexity_stderr": resampled(of, len(table)),
        "perplexity_tokens": int(table[:, 1].sum()),
    }


def _resampled(name: str, statistic: Callable[[np.ndarray], float], items: int) -> Scores:
    return {
        name: 100 * statistic(np.arange(items)),
        f"{name}_stderr": 100 * resampled(statistic, items, _RESAMPLES),
    }
