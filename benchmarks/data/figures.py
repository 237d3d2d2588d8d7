"""Group `data`: quality of cleaning, UL2 samples, token shards, speed of cleaning and quality rules."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.data import cleaning, cleaning_quality, modern, near, quality, scale, tokens, ul2
from benchmarks.figure import Figure


def figures() -> Iterator[Figure]:
    """Yield the figures of every module; those that need much disk and a quiet machine come last."""
    for module in (cleaning_quality, ul2, tokens, cleaning, near, quality, modern, scale):
        yield from module.figures()
