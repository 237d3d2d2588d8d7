"""Step `evaluate-*`: one model answers several benchmarks, and libraries score the answers.

Owns what is done until a benchmark has its result, and what is told of it. Which records, prompts, choices
and metrics there are stands in the benchmarks' YAML; how items are divided in `shards.py`, how a model
answers in `answering.py`, scores in `metrics.py`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openba.artifacts import Build
from openba.errors import UserError
from openba.evaluate.answers import Answers
from openba.evaluate.grouping import Score, grouped
from openba.evaluate.metrics import score_answers, verdicts
from openba.evaluate.shards import SAMPLES, Job, Mapper, Part, divided, here, merged
from openba.model.files import weights_folder
from openba.recipes.evaluate import BenchmarkRecipe, EvaluateStep, Metric


def build(build: Build, mapper: Mapper = here) -> dict[str, Any]:
    """Answer and score every benchmark; answers go to `<benchmark>.parquet`, scores are facts.

    Raises:
        UserError: a benchmark cannot be evaluated, named.
    """
    recipe: EvaluateStep = build.recipe
    parts = [Part(name, recipe, build.inputs[f"task-{name}"], build.out) for name in recipe.benchmarks]
    results: dict[str, Any] = {}
    for name, result in evaluated(weights_folder(build.inputs["model"], recipe.at), parts, mapper):
        if isinstance(result, UserError):
            raise UserError(f"benchmark {name}: {result}")
        results[name] = result
    return {"benchmarks": {name: results[name] for name in recipe.benchmarks}}


def evaluated(
    model: Path, parts: Sequence[Part], mapper: Mapper
) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """Each benchmark's name and result, or why there is none, as soon as its last shard is answered.

    Shards that lie there already are not answered again. `NAME.parquet` is written in the part's folder.
    """
    jobs: list[Job] = []
    left: dict[str, int] = {}
    for part in parts:
        try:
            numbers = range(len(divided(part)))
        except UserError as error:
            yield part.name, error
            continue
        todo = [(part, number) for number in numbers if not part.shard(number).exists()]
        left[part.name] = len(todo)
        jobs += todo
        if not todo:
            yield part.name, _scored(part)
    failed: set[str] = set()
    for place, wrong in mapper(model, jobs) if jobs else ():
        part = jobs[place][0]
        left[part.name] -= 1
        if wrong and part.name not in failed:
            failed.add(part.name)
            yield part.name, UserError(wrong)
        if not left[part.name] and part.name not in failed:
            yield part.name, _scored(part)


def _scored(part: Part) -> dict[str, Any] | UserError:
    """The result of a benchmark whose shards are all there; its one file takes their place."""
    items = merged(part)
    try:
        result = judged(part.benchmark, items, part.step.samples) | _left_out(part.task)
    except UserError as error:  # such as a machine without a sandbox
        return error
    pq.write_table(
        pa.Table.from_pylist(items, SAMPLES), part.out / f"{part.name}.parquet", compression="zstd"
    )
    for number in range(len(divided(part))):
        part.shard(number).unlink()
    return result


def judged(benchmark: BenchmarkRecipe, items: list[dict[str, Any]], samples: int) -> dict[str, Any]:
    """The result of a benchmark's answered items; sets `answer` and `verdict` in them."""
    for item in items:
        item["answer"] = _extracted(benchmark, item["output"])
    answers = _answers(benchmark, items)
    single = verdicts(benchmark.metrics[0], answers)
    for row, item in enumerate(items):
        item["verdict"] = single[row] if single is not None else None
    scores = score_answers(benchmark.metrics, answers)
    result: dict[str, Any] = {
        "language": benchmark.language,
        "method": benchmark.method,
        "version": benchmark.version,
        "licence": benchmark.task.source.licence,
        "paper": benchmark.paper.model_dump() if benchmark.paper else None,
        "n": len(items),
        "scores": scores,
        "counts": _counts(items, benchmark.method == "likelihood"),
        "samples": [
            {key: row[key][:400] for key in ("input", "target", "output")} for row in items[:samples]
        ],
    }
    if benchmark.groups or benchmark.average == "category":
        result |= _grouped(benchmark, answers)
    if benchmark.average == "category":
        whole = result["groups"]["all"]
        scores |= {"average": whole["score"], "average_stderr": whole["stderr"]}
    return result


def _left_out(task: Path) -> dict[str, Any]:
    """Records that the task could not read: how many, and the first of them named."""
    told = pq.read_schema(task / "heldout.parquet").metadata or {}
    broken = json.loads(told.get(b"broken", b"[]"))
    count = json.loads(told.get(b"discarded", b"{}")).get("broken", 0)
    return {"broken": {"records": count, "first": broken}} if count else {}


def _answers(benchmark: BenchmarkRecipe, items: list[dict[str, Any]]) -> Answers:
    return Answers(
        [item["answer"] for item in items],
        [item["references"] for item in items],
        benchmark.language,
        [item["category"] for item in items],
        benchmark.positive,
        [item["attempts"] or [item["answer"]] for item in items],
        benchmark.k,
        [item["input"] for item in items],
        [item["scores"] for item in items] if benchmark.method == "likelihood" else (),
        {str(metric): folder for metric, folder in benchmark.models.items()},
    )


def _extracted(benchmark: BenchmarkRecipe, output: str) -> str:
    if benchmark.extract is None:
        return output
    found = [match.group(1).strip() for match in re.finditer(benchmark.extract, output)]
    return found[-1] if found else ""


def _grouped(benchmark: BenchmarkRecipe, answers: Answers) -> dict[str, Any]:
    """Scores of categories and of groups by the first metric."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, category in enumerate(answers.categories):
        rows[category].append(row)
    metric = benchmark.metrics[0]
    categories = {name: _part(metric, answers, chosen) for name, chosen in sorted(rows.items())}
    groups = grouped(categories, benchmark.groups, benchmark.average)
    if benchmark.average == "item":  # then a group is one sample of items, and its error that of all of them
        for name, group in groups.items():
            members = benchmark.groups.get(name, rows)
            if "score" in group:
                chosen = [row for member in members for row in rows.get(member, ())]
                group["stderr"] = _part(metric, answers, chosen).stderr
    return {"categories": {name: vars(one) for name, one in categories.items()}, "groups": groups}


def _part(metric: Metric, answers: Answers, chosen: list[int]) -> Score:
    """The score of some of the items."""
    part = replace(
        answers,
        predictions=[answers.predictions[i] for i in chosen],
        references=[answers.references[i] for i in chosen],
        categories=[answers.categories[i] for i in chosen],
        attempts=[answers.attempts[i] for i in chosen],
        prompts=[answers.prompts[i] for i in chosen],
        losses=[answers.losses[i] for i in chosen] if answers.losses else (),
    )
    scores = score_answers([metric], part)
    return Score(float(scores[metric]), len(chosen), float(scores.get(f"{metric}_stderr", 0.0)))


def _counts(items: list[dict[str, Any]], silent: bool) -> dict[str, int]:
    """What went other than planned, by name, where there is any. `silent`: no answer was asked for."""
    counts = {
        "prompts cut": sum(item["cut"] for item in items),
        "prompts with fewer examples": sum(item["examples_left_out"] > 0 for item in items),
        "examples left out": sum(item["examples_left_out"] for item in items),
        "answers without end": sum(item["unfinished"] for item in items),
        "empty answers": sum(not item["output"].strip() for item in items if not silent),
        "answers not readable": sum(bool(item["output"]) and not item["answer"] for item in items),
    }
    return {name: count for name, count in counts.items() if count}
