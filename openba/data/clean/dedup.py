"""Exact deduplication of documents and of runs of 1 to 99 consecutive sentences (paper section 3.1.1).

Text is not moved between shards. Each shard writes keys (hashes with a position: shard and number within it),
partitions of keys are searched one by one, and each shard reads which of its keys are copies. The smallest
position stays, so the result depends on the order of the documents alone.

A run of 1..K sentences with at least L characters (white space around sentences not counted) is a duplicate
if the same run began earlier; every sentence in a duplicate goes. Only minimal windows are looked up: those
of which no shorter beginning, or no shorter end, has L characters. Each sentence of a duplicate run lies in a
minimal window inside it, whose earlier copy gave the same key, so the same sentences go as with all runs:
1 to 2 keys per sentence instead of 99. As with all runs, text that repeats itself without interruption can
lose the end of its first copy.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
from numba import njit
from xxhash import xxh3_128_digest

from openba.data.clean import sentences, text_arrays
from openba.data.clean.edit_matrix import COLUMNS, append
from openba.data.clean.sentences import line_break
from openba.data.clean.text_arrays import SPACE, Texts, character_classes

KEY = np.dtype([("high", "<u8"), ("low", "<u8"), ("position", "<u8"), ("record", "<u8")])
"""Hash of 128 bits (a false copy among 10^12 keys has a chance below 10^-14), position that it stands for
(shard << 32 | number of the document or of the window's first sentence) and number of the key itself
(shard << 32 | index among the shard's keys)."""
COPY = np.dtype([("record", "<u8"), ("first", "<u8")])
"""Key that occurred before: its number and the position of the first occurrence."""
DOCUMENT_RULE = "duplicate_document"
SENTENCE_RULES = ("duplicate_sentences",)
_RULE = 1  # `SENTENCE_RULES[0]` in an edit matrix
_SEEDS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
# Primes of XXH64.
_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(p)
    for p in (
        11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579,
        2870177450012600261, )
)  # fmt: skip


def document_keys(texts: pa.Array) -> np.ndarray:
    """Return 128 bits of hash per row of an Arrow `large_string` array, uint64 `[rows, 2]`."""
    raw, text_offsets = text_arrays.buffers(texts)
    raw_view = raw.data
    digests = [xxh3_128_digest(raw_view[start:end]) for start, end in pairwise(text_offsets.tolist())]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)


