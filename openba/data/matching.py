"""Split text into units, and find given sequences of units in it.

A unit is a Han character, a kana, one of a few symbols, or a run of other letters and digits. Before that,
characters are folded: full width to half width, upper to lower case, traditional to simplified Chinese
(OpenCC). White space, line ends, punctuation and the letters or digits of option markers such as `A.`, `(b)`
or `3、` are no units, so texts that differ only in these are equal.

All compiled functions of the search are in this file, because numba's cache checks only the file of the
function that it loads. No Python object is made per document.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache

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
# Multipliers of SplitMix64's finaliser.
_MIX_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_MIX_SECOND = np.uint64(0x94D049BB133111EB)

# Code points with an entry in the folding tables; higher ones are not folded and are units by themselves.
_TABLE_SIZE = 0x30000
# Kinds of characters.
_IGNORED = 0
_IN_WORD = 1
_SINGLE = 2  # a unit by itself
_SYMBOLS = frozenset("[]{}<>+*=^%|&\\/$#~√∑∫≤≥≠±×÷°")
# ① and the like are units by themselves, since NFKC would convert them to digits.
_CIRCLED = range(0x2460, 0x2500)
ANCHOR = 3
"""Number of first units by whose hash a sequence is looked up."""
_MAX_BUCKET_BITS = 24
# First bits of an anchor's hash in a table that rules out almost all positions without a search.
_FILTER_BITS = 16


@cache
def folding() -> tuple[np.ndarray, np.ndarray]:
    """Return the folded code point (uint32) and the kind (uint8) of all code points below `_TABLE_SIZE`."""
    characters = [chr(code) if not 0xD800 <= code < 0xE000 else " " for code in range(_TABLE_SIZE)]
    simplified = opencc.OpenCC("t2s").convert("\n".join(characters[0x2E80:])).split("\n")
    folded_table = np.arange(_TABLE_SIZE, dtype=np.uint32)
    kinds = np.zeros(_TABLE_SIZE, np.uint8)
    for code, character in enumerate(characters):
        if code in _CIRCLED:
            kinds[code] = _SINGLE
            continue
        folded = unicodedata.normalize("NFKC", character)
        folded = folded if len(folded) == 1 else character
        folded = folded.lower() if len(folded.lower()) == 1 else folded
        if ord(folded) >= 0x2E80:
            simple = simplified[ord(folded) - 0x2E80]
            folded = simple if len(simple) == 1 else folded
        folded_table[code] = ord(folded)
        kinds[code] = _kind(folded)
    return folded_table, kinds


def _kind(character: str) -> int:
    code = ord(character)
    if 0x3040 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0x20000 <= code < _TABLE_SIZE:
        return _SINGLE
    if character in _SYMBOLS:
        return _SINGLE
    return _IN_WORD if unicodedata.category(character)[0] in "LMN" else _IGNORED


@njit(types.uint64(types.uint64), cache=True, nogil=True)
def _mix(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> np.uint64(30))) * _MIX_FIRST
    value = (value ^ (value >> np.uint64(27))) * _MIX_SECOND
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def _ends_option_marker(
    code_point: np.uint64, text_bytes: np.ndarray, position: int, text_end: int, kinds: np.ndarray
) -> bool:
    """Return whether a character behind one letter or digit makes it an option marker: A. (b) 3、.

    That is `)`, `、`, or `.` and `:` if no letter or digit follows.
    """
    if code_point == 0x29 or code_point == 0x3001:
        return True
    if code_point != 0x2E and code_point != 0x3A:
        return False
    if position + 2 < text_end and text_bytes[position] == 0xEF and text_bytes[position + 1] & 0xFE == 0xBC:
        # A full-width form: three bytes from U+FF00 on.
        low_bits = (np.int64(text_bytes[position + 1]) & 63) << 6 | (np.int64(text_bytes[position + 2]) & 63)
        return kinds[0xF000 | low_bits] != _IN_WORD
    if position < text_end and text_bytes[position] < 0x80:
        return kinds[np.int64(text_bytes[position])] != _IN_WORD
    return True


@njit(
    types.int64(_READ_BYTES, _READ_NUMBERS, _CODES, _READ_BYTES, _WORDS, _BYTES, _NUMBERS),
    cache=True,
    nogil=True,
)
def _units(
    text_bytes: np.ndarray,
    offsets: np.ndarray,
    folded_table: np.ndarray,
    kinds: np.ndarray,
    units: np.ndarray,
    is_word: np.ndarray,
    unit_offsets: np.ndarray,
) -> int:
    """Write the hashes of all rows' units to `units`, the end of each row to `unit_offsets[row + 1]`.

    Returns the number of units. UTF-8 is decoded here, byte by byte, to make no Python objects.
    """
    unit_count = 0
    for row in range(len(offsets) - 1):
        position = offsets[row]
        text_end = offsets[row + 1]
        word_hash = np.uint64(0)
        word_length = 0
        previous_code_point = np.uint64(0)
        while position <= text_end:  # once more behind the end, to finish the last word
            code_point = np.uint64(0)
            kind = _IGNORED
            if position < text_end:
                byte = np.uint64(text_bytes[position])
                code_point = byte
                width = 1
                if byte >= 0xF0:
                    width = 4
                    code_point = byte & np.uint64(7)
                elif byte >= 0xE0:
                    width = 3
                    code_point = byte & np.uint64(15)
                elif byte >= 0xC0:
                    width = 2
                    code_point = byte & np.uint64(31)
                for index in range(1, min(width, text_end - position)):
                    code_point = (code_point << np.uint64(6)) | (
                        np.uint64(text_bytes[position + index]) & np.uint64(63)
                    )
                position += width
                kind = _SINGLE
                if code_point < np.uint64(len(kinds)):
                    kind = int(kinds[np.int64(code_point)])
                    code_point = np.uint64(folded_table[np.int64(code_point)])
            else:
                position += 1
            if kind == _IN_WORD:
                word_hash = word_hash * _BASE + code_point + np.uint64(1)
                word_length = word_length + 1
                previous_code_point = code_point
                continue
            if word_length:
                is_marker = (
                    word_length == 1
                    and previous_code_point < 128
                    and _ends_option_marker(code_point, text_bytes, position, text_end, kinds)
                )
                if not is_marker:
                    units[unit_count] = _mix(word_hash)
                    is_word[unit_count] = 1
                    unit_count += 1
                word_hash = np.uint64(0)
                word_length = 0
            if kind == _SINGLE:
                units[unit_count] = _mix(code_point * _MIX_SECOND + np.uint64(1))
                is_word[unit_count] = 0
                unit_count += 1
            previous_code_point = code_point
        unit_offsets[row + 1] = unit_count
    return unit_count


@njit(types.int64(_READ_WORDS, _READ_NUMBERS, types.int64, _WORDS, _NUMBERS), cache=True, nogil=True)
def _ngrams(
    units: np.ndarray, begins: np.ndarray, size: int, grams: np.ndarray, gram_offsets: np.ndarray
) -> int:
    """Write the hashes of all rows' n-grams of units to `grams`; return their number."""
    leading_factor = np.uint64(1)
    for _ in range(size):
        leading_factor *= _BASE
    gram_count = 0
    for row in range(len(begins) - 1):
        rolling_hash = np.uint64(0)
        for index in range(begins[row], begins[row + 1]):
            rolling_hash = rolling_hash * _BASE + units[index]
            number = index - begins[row]
            if number >= size:
                rolling_hash -= units[index - size] * leading_factor
            if number >= size - 1:
                grams[gram_count] = _mix(rolling_hash)
                gram_count += 1
        gram_offsets[row + 1] = gram_count
    return gram_count


