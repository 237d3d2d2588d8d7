"""Step `task-NAME`: render labelled records to pairs of input and target text, as their YAML declares.

Templates, conversation turns, the held-out split and discarding of single pairs are here. Source formats are
read in `openba.data.sources`, fields are interpreted in `openba.data.fields`, and `openba.data.pairs` does
what depends on all pairs. Records and pairs are passed in Arrow batches through files.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from openba.artifacts import Build
from openba.data.conversations import clean, history, is_answer
from openba.data.fields import Fields, Record, Text, derive, expand, kinds_of, need, parse, refuse_clashes
from openba.data.identity import states_identity
from openba.data.labelled_checks import LabelledChecks
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
    Split,
    digest,
    spill,
)
from openba.data.quarantine import refuse
from openba.data.questions import answers_of, question_of
from openba.data.schema import SCHEMA as DOCUMENTS
from openba.data.simple_talk import content_words
from openba.data.sources import read, unread_files
from openba.errors import UserError
from openba.recipes.data import TaskRecipe, TaskStep, Turn

_SHOWN_BROKEN = 5  # broken records that the facts quote; all are counted
# Training records of a category from which few-shot examples are drawn: those of lowest hash.
_POOL_RECORDS = 1000
_SAMPLES = 2
_SAMPLE_CHARACTERS = 1000


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
    insert_at: int
    """Position in `input` where solved examples are inserted; -1: none."""
    asks: int
    """Digest of the question, the same for all templates."""
    examples: tuple[str, ...]
    """The record as a solved example, one per few-shot template."""
    question: Sequence[str]
    answers: Sequence[str]


class Facts(TypedDict):
    """Facts that the step records in its manifest."""

    records: int
    train: int
    heldout: int
    forms: Mapping[str, int]
    """Training pairs by form."""
    discarded: Mapping[str, int]
    """Pairs by rule."""
    cleaned: Mapping[str, int]
    """Turns of conversations by change."""
    broken: list[str]
    warnings: list[str]
    samples: list[dict[str, str]]


def build(build: Build) -> Facts:
    """Read the source; write train.parquet, heldout.parquet and asked.parquet.

    Raises:
        UserError: see `render`.
    """
    step: TaskStep = build.recipe
    documents_file = build.out / "documents.arrow"
    pairs_file = build.out / "pairs.arrow"
    unreadable: list[str] = []
    on_unreadable = refuse if step.task.broken == "refuse" else lambda entry: unreadable.append(str(entry))
    documents = spill(read(step.name, step.task.source, on_unreadable), documents_file, DOCUMENTS)
    rendered = render(step.task, documents, step.name, pairs_file)
    if unreadable and not documents.num_rows:
        raise UserError(f"task {step.name}: no record can be read; first: {unreadable[0]}")
    if unreadable:
        rendered.broken = [*unreadable, *rendered.broken][:_SHOWN_BROKEN]
        rendered.discarded = Counter(rendered.discarded) + Counter(broken=len(unreadable))
    samples: list[dict[str, str]] = []
    counts: dict[Split, int] = {"train": 0, "heldout": 0}
    # In the files' metadata, so that evaluations can report them without the step's manifest.
    metadata = {"discarded": rendered.discarded, "broken": rendered.broken}
    schema = SCHEMA.with_metadata({key: orjson.dumps(value) for key, value in metadata.items()})
    for split in counts:
        with pq.ParquetWriter(build.out / f"{split}.parquet", schema, compression="zstd") as writer:
            for batch in rendered.batches(split):
                counts[split] += batch.num_rows
                samples += batch.slice(0, _SAMPLES - len(samples)).select(["input", "target"]).to_pylist()
                writer.write_batch(batch.cast(schema))
    with pq.ParquetWriter(build.out / ASKED_FILE, ASKED, compression="zstd") as writer:
        for batch in rendered.asked():
            writer.write_batch(batch)
    facts = Facts(
        records=documents.num_rows,
        train=counts["train"],
        heldout=counts["heldout"],
        forms=rendered.forms(),
        discarded=rendered.discarded,
        cleaned=rendered.cleaned,
        broken=rendered.broken,
        warnings=[*map(str, unread_files(step.task.source)), *rendered.warnings],
        samples=[
            {name: text[:_SAMPLE_CHARACTERS] for name, text in sample.items()}
            for sample in samples[:_SAMPLES]
        ],
    )
    documents_file.unlink()
    pairs_file.unlink()
    return facts


def render(
    recipe: TaskRecipe, documents: pa.Table, name: str = "task", scratch: Path | None = None
) -> Rendered:
    """Render every record with the templates, and split the pairs by the hash of the record's id.

    Args:
        recipe: of the labelled data.
        documents: columns id, text, language, source, extra (a JSON object as string).
        name: for messages.
        scratch: file for the pairs before they are sorted; none: in memory.

    Returns:
        Training pairs in the order of the records (repetitions at the end), and held-out pairs in the order
        of their ids' hashes, so that the first n are a fixed random sample. Discarded are records without a
        label or without a template for them, pairs without text or that do not match `require`, repetitions
        of an earlier pair, and training pairs with the question of a held-out pair (the paper checks that by
        hand, section 4.1). A test set keeps its repetitions and its empty answers, so that scores are over
        all of it.

    Raises:
        UserError: a template names a field that a record lacks, a label has no wording, or a target is not
            one of the choices, unless the recipe counts such records; or a template gives nearly all records
            the same input.
    """
    where = f"{name} ({path})" if (path := getattr(recipe.source, "path", None)) else name
    seen = Seen()
    discarded = Counter[str]()
    pool: Pool = {}
    broken: list[str] = []
    cleaned: Counter[str] = Counter()
    checks = LabelledChecks(recipe, where)
    records = _records(recipe, documents, where, discarded, broken, cleaned)
    batches = _pair_batches(recipe, records, where, seen, discarded, pool, broken, checks)
    pairs = spill(batches, scratch, SPILLED)
    rendered = Rendered(recipe, pairs, seen, pool, name)
    rendered.warnings = checks.warnings()
    rendered.broken = broken[:_SHOWN_BROKEN]
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
    checks: LabelledChecks,
) -> Iterator[pa.RecordBatch]:
    """Yield all pairs; add a row for each to `seen`, and candidates for solved examples to `pool`."""
    batch: list[_Pair] = []
    for outer, record in records:
        pairs_of_record: list[tuple[_Pair, bool, int]] = []
        with _skip_broken(recipe, discarded, broken):
            pairs_of_record = list(_pairs_with_rules(recipe, outer, record, where, discarded))
        checks.add_record(record)
        for pair, heldout, rule in pairs_of_record:
            checks.add_pair(pair.template, pair.asks, pair.input, pair.target)
            if pair.examples and not heldout and not rule:
                takes_first = any(turn.shots_from == "first" for turn in recipe.templates)
                rank = len(seen.asks) if takes_first else digest(f"pool {recipe.seed}", pair.id)
                # Negated: a heap whose smallest entry has the highest rank keeps the lowest ranks.
                entry = (-rank, len(seen.asks), pair.examples)
                heap = pool.setdefault(pair.category, [])
                (heapq.heappush if len(heap) < _POOL_RECORDS else heapq.heappushpop)(heap, entry)
            seen.asks.append(pair.asks)
            seen.pair_digests.append(xxhash.xxh3_64_intdigest(pair.target.encode(), pair.asks))
            seen.order.append(digest("order", pair.id))
            seen.heldout.append(heldout)
            seen.rule.append(rule)
            batch.append(pair)
            if len(batch) == BATCH:
                yield _batch(batch)
                batch = []
    yield _batch(batch)


def _pairs_with_rules(
    recipe: TaskRecipe, outer: Record, record: Record, where: str, discarded: Counter[str]
) -> Iterator[tuple[_Pair, bool, int]]:
    """Yield a record's pairs, whether each is held out, and the number of the rule that discards it."""
    heldout = bool(_is_heldout(recipe, outer, where))
    for pair in _pairs(recipe, record, where, discarded):
        yield pair, heldout, RULES.index(_discard_rule(recipe, pair, heldout, where))


