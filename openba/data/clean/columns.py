"""A batch of texts as one array of code points, and spans to take out of it as one matrix.

Owns the way from Arrow's UTF-8 to code points and back, the table of character classes and the
application of edits. It knows no filter. Code points, because spans, words and repeats are counted in
characters; Chinese takes 4 bytes each instead of 3.
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

ROW, START, END, RULE, FIRST, SECOND, SURVIVOR = range(7)
"""Columns of an edit matrix (int64): row of the batch, absolute span, index of the rule in `RULES`, up to
two code points to put there (0: none), and for duplicates the place of the first copy (-1: none)."""

RULES = (
    "", "empty", "link", "email", "phone", "comment", "script", "style", "tag", "unusual_character",
    "repeat", "short_sentence", "duplicate_document", "duplicate_sentences", "unsure_language",
    "other_language", "rare_han", "invalid_utf8", "unreadable",
)  # fmt: skip
"""Why something went. Empty: a rewriting that loses nothing, such as a decoded entity: not recorded."""
RULE_CODE = {rule: code for code, rule in enumerate(RULES)}

SPACE, WORD, HAN, CLOSING, DIGIT, LETTER, OPENING, STOP = 1, 2, 4, 8, 16, 32, 64, 128
"""Bits of a character's class; space, word, digit and letter as Python's `str` has them. Opening and closing
are brackets and quotation marks; a stop is what a sentence may end with, a line feed included."""
CLOSED_BY = dict(zip('“‘《〈（【「『("', '”’》〉）】」』)"', strict=True))
"""Opening marks, within which a sentence does not end, and what closes them."""
_CLOSING = "".join(CLOSED_BY.values()) + "'"
_STOPS = "\n!.?。！？｡"
_HAN_RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3134F))


class Texts(NamedTuple):
    """`codes[offsets[i]:offsets[i + 1]]` are the code points of text i."""

    codes: np.ndarray  # uint32
    offsets: np.ndarray  # int64

    def text(self, row: int) -> str:
        """One text as a string."""
        return as_string(self.codes[self.offsets[row] : self.offsets[row + 1]])

    def take(self, keep: np.ndarray) -> Texts:
        """The texts at which the boolean array is true."""
        if keep.all():
            return self
        return Texts(*_take(self.codes, self.offsets, keep))


def as_string(codes: np.ndarray) -> str:
    """Code points as a string."""
    return codes.tobytes().decode("utf-32-le")


@cache
def classes() -> np.ndarray:
    """The class of every code point, uint8."""
    points = np.arange(0x110000, dtype=np.uint32).view("<U1")
    table = np.zeros(0x110000, np.uint8)
    for bit, found in (
        (SPACE, np.strings.isspace(points)),
        (WORD, np.strings.isalnum(points)),
        (DIGIT, np.strings.isdigit(points)),
        (LETTER, np.strings.isalpha(points)),
    ):
        table[found] |= bit
    table[ord("_")] |= WORD
    for bit, characters in ((CLOSING, _CLOSING), (OPENING, CLOSED_BY), (STOP, _STOPS)):
        table[[ord(character) for character in characters]] |= bit
    for first, last in _HAN_RANGES:
        table[first : last + 1] |= HAN
    return table


def decode(texts: pa.Array) -> tuple[Texts, np.ndarray]:
    """Code points of an Arrow `large_string` array, and which rows are not UTF-8 (decoded as empty)."""
    codes, starts, bad = _decode(*buffers(texts))
    return Texts(codes, starts), bad


def buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Bytes (uint8) and offsets (int64) of an Arrow `large_string` array, in place."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = texts.buffers()[2]
    return np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8), offsets


def invalid(texts: pa.Array) -> np.ndarray:
    """Which rows are not UTF-8. Arrow looks at all of them at once; only if it objects is it said which."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return decode(texts)[1]
    return np.zeros(len(texts), np.bool_)


def lengths(texts: pa.Array) -> np.ndarray:
    """Offsets of valid texts in characters, as `decode` gives them, without the characters."""
    sizes = pc.utf8_length(texts).to_numpy()
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))


def encode(texts: Texts) -> pa.Array:
    """An Arrow `large_string` array."""
    raw, offsets = _encode(texts.codes, texts.offsets)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(raw)]
    return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)


