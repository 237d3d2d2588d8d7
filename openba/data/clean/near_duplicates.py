"""Near-duplicate documents: MinHash finds candidates, the exact Jaccard similarity decides.

A document is the set of its shingles: runs of consecutive units, where a unit is one Han character or one
word in lower case, without punctuation. Chinese is thus compared by characters, English by words. Two
documents are near duplicates if the Jaccard similarity of their sets reaches a threshold. MinHash (Broder,
"On the resemblance and containment of documents", 1997) gives each document `BANDS` keys of `ROWS` minima;
documents with a common key are candidates, and of those only pairs whose sets really are as similar count.

Decisions depend on the order of the documents alone: a document is removed if it is similar to an earlier one
that stays, and the earliest of these is its survivor. Every removed document is therefore at least as similar
to its survivor as the threshold says, however long a chain of similar documents is.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit

from openba.data.clean.text_arrays import HAN, WORD, Texts, character_classes

BANDS = 20
ROWS = 4
"""20 bands of 4 rows find a pair of similarity 0.8 with probability 1 - (1 - 0.8^4)^20 = 99.997 %, of 0.5
with 72 % and of 0.3 with 15 %; the exact comparison refuses those below the threshold."""
_PREDECESSORS = 8
"""Within a group of equal keys a document is compared with the first and with so many before it. All pairs of
a page that occurs a million times in a corpus would be 5 * 10^11."""
_SEED = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER = np.uint64(0xC2B2AE3D27D4EB4F)
_LOWER_CASE_LETTERS = 0x250  # Latin; Greek and Cyrillic keep their case, which costs no false pair


class ShingleSets(NamedTuple):
    """Shingles of some documents, as sorted hashes without repeats."""

    hashes: np.ndarray
    """uint32 `[shingles]`, the documents one after another. Two different shingles of one pair of documents
    share a hash with probability 2^-32, which moves a similarity by less than rounding does."""
    offsets: np.ndarray
    """int64 `[documents + 1]`."""

    def of(self, row: int) -> np.ndarray:
        """Return the hashes of one document as a view."""
        return self.hashes[self.offsets[row] : self.offsets[row + 1]]


class Shingles(NamedTuple):
    """Shingles of each document of a batch, as hashes in the order of the text, with repeats."""

    hashes: np.ndarray
    """uint32 `[shingles]`, the documents one after another."""
    offsets: np.ndarray
    """int64 `[documents + 1]`."""

    def sets(self, rows: np.ndarray) -> ShingleSets:
        """Return the sets of some documents. Sorting takes most of the time, so ask for candidates only.

        Args:
            rows: int64 `[documents]`.
        """
        return ShingleSets(*_sets(self.hashes, self.offsets, rows))


def shingles(texts: Texts, units: int) -> Shingles:
    """Return the shingles of a batch of texts.

    A text with fewer units than a shingle has one shingle of all its units. A text without units has none and
    is no duplicate of anything.

    Args:
        texts: the batch.
        units: units per shingle. Shingles of different `units` share no hash but by chance.
    """
    return Shingles(*_shingles(texts.code_points, texts.offsets, character_classes(), _lower_case(), units))


def band_keys(shingles_of_documents: Shingles) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys by which candidates are found.

    Returns:
        Keys, uint64 `[keys]`, and the row of each key's document, int64 `[keys]`; `BANDS` keys for each
        document that has shingles. A key that two documents share by chance costs one comparison.
    """
    # A fixed seed: keys of different runs and machines must agree.
    factors = np.random.default_rng(20231002).integers(1, 2**63, BANDS * ROWS, np.uint64) | np.uint64(1)
    keys = _band_keys(shingles_of_documents.hashes, shingles_of_documents.offsets, factors, BANDS, ROWS)
    rows = np.flatnonzero(np.diff(shingles_of_documents.offsets))
    return keys[rows].ravel(), np.repeat(rows, BANDS)


