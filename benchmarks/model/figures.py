"""Group `model`: the model and its tokenizer against the release and against transformers."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figure import Figure
from benchmarks.model import loss_memory, released, speed, tokenizer


def figures() -> Iterator[Figure]:
    """Yield exact figures first, then memory, then times, which need a quiet machine."""
    yield from released.figures()
    yield from loss_memory.figures()
    yield from speed.decode_figures()
    yield from speed.train_figures()
    yield from tokenizer.figures()
