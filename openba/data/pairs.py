"""A task's rendered pairs between rendering and writing: which stay, in which order, with which examples.

Owns the table's form, what is discarded for what other pairs hold, the two parts' order and the
solved examples of few-shot pairs. It renders no template (openba.data.tasks). Pairs lie in a
file; what stays in memory is 26 bytes a pair.
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
and, last, the question; else empty. What lies between two of them may be left out, the oldest first.
`choices`: the targets there are to choose from; else empty. `category`: the record's subject, or empty.
`references`: all right answers, or one JSON object with the parts of a program check (see `ProgramCheck`)."""

ANSWER = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Where an answer goes into the program of its check."""

Split = Literal["train", "heldout"]

RULES = ("", "duplicate", "empty", "require", "rejected", "asked_in_heldout", "repeated_question")
BATCH = 1000
ASKED_FILE = "asked.parquet"
ASKED = pa.schema({"question": pa.list_(pa.string()), "answers": pa.list_(pa.string())})
"""What a held-out record asks in its own words, without prompt, option letters and examples; and the right
answer's text followed by the texts of all options (see `openba.data.questions`). Empty for training pairs."""
SPILLED = pa.schema([*SCHEMA, pa.field("template", pa.int16()), pa.field("at", pa.int32()), *ASKED])
"""`at`: character at which a few-shot pair's examples go in."""


@dataclass
class Seen:
    """What is known of each pair apart from its text: a few bytes each, in the order of the pairs."""

    asks: array[int] = field(default_factory=lambda: array("Q"))
    whole: array[int] = field(default_factory=lambda: array("Q"))
    order: array[int] = field(default_factory=lambda: array("Q"))
    heldout: array[int] = field(default_factory=lambda: array("B"))
    rule: array[int] = field(default_factory=lambda: array("B"))


Pool = dict[str, list[tuple[int, int, tuple[str, ...]]]]
"""Category -> candidates for examples: (negated hash, row, the record as example of each few-shot form)."""


class Rendered:
    """A task's pairs, in two parts of `SCHEMA`.

    `discarded`: rule -> number of pairs; `cleaned`: change -> number of turns; `broken` and `warnings`:
    messages.
    """

    def __init__(self, recipe: TaskRecipe, pairs: pa.Table, seen: Seen, pool: Pool, name: str) -> None:
        self.recipe, self.name = recipe, name
        self._pairs = pairs
        self.discarded: Mapping[str, int]
        self.cleaned: Mapping[str, int] = {}
        self.broken: list[str] = []
        self.warnings: list[str] = []
        self.rows, self.discarded = sorted_out(seen, recipe.is_test_set, recipe.repeated_questions == "first")
        self._asks = np.array(seen.asks, dtype=np.uint64)
        self._pool: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
        for category, entries in pool.items():
            kept = np.isin([row for _, row, _ in entries], self.rows["train"])
            found = sorted((entry for entry, stays in zip(entries, kept, strict=True) if stays), reverse=True)
            self._pool[category] = [(seen.asks[row], texts) for _, row, texts in found]

    @cached_property
    def train(self) -> pa.Table:
        """The training part in memory."""
        return pa.Table.from_batches(self.batches("train"), SCHEMA)

    @cached_property
    def heldout(self) -> pa.Table:
        """The held-out part in memory."""
        return pa.Table.from_batches(self.batches("heldout"), SCHEMA)

    def forms(self) -> dict[str, int]:
        """Training pairs by form: zero_shot, few_shot, cot."""
        if not len(self.rows["train"]):
            return {}
        drawn = self._pairs["template"].take(pa.array(self.rows["train"])).to_numpy()
        counts: Counter[str] = Counter()
        for template, count in enumerate(np.bincount(drawn, minlength=len(self.recipe.templates))):
            counts[self.recipe.templates[template].form] += int(count)
        return dict(+counts)

    def batches(self, split: Split) -> Iterator[pa.RecordBatch]:
        """Pairs of one part: training pairs in the order of the records, repetitions at the end."""
        rows = self.rows[split]
        for time in range(self.recipe.repeat if split == "train" else 1):
            for start in range(0, len(rows), BATCH):
                taken = rows[start : start + BATCH]
                table = self._pairs.take(pa.array(taken))
                columns = {key: table[key].combine_chunks() for key in SCHEMA.names}
                if any(turn.shots for turn in self.recipe.templates):
                    texts, turns = zip(*self._with_examples(table, taken), strict=True)
                    columns["input"] = pa.array(texts, pa.string())
                    columns["turns"] = pa.array(turns, pa.list_(pa.int32()))
                if time:
                    columns["id"] = pa.array([f"{i}*{time}" for i in table["id"].to_pylist()], pa.string())
                yield pa.RecordBatch.from_pydict(columns, schema=SCHEMA)

    def asked(self) -> Iterator[pa.RecordBatch]:
        """Yield `ASKED` of the held-out pairs, in their order."""
        rows = self.rows["heldout"]
        for start in range(0, len(rows), BATCH):
            table = self._pairs.select(ASKED.names).take(pa.array(rows[start : start + BATCH]))
            columns = [table[key].combine_chunks() for key in ASKED.names]
            yield pa.RecordBatch.from_arrays(columns, schema=ASKED)

    def _with_examples(self, table: pa.Table, rows: np.ndarray) -> Iterator[tuple[str, list[int]]]:
        few = [turn for turn in self.recipe.templates if turn.shots]
        columns = table.select(["id", "input", "template", "at", "category"])
        for row, pair in zip(rows, columns.to_pylist(), strict=True):
            turn = self.recipe.templates[pair["template"]]
            text, turns = pair["input"], []
            if turn.shots:
                choose = self._first if turn.shots_from == "first" else self._draw
                examples = choose(pair["id"], int(self._asks[row]), turn.shots, pair["category"])
                position = few.index(turn)
                drawn = [example[position] for example in examples]
                turns = [*accumulate(map(len, drawn), initial=pair["at"])]
                text = text[: pair["at"]] + "".join(drawn) + text[pair["at"] :]
            yield text, turns

    def _draw(self, identifier: str, asks: int, shots: int, category: str) -> list[tuple[str, ...]]:
        """So many of the category's pool, none of which asks what the pair asks; fewer if it is small."""
        drawn: dict[int, tuple[str, ...]] = {}
        pool = self._pool.get(category, [])
        usable = [entry for entry in pool if entry[0] != asks] if len(pool) < 50 else pool
        self._need(usable, category)
        for attempt in range(20 * shots):
            other, texts = usable[digest(f"shot {self.recipe.seed} {attempt}", identifier) % len(usable)]
            if other != asks:
                drawn.setdefault(other, texts)
            if len(drawn) == shots:
                break
        return list(drawn.values())

    def _first(self, identifier: str, asks: int, shots: int, category: str) -> list[tuple[str, ...]]:
        """The category's first training records, but for one that asks what the pair asks."""
        del identifier  # the same examples whatever the record
        usable = [texts for other, texts in self._pool.get(category, [])[:shots] if other != asks]
        self._need(usable, category)
        return usable

    def _need(self, usable: Sized, category: str) -> None:
        if not usable:
            of = f" of {category}" if category else ""
            raise UserError(f"{self.name}: no training record{of} is left to draw examples from; add records")


