"""Two evaluations side by side: differences, whether they are more than chance, and what does not compare.

Owns which score of a benchmark is compared, the pairing of items by their ids, and what of two declarations
differs. The tests are `significance.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from openba.config import flatten
from openba.evaluate.results import read_results
from openba.recipes.evaluate import LOWER_IS_BETTER, BenchmarkRecipe, Metric, is_mean_of_items, score_key

if TYPE_CHECKING:  # loading it takes what the metrics' libraries take
    from openba.evaluate.significance import Paired

Result = dict[str, Any]
Evaluation = tuple[dict[str, Result], Path]
"""Results by benchmark, and the folder of their answers."""

_ASKED = ("n", "prefix", "encoder_length", "records", "scoring")
"""What of a result, beside its declaration, decides whether two scores compare."""
_BEFORE_DECLARATIONS = ("version", "method", "n", "licence")
"""The same of results written before they held their declaration."""


def compare(one: Path, other: Path) -> list[dict[str, Any]]:
    """A row for each benchmark of either folder; see `compare_results`.

    Raises:
        UserError: a folder has no results.
    """
    first, second = ((read_results(folder)["benchmarks"], folder) for folder in (one, other))
    return compare_results(first, second)


def compare_results(one: Evaluation, other: Evaluation) -> list[dict[str, Any]]:
    """A row for each benchmark of either evaluation.

    Returns:
        `one` and `other`: metric, score, standard error and number of items, by the first declared metric
        that both have (the declared average, where that is over categories), None if not run. If both
        ran, `difference` (other minus one), its `stderr`, `interval` (95 %), `p` and `test`, on the items
        that both answered if `paired`; `lower_is_better`; `changed`, the fields of declaration and records
        that differ; `changes`, their values. `notes` says what was not run, and why.
    """
    return [_row(name, one, other) for name in dict.fromkeys([*one[0], *other[0]])]


def _row(name: str, one: Evaluation, other: Evaluation) -> dict[str, Any]:
    results = [one[0].get(name), other[0].get(name)]
    metrics = [_metrics(result) for result in results]
    common = [metric for metric in metrics[0] if metric in metrics[1]]
    notes = [note for result in results for note in _not_run(result)]
    if not common:
        alone = [
            _score(r, m, next(iter(m))) if r and m else None for r, m in zip(results, metrics, strict=True)
        ]
        return {"benchmark": name, "one": alone[0], "other": alone[1], "notes": list(dict.fromkeys(notes))}
    metric = common[0]
    assert results[0] is not None
    assert results[1] is not None
    scores = [_score(results[side], metrics[side], metric) for side in (0, 1)]
    changes = _changes(results[0], results[1])
    row = {
        "benchmark": name,
        "one": scores[0],
        "other": scores[1],
        "lower_is_better": metric in LOWER_IS_BETTER,
        "changed": list(changes),
        "changes": changes,
        "notes": list(dict.fromkeys(notes)),
    }
    files = one[1] / f"{name}.parquet", other[1] / f"{name}.parquet"
    return row | (_paired(metric, results[0], results[1], files) or _independent(scores[0], scores[1]))


def _metrics(result: Result | None) -> dict[Metric, str]:
    """Metric -> key of its score, those with a value, in the declared order."""
    if not result or "error" in result:
        return {}
    scores = result["scores"]
    declaration = result.get("declaration")
    if declaration is None:
        suffixes = ("_stderr", "_signature", "_not_run", "_n", "_unreadable", "_complete", "_outcomes")
        declared = {key: key for key in scores if key != "n" and not key.endswith(suffixes)}
    else:
        declared = {m: score_key(m, declaration["k"]) for m in declaration["metrics"]}
        if declaration["average"] == "category":
            declared[declaration["metrics"][0]] = "average"
    return {metric: key for metric, key in declared.items() if isinstance(scores.get(key), int | float)}


def _not_run(result: Result | None) -> Iterator[str]:
    if result is None:
        yield "run for one only"
    elif "error" in result:
        yield f"not run: {result['error']}"
    else:
        for key, reason in result["scores"].items():
            if key.endswith("_not_run"):
                yield f"{key.removesuffix('_not_run')} not run: {reason}"


def _score(result: Result | None, metrics: dict[Metric, str], metric: Metric | None = None) -> dict[str, Any]:
    """The score by a metric, or by the first that there is."""
    assert result is not None
    chosen = next(iter(metrics)) if metric is None else metric
    key, scores = metrics[chosen], result["scores"]
    name = f"{chosen}, average over categories" if key == "average" else chosen
    error = float(scores.get(f"{key}_stderr") or 0.0)
    return {"metric": name, "score": float(scores[key]), "stderr": error, "n": result["n"]}


def _changes(one: Result, other: Result) -> dict[str, list[Any]]:
    """Field -> its two values, of all that makes two scores incomparable."""
    sides = []
    for result in (one, other):
        if "declaration" in one and "declaration" in other:
            fields = flatten(result["declaration"]) | {key: result.get(key) for key in _ASKED}
        else:
            fields = {key: result.get(key) for key in _BEFORE_DECLARATIONS}
            fields["declaration"] = "recorded" if "declaration" in result else "not recorded"
        sides.append(fields)
    fields = dict.fromkeys([*sides[0], *sides[1]])
    return {
        key: [side.get(key) for side in sides] for key in fields if sides[0].get(key) != sides[1].get(key)
    }


def _independent(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The difference of two scores of different items, by their standard errors."""
    from scipy.stats import norm

    difference = other["score"] - one["score"]
    error = (one["stderr"] ** 2 + other["stderr"] ** 2) ** 0.5
    return {
        "difference": round(difference, 4),
        "stderr": round(error, 4),
        "interval": [round(difference - 1.96 * error, 4), round(difference + 1.96 * error, 4)],
        "p": float(f"{2 * norm.sf(abs(difference) / error):.4g}") if error else None,
        "test": "normal, not paired",
        "paired": False,
        "items": None,
    }