def utf8(texts: Texts) -> Iterator[bytes]:
    """The texts in UTF-8, one by one: cheaper than as strings, for what takes bytes."""
    raw, offsets = _encode(texts.codes, texts.offsets)
    whole_batch, bounds = raw.tobytes(), offsets.tolist()
    return (whole_batch[start:end] for start, end in pairwise(bounds))


def apply(texts: Texts, edits: np.ndarray) -> Texts:
    """The texts after edits in order; an edited text loses the white space around it."""
    return Texts(*_apply(texts.codes, texts.offsets, edits, classes())) if len(edits) else texts


def blank(texts: pa.Array) -> np.ndarray:
    """Which rows are white space only. Few begin so that they could be; only these are decoded."""
    found = _perhaps_blank(*buffers(texts))
    if found.any():
        candidates, _ = decode(texts.filter(pa.array(found)))
        found[found] = _blank(candidates.codes, candidates.offsets, classes())
    return found


def size(texts: Texts) -> int:
    """UTF-8 bytes."""
    return int(_size(texts.codes))


def size_of(texts: Texts, rows: np.ndarray) -> int:
    """UTF-8 bytes of some of the texts."""
    return int(_size_of(texts.codes, texts.offsets, rows))


@njit(cache=True, nogil=True)
def _decode(raw: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = len(offsets) - 1
    codes = np.empty(offsets[-1] - offsets[0], np.uint32)
    starts = np.zeros(rows + 1, np.int64)
    bad = np.zeros(rows, np.bool_)
    n = 0
    for row in range(rows):
        text, out = raw[offsets[row] : offsets[row + 1]], codes[n:]
        k, bad[row] = _decode_one(text, out)
        n += 0 if bad[row] else k
        starts[row + 1] = n
    return codes[:n], starts, bad


@njit(cache=True, nogil=True)
def _decode_one(text: np.ndarray, out: np.ndarray) -> tuple[int, bool]:
    """Code points of one text and whether it is no UTF-8; most of the time goes into one and three bytes."""
    at, k, end = 0, 0, len(text)
    while at < end:
        first = np.uint32(text[at])
        if first < 0x80:
            out[k] = first
            k += 1
            at += 1
            continue
        if first & np.uint32(0xF0) == 0xE0 and at + 2 < end:
            second, third = np.uint32(text[at + 1]), np.uint32(text[at + 2])
            code = (first & np.uint32(0x0F)) << np.uint32(12)
            code |= (second & np.uint32(0x3F)) << np.uint32(6) | (third & np.uint32(0x3F))
            follow = second & np.uint32(0xC0) == 0x80 and third & np.uint32(0xC0) == 0x80
            if follow and code >= 0x800 and (code < 0xD800 or code >= 0xE000):
                out[k] = code
                k += 1
                at += 3
                continue
            return k, True
        length, code, least = 0, np.uint32(0), np.uint32(0)
        if 0xC2 <= first < 0xE0:
            length, code, least = 1, first & np.uint32(0x1F), np.uint32(0x80)
        elif 0xF0 <= first < 0xF5:
            length, code, least = 3, first & np.uint32(0x07), np.uint32(0x10000)
        if length == 0 or at + length >= end:
            return k, True
        for j in range(1, length + 1):
            byte = np.uint32(text[at + j])
            if byte & np.uint32(0xC0) != 0x80:
                return k, True
            code = (code << np.uint32(6)) | (byte & np.uint32(0x3F))
        if code < least or code > 0x10FFFF:
            return k, True
        out[k] = code
        k += 1
        at += length + 1
    return k, False


@njit(cache=True, nogil=True)
def _size(codes: np.ndarray) -> int:
    total = 0
    for code in codes:
        total += 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)
    return total