@contextmanager
def _skip_broken(recipe: TaskRecipe, discarded: Counter[str], broken: list[str]) -> Iterator[None]:
    """Let errors of a record end the step, or count and collect them, as the recipe says."""
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
    """Yield (record of the source, record with all fields that templates may name) for those in use.

    Counts the changes of conversations in `cleaned`.
    """
    limit = None
    if recipe.limit is not None and documents.num_rows > recipe.limit:
        limit = sorted(digest("limit", identifier.as_py()) for identifier in documents["id"])[recipe.limit]

    def source_records() -> Iterator[Record]:
        for batch in documents.to_batches(max_chunksize=BATCH):
            for row in batch.to_pylist():
                if limit is None or digest("limit", row["id"]) < limit:
                    yield parse(row, recipe)

    labels = ""
    if any("{labels}" in turn.input for turn in recipe.templates):
        entity_types: set[str] = set()
        for record in source_records():
            with _skip_broken(recipe, Counter(), []):  # counted below, where the record is skipped
                entity_types |= kinds_of(record, recipe, where)
        labels = ", ".join(sorted(entity_types))
    for outer in source_records():
        is_used = False
        with _skip_broken(recipe, discarded, broken):
            is_used = _is_heldout(recipe, outer, where) is not None
            if not is_used:  # such as a split whose answers are not public
                discarded["other_part"] += 1
        if not is_used:
            continue
        elements: list[Record] = []
        with _skip_broken(recipe, discarded, broken):
            elements = list(expand(outer, recipe, where))
        for record in elements:
            fields = None
            with _skip_broken(recipe, discarded, broken):
                if (fields := derive(record, recipe, labels, where)) is None:
                    discarded["unlabelled"] += 1
            if fields is None:
                continue
            if recipe.conversation and "messages" in fields:
                fields["messages"], changes = clean(fields["messages"])
                cleaned.update(changes)
            if (rule := _rule_for_conversation(recipe, fields)) is not None:
                discarded[rule] += 1
            else:
                yield outer, Record(record.identity, fields)


