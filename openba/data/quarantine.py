"""What of a source cannot be read: told with file, row and reason, counted, and set aside from the rest.

Owns the record `quarantine.parquet` and the two policies: to refuse (tasks, whose records are few and
labelled) and to write down and go on (corpora). It holds no text; the files themselves stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from openba.errors import UserError

QUARANTINE = "quarantine.parquet"
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),  # from 1; null: the whole file, or the rest of it
        ("reason", pa.string()),
    ]
)
_ROWS = 10_000
_SHOWN = 5


class Bad(NamedTuple):
    """A row, or a whole file if `row` is None, that cannot be read."""

    file: str
    row: int | None
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.file}: {self.reason}"
            if self.row is None
            else f"{self.file}: row {self.row}: {self.reason}"
        )


Tell = Callable[[Bad], None]


def refuse(bad: Bad) -> NoReturn:
    """Policy: the first one ends the reading.

    Raises:
        UserError: always.
    """
    raise UserError(str(bad))


class Quarantine:
    """Policy: write down and go on. The file is made only if there is something to write down."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []
        self._files = self._of_rows = 0
        self._first: list[str] = []

    def __call__(self, bad: Bad) -> None:
        """Take down one."""
        self._files += bad.row is None
        self._of_rows += bad.row is not None
        if len(self._first) < _SHOWN:
            self._first.append(str(bad))
        self._rows.append(bad._asdict())
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> dict[str, Any]:
        """Finish the file; facts: `files` and `rows` set aside, and the `first` of them as text."""
        if self._rows:
            self._flush()
        if self._writer:
            self._writer.close()
        return {"files": self._files, "rows": self._of_rows, "first": self._first}

    def summary(self) -> str:
        """One line for a source of which nothing is left: how much was set aside, and the first of it."""
        counts = f"{self._files} files and {self._of_rows} rows are set aside"
        return f"nothing in it can be read ({counts}); first: {self._first[0]}"

    def _flush(self) -> None:
        self._writer = self._writer or pq.ParquetWriter(self._path, SCHEMA, compression="zstd")
        self._writer.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
        self._rows = []
