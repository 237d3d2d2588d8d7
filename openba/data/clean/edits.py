"""Edits: spans of a text, what stands there afterwards and the rule that says so.

Owns how a filter says what it does, so that every filter is lineage, counter and example at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Edit(NamedTuple):
    """One span of a text, in characters."""

    start: int
    end: int
    rule: str
    """Why it goes; empty for a rewriting that loses nothing, such as a decoded entity: not recorded."""
    replacement: str = ""
    survivor: str = ""
    """`source/id` of the document whose copy stays, for duplicates."""


def apply(text: str, edits: Sequence[Edit]) -> str:
    """The text after edits that are in order and do not overlap, without white space around it."""
    parts: list[str] = []
    at = 0
    for edit in edits:
        parts += text[at : edit.start], edit.replacement
        at = edit.end
    return "".join([*parts, text[at:]]).strip()


def whole(text: str, rule: str, survivor: str = "") -> list[Edit]:
    """The edit that removes a document."""
    return [Edit(0, len(text), rule, "", survivor)]