@njit(_NUMBERS(_READ_WORDS, _READ_WORDS), cache=True, nogil=True)
def find(grams: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the position of each n-gram in the sorted index, int64 `[n-grams]`; -1 if it is not there.

    A table over the first bits of the hashes narrows the search to a few entries.
    """
    bits = 1
    while (1 << bits) < len(index) and bits < _MAX_BUCKET_BITS:
        bits += 1
    shift = np.uint64(64 - bits)
    starts = np.zeros((1 << bits) + 1, np.int64)
    for value in index:
        starts[np.int64(value >> shift) + 1] += 1
    for bucket in range(1 << bits):
        starts[bucket + 1] += starts[bucket]
    positions = np.full(len(grams), -1, np.int64)
    for number in range(len(grams)):
        head = np.int64(grams[number] >> shift)
        for position in range(starts[head], starts[head + 1]):
            if index[position] == grams[number]:
                positions[number] = position
                break
    return positions


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
    pair_numbers: np.ndarray,
    rows: np.ndarray,
) -> int:
    """Find pairs of sequences, the second starting within a window behind the first; each once per row.

    Writes numbers of pairs to `found` and their rows to `rows` as far as there is room; returns the number of
    all pairs.
    """
    shift = np.uint64(64 - _FILTER_BITS)
    may_match = np.zeros(1 << _FILTER_BITS, np.uint8)
    for anchor in anchors:
        may_match[np.int64(anchor >> shift)] = 1
    last_row = np.full(len(windows), -1, np.int64)
    pair_count = 0
    for row in range(len(begins) - 1):
        row_end = begins[row + 1]
        for position in range(begins[row], row_end - anchor_size + 1):
            anchor_hash = np.uint64(0)
            for index in range(anchor_size):
                anchor_hash = anchor_hash * _BASE + units[position + index]
            anchor_hash = _mix(anchor_hash)
            if may_match[np.int64(anchor_hash >> shift)] == 0:
                continue
            pair = np.searchsorted(anchors, anchor_hash)
            while pair < len(anchors) and anchors[pair] == anchor_hash:
                begin = first_ends[pair]
                first_length = first_ends[pair + 1] - first_ends[pair]
                is_match = position + first_length <= row_end and last_row[pair] != row
                index = anchor_size
                while is_match and index < first_length:
                    is_match = units[position + index] == firsts[begin + index]
                    index += 1
                if is_match:
                    begin = second_ends[pair]
                    second_length = second_ends[pair + 1] - second_ends[pair]
                    is_second_found = second_length == 0
                    second_position = position + first_length
                    last_position = min(row_end - second_length, second_position + windows[pair])
                    while not is_second_found and second_position <= last_position:
                        is_second_found = True
                        for index in range(second_length):
                            if units[second_position + index] != seconds[begin + index]:
                                is_second_found = False
                                break
                        second_position += 1
                    if is_second_found:
                        last_row[pair] = row
                        if pair_count < len(pair_numbers):
                            pair_numbers[pair_count] = pair
                            rows[pair_count] = row
                        pair_count += 1
                pair += 1
    return pair_count


@dataclass(frozen=True)
class Units:
    """Units of a column of texts."""

    units: np.ndarray
    """Hashes, uint64 `[units]`."""
    is_word: np.ndarray
    """uint8 `[units]`, 1 for a run of letters and digits."""
    begins: np.ndarray
    """int64 `[rows + 1]`, start of each row's units."""

    @classmethod
    def of(cls, column: pa.Array) -> Units:
        """Split a column of texts into units."""
        column = column.cast(pa.large_string())
        _, offsets_buffer, data = column.buffers()
        text_bytes = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
        offsets = np.frombuffer(offsets_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
        max_units = int(offsets[-1] - offsets[0]) + 1
        units = np.empty(max_units, np.uint64)
        is_word = np.empty(max_units, np.uint8)
        unit_offsets = np.zeros(len(column) + 1, np.int64)
        unit_count = _units(text_bytes, offsets, *folding(), units, is_word, unit_offsets)
        return cls(units[:unit_count], is_word[:unit_count], unit_offsets)

    def ngrams(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the hashes of all n-grams, uint64 `[n-grams]`, and each row's start, int64 `[rows + 1]`."""
        grams = np.empty(len(self.units), np.uint64)
        gram_offsets = np.zeros(len(self.begins), np.int64)
        gram_count = _ngrams(self.units, self.begins, size, grams, gram_offsets)
        return grams[:gram_count], gram_offsets

    def row(self, number: int) -> np.ndarray:
        """Return the units of one row, uint64 `[units]`."""
        return self.units[self.begins[number] : self.begins[number + 1]]


class PairIndex:
    """Pairs of short sequences of units to search for, sorted by the hash of their anchors."""

    def __init__(self, firsts: list[np.ndarray], seconds: list[np.ndarray], windows: list[int]) -> None:
        """Index pairs.

        Args:
            firsts: units of the first sequences.
            seconds: units of the second ones.
            windows: number of units behind each first sequence within which its second must start.
        """
        anchor_hashes = np.array([_anchor_hash(first) for first in firsts], np.uint64)
        self.order = np.argsort(anchor_hashes, kind="stable")
        """Number that each pair had as given, by its position here."""
        self.anchors = anchor_hashes[self.order]
        self.firsts, self.first_ends = _concatenate([firsts[number] for number in self.order])
        self.seconds, self.second_ends = _concatenate([seconds[number] for number in self.order])
        self.windows = np.array(windows, np.int64)[self.order]

    def find(self, units: Units) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs that occur in a column, by number as given, and the row of each occurrence."""
        if not len(self.anchors):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        capacity = 1024
        while True:
            pair_numbers = np.empty(capacity, np.int64)
            rows = np.empty(capacity, np.int64)
            pair_count = _find_pairs(
                units.units, units.begins, self.anchors, self.firsts, self.first_ends, self.seconds,
                self.second_ends, self.windows, ANCHOR, pair_numbers, rows,
            )  # fmt: skip
            if pair_count <= capacity:
                return self.order[pair_numbers[:pair_count]], rows[:pair_count]
            capacity = pair_count


def _anchor_hash(units: np.ndarray) -> int:
    anchor_hash = np.uint64(0)
    with np.errstate(over="ignore"):
        for unit in units[:ANCHOR]:
            anchor_hash = anchor_hash * _BASE + unit
    return int(_mix(anchor_hash))


def _concatenate(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows one after another, and the bounds of each, int64 `[rows + 1]`."""
    bounds = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return np.concatenate([np.empty(0, np.uint64), *rows]), bounds.astype(np.int64)