@njit(cache=True, nogil=True)
def _size_of(codes: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> int:
    total = 0
    for row in rows:
        total += _size(codes[offsets[row] : offsets[row + 1]])
    return total


@njit(cache=True, nogil=True)
def _encode(codes: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    raw = np.empty(_size(codes), np.uint8)
    ends = np.zeros(len(offsets), np.int64)
    n = 0
    for row in range(len(offsets) - 1):
        for code in codes[offsets[row] : offsets[row + 1]]:
            if code < 0x80:
                raw[n] = code
                n += 1
            elif code < 0x800:
                raw[n] = 0xC0 | (code >> 6)
                raw[n + 1] = 0x80 | (code & 0x3F)
                n += 2
            elif code < 0x10000:
                raw[n] = 0xE0 | (code >> 12)
                raw[n + 1] = 0x80 | ((code >> 6) & 0x3F)
                raw[n + 2] = 0x80 | (code & 0x3F)
                n += 3
            else:
                raw[n] = 0xF0 | (code >> 18)
                raw[n + 1] = 0x80 | ((code >> 12) & 0x3F)
                raw[n + 2] = 0x80 | ((code >> 6) & 0x3F)
                raw[n + 3] = 0x80 | (code & 0x3F)
                n += 4
        ends[row + 1] = n
    return raw, ends


@njit(cache=True, nogil=True)
def _apply(
    codes: np.ndarray, offsets: np.ndarray, edits: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    out = np.empty(len(codes) + 2 * len(edits), np.uint32)
    ends = np.zeros(len(offsets), np.int64)
    n, e, at = 0, 0, 0
    for row in range(len(offsets) - 1):
        if e == len(edits) or edits[e, 0] != row:  # copied with its neighbours, in one go
            ends[row + 1] = n + offsets[row + 1] - at
            continue
        length = offsets[row] - at
        out[n : n + length] = codes[at : offsets[row]]
        n += length
        begin, at, end = n, offsets[row], offsets[row + 1]
        while e < len(edits) and edits[e, 0] == row:
            length = edits[e, 1] - at
            out[n : n + length] = codes[at : edits[e, 1]]
            n += length
            for replacement in (edits[e, 4], edits[e, 5]):
                if replacement > 0:
                    out[n] = replacement
                    n += 1
            at = edits[e, 2]
            e += 1
        out[n : n + end - at] = codes[at:end]
        n += end - at
        at = end
        first = begin
        while first < n and table[out[first]] & 1:
            first += 1
        while n > first and table[out[n - 1]] & 1:
            n -= 1
        if first > begin:
            for k in range(first, n):
                out[begin + k - first] = out[k]
            n -= first - begin
        ends[row + 1] = n
    length = len(codes) - at
    out[n : n + length] = codes[at:]
    return out[: n + length], ends


@njit(cache=True, nogil=True)
def _take(codes: np.ndarray, offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ends = np.zeros(keep.sum() + 1, np.int64)
    out = np.empty(len(codes), np.uint32)
    n, k = 0, 0
    for row in range(len(keep)):
        if keep[row]:
            length = offsets[row + 1] - offsets[row]
            out[n : n + length] = codes[offsets[row] : offsets[row + 1]]
            n += length
            k += 1
            ends[k] = n
    return out[:n], ends


@njit(cache=True, nogil=True)
def _perhaps_blank(raw: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    found = np.ones(len(offsets) - 1, np.bool_)
    for row in range(len(found)):
        if offsets[row] < offsets[row + 1]:
            first = raw[offsets[row]]
            visible, han = 0x21 <= first < 0x7F, 0xE4 <= first <= 0xE9  # U+4000 to U+9FFF
            found[row] = not (visible or han)
    return found


@njit(cache=True, nogil=True)
def _blank(codes: np.ndarray, offsets: np.ndarray, table: np.ndarray) -> np.ndarray:
    found = np.ones(len(offsets) - 1, np.bool_)
    for row in range(len(found)):
        for code in codes[offsets[row] : offsets[row + 1]]:
            if not table[code] & 1:
                found[row] = False
                break
    return found


@njit(cache=True, nogil=True)
def grown(edits: np.ndarray, n: int) -> np.ndarray:
    """The matrix, or one of twice the length if row n is its end."""
    if n < len(edits):
        return edits
    larger = np.empty((2 * len(edits) + 64, edits.shape[1]), np.int64)
    larger[:n] = edits[:n]
    return larger


@njit(cache=True, nogil=True)
def put(
    edits: np.ndarray,
    n: int,
    row: int,
    start: int,
    end: int,
    rule: int,
    first: int,
    second: int,
    survivor: int,
) -> None:
    """Write row n of an edit matrix."""
    edits[n, 0], edits[n, 1], edits[n, 2], edits[n, 3] = row, start, end, rule
    edits[n, 4], edits[n, 5], edits[n, 6] = first, second, survivor


def whole(texts: Texts, rows: np.ndarray, rules: np.ndarray | int) -> np.ndarray:
    """Edits that remove whole texts."""
    edits = np.zeros((len(rows), 7), np.int64)
    edits[:, ROW], edits[:, START], edits[:, END] = rows, texts.offsets[rows], texts.offsets[rows + 1]
    edits[:, RULE], edits[:, SURVIVOR] = rules, -1
    return edits
