"""Step `baselines*`: scores of chance, the most frequent answer and classical models on the same records.

Owns the choice of baselines for a benchmark, their training data (the training pairs of the tasks that the
model itself was trained on) and the result's form. The classical models are in `classical.py`; metrics and
the extraction of answers are the same as for a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from string import Formatter
from typing import TypedDict

import pyarrow.parquet as pq

from openba.artifacts import Build
from openba.evaluate.answers import Scores
from openba.evaluate.classical import (
    Examples,
    copied_question,
    logistic_regression,
    most_frequent,
    nearest_answer,
    tagged_entities,
    word_by_word,
)
from openba.evaluate.items import AnsweredItem, HeldOutRecord
from openba.evaluate.metrics import score_answers
from openba.evaluate.run import extract_answers
from openba.recipes.data import TaskRecipe
from openba.recipes.evaluate import BaselinesStep, BenchmarkRecipe, Metric

MOST_FREQUENT = "most frequent answer"
_MAX_PAIRS = 50_000
"""First training pairs of a task that are used: TF-IDF of as many takes some 2 GB."""
_MAX_LABELS = 1000
_MIN_PAIRS_PER_LABEL = 10
"""Mean repetitions from which the answers of a task count as labels."""
_MAX_WORD_BY_WORD_CHARACTERS = 80
"""Mean length of questions and of answers up to which they are translated word by word."""
_CONSTANT_FIELDS = ("labels", "examples")
"""Fields of a prompt that are not part of the question."""
_LABEL_METRICS: frozenset[Metric] = frozenset({"accuracy", "exact_match", "normalised_match"})
_MODEL_METRICS: frozenset[Metric] = frozenset({"mauve", "sim", "pass_at_k", "perplexity"})
"""Metrics that need a further model, a sandbox or the model's own losses."""

Method = Callable[[Examples, Sequence[str]], list[str]]
"""Function of training pairs and questions that returns one answer per question."""


class BaselineResult(TypedDict):
    """Baselines of one benchmark."""

    trained_on: int
    """Number of training pairs."""
    chance: dict[str, float]
    """Metric -> score in percent, where answers are chosen."""
    baselines: dict[str, Scores]
    """Name of a baseline -> scores in the form of a model's."""


def build(context: Build) -> dict[str, dict[str, BaselineResult]]:
    """Train and score every baseline of every benchmark.

    Returns:
        Facts: `benchmarks`: name -> `BaselineResult`.
    """
    recipe: BaselinesStep = context.recipe
    results = {}
    for name, benchmark in recipe.benchmarks.items():
        table = pq.read_table(context.inputs[f"task-{name}"] / "heldout.parquet")
        records = table.slice(0, benchmark.items).to_pylist()
        examples = _read_examples(benchmark.task, recipe.trained[name], context.inputs)
        results[name] = _score_baselines(benchmark, records, examples)
    return {"benchmarks": results}


def _read_examples(task: TaskRecipe, trained_tasks: Sequence[str], inputs: Mapping[str, Path]) -> Examples:
    """Return the training pairs of some tasks, whose prompts are worded like the benchmark's."""
    pairs = []
    for name in trained_tasks:
        table = pq.read_table(inputs[f"task-{name}"] / "train.parquet", columns=["input", "target"])
        pairs += table.slice(0, _MAX_PAIRS).to_pylist()
    questions = [question_of(pair["input"], task) for pair in pairs]
    return Examples(questions, [pair["target"] for pair in pairs])


def _score_baselines(
    benchmark: BenchmarkRecipe, records: Sequence[HeldOutRecord], examples: Examples
) -> BaselineResult:
    metrics = [metric for metric in benchmark.metrics if metric not in _MODEL_METRICS]
    labels = _find_labels(examples)
    questions = [question_of(record["input"], benchmark.task) for record in records]
    scores: dict[str, Scores] = {}
    if metrics and examples.answers:
        for name, method in _select_methods(benchmark, examples, labels).items():
            answers = method(examples, questions)
            items: list[AnsweredItem] = [
                {**record, "output": answer, "attempts": [], "scores": []}  # type: ignore[typeddict-item]
                for record, answer in zip(records, answers, strict=True)
            ]
            scores[name] = score_answers(metrics, extract_answers(benchmark, items))
    return {
        "trained_on": len(examples.answers),
        "chance": _chance_scores(benchmark, records, labels),
        "baselines": scores,
    }


def _find_labels(examples: Examples) -> list[str]:
    """Return the different answers of the training pairs if they are few and repeated; else none."""
    labels = sorted(set(examples.answers))
    # An answer set that grows with the pairs, such as translations, is no set of labels.
    is_repeated = len(labels) * _MIN_PAIRS_PER_LABEL <= len(examples.answers)
    return labels if is_repeated and len(labels) <= _MAX_LABELS else []


def _select_methods(
    benchmark: BenchmarkRecipe, examples: Examples, labels: Sequence[str]
) -> dict[str, Method]:
    """Return the baselines, by name, that can give this benchmark's kind of answer."""
    methods: dict[str, Method] = {MOST_FREQUENT: most_frequent}
    if "entity_f1" in benchmark.metrics:
        return methods | {"maximum-entropy tagger": tagged_entities}
    if labels:
        return methods | {"TF-IDF, logistic regression": logistic_regression}
    methods |= {"nearest training record": nearest_answer, "copy of the question": copied_question}
    mean_lengths = [fmean(map(len, texts)) for texts in (examples.questions, examples.answers)]
    if max(mean_lengths) <= _MAX_WORD_BY_WORD_CHARACTERS:
        methods |= {"word by word (IBM Model 1)": partial(word_by_word, benchmark.language)}
    return methods


def _chance_scores(
    benchmark: BenchmarkRecipe, records: Sequence[HeldOutRecord], labels: Sequence[str]
) -> dict[str, float]:
    """Return the expected score of a random choice or label, in percent, by metric of right answers."""
    choice_counts = [len(record["choices"]) or len(labels) for record in records]
    # Some records have free answers, which cannot be guessed.
    if not all(choice_counts):
        return {}
    expected = round(100 * fmean(1 / choice_count for choice_count in choice_counts), 4)
    return {metric: expected for metric in benchmark.metrics if metric in _LABEL_METRICS}


def question_of(prompt: str, task: TaskRecipe) -> str:
    """Return a prompt without its template's own words; the whole prompt if no template matches it."""
    for turn in task.templates:
        # Fields are read back by turning the template into a regular expression.
        pattern = ""
        field_names = []
        for literal, field_name, _, _ in Formatter().parse(turn.input.strip()):
            pattern += re.escape(literal)
            if field_name is not None:
                pattern += "(.*)"
                field_names.append(re.split(r"[.\[]", field_name)[0])
        if match := re.fullmatch(pattern, prompt.strip(), re.DOTALL):
            field_texts = zip(field_names, match.groups(), strict=True)
            return "\n".join(text for name, text in field_texts if name not in _CONSTANT_FIELDS)
    return prompt
