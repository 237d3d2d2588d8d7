"""Handlers for files and rows of a source that cannot be read.

There are two: refuse (labelled data, which is small), or record in `quarantine.parquet` and continue
(corpora). The record has file, row and reason but no text; the files themselves are not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from openba.errors import UserError

QUARANTINE = "quarantine.parquet"
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),  # from 1; null: the entire file, or the rest of it
        ("reason", pa.string()),
    ]
)
_BATCH_ROWS = 10_000
# Number of entries that the step's facts show.
_SHOWN = 5


class QuarantineFacts(TypedDict):
    """Summary of a quarantine in the facts of a step."""

    files: int
    rows: int
    first: list[str]


class Unreadable(NamedTuple):
    """Row that cannot be read, or entire file if `row` is None."""

    file: str
    row: int | None
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.file}: {self.reason}"
            if self.row is None
            else f"{self.file}: row {self.row}: {self.reason}"
        )


UnreadableHandler = Callable[[Unreadable], None]
"""Called with everything that cannot be read; reading continues unless it raises."""


def refuse(unreadable: Unreadable) -> NoReturn:
    """Stop the reading at the first bad record.

    Raises:
        UserError: always.
    """
    raise UserError(str(unreadable))


class Quarantine:
    """Handler that records and lets the reading continue. Without anything to record there is no file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[Unreadable] = []
        self._file_count = 0
        self._row_count = 0
        self._first: list[str] = []

    def __call__(self, unreadable: Unreadable) -> None:
        """Record one."""
        self._file_count += unreadable.row is None
        self._row_count += unreadable.row is not None
        if len(self._first) < _SHOWN:
            self._first.append(str(unreadable))
        self._rows.append(unreadable)
        if len(self._rows) == _BATCH_ROWS:
            self._flush()

    def close(self) -> QuarantineFacts:
        """Finish the file and return the number of files and rows recorded, and the first of them as text."""
        if self._rows:
            self._flush()
        if self._writer:
            self._writer.close()
        return QuarantineFacts(files=self._file_count, rows=self._row_count, first=self._first)

    def summary(self) -> str:
        """Return a line for a source without readable documents: counts, and the first entry."""
        counts = f"{self._file_count} files and {self._row_count} rows are set aside"
        return f"nothing in it can be read ({counts}); first: {self._first[0]}"

    def _flush(self) -> None:
        # Opened with the first rows: without any there is no file.
        self._writer = self._writer or pq.ParquetWriter(self._path, SCHEMA, compression="zstd")
        self._writer.write_table(pa.Table.from_pylist([row._asdict() for row in self._rows], SCHEMA))
        self._rows = []
