"""Filter of phone numbers, e-mail addresses and links (paper section 3.1.1).

The patterns are in `private_patterns` and are matched against the normalised text of `folding`, which is what
tokenizers read. Texts are searched until nothing more is found, so cleaning twice changes nothing.
"""

from __future__ import annotations

import re
from codecs import utf_32_le_decode
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit

from openba.data.clean.edit_matrix import COLUMNS, grow
from openba.data.clean.filter import Filter
from openba.data.clean.folding import bits_of_folded, fold, folded_ascii
from openba.data.clean.private_patterns import (
    LINK_CHARACTERS,
    LINK_ONLY,
    PHONE_CHARACTERS,
    PHONE_ONLY,
    PRIVATE,
)
from openba.data.clean.text_arrays import HAN, Texts, character_classes

# Characters of context on both sides of a window: more than any pattern looks back or ahead. Patterns of
# numbers that begin with a plus sign look farther.
_CONTEXT_BEFORE = 16
_CONTEXT_AFTER = 12
_CONTEXT_AFTER_PLUS = 64

# Bits of a character, by what it can be part of.
_IN_LINK = 1
_IN_PHONE = 2
_IS_DIGIT = 4
_IN_ADDRESS = 8
_IS_ANCHOR = 16
_IN_PHONE_WORD = 32
_IS_HAN = 64
_IS_SEVERAL = 128  # folds to several characters

# Bits of a window: which patterns can match in it.
_LINK_WINDOW = 1
_PHONE_WINDOW = 2
_PLUS_WINDOW = 4
_PATTERN_OF_WINDOW = (PRIVATE, LINK_ONLY, PHONE_ONLY, PRIVATE)
_SEVERAL = 1  # entry of the folded table for characters that vanish or fold to several ASCII characters


class _Span(NamedTuple):
    """Match of a rule in a batch: row, positions in the batch, number of the rule in an edit matrix."""

    row: int
    start: int
    end: int
    rule: int


