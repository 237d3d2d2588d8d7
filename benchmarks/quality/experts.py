"""Part of group `quality`: the filters of the Chat expert's data, measured on labelled turns and talks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.figure import ROOT, Figure
from openba.config import CONFIGS, load
from openba.data.identity import states_identity
from openba.data.simple_talk import content_words
from openba.recipes.data import TaskRecipe

LABELLED = ROOT / "tests" / "data" / "labelled"
TARGET = 95.0
"""Percent."""


def labelled(name: str) -> list[dict[str, Any]]:
    """Return the rows of a labelled set."""
    text = (LABELLED / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def precision_and_recall(verdicts: list[tuple[bool, bool]]) -> tuple[float, float]:
    """Return both in percent of (label, verdict) pairs."""
    hits = sum(label and verdict for label, verdict in verdicts)
    return (
        100 * hits / sum(verdict for _, verdict in verdicts),
        100 * hits / sum(label for label, _ in verdicts),
    )


def is_simple(row: dict[str, Any]) -> bool:
    """Whether the shipped limit drops a labelled talk."""
    limit = load(CONFIGS / "task" / "expert" / "chat-sharegpt.yaml", TaskRecipe).min_words
    return content_words(row["turns"]) < limit


FILTERS: tuple[tuple[str, str, str, Callable[[dict[str, Any]], bool]], ...] = (
    ("identity filter", "identity_turns", "identity", lambda row: states_identity(row["text"])),
    ("too-simple filter", "simple_talks", "simple", is_simple),
)
"""Name, labelled set, field of the label, the filter's verdict."""


def figures() -> Iterator[Figure]:
    """Yield precision and recall of each filter, Chinese and English apart."""
    for name, file, label, verdict in FILTERS:
        for language in ("zh", "en"):
            rows = [row for row in labelled(file) if row["language"] == language]
            precision, recall = precision_and_recall([(row[label], verdict(row)) for row in rows])
            for measure, value in (("precision", precision), ("recall", recall)):
                yield Figure(
                    f"{name}, {language}, {len(rows)} labelled: {measure}", value, "%", TARGET, "higher"
                )
