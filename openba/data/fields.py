"""A record's fields as a task's templates see them: nested lists, options, turns, entities, wordings.

Owns how a source's record becomes named values, and the message when it cannot. It renders no
template and decides nothing about what is kept (openba.data.tasks).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from openba.recipes.data import Marked, Options, Tagged, TaskRecipe

Fields = dict[str, Any]


class Text(str):
    """A field's text: `{text:.240}` is its start, `{text.after_first_line}` lacks its first line."""

    @property
    def after_first_line(self) -> Text:
        """Everything after the first line, on one line."""
        return Text(" ".join(self.strip().partition("\n")[2].split()))

    @property
    def after_dashes(self) -> Text:
        """Everything after the first line of dashes, such as the one below BIG-Bench Hard's canary."""
        return Text(self.partition("\n-----\n")[2].strip())


class RecordId(Text):
    """The field `id`: the record's own value if it has one, else the identity that its source gives it.

    `{id.file}` and `{id.parent}` always refer to that identity.
    """

    identity: str

    def __new__(cls, value: str, identity: str) -> RecordId:
        """Args: `value` is what `{id}` gives."""
        made = super().__new__(cls, value)
        made.identity = identity
        return made

    @property
    def file(self) -> str:
        """The name of the record's file, without folders and suffix."""
        return self.identity.rpartition(":")[0].rpartition("/")[2].partition(".")[0]

    @property
    def parent(self) -> str:
        """Of an element of a list: the identity of the record that holds the list."""
        return self.identity.rpartition("/")[0]


@dataclass(frozen=True)
class Record:
    """A record of a task: the unique identity that its source gives it, and its own fields."""

    identity: str
    fields: Fields

    def named(self) -> Fields:
        """The fields with `id`, which the record's own value answers if it has one."""
        return {**self.fields, "id": RecordId(str(self.fields.get("id", self.identity)), self.identity)}


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


def parse(row: Mapping[str, Any], recipe: TaskRecipe) -> Record:
    """Return a document's row as one record.

    The record's own fields win over the columns that every document has (`language`, `source`). The text
    and the id that the source took out of the record answer to their own names, and the text to `text` too
    unless the record has another field of that name.
    """
    own_names = {
        getattr(recipe.source, "id_field", None): row["id"],
        getattr(recipe.source, "text_field", "text"): row["text"],
    }
    taken_out = {name: value for name, value in own_names.items() if name is not None}
    text = {} if getattr(recipe.source, "text_field", "text") is None else {"text": row["text"]}
    columns = {"language": row["language"], "source": row["source"], **text}
    fields = {**columns, **without_moss_markers(orjson.loads(row["extra"])), **taken_out}
    return Record(row["id"], _replaced(fields, recipe.replace) if recipe.replace else fields)


def _replaced(value: Any, words: Mapping[str, str]) -> Any:
    """Put other words into every text of a record, however deep it lies."""
    if isinstance(value, str):
        for text, other in words.items():
            value = value.replace(text, other)
        return value
    if isinstance(value, dict):
        return {key: _replaced(inner, words) for key, inner in value.items()}
    return [_replaced(inner, words) for inner in value] if isinstance(value, list) else value


def expand(record: Record, recipe: TaskRecipe, where: str) -> Iterator[Record]:
    """Yield the record itself, or one for each element below `recipe.each`; identities get `/position`.

    Raises:
        UserError: the path leads to no list and no object.
    """
    records = [record]
    for key in recipe.each:
        deeper = []
        for outer in records:
            elements = need(outer, key, where)
            if isinstance(elements, dict):
                elements = [elements]
            if not isinstance(elements, list):
                raise UserError(f"{where}: record {outer.identity}: {key} is no list, so no `each`")
            for position, element in enumerate(elements):
                inner = element if isinstance(element, dict) else {key: element}
                deeper.append(Record(f"{outer.identity}/{position}", {**outer.fields, **inner}))
        records = deeper
    yield from records


