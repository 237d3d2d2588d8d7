"""Named entities as text: the paper's `[Entity](Type), [Entity](Type)` (section 6.5), written and read back.

Owns that one notation, for the targets of a task and for the answers of a model alike. It knows
nothing of sentences or of scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Entity = tuple[str, str]
"""Text and type."""

_SEPARATOR = re.compile(r",\s*")


def format_entities(entities: Iterable[Entity]) -> str:
    """`[("Acme (UK)", "firm")]` -> `[Acme (UK)](firm)`; no entity gives an empty string.

    Brackets that are balanced stand as they are, others get a backslash, so that
    `parse_entities` returns exactly what was given.
    """
    return ", ".join(f"[{_guard(text, '[]')}]({_guard(kind, '()')})" for text, kind in entities)


def parse_entities(text: str) -> list[Entity]:
    """Read the notation back, strictly: nothing may stand before, between or after the entities.

    Raises:
        ValueError: the text is not in the notation; the message says where it stops to be.
    """
    text = text.strip()
    found: list[Entity] = []
    at = 0
    while at < len(text):
        if found:
            separator = _SEPARATOR.match(text, at)
            if separator is None:
                raise ValueError(f"character {at}: expected ', ' before the next entity")
            at = separator.end()
        surface, at = _group(text, at, "[]")
        kind, at = _group(text, at, "()")
        found.append((surface, kind))
    return found


def _guard(text: str, brackets: str) -> str:
    text = text.replace("\\", "\\\\")
    if _balanced(text, brackets):
        return text
    return re.sub(f"([{re.escape(brackets)}])", r"\\\1", text)


def _balanced(text: str, brackets: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == brackets[0]) - (character == brackets[1])
        if depth < 0:
            return False
    return depth == 0


def _group(text: str, at: int, brackets: str) -> tuple[str, int]:
    """The text in the brackets that open at `at`, and the position behind them."""
    if text[at : at + 1] != brackets[0]:
        raise ValueError(f"character {at}: expected {brackets[0]!r}")
    inside: list[str] = []
    depth = 1
    at += 1
    while at < len(text):
        character = text[at]
        if character == "\\" and at + 1 < len(text):
            at += 1
            character = text[at]
        else:
            depth += (character == brackets[0]) - (character == brackets[1])
            if depth == 0:
                return "".join(inside), at + 1
        inside.append(character)
        at += 1
    raise ValueError(f"character {at}: {brackets[1]!r} is missing")
