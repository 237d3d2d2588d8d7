"""Unusual characters and repeats (paper section 3.1.1: Internet cleaning, character dedup).

Owns these two filters on the characters of a batch. Markup, words and sentences are not its business.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
from numba import njit

from openba.data.clean.columns import DIGIT, LETTER, RULE_CODE, Texts, classes, grown, put

_UNUSUAL_RANGES = (
    (0x00, 0x08), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F),  # control
    (0xAD, 0xAD), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xFEFF, 0xFEFF),  # invisible
    (0xFFF9, 0xFFFD),  # annotation, object and replacement character
    (0xE000, 0xF8FF), (0xF0000, 0x10FFFF),  # private use
    (0xFDD0, 0xFDEF), *((plane + 0xFFFE, plane + 0xFFFF) for plane in range(0, 0xF0000, 0x10000)),  # none
    (0xE0000, 0xE0FFF),  # tags
)  # fmt: skip
_BREAKS = "\r\x0b\x0c\x85\u2028\u2029"
_UNUSUAL, _REPEAT = RULE_CODE["unusual_character"], RULE_CODE["repeat"]
_LONGEST_UNIT = 8
_BLOCK = 256
_JOINER, _BLACK_FLAG, _FIRST_TAG, _LAST_TAG = 0x200D, 0x1F3F4, 0xE0020, 0xE007F

_DIGIT, _LETTER, _SIGN, _CELL, _ROMAN = 1, 2, 4, 8, 16
"""Bits of a character in a repetition. Signs are those of which the number may matter (stars, brackets, plus
signs), cells what parts the cells of a table."""
_ALL = -1


def find_unusual(texts: Texts) -> np.ndarray:
    """Edits: control, invisible, private-use and replacement characters, and 锟斤拷.

    锟斤拷 is what GBK makes of replacement characters. Every kind of line end becomes a line feed. Tabs,
    ideographic spaces and emoji stay, with the joiners and tags that make one picture of several.
    """
    return _find_unusual(texts.codes, texts.offsets, _unusual())


def find_repeats(texts: Texts, instances: int, signs: int) -> np.ndarray:
    """Edits: what goes beyond so many equal neighbours of 1 to 8 characters each.

    A longer run is cut to the number that stays anyway, so that five never become fewer than three. Digits
    stay at any length, as do indentation, table cells and Roman numerals. An ellipsis keeps six full stops or
    two ellipsis characters, a dash two.

    Args:
        texts: the batch.
        instances: how many neighbours stay; 1 is the paper's wording.
        signs: how many stay of signs (★★★★★, ++++, ))))), emoji and words of one letter (AAAA, yyyy).
    """
    return _find_repeats(texts.codes, texts.offsets, _repeatable(), instances, max(signs, instances))


@cache
def _unusual() -> np.ndarray:
    table = np.zeros(0x110000, np.uint8)
    for first, last in _UNUSUAL_RANGES:
        table[first : last + 1] = 1
    table[[ord(c) for c in _BREAKS]] = 2
    table[ord("锟")] = 3  # perhaps
    return table


@cache
def _repeatable() -> np.ndarray:
    """Return the bits of every code point, uint8."""
    classes_of = classes()
    table = np.zeros(0x110000, np.uint8)
    table[(classes_of & DIGIT) > 0] |= _DIGIT
    table[[ord(c) for c in "〇零"]] |= _DIGIT
    table[(classes_of & LETTER) > 0] |= _LETTER
    table[[ord(c) for c in "IVXLCDM"]] |= _ROMAN
    table[[ord(c) for c in "|｜\t\u3000"]] |= _CELL
    symbols = [
        c for c in range(0x20000) if unicodedata.category(chr(c)) in ("So", "Sm", "Sc", "Sk", "Me", "Mn")
    ]
    table[symbols] |= _SIGN
    table[[ord(c) for c in "#$%&'()*+,-/:;<=>@[\\]^_`{|}\"\u200d"]] |= _SIGN
    table[[ord(c) for c in "~～〜"]] = 0
    return table


@njit(cache=True, nogil=True)
def _any(codes: np.ndarray, table: np.ndarray) -> bool:
    """Whether one of the characters is in the table. Without a branch: half a nanosecond each."""
    found = np.uint8(0)
    for code in codes:
        found |= table[code]
    return bool(found > 0)


@njit(cache=True, nogil=True)
def _mojibake(codes: np.ndarray, at: int, end: int) -> bool:
    return at + 2 < end and codes[at] == 0x951F and codes[at + 1] == 0x65A4 and codes[at + 2] == 0x62F7


@njit(cache=True, nogil=True)
def _is_emoji(code: int) -> bool:
    """Whether a zero-width joiner may stand beside this character: a picture, or the selector of its form."""
    symbol = 0x2190 <= code <= 0x21FF or 0x2300 <= code <= 0x23FF or 0x2600 <= code <= 0x27BF
    return symbol or 0x2B00 <= code <= 0x2BFF or 0x1F000 <= code <= 0x1FAFF or code == 0xFE0F


@njit(cache=True, nogil=True)
def _in_emoji(codes: np.ndarray, begin: int, at: int, end: int) -> bool:
    """Whether the invisible character at a position makes one emoji of what stands around it."""
    code = codes[at]
    if code == _JOINER:
        return begin < at < end - 1 and _is_emoji(codes[at - 1]) and _is_emoji(codes[at + 1])
    while _FIRST_TAG <= code <= _LAST_TAG and at > begin:  # the flags of England, Scotland and Wales
        at -= 1
        code = codes[at]
    return code == _BLACK_FLAG


@njit(cache=True, nogil=True)
def _goes(codes: np.ndarray, begin: int, at: int, end: int, table: np.ndarray) -> int:
    """Return how many characters from a position on are unusual: 0, 1, or 3 for 锟斤拷."""
    if table[codes[at]] == 1:
        return 0 if _in_emoji(codes, begin, at, end) else 1
    return 3 if _mojibake(codes, at, end) else 0


@njit(cache=True, nogil=True)
def _find_unusual(codes: np.ndarray, offsets: np.ndarray, table: np.ndarray) -> np.ndarray:
    edits = np.empty((64, 7), np.int64)
    n = 0
    for row in range(len(offsets) - 1):
        begin, end = offsets[row], offsets[row + 1]
        at = begin
        if not _any(codes[at:end], table):
            continue
        while at < end:
            kind = table[codes[at]]
            if kind == 0:
                at += 1
                continue
            start = at
            if kind == 2:
                at += 2 if codes[at] == 13 and at + 1 < end and codes[at + 1] == 10 else 1
                edits = grown(edits, n)
                put(edits, n, row, start, at, 0, 10, 0, -1)
                n += 1
                continue
            while at < end:
                unusual = _goes(codes, begin, at, end, table)
                if unusual == 0:
                    break
                at += unusual
            if at > start:
                edits = grown(edits, n)
                put(edits, n, row, start, at, _UNUSUAL, 0, 0, -1)
                n += 1
            else:
                at += 1
    return edits[:n]


@njit(cache=True, nogil=True)
def _ascii(code: int) -> int:
    """Return a full-width letter or digit as its ASCII form."""
    return code - 0xFEE0 if 0xFF10 <= code <= 0xFF5A else code


@njit(cache=True, nogil=True)
def _in_word(code: int) -> bool:
    code = _ascii(code)
    return 48 <= code <= 57 or 65 <= code <= 90 or 97 <= code <= 122 or code == 95


@njit(cache=True, nogil=True)
def _most_of_letter(
    codes: np.ndarray,
    begin: int,
    start: int,
    stop: int,
    end: int,
    table: np.ndarray,
    instances: int,
    signs: int,
) -> int:
    """Return how many stay of one Latin letter: all in a word with digits and in Roman numerals.

    As many as of signs where the letter is the whole word, as in AAAA, yyyy or XXXX.
    """
    first, last = start, stop
    while first > begin and start - first < 64 and _in_word(codes[first - 1]):
        first -= 1
    while last < end and last - stop < 64 and _in_word(codes[last]):
        last += 1
    every, some = np.uint8(255), np.uint8(0)
    for at in range(first, last):
        kind = table[_ascii(codes[at])]
        every &= kind
        some |= kind
    if some & _DIGIT or every & _ROMAN:
        return _ALL
    return signs if first == start and last == stop else instances


@njit(cache=True, nogil=True)
def _is_of_table(codes: np.ndarray, start: int, unit: int, table: np.ndarray) -> bool:
    """Whether a unit holds what parts cells: a bar, a tab, two spaces, a comma without a space behind it."""
    for at in range(start, start + unit):
        code, after = codes[at], codes[at + 1]
        if table[code] & _CELL or (code == 32 and after == 32 and unit > 1):
            return True
        if (code == 44 or code == 59) and after != 32 and after < 128 and (unit > 1 or code == 44):
            return True
    return False


@njit(cache=True, nogil=True)
def _most(
    codes: np.ndarray,
    begin: int,
    start: int,
    stop: int,
    end: int,
    unit: int,
    table: np.ndarray,
    instances: int,
    signs: int,
) -> int:
    """Return how many instances of a repeated unit may stay, `_ALL` for any number."""
    every, some, words, spaces = np.uint8(255), np.uint8(0), 0, 0
    for at in range(start, start + unit):
        kind = table[codes[at]]
        some |= kind
        spaces += codes[at] == 32
        words += _in_word(codes[at])
        every &= kind if codes[at] != 32 else np.uint8(255)
    if some & _DIGIT and (not some & _LETTER or words == unit):
        return _ALL
    if _is_of_table(codes, start, unit, table):
        return _ALL
    if spaces == unit:
        return _ALL if start == begin or codes[start - 1] == 10 else instances
    if unit == 1 and words == 1 and some & _LETTER:
        return _most_of_letter(codes, begin, start, stop, end, table, instances, signs)
    if every & _SIGN:
        return signs
    if unit == 1 and codes[start] == 46:
        return max(6, instances)
    if unit == 1 and (codes[start] == 0x2026 or codes[start] == 0x2014):
        return 2
    return instances


@njit(cache=True, nogil=True)
def _unit(codes: np.ndarray, at: int, end: int, least: int) -> int:
    """Return the shortest unit that stands so many times from a position on; 0 if there is none."""
    for unit in range(1, _LONGEST_UNIT + 1):
        if at + least * unit > end:
            return 0
        if codes[at] != codes[at + unit]:
            continue
        wanted = (least - 1) * unit
        same = 1
        while same < wanted and codes[at + same] == codes[at + same + unit]:
            same += 1
        if same == wanted:
            return unit
    return 0


@njit(cache=True, nogil=True)
def _repeats(codes: np.ndarray, least: int) -> bool:
    """Whether some unit stands so many times in a row.

    Then (least - 1) * unit neighbouring characters equal those one unit on, one of them at a multiple of that
    number: looking at these only takes few comparisons per character for all eight units together.
    """
    for unit in range(1, _LONGEST_UNIT + 1):
        last = len(codes) - unit
        wanted = (least - 1) * unit
        for at in range(0, last, wanted):
            if codes[at] != codes[at + unit]:
                continue
            first, stop = at, at + 1
            while first > 0 and codes[first - 1] == codes[first - 1 + unit]:
                first -= 1
            while stop < last and codes[stop] == codes[stop + unit]:
                stop += 1
            if stop - first >= wanted:
                return True
    return False


@njit(cache=True, nogil=True)
def _find_repeats(
    codes: np.ndarray, offsets: np.ndarray, table: np.ndarray, instances: int, signs: int
) -> np.ndarray:
    edits = np.empty((64, 7), np.int64)
    n = 0
    least = instances + 1
    for row in range(len(offsets) - 1):
        begin, end = offsets[row], offsets[row + 1]
        at = block = begin
        while at < end:
            if at >= block:  # nothing begins in what has been looked at so far
                while at < end and not _repeats(
                    codes[at : min(end, at + _BLOCK + least * _LONGEST_UNIT)], least
                ):
                    at += _BLOCK
                block = at + _BLOCK
                if at >= end:
                    break
            unit = _unit(codes, at, end, least)
            if unit == 0:
                at += 1
                continue
            stop = at + least * unit
            while stop + unit <= end:
                same = 0
                while same < unit and codes[stop + same] == codes[at + same]:
                    same += 1
                if same < unit:
                    break
                stop += unit
            most = _most(codes, begin, at, stop, end, unit, table, instances, signs)
            if most != _ALL and most * unit < stop - at:
                edits = grown(edits, n)
                put(edits, n, row, at + most * unit, stop, _REPEAT, 0, 0, -1)
                n += 1
            at = stop
    return edits[:n]
