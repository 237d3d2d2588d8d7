"""Show a document's removals within its text, for each stage that removed something.

The record of removals has spans and no text, and the spans of a stage are positions in the text that it got.
So the filters run once more on this one document; what deduplication removed is taken from the record.
Private values are masked.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from openba.data.clean import edit_matrix, text_arrays
from openba.data.clean.edits import Edit, apply
from openba.data.clean.examples import holds_private_value
from openba.data.clean.filter import Filter
from openba.data.clean.privacy import Privacy
from openba.data.clean.private_numbers import PrivateNumbers
from openba.data.clean.removals import Removal
from openba.data.clean.repeats import Repeats
from openba.data.clean.stages import stage_names, stages_after_paragraph_dedup, stages_before_paragraph_dedup
from openba.recipes.clean import CleanRecipe

OPEN = "⟦"
"""Mark before a removed span."""
CLOSE = "⟧"
# Characters shown on either side of a removal.
_CONTEXT = 40
# Characters of a removal above which its middle is left out.
_LONGEST = 160
_HIDDEN = "(not shown: a private value in it cannot be masked)"


def replay(document_text: str, recipe: CleanRecipe, removals: Sequence[Removal]) -> list[list[str]]:
    """Return, for each of a document's removals, pieces of its text with the removed span in brackets.

    Args:
        document_text: as its source gave it.
        recipe: the filters of its source.
        removals: rows of removed.parquet, in the order of the stages.

    Returns:
        A list per row: one marked piece, or none if the text is shorter than the span's end.
    """
    stages = (*stages_before_paragraph_dedup(recipe), *stages_after_paragraph_dedup(recipe))
    filters = {stage.name: stage.filter for stage in stages}
    marked_pieces: dict[int, list[str]] = {}
    for name in stage_names(recipe):
        numbers = [number for number, row in enumerate(removals) if row["stage"] == name]
        recorded = [
            Edit(removals[number]["start"], removals[number]["end"], removals[number]["rule"])
            for number in numbers
        ]
        for number, edit in zip(numbers, recorded, strict=True):
            marked_pieces[number] = [_mark(document_text, edit)] if edit.end <= len(document_text) else []
        document_text = apply(
            document_text, _find_in_text(filters[name], document_text) if name in filters else recorded
        )
    return [marked_pieces.get(number, []) for number in range(len(removals))]


def _find_in_text(chosen: Filter, text: str) -> list[Edit]:
    """Return the edits of a filter in one text."""
    texts, _ = text_arrays.decode(pa.array([text], pa.large_string()))
    return edit_matrix.as_edits(texts, chosen.find(texts), chosen.rules)


def _mark(document_text: str, edit: Edit) -> str:
    """Return the text around a removal, which stands in brackets; private values are masked."""
    private_edits = _private_edits(document_text)
    start = max(0, edit.start - _CONTEXT)
    end = min(len(document_text), edit.end + _CONTEXT)
    parts = [
        _mask(document_text, start, edit.start, private_edits),
        OPEN,
        _shorten(_mask(document_text, edit.start, edit.end, private_edits)),
        CLOSE,
        _mask(document_text, edit.end, end, private_edits),
    ]
    # One line for the console. If masking left a value readable, nothing is shown.
    line = " ".join("".join(parts).split())
    return _HIDDEN if _holds_private_value(line.replace(OPEN, "").replace(CLOSE, "")) else line


def _private_edits(text: str) -> list[Edit]:
    """Return the private values of all kinds, whatever the recipe removes, in order and without overlap."""
    private_edits: list[Edit] = []
    for edit in sorted([*_find_in_text(Privacy(), text), *PrivateNumbers().find_in_text(text)]):
        if not private_edits or edit.start >= private_edits[-1].end:
            private_edits.append(edit)
    return private_edits


def _holds_private_value(shown_text: str) -> bool:
    """Return whether a value can be read, also one with repeated separators: 138----1234----5678."""
    without_repeats = apply(shown_text, _find_in_text(Repeats(instances=1, signs=1), shown_text))
    return holds_private_value(shown_text) or holds_private_value(without_repeats)


def _mask(document_text: str, start: int, end: int, private_edits: list[Edit]) -> str:
    """Return characters start to end, with `[rule]` for every private value that overlaps them."""
    marked_pieces: list[str] = []
    position = start
    for edit in private_edits:
        if edit.end <= start or edit.start >= end:
            continue
        marked_pieces += document_text[position : max(position, edit.start)], f"[{edit.rule}]"
        position = min(end, edit.end)
    return "".join([*marked_pieces, document_text[position:end]])


def _shorten(removed_text: str) -> str:
    if len(removed_text) <= _LONGEST:
        return removed_text
    return f"{removed_text[: _LONGEST // 2]} … {removed_text[-_LONGEST // 2 :]}"