class Windows:
    """Minimal windows over the sentences of a batch."""

    def __init__(
        self, texts: Texts, max_sentences: int, min_characters: int, literal_sentences: bool = False
    ) -> None:
        self.texts = texts
        self.sentence_ends, self.first_sentences = sentences.split(texts, literal_sentences)
        self._limits = (max_sentences, max(1, min_characters))
        self._starts, sentence_stops = _strip_sentences(
            texts.code_points, texts.offsets, self.sentence_ends, self.first_sentences, character_classes()
        )
        self._lengths = sentence_stops - self._starts
        self.spans = _minimal_windows(self._lengths, self.first_sentences, *self._limits)
        """First sentence and one past the last of each window, numbered over the batch, int64
        `[windows, 2]`."""

    def keys(self) -> np.ndarray:
        """Return 128 bits of hash per window, uint64 `[windows, 2]`; the limits enter the hash."""
        sentence_stops = self._starts + self._lengths
        hashes = _hash_spans(self.texts.code_points, self._starts, sentence_stops, _SEEDS)
        return _hash_windows(
            hashes, self.spans, _SEEDS + np.uint64(self._limits[0] * 2**32 + self._limits[1])
        )

    def edits(self, windows: np.ndarray, first_positions: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Return the edits for windows that are copies.

        Neighbouring sentences with copies in one document are one edit, with that document as survivor.

        Args:
            windows: numbers of the windows, int64 `[copies]`.
            first_positions: position of the first occurrence of each.
            documents: position of the document of each first occurrence.
        """
        origins = _origins(self.spans, windows, first_positions, documents, len(self.sentence_ends))
        return _removals(
            self.texts.code_points, self.texts.offsets, self.sentence_ends, self.first_sentences, origins
        )


def partition(keys: np.ndarray, partitions: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort keys by partition, which their highest bits give; return them and the bounds of the partitions."""
    numbers = (keys["high"] >> np.uint64(32)) % np.uint64(partitions)
    counts = np.bincount(numbers.astype(np.int64), minlength=partitions)
    bounds = np.concatenate(([0], np.cumsum(counts)))
    return (keys[np.argsort(numbers, kind="stable")] if partitions > 1 else keys), bounds


def find_copies(keys: np.ndarray) -> np.ndarray:
    """Return all keys that also occur at a smaller position, as `COPY`, in the order of their numbers."""
    # A power of two at least twice the number of keys keeps probe sequences short.
    table_size = 1 << max(4, int(2 * len(keys)).bit_length())
    high, low, positions = (np.ascontiguousarray(keys[name]) for name in ("high", "low", "position"))
    first_positions = _first_positions(high, low, positions, table_size)
    copied = np.flatnonzero(first_positions < positions)
    copies = np.empty(len(copied), COPY)
    copies["record"] = keys["record"][copied]
    copies["first"] = first_positions[copied]
    return copies[np.argsort(copies["record"], kind="stable")]


@njit(cache=True, nogil=True)
def _first_positions(high: np.ndarray, low: np.ndarray, positions: np.ndarray, table_size: int) -> np.ndarray:
    """Return for each key the smallest position of all equal keys, by a hash table with open addressing."""
    key_of_slot = np.full(table_size, -1, np.int64)
    slots = np.empty(len(high), np.int64)
    mask = np.uint64(table_size - 1)
    for key in range(len(high)):
        slot = np.int64((high[key] ^ (low[key] >> np.uint64(32))) & mask)
        while key_of_slot[slot] >= 0:
            other = key_of_slot[slot]
            if high[other] == high[key] and low[other] == low[key]:
                break
            slot = (slot + 1) & (table_size - 1)
        if key_of_slot[slot] < 0 or positions[key] < positions[key_of_slot[slot]]:
            key_of_slot[slot] = key
        slots[key] = slot
    first_positions = np.empty(len(high), np.uint64)
    for key in range(len(high)):
        first_positions[key] = positions[key_of_slot[slots[key]]]
    return first_positions


@njit(cache=True, nogil=True, inline="always")
def _rotate(x: np.uint64, bits: int) -> np.uint64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@njit(cache=True, nogil=True, inline="always")
def _pair(code_points: np.ndarray, position: int) -> np.uint64:
    return np.uint64(code_points[position]) | np.uint64(code_points[position + 1]) << np.uint64(32)


@njit(cache=True, nogil=True)
def _avalanche(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@njit(cache=True, nogil=True)
def _round(h: np.uint64, lane: np.uint64) -> np.uint64:
    return _rotate(h + lane * _P2, 31) * _P1


# Names as in the description of XXH64: accumulators a to d, hash h, lanes of 8 bytes.
@njit(cache=True, nogil=True)
def xxh64(code_points: np.ndarray, seed: np.uint64) -> np.uint64:
    """Return XXH64 of code points (uint32), that is of their bytes in UTF-32."""
    code_point_count = len(code_points)
    position = 0
    if code_point_count >= 8:
        a = seed + _P1 + _P2
        b = seed + _P2
        c = seed
        d = seed - _P1
        while position + 8 <= code_point_count:
            a = _round(a, _pair(code_points, position))
            b = _round(b, _pair(code_points, position + 2))
            c = _round(c, _pair(code_points, position + 4))
            d = _round(d, _pair(code_points, position + 6))
            position += 8
        h = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        for lane in (a, b, c, d):
            h = (h ^ _round(np.uint64(0), lane)) * _P1 + _P4
    else:
        h = seed + _P5
    h += np.uint64(4 * code_point_count)
    while position + 2 <= code_point_count:
        h = _rotate(h ^ _round(np.uint64(0), _pair(code_points, position)), 27) * _P1 + _P4
        position += 2
    if position < code_point_count:
        h = _rotate(h ^ (np.uint64(code_points[position]) * _P1), 23) * _P2 + _P3
    return _avalanche(h)


@njit(cache=True, nogil=True)
def _hash_spans(
    code_points: np.ndarray, starts: np.ndarray, ends: np.ndarray, seeds: np.ndarray
) -> np.ndarray:
    hashes = np.empty((len(starts), 2), np.uint64)
    for span_number in range(len(starts)):
        span = code_points[starts[span_number] : ends[span_number]]
        hashes[span_number, 0] = xxh64(span, seeds[0])
        hashes[span_number, 1] = xxh64(span, seeds[1])
    return hashes


@njit(cache=True, nogil=True)
def _hash_windows(hashes: np.ndarray, window_spans: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return a hash of the sentence hashes of each window, mixed as XXH64 mixes 8 bytes at a time."""
    keys = np.empty((len(window_spans), 2), np.uint64)
    for window in range(len(window_spans)):
        for half in range(2):
            h = seeds[half] + np.uint64(window_spans[window, 1] - window_spans[window, 0])
            for sentence in range(window_spans[window, 0], window_spans[window, 1]):
                h = _rotate(h ^ _round(np.uint64(0), hashes[sentence, half]), 27) * _P1 + _P4
            keys[window, half] = _avalanche(h)
    return keys


@njit(cache=True, nogil=True)
def _strip_sentences(
    code_points: np.ndarray,
    text_offsets: np.ndarray,
    sentence_ends: np.ndarray,
    first_sentences: np.ndarray,
    class_table: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return start and stop of each sentence without the white space around it."""
    sentence_starts = np.empty(len(sentence_ends), np.int64)
    sentence_stops = np.empty(len(sentence_ends), np.int64)
    for row in range(len(text_offsets) - 1):
        position = text_offsets[row]
        for sentence in range(first_sentences[row], first_sentences[row + 1]):
            sentence_start = position
            sentence_stop = sentence_ends[sentence]
            while sentence_start < sentence_stop and class_table[code_points[sentence_start]] & SPACE:
                sentence_start += 1
            while sentence_stop > sentence_start and class_table[code_points[sentence_stop - 1]] & SPACE:
                sentence_stop -= 1
            sentence_starts[sentence] = sentence_start
            sentence_stops[sentence] = sentence_stop
            position = sentence_ends[sentence]
    return sentence_starts, sentence_stops


@njit(cache=True, nogil=True)
def _minimal_windows(
    lengths: np.ndarray, first_sentences: np.ndarray, max_sentences: int, min_characters: int
) -> np.ndarray:
    """Return the windows of which no shorter beginning, or no shorter end, has enough characters."""
    window_spans = np.empty((2 * len(lengths), 2), np.int64)
    window_count = 0
    for row in range(len(first_sentences) - 1):
        window_end = first_sentences[row]
        character_count = 0
        for window_start in range(
            first_sentences[row], first_sentences[row + 1]
        ):  # no shorter beginning is long enough
            while window_end < first_sentences[row + 1] and character_count < min_characters:
                character_count += lengths[window_end]
                window_end += 1
            if character_count >= min_characters and window_end - window_start <= max_sentences:
                window_spans[window_count, 0] = window_start
                window_spans[window_count, 1] = window_end
                window_count += 1
            character_count -= lengths[window_start]
        window_start = first_sentences[row]
        character_count = 0
        for window_end in range(
            first_sentences[row] + 1, first_sentences[row + 1] + 1
        ):  # no shorter end is, but a shorter beginning is
            character_count += lengths[window_end - 1]
            while window_start < window_end - 1 and character_count - lengths[window_start] >= min_characters:
                character_count -= lengths[window_start]
                window_start += 1
            if (
                character_count - lengths[window_end - 1] >= min_characters
                and window_end - window_start <= max_sentences
            ):
                window_spans[window_count, 0] = window_start
                window_spans[window_count, 1] = window_end
                window_count += 1
    return window_spans[:window_count].copy()


@njit(cache=True, nogil=True)
def _origins(
    window_spans: np.ndarray,
    windows: np.ndarray,
    first_positions: np.ndarray,
    documents: np.ndarray,
    sentence_count: int,
) -> np.ndarray:
    """Return for each sentence the document of its earliest copy, -1 if it stays."""
    earliest = np.full(sentence_count, np.iinfo(np.int64).max, np.int64)
    origins = np.full(sentence_count, -1, np.int64)
    for copy in range(len(windows)):
        window = windows[copy]
        for sentence in range(window_spans[window, 0], window_spans[window, 1]):
            if first_positions[copy] < earliest[sentence]:
                earliest[sentence] = first_positions[copy]
                origins[sentence] = documents[copy]
    return origins


@njit(cache=True, nogil=True)
def _removals(
    code_points: np.ndarray,
    text_offsets: np.ndarray,
    sentence_ends: np.ndarray,
    first_sentences: np.ndarray,
    origins: np.ndarray,
) -> np.ndarray:
    edits = np.empty((64, COLUMNS), np.int64)
    edit_count = 0
    for row in range(len(text_offsets) - 1):
        sentence_start = text_offsets[row]
        removal_start = -1
        for sentence in range(first_sentences[row], first_sentences[row + 1]):
            if origins[sentence] >= 0:
                if removal_start < 0:
                    removal_start = sentence_start
                if sentence + 1 == first_sentences[row + 1] or origins[sentence + 1] != origins[sentence]:
                    replacement = line_break(
                        code_points, text_offsets[row], removal_start, sentence_ends[sentence]
                    )
                    edits, edit_count = append(
                        edits,
                        edit_count,
                        row,
                        removal_start,
                        sentence_ends[sentence],
                        _RULE,
                        replacement,
                        0,
                        origins[sentence],
                    )
                    removal_start = -1
            sentence_start = sentence_ends[sentence]
    return edits[:edit_count]
