"""Labelled records become pairs of input and target text, as their task's YAML declares.

Owns templates, conversation turns, the split into a training and a held-out part, and what is
discarded why. It does not tokenise (openba.data.instruct) and does not read source formats
(openba.data.sources).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from openba.artifacts import Build
from openba.data.entities import format_entities
from openba.data.sources import read
from openba.errors import UserError
from openba.recipes.data import TaskRecipe, TaskStep, Turn

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "input": pa.string(),
        "turns": pa.list_(pa.int32()),
        "target": pa.string(),
        "choices": pa.list_(pa.string()),
    }
)
"""`turns`: character offsets in `input` at which the history's human turns begin; else empty."""

# OpenAI's and ShareGPT's names of the two speakers -> the paper's (section 6.1).
_SPEAKERS = {"user": "Human", "human": "Human", "assistant": "Assistant", "gpt": "Assistant"}


class Text(str):
    """A field's text: `{text:.240}` is its start, `{text.after_first_line}` lacks its first line."""

    @property
    def after_first_line(self) -> Text:
        """Everything after the first line, on one line."""
        return Text(" ".join(self.strip().partition("\n")[2].split()))


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


@dataclass(frozen=True)
class Rendered:
    """A task's pairs; both tables have `SCHEMA`. `discarded`: rule -> number of pairs."""

    train: pa.Table
    heldout: pa.Table
    discarded: dict[str, int]


@dataclass(frozen=True)
class _Pair:
    id: str
    input: str
    turns: tuple[int, ...]
    target: str
    asks: str
    """What is asked, whichever template words it."""


def build(build: Build) -> dict[str, Any]:
    """Step `task-NAME`: read the task's source; write train.parquet and heldout.parquet.

    Returns:
        Facts: counts of records and pairs, pairs discarded by rule, two samples.

    Raises:
        UserError: see `render`.
    """
    step: TaskStep = build.recipe
    documents = pa.Table.from_batches(read(step.name, step.task.source))
    rendered = render(step.task, documents, step.name)
    pq.write_table(rendered.train, build.out / "train.parquet", compression="zstd")
    pq.write_table(rendered.heldout, build.out / "heldout.parquet", compression="zstd")
    samples = rendered.train.slice(0, 2).select(["input", "target"]).to_pylist()
    return {
        "records": documents.num_rows,
        "train": rendered.train.num_rows,
        "heldout": rendered.heldout.num_rows,
        "discarded": rendered.discarded,
        "samples": [{key: text[:1000] for key, text in sample.items()} for sample in samples],
    }


def render(recipe: TaskRecipe, documents: pa.Table, name: str = "task") -> Rendered:
    """Render every record through the task's templates and split by the hash of the record's id.

    Args:
        recipe: the task.
        documents: columns id, text, language, source, extra (a JSON object as string).
        name: the task's name, for messages.

    Returns:
        Training pairs in the order of the records (repetitions at the end), held-out pairs in the
        order of their ids' hashes, so that the first n are a fixed random sample. Discarded are
        pairs without text, those that miss `require`, repetitions of an earlier pair, and training
        pairs that ask what a held-out pair asks (the paper checks that by hand, section 4.1).

    Raises:
        UserError: a template names a field that a record lacks, or a target is not one of the choices.
    """
    discarded: Counter[str] = Counter()
    parts: dict[bool, list[_Pair]] = {True: [], False: []}
    seen: set[tuple[str, str]] = set()
    for fields in _records(recipe, documents, name):
        heldout = _hash("heldout", fields["id"]) < recipe.heldout * 2**64
        for pair in _pairs(recipe, fields, name):
            rule = _discard(recipe, pair, seen, name)
            seen.add((pair.asks, pair.target))
            if rule:
                discarded[rule] += 1
            else:
                parts[heldout].append(pair)
    asked = {pair.asks for pair in parts[True]}
    train = [pair for pair in parts[False] if pair.asks not in asked]
    discarded["asked_in_heldout"] = len(parts[False]) - len(train)
    repeated = [(f"{p.id}*{k}" if k else p.id, p) for k in range(recipe.repeat) for p in train]
    ordered = sorted(parts[True], key=lambda pair: (_hash("order", pair.id), pair.id))
    return Rendered(
        _table(recipe, repeated), _table(recipe, [(pair.id, pair) for pair in ordered]), dict(+discarded)
    )


def history(messages: Sequence[Mapping[str, str]]) -> tuple[str, list[int]]:
    """A conversation as the paper's encoder text, `Human: .. Assistant: .. Human: .. Assistant:` (6.1).

    Args:
        messages: `{role, content}` with OpenAI's roles or ShareGPT's; a system message stands bare.

    Returns:
        The text and the character offsets of its human turns: cutting from the first offset to a
        later one drops the oldest turns.

    Raises:
        ValueError: a role is unknown.
    """
    text, turns = "", []
    for message in messages:
        role, content = message["role"], message["content"]
        if role != "system" and role not in _SPEAKERS:
            raise ValueError(f"role {role!r} is not one of system, {', '.join(_SPEAKERS)}")
        if _SPEAKERS.get(role) == "Human":
            turns.append(len(text))
        text += f"{content} " if role == "system" else f"{_SPEAKERS[role]}: {content} "
    return f"{text}Assistant:", turns


