"""Sentences of Chinese and English text, and the filter that removes the short ones.

Owns where a sentence ends and what counts as a word. It knows nothing of duplicates.

A sentence ends after Chinese full stops and the closing marks behind them, wherever they stand; after ! and ?
before white space, a Han character or the end; after a full stop between Han characters or behind one; after
an English full stop if a capital, a digit or Han follows, but not after Mr, Dr, No. 5 or an initial; and at a
line feed. White space belongs to the sentence before it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from openba.data.clean.columns import RULE_CODE, Texts, classes, grown, put

_SHORT = RULE_CODE["short_sentence"]


def split(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """(ends, first): absolute ends of all sentences, and per text the number of its first one.

    `first` has a last entry, the number of all sentences. The last end of a text is the text's.
    """
    return _split(texts.codes, texts.offsets, classes())


def words(texts: Texts) -> np.ndarray:
    """Words per text: a Han character is one; so is a run of other letters or digits."""
    bounds = zip(texts.offsets[:-1], texts.offsets[1:], strict=True)
    all_of_them = len(texts.codes)
    return np.array(
        [_words(texts.codes, start, end, all_of_them, classes()) for start, end in bounds], np.int64
    )


def find_short(texts: Texts, minimum: int) -> np.ndarray:
    """Edits: sentences with fewer words than the minimum; neighbours are one edit."""
    ends, first = split(texts)
    return _find_short(texts.codes, texts.offsets, ends, first, minimum, classes())


@njit(cache=True, nogil=True, inline="always")
def _full_stop(code: int) -> bool:
    return code == 0x3002 or code == 0xFF01 or code == 0xFF1F or code == 0xFF61


@njit(cache=True, nogil=True)
def _closed(codes: np.ndarray, at: int, end: int, table: np.ndarray) -> int:
    while at < end and table[codes[at]] & 8:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _spaces(codes: np.ndarray, at: int, end: int, table: np.ndarray) -> int:
    while at < end and table[codes[at]] & 1:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _abbreviation(codes: np.ndarray, begin: int, at: int, table: np.ndarray) -> bool:
    """Whether the full stop at `at` follows Mr, Mrs, Ms, Dr, St, vs or an initial."""
    if at == begin:
        return False
    last = codes[at - 1]
    if 65 <= last <= 90 and (at - 2 < begin or not table[codes[at - 2]] & 2):
        return True
    if at - 2 < begin:
        return False
    pair = codes[at - 2] * 256 + last if codes[at - 2] < 256 and last < 256 else 0
    before = at - 3 < begin or not table[codes[at - 3]] & 2
    known = pair == 0x4D72 or pair == 0x4D73 or pair == 0x4472 or pair == 0x5374 or pair == 0x7673
    if known and before:
        return True
    mrs = pair == 0x7273 and at - 3 >= begin and codes[at - 3] == 0x4D
    return mrs and (at - 4 < begin or not table[codes[at - 4]] & 2)


@njit(cache=True, nogil=True)
def _english_stop(codes: np.ndarray, begin: int, at: int, end: int, table: np.ndarray) -> int:
    """End of the sentence that the full stop at `at` ends, without the white space; -1 if it ends none."""
    if _abbreviation(codes, begin, at, table):
        return -1
    numbered = at - 2 >= begin and codes[at - 2] == 0x4E and codes[at - 1] == 0x6F  # No
    if numbered and (at - 3 < begin or not table[codes[at - 3]] & 2):
        after = _spaces(codes, at + 1, end, table)
        if after < end and 48 <= codes[after] <= 57:
            return -1
    stop = _closed(codes, at + 1, end, table)
    after = _spaces(codes, stop, end, table)
    if after == end:
        return stop
    if after == stop:
        return -1
    code = codes[after]
    if code == 0x22 or code == 0x27 or code == 0x201C or code == 0x28:
        after += 1
        if after == end:
            return -1
        code = codes[after]
    if 65 <= code <= 90 or 48 <= code <= 57 or table[code] & 4:
        return stop
    return -1


@njit(cache=True, nogil=True)
def _stop(codes: np.ndarray, begin: int, at: int, end: int, table: np.ndarray) -> int:
    """End of the sentence that ends with the mark at `at`, without the white space; -1 if it ends none."""
    code = codes[at]
    if code == 10:
        return at + 1
    if _full_stop(code):
        while at < end and _full_stop(codes[at]):
            at += 1
        return _closed(codes, at, end, table)
    if code == 33 or code == 63:
        while at < end and (codes[at] == 33 or codes[at] == 63):
            at += 1
        at = _closed(codes, at, end, table)
        return at if at == end or table[codes[at]] & 5 else -1
    if code != 46:
        return -1
    if at > begin and table[codes[at - 1]] & 4:
        stop = _closed(codes, at + 1, end, table)
        if stop == end or not (table[codes[stop]] & 2 or codes[stop] == 46):
            return stop
        if stop > at + 1:
            return stop - 1
        if table[codes[stop]] & 4:
            return stop
    return _english_stop(codes, begin, at, end, table)


@njit(cache=True, nogil=True)
def _to_mark(codes: np.ndarray) -> int:
    """How many characters stand before the first that may end a sentence."""
    count = 0
    for code in codes:
        if code < 64:
            if code == 10 or code == 33 or code == 46 or code == 63:
                break
        elif code == 0x3002 or (code >= 0xFF01 and _full_stop(code)):
            break
        count += 1
    return count


@njit(cache=True, nogil=True)
def _split(codes: np.ndarray, offsets: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ends = np.empty(len(codes) // 16 + 64, np.int64)
    first = np.zeros(len(offsets), np.int64)
    n = 0
    for row in range(len(offsets) - 1):
        begin, end = offsets[row], offsets[row + 1]
        at, last = begin, -1
        while True:
            at += _to_mark(codes[at:end])
            if at >= end:
                break
            stop = _stop(codes, begin, at, end, table)
            if stop < 0:
                at += 1
                continue
            at = last = _spaces(codes, stop, end, table)
            if n + 1 >= len(ends):
                ends = np.concatenate((ends, np.empty(len(ends), np.int64)))
            ends[n] = at
            n += 1
        if last != end:
            if n + 1 >= len(ends):
                ends = np.concatenate((ends, np.empty(len(ends), np.int64)))
            ends[n] = end
            n += 1
        first[row + 1] = n
    return ends[:n].copy(), first


@njit(cache=True, nogil=True)
def _words(codes: np.ndarray, start: int, end: int, enough: int, table: np.ndarray) -> int:
    """Words from start to end, counted as far as `enough`."""
    count, at = 0, start
    while at < end and count < enough:
        kind = table[codes[at]]
        code = codes[at]
        if kind & 4:
            count += 1
            at += 1
        elif kind & 2 and code != 95:
            count += 1
            at += 1
            while at < end:
                code = codes[at]
                joins = code == 46 or code == 44 or code == 39 or code == 0x2019 or code == 45
                if joins and at + 1 < end and table[codes[at + 1]] & 6 == 2 and codes[at + 1] != 95:
                    at += 2
                elif table[code] & 6 == 2 and code != 95:
                    at += 1
                else:
                    break
        else:
            at += 1
    return count


@njit(cache=True, nogil=True)
def line_break(codes: np.ndarray, begin: int, start: int, end: int) -> int:
    """A line feed to put in the place of whole sentences if they part two lines, else 0."""
    if start == begin or codes[start - 1] == 10:
        return 0
    for at in range(start, end):
        if codes[at] == 10:
            return 10
    return 0


@njit(cache=True, nogil=True)
def _find_short(
    codes: np.ndarray,
    offsets: np.ndarray,
    ends: np.ndarray,
    first: np.ndarray,
    minimum: int,
    table: np.ndarray,
) -> np.ndarray:
    edits = np.empty((64, 7), np.int64)
    n = 0
    for row in range(len(offsets) - 1):
        start, joined = offsets[row], -1
        for sentence in range(first[row], first[row + 1] + 1):
            last = sentence == first[row + 1]
            short = not last and _words(codes, start, ends[sentence], minimum, table) < minimum
            if short and joined < 0:
                joined = start
            if not short and joined >= 0:
                edits = grown(edits, n)
                mark = line_break(codes, offsets[row], joined, start)
                put(edits, n, row, joined, start, _SHORT, mark, 0, -1)
                n += 1
                joined = -1
            if not last:
                start = ends[sentence]
    return edits[:n]
