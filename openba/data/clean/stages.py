"""The order of the filters, and what a batch goes through: texts in, texts, counts and removals out.

Owns `Batch`, which applies edits and records what they did, and the list of filters that need nothing
but the text. The two searches for copies are `dedup`'s; `shards` brings them their keys and answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from openba.data.clean import characters, columns, language, markup, privacy, sentences
from openba.data.clean.columns import END, ROW, RULE, RULE_CODE, RULES, START, Texts
from openba.data.clean.edits import Edit, apply
from openba.data.schema import SCHEMA, text_bytes
from openba.recipes.data import CleanRecipe

REMOVED_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("id", pa.string()),
        ("stage", pa.string()),
        ("rule", pa.string()),
        ("start", pa.int64()),  # characters of the text as it was when it came to the stage
        ("end", pa.int64()),
        ("survivor", pa.string()),  # source/id of the document whose copy stays; null if no duplicate
    ]
)
DOCUMENT_DEDUP, PARAGRAPH_DEDUP, DOCUMENT_DEDUP_AGAIN = (
    "document_dedup", "paragraph_dedup", "document_dedup_again",
)  # fmt: skip
EXAMPLES = 2
"""Of each rule of a stage."""
Examples = Mapping[str, list[dict[str, str]]]
"""Stage -> before and after."""
_SNIPPET = 120  # characters


class Stage(NamedTuple):
    """One filter that looks at texts alone."""

    name: str
    find: Callable[..., np.ndarray]
    """Texts -> edit matrix, in order and without overlap."""
    again: bool = False
    """It has run before: it looks only at the texts that have changed since."""


def on_characters(recipe: CleanRecipe) -> list[Stage]:
    """Return the filters between the first document dedup and the paragraph dedup.

    Privacy comes after markup and unusual characters, because both hide it: `a&#64;b.com`, a number with
    invisible characters in it. It comes again after every filter that brings together what stood apart:
    `138----1234----5678` loses its separators to the character dedup.
    """
    again = Stage("privacy_again", privacy.find, again=True)
    repeats = partial(characters.find_repeats, instances=recipe.kept_repeats, signs=recipe.kept_signs)
    order = [
        (recipe.html, Stage("html", markup.find)),
        (recipe.unusual_characters, Stage("unusual_characters", characters.find_unusual)),
        (recipe.privacy, Stage("privacy", privacy.find)),
        (recipe.character_dedup, Stage("character_dedup", repeats)),
        (recipe.privacy and recipe.character_dedup, again),
    ]
    return [stage for wanted, stage in order if wanted]


def on_documents(recipe: CleanRecipe) -> list[Stage]:
    """Return the filters after the paragraph dedup."""
    short = partial(sentences.find_short, minimum=recipe.min_words, literal=recipe.literal_sentences)
    known = partial(language.find, languages=recipe.languages)
    loses_sentences = recipe.min_words > 0 or recipe.paragraph_dedup
    order = [
        (recipe.min_words > 0, Stage("min_words", short)),
        (recipe.privacy and loses_sentences, Stage("privacy_last", privacy.find, again=True)),
        (bool(recipe.languages), Stage("languages", known)),
    ]
    return [stage for wanted, stage in order if wanted]


def names(recipe: CleanRecipe) -> list[str]:
    """All stages that a recipe switches on, in order.

    Documents are deduplicated first, on the raw text, as the paper does and to save the work on copies; and
    again last if something else is on, because cleaning makes equal what differed in a link or a space.
    """
    alone, late = ([stage.name for stage in found(recipe)] for found in (on_characters, on_documents))
    first = [DOCUMENT_DEDUP] if recipe.document_dedup else []
    runs = [PARAGRAPH_DEDUP] if recipe.paragraph_dedup else []
    again = [DOCUMENT_DEDUP_AGAIN] if recipe.document_dedup and (alone or runs or late) else []
    return [*first, *alone, *runs, *late, *again]


class Batch:
    """Documents on their way through stages: columns, texts, and what was done to them."""

    def __init__(
        self,
        source: str,
        batch: pa.RecordBatch,
        shown: Examples = MappingProxyType({}),
        checked: bool = False,
    ) -> None:
        """Documents of a source.

        Args: `shown`, examples that there are already: no more than `EXAMPLES` are made with them;
        `checked`, the texts are known to be UTF-8.
        """
        self.source, self._shown = source, shown
        self.rest = batch
        self._texts: Texts | None = None  # decoded when a filter wants characters, which copies alone do not
        self.counts: dict[str, list[int]] = {}
        """Stage -> documents in and out, UTF-8 bytes in and out."""
        self.removed: list[pa.RecordBatch] = []
        self.examples: dict[str, list[dict[str, str]]] = {}
        self._changed = np.zeros(batch.num_rows, np.bool_)
        self._bytes: int | None = None
        if not checked and (bad := columns.invalid(batch["text"])).any():
            self._take_out("input", np.flatnonzero(bad), "invalid_utf8", None)

    @property
    def texts(self) -> Texts:
        """The texts as code points."""
        if self._texts is None:
            self._texts, _ = columns.decode(self.rest["text"])
            self.rest = self.rest.select([name for name in self.rest.schema.names if name != "text"])
        return self._texts

    def run(self, stages: list[Stage]) -> None:
        """Apply stages in order."""
        for stage in stages:
            among = {"among": self._changed} if stage.again else {}
            self.apply(stage.name, stage.find(self.texts, **among))
            if stage.find is privacy.find:
                self._changed[:] = False

    def drop_blank(self, stage: str) -> None:
        """Remove documents that came without text, under the name of the stage that meets them first."""
        rows = np.flatnonzero(columns.blank(self.rest["text"]))
        if len(rows):
            size = self._size()
            self._take_out(stage, rows, "empty", None)
            self.count(stage, len(rows), 0, size - self._size(), 0)

    def remove(self, stage: str, rows: np.ndarray, rule: str, survivors: pa.Array) -> None:
        """Remove whole documents, of which the texts alone are decoded.

        Args: `survivors` per row: `source/id` of the document whose copy stays.
        """
        documents, size = self.rows, self._size()
        if len(rows):
            self._take_out(stage, rows, rule, survivors)
        self.count(stage, documents, self.rows, size, self._size())

    def apply(self, stage: str, edits: np.ndarray, survivors: pa.Array | None = None) -> None:
        """Apply a stage's edits, record them and drop the documents that have no text left.

        Args: `survivors` per edit: `source/id` of the document whose copy stays.
        """
        before, bytes_in = self.texts, self._size()
        after, bytes_out = before, bytes_in
        if len(edits):
            self._record(stage, before, edits, self.rest["id"], survivors)
            self._show(stage, before, edits, self.rest["id"])
            self._changed[edits[:, ROW]] = True
            after, rows = columns.apply(before, edits), np.unique(edits[:, ROW])
            bytes_out += columns.size_of(after, rows) - columns.size_of(before, rows)
        self._keep(after, np.diff(after.offsets) > 0)
        self._bytes = bytes_out
        self.count(stage, len(before.offsets) - 1, self.rows, bytes_in, bytes_out)

    def count(self, stage: str, *numbers: int) -> None:
        """Add to a stage's counts."""
        known = self.counts.get(stage, [0, 0, 0, 0])
        self.counts[stage] = [a + b for a, b in zip(known, numbers, strict=True)]

    @property
    def rows(self) -> int:
        """Number of documents."""
        return self.rest.num_rows

    def batch(self) -> pa.RecordBatch:
        """The documents as they are now; `extra` is emptied, since no filter looked at it."""
        known = {name: self.rest[name] for name in self.rest.schema.names}
        known["extra"] = pa.repeat(pa.scalar("{}"), self.rows)
        if self._texts is not None:
            known["text"] = columns.encode(self._texts)
        return pa.RecordBatch.from_arrays([known[name] for name in SCHEMA.names], schema=SCHEMA)

    def _size(self) -> int:
        if self._bytes is None:
            known = self._texts is not None
            self._bytes = columns.size(self.texts) if known else text_bytes(self.rest)
        return self._bytes

    def _take_out(self, stage: str, rows: np.ndarray, rule: str, survivors: pa.Array | None) -> None:
        gone = self.rest.take(pa.array(rows))
        keep = np.ones(self.rows, np.bool_)
        keep[rows] = False
        if self._texts is not None:
            texts = self._texts.take(~keep)
        elif survivors is None or len(self._shown.get(stage, ())) < EXAMPLES:
            texts, _ = columns.decode(gone["text"])
        else:  # no example is wanted: lengths are enough
            texts = Texts(np.zeros(0, np.uint32), columns.lengths(gone["text"]))
        edits = columns.whole(texts, np.arange(len(rows)), RULE_CODE[rule])
        self._record(stage, texts, edits, gone["id"], survivors)
        if survivors is not None:
            self._show(stage, texts, edits, gone["id"])
        self._bytes = None
        if self._texts is None:
            self.rest, self._changed = self.rest.filter(pa.array(keep)), self._changed[keep]
        else:
            self._keep(self._texts, keep)

    def _keep(self, texts: Texts, keep: np.ndarray) -> None:
        self._texts = texts.take(keep)
        if not keep.all():
            self.rest, self._changed = self.rest.filter(pa.array(keep)), self._changed[keep]

    def _record(
        self, stage: str, texts: Texts, edits: np.ndarray, ids: pa.Array, survivors: pa.Array | None
    ) -> None:
        told = edits[:, RULE] > 0
        if not told.any():
            return
        rows = edits[told, ROW]
        kinds = pa.array(RULES).take(pa.array(edits[told, RULE]))
        begin = texts.offsets[rows]
        places = [pa.array(edits[told, column] - begin) for column in (START, END)]
        who = pa.nulls(len(rows), pa.string()) if survivors is None else survivors
        same = [pa.repeat(pa.scalar(text), len(rows)) for text in (self.source, stage)]
        arrays = [same[0], ids.take(pa.array(rows)), same[1], kinds, *places, who]
        self.removed.append(pa.RecordBatch.from_arrays(arrays, schema=REMOVED_SCHEMA))

    def _show(self, stage: str, texts: Texts, edits: np.ndarray, ids: pa.Array) -> None:
        """Take examples of rules that have too few; rewritings without a rule are not shown."""
        mine = self.examples.setdefault(stage, [])
        known = Counter(example["rule"] for example in [*self._shown.get(stage, ()), *mine])
        for rule in np.unique(edits[:, RULE]).tolist():
            name = RULES[rule]
            if not name or known[name] >= EXAMPLES:
                continue
            for row in dict.fromkeys(edits[edits[:, RULE] == rule][:50, ROW].tolist()):
                if known[name] >= EXAMPLES:
                    break
                text, found = texts.text(row), as_edits(texts, edits[edits[:, ROW] == row])
                if shown := _example(text, found, name):
                    known[name] += 1
                    mine.append({"source": self.source, "id": ids[row].as_py(), "rule": name, **shown})


