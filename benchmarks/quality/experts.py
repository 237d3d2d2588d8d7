"""Part of group `quality`: the filters of the Chat expert's data, measured on labelled turns and talks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.figure import ROOT, Figure
from openba.config import CONFIGS, load
from openba.data.identity import states_identity
from openba.data.simple_talk import content_words
from openba.recipes.data import TaskRecipe

DATA = ROOT.parent / "shared" / "data"
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


def _is_identity(row: dict[str, Any]) -> bool:
    return states_identity(row["text"])


FILTERS: tuple[tuple[str, str, str, Callable[[dict[str, Any]], bool]], ...] = (
    ("identity filter", "identity_turns", "identity", _is_identity),
    ("identity filter, held-out turns", "identity_heldout", "identity", _is_identity),
    ("too-simple filter", "simple_talks", "simple", is_simple),
    ("too-simple filter, held-out talks", "simple_heldout", "simple", is_simple),
)
"""Name, labelled set, field of the label, the filter's verdict. What is blind about the held-out sets
stands in docs/log/experts.md."""

PUBLIC = {
    "tool_glaive": ("conversations", "value"),
    "instruct_belle_zh": (None, "std_answer"),
    "instruct_alpaca_zh": (None, "output"),
    "instruct_alpaca_en": (None, "output"),
    "chat_dialogstudio_en": ("turns", "system"),
    "chat_kdconv_zh": ("messages", "message"),
}
"""Folder of `../shared/data` that no rule was written from -> list of turns, if any, and key of an answer."""


def public_verdicts() -> list[tuple[bool, bool]]:
    """Return (label, verdict) of every public answer; the JSON file lists those labelled true."""
    positions = json.loads((LABELLED / "identity_public_heldout.json").read_text(encoding="utf-8"))
    verdicts = []
    for name, true in positions.items():
        turns, key = PUBLIC[name.partition("/")[0]]
        for row, line in enumerate((DATA / name).read_text(encoding="utf-8").splitlines()):
            record = json.loads(line)
            for turn, said in enumerate(record[turns] if turns else [record]):
                if said.get("from", "gpt") == "gpt" and (turns != "messages" or turn % 2):
                    verdicts.append(([row, turn] in true, states_identity(said[key])))
    return verdicts


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
    if not DATA.exists():
        print("benchmarks: quality: no ../shared/data; public answers are left out", file=sys.stderr)
        return
    verdicts = public_verdicts()
    name = (
        f"identity filter, {len(verdicts)} public answers, {sum(label for label, _ in verdicts)} of identity"
    )
    for measure, value in zip(("precision", "recall"), precision_and_recall(verdicts), strict=True):
        yield Figure(f"{name}: {measure}", value, "%", TARGET, "higher")
