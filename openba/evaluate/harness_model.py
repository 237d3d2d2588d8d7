"""Functions named in the exported tasks' YAML: prompts, scores, aggregations; and `--model openba`.

lm-eval 0.4.13 looks for no plugins, but it imports what a task's file names before it looks for the model.
So importing this module registers the model, and plain `lm_eval --model openba --tasks FILE` finds both.
Answers are extracted and scored by the functions of the native evaluation, from the declaration beside the
exported items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from openba.errors import UserError
from openba.evaluate.grouping import CategoryScore, average_groups
from openba.evaluate.harness import ExportedItem, register
from openba.evaluate.items import AnsweredItem
from openba.evaluate.metrics import score_answers, score_items
from openba.evaluate.run import extract_answers
from openba.recipes.evaluate import BenchmarkRecipe, Metric, is_mean_of_items, score_key

register()

Likelihood = Sequence[float]
"""Log-likelihood in nats, whether greedy decoding agrees, and, of `--model openba` only, number of tokens."""


def prompt(item: ExportedItem) -> str:
    """Return the prompt of an item; `doc_to_text` of every exported task."""
    return str(item["input"])


def process_results(item: ExportedItem, results: Sequence[str | Likelihood]) -> dict[str, object]:
    """Return the scores of one item: metric -> 0 to 1, or the item if the metric's aggregation needs it.

    Args:
        item: a line of the exported items.
        results: of lm-eval: the text written, or one `Likelihood` per choice.
    """
    benchmark = read_declaration(item["declaration"])
    answered: AnsweredItem = {**item, "output": "", "scores": [], "attempts": []}  # type: ignore[typeddict-item]
    if benchmark.method == "generate":
        answered["output"] = str(results[0])
    elif benchmark.method == "likelihood":
        answered["scores"] = _loss_and_tokens(results[0])  # type: ignore[arg-type]
    else:
        choice_scores = [
            _mean_log_likelihood(result, choice)  # type: ignore[arg-type]
            for result, choice in zip(results, item["choices"], strict=True)
        ]
        answered["scores"] = choice_scores
        answered["output"] = item["choices"][choice_scores.index(max(choice_scores))]
    # Metrics that are no mean over items get the item itself, and are computed by their aggregation.
    aggregated = aggregated_metrics(benchmark)
    item_metrics = [metric for metric in exported_metrics(benchmark) if metric not in aggregated]
    answers = extract_answers(benchmark, [answered])
    item_values = score_items(item_metrics, answers)[1] if item_metrics else {}
    scores: dict[str, object] = {
        score_key(metric, benchmark.k): values[0] for metric, values in item_values.items()
    }
    scores |= dict.fromkeys(aggregated, answered)
    if benchmark.average == "category" and benchmark.metrics[0] in item_values:
        scores["average"] = (answered["category"], item_values[benchmark.metrics[0]][0])
    return scores


def exported_metrics(benchmark: BenchmarkRecipe) -> list[Metric]:
    """Return the metrics that a task of lm-eval can have: all that compare without a further model."""
    return [metric for metric in benchmark.metrics if metric not in ("mauve", "sim")]


def aggregated_metrics(benchmark: BenchmarkRecipe) -> list[Metric]:
    """Return those of them that are no mean over items."""
    return [metric for metric in exported_metrics(benchmark) if not is_mean_of_items(metric)]


# lm-eval calls `process_results` for each item, and the file is the same for all items of a task.
@lru_cache
def read_declaration(path: str) -> BenchmarkRecipe:
    """Return the benchmark that the items were exported from."""
    return BenchmarkRecipe.model_validate_json(Path(path).read_text(encoding="utf-8"))


def average(category_values: Sequence[tuple[str, float]]) -> float:
    """Mean over categories of the mean over a category's items, 0 to 1."""
    values_by_category: dict[str, list[float]] = {}
    for category, value in category_values:
        values_by_category.setdefault(category, []).append(value)
    category_scores = {
        category: CategoryScore(100 * sum(values) / len(values), len(values))
        for category, values in values_by_category.items()
    }
    return average_groups(category_scores, {}, "category")["all"]["score"] / 100


def __getattr__(name: str) -> Callable[[Sequence[AnsweredItem]], float]:
    """Return `aggregate_METRIC`: the aggregation of a metric that is no mean over items."""
    metric = name.removeprefix("aggregate_")
    if metric == name:
        raise AttributeError(name)

    def aggregate(items: Sequence[AnsweredItem]) -> float:
        benchmark = read_declaration(items[0]["declaration"])  # type: ignore[typeddict-item]
        scores = score_answers([metric], extract_answers(benchmark, items))
        return float(scores.get(metric, float("nan")))

    return aggregate


def _loss_and_tokens(result: Likelihood) -> list[float]:
    if len(result) < 3:
        raise UserError("perplexity a token needs the number of tokens, which only --model openba reports")
    return [-float(result[0]), float(result[2])]


def _mean_log_likelihood(result: Likelihood, choice: str) -> float:
    """Return the log-likelihood per token; per character for a model that does not return the token count."""
    # Backends of lm-eval return log-likelihood and greedy agreement only.
    unit_count = result[2] if len(result) > 2 else len(choice)
    return float(result[0]) / max(unit_count, 1)
