"""Private values planted in real sentences, and numbers that are none: made here, by form, from a seed.

Owns the forms. What finds them is `openba.data.clean.privacy`, which knows nothing of this list; identity
cards, dates, amounts and the like are on the other side: the paper removes phones, addresses and links only.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Draw = Callable[[random.Random], str]

_FULL_WIDTH = str.maketrans("0123456789+-()@.:/", "０１２３４５６７８９＋－（）＠．：／")
_NAMES = ("zhang.wei", "li_na", "wang-fang", "Chen2008", "service", "hr+cv", "x.y.z", "info", "13800138000")
_HOSTS = ("example.com", "mail.pku.edu.cn", "163.com", "qq.com", "news.bbc.co.uk", "my-shop.com.cn", "gov.cn")
_PATHS = ("", "/", "/index.html", "/a/b?x=1&y=2", "/wiki/Foo_(bar)", "/~user/#top", ":8080/path")


def _digits(draw: random.Random, n: int, first: str = "0123456789") -> str:
    return draw.choice(first) + "".join(draw.choice("0123456789") for _ in range(n - 1))


def _mobile(draw: random.Random) -> str:
    return "1" + draw.choice("3456789") + _digits(draw, 9)


def _grouped(separator: str, sizes: tuple[int, ...]) -> Draw:
    def made(draw: random.Random) -> str:
        number, parts = _mobile(draw), list[str]()
        for size in sizes:
            parts, number = [*parts, number[:size]], number[size:]
        return separator.join(parts)

    return made


def _landline(pattern: str) -> Draw:
    """`A` an area of 3 digits, `B` of 4 (small: without the 0); `S` seven digits, `E` 8, `F` 4, `T` 3."""

    def made(draw: random.Random) -> str:
        area3, area4 = draw.choice(["010", "021", "025", "029"]), "0" + _digits(draw, 3, "3456789")
        known = {"A": area3, "B": area4, "a": area3[1:], "b": area4[1:]}
        known |= {"S": _digits(draw, 7, "2345678"), "E": _digits(draw, 8, "2345678")}
        known |= {"F": _digits(draw, 4), "T": _digits(draw, 3)}
        return "".join(known.get(letter, letter) for letter in pattern)

    return made


def _address(draw: random.Random) -> str:
    return f"{draw.choice(_NAMES)}@{draw.choice(_HOSTS)}"


def _link(start: str) -> Draw:
    return lambda draw: f"{start}{draw.choice(_HOSTS)}{draw.choice(_PATHS)}"


FORMS: dict[str, tuple[str, Draw]] = {
    "mobile": ("phone", _mobile),
    "mobile 3-4-4": ("phone", _grouped("-", (3, 4, 4))),
    "mobile 3 4 4": ("phone", _grouped(" ", (3, 4, 4))),
    "mobile 3.4.4": ("phone", _grouped(".", (3, 4, 4))),
    "mobile 4-3-4": ("phone", _grouped("-", (4, 3, 4))),
    "mobile, en dash": ("phone", _grouped("–", (3, 4, 4))),
    "mobile full width": ("phone", lambda draw: _mobile(draw).translate(_FULL_WIDTH)),
    "+86 mobile": ("phone", lambda draw: f"+86 {_mobile(draw)}"),
    "+86mobile": ("phone", lambda draw: f"+86{_mobile(draw)}"),
    "+86-mobile": ("phone", lambda draw: f"+86-{_mobile(draw)}"),
    "0086 mobile": ("phone", lambda draw: f"0086{_mobile(draw)}"),
    "(86) mobile": ("phone", lambda draw: f"(86){_mobile(draw)}"),
    "86-mobile": ("phone", lambda draw: f"86-{_mobile(draw)}"),
    "full-width +86": ("phone", lambda draw: f"+86-{_mobile(draw)}".translate(_FULL_WIDTH)),
    "landline 010-8": ("phone", _landline("A-E")),
    "landline 0108": ("phone", _landline("AE")),
    "landline (010)8": ("phone", _landline("(A)E")),
    "landline （010）8": ("phone", _landline("（A）E")),
    "landline 010 8": ("phone", _landline("A E")),
    "landline 0755-8": ("phone", _landline("B-E")),
    "landline 0755-7": ("phone", _landline("B-S")),
    "landline 07557": ("phone", _landline("BS")),
    "landline extension": ("phone", _landline("A-E-F")),
    "landline 转": ("phone", _landline("A-E转T")),
    "landline +86 10": ("phone", _landline("+86 a E")),
    "landline +86-755-": ("phone", _landline("+86-b-E")),
    "landline 86-10-": ("phone", _landline("86-a-E")),
    "landline full width": ("phone", lambda draw: _landline("A-E")(draw).translate(_FULL_WIDTH)),
    "landline two": ("phone", _landline("A-E/E")),
    "service 400-3-4": ("phone", _landline("400-T-F")),
    "service 800 7": ("phone", _landline("800-S")),
    "service 4008-": ("phone", lambda draw: f"400-{_digits(draw, 4)}-{_digits(draw, 3)}"),
    "电话：8": ("phone", lambda d: "电话：" + _digits(d, 8, "2345678")),
    "Tel: 8": ("phone", lambda d: "Tel: " + _digits(d, 8, "2345678")),
    "传真 7": ("phone", lambda d: "传真 " + _digits(d, 7, "2345678")),
    "US (3) 3-4": ("phone", lambda d: f"({_digits(d, 3, '23456789')}) {_digits(d, 3)}-{_digits(d, 4)}"),
    "US 3-3-4": ("phone", lambda d: f"{_digits(d, 3, '23456789')}-{_digits(d, 3)}-{_digits(d, 4)}"),
    "US 3.3.4": ("phone", lambda d: f"{_digits(d, 3, '23456789')}.{_digits(d, 3)}.{_digits(d, 4)}"),
    "US 1-3-3-4": ("phone", lambda d: f"1-{_digits(d, 3, '23456789')}-{_digits(d, 3)}-{_digits(d, 4)}"),
    "+1 US": ("phone", lambda d: f"+1 {_digits(d, 3, '23456789')} {_digits(d, 3)} {_digits(d, 4)}"),
    "+44": ("phone", lambda d: f"+44 20 {_digits(d, 4)} {_digits(d, 4)}"),
    "+49 (0)": ("phone", lambda d: f"+49 (0)30 {_digits(d, 8)}"),
    "+81": ("phone", lambda d: f"+81-3-{_digits(d, 4)}-{_digits(d, 4)}"),
    "+852": ("phone", lambda d: f"+852 {_digits(d, 4, '2356789')} {_digits(d, 4)}"),
    "+33": ("phone", lambda d: f"+33 1 {_digits(d, 2)} {_digits(d, 2)} {_digits(d, 2)} {_digits(d, 2)}"),
    "e-mail": ("email", _address),
    "E-MAIL": ("email", lambda draw: _address(draw).upper()),
    "e-mail full-width at": ("email", lambda draw: _address(draw).replace("@", "＠")),
    "http": ("link", _link("http://")),
    "https": ("link", _link("https://")),
    "http www": ("link", _link("http://www.")),
    "www": ("link", _link("www.")),
    "HTTP": ("link", lambda draw: _link("HTTP://WWW.")(draw)),
    "ftp": ("link", _link("ftp://")),
    "http full-width colon": ("link", _link("http：//")),
    "bare host": ("link", lambda draw: draw.choice(["taobao.com", "my-shop.cn", "a1.com"])),
    "bare host and path": ("link", lambda draw: f"example.com.cn/{_digits(draw, 4)}.html"),
}  # fmt: skip
"""Name -> rule that has to find it, and how one is made."""

OTHERS: dict[str, Draw] = {
    "date": lambda d: f"{d.randint(1949, 2026)}年{d.randint(1, 12)}月{d.randint(1, 28)}日",
    "ISO date": lambda d: f"{d.randint(1949, 2026)}-{d.randint(1, 12):02d}-{d.randint(1, 28):02d}",
    "compact date": lambda d: f"{d.randint(1949, 2026)}{d.randint(1, 12):02d}{d.randint(1, 28):02d}",
    "date range": lambda d: f"{d.randint(1900, 1950)}-{d.randint(1951, 2026)}",
    "time": lambda d: f"{d.randint(0, 23):02d}:{d.randint(0, 59):02d}:{d.randint(0, 59):02d}",
    "date and time": lambda d: f"20{d.randint(10, 26)}-{d.randint(1, 12):02d}-{d.randint(1, 28):02d} 08:30",
    "stamp": lambda d: f"20{d.randint(10, 26)}{d.randint(1, 12):02d}{d.randint(1, 28):02d}{_digits(d, 6)}",
    "yuan": lambda d: f"{_digits(d, 8, '123456789')}元",
    "grouped": lambda d: f"{d.randint(1, 999)},{_digits(d, 3)},{_digits(d, 3)},{_digits(d, 3)}",
    "decimal": lambda d: f"{_digits(d, 4, '123456789')}.{_digits(d, 6)}",
    "dollars": lambda d: f"${_digits(d, 10, '123456789')}",
    "per cent": lambda d: f"{_digits(d, 2, '123456789')}.{_digits(d, 2)}%",
    "identity card": lambda d: (
        f"110105{d.randint(1950, 2005)}{d.randint(1, 12):02d}{d.randint(1, 28):02d}"
        f"{_digits(d, 3)}{d.choice('0123456789X')}"
    ),
    "bank card": lambda d: "6222" + _digits(d, 15),
    "bank card in groups": lambda d: "6222 " + " ".join(_digits(d, 4) for _ in range(3)),
    "ISBN-13": lambda d: f"978-7-{_digits(d, 3)}-{_digits(d, 5)}-{_digits(d, 1)}",
    "ISBN-10": lambda d: f"7-{_digits(d, 3)}-{_digits(d, 5)}-{d.choice('0123456789X')}",
    "order": lambda d: _digits(d, 16, "23456789"),
    "post code": lambda d: _digits(d, 6, "123456789"),
    "stock": lambda d: "600" + _digits(d, 3),
    "emergency": lambda d: d.choice(["110", "119", "120", "12315", "95588", "10086"]),
    "score": lambda d: f"{d.randint(0, 150)}-{d.randint(0, 150)}",
    "version": lambda d: f"v{d.randint(0, 20)}.{d.randint(0, 20)}.{d.randint(0, 200)}",
    "address of a host": lambda d: ".".join(str(d.randint(1, 254)) for _ in range(4)),
    "coordinates": lambda d: f"{d.randint(10, 89)}.{_digits(d, 4)},{d.randint(100, 179)}.{_digits(d, 4)}",
    "law": lambda d: f"国发〔{d.randint(1990, 2025)}〕{d.randint(1, 99)}号",
    "population": lambda d: f"{_digits(d, 9, '23456789')}人",
    "scientific": lambda d: f"{_digits(d, 1, '123456789')}.{_digits(d, 3)}e+{d.randint(10, 99)}",
    "hexadecimal": lambda d: f"0x{_digits(d, 8)}",
    "digits of pi": lambda d: f"3.14159265358979{_digits(d, 6)}",
}
"""Name -> how a number is made that is none of what privacy filtering removes."""

_DIGITS = ("０１２３４５６７８９", "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗", "𝟶𝟷𝟸𝟹𝟺𝟻𝟼𝟽𝟾𝟿", "⓪①②③④⑤⑥⑦⑧⑨", "₀₁₂₃₄₅₆₇₈₉")
_BETWEEN = (
    "\u200b", "\xad", "\u3000", "\u2002", "\u2581", "\n", "\t", "----", "----------------", "\ue000", "<b>",
    "<!-- x -->", "&#8203;", "锟斤拷", "\n短句。\n", " http://a.cn/ ", "\u200d", "…", "\u0301",
)  # fmt: skip
_MORE_FORMS: tuple[Draw, ...] = (
    lambda d: f"400{d.choice('016789')}{_digits(d, 6)}",
    lambda d: f"http://例子.中国/{_digits(d, 3)}",
    lambda d: f"王@例子.公司 {_address(d)}",
    lambda d: f"bit.ly/{_digits(d, 5)}",
    lambda d: f"{d.choice(_NAMES)}@例子.中国",
)


def planted_document(draw: random.Random) -> str:
    """Return a paragraph with a private value of any form and width, other characters within it."""
    value = draw.choice(_MORE_FORMS)(draw) if draw.random() < 0.2 else draw.choice([*FORMS.values()])[1](draw)
    form = draw.randrange(5)
    if form == 1:
        value = value.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)})
    elif form == 2:
        value = value.translate(str.maketrans("0123456789", draw.choice(_DIGITS)))
    elif form >= 3:
        places = sorted(draw.randrange(len(value) + 1) for _ in range(draw.randint(1, 2)))
        for place in reversed(places):
            value = value[:place] + draw.choice(_BETWEEN) + value[place:]
    name = "".join(chr(draw.randrange(0x4E00, 0x5E00)) for _ in range(3))
    other = draw.choice([*OTHERS.values()])(draw)
    return (
        f"这一天上午十点钟左右，我们在城里遇到了老朋友{name}，聊了很久才分手。他说可以通过"
        f"{draw.choice(['', '电话', '邮箱：', '（', '网址 '])}{value}"
        f"{draw.choice(['', '，', '）', '。', ' '])}来联系{name}本人，编号{other}的事情以后再说。"
    )
