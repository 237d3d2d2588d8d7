"""Two evaluations side by side: what differs, whether it is chance, and the page of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from openba.errors import UserError
from openba.evaluate import significance
from openba.evaluate.compare import compare
from openba.evaluate.items import ITEM_SCHEMA
from openba.evaluate.run import score_benchmark
from openba.recipes.evaluate import SCORING_VERSION, BenchmarkRecipe
from openba.report.differences import write_differences

TASK = {
    "source": {"adapter": "jsonl", "path": "x.jsonl", "language": "en", "licence": "own"},
    "templates": [{"input": "{text}", "target": "{target}"}],
    "category": "{text}",
    "choices": ["yes", "no"],
}


def recipe(**more: Any) -> BenchmarkRecipe:
    declared = {"task": TASK, "language": "en", "method": "generate", "metrics": ["exact_match"], **more}
    return BenchmarkRecipe.model_validate(declared)


def evaluation(
    folder: Path, outputs: list[str], benchmark: BenchmarkRecipe | None = None, **result: Any
) -> Path:
    """A folder as `openba eval` writes it: the answers, scored by the real functions."""
    benchmark = benchmark or recipe()
    folder.mkdir()
    items = [
        {
            "id": str(i), "category": "ab"[i % 2], "input": f"prompt <{i}>", "target": "yes",
            "references": ["yes"], "choices": [], "output": text, "scores": [], "attempts": [],
            "examples_left_out": 0, "cut": False, "unfinished": False,
        }
        for i, text in enumerate(outputs)
    ]  # fmt: skip
    found = score_benchmark(benchmark, items, 0) | {
        "declaration": benchmark.model_dump(mode="json", exclude={"paper"}),
        "prefix": "S", "encoder_length": 96, "records": "r", "scoring": SCORING_VERSION,
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist(items, ITEM_SCHEMA), folder / "b.parquet")
    results = {"model": "m", "benchmarks": {"b": found | result}}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def test_right_and_wrong_are_compared_by_mcnemar(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "a", ["yes"] * 30 + ["no"] * 20)
    other = evaluation(tmp_path / "b", ["yes"] * 28 + ["no"] * 2 + ["yes"] * 14 + ["no"] * 6)
    (row,) = compare(one, other)
    assert row["difference"] == pytest.approx(24)
    assert row["test"] == "McNemar"
    assert row["p"] == pytest.approx(binomtest(14, 16).pvalue, rel=1e-3)
    assert row["interval"][0] < 24 < row["interval"][1]
    assert row["paired"]
    assert (row["items"], row["changed"], row["notes"]) == (50, [], [])
    (same,) = compare(one, one)
    assert (same["difference"], same["p"]) == (0, 1)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"task": {**TASK, "templates": [{"input": "Q: {text}", "target": "{target}"}]}}, "task.templates"),
        ({"metrics": ["token_f1", "exact_match"]}, "metrics"),
        ({"extract": "answer"}, "extract"),
        ({"max_new_tokens": 3}, "max_new_tokens"),
        ({"stop": ["Q:"]}, "stop"),
        ({"version": 2}, "version"),
        ({"average": "category"}, "average"),
    ],
)
def test_every_field_of_a_declaration_counts(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    one = evaluation(tmp_path / "a", ["yes", "no"] * 5)
    other = evaluation(tmp_path / "b", ["yes", "yes"] * 5, recipe(**change))
    (row,) = compare(one, other)
    assert row["changed"] == [field]
    assert row["changes"][field][0] != row["changes"][field][1]


@pytest.mark.parametrize(
    "change", [{"prefix": "X"}, {"encoder_length": 48}, {"records": "other"}, {"scoring": "1"}]
)
def test_how_it_was_asked_counts_too(change: dict[str, Any], tmp_path: Path) -> None:
    one = evaluation(tmp_path / "a", ["yes", "no"] * 5)
    (row,) = compare(one, evaluation(tmp_path / "b", ["yes", "no"] * 5, None, **change))
    assert row["changed"] == list(change)


def test_the_declared_average_is_compared(tmp_path: Path) -> None:
    by_category = recipe(average="category")
    # Category a (even items) all right, b all wrong; then b right in its only further item.
    one = evaluation(tmp_path / "a", ["yes", "no"] * 5 + ["yes"], by_category)
    other = evaluation(tmp_path / "b", ["yes", "no"] * 4 + ["yes", "yes", "yes"], by_category)
    (row,) = compare(one, other)
    assert row["one"]["metric"] == "exact_match, average over categories"
    assert row["one"]["score"] == pytest.approx(50)
    assert row["difference"] == pytest.approx(10)  # one of b's five items, halved
    assert row["test"] == "paired bootstrap"


def test_corpus_scores_are_compared_by_a_paired_bootstrap(tmp_path: Path) -> None:
    texts = ["the cat sat on the mat today", "a b c d e f", "yes"]
    benchmark = recipe(metrics=["chrf"])
    one = evaluation(tmp_path / "a", (texts * 20)[:50], benchmark)
    other = evaluation(tmp_path / "b", ["yes"] * 50, benchmark)
    (row,) = compare(one, other)
    assert row["test"] == "paired bootstrap"
    assert row["difference"] == pytest.approx(row["other"]["score"] - row["one"]["score"], abs=1e-3)
    assert row["p"] < 0.01
    assert row["interval"][0] > 0


def test_what_was_not_run_is_said_and_the_rest_compared(tmp_path: Path) -> None:
    benchmark = recipe(metrics=["mauve", "exact_match"], models={"mauve": str(tmp_path / "none")})
    one = evaluation(tmp_path / "a", ["yes", "no"] * 5, benchmark)
    (row,) = compare(one, evaluation(tmp_path / "b", ["yes", "yes"] * 5, benchmark))
    assert row["one"]["metric"] == "exact_match"
    assert row["difference"] == 50
    assert "mauve not run" in row["notes"][0]
    alone = recipe(metrics=["mauve"], models={"mauve": str(tmp_path / "none")})
    third = evaluation(tmp_path / "c", ["yes", "no"] * 5, alone)
    (row,) = compare(third, third)
    assert (row["one"], row["other"]) == (None, None)
    assert "difference" not in row


def test_results_without_a_declaration_are_compared_by_what_they_hold(tmp_path: Path) -> None:
    one, other = (evaluation(tmp_path / name, ["yes", "no"] * 5) for name in "ab")
    results = json.loads((other / "results.json").read_text(encoding="utf-8"))
    del results["benchmarks"]["b"]["declaration"]
    (other / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (row,) = compare(one, other)
    assert row["changed"] == ["declaration"]
    assert not row["paired"]


def test_random_models_differ_significantly_as_often_as_p_says() -> None:
    generator = np.random.default_rng(3)
    found = 0
    for _ in range(200):
        one, other = generator.integers(0, 2, size=(2, 80)).astype(float)
        found += significance.compare_values(one, other).p < 0.05
    assert found <= 20  # the exact test is conservative: at most 5 % are expected


def test_the_page_shows_prompt_answers_and_verdicts_of_all_models(tmp_path: Path) -> None:
    outputs = (["yes"] * 6, ["yes"] * 5 + ["<b>no</b>"], ["maybe"] * 6)
    folders = [evaluation(tmp_path / n, out) for n, out in zip(("a", "b", "c"), outputs, strict=True)]
    page = write_differences(tmp_path / "page" / "diff.html", folders).read_text(encoding="utf-8")
    assert page.count("<summary>") == 6
    assert "prompt &lt;5&gt;" in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert "<b>no" not in page
    assert "<script" not in page
    assert "McNemar, 6 items" in page
    (tmp_path / "d").mkdir()
    with pytest.raises(UserError, match="no results"):
        write_differences(tmp_path / "x.html", [folders[0], tmp_path / "d"])
