"""A document's text at each filter that took something out of it, with the removal marked.

The record of removals holds places and no text, and the places of a filter are those of the text that came
to it. So the filters run once more on this one document; what filters that look at other documents took
out is taken from the record. Private values are masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from openba.data.clean import characters, columns, privacy
from openba.data.clean.edits import Edit, apply
from openba.data.clean.stages import as_edits, is_private, names, on_characters, on_documents
from openba.recipes.data import CleanRecipe

OPEN, CLOSE = "⟦", "⟧"
"""Around what was removed."""
_AROUND, _LONGEST = 40, 160
"""Characters shown on either side of a removal, and of a removal before its middle is left out."""
_HIDDEN = "(not shown: a private value in it cannot be masked)"


def replay(text: str, recipe: CleanRecipe, removals: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return, for each of a document's removals, pieces of its text with what was removed in brackets.

    Args:
        text: as it came from its source.
        recipe: the filters of its source.
        removals: rows of removed.parquet, in the order of the filters.

    Returns:
        A list per row: one marked piece, or none if the text does not reach the place.
    """
    alone = {stage.name: stage.find for stage in (*on_characters(recipe), *on_documents(recipe))}
    shown: dict[int, list[str]] = {}
    for name in names(recipe):
        rows = [number for number, row in enumerate(removals) if row["stage"] == name]
        recorded = [Edit(removals[n]["start"], removals[n]["end"], removals[n]["rule"]) for n in rows]
        for number, edit in zip(rows, recorded, strict=True):
            shown[number] = [_marked(text, edit)] if edit.end <= len(text) else []
        if name in alone:
            texts, _ = columns.decode(pa.array([text], pa.large_string()))
            text = apply(text, as_edits(texts, alone[name](texts)))
        else:
            text = apply(text, recorded)
    return [shown.get(number, []) for number in range(len(removals))]


def _marked(text: str, edit: Edit) -> str:
    """The text around a removal, which stands in brackets; private values are replaced by their rule."""
    texts, _ = columns.decode(pa.array([text], pa.large_string()))
    private = as_edits(texts, privacy.find(texts))
    start, end = max(0, edit.start - _AROUND), min(len(text), edit.end + _AROUND)
    parts = [
        _masked(text, start, edit.start, private),
        OPEN,
        _shortened(_masked(text, edit.start, edit.end, private)),
        CLOSE,
        _masked(text, edit.end, end, private),
    ]
    line = " ".join("".join(parts).split())
    return _HIDDEN if _holds_private(line.replace(OPEN, "").replace(CLOSE, "")) else line


def _holds_private(text: str) -> bool:
    """Whether a value can be read off the text, also one with repeated separators, 138----1234----5678."""
    texts, _ = columns.decode(pa.array([text], pa.large_string()))
    joined = columns.apply(texts, characters.find_repeats(texts, instances=1, signs=1))
    return is_private(text) or is_private(joined.text(0))


def _masked(text: str, start: int, end: int, private: list[Edit]) -> str:
    """Characters start to end, with `[rule]` for every private value that reaches into them."""
    pieces: list[str] = []
    place = start
    for edit in private:
        if edit.end <= start or edit.start >= end:
            continue
        pieces += text[place : max(place, edit.start)], f"[{edit.rule}]"
        place = min(end, edit.end)
    return "".join([*pieces, text[place:end]])


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
