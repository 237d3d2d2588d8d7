"""A batch of texts as one array of code points, converted from and to Arrow's UTF-8; character classes.

Code points, because spans, words and repeats are counted in characters. Chinese takes 4 bytes each then
instead of 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

# Bits of a character's class. SPACE, WORD, DIGIT and LETTER are Python's `str.isspace`, `isalnum` (and _),
# `isdigit` and `isalpha`.
SPACE = 1
WORD = 2
HAN = 4
CLOSING = 8  # brackets and quotation marks
DIGIT = 16
LETTER = 32
OPENING = 64
STOP = 128  # what a sentence may end with, a line feed included
CLOSED_BY = dict(zip('“‘《〈（【「『("', '”’》〉）】」』)"', strict=True))
"""Opening mark -> the mark that closes it. A sentence does not end between the two."""
_CLOSING = "".join(CLOSED_BY.values()) + "'"
_STOPS = "\n!.?。！？｡"
_HAN_RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3134F))


class Texts(NamedTuple):
    """Texts of a batch: `code_points[offsets[i]:offsets[i + 1]]` are those of text i."""

    code_points: np.ndarray
    """uint32 `[characters]`."""
    offsets: np.ndarray
    """int64 `[texts + 1]`."""

    def text(self, row: int) -> str:
        """Return one text as a string."""
        return as_string(self.code_points[self.offsets[row] : self.offsets[row + 1]])

    def take(self, is_selected: np.ndarray) -> Texts:
        """Return the texts for which the boolean array `[texts]` is true."""
        if is_selected.all():
            return self
        return Texts(*_take(self.code_points, self.offsets, is_selected))


def as_string(code_points: np.ndarray) -> str:
    """Return code points (uint32) as a string."""
    return code_points.tobytes().decode("utf-32-le")


@cache
def character_classes() -> np.ndarray:
    """Return the class of every code point as bits, uint8 `[0x110000]`."""
    points = np.arange(0x110000, dtype=np.uint32).view("<U1")
    class_table = np.zeros(0x110000, np.uint8)
    for bit, is_member in (
        (SPACE, np.strings.isspace(points)),
        (WORD, np.strings.isalnum(points)),
        (DIGIT, np.strings.isdigit(points)),
        (LETTER, np.strings.isalpha(points)),
    ):
        class_table[is_member] |= bit
    class_table[ord("_")] |= WORD
    for bit, characters in ((CLOSING, _CLOSING), (OPENING, CLOSED_BY), (STOP, _STOPS)):
        class_table[[ord(character) for character in characters]] |= bit
    for first, last in _HAN_RANGES:
        class_table[first : last + 1] |= HAN
    return class_table


def decode(texts: pa.Array) -> tuple[Texts, np.ndarray]:
    """Decode an Arrow `large_string` array.

    Returns:
        The texts, and a boolean array of the rows that are not UTF-8; these are decoded as empty.
    """
    code_points, text_offsets, is_invalid = _decode(*buffers(texts))
    return Texts(code_points, text_offsets), is_invalid


def buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return bytes (uint8) and offsets (int64) of an Arrow `large_string` array without a copy."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = texts.buffers()[2]
    return np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8), offsets


def find_invalid(texts: pa.Array) -> np.ndarray:
    """Return a boolean array of the rows that are not UTF-8.

    Arrow validates all rows in one call; only if that fails are they decoded one by one.
    """
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return decode(texts)[1]
    return np.zeros(len(texts), np.bool_)


def character_offsets(texts: pa.Array) -> np.ndarray:
    """Return the offsets that `decode` would give valid texts, without decoding them."""
    sizes = pc.utf8_length(texts).to_numpy()
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))


def encode(texts: Texts) -> pa.Array:
    """Return the texts as an Arrow `large_string` array."""
    raw, offsets = _encode(texts.code_points, texts.offsets)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(raw)]
    return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)


def iterate_utf8(texts: Texts) -> Iterator[bytes]:
    """Yield each text in UTF-8; cheaper than strings for callees that take bytes."""
    raw, offsets = _encode(texts.code_points, texts.offsets)
    encoded_batch = raw.tobytes()
    return (encoded_batch[start:end] for start, end in pairwise(offsets.tolist()))


def find_blank(texts: pa.Array) -> np.ndarray:
    """Return a boolean array of the rows that hold only white space.

    The first byte rules this out for almost all rows; only the others are decoded.
    """
    is_blank = _perhaps_blank(*buffers(texts))
    if is_blank.any():
        candidates, _ = decode(texts.filter(pa.array(is_blank)))
        is_blank[is_blank] = _is_blank(candidates.code_points, candidates.offsets, character_classes())
    return is_blank


def utf8_size(texts: Texts) -> int:
    """Return the size of all texts in UTF-8 bytes."""
    return int(_utf8_size(texts.code_points))


def utf8_size_of(texts: Texts, rows: np.ndarray) -> int:
    """Return the size of some of the texts in UTF-8 bytes."""
    return int(_utf8_size_of(texts.code_points, texts.offsets, rows))


@njit(cache=True, nogil=True)
def _decode(raw: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row_count = len(offsets) - 1
    # At most one code point per byte.
    code_points = np.empty(offsets[-1] - offsets[0], np.uint32)
    text_offsets = np.zeros(row_count + 1, np.int64)
    is_invalid = np.zeros(row_count, np.bool_)
    total = 0
    for row in range(row_count):
        text_bytes = raw[offsets[row] : offsets[row + 1]]
        decoded_count, is_invalid[row] = _decode_one(text_bytes, code_points[total:])
        total += 0 if is_invalid[row] else decoded_count
        text_offsets[row + 1] = total
    return code_points[:total], text_offsets, is_invalid


@njit(cache=True, nogil=True)
def _decode_one(text_bytes: np.ndarray, out: np.ndarray) -> tuple[int, bool]:
    """Decode one text into `out`; return the number of code points, and whether it is invalid UTF-8.

    Sequences of one byte (ASCII) and three bytes (Han) are nearly all of real text and have their own branch.
    """
    position = 0
    count = 0
    byte_count = len(text_bytes)
    while position < byte_count:
        lead_byte = np.uint32(text_bytes[position])
        if lead_byte < 0x80:
            out[count] = lead_byte
            count += 1
            position += 1
            continue
        if lead_byte & np.uint32(0xF0) == 0xE0 and position + 2 < byte_count:
            second_byte = np.uint32(text_bytes[position + 1])
            third_byte = np.uint32(text_bytes[position + 2])
            code_point = (lead_byte & np.uint32(0x0F)) << np.uint32(12)
            code_point |= (second_byte & np.uint32(0x3F)) << np.uint32(6) | (third_byte & np.uint32(0x3F))
            is_continued = second_byte & np.uint32(0xC0) == 0x80 and third_byte & np.uint32(0xC0) == 0x80
            if is_continued and code_point >= 0x800 and (code_point < 0xD800 or code_point >= 0xE000):
                out[count] = code_point
                count += 1
                position += 3
                continue
            return count, True
        continuation_count = 0
        code_point = np.uint32(0)
        smallest_allowed = np.uint32(0)
        if 0xC2 <= lead_byte < 0xE0:
            continuation_count = 1
            code_point = lead_byte & np.uint32(0x1F)
            smallest_allowed = np.uint32(0x80)
        elif 0xF0 <= lead_byte < 0xF5:
            continuation_count = 3
            code_point = lead_byte & np.uint32(0x07)
            smallest_allowed = np.uint32(0x10000)
        if continuation_count == 0 or position + continuation_count >= byte_count:
            return count, True
        for offset in range(1, continuation_count + 1):
            next_byte = np.uint32(text_bytes[position + offset])
            if next_byte & np.uint32(0xC0) != 0x80:
                return count, True
            code_point = (code_point << np.uint32(6)) | (next_byte & np.uint32(0x3F))
        if code_point < smallest_allowed or code_point > 0x10FFFF:
            return count, True
        out[count] = code_point
        count += 1
        position += continuation_count + 1
    return count, False


@njit(cache=True, nogil=True)
def _utf8_size(code_points: np.ndarray) -> int:
    total = 0
    for code_point in code_points:
        total += 1 + (code_point >= 0x80) + (code_point >= 0x800) + (code_point >= 0x10000)
    return total


@njit(cache=True, nogil=True)
def _utf8_size_of(code_points: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> int:
    total = 0
    for row in rows:
        total += _utf8_size(code_points[offsets[row] : offsets[row + 1]])
    return total


@njit(cache=True, nogil=True)
def _encode(code_points: np.ndarray, text_offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    raw = np.empty(_utf8_size(code_points), np.uint8)
    byte_offsets = np.zeros(len(text_offsets), np.int64)
    byte_count = 0
    for row in range(len(text_offsets) - 1):
        for code_point in code_points[text_offsets[row] : text_offsets[row + 1]]:
            if code_point < 0x80:
                raw[byte_count] = code_point
                byte_count += 1
            elif code_point < 0x800:
                raw[byte_count] = 0xC0 | (code_point >> 6)
                raw[byte_count + 1] = 0x80 | (code_point & 0x3F)
                byte_count += 2
            elif code_point < 0x10000:
                raw[byte_count] = 0xE0 | (code_point >> 12)
                raw[byte_count + 1] = 0x80 | ((code_point >> 6) & 0x3F)
                raw[byte_count + 2] = 0x80 | (code_point & 0x3F)
                byte_count += 3
            else:
                raw[byte_count] = 0xF0 | (code_point >> 18)
                raw[byte_count + 1] = 0x80 | ((code_point >> 12) & 0x3F)
                raw[byte_count + 2] = 0x80 | ((code_point >> 6) & 0x3F)
                raw[byte_count + 3] = 0x80 | (code_point & 0x3F)
                byte_count += 4
        byte_offsets[row + 1] = byte_count
    return raw, byte_offsets


@njit(cache=True, nogil=True)
def _take(
    code_points: np.ndarray, offsets: np.ndarray, is_selected: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    taken_offsets = np.zeros(is_selected.sum() + 1, np.int64)
    out = np.empty(len(code_points), np.uint32)
    character_count = 0
    text_count = 0
    for row in range(len(is_selected)):
        if is_selected[row]:
            length = offsets[row + 1] - offsets[row]
            out[character_count : character_count + length] = code_points[offsets[row] : offsets[row + 1]]
            character_count += length
            text_count += 1
            taken_offsets[text_count] = character_count
    return out[:character_count], taken_offsets


@njit(cache=True, nogil=True)
def _perhaps_blank(raw: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    is_candidate = np.ones(len(offsets) - 1, np.bool_)
    for row in range(len(is_candidate)):
        if offsets[row] < offsets[row + 1]:
            lead_byte = raw[offsets[row]]
            is_visible_ascii = 0x21 <= lead_byte < 0x7F
            is_han = 0xE4 <= lead_byte <= 0xE9  # U+4000 to U+9FFF
            is_candidate[row] = not (is_visible_ascii or is_han)
    return is_candidate


@njit(cache=True, nogil=True)
def _is_blank(code_points: np.ndarray, offsets: np.ndarray, class_table: np.ndarray) -> np.ndarray:
    is_blank = np.ones(len(offsets) - 1, np.bool_)
    for row in range(len(is_blank)):
        for code_point in code_points[offsets[row] : offsets[row + 1]]:
            if not class_table[code_point] & SPACE:
                is_blank[row] = False
                break
    return is_blank