def _records(recipe: TaskRecipe, documents: pa.Table, name: str) -> Iterator[dict[str, Any]]:
    """The fields of each record that is used: columns, the keys of `extra`, and the derived ones."""
    rows = documents.to_pylist()
    if recipe.limit is not None and len(rows) > recipe.limit:
        last = sorted(_hash("limit", row["id"]) for row in rows)[recipe.limit]
        rows = [row for row in rows if _hash("limit", row["id"]) < last]
    # A source takes its text field out of `extra`; templates may call it by either name.
    own = getattr(recipe.source, "text_field", None) or "text"
    records = [{**json.loads(row.pop("extra")), **row, own: row["text"]} for row in rows]
    labels = sorted({kind for record in records for _, kind in _entities(record, name)})
    for record in records:
        if "entities" in record:
            record["labels"] = ", ".join(labels)
            record["entities"] = Entities(_entities(record, name), recipe.source.language)
        if "conversations" in record or "messages" in record:
            record["messages"] = _messages(record, name)
        yield {key: _worded(key, value, recipe, name) for key, value in record.items()}


def _entities(record: Mapping[str, Any], name: str) -> Sequence[Sequence[str]]:
    pairs = record.get("entities") or []
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(s, str) for s in p) for p in pairs):
        raise UserError(
            f"{name}: record {record['id']}: entities must be a list of [text, type]; got {pairs!r:.80}"
        )
    return pairs


def _messages(record: Mapping[str, Any], name: str) -> list[dict[str, str]]:
    """OpenAI's `messages`, or ShareGPT's `conversations` in that form."""
    key, role, content = ("messages", "role", "content")
    if "conversations" in record:
        key, role, content = ("conversations", "from", "value")
    try:
        return [{"role": turn[role], "content": (turn[content] or "").strip()} for turn in record[key]]
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{name}: record {record['id']}: write turns as messages [{{role, content}}] "
            "or conversations [{from, value}]"
        ) from None


def _worded(key: str, value: Any, recipe: TaskRecipe, name: str) -> Any:
    if key in recipe.wording:
        if value not in recipe.wording[key]:
            raise UserError(f"{name}: wording.{key} has no word for {value!r}; add it")
        value = recipe.wording[key][value]
    if value is None:
        return Text()
    return Text(value) if isinstance(value, str) else value


def _pairs(recipe: TaskRecipe, fields: dict[str, Any], name: str) -> Iterator[_Pair]:
    """One pair of the record, or one for each answer of its conversation."""
    template = recipe.templates[_hash("template", fields["id"]) % len(recipe.templates)]
    if not recipe.conversation:
        asks = _fill(recipe.templates[0].input, fields, name)
        yield _pair(template, fields, fields["id"], (), asks, name)
        return
    if "messages" not in fields:
        raise UserError(
            f"{name}: record {fields['id']}: no messages or conversations, so no `conversation: true`"
        )
    before, found, _ = template.input.partition("{history}")
    if not found:
        raise UserError(f"{name}: template {template.input!r}: a conversation's input needs {{history}}")
    start = len(_fill(before, fields, name))
    try:
        history(fields["messages"])
    except ValueError as error:
        raise UserError(f"{name}: record {fields['id']}: {error}") from None
    for index, message in enumerate(fields["messages"]):
        text, turns = history(fields["messages"][:index])
        if turns and _SPEAKERS.get(message["role"]) == "Assistant":
            answer = {**fields, "history": text, "answer": Text(message["content"])}
            offsets = tuple(start + turn for turn in turns)
            yield _pair(template, answer, f"{fields['id']}#{index}", offsets, text, name)


def _pair(
    template: Turn, fields: Mapping[str, Any], identifier: str, turns: tuple[int, ...], asks: str, name: str
) -> _Pair:
    source, target = (_fill(text, fields, name).rstrip() for text in (template.input, template.target))
    return _Pair(identifier, source, turns, target, asks)


def _fill(template: str, fields: Mapping[str, Any], name: str) -> str:
    try:
        return template.format_map(fields)
    except KeyError as error:
        raise UserError(
            f"{name}: template {template!r}: record {fields['id']} has no field {error}; "
            f"it has {', '.join(sorted(fields))}"
        ) from None
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{name}: template {template!r}: record {fields['id']}: {error}") from None


def _discard(recipe: TaskRecipe, pair: _Pair, seen: set[tuple[str, str]], name: str) -> str | None:
    """The rule that discards the pair."""
    if (pair.asks, pair.target) in seen:
        return "duplicate"
    if not pair.input.strip() or not pair.target.strip():
        return "empty"
    if recipe.require is not None and not re.search(recipe.require, pair.target):
        return "require"
    if recipe.choices and pair.target not in recipe.choices:
        raise UserError(
            f"{name}: record {pair.id}: target {pair.target!r:.60} is not one of the choices "
            f"{', '.join(recipe.choices)}; add it, or a wording for it"
        )
    return None


def _table(recipe: TaskRecipe, pairs: Sequence[tuple[str, _Pair]]) -> pa.Table:
    columns = {
        "id": [identifier for identifier, _ in pairs],
        "input": [pair.input for _, pair in pairs],
        "turns": [pair.turns for _, pair in pairs],
        "target": [pair.target for _, pair in pairs],
        "choices": [recipe.choices] * len(pairs),
    }
    return pa.table(columns, schema=SCHEMA)


def _hash(purpose: str, identifier: str) -> int:
    """64 bits that depend on the record only; each purpose has its own, so that they are independent."""
    return xxhash.xxh3_64_intdigest(f"{purpose}:{identifier}".encode())
