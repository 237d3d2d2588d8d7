"""Group `operations`: accounting against the paper and torch, nodes that fail, serving under load."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import accounting, cluster, serving
from benchmarks.figure import Figure


def figures() -> Iterator[Figure]:
    """What is exact first, then times."""
    yield from accounting.figures()
    yield from cluster.figures()
    yield from serving.figures()
