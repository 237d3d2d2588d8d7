"""Exact duplicates: whole documents, and runs of 1 to 99 consecutive sentences (paper section 3.1.1).

Owns the state of the two searches: digests of what has been seen, in order. The first occurrence by
(source, document, sentence) stays, so the result depends on nothing but the order of the documents.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from xxhash import xxh3_128_digest

from openba.data.clean import sentences
from openba.data.clean.edits import Edit, whole

_DIGEST = 16  # bytes; 128 bits: a false duplicate among 10^12 sentences has a chance below 10^-14


class DocumentDedup:
    """Finds documents whose text has been seen before."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}

    def find(self, text: str, document: str) -> list[Edit]:
        """The whole text if it is a copy. `document` names it: `source/id`."""
        first = self._first.setdefault(xxh3_128_digest(text.encode()), document)
        return whole(text, "duplicate_document", first) if first != document else []


class ParagraphDedup:
    """Finds runs of consecutive sentences that have been seen before.

    A run of 1..max_sentences sentences with at least min_characters (white space around sentences
    not counted) is a duplicate if the same run began earlier; every sentence in a duplicate goes.
    Only minimal windows are looked up: from each sentence on, the shortest run that is long enough,
    and up to each sentence likewise. Each sentence of a duplicate run lies in a minimal window inside
    it, whose earlier copy was recorded as well, so the same sentences go as with all runs: 2 look-ups
    per sentence instead of 99. As with all runs, text that repeats itself without pause can lose the
    end of its first copy.
    """

    def __init__(self, max_sentences: int, min_characters: int) -> None:
        self._limits = (max_sentences, max(1, min_characters))
        self._seen: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
        self._documents: list[str] = []
        self._starts: list[int] = []  # number of the document's first sentence among all
        self._sentences = 0

    def find(self, text: str, document: str) -> list[Edit]:
        """Duplicate sentences; neighbours with one survivor are one edit. `document`: `source/id`."""
        ends = sentences.split(text)
        stripped = [text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)]
        origin = self._duplicates(stripped, document)
        edits: list[Edit] = []
        for index, first in sorted(origin.items()):
            start = ends[index - 1] if index else 0
            survivor = self._documents[bisect_right(self._starts, first) - 1]
            if edits and edits[-1].end == start and edits[-1].survivor == survivor:
                start = edits.pop().start
            edits.append(sentences.removal(text, start, ends[index], "duplicate_sentences", survivor))
        return edits

    def _duplicates(self, stripped: Sequence[str], document: str) -> dict[int, int]:
        """Index of each duplicate sentence -> number among all of where its earliest copy begins."""
        begin = self._sentences
        self._documents.append(document)
        self._starts.append(begin)
        self._sentences += len(stripped)
        digests = b"".join(xxh3_128_digest(sentence.encode()) for sentence in stripped)
        sums = [0, *accumulate(map(len, stripped))]
        origin: dict[int, int] = {}
        for seen, windows in zip(self._seen, (shortest_from, shortest_to), strict=True):
            for start, end in windows(sums, *self._limits):
                key = xxh3_128_digest(digests[start * _DIGEST : end * _DIGEST])
                first = seen.setdefault(key, begin + start)
                if first < begin + start:
                    for index in range(start, end):
                        origin[index] = min(first, origin.get(index, first))
        return origin


def shortest_from(sums: Sequence[int], longest: int, enough: int) -> Iterator[tuple[int, int]]:
    """(start, end) per start: the shortest window of at least `enough`, if of at most `longest` items.

    `sums` are running totals of the items' lengths, beginning with 0.
    """
    end = 0
    for start in range(len(sums) - 1):
        end = max(end, start + 1)
        while end < len(sums) - 1 and sums[end] - sums[start] < enough:
            end += 1
        if sums[end] - sums[start] >= enough and end - start <= longest:
            yield start, end


def shortest_to(sums: Sequence[int], longest: int, enough: int) -> Iterator[tuple[int, int]]:
    """(start, end) per end: the shortest window of at least `enough`, if of at most `longest` items."""
    start = 0
    for end in range(1, len(sums)):
        while start < end - 1 and sums[end] - sums[start + 1] >= enough:
            start += 1
        if sums[end] - sums[start] >= enough and end - start <= longest:
            yield start, end
