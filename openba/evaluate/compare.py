"""Comparison of two evaluations: differences, their significance, and what makes scores incomparable.

Owns the choice of the compared score of a benchmark, the pairing of items by their ids, and the differences
of two declarations. The tests are in `significance.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

import pyarrow.parquet as pq

from openba.config import flatten
from openba.evaluate.items import AnsweredItem
from openba.evaluate.results import BenchmarkResult, read_results
from openba.recipes.evaluate import LOWER_IS_BETTER, BenchmarkRecipe, Metric, is_mean_of_items, score_key

# Imported late at run time: loading it takes as long as the metrics' libraries.
if TYPE_CHECKING:
    from openba.evaluate.significance import PairedDifference

Evaluation = tuple[dict[str, BenchmarkResult], Path]
"""Results by benchmark, and the folder of their answers."""

_IDENTITY_KEYS = ("n", "prefix", "encoder_length", "records", "scoring")
"""Keys of a result, beside its declaration, that two comparable scores share."""
_LEGACY_IDENTITY_KEYS = ("version", "method", "n", "licence")
"""The same for results written before they held their declaration."""
_EXTRA_SUFFIXES = ("_stderr", "_signature", "_not_run", "_n", "_unreadable", "_complete", "_outcomes")
"""Endings of keys in a result's scores that are no metric."""


class ComparedScore(TypedDict):
    """One side's score."""

    metric: str
    score: float
    stderr: float
    n: int


class ComparisonRow(TypedDict):
    """Comparison of one benchmark; keys from `difference` on if both evaluations have a common metric."""

    benchmark: str
    one: ComparedScore | None
    other: ComparedScore | None
    notes: list[str]
    """What was not run, and why."""
    lower_is_better: NotRequired[bool]
    changed: NotRequired[list[str]]
    """Fields of declaration and records that differ."""
    changes: NotRequired[dict[str, list[object]]]
    """Their two values."""
    difference: NotRequired[float]
    """Other minus one."""
    stderr: NotRequired[float]
    interval: NotRequired[list[float]]
    """95 % interval."""
    p: NotRequired[float | None]
    test: NotRequired[str]
    paired: NotRequired[bool]
    """Whether the test is on the items that both answered."""
    items: NotRequired[int | None]


class _Side(NamedTuple):
    """One evaluation of a benchmark."""

    result: BenchmarkResult | None
    metric_keys: dict[Metric, str]
    """Metric -> key of its score, in the declared order, of those with a value."""
    answers_file: Path


def compare(first_folder: Path, second_folder: Path) -> list[ComparisonRow]:
    """Return a row for each benchmark of either folder; see `compare_results`.

    Raises:
        UserError: a folder has no results.
    """
    return compare_results(
        (read_results(first_folder)["benchmarks"], first_folder),
        (read_results(second_folder)["benchmarks"], second_folder),
    )


def compare_results(first_evaluation: Evaluation, second_evaluation: Evaluation) -> list[ComparisonRow]:
    """Return a row for each benchmark of either evaluation.

    Compares by the first declared metric that both have: the declared average, where that is over categories.
    """
    names = dict.fromkeys([*first_evaluation[0], *second_evaluation[0]])
    return [
        _compare_benchmark(name, _side_of(name, first_evaluation), _side_of(name, second_evaluation))
        for name in names
    ]


def _side_of(name: str, evaluation: Evaluation) -> _Side:
    results, folder = evaluation
    result = results.get(name)
    return _Side(result, _metric_keys(result), folder / f"{name}.parquet")


