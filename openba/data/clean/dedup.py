"""Exact duplicates: whole documents, and runs of 1 to 99 consecutive sentences (paper section 3.1.1).

Owns the keys by which copies are found and the search among keys. Text is never moved for it: a shard gives
keys, each with its place (shard and position), partitions of keys are searched one by one, and the places of
copies go back to the shards. The smallest place stays, so the result depends on the order of the documents
and on nothing else.

A run of 1..K sentences with at least L characters (white space around sentences not counted) is a duplicate
if the same run began earlier; every sentence in a duplicate goes. Only minimal windows are looked up: those
of which no shorter beginning, or no shorter end, has L characters. Each sentence of a duplicate run lies in a
minimal window inside it, whose earlier copy gave the same key, so the same sentences go as with all runs:
1 to 2 keys per sentence instead of 99. As with all runs, text that repeats itself without pause can lose
the end of its first copy.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
from numba import njit
from xxhash import xxh3_128_digest

from openba.data.clean import columns, sentences
from openba.data.clean.columns import RULE_CODE, Texts, classes, grown, put
from openba.data.clean.sentences import line_break

KEY = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<u8"), ("record", "<u8")])
"""A key of 128 bits (a false copy among 10^12 keys has a chance below 10^-14), the place it speaks for
(shard << 32 | document or first sentence) and its own number (shard << 32 | position in the shard's keys)."""
COPY = np.dtype([("record", "<u8"), ("first", "<u8")])
"""A key that occurred before: its number and the place of the first."""
_SEEDS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(p)
    for p in (
        11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579,
        2870177450012600261, )
)  # fmt: skip
_DUPLICATE = RULE_CODE["duplicate_sentences"]


def document_keys(texts: pa.Array) -> np.ndarray:
    """128 bits of hash per row of an Arrow `large_string` array, uint64 (n, 2)."""
    raw, offsets = columns.buffers(texts)
    whole = raw.data
    digests = [xxh3_128_digest(whole[start:end]) for start, end in pairwise(offsets.tolist())]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)


