"""A record's fields as a task's templates see them: nested lists, options, turns, entities, wordings.

Owns how a source's record becomes named values, and the message when it cannot. It renders no
template and decides nothing about what is kept (openba.data.tasks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import orjson

from openba.data.conversations import find_messages, without_moss_markers
from openba.data.entities import (
    Questions,
    entities_of_spans,
    entities_of_tags,
    format_entities,
    read_questions,
)
from openba.errors import UserError
from openba.recipes.data import Options, Tagged, TaskRecipe

Fields = dict[str, Any]


class Text(str):
    """A field's text: `{text:.240}` is its start, `{text.after_first_line}` lacks its first line.

    Of an id, `{id.file}` is the file's name and `{id.parent}` the record that holds the element.
    """

    @property
    def file(self) -> str:
        """Of a record's id, its file's name without folders and ending."""
        return self.rpartition(":")[0].rpartition("/")[2].partition(".")[0]

    @property
    def parent(self) -> str:
        """Of the id of one element of a list, the id of what holds the list."""
        return self.rpartition("/")[0]

    @property
    def after_first_line(self) -> Text:
        """Everything after the first line, on one line."""
        return Text(" ".join(self.strip().partition("\n")[2].split()))

    @property
    def after_dashes(self) -> Text:
        """Everything after the first line of dashes, such as the one below BIG-Bench Hard's canary."""
        return Text(self.partition("\n-----\n")[2].strip())


class Items(list[Any]):
    """A field's list: `{field}` is its elements in a row, `{field[0]}` one of them."""

    comma = ", "

    def __str__(self) -> str:
        return self.comma.join(map(str, self))

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    @property
    def lines(self) -> str:
        """One element a line."""
        return "\n".join(map(str, self))

    @property
    def lettered(self) -> str:
        """One option a line: `A. first`."""
        return "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, self, strict=False))


class ChineseItems(Items):
    """The same with the comma of Chinese lists."""

    comma = "、"


class Entities:
    """The field `entities`: `{entities}` is the paper's notation, `{entities[person]}` those of one type."""

    def __init__(self, pairs: Sequence[Sequence[str]], language: str) -> None:
        self.pairs = [(text, kind) for text, kind in pairs]
        self.comma = "、" if language == "zh" else ", "

    def __str__(self) -> str:
        return format_entities(self.pairs)

    def __getitem__(self, kind: str) -> str:
        """Texts of one type, each once, in order; empty if there is none."""
        return self.comma.join(dict.fromkeys(text for text, label in self.pairs if label == kind))


def parse(row: Mapping[str, Any], recipe: TaskRecipe) -> Fields:
    """A document's row as one record: the keys of `extra`, its columns, its text under its own name too."""
    # A source takes its text field out of `extra`; templates may call it by either name.
    own = getattr(recipe.source, "text_field", "text")
    columns = {key: row[key] for key in ("id", "language", "source")}
    named = {own: row["text"], "text": row["text"]} if own else {}
    own_fields = without_moss_markers(orjson.loads(row["extra"]))
    return {"text": row["text"], **own_fields, **columns, **named}


def expand(record: Fields, recipe: TaskRecipe, where: str) -> Iterator[Fields]:
    """The record itself, or one for each element below `recipe.each`; ids get `/position`.

    Raises:
        UserError: the path leads to no list and no object.
    """
    found = [record]
    for key in recipe.each:
        deeper = []
        for outer in found:
            elements = need(outer, key, where)
            if isinstance(elements, dict):
                elements = [elements]
            if not isinstance(elements, list):
                raise UserError(f"{where}: record {outer['id']}: {key} is no list, so no `each`")
            for position, element in enumerate(elements):
                inner = element if isinstance(element, dict) else {key: element}
                deeper.append({**outer, **inner, "id": f"{outer['id']}/{position}"})
        found = deeper
    yield from found


