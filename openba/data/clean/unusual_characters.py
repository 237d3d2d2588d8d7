"""Filter of control, invisible and private-use characters (paper section 3.1.1, Internet cleaning)."""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit

from openba.data.clean.edit_matrix import COLUMNS, append
from openba.data.clean.filter import Filter
from openba.data.clean.text_arrays import Texts

_UNUSUAL_RANGES = (
    (0x00, 0x08), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F),  # control
    (0xAD, 0xAD), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xFEFF, 0xFEFF),  # invisible
    (0xFFF9, 0xFFFD),  # annotation, object and replacement character
    (0xE000, 0xF8FF), (0xF0000, 0x10FFFF),  # private use
    (0xFDD0, 0xFDEF), *((plane + 0xFFFE, plane + 0xFFFF) for plane in range(0, 0xF0000, 0x10000)),  # none
    (0xE0000, 0xE0FFF),  # tags
)  # fmt: skip
_LINE_ENDS = "\r\x0b\x0c\x85\u2028\u2029"
_JOINER = 0x200D
_BLACK_FLAG = 0x1F3F4
_FIRST_TAG = 0xE0020
_LAST_TAG = 0xE007F
# Entries of the table of code points; all others are 0.
_UNUSUAL = 1
_LINE_END = 2
_MOJIBAKE_START = 3


class UnusualCharacters(Filter):
    """Remove control, invisible, private-use and replacement characters, and 锟斤拷.

    锟斤拷 is what GBK makes of replacement characters. Every kind of line end becomes a line feed. Tabs,
    ideographic spaces and emoji stay, with the joiners and tags that join several characters to one emoji.
    """

    name = "unusual_characters"
    rules = ("unusual_character",)

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        return _find_unusual(texts.code_points, texts.offsets, _code_point_table())


_RULE = 1  # `UnusualCharacters.rules[0]` in an edit matrix
_REWRITING = 0


@cache
def _code_point_table() -> np.ndarray:
    table = np.zeros(0x110000, np.uint8)
    for first, last in _UNUSUAL_RANGES:
        table[first : last + 1] = _UNUSUAL
    table[[ord(character) for character in _LINE_ENDS]] = _LINE_END
    table[ord("锟")] = _MOJIBAKE_START
    return table


@njit(cache=True, nogil=True)
def _has_candidate(code_points: np.ndarray, code_point_table: np.ndarray) -> bool:
    """Return whether the table has an entry for one of the characters."""
    # Without a branch in the loop it takes half a nanosecond a character.
    union = np.uint8(0)
    for code_point in code_points:
        union |= code_point_table[code_point]
    return bool(union > 0)


@njit(cache=True, nogil=True)
def _is_mojibake(code_points: np.ndarray, position: int, text_end: int) -> bool:
    return (
        position + 2 < text_end
        and code_points[position] == 0x951F
        and code_points[position + 1] == 0x65A4
        and code_points[position + 2] == 0x62F7
    )


@njit(cache=True, nogil=True)
def _is_emoji(code_point: int) -> bool:
    """Return whether a zero-width joiner may stand beside it: an emoji or a variation selector."""
    symbol = (
        0x2190 <= code_point <= 0x21FF or 0x2300 <= code_point <= 0x23FF or 0x2600 <= code_point <= 0x27BF
    )
    return (
        symbol or 0x2B00 <= code_point <= 0x2BFF or 0x1F000 <= code_point <= 0x1FAFF or code_point == 0xFE0F
    )


@njit(cache=True, nogil=True)
def _joins_emoji(code_points: np.ndarray, text_start: int, position: int, text_end: int) -> bool:
    """Return whether the invisible character at a position joins its neighbours to one emoji."""
    code_point = code_points[position]
    if code_point == _JOINER:
        return (
            text_start < position < text_end - 1
            and _is_emoji(code_points[position - 1])
            and _is_emoji(code_points[position + 1])
        )
    while _FIRST_TAG <= code_point <= _LAST_TAG and position > text_start:
        position -= 1
        code_point = code_points[position]
    return code_point == _BLACK_FLAG


@njit(cache=True, nogil=True)
def _unusual_length(
    code_points: np.ndarray, text_start: int, position: int, text_end: int, code_point_table: np.ndarray
) -> int:
    """Return how many characters from a position on are unusual: 0, 1, or 3 for 锟斤拷."""
    if code_point_table[code_points[position]] == _UNUSUAL:
        return 0 if _joins_emoji(code_points, text_start, position, text_end) else 1
    return 3 if _is_mojibake(code_points, position, text_end) else 0


@njit(cache=True, nogil=True)
def _find_unusual(
    code_points: np.ndarray, text_offsets: np.ndarray, code_point_table: np.ndarray
) -> np.ndarray:
    edits = np.empty((64, COLUMNS), np.int64)
    edit_count = 0
    for row in range(len(text_offsets) - 1):
        text_start = text_offsets[row]
        text_end = text_offsets[row + 1]
        position = text_start
        if not _has_candidate(code_points[position:text_end], code_point_table):
            continue
        while position < text_end:
            kind = code_point_table[code_points[position]]
            if kind == 0:
                position += 1
                continue
            start = position
            if kind == _LINE_END:
                is_crlf = (
                    code_points[position] == 13
                    and position + 1 < text_end
                    and code_points[position + 1] == 10
                )
                position += 2 if is_crlf else 1
                edits, edit_count = append(edits, edit_count, row, start, position, _REWRITING, 10)
                continue
            while position < text_end:
                unusual_length = _unusual_length(
                    code_points, text_start, position, text_end, code_point_table
                )
                if unusual_length == 0:
                    break
                position += unusual_length
            if position > start:
                edits, edit_count = append(edits, edit_count, row, start, position, _RULE)
            else:
                position += 1
    return edits[:edit_count]