def derive(record: Record, recipe: TaskRecipe, labels: str, where: str) -> Fields | None:
    """Return all fields that templates may name; None if a wording says that the record has no label.

    Args:
        record: one of `expand`'s.
        recipe: the task.
        labels: all entity types of the task, for `{labels}`.
        where: task and source, for messages.

    Raises:
        UserError: a field is missing or of another form than the recipe says, or a template names a field
            that the recipe makes and the record has with another value.
    """
    fields = record.named()
    made: Fields = {}
    if recipe.tagged is not None:
        made["text"] = _sentence(record, recipe.tagged, where)
    if recipe.tagged is not None or "entities" in fields:
        pairs = _entities(record, recipe, where)
        own_labels = ", ".join(sorted(kinds_of(record, recipe, where)))
        made["labels"] = labels if recipe.labels == "task" else own_labels
        made["entities"] = Entities(pairs, recipe.source.language)
    for key, separator in recipe.split.items():
        fields[key] = [part for part in str(need(record, key, where)).split(separator) if part]
    if recipe.dialogue is not None:
        made["messages"] = _alternating(record, recipe, where)
    elif _needs_messages(recipe) and (messages := _messages(record, where)) is not None:
        made["messages"] = messages
    for key, joined in recipe.joined.items():
        values = need(Record(record.identity, fields), joined.field, where)
        try:
            made[key] = joined.separator.join(joined.item.format_map(value) for value in values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{where}: record {record.identity}: joined.{key}: {_named(error)}") from None
    for key, marked in recipe.marked.items():
        made[key] = _with_marks(record, marked, where)
    refuse_clashes(record, recipe, made, where)
    fields |= made
    for key in recipe.wording.keys() - {"entities"} if recipe.tagged else recipe.wording.keys():
        value = need(Record(record.identity, fields), key, where)
        fields[key] = word = _worded(key, value, recipe, record, where)
        if word is None:
            return None
    made = {} if recipe.options is None else _options(Record(record.identity, fields), recipe.options, where)
    for key, template in recipe.beside.items():
        made[key] = _beside(template.format_map(fields), record, where)
    refuse_clashes(record, recipe, made, where)
    items = ChineseItems if recipe.source.language == "zh" else Items
    return {key: _wrap(value, items) for key, value in (fields | made).items()}


def refuse_clashes(record: Record, recipe: TaskRecipe, made: Fields, where: str) -> None:
    """Refuse a field that the recipe makes where the record has one of that name and other content.

    Only fields that a template names can do harm. What a field is made from may bear its name.

    Raises:
        UserError: there is such a field.
    """
    for name in made.keys() & record.fields.keys() & names_in(_templates(recipe)) - _inputs(recipe):
        own = record.fields[name]
        if own != made[name] and str(own) != str(made[name]):
            raise UserError(
                f"{where}: record {record.identity}: the record has a field {name!r}, and the task makes "
                "another of that name, which the templates use; rename the field in the file"
            )


def _inputs(recipe: TaskRecipe) -> set[str]:
    """Return the names of the record's fields that the recipe makes others from."""
    names = {joined.field for joined in recipe.joined.values()}
    if recipe.dialogue is not None:
        names.add(recipe.dialogue.field)
    elif recipe.tagged is None:
        names |= {"entities"}  # the field `entities` is made from the record's own
    if recipe.dialogue is None:
        names.add("messages")
    if recipe.options is not None:
        names |= {recipe.options.answer, *recipe.options.of}
    if recipe.tagged is not None:
        tagged = recipe.tagged
        names |= {tagged.tokens, str(tagged.tags), str(tagged.spans), str(tagged.questions)}
    return names


def _templates(recipe: TaskRecipe) -> tuple[str, ...]:
    turns = [text for turn in recipe.templates for text in (turn.input, turn.target, turn.example)]
    checks = recipe.check.model_dump().values() if recipe.check is not None else ()
    return tuple(filter(None, (*turns, recipe.category, *checks, *recipe.beside.values())))


@lru_cache(maxsize=64)
def names_in(templates: tuple[str, ...]) -> frozenset[str]:
    """Return the names of all fields in braces."""
    return frozenset(name for text in templates for name in re.findall(r"\{(\w+)", text))


def need(record: Record, key: str, where: str) -> Any:
    """Return the value of a key.

    Raises:
        UserError: the record lacks it.
    """
    if key not in record.fields:
        names = ", ".join(sorted(record.fields))
        raise UserError(f"{where}: record {record.identity} has no field {key!r}; it has {names}")
    return record.fields[key]


def kinds_of(record: Record, recipe: TaskRecipe, where: str) -> set[str]:
    """Return the record's entity types, as templates write them; those it asks for, where it asks."""
    if _asks(record, recipe.tagged):
        words = recipe.wording.get("entities", {})
        asked = [words.get(kind, kind) for kind in _asked(record, recipe.tagged, where).kinds]
        return {kind for kind in asked if kind is not None}
    return {kind for _, kind in _entities(record, recipe, where)}


def _asks(record: Record, tagged: Tagged | None) -> bool:
    return tagged is not None and tagged.questions is not None and tagged.questions in record.fields


def _asked(record: Record, tagged: Tagged | None, where: str) -> Questions:
    assert tagged is not None
    assert tagged.questions is not None
    try:
        return read_questions([turn["value"] for turn in record.fields[tagged.questions]])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: record {record.identity}: {tagged.questions}: {error}") from None


def _sentence(record: Record, tagged: Tagged, where: str) -> str:
    if _asks(record, tagged):
        return _asked(record, tagged, where).text
    return " ".join(map(str, need(record, tagged.tokens, where)))


def _entities(record: Record, recipe: TaskRecipe, where: str) -> Sequence[Sequence[str]]:
    """Return the record's entities as [text, type] pairs, types worded; none if it has no such field."""
    words = recipe.wording.get("entities", {})
    pairs = _raw_entities(record, recipe, where)
    worded = [(text, words.get(kind, kind)) for text, kind in pairs]
    return [(text, kind) for text, kind in worded if kind is not None]


def _raw_entities(record: Record, recipe: TaskRecipe, where: str) -> Sequence[Sequence[str]]:
    if _asks(record, recipe.tagged):
        return _asked(record, recipe.tagged, where).entities
    if (tagged := recipe.tagged) is not None:
        tokens = [str(token) for token in need(record, tagged.tokens, where)]
        try:
            if tagged.tags is not None:
                return entities_of_tags(tokens, need(record, tagged.tags, where))
            return entities_of_spans(tokens, need(record, str(tagged.spans), where))
        except ValueError as error:
            raise UserError(f"{where}: record {record.identity}: {error}") from None
    pairs = record.fields.get("entities") or []
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(s, str) for s in p) for p in pairs):
        raise UserError(
            f"{where}: record {record.identity}: entities must be a list of [text, type]; got {pairs!r:.80}"
        )
    return pairs


