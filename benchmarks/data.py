"""Group `data`: samples and token shards. Cleaning's figures are not built yet (docs/data.md)."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import tokens, ul2
from benchmarks.figure import Figure


def figures() -> Iterator[Figure]:
    """UL2 samples against a plain collator, then text to token shards and the mixture's memory."""
    yield from ul2.figures()
    yield from tokens.figures()
