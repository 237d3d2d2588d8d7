"""Edits of one text: spans to remove, the rule that applies and the replacement.

Every filter describes its work as edits, so removals can be counted, recorded and shown alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Edit(NamedTuple):
    """One span of a text, in characters."""

    start: int
    end: int
    rule: str
    """Reason for the removal; empty for a rewriting that loses nothing, such as a decoded entity. Rewritings
    are not recorded."""
    replacement: str = ""


def apply(text: str, edits: Sequence[Edit]) -> str:
    """Return the text after edits in order and without overlap, without white space around it."""
    parts: list[str] = []
    position = 0
    for edit in edits:
        parts += text[position : edit.start], edit.replacement
        position = edit.end
    return "".join([*parts, text[position:]]).strip()