def derive(record: Fields, recipe: TaskRecipe, labels: str, where: str) -> Fields | None:
    """All fields that templates may name; None if a wording says that the record has no label.

    Args:
        record: one of `expand`'s.
        recipe: the task.
        labels: all entity types of the task, for `{labels}`.
        where: task and source, for messages.

    Raises:
        UserError: a field is missing or of another form than the recipe says.
    """
    fields = dict(record)
    if recipe.tagged is not None:
        fields["text"] = _sentence(record, recipe.tagged, where)
    if recipe.tagged is not None or "entities" in fields:
        pairs = _entities(record, recipe, where)
        own_labels = ", ".join(sorted(kinds_of(record, recipe, where)))
        fields["labels"] = labels if recipe.labels == "task" else own_labels
        fields["entities"] = Entities(pairs, recipe.source.language)
    for key, separator in recipe.split.items():
        fields[key] = [part for part in str(need(record, key, where)).split(separator) if part]
    if recipe.dialogue is not None:
        fields["messages"] = _alternating(record, recipe, where)
    elif _needs_messages(recipe) and (messages := _messages(record, where)) is not None:
        fields["messages"] = messages
    for message in fields.get("messages", []) if recipe.replace else []:
        for text, other in recipe.replace.items():
            message["content"] = message["content"].replace(text, other)
    for key, joined in recipe.joined.items():
        values = need(record, joined.field, where)
        try:
            fields[key] = joined.separator.join(joined.item.format_map(value) for value in values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{where}: record {record['id']}: joined.{key}: {_named(error)}") from None
    for key in recipe.wording.keys() - {"entities"} if recipe.tagged else recipe.wording.keys():
        value = need(fields, key, where)
        fields[key] = word = _worded(key, value, recipe, record, where)
        if word is None:
            return None
    if recipe.options is not None:
        fields |= _options(fields, recipe.options, where)
    for key, template in recipe.beside.items():
        fields[key] = _beside(template.format_map({**fields, "id": Text(record["id"])}), record, where)
    items = ChineseItems if recipe.source.language == "zh" else Items
    return {key: _wrap(value, items) for key, value in fields.items()}


def need(record: Mapping[str, Any], key: str, where: str) -> Any:
    """The value of a key.

    Raises:
        UserError: the record lacks it.
    """
    if key not in record:
        raise UserError(
            f"{where}: record {record['id']} has no field {key!r}; it has {', '.join(sorted(record))}"
        )
    return record[key]


def kinds_of(record: Mapping[str, Any], recipe: TaskRecipe, where: str) -> set[str]:
    """The record's entity types, as templates write them; those it asks for, where it asks."""
    if _asks(record, recipe.tagged):
        words = recipe.wording.get("entities", {})
        asked = [words.get(kind, kind) for kind in _asked(record, recipe.tagged, where).kinds]
        return {kind for kind in asked if kind is not None}
    return {kind for _, kind in _entities(record, recipe, where)}


def _asks(record: Mapping[str, Any], tagged: Tagged | None) -> bool:
    return tagged is not None and tagged.questions is not None and tagged.questions in record


def _asked(record: Mapping[str, Any], tagged: Tagged | None, where: str) -> Questions:
    assert tagged is not None
    assert tagged.questions is not None
    try:
        return read_questions([turn["value"] for turn in record[tagged.questions]])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: record {record['id']}: {tagged.questions}: {error}") from None


def _sentence(record: Mapping[str, Any], tagged: Tagged, where: str) -> str:
    if _asks(record, tagged):
        return _asked(record, tagged, where).text
    return " ".join(map(str, need(record, tagged.tokens, where)))


def _entities(record: Mapping[str, Any], recipe: TaskRecipe, where: str) -> Sequence[Sequence[str]]:
    """The record's entities as [text, type] pairs, types worded; none if it has no such field."""
    words = recipe.wording.get("entities", {})
    pairs = _raw_entities(record, recipe, where)
    worded = [(text, words.get(kind, kind)) for text, kind in pairs]
    return [(text, kind) for text, kind in worded if kind is not None]


def _raw_entities(record: Mapping[str, Any], recipe: TaskRecipe, where: str) -> Sequence[Sequence[str]]:
    if _asks(record, recipe.tagged):
        return _asked(record, recipe.tagged, where).entities
    if (tagged := recipe.tagged) is not None:
        tokens = [str(token) for token in need(record, tagged.tokens, where)]
        try:
            if tagged.tags is not None:
                return entities_of_tags(tokens, need(record, tagged.tags, where))
            return entities_of_spans(tokens, need(record, str(tagged.spans), where))
        except ValueError as error:
            raise UserError(f"{where}: record {record['id']}: {error}") from None
    pairs = record.get("entities") or []
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(s, str) for s in p) for p in pairs):
        raise UserError(
            f"{where}: record {record['id']}: entities must be a list of [text, type]; got {pairs!r:.80}"
        )
    return pairs


