"""Group `operations`: accounting against paper and torch, nodes that fail, serving, flows on real servers."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import accounting, chain, cluster, serving
from benchmarks.figure import Figure


def figures() -> Iterator[Figure]:
    """What is exact first, then times."""
    yield from accounting.figures()
    yield from cluster.figures()
    yield from serving.figures()
    yield from chain.figures()
