"""Derive the fields that templates may name: nested lists, options, turns, entities, wordings."""

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

Fields = dict[str, Any]  # Any: values of whatever JSON or Parquet


class Text(str):
    """Text of a field: `{text:.240}` is its beginning, `{text.after_first_line}` lacks its first line."""

    @property
    def after_first_line(self) -> Text:
        """Text after the first line, joined to one line."""
        return Text(" ".join(self.strip().partition("\n")[2].split()))

    @property
    def after_dashes(self) -> Text:
        """Text after the first line of dashes, such as the one below BIG-Bench Hard's canary."""
        return Text(self.partition("\n-----\n")[2].strip())


class RecordId(Text):
    """Field `id`: the record's own value if it has one, else the identity that its source gives it.

    `{id.file}` and `{id.parent}` always refer to that identity.
    """

    identity: str

    def __new__(cls, value: str, identity: str) -> RecordId:
        """Make the field.

        Args:
            value: text of `{id}`.
            identity: that the source gives the record.
        """
        record_id = super().__new__(cls, value)
        record_id.identity = identity
        return record_id

    @property
    def file(self) -> str:
        """Name of the record's file, without folders and suffix."""
        return self.identity.rpartition(":")[0].rpartition("/")[2].partition(".")[0]

    @property
    def parent(self) -> str:
        """Identity of the record whose list this element is in."""
        return self.identity.rpartition("/")[0]


@dataclass(frozen=True)
class Record:
    """Record of labelled data: the unique identity that its source gives it, and its fields."""

    identity: str
    fields: Fields

    def named(self) -> Fields:
        """Return the fields with `id`: the record's own value if it has one, else its identity."""
        return {**self.fields, "id": RecordId(str(self.fields.get("id", self.identity)), self.identity)}


class Items(list[Any]):  # Any: elements of whatever JSON
    """List of a field: `{field}` is its elements with commas, `{field[0]}` one of them."""

    comma = ", "

    def __str__(self) -> str:
        return self.comma.join(map(str, self))

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    @property
    def lines(self) -> str:
        """Elements, one per line."""
        return "\n".join(map(str, self))

    @property
    def lettered(self) -> str:
        """Options, one per line: `A. first`."""
        return "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, self, strict=False))


class ChineseItems(Items):
    """List of a field with the comma of Chinese lists."""

    comma = "、"


class Entities:
    """Field `entities`: `{entities}` is the paper's notation, `{entities[person]}` those of one type."""

    def __init__(self, pairs: Sequence[Sequence[str]], language: str) -> None:
        self.pairs = [(text, kind) for text, kind in pairs]
        self.comma = "、" if language == "zh" else ", "

    def __str__(self) -> str:
        return format_entities(self.pairs)

    def __getitem__(self, kind: str) -> str:
        """Return the texts of one type, each once, in order; empty if there are none."""
        return self.comma.join(dict.fromkeys(text for text, label in self.pairs if label == kind))


def parse(row: Mapping[str, Any], recipe: TaskRecipe) -> Record:
    """Return a document's row as one record.

    The record's own fields take precedence over the columns that every document has (`language`, `source`).
    Text and id have the names that they have in the source; the text is also called `text`, unless the record
    has another field of that name.
    """
    own_names = {
        getattr(recipe.source, "id_field", None): row["id"],
        getattr(recipe.source, "text_field", "text"): row["text"],
    }
    text_and_id = {name: value for name, value in own_names.items() if name is not None}
    text_column = {} if getattr(recipe.source, "text_field", "text") is None else {"text": row["text"]}
    columns = {"language": row["language"], "source": row["source"], **text_column}
    fields = {**columns, **without_moss_markers(orjson.loads(row["extra"])), **text_and_id}
    return Record(row["id"], _replace_words(fields, recipe.replace) if recipe.replace else fields)


def _replace_words(value: Any, words: Mapping[str, str]) -> Any:  # Any: a value of whatever JSON
    """Return a value with words replaced in all texts, at any depth."""
    if isinstance(value, str):
        for text, other in words.items():
            value = value.replace(text, other)
        return value
    if isinstance(value, dict):
        return {key: _replace_words(inner, words) for key, inner in value.items()}
    return [_replace_words(inner, words) for inner in value] if isinstance(value, list) else value


