"""Scores of labels: accuracy, and F1, MCC, complete questions and gender parity where a benchmark has those.

Owns SuperGLUE's composite scores (Table 6). scikit-learn computes; an item's category says which items
belong together.
"""

from __future__ import annotations

import warnings
from collections import defaultdict

import numpy as np
from sklearn.metrics import f1_score, matthews_corrcoef

from openba.evaluate.answers import Answers, CorpusScore

_RESAMPLES = 200  # a millisecond each


def accuracy(answers: Answers) -> list[float]:
    """1 where the answer is the right label."""
    return [
        float(text in references)
        for text, references in zip(answers.predictions, answers.references, strict=True)
    ]


def f1(answers: Answers) -> CorpusScore:
    """F1 of the label that the benchmark calls positive, over all items (MultiRC's F1a)."""
    right = np.array([text == answers.positive for text in answers.first])
    given = np.array([text == answers.positive for text in answers.predictions])
    return CorpusScore(
        lambda rows: 100 * float(f1_score(right[rows], given[rows], zero_division=0)), _RESAMPLES
    )


def macro_f1(answers: Answers) -> CorpusScore:
    """Mean of the F1 of each label (CommitmentBank's F1; SuperGLUE averages it with the accuracy).

    Labels that stand neither in the right answers nor in the given ones do not count.
    """
    right, given = np.array(answers.first), np.array(answers.predictions)
    return CorpusScore(
        lambda rows: 100 * float(f1_score(right[rows], given[rows], average="macro", zero_division=0)),
        _RESAMPLES,
    )


def matthews(answers: Answers) -> CorpusScore:
    """Matthews correlation of the labels, times 100 (AX-b)."""
    right, given = np.array(answers.first), np.array(answers.predictions)

    def correlation(rows: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one label only: no correlation, scikit-learn says 0 and warns
            return 100 * float(matthews_corrcoef(right[rows], given[rows]))

    return CorpusScore(correlation, _RESAMPLES)


def question_exact_match(answers: Answers) -> dict[str, float]:
    """Category, which is a question -> 1 if every item of it is right (MultiRC's EM)."""
    complete: dict[str, bool] = defaultdict(lambda: True)
    for category, right in zip(answers.categories, accuracy(answers), strict=True):
        complete[category] &= bool(right)
    return {category: float(is_right) for category, is_right in complete.items()}


def gender_parity(answers: Answers) -> dict[str, float]:
    """Category, which is a minimal pair -> 1 if its items are answered alike (AX-g's GPS)."""
    given: dict[str, set[str]] = defaultdict(set)
    for category, text in zip(answers.categories, answers.predictions, strict=True):
        given[category].add(text)
    return {category: float(len(texts) == 1) for category, texts in given.items()}


def perplexity(answers: Answers) -> CorpusScore:
    """Of the right answers, a token: less is better."""
    table = np.array(answers.losses, dtype=np.float64)

    def of(rows: np.ndarray) -> float:
        nats, tokens = table[rows].sum(0)
        with np.errstate(over="ignore"):  # infinite, which the caller reports as not finite
            return float(np.exp(nats / tokens))

    return CorpusScore(of, beside={"perplexity_tokens": int(table[:, 1].sum())})
