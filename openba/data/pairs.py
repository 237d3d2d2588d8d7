"""Discard, order and complete the rendered pairs of labelled data.

Here are the schema of pairs, the rules that depend on other pairs, the order of both parts and the solved
examples of few-shot pairs. Pairs are kept in a file; 26 bytes of memory are needed per pair.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash

from openba.errors import UserError
from openba.recipes.data import TaskRecipe

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "input": pa.string(),
        "turns": pa.list_(pa.int32()),
        "target": pa.string(),
        "choices": pa.list_(pa.string()),
        "category": pa.string(),
        "references": pa.list_(pa.string()),
    }
)
"""`turns`: character offsets in `input` at which the history's human turns begin, or the solved examples
and, last, the question; else empty. Text between two of them may be dropped, the oldest first.
`choices`: the possible targets, if they are limited. `category`: the record's subject, or empty.
`references`: all right answers, or one JSON object with the parts of a program check (see `ProgramCheck`)."""

ANSWER = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Placeholder of an answer in the program of its check."""

Split = Literal["train", "heldout"]

RULES = ("", "duplicate", "empty", "require", "rejected", "asked_in_heldout", "repeated_question")
BATCH = 1000
ASKED_FILE = "asked.parquet"
ASKED = pa.schema({"question": pa.list_(pa.string()), "answers": pa.list_(pa.string())})
"""Question of a held-out record without prompt, option letters and examples, and the right answer's text
followed by the texts of all options (see `openba.data.questions`). Empty for training pairs."""
SPILLED = pa.schema([*SCHEMA, pa.field("template", pa.int16()), pa.field("insert_at", pa.int32()), *ASKED])
"""`insert_at`: character at which a few-shot pair's examples are inserted."""
_SMALL_POOL = 50  # candidates below which those with the pair's own question are removed before drawing
_DRAWS_PER_SHOT = 20


@dataclass
class Seen:
    """Properties of each pair apart from its text: 26 bytes per pair, in the order of the pairs."""

    asks: array[int] = field(default_factory=lambda: array("Q"))
    """Digest of the question."""
    pair_digests: array[int] = field(default_factory=lambda: array("Q"))
    """Digest of question and target."""
    order: array[int] = field(default_factory=lambda: array("Q"))
    """Hash by which held-out pairs are sorted."""
    heldout: array[int] = field(default_factory=lambda: array("B"))
    rule: array[int] = field(default_factory=lambda: array("B"))
    """Index into `RULES`."""


Pool = dict[str, list[tuple[int, int, tuple[str, ...]]]]
"""Category -> candidates for examples: (negated hash, row, the record as example of each few-shot form)."""
_Candidate = tuple[int, tuple[str, ...]]
"""Digest of the question, and the record as example of each few-shot form."""


