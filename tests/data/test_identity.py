"""The identity filter against labelled turns: our own, and public conversations where they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.quality.experts import LABELLED, labelled, precision_and_recall, public_verdicts
from openba.data.identity import states_identity

FIELDS = {
    "chat_moss": ("conversations.jsonl", "chat", "MOSS", ("MOSS",)),
    "chat_sharegpt_zh": ("conversations.jsonl", "conversations", "value", ()),
    "tool_moss_search": ("conversations.jsonl", "chat", "MOSS", ()),
}
"""Public set -> file, list of turns, key of an answer, names of the models that wrote the answers."""


@pytest.mark.parametrize(("name", "least"), [("identity_turns", 200), ("identity_heldout", 59)])
@pytest.mark.parametrize("language", ["zh", "en"])
def test_precision_and_recall_on_the_labelled_turns(language: str, name: str, least: int) -> None:
    rows = [row for row in labelled(name) if row["language"] == language]
    assert len(rows) >= least
    assert sum(row["identity"] for row in rows) >= least / 2
    precision, recall = precision_and_recall(
        [(row["identity"], states_identity(row["text"])) for row in rows]
    )
    assert precision >= 95
    assert recall >= 95


def test_traditional_characters_are_read_as_well() -> None:
    rows = [
        row
        for row in labelled("identity_turns")
        if re.search("[個為學體機們這電訓練請無還說話覺關謝錢嗎務會對]", row["text"])
    ]
    assert len(rows) >= 35
    precision, recall = precision_and_recall(
        [(row["identity"], states_identity(row["text"])) for row in rows]
    )
    assert precision >= 95
    assert recall >= 95


def public_turns(folder: Path) -> Iterator[tuple[str, str, bool, bool]]:
    """(set, text, label, verdict) of each public answer; `identity_public.json` lists those labelled true."""
    positions = json.loads((LABELLED / "identity_public.json").read_text(encoding="utf-8"))
    for name, (file, turns, key, model_names) in FIELDS.items():
        true = {(row, turn) for row, turn in positions[name]}
        lines = (folder / name / file).read_text(encoding="utf-8").splitlines()
        for row, line in enumerate(lines):
            for turn, said in enumerate(json.loads(line)[turns]):
                if said.get("from") != "human":
                    verdict = states_identity(said[key], model_names)
                    yield name, said[key], (row, turn) in true, verdict


def test_precision_and_recall_on_public_answers_that_no_rule_was_written_from(shared: Path) -> None:
    verdicts = public_verdicts()
    assert len(verdicts) > 7600
    precision, recall = precision_and_recall(verdicts)
    assert precision >= 95
    assert recall >= 95


def test_precision_and_recall_on_public_conversations(shared: Path) -> None:
    turns = list(public_turns(shared / "data"))
    assert len(turns) > 1700
    chinese = re.compile("[\u4e00-\u9fff]")
    for is_chinese in (True, False):
        verdicts = [
            (label, verdict)
            for _, text, label, verdict in turns
            if (len(chinese.findall(text)) > 20) == is_chinese
        ]
        assert sum(label for label, _ in verdicts) > 50
        precision, recall = precision_and_recall(verdicts)
        assert precision >= 95
        assert recall >= 95


@pytest.mark.parametrize(
    ("text", "names", "verdict"),
    [
        ("As an AI language model, I can't.", (), True),
        ("作为一名AI助手，我不能。", (), True),
        ("我是文心一言。", (), True),
        ("Claude Monet painted it.", (), False),
        ("The Bard of Avon wrote it.", (), False),
        ("MOSS can write code.", (), False),
        ("MOSS can write code.", ("MOSS",), True),
        ("MOSS可以写代码。", ("MOSS",), True),
        ("Mosses grow in the shade.", ("MOSS",), False),
    ],
)
def test_names_of_the_answering_model_count_in_the_third_person(
    text: str, names: tuple[str, ...], verdict: bool
) -> None:
    assert states_identity(text, names) == verdict
