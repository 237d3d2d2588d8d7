"""Text as a sequence of units, and where given sequences of units stand in it.

A unit is a Han character, a kana, one of a few symbols, or a run of other letters and digits. Before
that, characters are folded: full width to half width, upper to lower case, traditional to simplified
Chinese (OpenCC). White space, line ends, punctuation and the letters or digits of option markers such as
`A.`, `(b)` or `3、` are no units, so that wrapping, punctuation and lettering hide nothing.

All compiled functions of the search stand in this file, since numba's cache looks at the file of the
function that it loads only. No Python object is made per document.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import opencc
import pyarrow as pa
from numba import njit, types

_WORDS = types.Array(types.uint64, 1, "C")
_READ_WORDS = types.Array(types.uint64, 1, "C", readonly=True)
_BYTES = types.Array(types.uint8, 1, "C")
_READ_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_NUMBERS = types.Array(types.int64, 1, "C")
_READ_NUMBERS = types.Array(types.int64, 1, "C", readonly=True)
_CODES = types.Array(types.uint32, 1, "C", readonly=True)
_BASE = np.uint64(0x9E3779B97F4A7C15)
_SCATTER, _FINISH = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

_TABLE = 0x30000
"""Code points with an entry of their own in the folding tables; those above stay as they are."""
_NOTHING, _LETTER, _LONE = 0, 1, 2
"""Kinds of characters: no part of a unit, part of a word, a unit by itself."""
_SYMBOLS = frozenset("[]{}<>+*=^%|&\\/$#~√∑∫≤≥≠±×÷°")
_CIRCLED = range(0x2460, 0x2500)
"""① and the like: units by themselves, since NFKC would make plain digits of them."""
ANCHOR = 3
"""Units of a short sequence that it is looked up by."""


@cache
def folding() -> tuple[np.ndarray, np.ndarray]:
    """Return the folded code point (uint32) and the kind (uint8) of every code point below `_TABLE`."""
    characters = [chr(code) if not 0xD800 <= code < 0xE000 else " " for code in range(_TABLE)]
    simplified = opencc.OpenCC("t2s").convert("\n".join(characters[0x2E80:])).split("\n")
    folded = np.arange(_TABLE, dtype=np.uint32)
    kinds = np.zeros(_TABLE, np.uint8)
    for code, character in enumerate(characters):
        if code in _CIRCLED:
            kinds[code] = _LONE
            continue
        plain = unicodedata.normalize("NFKC", character)
        plain = plain if len(plain) == 1 else character
        plain = plain.lower() if len(plain.lower()) == 1 else plain
        if ord(plain) >= 0x2E80:
            simple = simplified[ord(plain) - 0x2E80]
            plain = simple if len(simple) == 1 else plain
        folded[code] = ord(plain)
        kinds[code] = _kind(plain)
    return folded, kinds


def _kind(character: str) -> int:
    code = ord(character)
    if 0x3040 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0x20000 <= code < _TABLE:
        return _LONE
    if character in _SYMBOLS:
        return _LONE
    return _LETTER if unicodedata.category(character)[0] in "LMN" else _NOTHING


@njit(types.uint64(types.uint64), cache=True, nogil=True)
def _mix(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> np.uint64(30))) * _SCATTER
    value = (value ^ (value >> np.uint64(27))) * _FINISH
    return value ^ (value >> np.uint64(31))


@njit(
    types.int64(_READ_BYTES, _READ_NUMBERS, _CODES, _READ_BYTES, _WORDS, _BYTES, _NUMBERS),
    cache=True,
    nogil=True,
)
def _units(
    text: np.ndarray,
    offsets: np.ndarray,
    folded: np.ndarray,
    kinds: np.ndarray,
    units: np.ndarray,
    is_word: np.ndarray,
    ends: np.ndarray,
) -> int:
    """Hash each row's units into `units`, in order; `ends[row + 1]` says where the row's end."""
    count = 0
    for row in range(len(offsets) - 1):
        at, end = offsets[row], offsets[row + 1]
        word, length, previous = np.uint64(0), 0, np.uint64(0)
        while at <= end:
            code: Any = np.uint64(0)
            kind: Any = 0
            if at < end:
                byte = np.uint64(text[at])
                code, width = byte, 1
                if byte >= 0xF0:
                    width, code = 4, byte & np.uint64(7)
                elif byte >= 0xE0:
                    width, code = 3, byte & np.uint64(15)
                elif byte >= 0xC0:
                    width, code = 2, byte & np.uint64(31)
                for k in range(1, min(width, end - at)):
                    code = (code << np.uint64(6)) | (np.uint64(text[at + k]) & np.uint64(63))
                at += width
                kind = 2
                if code < np.uint64(len(kinds)):
                    kind = kinds[np.int64(code)]
                    code = np.uint64(folded[np.int64(code)])
            else:
                at += 1
            if kind == 1:
                word, length = word * _BASE + code + np.uint64(1), length + 1
                previous = code
                continue
            if length:
                # One letter or digit before `)`, `、`, or before `.` and `:` that no letter or digit follows.
                marker = False
                if length == 1 and previous < 128:
                    follows = at < end and text[at] < 0x80 and kinds[np.int64(text[at])] == 1
                    if at + 2 < end and text[at] == 0xEF and text[at + 1] & 0xFE == 0xBC:  # full width
                        full = (np.int64(text[at + 1]) & 63) << 6 | (np.int64(text[at + 2]) & 63)
                        follows = kinds[0xF000 | full] == 1
                    marker = (
                        code == 0x29 or code == 0x3001 or ((code == 0x2E or code == 0x3A) and not follows)
                    )
                if not marker:
                    units[count], is_word[count] = _mix(word), 1
                    count += 1
                word, length = np.uint64(0), 0
            if kind == 2:
                units[count], is_word[count] = _mix(code * _FINISH + np.uint64(1)), 0
                count += 1
            previous = code
        ends[row + 1] = count
    return count


@njit(types.int64(_READ_WORDS, _READ_NUMBERS, types.int64, _WORDS, _NUMBERS), cache=True, nogil=True)
def _ngrams(units: np.ndarray, begins: np.ndarray, size: int, grams: np.ndarray, ends: np.ndarray) -> int:
    """Hash each row's n-grams of units into `grams`, in order."""
    leading = np.uint64(1)
    for _ in range(size):
        leading *= _BASE
    count = 0
    for row in range(len(begins) - 1):
        rolling = np.uint64(0)
        for i in range(begins[row], begins[row + 1]):
            rolling = rolling * _BASE + units[i]
            place = i - begins[row]
            if place >= size:
                rolling -= units[i - size] * leading
            if place >= size - 1:
                grams[count] = _mix(rolling)
                count += 1
        ends[row + 1] = count
    return count


