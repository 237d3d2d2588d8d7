"""Questions with options: as published in CSV, as JSON lines, with broken rows, with fixed examples."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import labelled
from openba.errors import UserError
from openba.recipes.data import TaskStep
from openba.recipes.evaluate import BenchmarkRecipe

LETTERS = ("A", "B", "C", "D")


def rendered(name: str, path: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    recipe = load(
        CONFIGS / "benchmark" / "paper" / f"{name}.yaml",
        BenchmarkRecipe,
        [f"task.source.path={path}", *more],
    )
    out.mkdir()
    labelled.build(Build(out, TaskStep(name=name, task=recipe.task), {}))
    return pq.read_table(out / "heldout.parquet").to_pylist()


def asked(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return sorted((row["category"], row["input"], row["target"]) for row in rows)


def publish(name: str, records: Path, out: Path) -> None:
    """Write the records as the data set publishes them."""
    for file in records.glob("*.jsonl"):
        by_split: dict[str, list[dict[str, Any]]] = {}
        for record in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            by_split.setdefault(record["split"], []).append(record)
        for split, of_split in by_split.items():
            (out / split).mkdir(parents=True, exist_ok=True)
            stem = file.stem if name == "cmmlu" else f"{file.stem}_{split}"
            with (out / split / f"{stem}.csv").open("w", encoding="utf-8", newline="") as sheet:
                write = csv.writer(sheet)
                if name == "cmmlu":
                    write.writerow(["", "Question", *LETTERS, "Answer"])
                elif name == "ceval":
                    explained = ["explanation"] if split == "dev" else []
                    write.writerow(["id", "question", *LETTERS, "answer", *explained])
                for number, record in enumerate(of_split):
                    row = [record["question"], *(record[letter] for letter in LETTERS), record["answer"]]
                    explained = [record["explanation"]] if name == "ceval" and split == "dev" else []
                    write.writerow([*([] if name == "mmlu" else [number]), *row, *explained])


@pytest.mark.parametrize("name", ["mmlu", "cmmlu", "ceval"])
def test_files_as_published_give_the_same_items(name: str, shared: Path, tmp_path: Path) -> None:
    records = shared / "data" / f"eval_{name}"
    publish(name, records, tmp_path / "csv")
    if name == "ceval":  # whose test split comes without answers
        (tmp_path / "csv" / "test").mkdir()
        text = "id,question,A,B,C,D\n0,无答案,1,2,3,4\n"
        (tmp_path / "csv" / "test" / "law_test.csv").write_text(text, encoding="utf-8")
    from_csv = rendered(name, tmp_path / "csv", tmp_path / "a")
    from_json = rendered(name, records, tmp_path / "b")
    assert len(from_csv) > 900
    assert asked(from_csv) == asked(from_json)
    metadata = pq.read_schema(tmp_path / "a" / "heldout.parquet").metadata
    assert json.loads(metadata[b"broken"]) == []


def test_a_broken_row_is_counted_and_the_rest_is_asked(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "data" / "eval_mmlu" / "anatomy.jsonl").read_text(encoding="utf-8").splitlines()
    tests = sum(json.loads(line)["split"] == "test" for line in lines)
    (tmp_path / "anatomy.jsonl").write_text("\n".join([*lines, '{"question": "cut o']), encoding="utf-8")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "virology_test.csv").write_text("Why?,1,2,3,4,B\nToo,few\n", encoding="utf-8")
    assert len(rendered("mmlu", tmp_path, tmp_path / "out")) == tests + 1
    metadata = pq.read_schema(tmp_path / "out" / "heldout.parquet").metadata
    assert json.loads(metadata[b"discarded"])["broken"] == 2
    first, second = json.loads(metadata[b"broken"])
    assert re.search(r"anatomy\.jsonl: row \d+: no valid JSON", first)
    assert "virology_test.csv: row 2: 2 fields, 6 are expected" in second
    with pytest.raises(UserError, match="no valid JSON"):
        rendered("mmlu", tmp_path, tmp_path / "refused", "task.broken=refuse")


def test_a_file_of_nothing_but_broken_lines_is_named(tmp_path: Path) -> None:
    (tmp_path / "anatomy.jsonl").write_text("{\n{\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no record can be read; first: .*row 1: no valid JSON"):
        rendered("mmlu", tmp_path, tmp_path / "out")


def test_all_questions_of_a_subject_have_the_same_examples(shared: Path, tmp_path: Path) -> None:
    records = shared / "data" / "eval_cmmlu"
    examples: dict[str, set[str]] = {}
    rows = rendered("cmmlu-5shot", records, tmp_path / "fixed")
    for row in rows:
        examples.setdefault(row["category"], set()).add(row["input"][: row["turns"][-1]])
    assert len(examples) > 40
    assert all(len(found) == 1 for found in examples.values())
    lines = (records / "agronomy.jsonl").read_text(encoding="utf-8").splitlines()
    dev = [row["question"] for row in map(json.loads, lines) if row["split"] == "dev"]
    (text,) = examples["agronomy"]
    places = [text.find(question) for question in dev]
    assert places == sorted(places)
    assert -1 not in places
    drawn = rendered("cmmlu-5shot", records, tmp_path / "drawn", *DRAWN)
    orders = {row["input"][: row["turns"][-1]] for row in drawn if row["category"] == "agronomy"}
    assert len(orders) > 10


DRAWN = [
    'task.templates=[{"input": "{examples}{question}", "target": "{letter}", "shots": 5, '
    '"example": "{question} {letter}\\n "}]'
]


def test_a_letter_names_its_option_first(tmp_path: Path) -> None:
    options = dict(zip("ABCD", "BCDA", strict=True))
    rows = [{"subject": "anatomy", "split": "test", **options, "answer": letter} for letter in "ABCD"]
    text = "".join(json.dumps({**row, "question": f"{i}?"}) + "\n" for i, row in enumerate(rows))
    (tmp_path / "anatomy.jsonl").write_text(text, encoding="utf-8")
    found = rendered("mmlu", tmp_path, tmp_path / "out")
    targets = sorted((row["input"][10], row["target"]) for row in found)
    assert targets == [("0", "A"), ("1", "B"), ("2", "C"), ("3", "D")]
