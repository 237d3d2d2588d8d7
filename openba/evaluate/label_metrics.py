"""Scores of labels: accuracy, F1, MCC, complete questions and gender parity.

Owns SuperGLUE's composite scores (Table 6). scikit-learn computes; an item's category says which items
belong together.
"""

from __future__ import annotations

import warnings
from collections import defaultdict

import numpy as np
from sklearn.metrics import f1_score, matthews_corrcoef

from openba.evaluate.answers import Answers, CorpusScore

# scikit-learn takes about a millisecond per resample, and most benchmarks have several such metrics.
_RESAMPLES = 200


def accuracy(answers: Answers) -> list[float]:
    """Return 1 where the answer is the right label."""
    return [
        float(prediction in references)
        for prediction, references in zip(answers.predictions, answers.references, strict=True)
    ]


def f1(answers: Answers) -> CorpusScore:
    """F1 of the label that the benchmark calls positive, over all items (MultiRC's F1a)."""
    is_positive = np.array([label == answers.positive_label for label in answers.first_references])
    is_predicted = np.array([label == answers.positive_label for label in answers.predictions])

    def binary_f1(rows: np.ndarray) -> float:
        return 100 * float(f1_score(is_positive[rows], is_predicted[rows], zero_division=0))

    return CorpusScore(binary_f1, _RESAMPLES)


def macro_f1(answers: Answers) -> CorpusScore:
    """Mean of the F1 of each label (CommitmentBank's F1; SuperGLUE averages it with the accuracy).

    Labels that occur neither in the references nor in the predictions do not count.
    """
    true_labels = np.array(answers.first_references)
    predicted_labels = np.array(answers.predictions)

    def mean_f1(rows: np.ndarray) -> float:
        score = f1_score(true_labels[rows], predicted_labels[rows], average="macro", zero_division=0)
        return 100 * float(score)

    return CorpusScore(mean_f1, _RESAMPLES)


def matthews(answers: Answers) -> CorpusScore:
    """Matthews correlation of the labels, times 100 (AX-b)."""
    true_labels = np.array(answers.first_references)
    predicted_labels = np.array(answers.predictions)

    def correlation(rows: np.ndarray) -> float:
        with warnings.catch_warnings():
            # With one label only there is no correlation; scikit-learn returns 0 and warns.
            warnings.simplefilter("ignore")
            return 100 * float(matthews_corrcoef(true_labels[rows], predicted_labels[rows]))

    return CorpusScore(correlation, _RESAMPLES)


def question_exact_match(answers: Answers) -> dict[str, float]:
    """Return per category, which is a question, 1 if all its items are right (MultiRC's EM)."""
    is_complete: dict[str, bool] = defaultdict(lambda: True)
    for category, item_score in zip(answers.categories, accuracy(answers), strict=True):
        # A question is complete only if every one of its items is right.
        is_complete[category] &= bool(item_score)
    return {category: float(complete) for category, complete in is_complete.items()}


def gender_parity(answers: Answers) -> dict[str, float]:
    """Return per category, which is a minimal pair, 1 if its items have one answer (AX-g's GPS)."""
    pair_answers: dict[str, set[str]] = defaultdict(set)
    for category, prediction in zip(answers.categories, answers.predictions, strict=True):
        pair_answers[category].add(prediction)
    return {category: float(len(predictions) == 1) for category, predictions in pair_answers.items()}


def perplexity(answers: Answers) -> CorpusScore:
    """Perplexity of the right answers per token; lower is better."""
    losses_and_tokens = np.array(answers.losses, dtype=np.float64)

    def corpus_perplexity(rows: np.ndarray) -> float:
        loss_nats, token_count = losses_and_tokens[rows].sum(0)
        # An overflow gives infinity, which `score_items` reports as not finite.
        with np.errstate(over="ignore"):
            return float(np.exp(loss_nats / token_count))

    return CorpusScore(
        corpus_perplexity, extra_scores={"perplexity_tokens": int(losses_and_tokens[:, 1].sum())}
    )