class Windows:
    """The minimal windows over the sentences of a batch."""

    def __init__(
        self, texts: Texts, max_sentences: int, min_characters: int, literal_sentences: bool = False
    ) -> None:
        self.texts = texts
        self.ends, self.first = sentences.split(texts, literal_sentences)
        self._limits = (max_sentences, max(1, min_characters))
        self._starts, stops = _stripped(texts.codes, texts.offsets, self.ends, self.first, classes())
        self._lengths = stops - self._starts
        self.spans = _minimal(self._lengths, self.first, *self._limits)
        """(first, one past the last) sentence per window, counted over the batch."""

    def keys(self) -> np.ndarray:
        """Two 64-bit hashes per window, (n, 2). Other limits give other keys."""
        stops = self._starts + self._lengths
        hashes = _hash_spans(self.texts.codes, self._starts, stops, _SEEDS)
        return _fold(hashes, self.spans, _SEEDS + np.uint64(self._limits[0] * 2**32 + self._limits[1]))

    def edits(self, windows: np.ndarray, firsts: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Edits for windows (by number) that are copies.

        Args: `firsts` are the places of the first copies, `documents` the same as places of documents;
        neighbours from one document are one edit, with that document as survivor.
        """
        origin = _origins(self.spans, windows, firsts, documents, len(self.ends))
        return _removals(self.texts.codes, self.texts.offsets, self.ends, self.first, origin)


def partition(keys: np.ndarray, partitions: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys in the order of the partition that their highest bits name, and where each partition begins."""
    number = (keys["high"] >> np.uint64(32)) % np.uint64(partitions)
    bounds = np.concatenate(([0], np.cumsum(np.bincount(number.astype(np.int64), minlength=partitions))))
    return (keys[np.argsort(number, kind="stable")] if partitions > 1 else keys), bounds


def find_copies(keys: np.ndarray) -> np.ndarray:
    """All keys that occurred at a smaller place, as `COPY`, in the order of their numbers."""
    size = 1 << max(4, int(2 * len(keys)).bit_length())
    high, low, place = (np.ascontiguousarray(keys[name]) for name in ("high", "low", "place"))
    firsts = _firsts(high, low, place, size)
    found = np.flatnonzero(firsts < place)
    copies = np.empty(len(found), COPY)
    copies["record"], copies["first"] = keys["record"][found], firsts[found]
    return copies[np.argsort(copies["record"], kind="stable")]


@njit(cache=True, nogil=True)
def _firsts(high: np.ndarray, low: np.ndarray, place: np.ndarray, size: int) -> np.ndarray:
    """The smallest place of each key's equals: an open table of positions."""
    table = np.full(size, -1, np.int64)
    slots = np.empty(len(high), np.int64)
    mask = np.uint64(size - 1)
    for k in range(len(high)):
        slot = np.int64((high[k] ^ (low[k] >> np.uint64(32))) & mask)
        while table[slot] >= 0:
            other = table[slot]
            if high[other] == high[k] and low[other] == low[k]:
                break
            slot = (slot + 1) & (size - 1)
        if table[slot] < 0 or place[k] < place[table[slot]]:
            table[slot] = k
        slots[k] = slot
    firsts = np.empty(len(high), np.uint64)
    for k in range(len(high)):
        firsts[k] = place[table[slots[k]]]
    return firsts


@njit(cache=True, nogil=True, inline="always")
def _rotate(x: np.uint64, bits: int) -> np.uint64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@njit(cache=True, nogil=True, inline="always")
def _pair(codes: np.ndarray, at: int) -> np.uint64:
    return np.uint64(codes[at]) | np.uint64(codes[at + 1]) << np.uint64(32)


@njit(cache=True, nogil=True)
def _avalanche(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@njit(cache=True, nogil=True)
def _round(h: np.uint64, lane: np.uint64) -> np.uint64:
    return _rotate(h + lane * _P2, 31) * _P1


@njit(cache=True, nogil=True)
def xxh64(codes: np.ndarray, seed: np.uint64) -> np.uint64:
    """XXH64 of code points, as of their bytes in UTF-32."""
    end, at = len(codes), 0
    if end >= 8:
        a, b, c, d = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
        while at + 8 <= end:
            a, b = _round(a, _pair(codes, at)), _round(b, _pair(codes, at + 2))
            c, d = _round(c, _pair(codes, at + 4)), _round(d, _pair(codes, at + 6))
            at += 8
        h = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        for lane in (a, b, c, d):
            h = (h ^ _round(np.uint64(0), lane)) * _P1 + _P4
    else:
        h = seed + _P5
    h += np.uint64(4 * end)
    while at + 2 <= end:
        h = _rotate(h ^ _round(np.uint64(0), _pair(codes, at)), 27) * _P1 + _P4
        at += 2
    if at < end:
        h = _rotate(h ^ (np.uint64(codes[at]) * _P1), 23) * _P2 + _P3
    return _avalanche(h)


@njit(cache=True, nogil=True)
def _hash_spans(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    hashes = np.empty((len(starts), 2), np.uint64)
    for k in range(len(starts)):
        span = codes[starts[k] : ends[k]]
        hashes[k, 0] = xxh64(span, seeds[0])
        hashes[k, 1] = xxh64(span, seeds[1])
    return hashes


@njit(cache=True, nogil=True)
def _fold(hashes: np.ndarray, spans: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """A hash of each window's sentence hashes, in the way XXH64 takes in eight bytes."""
    keys = np.empty((len(spans), 2), np.uint64)
    for k in range(len(spans)):
        for half in range(2):
            h = seeds[half] + np.uint64(spans[k, 1] - spans[k, 0])
            for s in range(spans[k, 0], spans[k, 1]):
                h = _rotate(h ^ _round(np.uint64(0), hashes[s, half]), 27) * _P1 + _P4
            keys[k, half] = _avalanche(h)
    return keys


@njit(cache=True, nogil=True)
def _stripped(
    codes: np.ndarray, offsets: np.ndarray, ends: np.ndarray, first: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where each sentence starts and stops without the white space around it."""
    starts, stops = np.empty(len(ends), np.int64), np.empty(len(ends), np.int64)
    for row in range(len(offsets) - 1):
        at = offsets[row]
        for s in range(first[row], first[row + 1]):
            start, stop = at, ends[s]
            while start < stop and table[codes[start]] & 1:
                start += 1
            while stop > start and table[codes[stop - 1]] & 1:
                stop -= 1
            starts[s], stops[s], at = start, stop, ends[s]
    return starts, stops


@njit(cache=True, nogil=True)
def _minimal(lengths: np.ndarray, first: np.ndarray, longest: int, enough: int) -> np.ndarray:
    spans = np.empty((2 * len(lengths), 2), np.int64)
    n = 0
    for row in range(len(first) - 1):
        end, total = first[row], 0
        for start in range(first[row], first[row + 1]):  # no shorter beginning is long enough
            while end < first[row + 1] and total < enough:
                total += lengths[end]
                end += 1
            if total >= enough and end - start <= longest:
                spans[n, 0], spans[n, 1] = start, end
                n += 1
            total -= lengths[start]
        start, total = first[row], 0
        for end in range(first[row] + 1, first[row + 1] + 1):  # no shorter end is, but a shorter beginning is
            total += lengths[end - 1]
            while start < end - 1 and total - lengths[start] >= enough:
                total -= lengths[start]
                start += 1
            if total - lengths[end - 1] >= enough and end - start <= longest:
                spans[n, 0], spans[n, 1] = start, end
                n += 1
    return spans[:n].copy()


@njit(cache=True, nogil=True)
def _origins(
    spans: np.ndarray, windows: np.ndarray, firsts: np.ndarray, documents: np.ndarray, count: int
) -> np.ndarray:
    """Per sentence the document of its earliest copy, -1 if it stays."""
    earliest = np.full(count, np.iinfo(np.int64).max, np.int64)
    origin = np.full(count, -1, np.int64)
    for k in range(len(windows)):
        for s in range(spans[windows[k], 0], spans[windows[k], 1]):
            if firsts[k] < earliest[s]:
                earliest[s], origin[s] = firsts[k], documents[k]
    return origin


@njit(cache=True, nogil=True)
def _removals(
    codes: np.ndarray, offsets: np.ndarray, ends: np.ndarray, first: np.ndarray, origin: np.ndarray
) -> np.ndarray:
    edits = np.empty((64, 7), np.int64)
    n = 0
    for row in range(len(offsets) - 1):
        start, joined = offsets[row], -1
        for s in range(first[row], first[row + 1]):
            if origin[s] >= 0:
                if joined < 0:
                    joined = start
                if s + 1 == first[row + 1] or origin[s + 1] != origin[s]:
                    edits = grown(edits, n)
                    mark = line_break(codes, offsets[row], joined, ends[s])
                    put(edits, n, row, joined, ends[s], _DUPLICATE, mark, 0, origin[s])
                    n += 1
                    joined = -1
            start = ends[s]
    return edits[:n]