def candidate_pairs(keys: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return pairs of documents that have a key in common.

    Args:
        keys: uint64 `[keys]`.
        documents: int64 `[keys]`, the position of each key's document, ascending.

    Returns:
        int64 `[pairs, 2]`, without repeats, the earlier document of each pair first, sorted by the later one.
    """
    order = np.argsort(keys, kind="stable")
    return distinct_pairs(_pairs_of_equal_keys(keys[order], documents[order]))


def distinct_pairs(pairs: np.ndarray) -> np.ndarray:
    """Return pairs, int64 `[pairs, 2]`, without repeats, sorted by their second element, then the first."""
    ordered = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    is_new = np.ones(len(ordered), bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return ordered[is_new]


def are_similar(first: ShingleSets, second: ShingleSets, rows: np.ndarray, threshold: float) -> np.ndarray:
    """Return whether the Jaccard similarity of pairs reaches the threshold, bool `[pairs]`.

    Args:
        first: sets of the first documents.
        second: sets of the second documents.
        rows: int64 `[pairs, 2]`, rows in `first` and `second`.
        threshold: from 0 to 1.
    """
    return _are_similar(first.hashes, first.offsets, second.hashes, second.offsets, rows, threshold)


def choose_survivors(pairs: np.ndarray) -> np.ndarray:
    """Return which documents are removed and which stay in their stead.

    Args:
        pairs: similar documents, int64 `[pairs, 2]`, the earlier one first.

    Returns:
        int64 `[removed, 2]`: removed document and survivor, in the order of the removed documents.
    """
    removed: dict[int, int] = {}
    order = np.lexsort((pairs[:, 0], pairs[:, 1]))
    for earlier, later in pairs[order].tolist():
        if later not in removed and earlier not in removed:
            removed[later] = earlier
    return np.array(list(removed.items()), np.int64).reshape(-1, 2)


@cache
def _lower_case() -> np.ndarray:
    """Return the lower case of every code point, uint32."""
    table = np.arange(0x110000, dtype=np.uint32)
    for code_point in range(_LOWER_CASE_LETTERS):
        lowered = chr(code_point).lower()
        if len(lowered) == 1:
            table[code_point] = ord(lowered)
    return table


@njit(cache=True, nogil=True)
def _shingles(
    code_points: np.ndarray, offsets: np.ndarray, classes: np.ndarray, lower_case: np.ndarray, units: int
) -> tuple[np.ndarray, np.ndarray]:
    hashes = np.empty(len(code_points), np.uint32)  # a unit has at least one character
    shingle_offsets = np.zeros(len(offsets), np.int64)
    unit_hashes = np.empty(len(code_points), np.uint64)
    count = 0
    for row in range(len(offsets) - 1):
        text = code_points[offsets[row] : offsets[row + 1]]
        unit_count = _hash_units(text, classes, lower_case, unit_hashes)
        length = min(units, unit_count)
        if length > 0:
            for first in range(unit_count - length + 1):
                mixed = _SEED + np.uint64(units)
                for unit in range(first, first + length):
                    mixed = (mixed ^ unit_hashes[unit]) * _MULTIPLIER
                    mixed ^= mixed >> np.uint64(29)
                hashes[count] = np.uint32(mixed >> np.uint64(32))
                count += 1
        shingle_offsets[row + 1] = count
    return hashes[:count].copy(), shingle_offsets


@njit(cache=True, nogil=True)
def _hash_units(text: np.ndarray, classes: np.ndarray, lower_case: np.ndarray, hashes: np.ndarray) -> int:
    """Write a hash of each Han character and of each word between them, in order; return their number."""
    count = 0
    word_hash = _SEED
    is_in_word = False
    for position in range(len(text)):
        code_point = text[position]
        character_class = classes[code_point]
        is_han = character_class & HAN != 0
        if character_class & WORD and not is_han:
            word_hash = (word_hash ^ np.uint64(lower_case[code_point])) * _MULTIPLIER
            word_hash ^= word_hash >> np.uint64(29)
            is_in_word = True
            continue
        if is_in_word:
            hashes[count] = word_hash
            count += 1
            word_hash = _SEED
            is_in_word = False
        if is_han:
            character_hash = (np.uint64(code_point) + _SEED) * _MULTIPLIER
            hashes[count] = character_hash ^ (character_hash >> np.uint64(32))
            count += 1
    if is_in_word:
        hashes[count] = word_hash
        count += 1
    return count


@njit(cache=True, nogil=True)
def _sets(hashes: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    set_offsets = np.zeros(len(rows) + 1, np.int64)
    largest_total = 0
    for row in rows:
        largest_total += offsets[row + 1] - offsets[row]
    set_hashes = np.empty(largest_total, np.uint32)
    count = 0
    for index in range(len(rows)):
        distinct = np.unique(hashes[offsets[rows[index]] : offsets[rows[index] + 1]])
        set_hashes[count : count + len(distinct)] = distinct
        count += len(distinct)
        set_offsets[index + 1] = count
    return set_hashes[:count].copy(), set_offsets


@njit(cache=True, nogil=True)
def _band_keys(
    hashes: np.ndarray, offsets: np.ndarray, factors: np.ndarray, bands: int, rows: int
) -> np.ndarray:
    keys = np.zeros((len(offsets) - 1, bands), np.uint64)
    minima = np.empty(bands * rows, np.uint64)
    for document in range(len(offsets) - 1):
        minima[:] = np.uint64(0xFFFFFFFFFFFFFFFF)
        for position in range(offsets[document], offsets[document + 1]):
            spread = (np.uint64(hashes[position]) + _SEED) * _MULTIPLIER
            spread ^= spread >> np.uint64(29)
            for function in range(len(factors)):
                permuted = spread * factors[function]
                permuted ^= permuted >> np.uint64(32)
                minima[function] = min(minima[function], permuted)
        for band in range(bands):
            mixed = _SEED + np.uint64(band)
            for row in range(rows):
                mixed = (mixed ^ minima[band * rows + row]) * _MULTIPLIER
                mixed ^= mixed >> np.uint64(31)
            keys[document, band] = mixed
    return keys


@njit(cache=True, nogil=True)
def _pairs_of_equal_keys(keys: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return pairs within runs of equal keys; the keys are sorted, and within a run the documents."""
    pairs = np.empty((64, 2), np.int64)
    count = 0
    start = 0
    for index in range(len(keys)):
        if keys[index] != keys[start]:
            start = index
        nearest = max(start, index - _PREDECESSORS)
        if count + _PREDECESSORS + 1 > len(pairs):
            grown = np.empty((2 * len(pairs), 2), np.int64)
            grown[:count] = pairs[:count]
            pairs = grown
        for other in range(nearest, index):
            if documents[other] != documents[index]:
                pairs[count, 0] = documents[other]
                pairs[count, 1] = documents[index]
                count += 1
        if nearest > start and documents[start] != documents[index]:
            pairs[count, 0] = documents[start]
            pairs[count, 1] = documents[index]
            count += 1
    return pairs[:count].copy()


@njit(cache=True, nogil=True)
def _are_similar(
    first_hashes: np.ndarray,
    first_offsets: np.ndarray,
    second_hashes: np.ndarray,
    second_offsets: np.ndarray,
    rows: np.ndarray,
    threshold: float,
) -> np.ndarray:
    similar = np.empty(len(rows), np.bool_)
    for pair in range(len(rows)):
        first = first_hashes[first_offsets[rows[pair, 0]] : first_offsets[rows[pair, 0] + 1]]
        second = second_hashes[second_offsets[rows[pair, 1]] : second_offsets[rows[pair, 1] + 1]]
        shared = _count_shared(first, second)
        similar[pair] = shared >= threshold * (len(first) + len(second) - shared)
    return similar


@njit(cache=True, nogil=True)
def _count_shared(first: np.ndarray, second: np.ndarray) -> int:
    """Return how many hashes two sorted sets have in common."""
    first_index = 0
    second_index = 0
    shared = 0
    while first_index < len(first) and second_index < len(second):
        if first[first_index] == second[second_index]:
            shared += 1
            first_index += 1
            second_index += 1
        elif first[first_index] < second[second_index]:
            first_index += 1
        else:
            second_index += 1
    return shared
