"""Named entities as text: the paper's `[Entity](Type), [Entity](Type)` (section 6.5), written and read back.

Owns that one notation, for the targets of a task and for the answers of a model alike. It knows
nothing of sentences or of scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

Entity = tuple[str, str]
"""Text and type."""

_QUESTION = re.compile(r"What describes (.+) in the text\?")
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
    return list(_read(text.strip()))


def complete_entities(text: str) -> list[Entity]:
    """The entities that a text begins with, up to where it stops to be in the notation.

    Of an answer that was cut off, or that ends in a comma, those are the ones written to their end.
    """
    entities: list[Entity] = []
    with suppress(ValueError):
        for entity in _read(text.strip()):
            entities.append(entity)
    return entities


def entities_of_tags(tokens: Sequence[str], tags: Sequence[str]) -> list[Entity]:
    """Entities of a sentence with one tag a token; see `spans_of_tags`."""
    return entities_of_spans(tokens, spans_of_tags(tokens, tags))


def spans_of_tags(tokens: Sequence[str], tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """First token, last token and type: `B-x` begins an entity, `I-x` goes on or begins, `O` is none.

    Raises:
        ValueError: there are more tags than tokens or the reverse, or a tag is of another form.
    """
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tags)} tags for {len(tokens)} tokens")
    spans: list[tuple[int, int, str]] = []
    for at, tag in enumerate(tags):
        place, _, kind = tag.partition("-")
        if tag == "O":
            continue
        if place not in ("B", "I") or not kind:
            raise ValueError(f"tag {tag!r} is none of O, B-type and I-type")
        goes_on = place == "I" and spans and spans[-1][1:] == (at - 1, kind)
        spans = [*spans[:-1], (spans[-1][0], at, kind)] if goes_on else [*spans, (at, at, kind)]
    return spans


def entities_of_spans(tokens: Sequence[str], spans: Iterable[Sequence[Any]]) -> list[Entity]:
    """Entities of a sentence given as (first token, last token, type).

    Raises:
        ValueError: a span is not in the sentence.
    """
    found = []
    for first, last, kind in spans:
        if not 0 <= first <= last < len(tokens):
            raise ValueError(f"span {first} to {last} is not in {len(tokens)} tokens")
        found.append((" ".join(tokens[first : last + 1]), str(kind)))
    return found


def _read(text: str) -> Iterator[Entity]:
    position = 0
    while position < len(text):
        if position:
            separator = _SEPARATOR.match(text, position)
            if separator is None:
                raise ValueError(f"character {position}: expected ', ' before the next entity")
            position = separator.end()
        surface, position = _group(text, position, "[]")
        kind, position = _group(text, position, "()")
        yield surface, kind


@dataclass(frozen=True)
class Questions:
    """A conversation that asks for the entities of a text, one type after another."""

    text: str
    kinds: tuple[str, ...]
    """All types that are asked for."""
    entities: tuple[Entity, ...]
    """In the order of the text."""


def read_questions(turns: Sequence[str]) -> Questions:
    """Read the form of UniversalNER and Pile-NER-type (paper reference 99).

    Args:
        turns: `Text: …`, `I've read this text.`, then `What describes TYPE in the text?` and a JSON list, and
            so on.

    Raises:
        ValueError: the turns are of another form.
    """
    if len(turns) < 2 or not turns[0].startswith("Text:"):
        raise ValueError("a conversation that begins with 'Text:' is expected")
    text = turns[0].removeprefix("Text:").strip()
    kinds: list[str] = []
    entities: list[Entity] = []
    for question, answer in zip(turns[2::2], turns[3::2], strict=True):
        asked = _QUESTION.fullmatch(question.strip())
        if asked is None:
            raise ValueError(f"question {question!r:.60} is not 'What describes TYPE in the text?'")
        surfaces = orjson.loads(answer)
        if not isinstance(surfaces, list) or not all(isinstance(surface, str) for surface in surfaces):
            raise ValueError(f"answer {answer!r:.60} is no JSON list of texts")
        kinds.append(asked[1])
        entities += [(surface, asked[1]) for surface in surfaces]
    entities.sort(key=lambda entity: text.find(entity[0]) % (len(text) + 1))  # what is not in it comes last
    return Questions(text, tuple(kinds), tuple(entities))


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
