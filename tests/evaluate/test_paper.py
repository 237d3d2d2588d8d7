"""The paper's benchmarks on real samples: what is asked, what an oracle and a guesser score, and grouping."""

from __future__ import annotations

import csv
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import labelled
from openba.data.instruct import encode_fitting
from openba.errors import UserError
from openba.evaluate.grouping import CategoryScore, average_groups
from openba.evaluate.run import broken_records, score_benchmark
from openba.recipes.data import TaskStep
from openba.recipes.evaluate import BenchmarkRecipe
from openba.tokenizer.tokenizer import Tokenizer

PAPER = sorted(path.stem for path in (CONFIGS / "benchmark" / "paper").glob("*.yaml"))
# Benchmark -> where its records lie below shared/data, and how many are evaluated on.
REAL = {
    "mmlu": ("eval_mmlu/*.jsonl", 1900),
    "mmlu-5shot": ("eval_mmlu/*.jsonl", 1900),
    "mmlu-cot": ("eval_mmlu/*.jsonl", 1900),
    "cmmlu": ("eval_cmmlu/*.jsonl", 2700),
    "cmmlu-5shot": ("eval_cmmlu/*.jsonl", 2700),
    "cmmlu-cot": ("eval_cmmlu/*.jsonl", 2700),
    "ceval": ("eval_ceval/*.jsonl", 933),
    "ceval-5shot": ("eval_ceval/*.jsonl", 933),
    "ceval-cot": ("eval_ceval/*.jsonl", 933),
    "bbh": ("eval_bbh/bbh/*.json", 4261),
    "bbh-cot": ("eval_bbh/bbh/*.json", 4261),
    "belebele-en": ("eval_belebele_en/eng_Latn.jsonl", 447),
    "superglue-boolq": ("eval_superglue/BoolQ/val.jsonl", 200),
    "superglue-cb": ("eval_superglue/CB/val.jsonl", 26),
    "superglue-rte": ("eval_superglue/RTE/val.jsonl", 127),
    "superglue-record": ("eval_superglue/ReCoRD/train.jsonl", 32),
    "superglue-wsc": ("eval_superglue/WSC/val.jsonl", 51),
    "superglue-wic": ("eval_superglue/WiC/val.jsonl", 200),
    "superglue-copa": ("eval_superglue/COPA/val.jsonl", 50),
    "superglue-multirc": ("eval_superglue/MultiRC/val.jsonl", None),
    "flores-zh-en": ("eval_flores_zh_en/dev.jsonl", 997),
    "flores-en-zh": ("eval_flores_zh_en/dev.jsonl", 997),
    "clts": ("eval_clts/samples.jsonl", 6),
    "wikiauto": ("eval_wikiauto_turk/valid.jsonl", 700),
    "qqp": ("eval_qqp/valid.jsonl", 1996),
    "roc": ("eval_rocstories/stories.jsonl", 884),
    "ner-mit-restaurant": ("ner_mit/restaurant/*.jsonl", 1521),
    "ner-mit-movie": ("ner_mit/movie_trivia10k13/*.jsonl", 1953),
    "ner-crossner-music": ("ner_crossner/music/*.jsonl", 457),
    "ner-crossner-politics": ("ner_crossner/politics/*.jsonl", 651),
    "ner-crossner-science": ("ner_crossner/science/*.jsonl", 532),
    "humaneval": ("code_humaneval/problems.jsonl", 100),
}
WITHOUT = {"belebele-zh-hans", "belebele-zh-hant", "superglue-axb", "superglue-axg"} | {
    "ner-crossner-ai", "ner-crossner-literature",
}  # fmt: skip
LARGE = {"bbh": 0.2, "bbh-cot": 0.2, "qqp": 0.1, "flores-zh-en": 0.2, "flores-en-zh": 0.2, "roc": 0.2}
"""Share of the items that an oracle answers, for speed."""


SAID = {
    "mmlu-cot": "Think. So the answer is ",
    "bbh-cot": "Think.\nSo the answer is ",
    "ceval-cot": "想。答案是",
    "cmmlu-cot": "答案是：",
}
"""What an oracle says before a chain of thought's answer."""