def _needs_messages(recipe: TaskRecipe) -> bool:
    return recipe.conversation or any("{messages" in turn.input + turn.target for turn in recipe.templates)


def _messages(record: Fields, where: str) -> list[dict[str, str]] | None:
    """The record's conversation in one of the published forms; None if it has none."""
    try:
        return find_messages(record)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"{where}: record {record['id']}: write turns as messages [{{role, content}}] "
            "or conversations [{from, value}]"
        ) from None


def _alternating(record: Fields, recipe: TaskRecipe, where: str) -> list[dict[str, str]]:
    assert recipe.dialogue is not None
    field, key, speakers = recipe.dialogue.field, recipe.dialogue.text, recipe.dialogue.speakers
    turns = need(record, field, where)
    try:
        if speakers is not None:
            turns, key = [turn[speaker] for turn in turns for speaker in speakers], None
        texts = [(turn if key is None else turn[key]).strip() for turn in turns]
    except (KeyError, TypeError, AttributeError):
        keys = [key] if speakers is None else speakers
        form = "strings" if key is None and speakers is None else f"objects with {', '.join(map(repr, keys))}"
        raise UserError(f"{where}: record {record['id']}: {field} is no list of {form}") from None
    roles = ("user", "assistant")
    return [{"role": roles[position % 2], "content": text} for position, text in enumerate(texts)]


def _worded(key: str, value: Any, recipe: TaskRecipe, record: Fields, where: str) -> str | None:
    name = value if isinstance(value, str) else orjson.dumps(value).decode()
    if name not in recipe.wording[key]:
        raise UserError(
            f"{where}: record {record['id']}: wording.{key} has no word for {value!r:.60}; add it, "
            "or null to discard such records"
        )
    return recipe.wording[key][name]


def _options(fields: Fields, options: Options, where: str) -> Fields:
    if len(options.of) == 1:
        texts = need(fields, options.of[0], where)
    else:
        texts = [need(fields, key, where) for key in options.of]
    answer = need(fields, options.answer, where)
    letters = list(ascii_uppercase[: len(texts)])
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        right = answer
    elif answer in letters:  # before the texts: an option may read "C" itself
        right = letters.index(answer)
    elif answer in texts:
        right = texts.index(answer)
    else:
        raise UserError(
            f"{where}: record {fields['id']}: {options.answer} {answer!r:.60} is none of its "
            f"{len(texts)} options by position, text or letter"
        )
    return {"options": list(texts), "letter": letters[right], "option": texts[right]}


@lru_cache(maxsize=256)  # one file serves many records
def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _beside(path: str, record: Fields, where: str) -> str:
    try:
        return _read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: record {record['id']}: {path}: {error.__class__.__name__}") from None


def _wrap(value: Any, items: type[Items]) -> Any:
    if value is None:
        return Text()
    if isinstance(value, list):
        return items(_wrap(element, items) for element in value)
    return Text(value) if isinstance(value, str) else value


def _named(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else str(error)
