"""Group `weights`: adapters against full fine-tuning, the way of released weights, other engines.

The learning rows start from the `tiny` pipeline's Stage III, which has to be in the store of OPENBA_HOME:
`openba run tiny --until tool` builds it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure
from benchmarks.weights import engines, learning, memory, released, serving
from tests.harness import worker_groups


def figures() -> Iterator[Figure]:
    """Yield all figures of the group."""
    worker_groups.start_server("benchmarks.weights.memory")
    with tempfile.TemporaryDirectory(prefix="openba-weights-") as scratch_folder:
        root = Path(scratch_folder)
        yield from released.figures(root / "released")
        yield from learning.figures(root / "learning")
        yield from memory.figures(root / "memory")
        yield from engines.figures(root / "engines")
        yield from serving.figures(root / "serving")
