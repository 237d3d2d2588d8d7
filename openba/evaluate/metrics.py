"""Scores of predictions against references, from the field's libraries, in percent.

Owns which metric is which function, and of which kind it is: a mean over items, a mean over categories, or a
statistic of all items. It generates nothing and reads no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite

import numpy as np

from openba.errors import UserError
from openba.evaluate import (
    embedding_metrics,
    entity_metrics,
    label_metrics,
    program_metrics,
    text_metrics,
)
from openba.evaluate.answers import Answers, CorpusScore, Language, NotRunError, Scores, mean, resampled
from openba.evaluate.own_metrics import own_values
from openba.recipes.evaluate import Metric

_OF_ITEMS: dict[Metric, Callable[[Answers], list[float]]] = {
    "accuracy": label_metrics.accuracy,
    "call_arguments": program_metrics.call_arguments,
    "exact_match": text_metrics.exact_match,
    "normalised_match": text_metrics.normalised_match,
    "python_syntax": program_metrics.python_syntax,
    "repetition_2": text_metrics.repetition_2,
    "rouge_1": partial(text_metrics.rouge, "rouge1"),
    "rouge_2": partial(text_metrics.rouge, "rouge2"),
    "rouge_l": partial(text_metrics.rouge, "rougeL"),
    "sim": embedding_metrics.similarity,
    "token_f1": text_metrics.token_f1,
}
"""Means of what each item gets, 0 to 1."""

_OF_CATEGORIES: dict[Metric, Callable[[Answers], dict[str, float]]] = {
    "gender_parity": label_metrics.gender_parity,
    "question_exact_match": label_metrics.question_exact_match,
}
"""Means of what each category gets, 0 to 1."""

_OF_ALL: dict[Metric, Callable[[Answers], CorpusScore]] = {
    "bleu": partial(text_metrics.bleu, 4),
    "bleu_2": partial(text_metrics.bleu, 2),
    "chrf": text_metrics.chrf,
    "distinct_2": text_metrics.distinct_2,
    "entity_f1": entity_metrics.entity_f1,
    "f1": label_metrics.f1,
    "macro_f1": label_metrics.macro_f1,
    "matthews": label_metrics.matthews,
    "mauve": embedding_metrics.mauve,
    "perplexity": label_metrics.perplexity,
}
"""Statistics of all items."""


def score(
    metrics: Sequence[Metric],
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    language: Language,
) -> Scores:
    """Score predictions, item by item in the order of the references; see `score_items`.

    Raises:
        UserError: there are no items.
        ValueError: the lengths differ.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    right = [(text,) if isinstance(text, str) else text for text in references]
    return score_answers(metrics, Answers(list(predictions), right, language, [""] * len(right)))


def score_answers(metrics: Sequence[Metric], answers: Answers) -> Scores:
    """All metrics of the answers; see `score_items`."""
    return score_items(metrics, answers)[0]


def score_items(metrics: Sequence[Metric], answers: Answers) -> tuple[Scores, dict[Metric, list[float]]]:
    """All metrics of the answers, and what each item gets.

    Returns:
        Scores: for each metric its value (0 to 100, but perplexity) and `METRIC_stderr`: of the mean where
        the score is a mean over items or categories, from a bootstrap over items otherwise.
        `METRIC_signature` says how sacreBLEU computed it, `entity_f1_unreadable` is the share of predictions
        that are no entity list, `n` the number of items. `METRIC_not_run` says why there is no value.
        Values: metric -> 0 to 1 for each item, of the metrics that are a mean over items.

    Raises:
        UserError: there are no items.
    """
    if not answers.references:
        raise UserError("nothing to score: the benchmark has no held-out records; raise its task's `heldout`")
    scores: Scores = {"n": len(answers.references)}
    values: dict[Metric, list[float]] = {}
    for metric in metrics:
        try:
            computed, of_items = _score(metric, answers)
        except NotRunError as error:
            scores[f"{metric}_not_run"] = str(error)
            continue
        if odd := [
            key for key, value in computed.items() if isinstance(value, float) and not isfinite(value)
        ]:
            scores[f"{metric}_not_run"] = f"{odd[0]} is {computed[odd[0]]}, no finite number"
            continue
        scores |= computed
        if of_items is not None:
            values[metric] = of_items
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in scores.items()}
    return rounded, values


def category_values(metric: Metric, answers: Answers) -> dict[str, float] | None:
    """Category -> 0 to 1, of a metric that is a mean over categories; None of any other."""
    return _OF_CATEGORIES[metric](answers) if metric in _OF_CATEGORIES else None


def corpus_score(metric: Metric, answers: Answers) -> CorpusScore | None:
    """How a statistic of all items is computed; None for a metric of another kind."""
    return _OF_ALL[metric](answers) if metric in _OF_ALL else None


def _score(metric: Metric, answers: Answers) -> tuple[Scores, list[float] | None]:
    if metric == "pass_at_k":
        return program_metrics.pass_at_k(answers)
    if metric in _OF_ITEMS or metric in answers.own_metrics:
        own = answers.own_metrics.get(metric)
        values = _OF_ITEMS[metric](answers) if own is None else own_values(metric, own, answers)
        return mean(metric, values), values
    if metric in _OF_CATEGORIES:
        of_categories = _OF_CATEGORIES[metric](answers)
        return mean(metric, list(of_categories.values())) | {f"{metric}_n": len(of_categories)}, None
    corpus = _OF_ALL[metric](answers)
    items = len(answers.references)
    scores: Scores = {metric: corpus.statistic(np.arange(items))}
    if corpus.resamples:
        scores[f"{metric}_stderr"] = resampled(corpus.statistic, items, corpus.resamples)
    return scores | corpus.beside, None
