"""Step `evaluate-*`: one model answers several benchmarks, and libraries score the answers.

Owns the sequence of a benchmark's evaluation and the form of its result. Records, prompts, choices and
metrics are declared in the benchmarks' YAML; `shards.py` divides the items, `answering.py` gets the model's
answers, `metrics.py` scores them.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from openba.artifacts import Build
from openba.errors import UserError
from openba.evaluate.answers import Answers, mean_score
from openba.evaluate.extraction import extract
from openba.evaluate.grouping import CategoryScore, average_groups
from openba.evaluate.items import ITEM_SCHEMA, AnsweredItem
from openba.evaluate.metrics import score_answers, score_items
from openba.evaluate.results import BenchmarkResult
from openba.evaluate.shards import (
    BenchmarkEvaluation,
    Shard,
    ShardMapper,
    divide_into_shards,
    map_in_process,
    read_shards,
)
from openba.model.files import weights_folder
from openba.recipes.evaluate import SCORING_VERSION, BenchmarkRecipe, EvaluateStep, Metric, score_key


def build(context: Build, mapper: ShardMapper = map_in_process) -> dict[str, BenchmarkResult]:
    """Answer and score every benchmark; answers go to `<benchmark>.parquet`, scores are facts.

    Raises:
        UserError: a benchmark cannot be evaluated, named.
    """
    recipe: EvaluateStep = context.recipe
    evaluations = [
        BenchmarkEvaluation(name, recipe, context.inputs[f"task-{name}"], context.out)
        for name in recipe.benchmarks
    ]
    model_folder = weights_folder(context.inputs["model"], recipe.at)
    results: dict[str, BenchmarkResult] = {}
    for name, result in evaluate_benchmarks(model_folder, evaluations, mapper):
        if isinstance(result, UserError):
            raise UserError(f"benchmark {name}: {result}")
        results[name] = result
    return {"benchmarks": {name: results[name] for name in recipe.benchmarks}}


def evaluate_benchmarks(
    model_folder: Path, evaluations: Sequence[BenchmarkEvaluation], mapper: ShardMapper
) -> Iterator[tuple[str, BenchmarkResult | UserError]]:
    """Yield each benchmark's name with its result or error, as soon as its last shard is answered.

    Shards whose files exist are not answered again. `NAME.parquet` is written to the evaluation's folder.
    """
    pending_shards: list[Shard] = []
    pending_counts: dict[str, int] = {}
    for evaluation in evaluations:
        try:
            shard_numbers = range(len(divide_into_shards(evaluation)))
        except UserError as error:
            yield evaluation.name, error
            continue
        unanswered: list[Shard] = [
            (evaluation, number) for number in shard_numbers if not evaluation.shard_file(number).exists()
        ]
        pending_counts[evaluation.name] = len(unanswered)
        pending_shards += unanswered
        if not unanswered:
            yield evaluation.name, _score_shards(evaluation)
    if not pending_shards:
        return  # a mapper loads the model first, which takes long
    # Of a benchmark with several failed shards only the first error is reported.
    failed_names: set[str] = set()
    for index, error_text in mapper(model_folder, pending_shards):
        evaluation = pending_shards[index][0]
        pending_counts[evaluation.name] -= 1
        if error_text and evaluation.name not in failed_names:
            failed_names.add(evaluation.name)
            yield evaluation.name, UserError(error_text)
        if not pending_counts[evaluation.name] and evaluation.name not in failed_names:
            yield evaluation.name, _score_shards(evaluation)


def _score_shards(evaluation: BenchmarkEvaluation) -> BenchmarkResult | UserError:
    """Return the result of a benchmark with all shards answered; replaces their files by one."""
    items = read_shards(evaluation)
    try:
        result = score_benchmark(evaluation.benchmark, items, evaluation.step.samples)
    except UserError as error:  # such as a machine without a sandbox
        return error
    result |= broken_records(evaluation.task_folder) | _identity(evaluation, items)
    table = pa.Table.from_pylist(items, ITEM_SCHEMA)
    pq.write_table(table, evaluation.out / f"{evaluation.name}.parquet", compression="zstd")
    # Deleted last: after an interruption answers are scored again, not generated again.
    for shard_number in range(len(divide_into_shards(evaluation))):
        evaluation.shard_file(shard_number).unlink()
    return result


def score_benchmark(
    benchmark: BenchmarkRecipe, items: list[AnsweredItem], sample_count: int
) -> BenchmarkResult:
    """Return the result of a benchmark's answered items; sets `answer` and `verdict` in them.

    Args:
        benchmark: the declaration.
        items: in the order of the records.
        sample_count: answers to show in the result.
    """
    answers = extract_answers(benchmark, items)
    scores, item_values = score_items(benchmark.metrics, answers)
    verdicts = item_values.get(benchmark.metrics[0])
    for row, item in enumerate(items):
        item["answer"] = answers.predictions[row]
        item["verdict"] = verdicts[row] if verdicts is not None else None
    result: BenchmarkResult = {
        "language": benchmark.language,
        "method": benchmark.method,
        "version": benchmark.version,
        "licence": benchmark.task.source.licence,
        "paper": benchmark.paper.model_dump() if benchmark.paper else None,
        "n": len(items),
        "scores": scores,
        "counts": _count_irregularities(items, has_output=benchmark.method != "likelihood"),
        "samples": [
            {"input": item["input"][:400], "target": item["target"][:400], "output": item["output"][:400]}
            for item in items[:sample_count]
        ],
    }
    first_key = score_key(benchmark.metrics[0], benchmark.k)
    if first_key in scores and (benchmark.groups or benchmark.average == "category"):
        result |= _score_groups(benchmark, answers, verdicts)
        if benchmark.average == "category":
            overall = result["groups"]["all"]
            scores |= {"average": overall["score"], "average_stderr": overall["stderr"]}
    return result


def extract_answers(benchmark: BenchmarkRecipe, items: Sequence[AnsweredItem]) -> Answers:
    """Return the answers to score, extracted from each output and each attempt."""

    def extract_answer(output: str, item: AnsweredItem) -> str:
        # Without letters among the choices `option_letter` takes A to D.
        letters = [choice for choice in item["choices"] if len(choice) == 1 and choice.isupper()]
        return extract(output, benchmark.extract, benchmark.stop, letters)

    return Answers(
        predictions=[extract_answer(item["output"], item) for item in items],
        references=[item["references"] for item in items],
        language=benchmark.language,
        categories=[item["category"] for item in items],
        positive_label=benchmark.positive,
        attempts=[
            [extract_answer(attempt, item) for attempt in item["attempts"] or [item["output"]]]
            for item in items
        ],
        k=benchmark.k,
        prompts=[item["input"] for item in items],
        losses=[item["scores"] for item in items] if benchmark.method == "likelihood" else (),
        user_metrics=benchmark.own_metrics,
        model_folders={str(metric): folder for metric, folder in benchmark.models.items()},
    )


def _identity(evaluation: BenchmarkEvaluation, items: Sequence[AnsweredItem]) -> BenchmarkResult:
    """Return what two results must share to be comparable: declaration, settings, digest of the records."""
    # Of what was asked, not of the files: results compare if the same records were rendered alike.
    record_digest = hashlib.sha256()
    for item in items:
        record_digest.update(json.dumps([item["id"], item["input"], list(item["references"])]).encode())
    return {
        "declaration": evaluation.benchmark.model_dump(mode="json", exclude={"paper"}),
        "prefix": evaluation.step.prefix,
        "encoder_length": evaluation.step.encoder_length,
        "records": record_digest.hexdigest()[:16],
        "scoring": SCORING_VERSION,
    }


def broken_records(task_folder: Path) -> BenchmarkResult:
    """Return the number of records that the task could not read, and the first of them by name."""
    metadata = pq.read_schema(task_folder / "heldout.parquet").metadata or {}
    first_names = json.loads(metadata.get(b"broken", b"[]"))
    record_count = json.loads(metadata.get(b"discarded", b"{}")).get("broken", 0)
    return {"broken": {"records": record_count, "first": first_names}} if record_count else {}


def _score_groups(
    benchmark: BenchmarkRecipe, answers: Answers, verdicts: Sequence[float] | None
) -> BenchmarkResult:
    """Return the scores of categories and of groups by the first metric."""
    rows_by_category: dict[str, list[int]] = defaultdict(list)
    for row, category in enumerate(answers.categories):
        rows_by_category[category].append(row)
    metric = benchmark.metrics[0]

    def score_rows(rows: list[int]) -> CategoryScore | None:
        if verdicts is None:
            return _score_subset(metric, answers, rows)
        scores = mean_score("score", [verdicts[row] for row in rows])
        return CategoryScore(
            round(float(scores["score"]), 4), len(rows), round(float(scores["score_stderr"]), 4)
        )

    category_scores = {
        name: category_score
        for name, rows in sorted(rows_by_category.items())
        if (category_score := score_rows(rows)) is not None
    }
    groups = average_groups(category_scores, benchmark.groups, benchmark.average)
    if benchmark.average == "item":
        # A group is one sample of items here, so its error is that of all its items together.
        for name, group in groups.items():
            members = benchmark.groups.get(name, rows_by_category)
            group_rows = [row for member in members for row in rows_by_category.get(member, ())]
            if "score" in group and (group_score := score_rows(group_rows)) is not None:
                group["stderr"] = group_score.stderr
    return {"categories": {name: vars(score) for name, score in category_scores.items()}, "groups": groups}


def _score_subset(metric: Metric, answers: Answers, rows: list[int]) -> CategoryScore | None:
    """Return the score of some of the items; None if the metric cannot be computed on them."""
    # Fields without a value per item, such as language and k, stay.
    subset = replace(
        answers,
        predictions=[answers.predictions[row] for row in rows],
        references=[answers.references[row] for row in rows],
        categories=[answers.categories[row] for row in rows],
        attempts=[answers.attempts[row] for row in rows],
        prompts=[answers.prompts[row] for row in rows],
        losses=[answers.losses[row] for row in rows] if answers.losses else (),
    )
    scores = score_answers([metric], subset)
    if metric not in scores:
        return None
    return CategoryScore(float(scores[metric]), len(rows), float(scores.get(f"{metric}_stderr", 0.0)))


def _count_irregularities(items: list[AnsweredItem], has_output: bool) -> Mapping[str, int]:
    """Count cut prompts, unfinished answers and the like by name, where there are any.

    Args:
        items: with answers.
        has_output: whether the method writes text.
    """
    counts = {
        "prompts cut": sum(item["cut"] for item in items),
        "prompts with fewer examples": sum(item["examples_left_out"] > 0 for item in items),
        "examples left out": sum(item["examples_left_out"] for item in items),
        "answers without end": sum(item["unfinished"] for item in items),
        "empty answers": sum(not item["output"].strip() for item in items if has_output),
        "answers not readable": sum(bool(item["output"]) and not item["answer"] for item in items),
    }
    return {name: count for name, count in counts.items() if count}
