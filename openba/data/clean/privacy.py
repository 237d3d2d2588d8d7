"""The privacy filter: spans of phone numbers, e-mail addresses and links (paper section 3.1.1).

Owns the search. What counts as one is in `private_patterns`, matched on the folded view of `folding`, which
is what tokenizers read. The search is a fixed point: in what its edits leave it finds nothing.
"""

from __future__ import annotations

import re
from codecs import utf_32_le_decode
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit

from openba.data.clean.columns import HAN, RULE_CODE, Texts, classes, grown
from openba.data.clean.folding import fold, plain_codes, table_of
from openba.data.clean.private_patterns import (
    LINK_CHARACTERS,
    LINK_ONLY,
    PHONE_CHARACTERS,
    PHONE_ONLY,
    PRIVATE,
)

RULES = ("link", "email", "phone")

_BEHIND, _AHEAD, _AHEAD_OF_PLUS = 16, 12, 64
"""Characters of context before and behind a window: more than any rule looks back or ahead. Numbers that
begin with a plus sign look farther."""

# What can stand in a link or an address, and in a phone number or the word before one.
_IN_LINK, _IN_PHONE, _IS_DIGIT, _IN_ADDRESS, _IS_ANCHOR, _IN_WORD, _IS_HAN, _IS_SEVERAL = (
    1, 2, 4, 8, 16, 32, 64, 128,
)  # fmt: skip
_PLUS = 4
_BY_SORT = (PRIVATE, LINK_ONLY, PHONE_ONLY, PRIVATE)


class _Span(NamedTuple):
    """What a rule found in a batch: row, absolute positions, code of the rule."""

    row: int
    start: int
    end: int
    rule: int


def find(texts: Texts, among: np.ndarray | None = None) -> np.ndarray:
    """Return edits of what has to go; each rule is one of `RULES`.

    A kernel marks windows that could hold something: the characters around @, //, www. and .com, and runs
    of what phone numbers are made of with ten digits, or seven after a word that says so. Only they are
    folded and meet the long pattern, and every match lies in one of them, so the result is that of the
    pattern over the folded text. A window of one sort that touches none of the other meets its half of the
    pattern. Texts in which something was found are searched again without it, until nothing is found.

    Args:
        texts: the batch.
        among: bool `[texts]`, true for the texts to look at; none: all.
    """
    rows = np.ones(len(texts.offsets) - 1, np.bool_) if among is None else among
    spans = _search(texts, rows)
    latest = spans
    while latest:
        latest = _search_without(texts, spans, sorted({span.row for span in latest}))
        spans = _merge(spans, latest)
    edits = [(*span, 0, 0, -1) for span in spans]
    return np.array(edits, np.int64).reshape(-1, 7)


def _search(texts: Texts, rows: np.ndarray) -> list[_Span]:
    """Search the texts once."""
    found: list[_Span] = []
    code_bytes = texts.codes.data.cast("B")
    begins = texts.offsets.tolist()
    windows = _windows(texts.codes, texts.offsets, rows, _table(), _plain())
    for row, start, end, sort in windows.tolist():
        first = max(begins[row], start - _BEHIND)
        last = min(begins[row + 1], end + (_AHEAD_OF_PLUS if sort & _PLUS else _AHEAD))
        window, _ = utf_32_le_decode(code_bytes[4 * first : 4 * last])
        for begin, stop, rule in _matches(_BY_SORT[sort & 3], window, start - first):
            if first + stop > end:
                break
            found.append(_Span(row, first + begin, first + stop, RULE_CODE[rule]))
    return found


def _search_without(texts: Texts, spans: list[_Span], rows: list[int]) -> list[_Span]:
    """Search some of the texts without the spans; the positions are those of the texts with them."""
    by_row: dict[int, list[_Span]] = {row: [] for row in rows}
    for span in spans:
        if span.row in by_row:
            by_row[span.row].append(span)
    positions = []
    for row, removed in by_row.items():
        begin, end = texts.offsets[row : row + 2].tolist()
        stays = np.ones(end - begin, np.bool_)
        for span in removed:
            stays[span.start - begin : span.end - begin] = False
        positions.append(np.flatnonzero(stays) + begin)
    offsets = np.concatenate(([0], np.cumsum([len(part) for part in positions])))
    original = np.concatenate(positions)
    shorter = Texts(texts.codes[original], offsets)
    return [
        _Span(rows[span.row], int(original[span.start]), int(original[span.end - 1]) + 1, span.rule)
        for span in _search(shorter, np.ones(len(rows), np.bool_))
    ]