def _compare_benchmark(name: str, first_side: _Side, second_side: _Side) -> ComparisonRow:
    notes = list(dict.fromkeys([*_not_run_notes(first_side.result), *_not_run_notes(second_side.result)]))
    common_metrics = [metric for metric in first_side.metric_keys if metric in second_side.metric_keys]
    if not common_metrics:
        return {
            "benchmark": name,
            "one": _first_score(first_side),
            "other": _first_score(second_side),
            "notes": notes,
        }
    metric = common_metrics[0]
    assert first_side.result is not None
    assert second_side.result is not None
    one_score = _score_of(first_side.result, first_side.metric_keys[metric], metric)
    other_score = _score_of(second_side.result, second_side.metric_keys[metric], metric)
    changes = _changed_fields(first_side.result, second_side.result)
    row: ComparisonRow = {
        "benchmark": name,
        "one": one_score,
        "other": other_score,
        "lower_is_better": metric in LOWER_IS_BETTER,
        "changed": list(changes),
        "changes": changes,
        "notes": notes,
    }
    tested = _test_paired(metric, first_side, second_side)
    if tested is None:
        _add_unpaired_test(row, one_score, other_score)
    else:
        row["difference"] = tested.difference
        row["stderr"] = tested.stderr
        row["interval"] = list(tested.interval)
        row["p"] = tested.p
        row["test"] = tested.test
        row["items"] = tested.items
        row["paired"] = True
    return row


def _metric_keys(result: BenchmarkResult | None) -> dict[Metric, str]:
    """Return metric -> key of its score, of those with a value, in the declared order."""
    if not result or "error" in result:
        return {}
    scores = result["scores"]
    declaration = result.get("declaration")
    # Results written before declarations were recorded: every number but the additional ones is a metric.
    if declaration is None:
        metric_keys = {key: key for key in scores if key != "n" and not key.endswith(_EXTRA_SUFFIXES)}
    else:
        metric_keys = {metric: score_key(metric, declaration["k"]) for metric in declaration["metrics"]}
        if declaration["average"] == "category":
            metric_keys[declaration["metrics"][0]] = "average"
    return {metric: key for metric, key in metric_keys.items() if isinstance(scores.get(key), int | float)}


def _not_run_notes(result: BenchmarkResult | None) -> Iterator[str]:
    if result is None:
        yield "run for one only"
    elif "error" in result:
        yield f"not run: {result['error']}"
    else:
        for key, reason in result["scores"].items():
            if key.endswith("_not_run"):
                yield f"{key.removesuffix('_not_run')} not run: {reason}"


def _first_score(side: _Side) -> ComparedScore | None:
    """Return the score by the first metric that has one."""
    if not side.result or not side.metric_keys:
        return None
    metric, key = next(iter(side.metric_keys.items()))
    return _score_of(side.result, key, metric)


def _score_of(result: BenchmarkResult, key: str, metric: Metric) -> ComparedScore:
    scores = result["scores"]
    return {
        "metric": f"{metric}, average over categories" if key == "average" else metric,
        "score": float(scores[key]),
        "stderr": float(scores.get(f"{key}_stderr") or 0.0),
        "n": result["n"],
    }


def _changed_fields(first_result: BenchmarkResult, second_result: BenchmarkResult) -> dict[str, list[object]]:
    """Return field -> its two values, of all that makes two scores incomparable."""
    fields_by_side: list[dict[str, object]] = []
    for result in (first_result, second_result):
        if "declaration" in first_result and "declaration" in second_result:
            fields = flatten(result["declaration"]) | {key: result.get(key) for key in _IDENTITY_KEYS}
        else:
            # One side has no declaration, so only the keys that both have always had are compared.
            fields = {key: result.get(key) for key in _LEGACY_IDENTITY_KEYS}
            fields["declaration"] = "recorded" if "declaration" in result else "not recorded"
        fields_by_side.append(fields)
    one_fields, other_fields = fields_by_side
    return {
        key: [one_fields.get(key), other_fields.get(key)]
        for key in dict.fromkeys([*one_fields, *other_fields])
        if one_fields.get(key) != other_fields.get(key)
    }


def _add_unpaired_test(row: ComparisonRow, first_score: ComparedScore, second_score: ComparedScore) -> None:
    """Add the difference of two scores of different items, tested by their standard errors."""
    from scipy.stats import norm

    difference = second_score["score"] - first_score["score"]
    # Independent samples: variances add, and the difference is approximately normal.
    stderr = (first_score["stderr"] ** 2 + second_score["stderr"] ** 2) ** 0.5
    row["difference"] = round(difference, 4)
    row["stderr"] = round(stderr, 4)
    row["interval"] = [round(difference - 1.96 * stderr, 4), round(difference + 1.96 * stderr, 4)]
    row["p"] = float(f"{2 * norm.sf(abs(difference) / stderr):.4g}") if stderr else None
    row["test"] = "normal, not paired"
    row["paired"] = False
    row["items"] = None