def _paired(metric: Metric, one: Result, other: Result, files: tuple[Path, Path]) -> dict[str, Any] | None:
    """The difference on the items that both answered; None if they cannot be paired."""
    from openba.evaluate import significance
    from openba.evaluate.metrics import category_values, corpus_score, score_items
    from openba.evaluate.run import read_answers

    if "declaration" not in one or "declaration" not in other or not all(file.is_file() for file in files):
        return None
    recipes = [BenchmarkRecipe.model_validate(result["declaration"]) for result in (one, other)]
    items = _shared_items(*files)
    if len(items[0]) < 2 or recipes[0].average != recipes[1].average:
        return None
    verdicts = [[item["verdict"] for item in side] for side in items]
    categories = [item["category"] for item in items[0]] if recipes[0].average == "category" else None
    if all(recipe.metrics[0] == metric for recipe in recipes) and None not in (*verdicts[0], *verdicts[1]):
        tested = significance.of_values(verdicts[0], verdicts[1], categories)
    elif categories is not None or metric == "mauve":
        return None
    else:
        answers = [read_answers(recipe, side) for recipe, side in zip(recipes, items, strict=True)]
        if is_mean_of_items(metric) and metric not in (
            "pass_at_k",
            "sim",
        ):  # those two need a sandbox and a model
            values = [score_items([metric], side)[1][metric] for side in answers]
            return _as_row(significance.of_values(values[0], values[1]))
        first, second = (category_values(metric, side) or {} for side in answers)
        corpus = [corpus_score(metric, side) for side in answers]
        if names := [name for name in first if name in second]:
            tested = significance.of_values([first[name] for name in names], [second[name] for name in names])
        elif corpus[0] is not None and corpus[1] is not None:
            tested = significance.of_statistics(corpus[0].statistic, corpus[1].statistic, len(items[0]))
        else:
            return None
    return _as_row(tested)


def _as_row(tested: Paired) -> dict[str, Any]:
    return vars(tested) | {"interval": list(tested.interval), "paired": True}


def _shared_items(one: Path, other: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both files whose id and right answers are the same, in the order of the first."""
    first, second = (pq.read_table(path).to_pylist() for path in (one, other))
    by_id = {row["id"]: row for row in second}
    pairs = [
        (row, by_id[row["id"]])
        for row in first
        if row["id"] in by_id and row["references"] == by_id[row["id"]]["references"]
    ]
    return [row for row, _ in pairs], [row for _, row in pairs]
