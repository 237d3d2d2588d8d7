"""Unusual characters and repeats (paper section 3.1.1: Internet cleaning, character dedup).

Owns these two filters on the characters of a batch. Markup, words and sentences are not its business.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit

from openba.data.clean.columns import RULE_CODE, Texts, classes, grown, put

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


def find_unusual(texts: Texts) -> np.ndarray:
    """Edits: control, invisible, private-use and replacement characters, and 锟斤拷.

    锟斤拷 is what GBK makes of replacement characters. Every kind of line end becomes a line feed. Tabs,
    ideographic spaces and emoji stay.
    """
    return _find_unusual(texts.codes, texts.offsets, _unusual())


def find_repeats(texts: Texts) -> np.ndarray:
    """Edits: all but the first of 4 or more equal neighbours of 1 to 8 characters each.

    The paper gives no minimum. Three stay, so that 1000, 哈哈, 天天, "......" and —— do; what holds a
    digit and no letter is a number or a table and stays at any length.
    """
    return _find_repeats(texts.codes, texts.offsets, classes())


@cache
def _unusual() -> np.ndarray:
    table = np.zeros(0x110000, np.uint8)
    for first, last in _UNUSUAL_RANGES:
        table[first : last + 1] = 1
    table[[ord(c) for c in _BREAKS]] = 2
    table[ord("锟")] = 3  # perhaps
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
def _find_unusual(codes: np.ndarray, offsets: np.ndarray, table: np.ndarray) -> np.ndarray:
    edits = np.empty((64, 7), np.int64)
    n = 0
    for row in range(len(offsets) - 1):
        at, end = offsets[row], offsets[row + 1]
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
            while at < end and (table[codes[at]] == 1 or _mojibake(codes, at, end)):
                at += 1 if table[codes[at]] == 1 else 3
            if at > start:
                edits = grown(edits, n)
                put(edits, n, row, start, at, _UNUSUAL, 0, 0, -1)
                n += 1
            else:
                at += 1
    return edits[:n]


@njit(cache=True, nogil=True)
def _kept(codes: np.ndarray, start: int, unit: int, table: np.ndarray) -> int:
    """How many characters of a repetition stay; -1: all of them, it is a number."""
    digit, letter = False, False
    for at in range(start, start + unit):
        digit |= table[codes[at]] & 16 != 0
        letter |= table[codes[at]] & 32 != 0
    if digit and not letter:
        return -1
    if unit == 1 and codes[start] == 46:  # an ellipsis and a dash are repetitions themselves
        return 6
    return 2 if unit == 1 and (codes[start] == 0x2026 or codes[start] == 0x2014) else unit


@njit(cache=True, nogil=True)
def _unit(codes: np.ndarray, at: int, end: int) -> int:
    """The shortest unit that stands four times from `at` on; 0 if there is none."""
    for unit in range(1, _LONGEST_UNIT + 1):
        if at + 4 * unit > end:
            return 0
        if codes[at] != codes[at + unit]:
            continue
        same = 1
        while same < 3 * unit and codes[at + same] == codes[at + same + unit]:
            same += 1
        if same == 3 * unit:
            return unit
    return 0


@njit(cache=True, nogil=True)
def _repeats(codes: np.ndarray) -> bool:
    """Whether some unit stands four times in a row.

    Then 3 * unit neighbouring characters equal those one unit on, one of them at a multiple of 3 * unit:
    looking at these only takes one comparison per character for all eight units together.
    """
    for unit in range(1, _LONGEST_UNIT + 1):
        last = len(codes) - unit
        for at in range(0, last, 3 * unit):
            if codes[at] != codes[at + unit]:
                continue
            first, stop = at, at + 1
            while first > 0 and codes[first - 1] == codes[first - 1 + unit]:
                first -= 1
            while stop < last and codes[stop] == codes[stop + unit]:
                stop += 1
            if stop - first >= 3 * unit:
                return True
    return False


@njit(cache=True, nogil=True)
def _find_repeats(codes: np.ndarray, offsets: np.ndarray, table: np.ndarray) -> np.ndarray:
    edits = np.empty((64, 7), np.int64)
    n = 0
    for row in range(len(offsets) - 1):
        at, end = offsets[row], offsets[row + 1]
        block = at
        while at < end:
            if at >= block:  # nothing begins in what has been looked at so far
                while at < end and not _repeats(codes[at : min(end, at + _BLOCK + 4 * _LONGEST_UNIT)]):
                    at += _BLOCK
                block = at + _BLOCK
                if at >= end:
                    break
            unit = _unit(codes, at, end)
            if unit == 0:
                at += 1
                continue
            stop = at + 4 * unit
            while stop + unit <= end:
                same = 0
                while same < unit and codes[stop + same] == codes[at + same]:
                    same += 1
                if same < unit:
                    break
                stop += unit
            kept = _kept(codes, at, unit, table)
            if 0 <= kept < stop - at:
                edits = grown(edits, n)
                put(edits, n, row, at + kept, stop, _REPEAT, 0, 0, -1)
                n += 1
            at = stop
    return edits[:n]
