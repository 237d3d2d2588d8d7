"""Labelled records become pairs of input and target text, as their task's YAML declares.

Owns templates, conversation turns, and which pairs are held out or discarded by themselves. It
does not tokenise (openba.data.instruct), read source formats (openba.data.sources) or interpret
a record's fields (openba.data.fields); openba.data.pairs has what follows from all pairs
together. Records and pairs pass in Arrow batches by way of files.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from openba.artifacts import Build
from openba.data.conversations import clean, history, is_answer
from openba.data.fields import Fields, Record, Text, derive, expand, kinds_of, need, parse, refuse_clashes
from openba.data.identity import states_identity
from openba.data.pairs import (
    ANSWER,
    ASKED,
    ASKED_FILE,
    BATCH,
    RULES,
    SCHEMA,
    SPILLED,
    Pool,
    Rendered,
    Seen,
    digest,
    spill,
)
from openba.data.quarantine import refuse
from openba.data.questions import answers_of, question_of
from openba.data.schema import SCHEMA as DOCUMENTS
from openba.data.simple_talk import content_words
from openba.data.sources import read, unread_files
from openba.data.task_checks import TaskChecks
from openba.errors import UserError
from openba.recipes.data import TaskRecipe, TaskStep, Turn

_NAMED = 5
"""Broken records named in the facts; all are counted."""
_POOL = 1000
"""Training records of a category that few-shot examples are drawn from: those of lowest hash."""


@dataclass(frozen=True)
class _Pair:
    id: str
    input: str
    turns: tuple[int, ...]
    target: str
    choices: Sequence[str]
    category: str
    references: Sequence[str]
    template: int
    at: int
    asks: int
    """Digest of what is asked, whichever template words it."""
    examples: tuple[str, ...]
    """The record as solved example, one for each few-shot template."""
    question: Sequence[str]
    answers: Sequence[str]


def build(build: Build) -> dict[str, Any]:
    """Step `task-NAME`: read the task's source; write train.parquet, heldout.parquet and asked.parquet.

    Returns:
        Facts: counts of records and pairs, training pairs by form, pairs discarded by rule, turns of
        conversations changed by kind, two samples.

    Raises:
        UserError: see `render`.
    """
    step: TaskStep = build.recipe
    scratch = build.out / "documents.arrow", build.out / "pairs.arrow"
    unreadable: list[str] = []
    tell = refuse if step.task.broken == "refuse" else lambda bad: unreadable.append(str(bad))
    documents = spill(read(step.name, step.task.source, tell), scratch[0], DOCUMENTS)
    rendered = render(step.task, documents, step.name, scratch[1])
    if unreadable and not documents.num_rows:
        raise UserError(f"task {step.name}: no record can be read; first: {unreadable[0]}")
    if unreadable:
        rendered.broken = [*unreadable, *rendered.broken][:_NAMED]
        rendered.discarded = Counter(rendered.discarded) + Counter(broken=len(unreadable))
    samples: list[dict[str, str]] = []
    counts = {}
    told = {"discarded": rendered.discarded, "broken": rendered.broken}
    schema = SCHEMA.with_metadata({key: orjson.dumps(value) for key, value in told.items()})
    for split in ("train", "heldout"):
        counts[split] = 0
        with pq.ParquetWriter(build.out / f"{split}.parquet", schema, compression="zstd") as writer:
            for batch in rendered.batches(split):
                counts[split] += batch.num_rows
                samples += batch.slice(0, 2 - len(samples)).select(["input", "target"]).to_pylist()
                writer.write_batch(batch.cast(schema))
    with pq.ParquetWriter(build.out / ASKED_FILE, ASKED, compression="zstd") as writer:
        for batch in rendered.asked():
            writer.write_batch(batch)
    facts = {
        "records": documents.num_rows,
        **counts,
        "forms": rendered.forms(),
        "discarded": rendered.discarded,
        "cleaned": rendered.cleaned,
        "broken": rendered.broken,
        "warnings": [*map(str, unread_files(step.task.source)), *rendered.warnings],
        "samples": [{key: text[:1000] for key, text in sample.items()} for sample in samples[:2]],
    }
    for path in scratch:
        path.unlink()
    return facts


def render(
    recipe: TaskRecipe, documents: pa.Table, name: str = "task", scratch: Path | None = None
) -> Rendered:
    """Render every record through the task's templates and split by the hash of the record's id.

    Args:
        recipe: the task.
        documents: columns id, text, language, source, extra (a JSON object as string).
        name: the task's name, for messages.
        scratch: a file for the pairs on their way; without it they are kept in memory.

    Returns:
        Training pairs in the order of the records (repetitions at the end), held-out pairs in the
        order of their ids' hashes, so that the first n are a fixed random sample. Discarded are
        records that a wording calls unlabelled or that no template serves, pairs without text, those
        that miss `require`, repetitions of an earlier pair, and training pairs that ask what a
        held-out pair asks (the paper checks that by hand, section 4.1). A test set keeps its repetitions
        and its empty answers, so that a score stands on all of it.

    Raises:
        UserError: a template names a field that a record lacks, a label has no wording, or a target
            is not one of the choices, and the recipe does not count such records; or a template gives
            nearly all records the same input.
    """
    where = f"{name} ({path})" if (path := getattr(recipe.source, "path", None)) else name
    seen, discarded = Seen(), Counter[str]()
    pool: Pool = {}
    broken: list[str] = []
    cleaned: Counter[str] = Counter()
    checks = TaskChecks(recipe, where)
    records = _records(recipe, documents, where, discarded, broken, cleaned)
    batches = _pair_batches(recipe, records, where, seen, discarded, pool, broken, checks)
    pairs = spill(batches, scratch, SPILLED)
    rendered = Rendered(recipe, pairs, seen, pool, name)
    rendered.warnings = checks.warnings()
    rendered.broken = broken[:_NAMED]
    rendered.discarded = dict(discarded + Counter(rendered.discarded))
    rendered.cleaned = dict(cleaned)
    return rendered


def _pair_batches(
    recipe: TaskRecipe,
    records: Iterator[tuple[Record, Record]],
    where: str,
    seen: Seen,
    discarded: Counter[str],
    pool: Pool,
    broken: list[str],
    checks: TaskChecks,
) -> Iterator[pa.RecordBatch]:
    """Yield all pairs; fill `seen` with a row for each and `pool` with the candidates for examples."""
    batch: list[_Pair] = []
    for outer, record in records:
        found: list[tuple[_Pair, bool, int]] = []
        with _leaving_out(recipe, discarded, broken):
            found = list(_ruled(recipe, outer, record, where, discarded))
        checks.add_record(record)
        for pair, heldout, rule in found:
            checks.add_pair(pair.template, pair.asks, pair.input, pair.target)
            if pair.examples and not heldout and not rule:
                # A heap of the lowest hashes, so negated.
                first = any(turn.shots_from == "first" for turn in recipe.templates)
                rank = len(seen.asks) if first else digest(f"pool {recipe.seed}", pair.id)
                entry = (-rank, len(seen.asks), pair.examples)
                heap = pool.setdefault(pair.category, [])
                (heapq.heappush if len(heap) < _POOL else heapq.heappushpop)(heap, entry)
            seen.asks.append(pair.asks)
            seen.whole.append(xxhash.xxh3_64_intdigest(pair.target.encode(), pair.asks))
            seen.order.append(digest("order", pair.id))
            seen.heldout.append(heldout)
            seen.rule.append(rule)
            batch.append(pair)
            if len(batch) == BATCH:
                yield _batch(batch)
                batch = []
    yield _batch(batch)


def _ruled(
    recipe: TaskRecipe, outer: Record, record: Record, where: str, discarded: Counter[str]
) -> Iterator[tuple[_Pair, bool, int]]:
    """A record's pairs, whether they are held out, and the rule that discards each by itself."""
    heldout = bool(_is_heldout(recipe, outer, where))
    for pair in _pairs(recipe, record, where, discarded):
        yield pair, heldout, RULES.index(_discard(recipe, pair, heldout, where))


