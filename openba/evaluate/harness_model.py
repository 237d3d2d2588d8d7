"""What the exported tasks' YAML names: prompts, scores of items and of all items, and `--model openba`.

lm-eval 0.4.13 looks for no plugins, but it imports what a task's file names before it looks for the model.
So importing this registers the model, and plain `lm_eval --model openba --tasks FILE` finds both. Answers are
read and scored by the functions of the native evaluation, from the declaration beside the exported items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from openba.errors import UserError
from openba.evaluate.grouping import Score, grouped
from openba.evaluate.harness import register
from openba.evaluate.metrics import score_answers, score_items
from openba.evaluate.run import read_answers
from openba.recipes.evaluate import BenchmarkRecipe, Metric, is_mean_of_items, score_key

register()


def prompt(item: dict[str, Any]) -> str:
    """The `doc_to_text` of every exported task: the item's text as our evaluation renders it."""
    return str(item["input"])


def process_results(item: dict[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """The verdict of one item: metric -> 0 to 1, or what the metric's aggregation needs of the item.

    Args:
        item: a line of the exported items.
        results: of lm-eval, log-likelihoods of each choice or the text written. A third element beside a
            log-likelihood is its number of tokens, which `--model openba` tells.
    """
    benchmark = declaration(item["declaration"])
    answered = {**item, "output": "", "scores": [], "attempts": []}
    if benchmark.method == "generate":
        answered["output"] = str(results[0])
    elif benchmark.method == "likelihood":
        answered["scores"] = _loss(results[0])
    else:
        scores = [
            _mean_score(result, choice) for result, choice in zip(results, item["choices"], strict=True)
        ]
        answered["scores"] = scores
        answered["output"] = item["choices"][scores.index(max(scores))]
    of_items = [metric for metric in exported_metrics(benchmark) if metric not in of_all(benchmark)]
    answers = read_answers(benchmark, [answered])
    values = score_items(of_items, answers)[1] if of_items else {}
    values_by_metric: dict[str, Any] = {
        score_key(metric, benchmark.k): value[0] for metric, value in values.items()
    }
    values_by_metric |= dict.fromkeys(of_all(benchmark), answered)
    if benchmark.average == "category" and benchmark.metrics[0] in values:
        values_by_metric["average"] = (answered["category"], values[benchmark.metrics[0]][0])
    return values_by_metric


def exported_metrics(benchmark: BenchmarkRecipe) -> list[Metric]:
    """Metrics that a task of lm-eval can have: all but those that compare by a further model."""
    return [metric for metric in benchmark.metrics if metric not in ("mauve", "sim")]


def of_all(benchmark: BenchmarkRecipe) -> list[Metric]:
    """Those of them that are no mean over items."""
    return [metric for metric in exported_metrics(benchmark) if not is_mean_of_items(metric)]


@lru_cache
def declaration(path: str) -> BenchmarkRecipe:
    """The benchmark that the items were exported from."""
    return BenchmarkRecipe.model_validate_json(Path(path).read_text(encoding="utf-8"))


def average(pairs: Sequence[tuple[str, float]]) -> float:
    """Mean over categories of the mean over a category's items, 0 to 1."""
    values: dict[str, list[float]] = {}
    for category, value in pairs:
        values.setdefault(category, []).append(value)
    scores = {name: Score(100 * sum(of) / len(of), len(of)) for name, of in values.items()}
    return float(grouped(scores, {}, "category")["all"]["score"]) / 100


def __getattr__(name: str) -> Callable[[Sequence[dict[str, Any]]], float]:
    """`aggregate_METRIC`: the aggregation of a metric that is no mean over items."""
    metric = name.removeprefix("aggregate_")
    if metric == name:
        raise AttributeError(name)

    def aggregate(items: Sequence[dict[str, Any]]) -> float:
        scores = score_answers([metric], read_answers(declaration(items[0]["declaration"]), items))
        return float(scores.get(metric, float("nan")))

    return aggregate


def _loss(result: Sequence[Any]) -> list[float]:
    if len(result) < 3:
        raise UserError("perplexity a token needs the number of tokens, which only --model openba tells")
    return [-float(result[0]), float(result[2])]


def _mean_score(result: Sequence[Any], choice: str) -> float:
    """Log-likelihood a token; of a model that does not tell the tokens, a character."""
    length = result[2] if len(result) > 2 else len(choice)
    return float(result[0]) / max(length, 1)