def _merge(spans: list[_Span], later: list[_Span]) -> list[_Span]:
    """Return both in order; a later span takes in the earlier ones that lie in it."""
    merged: list[_Span] = []
    for span in sorted({*spans, *later}, key=lambda span: (span.start, -span.end)):
        if not merged or span.start >= merged[-1].end:
            merged.append(span)
    return merged


def spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and rule of what the pattern finds in one text, searched once and as a whole."""
    return _matches(PRIVATE, text, 0)


def _matches(pattern: re.Pattern[str], text: str, start: int) -> Iterator[tuple[int, int, str]]:
    view = fold(text)
    for match in pattern.finditer(view.text, view.position(start)):
        rule = match.lastgroup or ""  # exactly one of the four groups takes part in a match
        begin, stop = view.span(*match.span(rule))
        yield begin, stop, "phone" if rule == "local" else rule


@cache
def _table() -> np.ndarray:
    bits: dict[str, int] = {"": _IN_LINK | _IN_PHONE | _IN_ADDRESS}
    letters = "abcdefghijklmnopqrstuvwxyz"
    for characters, bit in (
        (LINK_CHARACTERS, _IN_LINK),
        (PHONE_CHARACTERS, _IN_PHONE),
        ("0123456789", _IS_DIGIT),
        (letters + letters.upper() + "0123456789._%+-", _IN_ADDRESS),
        ("@/.", _IS_ANCHOR),
        ("话线真机电eElLxX", _IN_WORD),  # one stands in every word that says so
    ):
        for character in characters:
            bits[character] = bits.get(character, 0) | bit
    table = table_of(bits)
    table[(classes() & HAN) > 0] |= _IS_HAN
    table[_plain() == _SEVERAL] |= _IS_SEVERAL
    return table


_SEVERAL = 1


@cache
def _plain() -> np.ndarray:
    return plain_codes(_SEVERAL)


@njit(cache=True, nogil=True)
def _plain_at(codes: np.ndarray, at: int, begin: int, end: int, plain: np.ndarray) -> int:
    """Return the folded ASCII character at a position, in lower case; 0 outside the text and for others."""
    return plain[codes[at]] if begin <= at < end else 0


@njit(cache=True, nogil=True)
def _is_ellipsis(code: int) -> bool:
    return code == 0x2026 or code == 0x2025


@njit(cache=True, nogil=True)
def _ends_name(code: int) -> bool:
    """Whether a domain name may end before this folded character."""
    return not (48 <= code <= 57 or 97 <= code <= 122 or code == 45)


@njit(cache=True, nogil=True)
def _anchor(codes: np.ndarray, begin: int, at: int, end: int, table: np.ndarray, plain: np.ndarray) -> bool:
    """Whether a link or an address could stand around the @, / or full stop at a position.

    Where characters beside it vanish or fold to several, the answer is yes: the pattern decides.
    """
    code = plain[codes[at]]
    before = _plain_at(codes, at - 1, begin, end, plain)
    second = _plain_at(codes, at - 2, begin, end, plain)
    if _is_ellipsis(codes[at]):  # folds to full stops; frequent in Chinese
        return before == 119 or (before == 1 and not _is_ellipsis(codes[at - 1]))
    if before == 1 or code == 1 or _plain_at(codes, at + 1, begin, end, plain) == 1:
        return True
    if code == 64:  # @
        outside = at == begin or at + 1 >= end
        return not outside and table[codes[at - 1]] & 8 != 0 and table[codes[at + 1]] & 72 != 0
    if code == 47:  # /
        if _plain_at(codes, at + 1, begin, end, plain) != 47:
            return False
        if before == 58 or codes[at - 1] == 0xFF1A:
            before = second
        return before == 112 or before == 115 or before == 1
    if before == 119 and (second == 119 or second == 1):
        return True
    return _names_domain(codes, at, end, plain)


@njit(cache=True, nogil=True)
def _names_domain(codes: np.ndarray, at: int, end: int, plain: np.ndarray) -> bool:
    """Whether what follows the full stop at a position could be a top-level domain that the pattern knows."""
    letters = 0
    first = second = third = fourth = 0
    stop = at + 1
    while stop < end and letters < 8:
        code = plain[codes[stop]]
        if code == 1:
            return True
        if not 97 <= code <= 122:
            break
        letters += 1
        if letters == 1:
            first = code
        elif letters == 2:
            second = code
        elif letters == 3:
            third = code
        elif letters == 4:
            fourth = code
        stop += 1
    if letters < 2:
        return False
    after = plain[codes[stop]] if stop < end else 0
    if after == 47 and letters <= 6:  # bit.ly/x
        return True
    pair = first * 256 + second
    if letters == 2:
        if after == 45:
            return pair == 0x786E  # xn--
        if after == 46:
            return pair == 0x636F or pair == 0x6163 or pair == 0x636E  # co.uk, ac.jp, cn.
        known = pair == 0x636E or pair == 0x7476 or pair == 0x686B or pair == 0x7477  # cn, tv, hk, tw
        return known and _ends_name(after)
    if not _ends_name(after):
        return False
    if letters == 3:
        return (
            (pair == 0x636F and third == 109) or (pair == 0x6F72 and third == 103)  # com, org
            or (pair == 0x6564 and third == 117) or (pair == 0x676F and third == 118)  # edu, gov
            or (pair == 0x6E65 and third == 116)  # net
        )  # fmt: skip
    return letters == 4 and pair == 0x696E and third == 102 and fourth == 111  # info


@njit(cache=True, nogil=True)
def _windows(
    codes: np.ndarray, offsets: np.ndarray, among: np.ndarray, table: np.ndarray, plain: np.ndarray
) -> np.ndarray:
    """Return (row, start, end, sort) of disjoint windows in order; sort: 1 link, 2 phone, 4 with a plus."""
    windows = np.empty((64, 4), np.int64)
    n = 0
    for row in range(len(among)):
        if not among[row]:
            continue
        begin, end = offsets[row], offsets[row + 1]
        at, link, phone = begin, begin, begin  # all windows before `link` and `phone` are there
        while True:
            at += _to_digit_or_anchor(codes[at:end], table)
            if at >= end:
                break
            kind = table[codes[at]]
            if kind & 16 and at >= link and _anchor(codes, begin, at, end, table, plain):
                start, link = _run(codes, begin, at, end, 1, table)
                link = _through_chinese(codes, link, end, table, plain)
                windows, n = _add_window(windows, n, row, start, link, 1)
            if kind & 4 and at >= phone:
                start, phone = _run(codes, begin, at, end, 2, table)
                sort = _phone_sort(codes[start:phone], table, plain)
                if sort:
                    windows, n = _add_window(windows, n, row, start, phone, sort)
            at += 1
    return windows[:n]


@njit(cache=True, nogil=True)
def _to_digit_or_anchor(codes: np.ndarray, table: np.ndarray) -> int:
    """Return how many characters stand before the first that a window is looked for around."""
    count = 0
    for code in codes:
        if table[code] & 20:
            break
        count += 1
    return count


@njit(cache=True, nogil=True)
def _run(codes: np.ndarray, begin: int, at: int, end: int, bit: int, table: np.ndarray) -> tuple[int, int]:
    """Return start and end of the run of characters with this bit around a position."""
    start, stop = at, at + 1
    while start > begin and table[codes[start - 1]] & bit:
        start -= 1
    while stop < end and table[codes[stop]] & bit:
        stop += 1
    return start, stop


@njit(cache=True, nogil=True)
def _through_chinese(codes: np.ndarray, stop: int, end: int, table: np.ndarray, plain: np.ndarray) -> int:
    """Return the end of a link's window, moved behind a Chinese host where one could begin."""
    if stop >= end or not table[codes[stop]] & 64:
        return stop
    last = plain[codes[stop - 1]]
    if last == 46 or last == 47 or last == 64 or (last == 1 and not _is_ellipsis(codes[stop - 1])):
        while stop < end and table[codes[stop]] & 65:
            stop += 1
    return stop