def expand(record: Record, recipe: TaskRecipe, error_prefix: str) -> Iterator[Record]:
    """Yield the record itself, or one per element of the lists in `recipe.each`; identities get `/position`.

    Raises:
        UserError: a field of the path is neither a list nor an object.
    """
    records = [record]
    for key in recipe.each:
        deeper = []
        for outer in records:
            elements = need(outer, key, error_prefix)
            if isinstance(elements, dict):
                elements = [elements]
            if not isinstance(elements, list):
                raise UserError(f"{error_prefix}: record {outer.identity}: {key} is no list, so no `each`")
            for position, element in enumerate(elements):
                inner = element if isinstance(element, dict) else {key: element}
                deeper.append(Record(f"{outer.identity}/{position}", {**outer.fields, **inner}))
        records = deeper
    yield from records


def derive(record: Record, recipe: TaskRecipe, labels: str, error_prefix: str) -> Fields | None:
    """Return all fields that templates may name; None if the record has no label according to a wording.

    Args:
        record: from `expand`.
        recipe: of the labelled data.
        labels: all entity types of the data, for `{labels}`.
        error_prefix: name and source, for messages.

    Raises:
        UserError: a field is missing or has another form than the recipe says, or a template names a field
            that both recipe and record define, with different values.
    """
    fields = record.named()
    made: Fields = {}
    if recipe.tagged is not None:
        made["text"] = _sentence(record, recipe.tagged, error_prefix)
    if recipe.tagged is not None or "entities" in fields:
        pairs = _entities(record, recipe, error_prefix)
        own_labels = ", ".join(sorted(kinds_of(record, recipe, error_prefix)))
        made["labels"] = labels if recipe.labels == "task" else own_labels
        made["entities"] = Entities(pairs, recipe.source.language)
    for key, separator in recipe.split.items():
        fields[key] = [part for part in str(need(record, key, error_prefix)).split(separator) if part]
    if recipe.dialogue is not None:
        made["messages"] = _alternating(record, recipe, error_prefix)
    elif _needs_messages(recipe) and (messages := _messages(record, error_prefix)) is not None:
        made["messages"] = messages
    for key, joined in recipe.joined.items():
        values = need(Record(record.identity, fields), joined.field, error_prefix)
        try:
            made[key] = joined.separator.join(joined.item.format_map(value) for value in values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{error_prefix}: record {record.identity}: joined.{key}: {_named(error)}"
            ) from None
    for key, marked in recipe.marked.items():
        made[key] = _with_marks(record, marked, error_prefix)
    refuse_clashes(record, recipe, made, error_prefix)
    fields |= made
    for key in recipe.wording.keys() - {"entities"} if recipe.tagged else recipe.wording.keys():
        value = need(Record(record.identity, fields), key, error_prefix)
        fields[key] = wording = _wording_of(key, value, recipe, record, error_prefix)
        if wording is None:
            return None
    made = (
        {}
        if recipe.options is None
        else _options(Record(record.identity, fields), recipe.options, error_prefix)
    )
    for key, template in recipe.beside.items():
        made[key] = _beside(template.format_map(fields), record, error_prefix)
    refuse_clashes(record, recipe, made, error_prefix)
    # Lists in templates are joined with the comma of the data's language.
    items = ChineseItems if recipe.source.language == "zh" else Items
    return {key: _wrap(value, items) for key, value in (fields | made).items()}


def refuse_clashes(record: Record, recipe: TaskRecipe, made: Fields, error_prefix: str) -> None:
    """Refuse a derived field if the record has a field of that name with other content.

    Only fields that a template names are checked, and not those from which fields are derived.

    Raises:
        UserError: there is such a field.
    """
    for name in made.keys() & record.fields.keys() & names_in(_templates(recipe)) - _inputs(recipe):
        record_value = record.fields[name]
        if record_value != made[name] and str(record_value) != str(made[name]):
            raise UserError(
                f"{error_prefix}: record {record.identity}: the record has a field {name!r}, and the task "
                "makes another of that name, which the templates use; rename the field in the file"
            )