@contextmanager
def _leaving_out(recipe: TaskRecipe, discarded: Counter[str], broken: list[str]) -> Iterator[None]:
    """What is wrong with a record ends the step, or is counted and named, as the recipe says."""
    try:
        yield
    except UserError as error:
        if recipe.broken == "refuse":
            raise
        discarded["broken"] += 1
        broken.append(str(error))


def _batch(pairs: list[_Pair]) -> pa.RecordBatch:
    columns = {name: [getattr(pair, name) for pair in pairs] for name in SPILLED.names}
    return pa.RecordBatch.from_pydict(columns, schema=SPILLED)


def _records(
    recipe: TaskRecipe,
    documents: pa.Table,
    where: str,
    discarded: Counter[str],
    broken: list[str],
    cleaned: Counter[str],
) -> Iterator[tuple[Record, Record]]:
    """Yield (the source's record, the record with all fields that templates may name) for those in use.

    Counts what is changed of conversations.
    """
    last = None
    if recipe.limit is not None and documents.num_rows > recipe.limit:
        last = sorted(digest("limit", i.as_py()) for i in documents["id"])[recipe.limit]

    def raw() -> Iterator[Record]:
        for batch in documents.to_batches(max_chunksize=BATCH):
            for row in batch.to_pylist():
                if last is None or digest("limit", row["id"]) < last:
                    yield parse(row, recipe)

    labels = ""
    if any("{labels}" in turn.input for turn in recipe.templates):
        kinds: set[str] = set()
        for record in raw():
            with _leaving_out(recipe, Counter(), []):  # told below, where it is left out
                kinds |= kinds_of(record, recipe, where)
        labels = ", ".join(sorted(kinds))
    for outer in raw():
        is_used = False
        with _leaving_out(recipe, discarded, broken):
            is_used = _is_heldout(recipe, outer, where) is not None
            if not is_used:  # such as a split whose answers are not public
                discarded["other_part"] += 1
        if not is_used:
            continue
        elements: list[Record] = []
        with _leaving_out(recipe, discarded, broken):
            elements = list(expand(outer, recipe, where))
        for record in elements:
            fields = None
            with _leaving_out(recipe, discarded, broken):
                if (fields := derive(record, recipe, labels, where)) is None:
                    discarded["unlabelled"] += 1
            if fields is None:
                continue
            if recipe.conversation and "messages" in fields:
                fields["messages"], changes = clean(fields["messages"])
                cleaned.update(changes)
            if (rule := _unwanted(recipe, fields)) is not None:
                discarded[rule] += 1
            else:
                yield outer, Record(record.identity, fields)


