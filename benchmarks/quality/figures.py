"""Group `quality`: meaning after cleaning, privacy, contamination, answers, expert filters, mixtures."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figure import Figure
from benchmarks.quality import answers, contamination, experts, parts, private_numbers, shipped, text

MODULES = (text, private_numbers, answers, experts, contamination, parts, shipped)
"""Modules with a function `figures`, in the order they run. To add a figure, add its module here."""


def figures() -> Iterator[Figure]:
    """Yield the figures of every module."""
    for module in MODULES:
        yield from module.figures()
