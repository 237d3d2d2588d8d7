"""Phone numbers, e-mail addresses and web links (paper section 3.1.1, privacy filtering).

Owns what counts as one. Phones: Chinese mobile, landline and service numbers with or without +86,
North American and international forms, and bare local numbers after a word such as 电话; digits and
signs may be full-width. Dates, amounts, identity cards and ISBNs are none, nor are 110 and 95588.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
from numba import njit

from openba.data.clean.columns import RULE_CODE, SPACE, Texts, as_string, classes, grown

RULES = ("link", "email", "phone")

# ASCII only, so that a link glued to Chinese text ends where the Chinese begins. A closing bracket
# belongs to the link only with its opening one, a final stop or comma to the sentence.
_URL = r"(?:[!#-&*-;=?-Z\[\]_a-z~]|\([!#-&*-;=?-Z\[\]_a-z~]*\))*(?<=[A-Za-z0-9/#=&_~%+$)-])"
_LINK = rf"""
    (?:https?|ftps?)[:：]?//{_URL}
  | (?<![A-Za-z0-9])www\.{_URL}
  | (?<![A-Za-z0-9@._-])(?!(?:asp|ado|vb)\.net)(?:[A-Za-z0-9-]+\.)+
    (?:com|cn|org|edu|gov|net|info|cc|tv|hk|tw)(?![A-Za-z0-9-])(?::[0-9]{{2,5}})?(?:[/?]{_URL})?
"""
_EMAIL = r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]+[@＠](?:[A-Za-z0-9-]+[.．])+[A-Za-z]{2,}"

_D = "[0-9０-９]"
_BEFORE = f"(?<!{_D})(?<![¥￥$])"
_AFTER = f"(?!{_D})(?![.．]{_D}{{1,2}}(?!{_D}))(?![ ]?[元万亿%％])"  # an amount is no phone number
_GAP = "[ \u00a0]?[-－‐–—]?[ \u00a0]?"
_REQUIRED_GAP = "(?:[ \u00a0]|[ \u00a0]?[-－‐–—][ \u00a0]?|[)）][ \u00a0]?)"
_CHINA = "[(（]?(?:[+＋]|[0０]{2})?[8８][6６][)）]?" + _GAP
_AREA3 = f"(?:[1１][0０]|[2２]{_D})"  # 010, 02x: eight digits follow, formerly seven
_AREA4 = f"[3-9３-９]{_D}{{2}}"
_LOCAL7, _LOCAL8 = f"{_D}{{3}}{_GAP}{_D}{{4}}", f"{_D}{{4}}{_GAP}{_D}{{4}}"
_EXTENSION = (
    f"(?:(?:[-－‐–—]|[ ]?(?:转|分机|ext[.]?|[#])[ ]?[:：]?){_D}{{1,6}})?"
    f"(?:[ ]?[/／、][ ]?{_D}{{7,8}}(?!{_D}))*"  # 010-62345678/62345679
)
_PHONE = rf"""
    {_BEFORE}(?:{_CHINA})?[1１][3-9３-９]{_D}(?:{_GAP}{_D}{{4}}{_GAP}{_D}{{4}}|[.]{_D}{{4}}[.]{_D}{{4}}
        |{_D}{_REQUIRED_GAP}{_D}{{3}}{_REQUIRED_GAP}{_D}{{4}}){_AFTER}
    # Without a separator ten digits could be an ISBN, so seven digits need one after 010 and 02x.
  | {_BEFORE}(?<!{_D}[.．])(?:{_CHINA})?[(（]?[0０]
        (?:{_AREA3}(?:[)）]?{_GAP}{_LOCAL8}|{_REQUIRED_GAP}{_LOCAL7})
        |{_AREA4}[)）]?{_GAP}(?:{_LOCAL8}|{_LOCAL7})){_EXTENSION}{_AFTER}
  | (?<![0-9０-９A-Za-z])[(（]?(?:[+＋]|[0０]{{2}})[8８][6６][)）]?{_GAP}
        [(（]?(?:{_AREA3}|{_AREA4})[)）]?{_GAP}(?:{_LOCAL8}|{_LOCAL7}){_EXTENSION}{_AFTER}
  | {_BEFORE}[48４８][0０]{{2}}
        (?:{_REQUIRED_GAP}(?:{_D}{{3}}{_GAP}{_D}{{4}}|{_D}{{4}}{_GAP}{_D}{{3}})|{_D}{_REQUIRED_GAP}{_D}{{3}}{_GAP}{_D}{{3}}){_EXTENSION}{_AFTER}
  | (?<![0-9０-９A-Za-z)）+])[+＋](?=(?:[^0-9０-９A-Za-z]{{0,3}}{_D}){{10}}){_D}{{1,3}}
        (?:{_GAP}[(（]?{_D}{{1,12}}[)）]?){{1,6}}{_AFTER}
  | (?<![0-9A-Za-z./-])(?:1[-. ])?
        (?:\([2-9][0-9]{{2}}\)[ ]?|[2-9][0-9]{{2}}[-.])[0-9]{{3}}[-.][0-9]{{4}}{_AFTER}
"""
# A bare local number is a phone number only where a word says so.
_SAID_TO_BE = rf"""
    (?:电话|热线|传真|座机|致电|(?<![A-Za-z])(?:telephone|tel|fax|phone))(?:号码|号)?[\s:：.是为]{{0,3}}
    (?![0０])(?P<local>(?:{_LOCAL8}|{_LOCAL7}|[48]00{_D}{{7}})(?:[ ]?[/／、,，][ ]?{_D}{{7,8}}(?!{_D}))*)
    {_AFTER}(?!年|{_GAP}{_D})
