"""Group `data`: quality of cleaning, samples, token shards, speed of cleaning and deduplication."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.data import cleaning, cleaning_quality, scale, tokens, ul2
from benchmarks.figure import Figure


def figures() -> Iterator[Figure]:
    """What cleaning keeps, samples, token shards, cleaning and peers; last what needs much disk and quiet."""
    for part in (cleaning_quality, ul2, tokens, cleaning, scale):
        yield from part.figures()
