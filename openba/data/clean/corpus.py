"""The step `corpus`: all sources through the filters together, with a record of what went and why.

Owns the files and facts of the step; the filters are in the modules beside it, their order in
`stages`. Sources that are not filtered (the paper's English and code) are copied as they are, and
nothing is compared with them.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openba.artifacts import Build
from openba.data.clean import privacy
from openba.data.clean.characters import find_html, find_unusual
from openba.data.clean.edits import Edit, apply
from openba.data.clean.stages import Change, Stage, run, stages
from openba.data.schema import DOCUMENTS, text_bytes, write_documents
from openba.errors import UserError
from openba.recipes.data import CorpusRecipe

REMOVED = "removed"
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
_EXAMPLES = 2
_SNIPPET = 120  # characters
_ROWS_AT_ONCE = 50_000


def build(build: Build) -> dict[str, Any]:
    """Step `corpus`: inputs are source directories by name; sources go in the order of their names.

    Writes `NAME.parquet` per source (`openba.data.schema.SCHEMA`; of filtered sources `extra` is
    emptied, since no filter has looked at it) and removed.parquet (`REMOVED_SCHEMA`), which holds
    spans and never text.

    Returns:
        Facts: `funnel`, a row per source and stage (documents and UTF-8 bytes in and out);
        `removed`, spans per stage; `examples`, up to two before and after per stage, private values
        shown as [phone], [email] and [link].

    Raises:
        UserError: nothing is left of a source, or a source has the name `removed`.
    """
    recipe: CorpusRecipe = build.recipe
    if REMOVED in recipe.sources:
        raise UserError(f"sources.{REMOVED}: that name is taken by the list of removals; choose another")
    report = _Report(build.out / f"{REMOVED}.parquet")
    order = stages(recipe.clean)
    for source, filtered in sorted(recipe.sources.items()):
        path = build.inputs[source] / DOCUMENTS
        if filtered and order:
            cleaned = _filter(path, source, order, report)
            documents, _ = write_documents(build.out / f"{source}.parquet", cleaned)
            if not documents:
                raise UserError(f"source {source}: nothing is left after cleaning; {report.worst(source)}")
        else:
            shutil.copyfile(path, build.out / f"{source}.parquet")
            report.passed(source, path)
    return report.facts(order)


def _filter(path: Path, source: str, order: list[Stage], report: _Report) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        for batch in file.read_row_group(group).combine_chunks().to_batches():
            batch = batch.set_column(4, batch.schema.field("extra"), pa.array(["{}"] * batch.num_rows))
            for stage in order:
                before = batch
                batch, changes = run(stage, before, source)
                report.count(source, stage.name, before, batch)
                report.record(source, stage.name, changes)
            yield batch


class _Report:
    """Counts, removals and examples, gathered batch by batch."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, REMOVED_SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._funnel: dict[tuple[str, str], Counter[str]] = {}
        self._removed: Counter[str] = Counter()
        self._examples: dict[str, list[dict[str, str]]] = {}

    def count(self, source: str, stage: str, before: pa.RecordBatch, after: pa.RecordBatch) -> None:
        row = self._funnel.setdefault((source, stage), Counter())
        row["documents_in"] += before.num_rows
        row["documents_out"] += after.num_rows
        row["bytes_in"] += text_bytes(before)
        row["bytes_out"] += text_bytes(after)

    def passed(self, source: str, path: Path) -> None:
        """An unfiltered source: one row, the same in and out."""
        for batch in pq.ParquetFile(path).iter_batches(columns=["text"]):
            self.count(source, "unfiltered", batch, batch)

    def record(self, source: str, stage: str, changes: list[Change]) -> None:
        examples = self._examples.setdefault(stage, [])
        for identifier, text, edits in changes:
            for edit in edits:
                if edit.rule:
                    self._removed[stage] += 1
                    self._rows.append(_row(source, identifier, stage, edit))
            if len(self._rows) >= _ROWS_AT_ONCE:
                self._write()
            if len(examples) < _EXAMPLES and (shown := _example(text, edits)):
                examples.append({"source": source, "id": identifier, **shown})

    def worst(self, source: str) -> str:
        """The stage that removed most documents of a source, for a message."""
        rows = {stage: row for (name, stage), row in self._funnel.items() if name == source}
        lost = {stage: row["documents_in"] - row["documents_out"] for stage, row in rows.items()}
        stage = max(lost, key=lambda name: lost[name])
        return f"{stage} removed {lost[stage]}; switch it off in `clean` or set clean: false for the source"

    def facts(self, order: list[Stage]) -> dict[str, Any]:
        """Close the file; what the step returns."""
        self._write()
        self._writer.close()
        return {
            "funnel": [{"source": s, "stage": stage, **row} for (s, stage), row in self._funnel.items()],
            "removed": {stage.name: self._removed[stage.name] for stage in order},
            "examples": {stage.name: self._examples.get(stage.name, []) for stage in order},
        }

    def _write(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, REMOVED_SCHEMA))
        self._rows = []


def _row(source: str, identifier: str, stage: str, edit: Edit) -> dict[str, Any]:
    where = {"source": source, "id": identifier, "stage": stage, "rule": edit.rule}
    return {**where, "start": edit.start, "end": edit.end, "survivor": edit.survivor or None}


def _example(text: str, edits: list[Edit]) -> dict[str, str] | None:
    """Before and after around the first edit; None if that would show something private."""
    masked = [edit._replace(replacement=f"[{edit.rule}]") for edit in edits if edit.rule in privacy.RULES]
    before, after = apply(text, masked) if masked else text, apply(text, edits)
    if _is_private(before) or _is_private(after):
        return None
    start = max(0, edits[0].start - _SNIPPET // 3)
    return {"before": before[start : start + _SNIPPET], "after": after[start : start + _SNIPPET]}


def _is_private(text: str) -> bool:
    """Whether a value can be read off the text, if need be behind an entity or an invisible character."""
    for find in (find_html, find_unusual):
        text = apply(text, find(text))
    return bool(privacy.find(text))
