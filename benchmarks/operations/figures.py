"""Group `operations`: accounting against paper and torch, nodes that fail, serving, flows on real servers."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figure import Figure
from benchmarks.operations import accounting, chain, cluster, serving


def figures() -> Iterator[Figure]:
    """Yield exact figures first, then times."""
    yield from accounting.figures()
    yield from cluster.figures()
    yield from serving.figures()
    yield from chain.figures()