def _rule_for_conversation(recipe: TaskRecipe, fields: Fields) -> str | None:
    """Return the rule that drops an entire conversation (paper section 6.1), None if none does."""
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
    """Return whether a record is held out; None if it is in neither part of the data set's own division."""
    if (partition := recipe.partition) is None:
        return digest("heldout", record.identity) < recipe.heldout * 2**64
    part = _fill(partition.by, Record(record.identity, record.named()), where)
    if part in partition.heldout:
        return True
    return False if part in partition.train else None


def _pairs(recipe: TaskRecipe, record: Record, where: str, discarded: Counter[str]) -> Iterator[_Pair]:
    """Yield one pair, or one for each answer of a conversation; none if no template suits the record."""
    suitable = [
        index
        for index, turn in enumerate(recipe.templates)
        if turn.rationale is None or str(need(record, turn.rationale, where)).strip()
    ]
    if not suitable:
        discarded["no_rationale"] += 1
        return
    template = suitable[digest("template", record.identity) % len(suitable)]
    if not recipe.conversation:
        asks = _fill(recipe.templates[0].input.replace("{examples}", ""), record, where)
        yield _pair(recipe, template, record, (), asks, where)
        return
    if "messages" not in record.fields:
        raise UserError(
            f"{where}: record {record.identity}: no messages or conversations, so no `conversation: true`"
        )
    turn = recipe.templates[template]
    before, separator, _ = turn.input.partition("{history}")
    if not separator:
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
    before, examples_field, after = turn.input.partition("{examples}")
    head = _fill(before, record, where)
    source = (head + _fill(after, record, where)) if examples_field else head
    if turn.starts is not None:
        turns = tuple(match.start() for match in re.finditer(turn.starts, source, re.MULTILINE))
    return _Pair(
        id=record.identity,
        input=source.rstrip(),
        turns=turns,
        target=_fill(turn.target, record, where).rstrip(),
        choices=_choices(recipe, turn, record, where),
        category=_fill(recipe.category, record, where) if recipe.category is not None else "",
        references=_references(recipe, turn, record, where),
        template=template,
        insert_at=len(head) if examples_field else -1,
        asks=xxhash.xxh3_64_intdigest(asks.encode()),
        examples=tuple(
            _fill(few_shot.example, record, where)
            for few_shot in recipe.templates
            if few_shot.example is not None
        ),
        question=question_of(recipe, turn, record),
        answers=answers_of(recipe, turn, record),
    )


def _choices(recipe: TaskRecipe, turn: Turn, record: Record, where: str) -> Sequence[str]:
    """Return the recipe's choices, or the target for each option of the record."""
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
        UserError: the record lacks a field, or the field does not suit the template.
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


def _discard_rule(recipe: TaskRecipe, pair: _Pair, heldout: bool, where: str) -> str:
    """Return the rule that discards the pair, empty if none does."""
    # In a test set an empty answer is valid: there is nothing to find.
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