def _unwanted(recipe: TaskRecipe, fields: Fields) -> str | None:
    """The rule that drops a conversation whole, with all its turns (paper section 6.1)."""
    messages = fields.get("messages", [])
    if messages and content_words(message["content"] for message in messages) < recipe.min_words:
        return "too_simple"
    answers = [message["content"] for message in messages if is_answer(message)]
    if recipe.drop_identity and any(states_identity(text, recipe.model_names) for text in answers):
        return "identity"
    if recipe.reject is not None and any(re.search(recipe.reject, text) for text in answers):
        return "rejected"
    return None


def _is_heldout(recipe: TaskRecipe, record: Record, where: str) -> bool | None:
    """Whether a source's record is evaluated on; None if its data set's division leaves it out."""
    if (partition := recipe.partition) is None:
        return digest("heldout", record.identity) < recipe.heldout * 2**64
    part = _fill(partition.by, Record(record.identity, record.named()), where)
    return True if part in partition.heldout else False if part in partition.train else None


def _pairs(recipe: TaskRecipe, record: Record, where: str, discarded: Counter[str]) -> Iterator[_Pair]:
    """One pair of the record, or one for each answer of its conversation; none if no template serves it."""
    serving = [
        index
        for index, turn in enumerate(recipe.templates)
        if turn.rationale is None or str(need(record, turn.rationale, where)).strip()
    ]
    if not serving:
        discarded["no_rationale"] += 1
        return
    template = serving[digest("template", record.identity) % len(serving)]
    if not recipe.conversation:
        asks = _fill(recipe.templates[0].input.replace("{examples}", ""), record, where)
        yield _pair(recipe, template, record, (), asks, where)
        return
    if "messages" not in record.fields:
        raise UserError(
            f"{where}: record {record.identity}: no messages or conversations, so no `conversation: true`"
        )
    turn = recipe.templates[template]
    before, found, _ = turn.input.partition("{history}")
    if not found:
        raise UserError(f"{where}: template {turn.input!r}: a conversation's input needs {{history}}")
    start = len(_fill(before, record, where))
    messages = record.fields["messages"]
    try:
        history(messages)
    except ValueError as error:
        raise UserError(f"{where}: record {record.identity}: {error}") from None
    if not any(map(is_answer, messages)):
        discarded["no_answer"] += 1
    for index, message in enumerate(messages):
        text, turns = history(messages[:index])
        if turns and is_answer(message):
            made = {"history": text, "answer": Text(message["content"])}
            refuse_clashes(record, recipe, made, where)
            turn_record = Record(f"{record.identity}#{index}", {**record.fields, **made})
            offsets = tuple(start + offset for offset in turns)
            yield _pair(recipe, template, turn_record, offsets, text, where)


