"""Read records of files with comma- or tab-separated values and a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from openba.data import files
from openba.data.quarantine import Unreadable, UnreadableHandler

# Characters; the default limit of the csv module, 131,072, is shorter than many documents.
_MAX_FIELD_CHARACTERS = 2**31 - 1


def records(
    path: Path, on_unreadable: UnreadableHandler, encoding: str = "utf-8"
) -> Iterator[tuple[int, files.Fields]]:
    """Yield (row, record) of a file, rows from 1, the header included.

    A file with `.tsv` in its name is separated by tabs. Unreadable are a header with a column twice, rows
    with another number of fields than the header, and rows with bytes that are not of the encoding.
    """
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    decoding_errors: list[int] = []

    def decoded_lines() -> Iterator[str]:
        for line_number, line_bytes in enumerate(files.lines(path, on_unreadable, encoding), 1):
            try:
                yield line_bytes.decode("utf-8-sig" if line_number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                decoding_errors.append(error.start)
                yield line_bytes.decode("utf-8", "replace")

    column_names: list[str] | None = None
    for row_number, values in enumerate(csv.reader(decoded_lines(), delimiter=delimiter), 1):
        if decoding_errors:
            on_unreadable(
                Unreadable(
                    str(path),
                    row_number,
                    f"byte {decoding_errors[0]} of the row is not UTF-8; set `encoding`",
                )
            )
            decoding_errors.clear()
        elif column_names is None:
            column_names = values
            if twice := next((name for name in column_names if column_names.count(name) > 1), None):
                on_unreadable(
                    Unreadable(str(path), None, f"column {twice!r} occurs twice; rename or remove one")
                )
                return
        elif values and len(values) != len(column_names):
            on_unreadable(
                Unreadable(str(path), row_number, f"{len(values)} fields, the header has {len(column_names)}")
            )
        elif values:
            yield row_number, dict(zip(column_names, values, strict=True))
