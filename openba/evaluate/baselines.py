"""Step `baselines*`: what chance, the commonest answer and classical models score on the same records.

Owns which baselines a benchmark gets, what they are trained on (the training pairs of the tasks that the
model itself was trained on) and the result's form. The classical models are `classical.py`'s; metrics and
the reading of answers are the same as for a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from string import Formatter
from typing import Any

import pyarrow.parquet as pq

from openba.artifacts import Build
from openba.evaluate.classical import (
    Examples,
    copied_question,
    logistic_regression,
    most_frequent,
    nearest_answer,
    tagged_entities,
    word_by_word,
)
from openba.evaluate.metrics import score_answers
from openba.evaluate.run import read_answers
from openba.recipes.data import TaskRecipe
from openba.recipes.evaluate import BaselinesStep, BenchmarkRecipe, Metric

MOST_FREQUENT = "most frequent answer"
_MOST_PAIRS = 50_000
"""Training pairs of a task that are used, the first: TF-IDF of as many takes some 2 GB."""
_MOST_LABELS = 1000
_PAIRS_A_LABEL = 10
"""Answers that recur so often, on average, are labels."""
_SHORT = 80
"""Mean characters of questions and of answers up to which they are translated word by word."""
_NO_QUESTION = ("labels", "examples")
"""Fields of a prompt that are the same, or say nothing, of what is asked."""
_OF_LABELS: frozenset[Metric] = frozenset({"accuracy", "exact_match", "normalised_match"})
_NEEDS_A_MODEL: frozenset[Metric] = frozenset({"mauve", "sim", "pass_at_k", "perplexity"})

Method = Callable[[Examples, Sequence[str]], list[str]]


def build(build: Build) -> dict[str, Any]:
    """Train and score every baseline of every benchmark.

    Returns:
        Facts: `benchmarks`: name -> `trained_on` (pairs), `chance` (metric -> score, where answers are
        chosen) and `baselines`: name -> scores in the form of a model's.
    """
    recipe: BaselinesStep = build.recipe
    measured = {}
    for name, benchmark in recipe.benchmarks.items():
        table = pq.read_table(build.inputs[f"task-{name}"] / "heldout.parquet")
        rows = table.slice(0, benchmark.items).to_pylist()
        examples = _examples(benchmark.task, recipe.trained[name], build.inputs)
        measured[name] = _measured(benchmark, rows, examples)
    return {"benchmarks": measured}


def _examples(task: TaskRecipe, trained: Sequence[str], inputs: Mapping[str, Path]) -> Examples:
    """The training pairs of some tasks, whose prompts are worded as the benchmark's."""
    pairs = [
        row
        for name in trained
        for row in pq.read_table(inputs[f"task-{name}"] / "train.parquet", columns=["input", "target"])
        .slice(0, _MOST_PAIRS)
        .to_pylist()
    ]
    return Examples([question_of(row["input"], task) for row in pairs], [row["target"] for row in pairs])


def _measured(
    benchmark: BenchmarkRecipe, rows: Sequence[dict[str, Any]], examples: Examples
) -> dict[str, Any]:
    metrics = [metric for metric in benchmark.metrics if metric not in _NEEDS_A_MODEL]
    labels = _labels(examples)
    questions = [question_of(row["input"], benchmark.task) for row in rows]
    scores = {}
    for name, method in _methods(benchmark, examples, labels).items() if metrics and examples.answers else ():
        answers = method(examples, questions)
        items = [
            {**row, "output": answer, "attempts": [], "scores": []}
            for row, answer in zip(rows, answers, strict=True)
        ]
        scores[name] = score_answers(metrics, read_answers(benchmark, items))
    return {
        "trained_on": len(examples.answers),
        "chance": _chance(benchmark, rows, labels),
        "baselines": scores,
    }


def _labels(examples: Examples) -> list[str]:
    """The different answers of the training pairs if they are a few that recur; else none."""
    labels = sorted(set(examples.answers))
    recur = len(labels) * _PAIRS_A_LABEL <= len(examples.answers) and len(labels) <= _MOST_LABELS
    return labels if recur else []


def _methods(benchmark: BenchmarkRecipe, examples: Examples, labels: Sequence[str]) -> dict[str, Method]:
    """Name -> what answers, of the baselines that can give this benchmark's kind of answer."""
    methods: dict[str, Method] = {MOST_FREQUENT: most_frequent}
    if "entity_f1" in benchmark.metrics:
        return methods | {"maximum-entropy tagger": tagged_entities}
    if labels:
        return methods | {"TF-IDF, logistic regression": logistic_regression}
    methods |= {"nearest training record": nearest_answer, "copy of the question": copied_question}
    if max(fmean(map(len, texts)) for texts in (examples.questions, examples.answers)) <= _SHORT:
        methods |= {"word by word (IBM Model 1)": partial(word_by_word, benchmark.language)}
    return methods


def _chance(
    benchmark: BenchmarkRecipe, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> dict[str, float]:
    """Expected score of drawing among the choices or labels, in percent, by metric of right answers."""
    counts = [len(row["choices"]) or len(labels) for row in rows]
    if not all(counts):
        return {}
    expected = round(100 * fmean(1 / count for count in counts), 4)
    return {metric: expected for metric in benchmark.metrics if metric in _OF_LABELS}


def question_of(prompt: str, task: TaskRecipe) -> str:
    """What a prompt asks without the template's own words; the whole prompt if no template gives it."""
    for turn in task.templates:
        pattern, fields = "", []
        for literal, field, _, _ in Formatter().parse(turn.input.strip()):
            pattern += re.escape(literal)
            if field is not None:
                pattern += "(.*)"
                fields.append(re.split(r"[.\[]", field)[0])
        if found := re.fullmatch(pattern, prompt.strip(), re.DOTALL):
            parts = [
                text for field, text in zip(fields, found.groups(), strict=True) if field not in _NO_QUESTION
            ]
            return "\n".join(parts)
    return prompt