def as_edits(texts: Texts, edits: np.ndarray) -> list[Edit]:
    """Rows of an edit matrix that are of one text, as edits of that text."""
    found = []
    for row, start, end, rule, first, second, _ in edits.tolist():
        begin = int(texts.offsets[row])
        replacement = "".join(chr(code) for code in (first, second) if code)
        found.append(Edit(start - begin, end - begin, RULES[rule], replacement))
    return found


def run(recipe: CleanRecipe, source: str, batch: pa.RecordBatch) -> Batch:
    """All filters that need nothing but the texts, over one batch: what a cluster's workers may call."""
    work = Batch(source, batch)
    order = [*on_characters(recipe), *on_documents(recipe)]
    if order:
        work.drop_blank(order[0].name)
    work.run(order)
    return work


def pieces(batch: pa.RecordBatch, size: int) -> Iterator[pa.RecordBatch]:
    """The batch in slices of some `size` bytes of text, at least one document each."""
    offsets = np.frombuffer(batch["text"].buffers()[1], np.int64)[batch["text"].offset :][
        : batch.num_rows + 1
    ]
    start = 0
    while start < batch.num_rows:
        end = int(np.searchsorted(offsets, offsets[start] + size, side="right")) - 1
        end = min(max(end, start + 1), batch.num_rows)
        yield batch.slice(start, end - start)
        start = end


