"""The length of a conversation's content against labelled talks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality.experts import is_simple, labelled, precision_and_recall
from openba.data.simple_talk import WORDS_PER_HAN_CHARACTER, content_words


@pytest.mark.parametrize(("name", "least"), [("simple_talks", 80), ("simple_heldout", 30)])
@pytest.mark.parametrize("language", ["zh", "en"])
def test_precision_and_recall_on_the_labelled_talks(language: str, name: str, least: int) -> None:
    rows = [row for row in labelled(name) if row["language"] == language]
    assert len(rows) >= least
    precision, recall = precision_and_recall([(row["simple"], is_simple(row)) for row in rows])
    assert precision >= 95
    assert recall >= 95


def test_length_is_by_language() -> None:
    greetings = ["Hi! Hello! " * 6]
    chinese = [
        "水为什么会结冰？",
        "因为温度降到零度以下时，水分子排列成规则的晶体，体积也会变大。",
    ]
    assert content_words(greetings) == 0
    assert content_words(chinese) == pytest.approx(
        len(re.findall("[\u4e00-\u9fff]", "".join(chinese))) * WORDS_PER_HAN_CHARACTER
    )
    assert content_words(["the cat's tail, 3.5 cm"]) == 5


def test_what_is_quoted_is_content() -> None:
    assert content_words(['Translate "thank you" into French.']) == 5
    assert content_words(["把“谢谢”翻译成英语。"]) == pytest.approx(8 * WORDS_PER_HAN_CHARACTER)
    assert content_words(["Thank you!"]) == 0


@given(st.lists(st.text(max_size=40), max_size=4))
def test_every_turn_adds_its_own_length(texts: list[str]) -> None:
    assert content_words(texts) == pytest.approx(sum(content_words([text]) for text in texts))
    assert content_words(texts) >= 0
