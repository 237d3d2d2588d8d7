"""Scores of predictions against references, from the field's libraries, in percent.

Owns which metric is which function, and what is a mean over items and so has a verdict for each. It
generates nothing and reads no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from openba.errors import UserError
from openba.evaluate import (
    embedding_metrics,
    entity_metrics,
    label_metrics,
    program_metrics,
    text_metrics,
)
from openba.evaluate.answers import Answers, Language, NotRunError, Scores, mean
from openba.recipes.evaluate import Metric

_OF_ITEMS: dict[Metric, Callable[[Answers], list[float]]] = {
    "accuracy": label_metrics.accuracy,
    "call_arguments": program_metrics.call_arguments,
    "exact_match": text_metrics.exact_match,
    "python_syntax": program_metrics.python_syntax,
    "repetition_2": text_metrics.repetition_2,
    "rouge_1": partial(text_metrics.rouge, "rouge1"),
    "rouge_2": partial(text_metrics.rouge, "rouge2"),
    "rouge_l": partial(text_metrics.rouge, "rougeL"),
    "sim": embedding_metrics.similarity,
    "token_f1": text_metrics.token_f1,
}
"""Means of what each item gets, 0 to 1."""

_OF_ALL: dict[Metric, Callable[[Answers], Scores]] = {
    "bleu": partial(text_metrics.bleu, "bleu", 4),
    "bleu_2": partial(text_metrics.bleu, "bleu_2", 2),
    "chrf": text_metrics.chrf,
    "distinct_2": text_metrics.distinct_2,
    "entity_f1": entity_metrics.entity_f1,
    "f1": label_metrics.f1,
    "gender_parity": label_metrics.gender_parity,
    "matthews": label_metrics.matthews,
    "mauve": embedding_metrics.mauve,
    "pass_at_k": program_metrics.pass_at_k,
    "perplexity": label_metrics.perplexity,
    "question_exact_match": label_metrics.question_exact_match,
}


def score(
    metrics: Sequence[Metric],
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    language: Language,
) -> Scores:
    """Score predictions, item by item in the order of the references; see `score_answers`.

    Raises:
        UserError: there are no items.
        ValueError: the lengths differ.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    right = [(text,) if isinstance(text, str) else text for text in references]
    return score_answers(metrics, Answers(list(predictions), right, language, [""] * len(right)))


def score_answers(metrics: Sequence[Metric], answers: Answers) -> Scores:
    """All metrics of the answers.

    Returns:
        For each metric its value (0 to 100, but perplexity) and `METRIC_stderr`: of the mean where the score
        is a mean over items, from a bootstrap over items otherwise. `METRIC_signature` says how sacreBLEU
        computed it, `entity_f1_unreadable` is the share of predictions that are no entity list, `n`
        the number of items. `METRIC_not_run` says why there is no value.

    Raises:
        UserError: there are no items.
    """
    if not answers.references:
        raise UserError("nothing to score: the benchmark has no held-out records; raise its task's `heldout`")
    scores: Scores = {"n": len(answers.references)}
    for metric in metrics:
        try:
            if metric in _OF_ITEMS:
                scores |= mean(metric, _OF_ITEMS[metric](answers))
            else:
                scores |= _OF_ALL[metric](answers)
        except NotRunError as error:
            scores[f"{metric}_not_run"] = str(error)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in scores.items()}


def verdicts(metric: Metric, answers: Answers) -> list[float] | None:
    """What each item gets, 0 to 1; None where the score is not a mean over items."""
    return _OF_ITEMS[metric](answers) if metric in _OF_ITEMS else None