def _inputs(recipe: TaskRecipe) -> set[str]:
    """Return the names of the record's fields from which the recipe derives others."""
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


def need(record: Record, key: str, error_prefix: str) -> Any:  # Any: a value of whatever JSON
    """Return the value of a field.

    Raises:
        UserError: the record lacks it.
    """
    if key not in record.fields:
        names = ", ".join(sorted(record.fields))
        raise UserError(f"{error_prefix}: record {record.identity} has no field {key!r}; it has {names}")
    return record.fields[key]


def kinds_of(record: Record, recipe: TaskRecipe, error_prefix: str) -> set[str]:
    """Return the record's entity types in the templates' wording; of a conversation those it asks for."""
    if _has_questions(record, recipe.tagged):
        words = recipe.wording.get("entities", {})
        questions = _questions(record, recipe.tagged, error_prefix)
        entity_types = [words.get(kind, kind) for kind in questions.kinds]
        return {kind for kind in entity_types if kind is not None}
    return {kind for _, kind in _entities(record, recipe, error_prefix)}


def _has_questions(record: Record, tagged: Tagged | None) -> bool:
    """Return whether the record is a conversation that asks for entities."""
    return tagged is not None and tagged.questions is not None and tagged.questions in record.fields


def _questions(record: Record, tagged: Tagged | None, error_prefix: str) -> Questions:
    assert tagged is not None
    assert tagged.questions is not None
    try:
        return read_questions([turn["value"] for turn in record.fields[tagged.questions]])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{error_prefix}: record {record.identity}: {tagged.questions}: {error}") from None


def _sentence(record: Record, tagged: Tagged, error_prefix: str) -> str:
    if _has_questions(record, tagged):
        return _questions(record, tagged, error_prefix).text
    return " ".join(map(str, need(record, tagged.tokens, error_prefix)))


def _entities(record: Record, recipe: TaskRecipe, error_prefix: str) -> Sequence[Sequence[str]]:
    """Return the record's entities as [text, type] pairs in the templates' wording, if it has any."""
    words = recipe.wording.get("entities", {})
    pairs = _raw_entities(record, recipe, error_prefix)
    worded = [(text, words.get(kind, kind)) for text, kind in pairs]
    return [(text, kind) for text, kind in worded if kind is not None]


def _raw_entities(record: Record, recipe: TaskRecipe, error_prefix: str) -> Sequence[Sequence[str]]:
    if _has_questions(record, recipe.tagged):
        return _questions(record, recipe.tagged, error_prefix).entities
    if (tagged := recipe.tagged) is not None:
        tokens = [str(token) for token in need(record, tagged.tokens, error_prefix)]
        try:
            if tagged.tags is not None:
                return entities_of_tags(tokens, need(record, tagged.tags, error_prefix))
            return entities_of_spans(tokens, need(record, str(tagged.spans), error_prefix))
        except ValueError as error:
            raise UserError(f"{error_prefix}: record {record.identity}: {error}") from None
    pairs = record.fields.get("entities") or []
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(s, str) for s in p) for p in pairs):
        raise UserError(
            f"{error_prefix}: record {record.identity}: entities must be a list of [text, type]; "
            f"got {pairs!r:.80}"
        )
    return pairs


def _with_marks(record: Record, marked: Marked, error_prefix: str) -> str:
    """Return the text with asterisks around the words at, or nearest to, the position."""
    text = str(need(record, marked.text, error_prefix))
    try:
        words = marked.words.format_map(record.fields)
        position = int(marked.position.format_map(record.fields))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{error_prefix}: record {record.identity}: marked: {_named(error)}") from None
    if marked.unit == "word":
        begins = [match.start() for match in re.finditer(r"\S+", text)]
        position = begins[position] if 0 <= position < len(begins) else len(text)
    is_word = r"\w" if marked.unit == "word" else "(?!)"
    pattern = rf"(?<!{is_word}){re.escape(words)}(?!{is_word})"
    positions = [match.start() for match in re.finditer(pattern, text, re.IGNORECASE)] if words else []
    if not positions:
        raise UserError(
            f"{error_prefix}: record {record.identity}: {marked.text} does not hold {words!r:.60}"
        )
    begin = min(positions, key=lambda candidate: abs(candidate - position))
    end = begin + len(words)
    return f"{text[:begin]}*{text[begin:end]}*{text[end:]}"


