"""What checks the five experts (section 6), declared and scored on real records."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import labelled
from openba.data.instruct import encode_input
from openba.evaluate import run
from openba.evaluate.run import score_benchmark
from openba.graph import Pipeline, find_pipeline
from openba.model.files import save_model
from openba.model.generate import continuation_losses, start_tokens
from openba.model.model import OpenBAModel
from openba.recipes.data import TaskStep
from openba.recipes.evaluate import BenchmarkRecipe, EvaluateStep
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

WANTED = {
    "chat": {"perplexity", "exact_match"},
    "code": {"pass_at_k"},
    "instructgen": {"rouge_l", "bleu"},
    "tool": {"exact_match", "call_arguments"},
    "ner": {"entity_f1"},
}
"""The paper's experts -> what has to be measured of each."""


def benchmark(name: str, *overrides: str) -> BenchmarkRecipe:
    return load(CONFIGS / "benchmark" / f"{name}.yaml", BenchmarkRecipe, list(overrides))


def rendered(name: str, recipe: BenchmarkRecipe, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    labelled.build(Build(folder, TaskStep(name=name, task=recipe.task), {}))
    return pq.read_table(folder / "heldout.parquet").slice(0, recipe.items).to_pylist()


def answered(rows: list[dict[str, Any]], outputs: list[str]) -> list[dict[str, Any]]:
    common = {"scores": [], "attempts": [], "examples_left_out": 0, "cut": False, "unfinished": False}
    return [{**row, **common, "output": text} for row, text in zip(rows, outputs, strict=True)]


def test_every_expert_of_the_paper_is_checked_as_it_says() -> None:
    experts = Pipeline(find_pipeline("paper")).experts
    assert experts.keys() == WANTED.keys()
    for name, expert in experts.items():
        assert {m for b in expert.benchmarks.values() for m in b.metrics} >= WANTED[name], name
    for name in ("chat", "instructgen"):
        assert {b.language for b in experts[name].benchmarks.values()} == {"zh", "en"}
    assert len(experts["ner"].benchmarks) == 7


def test_identity_is_the_configured_name(tmp_path: Path) -> None:
    recipe = benchmark("identity")
    rows = rendered("identity", recipe, tmp_path / "own")
    assert len(rows) > 20
    assert {row["target"] for row in rows} == {"OpenBA"}
    said = ["I am OpenBA, a model." if i % 2 else "I am ChatGPT." for i in range(len(rows))]
    assert score_benchmark(recipe, answered(rows, said), 0)["scores"]["exact_match"] == pytest.approx(
        50, abs=3
    )
    kite = benchmark(
        "identity",
        "task.replace={OpenBA: Kite}",
        "task.reject='^(?!.*Kite)'",
        "task.templates=[{input: '{history}', target: Kite}]",
        "extract=(Kite)",
    )
    renamed = rendered("identity", kite, tmp_path / "kite")
    assert len(renamed) == len(rows)
    assert (
        score_benchmark(kite, answered(renamed, ["My name is Kite."] * len(rows)), 0)["scores"]["exact_match"]
        == 100
    )


def test_calls_are_compared_by_text_and_by_arguments(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "tool_moss_search" / "conversations.jsonl"
    recipe = benchmark("expert/tool-search", f"task.source.path={path}")
    rows = rendered("tool-search", recipe, tmp_path / "out")
    assert len(rows) > 5
    exact = score_benchmark(recipe, answered(rows, [row["target"] for row in rows]), 0)["scores"]
    quoted = score_benchmark(recipe, answered(rows, [row["target"].replace('"', "'") for row in rows]), 0)[
        "scores"
    ]
    other = score_benchmark(recipe, answered(rows, ['Search("x")'] * len(rows)), 0)["scores"]
    assert [exact[m] for m in recipe.metrics] == [100, 100]
    assert quoted["exact_match"] == 0
    assert float(quoted["call_arguments"]) > 90  # one call of MOSS is no Python
    assert [other[m] for m in recipe.metrics] == [0, 0]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("chat-sharegpt", "chat_sharegpt_zh/conversations.jsonl"),
        ("chat-dialogstudio", "chat_moss/conversations.jsonl"),  # every published form is read
    ],
)
def test_perplexity_is_that_of_the_held_out_answers(
    name: str, data: str, shared: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(tokenizer_folder)
    shape = ModelRecipe(
        d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=2,
        positions=300, init_std=0.3,
    )  # fmt: skip
    torch.manual_seed(1)
    model = OpenBAModel(shape.architecture(tokenizer.size)).eval()
    save_model(tmp_path / "stage" / "model", model.state_dict(), model.architecture, tokenizer)
    recipe = benchmark(
        f"expert/{name}", f"task.source.path={shared / 'data' / data}", "items=20", "max_new_tokens=200"
    )
    rows = rendered(name, recipe, tmp_path / "task")
    (tmp_path / "out").mkdir()
    step = EvaluateStep(benchmarks={name: recipe}, encoder_length=200)
    inputs = {"model": tmp_path / "stage", f"task-{name}": tmp_path / "task"}
    result = run.build(Build(tmp_path / "out", step, inputs))["benchmarks"][name]
    nats, tokens = 0.0, 0
    for row in rows:
        target = [*tokenizer.encode(row["target"])[:200], tokenizer.eos]
        source = encode_input(tokenizer, row["input"], row["turns"], 200)
        nats += sum(continuation_losses(model, [source], [target], start_tokens(tokenizer))[0])
        tokens += len(target)
    assert result["scores"]["perplexity"] == pytest.approx(exp(nats / tokens), rel=1e-3)
    assert result["scores"]["perplexity_tokens"] == tokens
    assert result["scores"]["perplexity_stderr"] > 0
    assert "empty answers" not in result["counts"]
