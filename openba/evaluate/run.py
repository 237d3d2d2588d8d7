"""Step `evaluate-*`: one model answers several benchmarks, and libraries score the answers.

Owns how held-out records become prompts and predictions. Which records, prompts, choices and
metrics there are stands in the benchmarks' YAML; scores come from `metrics.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from openba.artifacts import Build
from openba.data.instruct import encode_input
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.evaluate.metrics import score
from openba.model.files import load_model
from openba.model.generate import choice_losses, generate
from openba.model.model import OpenBAModel
from openba.recipes.evaluate import BenchmarkRecipe, EvaluateStep


def build(build: Build) -> dict[str, Any]:
    """Answer and score every benchmark; answers go to `<benchmark>.jsonl`, scores are facts."""
    recipe: EvaluateStep = build.recipe
    model, tokenizer = load_model(build.inputs["model"] / "model")
    if torch.cuda.is_available():
        model = model.cuda()
    results = {}
    for name, benchmark in recipe.benchmarks.items():
        rows = _records(build.inputs[f"task-{name}"], benchmark, name)
        sources = [encode_input(tokenizer, row["input"], row["turns"], recipe.encoder_length) for row in rows]
        predictions = _answer(model, tokenizer, sources, benchmark)
        answered = [
            {"id": row["id"], "input": row["input"], "target": row["target"], "output": prediction}
            for row, prediction in zip(rows, predictions, strict=True)
        ]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in answered)
        (build.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        results[name] = _result(benchmark, answered, recipe.samples)
    return {"benchmarks": results}


def _records(task: Path, benchmark: BenchmarkRecipe, name: str) -> list[dict[str, Any]]:
    rows = pq.read_table(task / "heldout.parquet").slice(0, benchmark.items).to_pylist()
    if not rows:
        raise UserError(f"benchmark {name}: its task has no held-out record; raise task.heldout or add data")
    return rows


def _answer(
    model: OpenBAModel, tokenizer: Tokenizer, sources: list[list[int]], benchmark: BenchmarkRecipe
) -> list[str]:
    if benchmark.method == "generate":
        return generate(model, tokenizer, sources, benchmark.max_new_tokens)
    choices = benchmark.task.choices
    answers = []
    for source in sources:
        losses = choice_losses(model, tokenizer, source, choices)
        answers.append(choices[losses.index(min(losses))])
    return answers


def _result(benchmark: BenchmarkRecipe, answered: list[dict[str, Any]], samples: int) -> dict[str, Any]:
    predictions, targets = [row["output"] for row in answered], [row["target"] for row in answered]
    return {
        "language": benchmark.language,
        "method": benchmark.method,
        "paper": benchmark.paper.model_dump() if benchmark.paper else None,
        "n": len(answered),
        "scores": score(benchmark.metrics, predictions, targets, benchmark.language),
        "samples": [
            {key: row[key][:400] for key in ("input", "target", "output")} for row in answered[:samples]
        ],
    }