def recipe_of(name: str, *overrides: str) -> BenchmarkRecipe:
    return load(CONFIGS / "benchmark" / "paper" / f"{name}.yaml", BenchmarkRecipe, list(overrides))


def rendered(benchmark: BenchmarkRecipe, folder: Path, name: str = "x") -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    labelled.build(Build(folder, TaskStep(name=name, task=benchmark.task), {}))
    return pq.read_table(folder / "heldout.parquet").to_pylist()


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each benchmark with data at hand, and its rows; rendered once."""
    known: dict[str, tuple[BenchmarkRecipe, list[dict[str, Any]]]] = {}

    def get(name: str) -> tuple[BenchmarkRecipe, list[dict[str, Any]]]:
        if name not in known:
            paths = [f"task.source.path={shared / 'data' / REAL[name][0]}"]
            if name == "bbh-cot":
                paths.append(f"task.beside.prompt={shared / 'data' / 'eval_bbh'}/cot-prompts/{{id.file}}.txt")
            recipe = recipe_of(name, *paths)
            known[name] = recipe, rendered(recipe, tmp_path_factory.mktemp(name), name)
        return known[name]

    return get


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["CrossNER's .txt", "MIT's .bio"])
def test_tagged_files_as_published_give_the_same_items(
    order: tuple[int, int], real: Any, shared: Path, tmp_path: Path
) -> None:
    (tmp_path / "published").mkdir()
    for file in (shared / "data" / "ner_crossner" / "science").glob("*.jsonl"):
        with (tmp_path / "published" / f"{file.stem}.txt").open("w", encoding="utf-8") as out:
            for sentence in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
                pairs = zip(sentence["tokens"], sentence["tags"], strict=True)
                out.writelines(f"{pair[order[0]]}\t{pair[order[1]]}\n" for pair in pairs)
                out.write("\n")
    overrides = ["task.source.adapter=bio", f"task.source.path={tmp_path / 'published'}"]
    rows = rendered(recipe_of("ner-crossner-science", *overrides), tmp_path / "items")
    _, known = real("ner-crossner-science")
    items = [sorted((row["input"], row["target"]) for row in found) for found in (rows, known)]
    assert items[0] == items[1]


def answered(rows: list[dict[str, Any]], outputs: list[str]) -> list[dict[str, Any]]:
    common = {"scores": [], "attempts": [], "examples_left_out": 0, "cut": False, "unfinished": False}
    return [{**row, **common, "output": text} for row, text in zip(rows, outputs, strict=True)]


def test_every_benchmark_is_tried_or_named() -> None:
    assert set(PAPER) == set(REAL) | WITHOUT


@pytest.mark.parametrize("name", [name for name in sorted(REAL) if name != "humaneval"])
def test_an_oracle_scores_100_on_the_whole_test_set(name: str, real: Any) -> None:
    recipe, rows = real(name)
    if (count := REAL[name][1]) is not None:
        assert len(rows) == count
    rows = rows[: int(LARGE.get(name, 1.0) * len(rows))]
    said = SAID.get(name, "")
    result = score_benchmark(recipe, answered(rows, [said + row["target"] for row in rows]), 1)
    assert result["counts"].keys() <= ({"empty answers"} if name.startswith("ner-") else set())
    assert result["version"] == recipe.version
    assert len(result["licence"]) > 2
    for metric in recipe.metrics:
        if metric not in ("distinct_2", "repetition_2", "mauve", "sim"):
            assert result["scores"][metric] == pytest.approx(100), metric
    for group in result.get("groups", {}).values():
        assert group.get("score", 100) == pytest.approx(100)


@pytest.mark.parametrize("name", ["mmlu", "cmmlu", "ceval", "belebele-en", "superglue-rte", "superglue-copa"])
def test_a_random_guesser_is_at_chance(name: str, real: Any) -> None:
    recipe, rows = real(name)
    guess = random.Random(7)
    result = score_benchmark(recipe, answered(rows, [guess.choice(row["choices"]) for row in rows]), 1)
    chance = 100 / len(rows[0]["choices"])
    assert abs(result["scores"]["accuracy"] - chance) < 3 * result["scores"]["accuracy_stderr"]
    if recipe.groups and recipe.average == "item":
        assert result["groups"]["all"]["score"] == pytest.approx(result["scores"]["accuracy"], abs=1e-3)
        assert result["groups"]["all"]["stderr"] == pytest.approx(result["scores"]["accuracy_stderr"])


@pytest.mark.parametrize("name", ["mmlu-5shot", "cmmlu-5shot", "ceval-5shot", "ceval-cot"])
def test_examples_are_five_of_the_subject_and_never_of_the_test(
    name: str, real: Any, tokenizer: Tokenizer
) -> None:
    recipe, rows = real(name)
    plain, tests = real(name.partition("-")[0])
    asked = {row["input"] for row in tests}
    for row in random.Random(3).sample(rows, 60):
        drawn = [row["input"][a:b] for a, b in zip(row["turns"], row["turns"][1:], strict=False)]
        assert 4 <= len(drawn) <= 5  # a few dev questions also stand in the test part and are left out
        assert len(set(drawn)) == len(drawn)
        if name != "ceval-cot":
            assert not {text.rpartition("答案是：")[0].strip() or text.strip()[:-2] for text in drawn} & asked
        ids, left_out, cut = encode_fitting(tokenizer, row["input"], row["turns"], 400)
        assert len(ids) <= 400
        assert 0 <= left_out <= len(drawn)
        if left_out < len(drawn):
            assert not cut
            bare = encode_fitting(tokenizer, row["input"][row["turns"][left_out] :], (), 400)[0]
            assert ids == bare  # the newest examples stay, whole, and so does the question
    assert len({row["category"] for row in rows}) > 30
    assert recipe.groups == plain.groups


def test_bbh_has_the_data_sets_own_three_chains_and_drops_the_oldest_first(
    real: Any, tokenizer: Tokenizer
) -> None:
    _, rows = real("bbh-cot")
    _, plain = real("bbh")
    asked = {row["id"]: row["input"].removesuffix("Answer:").strip() for row in plain}
    for row in random.Random(3).sample(rows, 60):
        turns, text = row["turns"], row["input"]
        assert len(turns) == 4
        assert "canary" not in text
        question = text[turns[3] :].removeprefix("Q: ").removesuffix("A: Let's think step by step.").strip()
        assert question == asked[row["id"]]
        for begin, end in itertools.pairwise(turns):
            assert "So the answer is" in text[begin:end]
        ids, left_out, cut = encode_fitting(tokenizer, text, turns, 700)
        if left_out and not cut:
            kept = text[: turns[0]] + text[turns[left_out] :]
            assert ids == encode_fitting(tokenizer, kept, (), 10_000)[0]
    assert any(encode_fitting(tokenizer, row["input"], row["turns"], 700)[1] for row in rows[:60])


def test_prompts_and_prefixes_are_the_releases(real: Any) -> None:
    for name, start, end, prefix in (
        ("mmlu", "Question: ", "Answer:", ""),
        ("cmmlu", "以下是关于(", "", "答案是："),
        ("ceval", "以下是关于(", "", "答案是："),
    ):
        recipe, rows = real(name)
        assert (recipe.method, recipe.answer_prefix) == ("letters", prefix)
        for row in rows[:50]:
            assert row["input"].startswith(start)
            assert row["input"].endswith(end)
            assert row["choices"] == ["A", "B", "C", "D"]
    agronomy = next(row for row in real("cmmlu")[1] if row["category"] == "agronomy")
    assert agronomy["input"].startswith("以下是关于(农学)的单项选择题，请直接给出正确答案的选项。题目：")


def test_superglue_items_belong_to_their_questions(real: Any) -> None:
    recipe, rows = real("superglue-multirc")
    questions = {row["category"] for row in rows}
    assert len(rows) > 3 * len(questions) > 100
    wrong = [
        ("no" if row["target"] == "yes" else "yes") if i == 0 else row["target"] for i, row in enumerate(rows)
    ]
    scores = score_benchmark(recipe, answered(rows, wrong), 1)["scores"]
    assert scores["question_exact_match"] == pytest.approx(100 * (1 - 1 / len(questions)), abs=1e-3)
    assert 99 < scores["f1"] < 100


def test_winogender_pairs_and_mcc(tmp_path: Path) -> None:
    recipe = recipe_of("superglue-axg")
    rows = [
        {
            "id": str(i),
            "category": str(i // 2),
            "target": "yes",
            "references": ["yes"],
            "choices": [],
            "input": "x",
        }
        for i in range(8)
    ]
    scores = score_benchmark(
        recipe, answered(rows, ["yes", "yes", "no", "no", "yes", "no", "yes", "yes"]), 1
    )["scores"]
    assert scores["gender_parity"] == 75
    assert scores["accuracy"] == 62.5
    labels = ["yes", "yes", "no", "no"]
    rows = [{**row, "target": label, "references": [label]} for row, label in zip(rows, labels, strict=False)]
    for outputs, expected in ((labels, 100), (["no", "no", "yes", "yes"], -100), (["no"] * 4, 0)):
        found = score_benchmark(recipe_of("superglue-axb"), answered(rows, outputs), 1)["scores"]["matthews"]
        assert found == pytest.approx(expected)


def test_chain_of_thought_answers_are_read_and_what_cannot_be_read_is_counted(real: Any) -> None:
    recipe, rows = real("ceval-cot")
    rows = rows[:4]
    right = rows[0]["target"]
    rows = [{**row, "references": [right], "target": right} for row in rows]
    outputs = [f"先看A。答案是B，不对，答案是：{right}", f"所以答案为 {right}。", "我不知道", ""]
    result = score_benchmark(recipe, answered(rows, outputs), 4)
    assert result["scores"]["exact_match"] == 50
    assert result["counts"] == {"empty answers": 1, "answers not readable": 1}


def golden(path: Path) -> dict[str, CategoryScore]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["subject"]: CategoryScore(float(row["accuracy_percent"]), int(row["questions"])) for row in rows
    }


# Which log is which row: the MMLU 5-shot log equals the row that the paper marks as chain of thought.
MMLU_ROW = ("Humanities", "STEM", "Social sciences", "Other", "all")
CMMLU_ROW = ("Humanities", "STEM", "Social science", "Other", "China-specific", "all")
ROWS = {
    "mmlu_0shot": ("mmlu", MMLU_ROW, (38.7, 33.8, 45.0, 43.6, 40.2)),
    "mmlu_5shot": ("mmlu", MMLU_ROW, (36.7, 31.4, 42.8, 42.3, 38.2)),
    "cmmlu_0shot": ("cmmlu", CMMLU_ROW, (40.9, 33.8, 44.7, 43.6, 38.6, 41.2)),
    "cmmlu_5shot": ("cmmlu", CMMLU_ROW, (40.9, 33.5, 45.2, 44.5, 39.1, 41.5)),
}


@pytest.mark.parametrize("log", sorted(ROWS))
def test_the_released_logs_give_the_papers_rows(log: str, shared: Path) -> None:
    name, groups, figures = ROWS[log]
    row = dict(zip(groups, figures, strict=True))
    recipe = recipe_of(name)
    categories = golden(shared / "data" / "golden_scores" / f"openba_{log}.csv")
    found = average_groups(categories, recipe.groups, recipe.average)
    assert {group: found[group]["score"] for group in row} == pytest.approx(row, abs=0.1)
    assert "ungrouped" not in found["all"]
    assert not any("missing" in group for group in found.values())


def test_ceval_average_is_of_its_subjects() -> None:
    recipe = recipe_of("ceval")
    row = {"STEM": 34.8, "Social science": 46.6, "Humanities": 41.1, "Others": 41.5}
    categories = {name: CategoryScore(row[group], 20) for group in row for name in recipe.groups[group]}
    assert len(categories) == 52
    found = average_groups(categories, recipe.groups, recipe.average)
    assert found["all"]["score"] == pytest.approx(39.8, abs=0.1)
    assert found["Hard"]["categories"] == 8


def test_half_a_subject_list_is_told() -> None:
    found = average_groups(
        {"law": CategoryScore(50, 10, 5.0), "odd": CategoryScore(0, 10, 5.0)},
        {"H": ["law", "logic"], "S": ["x"]},
        "item",
    )
    assert found["H"] == {"n": 10, "categories": 1, "missing": ["logic"], "score": 50, "stderr": 5.0}
    assert found["S"] == {"n": 0, "categories": 0, "missing": ["x"]}
    assert found["all"]["ungrouped"] == ["odd"]
    assert found["all"]["score"] == 25
    assert found["all"]["stderr"] == pytest.approx(3.5355)


def test_a_wrong_answer_letter_and_an_unknown_subject_are_named(tmp_path: Path) -> None:
    options = '"A": "1", "B": "2", "C": "3", "D": "4"'
    record = f'{{"subject": "%s", "split": "test", "question": "q", {options}, "answer": "%s"}}\n'
    cases = (
        ("agronomy", "E", "answer 'E' is none of its 4 options"),
        ("agronmy", "A", "wording.subject has no word for 'agronmy'"),
    )
    for subject, answer, message in cases:
        (tmp_path / "agronomy.jsonl").write_text(record % (subject, answer), encoding="utf-8")
        with pytest.raises(UserError, match=message) as error:
            rendered(
                recipe_of("cmmlu", f"task.source.path={tmp_path}/*.jsonl", "task.broken=refuse"),
                tmp_path / "out",
            )
        assert "agronomy.jsonl" in str(error.value)


def test_broken_records_are_left_out_counted_and_named(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "data" / "eval_cmmlu" / "agronomy.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows[10]["answer"] = "E"
    del rows[11]["C"]
    (tmp_path / "agronomy.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    found = rendered(recipe_of("cmmlu", f"task.source.path={tmp_path}/*.jsonl"), tmp_path / "out")
    assert len(found) == len(rows) - 5 - 2
    left_out = broken_records(tmp_path / "out")["broken"]
    assert left_out["records"] == 2
    assert "agronomy.jsonl:11: answer 'E' is none of its 4 options" in left_out["first"][0]
    assert "has no field 'C'" in left_out["first"][1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: row.pop("question"), "has no field 'question'"),
        (lambda row: row.pop("split"), "has no field 'split'"),
        (lambda row: row.pop("B"), "has no field 'B'"),
        (lambda row: row.update(subject="agronmy"), "wording.subject has no word for 'agronmy'"),
        (lambda row: row.update(answer=7), "answer 7 is none of its 4 options"),
    ],
)
def test_what_a_template_misses_is_counted_and_the_rest_is_asked(
    change: Any, told: str, shared: Path, tmp_path: Path
) -> None:
    lines = (shared / "data" / "eval_cmmlu" / "agronomy.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    whole = sum(row["split"] == "test" for row in rows)
    change(next(row for row in rows if row["split"] == "test"))
    (tmp_path / "agronomy.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    found = rendered(recipe_of("cmmlu", f"task.source.path={tmp_path}/*.jsonl"), tmp_path / "out")
    assert len(found) == whole - 1
    left_out = broken_records(tmp_path / "out")["broken"]
    assert left_out["records"] == 1
    assert told in left_out["first"][0]
    with pytest.raises(UserError, match=r"agronomy\.jsonl"):
        rendered(
            recipe_of("cmmlu", f"task.source.path={tmp_path}/*.jsonl", "task.broken=refuse"),
            tmp_path / "refused",
        )


def test_sentences_with_broken_tags_do_not_hide_the_others_labels(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["B-x", "O"]}, {"tokens": ["a"], "tags": ["O", "O"]}, {"tags": []}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    found = rendered(recipe_of("ner-mit-movie", f"task.source.path={tmp_path}/*.jsonl"), tmp_path / "out")
    assert [row["target"] for row in found] == ["[a](x)"]
    assert "tags: x. Sentence" in found[0]["input"]
    assert broken_records(tmp_path / "out")["broken"]["records"] == 2