def _needs_messages(recipe: TaskRecipe) -> bool:
    return recipe.conversation or any("{messages" in turn.input + turn.target for turn in recipe.templates)


def _messages(record: Record, error_prefix: str) -> list[dict[str, str]] | None:
    """Return the record's conversation in one of the published forms; None if it has none."""
    if {"messages", "conversations"} <= record.fields.keys():
        raise UserError(
            f"{error_prefix}: record {record.identity}: it has both messages and conversations; "
            "name the right one by `dialogue`, or remove the other from the file"
        )
    try:
        return find_messages(record.fields)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"{error_prefix}: record {record.identity}: write turns as messages [{{role, content}}] "
            "or conversations [{from, value}]"
        ) from None


def _alternating(record: Record, recipe: TaskRecipe, error_prefix: str) -> list[dict[str, str]]:
    assert recipe.dialogue is not None
    field = recipe.dialogue.field
    key = recipe.dialogue.text
    speakers = recipe.dialogue.speakers
    turns = need(record, field, error_prefix)
    try:
        if speakers is not None:
            turns = [turn[speaker] for turn in turns for speaker in speakers]
            key = None
        texts = [(turn if key is None else turn[key]).strip() for turn in turns]
    except (KeyError, TypeError, AttributeError):
        keys = [key] if speakers is None else speakers
        form = "strings" if key is None and speakers is None else f"objects with {', '.join(map(repr, keys))}"
        raise UserError(f"{error_prefix}: record {record.identity}: {field} is no list of {form}") from None
    roles = ("user", "assistant")
    return [{"role": roles[position % 2], "content": text} for position, text in enumerate(texts)]


def _wording_of(key: str, value: object, recipe: TaskRecipe, record: Record, error_prefix: str) -> str | None:
    """Return the word that stands for a label, None if records with this label are discarded."""
    name = value if isinstance(value, str) else orjson.dumps(value).decode()
    if name not in recipe.wording[key]:
        raise UserError(
            f"{error_prefix}: record {record.identity}: wording.{key} has no word for {value!r:.60}; add it, "
            "or null to discard such records"
        )
    return recipe.wording[key][name]


def _options(record: Record, options: Options, error_prefix: str) -> Fields:
    """Return the options of a question, and letter and text of the right one."""
    if len(options.of) == 1:
        texts = need(record, options.of[0], error_prefix)
    else:
        texts = [need(record, key, error_prefix) for key in options.of]
    answer = need(record, options.answer, error_prefix)
    letters = list(ascii_uppercase[: len(texts)])
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        right_index = answer
    elif answer in letters:  # before the texts: the text of an option may be "C"
        right_index = letters.index(answer)
    elif answer in texts:
        right_index = texts.index(answer)
    else:
        raise UserError(
            f"{error_prefix}: record {record.identity}: {options.answer} {answer!r:.60} is none of its "
            f"{len(texts)} options by position, text or letter"
        )
    return {"options": list(texts), "letter": letters[right_index], "option": texts[right_index]}


@lru_cache(maxsize=256)  # one file serves many records
def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _beside(path: str, record: Record, error_prefix: str) -> str:
    try:
        return _read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{error_prefix}: record {record.identity}: {path}: {error.__class__.__name__}"
        ) from None


def _wrap(value: Any, items: type[Items]) -> Any:  # Any: a value of whatever JSON
    if value is None:
        return Text()
    if isinstance(value, list):
        return items(_wrap(element, items) for element in value)
    return Text(value) if isinstance(value, str) and not isinstance(value, Text) else value


def _named(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else str(error)