class Privacy(Filter):
    """Remove links, e-mail addresses and phone numbers.

    A kernel marks windows that could hold one: the characters around @, //, www. and .com, and runs of
    phone characters with ten digits, or with seven after a word such as 电话. Only windows are folded and
    matched. Every match lies in a window, so the result is that of the pattern over the entire folded text.
    A window of one sort that touches none of the other is matched against its half of the pattern only.
    Texts with matches are searched again without them, until nothing is found.
    """

    name = "privacy"
    rules = ("link", "email", "phone")

    def find(self, texts: Texts, is_selected: np.ndarray | None = None) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`.

        Args:
            texts: the batch.
            is_selected: bool `[texts]`, true for the texts to search; none: all.
        """
        rows = np.ones(len(texts.offsets) - 1, np.bool_) if is_selected is None else is_selected
        spans = _search(texts, rows)
        latest_spans = spans
        while latest_spans:
            changed_rows = sorted({span.row for span in latest_spans})
            latest_spans = _search_without(texts, spans, changed_rows)
            spans = _merge(spans, latest_spans)
        edits = [(*span, 0, 0, -1) for span in spans]
        return np.array(edits, np.int64).reshape(-1, COLUMNS)


_RULE_NUMBERS = {rule: number for number, rule in enumerate(Privacy.rules, 1)}


def _search(texts: Texts, rows: np.ndarray) -> list[_Span]:
    """Search the texts once; `rows` is a boolean array `[texts]`."""
    spans: list[_Span] = []
    raw_bytes = texts.code_points.data.cast("B")
    text_offsets = texts.offsets.tolist()
    windows = _windows(texts.code_points, texts.offsets, rows, _bit_table(), _folded_table())
    for row, start, text_end, sort in windows.tolist():
        context_after = _CONTEXT_AFTER_PLUS if sort & _PLUS_WINDOW else _CONTEXT_AFTER
        context_start = max(text_offsets[row], start - _CONTEXT_BEFORE)
        context_end = min(text_offsets[row + 1], text_end + context_after)
        window, _ = utf_32_le_decode(raw_bytes[4 * context_start : 4 * context_end])
        pattern = _PATTERN_OF_WINDOW[sort & (_LINK_WINDOW | _PHONE_WINDOW)]
        for match_start, match_end, rule in _matches(pattern, window, start - context_start):
            if context_start + match_end > text_end:
                break
            number = _RULE_NUMBERS[rule]
            spans.append(_Span(row, context_start + match_start, context_start + match_end, number))
    return spans


def _search_without(texts: Texts, spans: list[_Span], rows: list[int]) -> list[_Span]:
    """Search some rows with the spans cut out; return positions in the texts without that cut."""
    spans_of_row: dict[int, list[_Span]] = {row: [] for row in rows}
    for span in spans:
        if span.row in spans_of_row:
            spans_of_row[span.row].append(span)
    positions = []
    for row, removed_spans in spans_of_row.items():
        text_start, text_end = texts.offsets[row : row + 2].tolist()
        is_remaining = np.ones(text_end - text_start, np.bool_)
        for span in removed_spans:
            is_remaining[span.start - text_start : span.end - text_start] = False
        positions.append(np.flatnonzero(is_remaining) + text_start)
    cut_offsets = np.concatenate(([0], np.cumsum([len(part) for part in positions])))
    original_positions = np.concatenate(positions)
    cut_texts = Texts(texts.code_points[original_positions], cut_offsets)
    return [
        _Span(
            rows[span.row],
            int(original_positions[span.start]),
            int(original_positions[span.end - 1]) + 1,
            span.rule,
        )
        for span in _search(cut_texts, np.ones(len(rows), np.bool_))
    ]


def _merge(spans: list[_Span], later_spans: list[_Span]) -> list[_Span]:
    """Return both in order; a later span replaces the earlier ones inside it."""
    merged: list[_Span] = []
    for span in sorted({*spans, *later_spans}, key=lambda span: (span.start, -span.end)):
        if not merged or span.start >= merged[-1].end:
            merged.append(span)
    return merged


def match_once(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and rule of the pattern's matches in one text: the reference for `find`."""
    return _matches(PRIVATE, text, 0)


def _matches(pattern: re.Pattern[str], text: str, start: int) -> Iterator[tuple[int, int, str]]:
    folded = fold(text)
    for match in pattern.finditer(folded.text, folded.position(start)):
        rule = match.lastgroup or ""  # exactly one of the four groups takes part in a match
        match_start, match_end = folded.span(*match.span(rule))
        yield match_start, match_end, "phone" if rule == "local" else rule


@cache
def _bit_table() -> np.ndarray:
    bits: dict[str, int] = {"": _IN_LINK | _IN_PHONE | _IN_ADDRESS}
    letters = "abcdefghijklmnopqrstuvwxyz"
    for characters, bit in (
        (LINK_CHARACTERS, _IN_LINK),
        (PHONE_CHARACTERS, _IN_PHONE),
        ("0123456789", _IS_DIGIT),
        (letters + letters.upper() + "0123456789._%+-", _IN_ADDRESS),
        ("@/.", _IS_ANCHOR),
        ("话线真机电eElLxX", _IN_PHONE_WORD),  # every such word has one of these
    ):
        for character in characters:
            bits[character] = bits.get(character, 0) | bit
    bit_table = bits_of_folded(bits)
    bit_table[(character_classes() & HAN) > 0] |= _IS_HAN
    bit_table[_folded_table() == _SEVERAL] |= _IS_SEVERAL
    return bit_table


@cache
def _folded_table() -> np.ndarray:
    return folded_ascii(_SEVERAL)


@njit(cache=True, nogil=True)
def _folded_at(
    code_points: np.ndarray, position: int, text_start: int, text_end: int, folded_table: np.ndarray
) -> int:
    """Return the folded ASCII character at a position, in lower case; 0 outside the text and for others."""
    return folded_table[code_points[position]] if text_start <= position < text_end else 0


@njit(cache=True, nogil=True)
def _is_ellipsis(code_point: int) -> bool:
    return code_point == 0x2026 or code_point == 0x2025


@njit(cache=True, nogil=True)
def _ends_name(code_point: int) -> bool:
    """Return whether a domain name may end before this folded character."""
    return not (48 <= code_point <= 57 or 97 <= code_point <= 122 or code_point == 45)


@njit(cache=True, nogil=True)
def _may_be_link(
    code_points: np.ndarray,
    text_start: int,
    position: int,
    text_end: int,
    bit_table: np.ndarray,
    folded_table: np.ndarray,
) -> bool:
    """Return whether the @, / or full stop at a position could be part of a link or an address.

    True where characters beside it vanish or fold to several: there the pattern has to decide.
    """
    folded = folded_table[code_points[position]]
    previous = _folded_at(code_points, position - 1, text_start, text_end, folded_table)
    second_previous = _folded_at(code_points, position - 2, text_start, text_end, folded_table)
    if _is_ellipsis(code_points[position]):  # folds to full stops; frequent in Chinese
        return previous == 119 or (previous == _SEVERAL and not _is_ellipsis(code_points[position - 1]))  # w
    if (
        previous == _SEVERAL
        or folded == _SEVERAL
        or _folded_at(code_points, position + 1, text_start, text_end, folded_table) == _SEVERAL
    ):
        return True
    if folded == 64:  # @
        if position == text_start or position + 1 >= text_end:
            return False
        in_host = _IN_ADDRESS | _IS_HAN
        return (
            bit_table[code_points[position - 1]] & _IN_ADDRESS != 0
            and bit_table[code_points[position + 1]] & in_host != 0
        )
    if folded == 47:  # /
        if _folded_at(code_points, position + 1, text_start, text_end, folded_table) != 47:
            return False
        if previous == 58 or code_points[position - 1] == 0xFF1A:  # : and ：
            previous = second_previous
        return previous == 112 or previous == 115 or previous == _SEVERAL  # http, https
    if previous == 119 and (second_previous == 119 or second_previous == _SEVERAL):  # www.
        return True
    return _names_domain(code_points, position, text_end, folded_table)


@njit(cache=True, nogil=True)
def _names_domain(code_points: np.ndarray, position: int, text_end: int, folded_table: np.ndarray) -> bool:
    """Return whether a top-level domain of the pattern could follow the full stop at a position."""
    letter_count = 0
    first = second = third = fourth = 0
    stop = position + 1
    while stop < text_end and letter_count < 8:
        folded = folded_table[code_points[stop]]
        if folded == _SEVERAL:
            return True
        if not 97 <= folded <= 122:
            break
        letter_count += 1
        if letter_count == 1:
            first = folded
        elif letter_count == 2:
            second = folded
        elif letter_count == 3:
            third = folded
        elif letter_count == 4:
            fourth = folded
        stop += 1
    if letter_count < 2:
        return False
    folded_after = folded_table[code_points[stop]] if stop < text_end else 0
    if folded_after == 47 and letter_count <= 6:  # bit.ly/x
        return True
    pair = first * 256 + second
    if letter_count == 2:
        if folded_after == 45:
            return pair == 0x786E  # xn--
        if folded_after == 46:
            return pair == 0x636F or pair == 0x6163 or pair == 0x636E  # co.uk, ac.jp, cn.
        is_known = pair == 0x636E or pair == 0x7476 or pair == 0x686B or pair == 0x7477  # cn, tv, hk, tw
        return is_known and _ends_name(folded_after)
    if not _ends_name(folded_after):
        return False
    if letter_count == 3:
        return (
            (pair == 0x636F and third == 109) or (pair == 0x6F72 and third == 103)  # com, org
            or (pair == 0x6564 and third == 117) or (pair == 0x676F and third == 118)  # edu, gov
            or (pair == 0x6E65 and third == 116)  # net
        )  # fmt: skip
    return letter_count == 4 and pair == 0x696E and third == 102 and fourth == 111  # info


@njit(cache=True, nogil=True)
def _windows(
    code_points: np.ndarray,
    text_offsets: np.ndarray,
    is_selected: np.ndarray,
    bit_table: np.ndarray,
    folded_table: np.ndarray,
) -> np.ndarray:
    """Return (row, start, end, sort) of disjoint windows in order; sort: bits `_LINK_WINDOW` and so on."""
    windows = np.empty((64, 4), np.int64)
    window_count = 0
    for row in range(len(is_selected)):
        if not is_selected[row]:
            continue
        text_start = text_offsets[row]
        text_end = text_offsets[row + 1]
        position = text_start
        link_window_end = (
            text_start  # end of the last link window: nothing before it has to be looked at again
        )
        phone_window_end = text_start
        while True:
            position += _to_digit_or_anchor(code_points[position:text_end], bit_table)
            if position >= text_end:
                break
            kind = bit_table[code_points[position]]
            if (
                kind & _IS_ANCHOR
                and position >= link_window_end
                and _may_be_link(code_points, text_start, position, text_end, bit_table, folded_table)
            ):
                start, link_window_end = _run(
                    code_points, text_start, position, text_end, _IN_LINK, bit_table
                )
                link_window_end = _end_of_chinese_host(
                    code_points, link_window_end, text_end, bit_table, folded_table
                )
                windows, window_count = _add_window(
                    windows, window_count, row, start, link_window_end, _LINK_WINDOW
                )
            if kind & _IS_DIGIT and position >= phone_window_end:
                start, phone_window_end = _run(
                    code_points, text_start, position, text_end, _IN_PHONE, bit_table
                )
                sort = _phone_sort(code_points[start:phone_window_end], bit_table, folded_table)
                if sort:
                    windows, window_count = _add_window(
                        windows, window_count, row, start, phone_window_end, sort
                    )
            position += 1
    return windows[:window_count]


@njit(cache=True, nogil=True)
def _to_digit_or_anchor(code_points: np.ndarray, bit_table: np.ndarray) -> int:
    """Return the number of characters before the first digit or anchor."""
    count = 0
    for code_point in code_points:
        if bit_table[code_point] & (_IS_DIGIT | _IS_ANCHOR):
            break
        count += 1
    return count


@njit(cache=True, nogil=True)
def _run(
    code_points: np.ndarray, text_start: int, position: int, text_end: int, bit: int, bit_table: np.ndarray
) -> tuple[int, int]:
    """Return start and end of the run of characters with this bit around a position."""
    start = position
    stop = position + 1
    while start > text_start and bit_table[code_points[start - 1]] & bit:
        start -= 1
    while stop < text_end and bit_table[code_points[stop]] & bit:
        stop += 1
    return start, stop


@njit(cache=True, nogil=True)
def _end_of_chinese_host(
    code_points: np.ndarray, stop: int, text_end: int, bit_table: np.ndarray, folded_table: np.ndarray
) -> int:
    """Return the end of a link's window, moved behind a Chinese host where one could begin."""
    if stop >= text_end or not bit_table[code_points[stop]] & _IS_HAN:
        return stop
    last = folded_table[code_points[stop - 1]]
    several = last == _SEVERAL and not _is_ellipsis(code_points[stop - 1])
    if last == 46 or last == 47 or last == 64 or several:  # . / @
        while stop < text_end and bit_table[code_points[stop]] & (_IS_HAN | _IN_LINK):
            stop += 1
    return stop


@njit(cache=True, nogil=True)
def _phone_sort(code_points: np.ndarray, bit_table: np.ndarray, folded_table: np.ndarray) -> int:
    """Return the bits of a window of phone characters, 0 if no pattern can match in it.

    A match has ten digits, or seven after a word such as 电话, or follows a plus sign.
    """
    digit_count = 0
    follows_plus = False
    has_phone_word = False
    for code_point in code_points:
        kind = bit_table[code_point]
        if kind & _IS_DIGIT:
            digit_count += 2 if kind & _IS_SEVERAL else 1  # no character folds to three digits
            if follows_plus:
                return _PHONE_WINDOW | _PLUS_WINDOW
        has_phone_word |= kind & _IN_PHONE_WORD != 0
        if not kind & _IS_SEVERAL:
            follows_plus = folded_table[code_point] == 43
    return _PHONE_WINDOW if digit_count >= 10 or (has_phone_word and digit_count >= 7) else 0


@njit(cache=True, nogil=True)
def _add_window(
    windows: np.ndarray, window_count: int, row: int, start: int, text_end: int, sort: int
) -> tuple[np.ndarray, int]:
    """Add a window; windows that touch are merged, so that matches compete as they do in the entire text."""
    while window_count > 0 and windows[window_count - 1, 0] == row and windows[window_count - 1, 2] >= start:
        start = min(start, windows[window_count - 1, 1])
        text_end = max(text_end, windows[window_count - 1, 2])
        sort |= windows[window_count - 1, 3]
        window_count -= 1
    windows = grow(windows, window_count)
    windows[window_count, 0] = row
    windows[window_count, 1] = start
    windows[window_count, 2] = text_end
    windows[window_count, 3] = sort
    return windows, window_count + 1