def sorted_out(
    seen: Seen, keep_heldout: bool = False, first_question_only: bool = False
) -> tuple[dict[Split, np.ndarray], Counter[str]]:
    """Rows of each part in their final order, and how many pairs each rule discards.

    Args:
        seen: all pairs.
        keep_heldout: a test set is scored as it is, its repetitions too.
        first_question_only: of the pairs of a part that ask the same, the first stays.
    """
    asks, whole = np.array(seen.asks, dtype=np.uint64), np.array(seen.whole, dtype=np.uint64)
    rule, heldout = np.array(seen.rule, dtype=np.int8), np.array(seen.heldout, dtype=bool)
    first = np.zeros(len(rule), dtype=bool)
    first[np.unique(whole, return_index=True)[1]] = True
    rule[~first & ~(heldout & keep_heldout)] = RULES.index("duplicate")
    tested = np.isin(asks, asks[heldout & (rule == 0)])
    rule[~heldout & (rule == 0) & tested] = RULES.index("asked_in_heldout")
    if first_question_only:
        for part in (heldout, ~heldout):
            rows_of_part = np.flatnonzero(part & (rule == 0))
            firsts = np.unique(asks[rows_of_part], return_index=True)[1]
            rule[np.delete(rows_of_part, firsts)] = RULES.index("repeated_question")
    held = np.flatnonzero(heldout & (rule == 0))
    order = np.array(seen.order, dtype=np.uint64)[held].argsort(kind="stable")
    counts = np.bincount(rule, minlength=len(RULES)).tolist()
    rows: dict[Split, np.ndarray] = {
        "train": np.flatnonzero(~heldout & (rule == 0)),
        "heldout": held[order],
    }
    return rows, Counter(dict(zip(RULES[1:], counts[1:], strict=True)))


def spill(batches: Iterable[pa.RecordBatch], path: Path | None, schema: pa.Schema | None = None) -> pa.Table:
    """The batches as one table, mapped from the file they were written to if a path is given."""
    if path is None:
        return pa.Table.from_batches(batches, schema)
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        return pa.Table.from_batches([], schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        writer.write_batch(first)
        for batch in iterator:
            writer.write_batch(batch)
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def digest(purpose: str, identifier: str) -> int:
    """64 bits that depend on the record only; each purpose has its own, so that they are independent."""
    return xxhash.xxh3_64_intdigest(f"{purpose}:{identifier}".encode())
