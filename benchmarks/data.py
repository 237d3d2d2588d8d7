"""Group `data`: samples, token shards, cleaning and deduplication."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import cleaning, scale, tokens, ul2
from benchmarks.figure import Figure


def figures() -> Iterator[Figure]:
    """Samples, token shards, cleaning and its peers; last what needs much disk and a quiet machine."""
    for part in (ul2, tokens, cleaning, scale):
        yield from part.figures()
