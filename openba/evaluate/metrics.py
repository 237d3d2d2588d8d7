"""Scores of predictions against references, from the field's libraries, in percent.

Owns the table of metrics and the kind of each: a mean over items, a mean over categories, or a statistic of
all items. Generates nothing and reads no files.
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
from openba.evaluate.answers import (
    Answers,
    CorpusScore,
    Language,
    NotRunError,
    Scores,
    bootstrap_stderr,
    mean_score,
)
from openba.evaluate.user_metrics import compute_user_metric
from openba.recipes.evaluate import Metric

_ITEM_METRICS: dict[Metric, Callable[[Answers], list[float]]] = {
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
"""Means over items, each 0 to 1."""

_CATEGORY_METRICS: dict[Metric, Callable[[Answers], dict[str, float]]] = {
    "gender_parity": label_metrics.gender_parity,
    "question_exact_match": label_metrics.question_exact_match,
}
"""Means over categories, each 0 to 1."""

_CORPUS_METRICS: dict[Metric, Callable[[Answers], CorpusScore]] = {
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
    reference_lists = [(text,) if isinstance(text, str) else text for text in references]
    categories = [""] * len(reference_lists)
    return score_answers(metrics, Answers(list(predictions), reference_lists, language, categories))


def score_answers(metrics: Sequence[Metric], answers: Answers) -> Scores:
    """Return all metrics of the answers; see `score_items`."""
    return score_items(metrics, answers)[0]


def score_items(metrics: Sequence[Metric], answers: Answers) -> tuple[Scores, dict[Metric, list[float]]]:
    """Return all metrics of the answers, and the value of each item.

    Returns:
        Scores: for each metric its value (0 to 100, but perplexity) and `METRIC_stderr`: of the mean where
        the score is a mean over items or categories, from a bootstrap over items otherwise.
        `METRIC_signature` says how sacreBLEU computed it, `entity_f1_unreadable` is the share of predictions
        that are no entity list, `n` the number of items. `METRIC_not_run` says why there is no value.
        Item values: metric -> 0 to 1 for each item, of the metrics that are a mean over items.

    Raises:
        UserError: there are no items.
    """
    if not answers.references:
        raise UserError("nothing to score: the benchmark has no held-out records; raise its task's `heldout`")
    scores: Scores = {"n": len(answers.references)}
    item_values: dict[Metric, list[float]] = {}
    for metric in metrics:
        try:
            metric_scores, metric_values = _compute_metric(metric, answers)
        except NotRunError as error:
            scores[f"{metric}_not_run"] = str(error)
            continue
        not_finite = [
            key for key, value in metric_scores.items() if isinstance(value, float) and not isfinite(value)
        ]
        if not_finite:
            key = not_finite[0]
            # Left out of the scores: results.json is strict JSON, which has no NaN and no infinity.
            scores[f"{metric}_not_run"] = f"{key} is {metric_scores[key]}, no finite number"
            continue
        scores |= metric_scores
        if metric_values is not None:
            item_values[metric] = metric_values
    # Four decimals of a percent point are far below any standard error.
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in scores.items()}
    return rounded, item_values


def category_values(metric: Metric, answers: Answers) -> dict[str, float] | None:
    """Return category -> 0 to 1 of a metric that is a mean over categories; None for any other."""
    return _CATEGORY_METRICS[metric](answers) if metric in _CATEGORY_METRICS else None


def corpus_score(metric: Metric, answers: Answers) -> CorpusScore | None:
    """Return the statistic of a metric over all items; None for a metric of another kind."""
    return _CORPUS_METRICS[metric](answers) if metric in _CORPUS_METRICS else None


def _compute_metric(metric: Metric, answers: Answers) -> tuple[Scores, list[float] | None]:
    """Return a metric's scores, and its item values if it is a mean over items."""
    if metric == "pass_at_k":
        return program_metrics.pass_at_k(answers)
    if metric in answers.user_metrics:
        item_values = compute_user_metric(metric, answers.user_metrics[metric], answers)
        return mean_score(metric, item_values), item_values
    if metric in _ITEM_METRICS:
        item_values = _ITEM_METRICS[metric](answers)
        return mean_score(metric, item_values), item_values
    if metric in _CATEGORY_METRICS:
        values_by_category = _CATEGORY_METRICS[metric](answers)
        category_scores = mean_score(metric, list(values_by_category.values()))
        return category_scores | {f"{metric}_n": len(values_by_category)}, None
    corpus = _CORPUS_METRICS[metric](answers)
    item_count = len(answers.references)
    scores: Scores = {metric: corpus.statistic(np.arange(item_count))}
    if corpus.resamples:
        scores[f"{metric}_stderr"] = bootstrap_stderr(corpus.statistic, item_count, corpus.resamples)
    return scores | corpus.extra_scores, None