def _with_marks(record: Record, marked: Marked, where: str) -> str:
    """Return the text with asterisks around the words at, or nearest to, the position."""
    text = str(need(record, marked.text, where))
    try:
        words = marked.words.format_map(record.fields)
        position = int(marked.position.format_map(record.fields))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: record {record.identity}: marked: {_named(error)}") from None
    if marked.unit == "word":
        begins = [match.start() for match in re.finditer(r"\S+", text)]
        position = begins[position] if 0 <= position < len(begins) else len(text)
    is_word = r"\w" if marked.unit == "word" else "(?!)"
    pattern = rf"(?<!{is_word}){re.escape(words)}(?!{is_word})"
    places = [match.start() for match in re.finditer(pattern, text, re.IGNORECASE)] if words else []
    if not places:
        raise UserError(f"{where}: record {record.identity}: {marked.text} does not hold {words!r:.60}")
    begin = min(places, key=lambda place: abs(place - position))
    end = begin + len(words)
    return f"{text[:begin]}*{text[begin:end]}*{text[end:]}"


def _needs_messages(recipe: TaskRecipe) -> bool:
    return recipe.conversation or any("{messages" in turn.input + turn.target for turn in recipe.templates)


def _messages(record: Record, where: str) -> list[dict[str, str]] | None:
    """Return the record's conversation in one of the published forms; None if it has none."""
    if {"messages", "conversations"} <= record.fields.keys():
        raise UserError(
            f"{where}: record {record.identity}: it has both messages and conversations; "
            "name the right one by `dialogue`, or remove the other from the file"
        )
    try:
        return find_messages(record.fields)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"{where}: record {record.identity}: write turns as messages [{{role, content}}] "
            "or conversations [{from, value}]"
        ) from None


def _alternating(record: Record, recipe: TaskRecipe, where: str) -> list[dict[str, str]]:
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
        raise UserError(f"{where}: record {record.identity}: {field} is no list of {form}") from None
    roles = ("user", "assistant")
    return [{"role": roles[position % 2], "content": text} for position, text in enumerate(texts)]


def _worded(key: str, value: Any, recipe: TaskRecipe, record: Record, where: str) -> str | None:
    name = value if isinstance(value, str) else orjson.dumps(value).decode()
    if name not in recipe.wording[key]:
        raise UserError(
            f"{where}: record {record.identity}: wording.{key} has no word for {value!r:.60}; add it, "
            "or null to discard such records"
        )
    return recipe.wording[key][name]


def _options(record: Record, options: Options, where: str) -> Fields:
    if len(options.of) == 1:
        texts = need(record, options.of[0], where)
    else:
        texts = [need(record, key, where) for key in options.of]
    answer = need(record, options.answer, where)
    letters = list(ascii_uppercase[: len(texts)])
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        right = answer
    elif answer in letters:  # before the texts: an option may read "C" itself
        right = letters.index(answer)
    elif answer in texts:
        right = texts.index(answer)
    else:
        raise UserError(
            f"{where}: record {record.identity}: {options.answer} {answer!r:.60} is none of its "
            f"{len(texts)} options by position, text or letter"
        )
    return {"options": list(texts), "letter": letters[right], "option": texts[right]}


@lru_cache(maxsize=256)  # one file serves many records
def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _beside(path: str, record: Record, where: str) -> str:
    try:
        return _read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: record {record.identity}: {path}: {error.__class__.__name__}") from None


def _wrap(value: Any, items: type[Items]) -> Any:
    if value is None:
        return Text()
    if isinstance(value, list):
        return items(_wrap(element, items) for element in value)
    return Text(value) if isinstance(value, str) and not isinstance(value, Text) else value


def _named(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else str(error)