"""
_PRIVATE = re.compile(
    f"(?P<link>{_LINK})|(?P<email>{_EMAIL})|(?P<phone>{_PHONE})|{_SAID_TO_BE}", re.VERBOSE | re.IGNORECASE
)


_CONTEXT = 64
"""Characters of context on both sides of a window: more than any rule looks ahead or back."""

# What can stand in a link or an address, and in a phone number or the word before one. Without regard to
# case, Python lets four letters beyond ASCII stand for i, k and s.
_IN_LINK, _IN_PHONE, _IS_DIGIT = 1, 2, 4
_FOLDED = "\u0130\u0131\u017f\u212a"
_LINK_CHARACTERS = "".join(map(chr, range(0x21, 0x7F))) + "：＠．" + _FOLDED
_PHONE_CHARACTERS = (
    "extlphonfaEXTLPHONFA0123456789０１２３４５６７８９+＋()（）-－‐–—.．,，/／、:：#转分机"
    "电话热线传真座致号码是为\u00a0 "
)


def find(texts: Texts) -> np.ndarray:
    """Edits: what has to go; each rule is one of `RULES`.

    A kernel marks windows that could hold something: the characters around @, //, www. and .com, and runs
    of what phone numbers are made of with seven digits. Only they meet the long pattern, and every match
    lies whole in one of them, so the result is that of the pattern over the whole text.
    """
    edits: list[tuple[int, ...]] = []
    for row, start, end in _windows(texts.codes, texts.offsets, _table()).tolist():
        first = max(int(texts.offsets[row]), start - _CONTEXT)
        last = min(int(texts.offsets[row + 1]), end + _CONTEXT)
        window = as_string(texts.codes[first:last])
        for match in _PRIVATE.finditer(window, start - first):
            if match.end() > end - first:
                break
            rule = match.lastgroup or ""  # exactly one of the four groups takes part in a match
            span = match.span(rule)
            code = RULE_CODE["phone" if rule == "local" else rule]
            edits.append((row, first + span[0], first + span[1], code, 0, 0, -1))
    return np.array(edits, np.int64).reshape(-1, 7)


def is_private(text: str) -> bool:
    """Whether one text holds something that has to go."""
    return _PRIVATE.search(text) is not None


@cache
def _table() -> np.ndarray:
    table = np.zeros(0x110000, np.uint8)
    table[[ord(c) for c in _LINK_CHARACTERS]] |= _IN_LINK
    table[[ord(c) for c in _PHONE_CHARACTERS]] |= _IN_PHONE
    table[[ord(c) for c in "0123456789０１２３４５６７８９"]] |= _IS_DIGIT
    table[(classes() & SPACE) > 0] |= _IN_PHONE
    return table


@njit(cache=True, nogil=True)
def _lower(codes: np.ndarray, at: int, end: int) -> int:
    """The ASCII letter at `at` in lower case, 0 behind the end; a folded letter as what it stands for."""
    if at >= end:
        return 0
    code = codes[at]
    if 65 <= code <= 90:
        return code + 32
    if code == 0x130 or code == 0x131:
        return 105
    if code == 0x17F:
        return 115
    return 107 if code == 0x212A else code


@njit(cache=True, nogil=True)
def _anchor(codes: np.ndarray, at: int, end: int) -> bool:
    """Whether a link or an address could stand around `at`."""
    code = codes[at]
    if code == 64 or code == 0xFF20:
        return True
    if code == 47:
        return at + 1 < end and codes[at + 1] == 47
    if code != 46:
        return False
    pair = _lower(codes, at + 1, end) * 256 + _lower(codes, at + 2, end)
    return (
        pair == 0x636F or pair == 0x636E or pair == 0x6F72 or pair == 0x6564 or pair == 0x676F or pair ==
        0x6E65 or pair == 0x696E or pair == 0x6363 or pair == 0x7476 or pair == 0x686B or pair == 0x7477
        or (at > 0 and _lower(codes, at - 1, end) == 119)
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _windows(codes: np.ndarray, offsets: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(row, start, end) of disjoint windows in order."""
    found = np.empty((64, 3), np.int64)
    n = 0
    for row in range(len(offsets) - 1):
        begin, end = offsets[row], offsets[row + 1]
        link, phone, digits = begin, begin, 0  # where the two runs of characters began
        anchored, plus = False, False
        for at in range(begin, end + 1):
            kind = table[codes[at]] if at < end else 0
            for run in range(2):
                if kind & (1 << run):
                    continue
                start = link if run == 0 else phone
                if (run == 0 and anchored) or (run == 1 and (digits >= 7 or plus)):
                    # Windows that touch are one, so that matches in both meet as in the whole text.
                    while n > 0 and found[n - 1, 0] == row and found[n - 1, 2] >= start:
                        start = min(start, found[n - 1, 1])
                        n -= 1
                    found = grown(found, n)
                    found[n, 0], found[n, 1], found[n, 2] = row, start, at
                    n += 1
                if run == 0:
                    link, anchored = at + 1, False
                else:
                    phone, digits, plus = at + 1, 0, False
            if kind & 1 and _anchor(codes, at, end):
                anchored = True
            if kind & 4:
                digits += 1
                before = codes[at - 1] if at > phone else 0
                plus |= before == 43 or before == 0xFF0B
    return found[:n]