@njit(_NUMBERS(_READ_WORDS, _READ_WORDS), cache=True, nogil=True)
def find(grams: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Place of each n-gram in the sorted index, -1 for none. A table of first bits narrows the search."""
    bits = 1
    while (1 << bits) < len(index) and bits < 24:
        bits += 1
    shift = np.uint64(64 - bits)
    starts = np.zeros((1 << bits) + 1, np.int64)
    for value in index:
        starts[np.int64(value >> shift) + 1] += 1
    for bucket in range(1 << bits):
        starts[bucket + 1] += starts[bucket]
    places = np.full(len(grams), -1, np.int64)
    for i in range(len(grams)):
        head = np.int64(grams[i] >> shift)
        for place in range(starts[head], starts[head + 1]):
            if index[place] == grams[i]:
                places[i] = place
                break
    return places


@njit(
    types.int64(
        _READ_WORDS, _READ_NUMBERS, _READ_WORDS, _READ_WORDS, _READ_NUMBERS, _READ_WORDS, _READ_NUMBERS,
        _READ_NUMBERS, types.int64, _NUMBERS, _NUMBERS,
    ),
    cache=True, nogil=True,
)  # fmt: skip
def _find_pairs(
    units: np.ndarray,
    begins: np.ndarray,
    anchors: np.ndarray,
    firsts: np.ndarray,
    first_ends: np.ndarray,
    seconds: np.ndarray,
    second_ends: np.ndarray,
    windows: np.ndarray,
    anchor_size: int,
    found: np.ndarray,
    rows: np.ndarray,
) -> int:
    """Find pairs of sequences: the first, and within so many units behind it the second. Each once a row."""
    filtered = np.zeros(1 << 16, np.uint8)
    for anchor in anchors:
        filtered[np.int64(anchor >> np.uint64(48))] = 1
    last_row = np.full(len(windows), -1, np.int64)
    count = 0
    for row in range(len(begins) - 1):
        end = begins[row + 1]
        for i in range(begins[row], end - anchor_size + 1):
            head = np.uint64(0)
            for k in range(anchor_size):
                head = head * _BASE + units[i + k]
            head = _mix(head)
            if filtered[np.int64(head >> np.uint64(48))] == 0:
                continue
            pair = np.searchsorted(anchors, head)
            while pair < len(anchors) and anchors[pair] == head:
                begin, length = first_ends[pair], first_ends[pair + 1] - first_ends[pair]
                same = i + length <= end and last_row[pair] != row
                k = anchor_size
                while same and k < length:
                    same = units[i + k] == firsts[begin + k]
                    k += 1
                if same:
                    begin, size = second_ends[pair], second_ends[pair + 1] - second_ends[pair]
                    there = size == 0
                    j = i + length
                    stop = min(end - size, j + windows[pair])
                    while not there and j <= stop:
                        there = True
                        for k in range(size):
                            if units[j + k] != seconds[begin + k]:
                                there = False
                                break
                        j += 1
                    if there:
                        last_row[pair] = row
                        if count < len(found):
                            found[count], rows[count] = pair, row
                        count += 1
                pair += 1
    return count


@dataclass(frozen=True)
class Units:
    """The units of a column of texts."""

    units: np.ndarray
    """uint64 `[u]`, hashes."""
    is_word: np.ndarray
    """uint8 `[u]`, 1 for a run of letters and digits."""
    begins: np.ndarray
    """int64 `[rows + 1]`, where each row's units begin."""

    @classmethod
    def of(cls, column: pa.Array) -> Units:
        """Split a column of texts into units."""
        column = column.cast(pa.large_string())
        _, offsets, data = column.buffers()
        text = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
        begins = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
        most = int(begins[-1] - begins[0]) + 1
        units, is_word = np.empty(most, np.uint64), np.empty(most, np.uint8)
        ends = np.zeros(len(column) + 1, np.int64)
        count = _units(text, begins, *folding(), units, is_word, ends)
        return cls(units[:count], is_word[:count], ends)

    def ngrams(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all n-grams: uint64 `[g]`, and int64 `[rows + 1]` where each row's begin."""
        grams, ends = np.empty(len(self.units), np.uint64), np.zeros(len(self.begins), np.int64)
        count = _ngrams(self.units, self.begins, size, grams, ends)
        return grams[:count], ends

    def row(self, number: int) -> np.ndarray:
        """Units of one row."""
        return self.units[self.begins[number] : self.begins[number + 1]]


class PairIndex:
    """Pairs of short sequences of units to be looked for, sorted by their anchors."""

    def __init__(self, firsts: list[np.ndarray], seconds: list[np.ndarray], windows: list[int]) -> None:
        """Args: `windows`: units behind a first sequence in which its second must begin."""
        heads = np.array([_anchor(first) for first in firsts], np.uint64)
        self.order = np.argsort(heads, kind="stable")
        """Number of each pair as given, by its place here."""
        self.anchors = heads[self.order]
        self.firsts, self.first_ends = _joined([firsts[k] for k in self.order])
        self.seconds, self.second_ends = _joined([seconds[k] for k in self.order])
        self.windows = np.array(windows, np.int64)[self.order]

    def find(self, units: Units) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs that stand in a column, as numbers as they were given, and the row of each."""
        if not len(self.anchors):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        room = 1024
        while True:
            found, rows = np.empty(room, np.int64), np.empty(room, np.int64)
            count = _find_pairs(
                units.units, units.begins, self.anchors, self.firsts, self.first_ends, self.seconds,
                self.second_ends, self.windows, ANCHOR, found, rows,
            )  # fmt: skip
            if count <= room:
                return self.order[found[:count]], rows[:count]
            room = count


def _anchor(units: np.ndarray) -> int:
    head = np.uint64(0)
    with np.errstate(over="ignore"):
        for unit in units[:ANCHOR]:
            head = head * _BASE + unit
    return int(_mix(head))


def _joined(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = [len(row) for row in rows]
    return np.concatenate([np.empty(0, np.uint64), *rows]), np.concatenate([[0], np.cumsum(lengths)]).astype(
        np.int64
    )
