"""Every shipped task and benchmark, on real data where it is at hand and else on made records of its form.

Inputs differ from record to record, no field is left unfilled, no target holds control text, and the right
answer is among the options.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.quality import shipped
from openba.config import CONFIGS, load
from openba.data.fields import names_in
from openba.data.labelled import render
from openba.data.labelled_checks import CONTROL
from openba.data.sources import read
from openba.errors import UserError
from openba.recipes.data import TaskRecipe
from openba.recipes.evaluate import BenchmarkRecipe


def test_every_file_has_data_or_a_made_record() -> None:
    without_source = [name for name in shipped.names() if name not in shipped.REAL | shipped.MADE]
    for name in without_source:
        kind = BenchmarkRecipe if name.startswith("benchmark/") else TaskRecipe
        loaded = load(CONFIGS / f"{name}.yaml", kind)
        task = loaded if isinstance(loaded, TaskRecipe) else loaded.task
        path = getattr(task.source, "path", "configs/")
        assert path.startswith("configs/"), name  # a package, or a file of the repository
    assert not shipped.REAL.keys() & shipped.MADE.keys()
    assert shipped.REAL.keys() | shipped.MADE.keys() <= set(shipped.names())


@pytest.mark.parametrize("name", shipped.names())
def test_no_shipped_task_is_degenerate(name: str, tmp_path: Path) -> None:
    if name not in shipped.MADE and not shipped.has_data(name):
        pytest.skip("no ../shared folder with real data sets")
    task = shipped.rendered(name, tmp_path)
    pairs = task.pairs()
    assert pairs
    of_questions, of_pairs = task.distinct()
    assert of_questions >= 0.99
    assert of_pairs >= 0.9
    assert task.rendered.warnings == []
    named = names_in(tuple(turn.input for turn in task.recipe.templates))
    unfilled = re.compile("|".join(rf"\{{{re.escape(field)}[}}.:\[]" for field in sorted(named)))
    own_texts = task.raw_records()
    for pair in pairs:
        assert pair["input"].strip()
        if found := unfilled.search(pair["input"]):  # LaTeX such as \bar{A} has braces of its own
            assert found[0] in str(own_texts[pair["id"]])
        assert not CONTROL.search(pair["target"]), pair["target"]
        if pair["choices"]:
            assert pair["target"] in pair["choices"]


def jsonl(path: Path, rows: list[dict[str, object]], **keys: object) -> TaskRecipe:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"adapter": "jsonl", "path": str(path), "text_field": None, "language": "en", "licence": "test"}
    return TaskRecipe.model_validate({"source": source, "heldout": 0.0, **keys})


def inputs(recipe: TaskRecipe) -> list[str]:
    return (
        render(recipe, pa.Table.from_batches(read("mine", recipe.source)), "mine").train["input"].to_pylist()
    )


@pytest.mark.parametrize("field", ["source", "language", "id", "text"])
def test_the_records_own_field_wins(field: str, tmp_path: Path) -> None:
    rows = [{field: f"value {n}", "target": f"answer {n}"} for n in range(30)]
    recipe = jsonl(tmp_path / "x.jsonl", rows, templates=[{"input": f"{{{field}}}?", "target": "{target}"}])
    assert inputs(recipe) == [f"value {n}?" for n in range(30)]


def test_the_text_under_another_name_leaves_a_field_text_alone(tmp_path: Path) -> None:
    rows = [{"body": f"body {n}", "text": f"text {n}", "key": n} for n in range(3)]
    templates = [{"input": "{body} {text} {key} {id}", "target": "x"}]
    recipe = jsonl(tmp_path / "x.jsonl", rows, templates=templates)
    source = recipe.source.model_copy(update={"text_field": "body", "id_field": "key"})
    assert inputs(recipe.model_copy(update={"source": source})) == [
        f"body {n} text {n} {n} {n}" for n in range(3)
    ]


def test_an_own_id_leaves_the_files_name(tmp_path: Path) -> None:
    rows = [{"id": 7, "items": [{"id": "q", "n": 1}, {"n": 2}], "answer": "x"}]
    templates = [{"input": "{id} {id.file} {id.parent} {n}", "target": "{answer}"}]
    recipe = jsonl(tmp_path / "law.jsonl", rows, each=["items"], templates=templates)
    assert inputs(recipe) == ["q law law.jsonl:1 1", "7 law law.jsonl:1 2"]


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        (
            {"q": "?", "options": ["a", "b"], "answer": "B", "letter": "mine"},
            {
                "options": {"of": ["options"], "answer": "answer"},
                "templates": [{"input": "{q}", "target": "{letter}"}],
            },
        ),
        (
            {"tokens": ["a"], "tags": ["B-x"], "text": "another text"},
            {
                "tagged": {"tokens": "tokens", "tags": "tags"},
                "templates": [{"input": "{text}", "target": "{entities}"}],
            },
        ),
        (
            {"conversations": ["a", "b"], "answer": "mine"},
            {
                "dialogue": {"field": "conversations"},
                "conversation": True,
                "templates": [{"input": "{history}", "target": "{answer}"}],
            },
        ),
        (
            {
                "messages": [{"role": "user", "content": "a"}],
                "conversations": [{"from": "human", "value": "b"}],
            },
            {"conversation": True, "templates": [{"input": "{history}", "target": "{answer}"}]},
        ),
    ],
    ids=["options", "tagged", "conversation", "two conversations"],
)
def test_a_field_that_the_task_would_overwrite_is_refused_by_name(
    row: dict[str, object], keys: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"x\.jsonl:1: (the record has a field '\w+'|it has both messages)"):
        inputs(jsonl(tmp_path / "x.jsonl", [row], **keys))


def test_a_template_that_asks_every_record_the_same_is_refused(tmp_path: Path) -> None:
    rows = [{"question": f"{n}+1?", "sum": n + 1} for n in range(300)]
    templates = [{"input": "{question}", "target": "{sum}"}, {"input": "Add.", "target": "{sum}"}]
    recipe = jsonl(tmp_path / "x.jsonl", rows, templates=templates)
    with pytest.raises(
        UserError, match=r"template 'Add\.' makes 1 different inputs of \d+ different records"
    ):
        inputs(recipe)


def test_suspicious_tasks_get_a_warning(tmp_path: Path) -> None:
    rows = [{"question": f"{n // 4}+1?", "note": "", "sum": f"{n}<|endoftext|>"} for n in range(100)]
    recipe = jsonl(tmp_path / "x.jsonl", rows, templates=[{"input": "{question}{note}", "target": "{sum}"}])
    rendered = render(recipe, pa.Table.from_batches(read("mine", recipe.source)), "mine")
    repeated, empty, control = rendered.warnings
    assert "makes 25 different inputs of 100 different records" in repeated
    assert "field 'note' is empty in all 100 records" in empty
    assert "100 targets hold the control text '<|endoftext|>'" in control
    mended = recipe.model_copy(update={"replace": {"<|endoftext|>": ""}})
    targets = render(mended, pa.Table.from_batches(read("mine", recipe.source))).train["target"].to_pylist()
    assert targets[0] == "0"


def test_copies_of_one_record_are_no_mistake_of_the_template(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"question": "1+1?", "sum": 2}] * 100
    recipe = jsonl(tmp_path / "x.jsonl", rows, templates=[{"input": "{question}", "target": "{sum}"}])
    assert inputs(recipe) == ["1+1?"]
