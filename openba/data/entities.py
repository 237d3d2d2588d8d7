"""Write and parse named entities in the paper's notation `[Entity](Type), [Entity](Type)` (section 6.5).

Used for the targets of labelled data and for the answers of a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import orjson

Entity = tuple[str, str]
"""Text and type."""

_QUESTION = re.compile(r"What describes (.+) in the text\?")
_SEPARATOR = re.compile(r",\s*")


def format_entities(entities: Iterable[Entity]) -> str:
    """Return the notation of entities, such as `[Acme (UK)](firm)`; without entities an empty string.

    Unbalanced brackets get a backslash, so that `parse_entities` returns exactly the given entities.
    """
    return ", ".join(
        f"[{_escape(answer_text, '[]')}]({_escape(entity_type, '()')})"
        for answer_text, entity_type in entities
    )


def parse_entities(text: str) -> list[Entity]:
    """Parse the notation; no other text may precede, separate or follow the entities.

    Raises:
        ValueError: the text is not in the notation; the message has the position of the first fault.
    """
    return list(_read(text.strip()))


def complete_entities(answer_text: str) -> list[Entity]:
    """Return the complete entities before the first fault in the notation.

    An answer that was cut off, or that ends in a comma, gives the entities that are complete.
    """
    entities: list[Entity] = []
    with suppress(ValueError):
        for entity in _read(answer_text.strip()):
            entities.append(entity)
    return entities


def entities_of_tags(tokens: Sequence[str], bio_tags: Sequence[str]) -> list[Entity]:
    """Return the entities of a sentence with one tag per token; see `spans_of_tags`."""
    return entities_of_spans(tokens, spans_of_tags(tokens, bio_tags))


def spans_of_tags(tokens: Sequence[str], bio_tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return (first token, last token, type) of the entities of a sentence.

    The tag `B-x` begins an entity, `I-x` continues or begins one, `O` is outside.

    Raises:
        ValueError: there are more tags than tokens or the reverse, or a tag is of another form.
    """
    if len(tokens) != len(bio_tags):
        raise ValueError(f"{len(bio_tags)} tags for {len(tokens)} tokens")
    spans: list[tuple[int, int, str]] = []
    for index, tag in enumerate(bio_tags):
        prefix, _, entity_type = tag.partition("-")
        if tag == "O":
            continue
        if prefix not in ("B", "I") or not entity_type:
            raise ValueError(f"tag {tag!r} is none of O, B-type and I-type")
        if prefix == "I" and spans and spans[-1][1:] == (index - 1, entity_type):
            spans[-1] = (spans[-1][0], index, entity_type)
        else:
            spans.append((index, index, entity_type))
    return spans


def entities_of_spans(tokens: Sequence[str], spans: Iterable[tuple[int, int, str]]) -> list[Entity]:
    """Return the entities of a sentence given as (first token, last token, type).

    Raises:
        ValueError: a span is not in the sentence.
    """
    entities = []
    for first, last, entity_type in spans:
        if not 0 <= first <= last < len(tokens):
            raise ValueError(f"span {first} to {last} is not in {len(tokens)} tokens")
        entities.append((" ".join(tokens[first : last + 1]), str(entity_type)))
    return entities


def _read(text: str) -> Iterator[Entity]:
    position = 0
    while position < len(text):
        if position:
            separator = _SEPARATOR.match(text, position)
            if separator is None:
                raise ValueError(f"character {position}: expected ', ' before the next entity")
            position = separator.end()
        surface, position = _group(text, position, "[]")
        entity_type, position = _group(text, position, "()")
        yield surface, entity_type


@dataclass(frozen=True)
class Questions:
    """Conversation that asks for the entities of a text, one type after another."""

    text: str
    kinds: tuple[str, ...]
    """All types that the questions name."""
    entities: tuple[Entity, ...]
    """In the order of the text."""


def read_questions(turns: Sequence[str]) -> Questions:
    """Parse a conversation of UniversalNER or Pile-NER-type (paper reference 99).

    Args:
        turns: `Text: …`, `I've read this text.`, then `What describes TYPE in the text?` and a JSON list,
            repeatedly.

    Raises:
        ValueError: the turns are of another form.
    """
    if len(turns) < 2 or not turns[0].startswith("Text:"):
        raise ValueError("a conversation that begins with 'Text:' is expected")
    text = turns[0].removeprefix("Text:").strip()
    entity_types: list[str] = []
    entities: list[Entity] = []
    for question, answer in zip(turns[2::2], turns[3::2], strict=True):
        match = _QUESTION.fullmatch(question.strip())
        if match is None:
            raise ValueError(f"question {question!r:.60} is not 'What describes TYPE in the text?'")
        surfaces = orjson.loads(answer)
        if not isinstance(surfaces, list) or not all(isinstance(surface, str) for surface in surfaces):
            raise ValueError(f"answer {answer!r:.60} is no JSON list of texts")
        entity_types.append(match[1])
        entities += [(surface, match[1]) for surface in surfaces]
    # `find` returns -1 for entities that are not in the text; modulo sorts these last.
    entities.sort(key=lambda entity: text.find(entity[0]) % (len(text) + 1))
    return Questions(text, tuple(entity_types), tuple(entities))


def _escape(text: str, brackets: str) -> str:
    # Backslashes first, or those added below would be doubled.
    text = text.replace("\\", "\\\\")
    if _is_balanced(text, brackets):
        return text
    return re.sub(f"([{re.escape(brackets)}])", r"\\\1", text)


def _is_balanced(text: str, bracket_pair: str) -> bool:
    bracket_depth = 0
    for character in text:
        bracket_depth += (character == bracket_pair[0]) - (character == bracket_pair[1])
        if bracket_depth < 0:
            return False
    return bracket_depth == 0


def _group(text: str, position: int, bracket_pair: str) -> tuple[str, int]:
    """Return the text in the brackets that open at `at`, and the position behind them."""
    if text[position : position + 1] != bracket_pair[0]:
        raise ValueError(f"character {position}: expected {bracket_pair[0]!r}")
    inside: list[str] = []
    bracket_depth = 1
    position += 1
    while position < len(text):
        character = text[position]
        if character == "\\" and position + 1 < len(text):
            position += 1
            character = text[position]
        else:
            bracket_depth += (character == bracket_pair[0]) - (character == bracket_pair[1])
            if bracket_depth == 0:
                return "".join(inside), position + 1
        inside.append(character)
        position += 1
    raise ValueError(f"character {position}: {bracket_pair[1]!r} is missing")
