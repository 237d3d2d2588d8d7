"""Step `evaluate-*`: one model answers several benchmarks, and libraries score the answers.

Owns how held-out records become prompts, the shards that make an evaluation resumable, and what is
told of one. Which records, prompts, choices and metrics there are stands in the benchmarks' YAML; how
a model answers in `answering.py`, scores in `metrics.py`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from openba.artifacts import Build
from openba.data.instruct import encode_fitting
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.evaluate.answering import answer
from openba.evaluate.answers import Answers
from openba.evaluate.grouping import Score, grouped
from openba.evaluate.metrics import score_answers, verdicts
from openba.model.files import load_model
from openba.model.model import OpenBAModel
from openba.recipes.evaluate import BenchmarkRecipe, EvaluateStep, Metric

SHARD = 512
"""Items answered between two files; an evaluation that was cut off goes on after the last."""

SAMPLES = pa.schema(
    {
        "id": pa.string(),
        "category": pa.string(),
        "input": pa.string(),
        "target": pa.string(),
        "references": pa.list_(pa.string()),
        "choices": pa.list_(pa.string()),
        "output": pa.string(),
        "answer": pa.string(),
        "scores": pa.list_(pa.float32()),
        "attempts": pa.list_(pa.string()),
        "examples_left_out": pa.int32(),
        "cut": pa.bool_(),
        "unfinished": pa.bool_(),
        "verdict": pa.float32(),
    }
)
"""One row an item: `output` as it was written, `answer` as it was scored, `scores` of the choices, `verdict`
(0 to 1) where the first metric is a mean over items. `input` is the whole prompt; `examples_left_out` of its
solved examples, the oldest, did not fit, and `cut` says that its end did not."""


def build(build: Build) -> dict[str, Any]:
    """Answer and score every benchmark; answers go to `<benchmark>.parquet`, scores are facts."""
    recipe: EvaluateStep = build.recipe
    model, tokenizer = load_model(build.inputs["model"] / "model")
    if torch.cuda.is_available():
        model = model.cuda()
    results = {}
    for name in recipe.benchmarks:
        results[name] = evaluate(model, tokenizer, build.inputs[f"task-{name}"], name, recipe, build.out)
    return {"benchmarks": results}


def evaluate(
    model: OpenBAModel, tokenizer: Tokenizer, task: Path, name: str, recipe: EvaluateStep, out: Path
) -> dict[str, Any]:
    """One benchmark: its result, with `NAME.parquet` beside it.

    Raises:
        UserError: the task holds no record out, or see `answer`.
    """
    benchmark = recipe.benchmarks[name]
    rows = _records(task, benchmark, name)
    shards = []
    for number, begin in enumerate(range(0, len(rows), SHARD)):
        path = out / f"{name}.{number:05d}.shard"
        if not path.exists():
            try:
                answered = _shard(model, tokenizer, rows[begin : begin + SHARD], benchmark, recipe)
            except UserError as error:
                raise UserError(f"benchmark {name}: {error}") from None
            partial = path.with_suffix(".partial")
            pq.write_table(pa.Table.from_pylist(answered, SAMPLES), partial)
            partial.replace(path)
        shards.append(path)
    items = pa.concat_tables([pq.read_table(path) for path in shards]).to_pylist()
    result = judged(benchmark, items, recipe.samples) | _left_out(task)
    pq.write_table(pa.Table.from_pylist(items, SAMPLES), out / f"{name}.parquet", compression="zstd")
    for path in shards:
        path.unlink()
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
        "counts": _counts(items),
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


def _records(task: Path, benchmark: BenchmarkRecipe, name: str) -> list[dict[str, Any]]:
    rows = pq.read_table(task / "heldout.parquet").slice(0, benchmark.items).to_pylist()
    if not rows:
        raise UserError(f"benchmark {name}: its task has no held-out record; raise task.heldout or add data")
    return rows


def _left_out(task: Path) -> dict[str, Any]:
    """Records that the task could not read: how many, and the first of them named."""
    told = pq.read_schema(task / "heldout.parquet").metadata or {}
    broken = json.loads(told.get(b"broken", b"[]"))
    count = json.loads(told.get(b"discarded", b"{}")).get("broken", 0)
    return {"broken": {"records": count, "first": broken}} if count else {}


def _shard(
    model: OpenBAModel,
    tokenizer: Tokenizer,
    rows: list[dict[str, Any]],
    benchmark: BenchmarkRecipe,
    recipe: EvaluateStep,
) -> list[dict[str, Any]]:
    fitted = [encode_fitting(tokenizer, row["input"], row["turns"], recipe.encoder_length) for row in rows]
    mode = tokenizer.mode(recipe.prefix)
    sources = [[mode, *ids[1:]] for ids, _, _ in fitted]
    found = answer(model, tokenizer, sources, rows, benchmark)
    kept = ("id", "category", "input", "target", "references", "choices")
    return [
        {key: row[key] for key in kept}
        | {"output": one.text, "scores": one.scores, "attempts": one.attempts, "unfinished": one.unfinished}
        | {"examples_left_out": left_out, "cut": cut}
        for row, one, (_, left_out, cut) in zip(rows, found, fitted, strict=True)
    ]


def _answers(benchmark: BenchmarkRecipe, items: list[dict[str, Any]]) -> Answers:
    return Answers(
        [item["answer"] for item in items],
        [item["references"] for item in items],
        benchmark.language,
        [item["category"] for item in items],
        benchmark.positive,
        [item["attempts"] or [item["answer"]] for item in items],
        benchmark.k,
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
    )
    scores = score_answers([metric], part)
    return Score(float(scores[metric]), len(chosen), float(scores.get(f"{metric}_stderr", 0.0)))


def _counts(items: list[dict[str, Any]]) -> dict[str, int]:
    """What went other than planned, by name, where there is any."""
    counts = {
        "prompts cut": sum(item["cut"] for item in items),
        "prompts with fewer examples": sum(item["examples_left_out"] > 0 for item in items),
        "examples left out": sum(item["examples_left_out"] for item in items),
        "answers without end": sum(item["unfinished"] for item in items),
        "empty answers": sum(not item["output"].strip() for item in items),
        "answers not readable": sum(bool(item["output"]) and not item["answer"] for item in items),
    }
    return {name: count for name, count in counts.items() if count}
