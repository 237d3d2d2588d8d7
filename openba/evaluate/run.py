"""Step `evaluate-*`: one model answers several benchmarks, and libraries score the answers.

Owns what is done until a benchmark has its result, and what is told of it. Which records, prompts, choices
and metrics there are stands in the benchmarks' YAML; how items are divided in `shards.py`, how a model
answers in `answering.py`, scores in `metrics.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openba.artifacts import Build
from openba.errors import UserError
from openba.evaluate.answers import Answers, mean
from openba.evaluate.extraction import extract
from openba.evaluate.grouping import Score, grouped
from openba.evaluate.metrics import score_answers, score_items
from openba.evaluate.shards import SAMPLES, Job, Mapper, Part, divided, here, merged
from openba.model.files import weights_folder
from openba.recipes.evaluate import SCORING_VERSION, BenchmarkRecipe, EvaluateStep, Metric, score_key


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
        result = judged(part.benchmark, items, part.step.samples) | _left_out(part.task) | _asked(part, items)
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
    answers = read_answers(benchmark, items)
    scores, values = score_items(benchmark.metrics, answers)
    verdicts = values.get(benchmark.metrics[0])
    for row, item in enumerate(items):
        item["answer"] = answers.predictions[row]
        item["verdict"] = verdicts[row] if verdicts is not None else None
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
    first = score_key(benchmark.metrics[0], benchmark.k)
    if first in scores and (benchmark.groups or benchmark.average == "category"):
        result |= _grouped(benchmark, answers, verdicts)
        if benchmark.average == "category":
            average = result["groups"]["all"]
            scores |= {"average": average["score"], "average_stderr": average["stderr"]}
    return result


def read_answers(benchmark: BenchmarkRecipe, items: Sequence[Mapping[str, Any]]) -> Answers:
    """What is scored of answered items: the answer read out of each output and of each attempt."""

    def read(text: str, choices: Sequence[str]) -> str:
        letters = [choice for choice in choices if len(choice) == 1 and choice.isupper()]
        return extract(text, benchmark.extract, benchmark.stop, letters)

    return Answers(
        predictions=[read(item["output"], item["choices"]) for item in items],
        references=[item["references"] for item in items],
        language=benchmark.language,
        categories=[item["category"] for item in items],
        positive=benchmark.positive,
        attempts=[
            [read(text, item["choices"]) for text in item["attempts"] or [item["output"]]] for item in items
        ],
        k=benchmark.k,
        prompts=[item["input"] for item in items],
        losses=[item["scores"] for item in items] if benchmark.method == "likelihood" else (),
        own_metrics=benchmark.own_metrics,
        models={str(metric): folder for metric, folder in benchmark.models.items()},
    )


def _asked(part: Part, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a result has to be compared by: the declaration, how it was asked, and a digest of the records."""
    asked = hashlib.sha256()
    for item in items:
        asked.update(json.dumps([item["id"], item["input"], list(item["references"])]).encode())
    return {
        "declaration": part.benchmark.model_dump(mode="json", exclude={"paper"}),
        "prefix": part.step.prefix,
        "encoder_length": part.step.encoder_length,
        "records": asked.hexdigest()[:16],
        "scoring": SCORING_VERSION,
    }


def _left_out(task: Path) -> dict[str, Any]:
    """Records that the task could not read: how many, and the first of them named."""
    told = pq.read_schema(task / "heldout.parquet").metadata or {}
    broken = json.loads(told.get(b"broken", b"[]"))
    count = json.loads(told.get(b"discarded", b"{}")).get("broken", 0)
    return {"broken": {"records": count, "first": broken}} if count else {}


def _grouped(
    benchmark: BenchmarkRecipe, answers: Answers, verdicts: Sequence[float] | None
) -> dict[str, Any]:
    """Scores of categories and of groups by the first metric."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, category in enumerate(answers.categories):
        rows[category].append(row)
    metric = benchmark.metrics[0]

    def score_of(chosen: list[int]) -> Score | None:
        if verdicts is None:
            return _score_of(metric, answers, chosen)
        scores = mean("score", [verdicts[row] for row in chosen])
        return Score(round(float(scores["score"]), 4), len(chosen), round(float(scores["score_stderr"]), 4))

    scored = {name: score_of(chosen) for name, chosen in sorted(rows.items())}
    categories = {name: score for name, score in scored.items() if score is not None}
    groups = grouped(categories, benchmark.groups, benchmark.average)
    if benchmark.average == "item":  # then a group is one sample of items, and its error that of all of them
        for name, group in groups.items():
            members = benchmark.groups.get(name, rows)
            chosen = [row for member in members for row in rows.get(member, ())]
            if "score" in group and (score := score_of(chosen)) is not None:
                group["stderr"] = score.stderr
    return {"categories": {name: vars(score) for name, score in categories.items()}, "groups": groups}


def _score_of(metric: Metric, answers: Answers, chosen: list[int]) -> Score | None:
    """The score of some of the items; None if the metric cannot be computed on them."""
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
    if metric not in scores:
        return None
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
