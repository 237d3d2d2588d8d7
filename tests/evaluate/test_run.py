"""Evaluation from end to end: a small model answers two real benchmarks, by choice and in its own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import tasks
from openba.data.instruct import encode_input
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.evaluate import run
from openba.evaluate.metrics import score
from openba.model.files import load_model, save_model
from openba.model.generate import choice_losses, generate
from openba.model.model import OpenBAModel
from openba.recipes.data import TaskStep
from openba.recipes.evaluate import BenchmarkRecipe, EvaluateStep
from openba.recipes.model import ModelRecipe

torch.set_num_threads(1)  # see tests/model/conftest.py

RECIPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=2,
    positions=96, init_std=0.3,  # wide: answers then hang on the question
)  # fmt: skip
OVERRIDES = {
    "review-sentiment": ["task.source.limit=400", "task.limit=300", "items=12"],
    "translate-zh-en": ["task.limit=100", "items=7", "max_new_tokens=6"],
}


def benchmark(name: str, *more: str) -> BenchmarkRecipe:
    return load(CONFIGS / "benchmark" / f"{name}.yaml", BenchmarkRecipe, [*OVERRIDES[name], *more])


@pytest.fixture(scope="module")
def inputs(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model and the two tasks."""
    root = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(1)
    tokenizer = Tokenizer.load(tokenizer_folder)
    model = OpenBAModel(RECIPE.architecture(tokenizer.size))
    save_model(root / "stage" / "model", model.state_dict(), model.architecture, tokenizer)
    for name in OVERRIDES:
        (root / name).mkdir()
        tasks.build(Build(root / name, TaskStep(name=name, task=benchmark(name).task), {}))
    return {"model": root / "stage", **{f"task-{name}": root / name for name in OVERRIDES}}


def evaluate(inputs: dict[str, Path], out: Path, **benchmarks: BenchmarkRecipe) -> dict[str, Any]:
    out.mkdir()
    chosen = benchmarks or {name: benchmark(name) for name in OVERRIDES}
    recipe = EvaluateStep(benchmarks=chosen, encoder_length=96, samples=3)
    facts = run.build(Build(out, recipe, inputs))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    return facts["benchmarks"]


def answers(out: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_both_methods_answer_what_the_model_says(
    inputs: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    evaluate(inputs, tmp_path / "out")
    model, _ = load_model(inputs["model"] / "model")
    reviews, translations = (answers(tmp_path / "out", name) for name in OVERRIDES)

    def sources(rows: list[dict[str, str]]) -> list[list[int]]:
        return [encode_input(tokenizer, row["input"], [], 96) for row in rows]

    for row, source in zip(reviews, sources(reviews), strict=True):
        losses = dict(
            zip(("正面", "负面"), choice_losses(model, tokenizer, source, ["正面", "负面"]), strict=True)
        )
        assert row["output"] == min(losses, key=lambda choice: losses[choice])
    assert len({row["output"] for row in reviews}) == 2
    assert [row["output"] for row in translations] == generate(model, tokenizer, sources(translations), 6)
    assert len({row["output"] for row in translations}) > 3


def test_facts_and_scores_are_those_of_the_answers(inputs: dict[str, Path], tmp_path: Path) -> None:
    facts = evaluate(inputs, tmp_path / "out")
    assert list(facts) == list(OVERRIDES)
    for name, items in (("review-sentiment", 12), ("translate-zh-en", 7)):
        rows, recipe = answers(tmp_path / "out", name), benchmark(name)
        assert facts[name]["n"] == len(rows) == items
        outputs, targets = ([row[key] for row in rows] for key in ("output", "target"))
        assert facts[name]["scores"] == score(recipe.metrics, outputs, targets, recipe.language)
        assert facts[name]["samples"] == [
            {k: row[k] for k in ("input", "target", "output")} for row in rows[:3]
        ]
        assert recipe.paper is not None
        assert facts[name]["paper"]["value"] == recipe.paper.value
    right = sum(row["output"] == row["target"] for row in answers(tmp_path / "out", "review-sentiment"))
    assert facts["review-sentiment"]["scores"]["accuracy"] == pytest.approx(100 * right / 12, abs=1e-3)
    assert {"bleu", "chrf"} <= facts["translate-zh-en"]["scores"].keys()


def test_only_held_out_records_are_asked_and_twice_alike(inputs: dict[str, Path], tmp_path: Path) -> None:
    first, second = evaluate(inputs, tmp_path / "1"), evaluate(inputs, tmp_path / "2")
    assert first == second
    for name in OVERRIDES:
        assert (tmp_path / "1" / f"{name}.jsonl").read_bytes() == (
            tmp_path / "2" / f"{name}.jsonl"
        ).read_bytes()
        rows = pq.read_table(inputs[f"task-{name}"] / "heldout.parquet").to_pylist()
        assert [row["id"] for row in answers(tmp_path / "1", name)] == [row["id"] for row in rows][
            : first[name]["n"]
        ]


def test_a_task_that_holds_nothing_out_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    name, everything = "translate-zh-en", benchmark("translate-zh-en", "task.heldout=0")
    (tmp_path / "task").mkdir()
    tasks.build(Build(tmp_path / "task", TaskStep(name=name, task=everything.task), {}))
    with pytest.raises(UserError) as error:
        evaluate({**inputs, f"task-{name}": tmp_path / "task"}, tmp_path / "out", **{name: everything})
    assert f"benchmark {name}: its task has no held-out record; raise task.heldout" in str(error.value)
    assert "\n" not in str(error.value)
