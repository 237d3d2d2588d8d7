"""Phone numbers, e-mail addresses and web links (paper section 3.1.1, privacy filtering).

Owns what counts as one. Phones: Chinese mobile, landline and service numbers with or without +86,
North American and international forms, and bare local numbers after a word such as 电话; digits and
signs may be full-width. Dates, amounts, identity cards and ISBNs are none, nor are 110 and 95588.
"""

from __future__ import annotations

import re
from codecs import utf_32_le_decode
from collections.abc import Iterator
from functools import cache

import numpy as np
from numba import njit

from openba.data.clean.columns import RULE_CODE, SPACE, Texts, classes, grown

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
    # Nor is the rest of a bank card in groups of four: 6222 0555 2345 6789.
  | {_BEFORE}(?<!{_D}[.．])(?!(?<=(?<!{_D}){_D}{{4}}[ -])[0０]{_D}{{3}}(?:[ -]{_D}{{4}}){{2}})
        (?:{_CHINA})?[(（]?[0０]
        (?:{_AREA3}(?:[)）]?{_GAP}{_LOCAL8}|{_REQUIRED_GAP}{_LOCAL7})
        |{_AREA4}[)）]?{_GAP}(?:{_LOCAL8}|{_LOCAL7})){_EXTENSION}{_AFTER}
  | (?<![0-9０-９A-Za-z])[(（]?(?:(?:[+＋]|[0０]{{2}})[8８][6６][)）]?{_GAP}|[8８][6６][-－‐–—])
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
_LINKS, _PHONES = f"(?P<link>{_LINK})|(?P<email>{_EMAIL})", f"(?P<phone>{_PHONE})|{_SAID_TO_BE}"
_PRIVATE, _LINK_ONLY, _PHONE_ONLY = (
    re.compile(pattern, re.VERBOSE | re.IGNORECASE) for pattern in (f"{_LINKS}|{_PHONES}", _LINKS, _PHONES)
)


_CONTEXT = 64
"""Characters of context on both sides of a window: more than any rule looks ahead or back."""
_AHEAD = 8
"""What the rules look ahead beyond a window's end, but for numbers that begin with a plus sign."""

# What can stand in a link or an address, and in a phone number or the word before one. Without regard to
# case, Python lets four letters beyond ASCII stand for i, k and s.
_IN_LINK, _IN_PHONE, _IS_DIGIT, _IN_ADDRESS, _IS_ANCHOR, _IN_WORD = 1, 2, 4, 8, 16, 32
_FOLDED = "\u0130\u0131\u017f\u212a"
# No link and no address holds a quotation mark, a bracket of a tag or the like: runs end there.
_LINK_CHARACTERS = "".join(sorted({*map(chr, range(0x21, 0x7F))} - {*"\"'<>\\^`{|}"})) + "：＠．" + _FOLDED
_PHONE_CHARACTERS = (
    "extlphonfaEXTLPHONFA0123456789０１２３４５６７８９+＋()（）-－‐–—.．,，/／、:：#转分机"
    "电话热线传真座致号码是为\u00a0 "
)


def find(texts: Texts, among: np.ndarray | None = None) -> np.ndarray:
    """Edits: what has to go; each rule is one of `RULES`.

    A kernel marks windows that could hold something: the characters around @, //, www. and .com, and runs
    of what phone numbers are made of with ten digits, or seven after a word that says so. Only they meet the
    long pattern, and every match lies whole in one of them, so the result is that of the pattern over the
    whole text. A window of one sort that touches none of the other meets its half of the pattern.

    Args: `among`, true for the texts to look at; none: all.
    """
    edits: list[tuple[int, ...]] = []
    rows = np.ones(len(texts.offsets) - 1, np.bool_) if among is None else among
    raw, begins = texts.codes.data.cast("B"), texts.offsets.tolist()
    for row, start, end, sort in _windows(texts.codes, texts.offsets, rows, _table()).tolist():
        first = max(begins[row], start - _CONTEXT)
        ahead = _CONTEXT if sort & _PLUS else _AHEAD
        last = min(begins[row + 1], end + ahead)
        window, _ = utf_32_le_decode(raw[4 * first : 4 * last])
        for begin, stop, rule in _matches(_BY_SORT[sort & 3], window, start - first):
            if stop > end - first:
                break
            edits.append((row, first + begin, first + stop, RULE_CODE[rule], 0, 0, -1))
    return np.array(edits, np.int64).reshape(-1, 7)


def spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and rule of what the whole pattern finds in one text."""
    return _matches(_PRIVATE, text, 0)


_PLUS = 4
_BY_SORT = (_PRIVATE, _LINK_ONLY, _PHONE_ONLY, _PRIVATE)


def _matches(pattern: re.Pattern[str], text: str, start: int) -> Iterator[tuple[int, int, str]]:
    for match in pattern.finditer(text, start):
        rule = match.lastgroup or ""  # exactly one of the four groups takes part in a match
        begin, stop = match.span(rule)
        yield begin, stop, "phone" if rule == "local" else rule


@cache
def _table() -> np.ndarray:
    table = np.zeros(0x110000, np.uint8)
    table[[ord(c) for c in _LINK_CHARACTERS]] |= _IN_LINK
    table[[ord(c) for c in _PHONE_CHARACTERS]] |= _IN_PHONE
    table[[ord(c) for c in "0123456789０１２３４５６７８９"]] |= _IS_DIGIT
    table[(classes() & SPACE) > 0] |= _IN_PHONE
    letters = "abcdefghijklmnopqrstuvwxyz"
    table[[ord(c) for c in letters + letters.upper() + "0123456789._%+-" + _FOLDED]] |= _IN_ADDRESS
    table[[ord(c) for c in "@＠/."]] |= _IS_ANCHOR
    table[[ord(c) for c in "话线真机电eElLxX"]] |= _IN_WORD  # one stands in every word that says so
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
def _ends_name(codes: np.ndarray, at: int, end: int) -> bool:
    """Whether a domain name may end before `at`."""
    code = codes[at] if at < end else np.uint32(0)
    return not (48 <= code <= 57 or 65 <= code <= 90 or 97 <= code <= 122 or code == 45)


@njit(cache=True, nogil=True)
def _anchor(codes: np.ndarray, begin: int, at: int, end: int, table: np.ndarray) -> bool:
    """Whether a link or an address could stand around the @, / or full stop at `at`."""
    code = codes[at]
    before = _lower(codes, at - 1, end) if at > begin else 0
    if code == 64 or code == 0xFF20:
        known = at > begin and at + 1 < end
        return known and table[codes[at - 1]] & 8 != 0 and table[codes[at + 1]] & 8 != 0
    if code == 47:
        if at + 1 >= end or codes[at + 1] != 47:
            return False
        if before == 58 or before == 0xFF1A:
            before = _lower(codes, at - 2, end) if at - 1 > begin else 0
        return before == 112 or before == 115
    if before == 119 and at - 1 > begin and _lower(codes, at - 2, end) == 119:
        return True
    pair = _lower(codes, at + 1, end) * 256 + _lower(codes, at + 2, end)
    third = _lower(codes, at + 3, end)
    if (
        (pair == 0x636F and third == 109) or (pair == 0x6F72 and third == 103)  # com, org
        or (pair == 0x6564 and third == 117) or (pair == 0x676F and third == 118)  # edu, gov
        or (pair == 0x6E65 and third == 116)  # net
    ):  # fmt: skip
        return _ends_name(codes, at + 4, end)
    if pair == 0x696E:  # .info
        return third == 102 and _lower(codes, at + 4, end) == 111 and _ends_name(codes, at + 5, end)
    known = pair == 0x636E or pair == 0x6363 or pair == 0x7476 or pair == 0x686B or pair == 0x7477
    return known and _ends_name(codes, at + 3, end)


@njit(cache=True, nogil=True)
def _windows(codes: np.ndarray, offsets: np.ndarray, among: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(row, start, end, sort) of disjoint windows in order; sort: 1 link, 2 phone, 4 with a plus sign."""
    found = np.empty((64, 4), np.int64)
    n = 0
    for row in range(len(among)):
        if not among[row]:
            continue
        begin, end = offsets[row], offsets[row + 1]
        at, link, phone = begin, begin, begin  # before `link` and `phone` all is known
        while True:
            at += _to_digit_or_anchor(codes[at:end], table)
            if at >= end:
                break
            kind = table[codes[at]]
            if kind & 16 and at >= link and _anchor(codes, begin, at, end, table):
                start, link = _run(codes, begin, at, end, 1, table)
                found, n = _add_window(found, n, row, start, link, 1)
            if kind & 4 and at >= phone:
                start, phone = _run(codes, begin, at, end, 2, table)
                sort = _phone_sort(codes[start:phone], table)
                if sort:
                    found, n = _add_window(found, n, row, start, phone, sort)
            at += 1
    return found[:n]


@njit(cache=True, nogil=True)
def _to_digit_or_anchor(codes: np.ndarray, table: np.ndarray) -> int:
    """How many characters stand before the first that a window is looked for around."""
    count = 0
    for code in codes:
        if table[code] & 20:
            break
        count += 1
    return count


@njit(cache=True, nogil=True)
def _run(codes: np.ndarray, begin: int, at: int, end: int, bit: int, table: np.ndarray) -> tuple[int, int]:
    """Start and end of the run of characters with this bit around `at`."""
    start, stop = at, at + 1
    while start > begin and table[codes[start - 1]] & bit:
        start -= 1
    while stop < end and table[codes[stop]] & bit:
        stop += 1
    return start, stop


@njit(cache=True, nogil=True)
def _phone_sort(codes: np.ndarray, table: np.ndarray) -> int:
    """2 if there are ten digits, or seven and perhaps a word as 电话; 6 if one follows a plus sign; else 0.

    No rule takes fewer than ten digits but those that need such a word, and that behind a plus sign.
    """
    digits, before, said = 0, np.uint32(0), False
    for code in codes:
        if table[code] & 4:
            digits += 1
            if before == 43 or before == 0xFF0B:
                return 6
        said |= table[code] & 32 != 0
        before = code
    return 2 if digits >= 10 or (said and digits >= 7) else 0


@njit(cache=True, nogil=True)
def _add_window(
    found: np.ndarray, n: int, row: int, start: int, end: int, sort: int
) -> tuple[np.ndarray, int]:
    """Windows that touch become one, so that matches in both meet as in the whole text."""
    while n > 0 and found[n - 1, 0] == row and found[n - 1, 2] >= start:
        start, end = min(start, found[n - 1, 1]), max(end, found[n - 1, 2])
        sort |= found[n - 1, 3]
        n -= 1
    found = grown(found, n)
    found[n, 0], found[n, 1], found[n, 2], found[n, 3] = row, start, end, sort
    return found, n + 1