class Rendered:
    """Pairs of labelled data in two parts, columns of `SCHEMA`.

    `discarded`: rule -> number of pairs; `cleaned`: change -> number of turns; `broken` and `warnings`:
    messages.
    """

    def __init__(self, recipe: TaskRecipe, pairs: pa.Table, seen: Seen, pool: Pool, name: str) -> None:
        self.recipe = recipe
        self.name = name
        self._pairs = pairs
        self.discarded: Mapping[str, int]
        self.cleaned: Mapping[str, int] = {}
        self.broken: list[str] = []
        self.warnings: list[str] = []
        self.rows, self.discarded = sorted_out(seen, recipe.is_test_set, recipe.repeated_questions == "first")
        self._asks = np.array(seen.asks, dtype=np.uint64)
        self._pool: dict[str, list[_Candidate]] = {}
        for category, entries in pool.items():
            is_in_training = np.isin([row for _, row, _ in entries], self.rows["train"])
            usable = [entry for entry, usable in zip(entries, is_in_training, strict=True) if usable]
            self._pool[category] = [(seen.asks[row], texts) for _, row, texts in sorted(usable, reverse=True)]

    @cached_property
    def train(self) -> pa.Table:
        """Training part in memory."""
        return pa.Table.from_batches(self.batches("train"), SCHEMA)

    @cached_property
    def heldout(self) -> pa.Table:
        """Held-out part in memory."""
        return pa.Table.from_batches(self.batches("heldout"), SCHEMA)

    def forms(self) -> dict[str, int]:
        """Return the number of training pairs by form: zero_shot, few_shot, cot."""
        if not len(self.rows["train"]):
            return {}
        templates = self._pairs["template"].take(pa.array(self.rows["train"])).to_numpy()
        counts: Counter[str] = Counter()
        for template, count in enumerate(np.bincount(templates, minlength=len(self.recipe.templates))):
            counts[self.recipe.templates[template].form] += int(count)
        return dict(+counts)

    def batches(self, split: Split) -> Iterator[pa.RecordBatch]:
        """Yield the pairs of one part: training pairs in the order of the records, repetitions at the end."""
        rows = self.rows[split]
        for repetition in range(self.recipe.repeat if split == "train" else 1):
            for start in range(0, len(rows), BATCH):
                batch_rows = rows[start : start + BATCH]
                table = self._pairs.take(pa.array(batch_rows))
                columns = {name: table[name].combine_chunks() for name in SCHEMA.names}
                if any(turn.shots for turn in self.recipe.templates):
                    texts, turns = zip(*self._with_examples(table, batch_rows), strict=True)
                    columns["input"] = pa.array(texts, pa.string())
                    columns["turns"] = pa.array(turns, pa.list_(pa.int32()))
                if repetition:
                    ids = [f"{identifier}*{repetition}" for identifier in table["id"].to_pylist()]
                    columns["id"] = pa.array(ids, pa.string())
                yield pa.RecordBatch.from_pydict(columns, schema=SCHEMA)

    def asked(self) -> Iterator[pa.RecordBatch]:
        """Yield `ASKED` of the held-out pairs, in their order."""
        rows = self.rows["heldout"]
        for start in range(0, len(rows), BATCH):
            table = self._pairs.select(ASKED.names).take(pa.array(rows[start : start + BATCH]))
            columns = [table[key].combine_chunks() for key in ASKED.names]
            yield pa.RecordBatch.from_arrays(columns, schema=ASKED)

    def _with_examples(self, table: pa.Table, rows: np.ndarray) -> Iterator[tuple[str, list[int]]]:
        """Yield input and turns of each pair, with solved examples in few-shot pairs."""
        few_shot_templates = [turn for turn in self.recipe.templates if turn.shots]
        columns = table.select(["id", "input", "template", "insert_at", "category"])
        for row, pair in zip(rows, columns.to_pylist(), strict=True):
            turn = self.recipe.templates[pair["template"]]
            text = pair["input"]
            turns: list[int] = []
            if turn.shots:
                choose = self._first if turn.shots_from == "first" else self._draw
                chosen = choose(pair["id"], int(self._asks[row]), turn.shots, pair["category"])
                form = few_shot_templates.index(turn)
                examples = [example[form] for example in chosen]
                insert_at = pair["insert_at"]
                turns = [*accumulate(map(len, examples), initial=insert_at)]
                text = text[:insert_at] + "".join(examples) + text[insert_at:]
            yield text, turns

    def _draw(self, identifier: str, asks: int, shots: int, category: str) -> list[tuple[str, ...]]:
        """Return examples of the category's pool with other questions; fewer if the pool is small."""
        drawn: dict[int, tuple[str, ...]] = {}
        pool = self._pool.get(category, [])
        usable = [entry for entry in pool if entry[0] != asks] if len(pool) < _SMALL_POOL else pool
        self._refuse_empty(usable, category)
        for attempt in range(_DRAWS_PER_SHOT * shots):
            other, texts = usable[digest(f"shot {self.recipe.seed} {attempt}", identifier) % len(usable)]
            if other != asks:
                drawn.setdefault(other, texts)
            if len(drawn) == shots:
                break
        return list(drawn.values())

    def _first(self, identifier: str, asks: int, shots: int, category: str) -> list[tuple[str, ...]]:
        """Return the category's first training records without one with the pair's own question."""
        del identifier  # the examples are the same for all records
        usable = [texts for other, texts in self._pool.get(category, [])[:shots] if other != asks]
        self._refuse_empty(usable, category)
        return usable

    def _refuse_empty(self, usable: Sized, category: str) -> None:
        if not usable:
            suffix = f" of {category}" if category else ""
            raise UserError(
                f"{self.name}: no training record{suffix} is left to draw examples from; add records"
            )


def sorted_out(
    seen: Seen, keep_heldout: bool = False, first_question_only: bool = False
) -> tuple[dict[Split, np.ndarray], Counter[str]]:
    """Return the rows of each part in final order, and how many pairs each rule discards.

    Args:
        seen: all pairs.
        keep_heldout: keep repetitions in the held-out part, as a test set is scored as it is.
        first_question_only: of the pairs of a part that ask the same, the first stays.
    """
    asks = np.array(seen.asks, dtype=np.uint64)
    rule = np.array(seen.rule, dtype=np.int8)
    is_heldout = np.array(seen.heldout, dtype=bool)
    is_first = np.zeros(len(rule), dtype=bool)
    is_first[np.unique(np.array(seen.pair_digests, dtype=np.uint64), return_index=True)[1]] = True
    rule[~is_first & ~(is_heldout & keep_heldout)] = RULES.index("duplicate")
    # Training pairs with a held-out question, whichever template words it.
    is_tested = np.isin(asks, asks[is_heldout & (rule == 0)])
    rule[~is_heldout & (rule == 0) & is_tested] = RULES.index("asked_in_heldout")
    if first_question_only:
        for is_of_part in (is_heldout, ~is_heldout):
            rows_of_part = np.flatnonzero(is_of_part & (rule == 0))
            firsts = np.unique(asks[rows_of_part], return_index=True)[1]
            rule[np.delete(rows_of_part, firsts)] = RULES.index("repeated_question")
    heldout_rows = np.flatnonzero(is_heldout & (rule == 0))
    order = np.array(seen.order, dtype=np.uint64)[heldout_rows].argsort(kind="stable")
    counts = np.bincount(rule, minlength=len(RULES)).tolist()
    rows: dict[Split, np.ndarray] = {
        "train": np.flatnonzero(~is_heldout & (rule == 0)),
        "heldout": heldout_rows[order],
    }
    return rows, Counter(dict(zip(RULES[1:], counts[1:], strict=True)))


def spill(batches: Iterable[pa.RecordBatch], path: Path | None, schema: pa.Schema | None = None) -> pa.Table:
    """Return batches as one table, memory-mapped from a file if a path is given."""
    if path is None:
        return pa.Table.from_batches(batches, schema)
    iterator = iter(batches)
    first_batch = next(iterator, None)
    if first_batch is None:
        return pa.Table.from_batches([], schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first_batch.schema) as writer:
        writer.write_batch(first_batch)
        for batch in iterator:
            writer.write_batch(batch)
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def digest(purpose: str, identifier: str) -> int:
    """Return a 64-bit hash of a record's id; those of different purposes are independent."""
    return xxhash.xxh3_64_intdigest(f"{purpose}:{identifier}".encode())