@njit(cache=True, nogil=True)
def _phone_sort(codes: np.ndarray, table: np.ndarray, plain: np.ndarray) -> int:
    """Return 2 for ten digits, or seven and perhaps a word as 电话; 6 if one follows a plus sign; else 0.

    No rule takes fewer than ten digits but those that need such a word, and that behind a plus sign.
    """
    digits, plus, said = 0, False, False
    for code in codes:
        kind = table[code]
        if kind & 4:
            digits += 2 if kind & 128 else 1  # no character folds to three digits
            if plus:
                return 6
        said |= kind & 32 != 0
        if not kind & 128:
            plus = plain[code] == 43
    return 2 if digits >= 10 or (said and digits >= 7) else 0


@njit(cache=True, nogil=True)
def _add_window(
    windows: np.ndarray, n: int, row: int, start: int, end: int, sort: int
) -> tuple[np.ndarray, int]:
    """Add a window; those that touch become one, so that matches in both meet as in the text."""
    while n > 0 and windows[n - 1, 0] == row and windows[n - 1, 2] >= start:
        start, end = min(start, windows[n - 1, 1]), max(end, windows[n - 1, 2])
        sort |= windows[n - 1, 3]
        n -= 1
    windows = grown(windows, n)
    windows[n, 0], windows[n, 1], windows[n, 2], windows[n, 3] = row, start, end, sort
    return windows, n + 1
