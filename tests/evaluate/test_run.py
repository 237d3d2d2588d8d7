"""Evaluation from end to end: a small model answers two real benchmarks, by choice and in its own words."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import labelled
from openba.data.instruct import encode_input
from openba.errors import UserError
from openba.evaluate import answering, run, shards, suite
from openba.evaluate.compare import compare
from openba.evaluate.metrics import score
from openba.model.files import save_model
from openba.model.generate import continuation_losses, generate, start_tokens
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.recipes.data import TaskStep
from openba.recipes.evaluate import BenchmarkRecipe, EvaluateStep
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

torch.set_num_threads(1)  # see tests/model/conftest.py

RECIPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=2,
    positions=96, init_std=1.0,  # wide: answers then hang on the question
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
        labelled.build(Build(root / name, TaskStep(name=name, task=benchmark(name).task), {}))
    return {"model": root / "stage", **{f"task-{name}": root / name for name in OVERRIDES}}


def evaluate(inputs: dict[str, Path], out: Path, **benchmarks: BenchmarkRecipe) -> dict[str, Any]:
    out.mkdir()
    chosen = benchmarks or {name: benchmark(name) for name in OVERRIDES}
    recipe = EvaluateStep(benchmarks=chosen, encoder_length=96, samples=3)
    facts = run.build(Build(out, recipe, inputs))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    return facts["benchmarks"]


def answers(out: Path, name: str) -> list[dict[str, str]]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def test_both_methods_answer_what_the_model_says(
    inputs: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    evaluate(inputs, tmp_path / "out")
    model, _ = load_model(inputs["model"] / "model")
    reviews, translations = (answers(tmp_path / "out", name) for name in OVERRIDES)

    def sources(rows: list[dict[str, str]]) -> list[list[int]]:
        return [encode_input(tokenizer, row["input"], [], 96) for row in rows]

    for row, source in zip(reviews, sources(reviews), strict=True):
        targets = [[*tokenizer.encode(choice), tokenizer.eos] for choice in ("正面", "负面")]
        losses = continuation_losses(model, [source] * 2, targets, start_tokens(tokenizer))
        means = [sum(row) / len(row) for row in losses]
        assert row["output"] == ("正面", "负面")[means.index(min(means))]
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
        assert (tmp_path / "1" / f"{name}.parquet").read_bytes() == (
            tmp_path / "2" / f"{name}.parquet"
        ).read_bytes()
        rows = pq.read_table(inputs[f"task-{name}"] / "heldout.parquet").to_pylist()
        assert [row["id"] for row in answers(tmp_path / "1", name)] == [row["id"] for row in rows][
            : first[name]["n"]
        ]


def test_a_task_that_holds_nothing_out_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    name, everything = "translate-zh-en", benchmark("translate-zh-en", "task.heldout=0")
    (tmp_path / "task").mkdir()
    labelled.build(Build(tmp_path / "task", TaskStep(name=name, task=everything.task), {}))
    with pytest.raises(UserError) as error:
        evaluate({**inputs, f"task-{name}": tmp_path / "task"}, tmp_path / "out", **{name: everything})
    assert f"benchmark {name}: its task has no held-out record; raise task.heldout" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_suite_goes_on_past_what_it_cannot_run_and_does_nothing_twice(
    inputs: dict[str, Path], shared: Path, tmp_path: Path
) -> None:
    names = ["mmlu-5shot", "superglue-rte", "flores-en-zh", "belebele-zh-hans", "ner-crossner-science"]
    (tmp_path / "data").mkdir()
    for folder, real in (
        ("mmlu", "eval_mmlu"),
        ("superglue", "eval_superglue"),
        ("flores", "eval_flores_zh_en"),
        ("ner", "ner_crossner"),
    ):
        (tmp_path / "data" / folder).symlink_to(shared / "data" / real)
    paths = {
        "flores-en-zh": shared / "data" / "eval_flores_zh_en" / "dev.jsonl",
        "ner-crossner-science": shared / "data" / "ner_crossner" / "science" / "*.jsonl",
    }
    benchmarks = suite.select_benchmarks([], names, tmp_path / "data", ["items=8", "max_new_tokens=6"])
    for name, path in paths.items():
        benchmarks |= suite.select_benchmarks(
            [], [name], None, ["items=8", "max_new_tokens=6", f"task.source.path={path}"]
        )
    told: list[str] = []
    model = inputs["model"] / "model"
    first = suite.run_suite(model, benchmarks, tmp_path / "out", lambda name, result: told.append(name))
    assert sorted(told) == sorted(names)  # what cannot be run is told at once
    assert "belebele/zho_Hans.jsonl: no such file" in first["belebele-zh-hans"]["error"]
    for name in set(names) - {"belebele-zh-hans"}:
        assert first[name]["n"] == 8
        rows = pq.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist()
        assert [row["output"] for row in rows]
        assert len(rows) == 8
    assert first["mmlu-5shot"]["method"] == "letters"
    assert first["mmlu-5shot"]["counts"]["prompts with fewer examples"] > 0
    chosen = pq.read_table(tmp_path / "out" / "mmlu-5shot.parquet").to_pylist()
    for row in chosen:
        assert row["output"] == "ABCD"[max(range(4), key=lambda i: row["scores"][i])]
        assert row["verdict"] == float(row["output"] == row["target"])
    assert first["flores-en-zh"]["counts"]["answers without end"] > 0
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert suite.run_suite(model, benchmarks, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")} == times
    assert not list((tmp_path / "out").glob("work/*"))
    by_mode = suite.run_suite(model, {"superglue-rte": benchmarks["superglue-rte"]}, tmp_path / "x", mode="X")
    assert by_mode["superglue-rte"]["n"] == 8
    rows = {row["benchmark"]: row for row in compare(tmp_path / "out", tmp_path / "x")}
    assert rows["superglue-rte"]["paired"]
    assert rows["superglue-rte"]["difference"] == pytest.approx(
        by_mode["superglue-rte"]["scores"]["accuracy"] - first["superglue-rte"]["scores"]["accuracy"]
    )
    assert rows["flores-en-zh"]["other"] is None


def test_an_evaluation_that_was_cut_off_goes_on(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_SIZE", 16)
    (tmp_path / "cut").mkdir()
    recipe = EvaluateStep(
        benchmarks={"review-sentiment": benchmark("review-sentiment", "items=40")}, encoder_length=96
    )

    def cut_off(model: Path, jobs: Sequence[shards.Shard]) -> Iterator[tuple[int, str]]:
        yield from shards.map_in_process(model, jobs[:1])
        raise KeyboardInterrupt

    answered: list[int] = []

    def told(model: Path, jobs: Sequence[shards.Shard]) -> Iterator[tuple[int, str]]:
        answered.extend(number for _, number in jobs)
        yield from shards.map_in_process(model, jobs)

    with pytest.raises(KeyboardInterrupt):
        run.build(Build(tmp_path / "cut", recipe, inputs), cut_off)
    run.build(Build(tmp_path / "cut", recipe, inputs), told)
    assert answered == [1]  # the first shard is not asked again
    (tmp_path / "again").mkdir()
    run.build(Build(tmp_path / "again", recipe, inputs))
    files = [(tmp_path / name / "review-sentiment.parquet").read_bytes() for name in ("cut", "again")]
    assert files[0] == files[1]


def test_a_letter_that_is_no_token_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = benchmark("review-sentiment", "method=letters")
    out = tmp_path / "out"
    out.mkdir()
    words = BenchmarkRecipe.model_validate(
        {**recipe.model_dump(), "task": {**recipe.task.model_dump(), "choices": ("正面", "负面")}}
    )
    rows = [{"id": "1", "choices": ["正面的评论", "负面"]}]
    model, tokenizer = load_model(inputs["model"] / "model")
    with pytest.raises(UserError, match="is no token of the tokenizer; use method 'choice'"):
        answering.answer_batch(model, tokenizer, [[5, 1]], rows, words)


def test_drawn_answers_are_as_many_as_asked_and_the_same_again(inputs: dict[str, Path]) -> None:
    model, tokenizer = load_model(inputs["model"] / "model")
    recipe = benchmark("translate-zh-en").model_copy(update={"attempts": 5, "temperature": 1.0})
    sources = [encode_input(tokenizer, text, [], 96) for text in ("打开文件", "退出")]
    first, second = (
        answering.answer_batch(model, tokenizer, sources, [{"id": "a"}, {"id": "b"}], recipe)
        for _ in range(2)
    )
    assert [one.attempts for one in first] == [one.attempts for one in second]
    assert all(len(one.attempts) == 5 for one in first)
    assert len({*first[0].attempts, *first[1].attempts}) > 2


def test_an_eleventh_benchmark_is_one_file_and_what_goes_wrong_is_counted(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    questions = [
        {"id": "plain", "ask": "Who?", "reply": "Rome"},
        {"id": "long", "ask": "word " * 500, "reply": "Rome"},
        {"id": "nothing", "ask": "Where?", "reply": "Paris"},
        {"id": "broken", "ask": "Where?"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in questions)
    (tmp_path / "capitals.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "capitals.yaml").write_text(
        "language: en\nmethod: generate\nmetrics: [exact_match]\nmax_new_tokens: 5\n"
        "task:\n  broken: count\n  heldout: 1.0\n"
        f"  source: {{adapter: jsonl, path: {tmp_path}/capitals.jsonl, text_field: null, id_field: id, "
        "language: en, licence: own}\n"
        "  templates: [{input: '{ask}', target: '{reply}'}]\n",
        encoding="utf-8",
    )
    chosen = suite.select_benchmarks([], [str(tmp_path / "capitals.yaml")])
    assert list(chosen) == ["capitals"]
    result = suite.run_suite(inputs["model"] / "model", chosen, tmp_path / "out")["capitals"]
    assert result["n"] == 3
    assert result["broken"]["records"] == 1
    assert "record broken has no field 'reply'" in result["broken"]["first"][0]
    assert result["counts"]["prompts cut"] == 1
    assert result["counts"]["answers without end"] == 3  # a model of random weights never stops
    assert result["scores"]["exact_match"] == 0
    rows = {row["id"]: row for row in answers(tmp_path / "out", "capitals")}
    assert rows["long"]["cut"]
    assert not rows["plain"]["cut"]
    silent = [{**row, "output": "", "unfinished": False, "cut": False} for row in rows.values()]
    assert run.score_benchmark(chosen["capitals"], silent, 0)["counts"] == {"empty answers": 3}


def test_a_result_is_kept_by_contents_and_not_by_times(
    inputs: dict[str, Path], shared: Path, tmp_path: Path
) -> None:
    shutil.copytree(inputs["model"] / "model", tmp_path / "one")
    shutil.copytree(inputs["model"] / "model", tmp_path / "other")
    model, tokenizer = load_model(tmp_path / "other")
    weights = {name: tensor.flip(0) for name, tensor in model.state_dict().items()}
    save_model(tmp_path / "other", weights, model.architecture, tokenizer)
    path = shared / "data" / "eval_superglue" / "COPA" / "val.jsonl"
    chosen = suite.select_benchmarks([], ["superglue-copa"], None, ["items=20", f"task.source.path={path}"])

    def scores(folder: str) -> list[list[float]]:
        for file in (tmp_path / folder).iterdir():
            os.utime(file, ns=(1, 1))
        suite.run_suite(tmp_path / folder, chosen, tmp_path / "out")
        return [row["scores"] for row in answers(tmp_path / "out", "superglue-copa")]

    first = scores("one")
    assert scores("other") != first
    assert scores("one") == first
    vocabulary = next((tmp_path / "one").glob("*.model"))
    assert vocabulary.name in suite.folder_digests(tmp_path / "one")
    (tmp_path / "one" / "README.md").write_text("a card", encoding="utf-8")
    assert "README.md" not in suite.folder_digests(tmp_path / "one")


def test_large_data_files_are_known_by_their_contents(inputs: dict[str, Path], tmp_path: Path) -> None:
    line = '{"text": "%s", "target": "Rome"}\n'
    (tmp_path / "b.yaml").write_text(
        "language: en\nmethod: generate\nmetrics: [exact_match]\nmax_new_tokens: 2\nitems: 2\n"
        f"task:\n  heldout: 1.0\n  source: {{adapter: jsonl, path: {tmp_path}/data.jsonl, language: en, "
        "licence: own}\n  templates: [{input: '{text:.20}', target: '{target}'}]\n",
        encoding="utf-8",
    )
    prompts = []
    for word in ("aaaa", "bbbb"):
        text = line % (word * 5 + "x" * 2**19)
        (tmp_path / "data.jsonl").write_text(text + line % f"{word} {'y' * 2**19}", encoding="utf-8")
        os.utime(tmp_path / "data.jsonl", ns=(1, 1))
        chosen = suite.select_benchmarks([], [str(tmp_path / "b.yaml")])
        suite.run_suite(inputs["model"] / "model", chosen, tmp_path / "out")
        prompts.append({row["input"] for row in answers(tmp_path / "out", "b")})
    assert (tmp_path / "data.jsonl").stat().st_size > 2**20
    assert not prompts[0] & prompts[1]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    shipped = (CONFIGS / "benchmark" / "bbc-title.yaml").read_text(encoding="utf-8")
    for folder, tokens in (("a", 24), ("b", 25)):
        (tmp_path / folder).mkdir()
        text = shipped.replace("max_new_tokens: 24", f"max_new_tokens: {tokens}")
        (tmp_path / folder / "bbc-title.yaml").write_text(text, encoding="utf-8")
    names = [str(tmp_path / folder / "bbc-title.yaml") for folder in "ab"]
    assert list(suite.select_benchmarks([], [names[0], names[0]])) == ["bbc-title"]
    with pytest.raises(UserError, match=r"b/bbc-title.yaml: another benchmark 'bbc-title' is already chosen"):
        suite.select_benchmarks([], names)
    assert len(suite.select_benchmarks(["quick", "paper"], ["mmlu"])) > 30


def test_a_model_without_finite_numbers_is_refused(inputs: dict[str, Path]) -> None:
    model, tokenizer = load_model(inputs["model"] / "model")
    with torch.no_grad():
        model.shared_embedding.weight[:, 0] = float("nan")
    for method in ("choice", "letters"):
        recipe = benchmark("review-sentiment", f"method={method}")
        rows = [{"id": "1", "choices": ["A", "B"]}]
        with pytest.raises(UserError, match=r"record 1: .* not finite numbers; its weights are damaged"):
            answering.answer_batch(model, tokenizer, [[5, 1]], rows, recipe)