def _pair(
    recipe: TaskRecipe, template: int, record: Record, turns: tuple[int, ...], asks: str, where: str
) -> _Pair:
    turn = recipe.templates[template]
    before, few, after = turn.input.partition("{examples}")
    head = _fill(before, record, where)
    source = (head + _fill(after, record, where)) if few else head
    if turn.starts is not None:
        turns = tuple(found.start() for found in re.finditer(turn.starts, source, re.MULTILINE))
    return _Pair(
        id=record.identity,
        input=source.rstrip(),
        turns=turns,
        target=_fill(turn.target, record, where).rstrip(),
        choices=_choices(recipe, turn, record, where),
        category=_fill(recipe.category, record, where) if recipe.category is not None else "",
        references=_references(recipe, turn, record, where),
        template=template,
        at=len(head) if few else -1,
        asks=xxhash.xxh3_64_intdigest(asks.encode()),
        examples=tuple(_fill(t.example, record, where) for t in recipe.templates if t.example is not None),
        question=question_of(recipe, turn, record),
        answers=answers_of(recipe, turn, record),
    )


def _choices(recipe: TaskRecipe, turn: Turn, record: Record, where: str) -> Sequence[str]:
    """The task's choices, or what the target would be for each option of the record."""
    if recipe.options is None or turn.rationale is not None:
        return recipe.choices
    lettered = zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", record.fields["options"], strict=False)
    return [
        _fill(turn.target, _with(record, letter=letter, option=option), where).rstrip()
        for letter, option in lettered
    ]


def _references(recipe: TaskRecipe, turn: Turn, record: Record, where: str) -> Sequence[str]:
    if recipe.check is not None:
        templates = recipe.check.model_dump()
        filled = {name: _fill(text, _with(record, answer=ANSWER), where) for name, text in templates.items()}
        return [orjson.dumps(filled).decode()]
    if recipe.references is None:
        return [_fill(turn.target, record, where).rstrip()]
    answers = need(record, recipe.references, where)
    return [str(answer["text"] if isinstance(answer, dict) else answer) for answer in answers]


def _with(record: Record, **fields: str) -> Record:
    return Record(record.identity, {**record.fields, **fields})


def _fill(template: str, record: Record, where: str) -> str:
    """Fill the braces of a template.

    Raises:
        UserError: the record lacks a field, or has it in another form than the template wants.
    """
    try:
        return template.format_map(record.fields)
    except KeyError as error:
        raise UserError(
            f"{where}: template {template!r}: record {record.identity} has no field {error}; "
            f"it has {', '.join(sorted(record.fields))}"
        ) from None
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{where}: template {template!r}: record {record.identity}: {error}") from None


def _discard(recipe: TaskRecipe, pair: _Pair, heldout: bool, where: str) -> str:
    """The rule that discards the pair by itself; empty if none does."""
    # In a test set, that there is nothing to find is an answer too.
    if not pair.input.strip() or not (pair.target.strip() or (heldout and recipe.is_test_set)):
        return "empty"
    if recipe.require is not None and not re.search(recipe.require, pair.target):
        return "require"
    if recipe.reject is not None and re.search(recipe.reject, pair.target):
        return "rejected"
    if recipe.choices and pair.target not in recipe.choices:
        raise UserError(
            f"{where}: record {pair.id}: target {pair.target!r:.60} is not one of the choices "
            f"{', '.join(recipe.choices)}; add it, or a wording for it"
        )
    return ""