def add_examples(known: list[dict[str, str]], found: list[dict[str, str]]) -> None:
    """Take over what `known` has too few of."""
    for example in found:
        if sum(other["rule"] == example["rule"] for other in known) < EXAMPLES:
            known.append(example)


def _example(text: str, edits: list[Edit], rule: str) -> dict[str, str] | None:
    """Before and after around the rule's first edit; None if that would show something private."""
    masked = [e._replace(replacement=f"[{e.rule}]") if e.rule in privacy.RULES else e for e in edits]
    private = [edit for edit in masked if edit.rule in privacy.RULES]
    before, after = apply(text, private) if private else text, apply(text, edits)
    if is_private(before) or is_private(after):
        return None
    first = next(number for number, edit in enumerate(edits) if edit.rule == rule)
    at = edits[first].start
    shown = {}
    for side, whole, done in (("before", before, private), ("after", after, edits)):
        moved = sum(len(e.replacement) - (e.end - e.start) for e in done if e.end <= at)
        start = max(0, at + moved - _SNIPPET // 3)
        shown[side] = whole[start : start + _SNIPPET]
    return shown


def is_private(text: str) -> bool:
    """Whether a value can be read off the text, if need be behind an entity or an invisible character."""
    texts, _ = columns.decode(pa.array([text], pa.large_string()))
    for find in (markup.find, characters.find_unusual):
        texts = columns.apply(texts, find(texts))
    return len(privacy.find(texts)) > 0


def counted(summed: dict[tuple[str, str], list[int]]) -> list[dict[str, Any]]:
    """The funnel's rows."""
    keys = ("documents_in", "documents_out", "bytes_in", "bytes_out")
    return [
        {"source": source, "stage": stage, **dict(zip(keys, numbers, strict=True))}
        for (source, stage), numbers in summed.items()
    ]