def _test_paired(metric: Metric, first_side: _Side, second_side: _Side) -> PairedDifference | None:
    """Return the difference on the items that both answered; None if they cannot be paired."""
    from openba.evaluate import significance

    assert first_side.result is not None
    assert second_side.result is not None
    if "declaration" not in first_side.result or "declaration" not in second_side.result:
        return None
    if not first_side.answers_file.is_file() or not second_side.answers_file.is_file():
        return None
    one_recipe = BenchmarkRecipe.model_validate(first_side.result["declaration"])
    other_recipe = BenchmarkRecipe.model_validate(second_side.result["declaration"])
    one_items, other_items = _shared_items(first_side.answers_file, second_side.answers_file)
    if len(one_items) < 2 or one_recipe.average != other_recipe.average:
        return None
    by_category = one_recipe.average == "category"
    one_verdicts = [item["verdict"] for item in one_items]
    other_verdicts = [item["verdict"] for item in other_items]
    is_first_metric = one_recipe.metrics[0] == metric and other_recipe.metrics[0] == metric
    if is_first_metric and None not in (*one_verdicts, *other_verdicts):
        categories = [item["category"] for item in one_items] if by_category else None
        return significance.compare_values(one_verdicts, other_verdicts, categories)  # type: ignore[arg-type]
    # Of MAUVE there is no bootstrap, and averages over categories are recorded for the first metric only.
    if by_category or metric == "mauve":
        return None
    return _test_scored_again(metric, (one_recipe, one_items), (other_recipe, other_items))


def _test_scored_again(
    metric: Metric,
    first_answered: tuple[BenchmarkRecipe, list[AnsweredItem]],
    second_answered: tuple[BenchmarkRecipe, list[AnsweredItem]],
) -> PairedDifference | None:
    """Score both sides' answers again by a metric whose item values are not recorded, and compare."""
    from openba.evaluate import significance
    from openba.evaluate.metrics import category_values, corpus_score, score_items
    from openba.evaluate.run import extract_answers

    one_answers = extract_answers(*first_answered)
    other_answers = extract_answers(*second_answered)
    # The two left out need a sandbox and a further model.
    if is_mean_of_items(metric) and metric not in ("pass_at_k", "sim"):
        one_values = score_items([metric], one_answers)[1][metric]
        other_values = score_items([metric], other_answers)[1][metric]
        return significance.compare_values(one_values, other_values)
    one_categories = category_values(metric, one_answers) or {}
    other_categories = category_values(metric, other_answers) or {}
    if names := [name for name in one_categories if name in other_categories]:
        return significance.compare_values(
            [one_categories[name] for name in names], [other_categories[name] for name in names]
        )
    one_corpus = corpus_score(metric, one_answers)
    other_corpus = corpus_score(metric, other_answers)
    if one_corpus is None or other_corpus is None:
        return None
    return significance.compare_statistics(
        one_corpus.statistic, other_corpus.statistic, len(one_answers.references)
    )


def _shared_items(first_file: Path, second_file: Path) -> tuple[list[AnsweredItem], list[AnsweredItem]]:
    """Return the items of both files with the same id and references, in the order of the first."""
    one_items: list[AnsweredItem] = pq.read_table(first_file).to_pylist()
    other_items: list[AnsweredItem] = pq.read_table(second_file).to_pylist()
    other_by_id = {item["id"]: item for item in other_items}
    # Equal references, since another version of a data set may reuse the ids.
    shared = [
        item
        for item in one_items
        if item["id"] in other_by_id and item["references"] == other_by_id[item["id"]]["references"]
    ]
    return shared, [other_by_id[item["id"]] for item in shared]
