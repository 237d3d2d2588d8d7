"""Apply stages to a batch of documents, and record counts, removals and examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from openba.data.clean import edit_matrix, text_arrays
from openba.data.clean.edit_matrix import END, ROW, RULE, START
from openba.data.clean.examples import EXAMPLES, Example, ExamplesByStage, collect_examples
from openba.data.clean.filter import Stage
from openba.data.clean.privacy import Privacy
from openba.data.clean.stages import INPUT
from openba.data.clean.text_arrays import Texts
from openba.data.schema import SCHEMA, text_bytes

REMOVED_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("id", pa.string()),
        ("stage", pa.string()),
        ("rule", pa.string()),
        ("start", pa.int64()),  # characters of the text as it was before the stage
        ("end", pa.int64()),
        ("survivor", pa.string()),  # source/id of the document whose copy stays; null if no duplicate
    ]
)
StageCounts = list[int]
"""Documents in and out, UTF-8 bytes in and out."""


class Batch:
    """Documents on their way through the stages, with what was done to them."""

    def __init__(
        self,
        source: str,
        document_batch: pa.RecordBatch,
        existing_examples: ExamplesByStage = MappingProxyType({}),
        is_valid_utf8: bool = False,
    ) -> None:
        """Take documents of one source.

        Args:
            source: its name.
            document_batch: columns of `SCHEMA`, `extra` may be absent.
            existing_examples: no more than `EXAMPLES` per rule are made together with these.
            is_valid_utf8: the texts have been validated before.
        """
        self.source = source
        self.columns = document_batch
        """Columns of the remaining documents; without `text` once the texts are decoded."""
        self.counts: dict[str, StageCounts] = {}
        self.removed: list[pa.RecordBatch] = []
        """Rows of `REMOVED_SCHEMA`."""
        self.examples: dict[str, list[Example]] = {}
        self._existing_examples = existing_examples
        self._texts: Texts | None = None  # decoded when a filter needs characters; deduplication does not
        self._is_changed = np.zeros(document_batch.num_rows, np.bool_)  # since the last run of Privacy
        self._utf8_size: int | None = None
        if not is_valid_utf8 and (is_invalid := text_arrays.find_invalid(document_batch["text"])).any():
            self._remove_rows(INPUT, np.flatnonzero(is_invalid), "invalid_utf8", None)

    @property
    def texts(self) -> Texts:
        """Texts of the remaining documents as code points."""
        if self._texts is None:
            self._texts, _ = text_arrays.decode(self.columns["text"])
            self.columns = self.columns.select([name for name in self.columns.schema.names if name != "text"])
        return self._texts

    @property
    def row_count(self) -> int:
        """Number of remaining documents."""
        return self.columns.num_rows

    def run(self, stages: Sequence[Stage]) -> None:
        """Apply stages in order."""
        for stage in stages:
            if isinstance(stage.filter, Privacy):
                edits = stage.filter.find(self.texts, self._is_changed if stage.only_changed else None)
                self.apply(stage.name, edits, stage.filter.rules)
                self._is_changed[:] = False
            else:
                self.apply(stage.name, stage.filter.find(self.texts), stage.filter.rules)

    def remove_blank(self, stage_name: str) -> None:
        """Remove documents without text and count them as removed by the given stage."""
        row_numbers = np.flatnonzero(text_arrays.find_blank(self.columns["text"]))
        if len(row_numbers):
            size_before = self._size()
            self._remove_rows(stage_name, row_numbers, "empty", None)
            self._count(stage_name, len(row_numbers), 0, size_before - self._size(), 0)

    def remove_documents(
        self, stage_name: str, row_numbers: np.ndarray, rule: str, survivors: pa.Array
    ) -> None:
        """Remove documents without decoding the texts of the others.

        Args:
            stage_name: name under which they are recorded.
            row_numbers: int64 `[removed]`.
            rule: reason for all.
            survivors: `source/id` of the document whose copy stays, Arrow strings `[removed]`.
        """
        documents_before = self.row_count
        size_before = self._size()
        if len(row_numbers):
            self._remove_rows(stage_name, row_numbers, rule, survivors)
        self._count(stage_name, documents_before, self.row_count, size_before, self._size())

    def apply(
        self, stage_name: str, edits: np.ndarray, rules: Sequence[str], survivors: pa.Array | None = None
    ) -> None:
        """Apply a stage's edits, record them and remove the documents that have no text left.

        Args:
            stage_name: its name.
            edits: edit matrix.
            rules: rules of the stage's filter.
            survivors: `source/id` of the document whose copy stays, Arrow strings `[edits]`.
        """
        texts_before = self.texts
        size_before = self._size()
        texts_after = texts_before
        size_after = size_before
        if len(edits):
            row_numbers = np.unique(edits[:, ROW])
            self._record(stage_name, texts_before, edits, rules, self.columns["id"], survivors)
            self._add_examples(stage_name, texts_before, edits, rules, self.columns["id"])
            self._is_changed[row_numbers] = True
            texts_after = edit_matrix.apply(texts_before, edits)
            size_after += text_arrays.utf8_size_of(texts_after, row_numbers)
            size_after -= text_arrays.utf8_size_of(texts_before, row_numbers)
        self._select(texts_after, np.diff(texts_after.offsets) > 0)
        self._utf8_size = size_after
        self._count(stage_name, len(texts_before.offsets) - 1, self.row_count, size_before, size_after)

    def documents(self) -> pa.RecordBatch:
        """Return the remaining documents; `extra` is emptied, since no filter has cleaned it."""
        columns = {name: self.columns[name] for name in self.columns.schema.names}
        columns["extra"] = pa.repeat(pa.scalar("{}"), self.row_count)
        if self._texts is not None:
            columns["text"] = text_arrays.encode(self._texts)
        return pa.RecordBatch.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)

    def _count(self, stage_name: str, *numbers: int) -> None:
        add_counts(self.counts, {stage_name: list(numbers)})

    def _size(self) -> int:
        """Return the UTF-8 bytes of the remaining texts."""
        if self._utf8_size is None:
            is_decoded = self._texts is not None
            self._utf8_size = text_arrays.utf8_size(self.texts) if is_decoded else text_bytes(self.columns)
        return self._utf8_size

    def _remove_rows(
        self, stage_name: str, row_numbers: np.ndarray, rule: str, survivors: pa.Array | None
    ) -> None:
        removed = self.columns.take(pa.array(row_numbers))
        is_remaining = np.ones(self.row_count, np.bool_)
        is_remaining[row_numbers] = False
        if self._texts is not None:
            texts = self._texts.take(~is_remaining)
        elif survivors is None or len(self._existing_examples.get(stage_name, ())) < EXAMPLES:
            texts, _ = text_arrays.decode(removed["text"])
        else:  # no example is needed: the record of a removal needs lengths only
            texts = Texts(np.zeros(0, np.uint32), text_arrays.character_offsets(removed["text"]))
        edits = edit_matrix.remove_rows(texts, np.arange(len(row_numbers)), 1)
        self._record(stage_name, texts, edits, (rule,), removed["id"], survivors)
        if survivors is not None:
            self._add_examples(stage_name, texts, edits, (rule,), removed["id"])
        self._utf8_size = None
        if self._texts is None:
            self.columns = self.columns.filter(pa.array(is_remaining))
            self._is_changed = self._is_changed[is_remaining]
        else:
            self._select(self._texts, is_remaining)

    def _select(self, texts: Texts, is_selected: np.ndarray) -> None:
        self._texts = texts.take(is_selected)
        if not is_selected.all():
            self.columns = self.columns.filter(pa.array(is_selected))
            self._is_changed = self._is_changed[is_selected]

    def _record(
        self,
        stage_name: str,
        texts: Texts,
        edits: np.ndarray,
        rules: Sequence[str],
        ids: pa.Array,
        survivors: pa.Array | None,
    ) -> None:
        """Add the removals of an edit matrix, but not its rewritings, to `removed`."""
        is_removal = edits[:, RULE] > 0
        if not is_removal.any():
            return
        row_numbers = edits[is_removal, ROW]
        text_starts = texts.offsets[row_numbers]
        arrays = [
            pa.repeat(pa.scalar(self.source), len(row_numbers)),
            ids.take(pa.array(row_numbers)),
            pa.repeat(pa.scalar(stage_name), len(row_numbers)),
            pa.array(rules).take(pa.array(edits[is_removal, RULE] - 1)),
            pa.array(edits[is_removal, START] - text_starts),
            pa.array(edits[is_removal, END] - text_starts),
            pa.nulls(len(row_numbers), pa.string()) if survivors is None else survivors,
        ]
        self.removed.append(pa.RecordBatch.from_arrays(arrays, schema=REMOVED_SCHEMA))

    def _add_examples(
        self, stage_name: str, texts: Texts, edits: np.ndarray, rules: Sequence[str], ids: pa.Array
    ) -> None:
        own_examples = self.examples.setdefault(stage_name, [])
        existing = [*self._existing_examples.get(stage_name, ()), *own_examples]
        own_examples += collect_examples(self.source, ids, texts, edits, rules, existing)


def add_counts(totals: dict[str, StageCounts], counts: Mapping[str, StageCounts]) -> None:
    """Add counts per stage to the totals."""
    for stage_name, numbers in counts.items():
        total = totals.get(stage_name, [0, 0, 0, 0])
        totals[stage_name] = [first + second for first, second in zip(total, numbers, strict=True)]


def split_batch(document_batch: pa.RecordBatch, size: int) -> Iterator[pa.RecordBatch]:
    """Yield slices with about `size` bytes of text each, at least one document."""
    column = document_batch["text"]
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset :][: document_batch.num_rows + 1]
    # Small enough for the processor's cache; a single larger document is a slice of its own.
    start = 0
    while start < document_batch.num_rows:
        end = int(np.searchsorted(offsets, offsets[start] + size, side="right")) - 1
        end = min(max(end, start + 1), document_batch.num_rows)
        yield document_batch.slice(start, end - start)
        start = end
