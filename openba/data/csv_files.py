"""Records of files with comma- or tab-separated values under a head of column names."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from openba.data import files
from openba.data.quarantine import Bad, Tell

_LONGEST_FIELD = 2**31 - 1
"""Characters; the module's own limit of 131,072 is shorter than many documents."""


def records(path: Path, tell: Tell, encoding: str = "utf-8") -> Iterator[tuple[int, files.Fields]]:
    """Yield (row, record) of a file; rows are counted from 1, the head of column names included.

    A file with `.tsv` in its name is separated by tabs. Told: a head that names a column twice, a row with
    another number of fields than the head, a row with bytes that are not of the encoding.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    undecodable: list[int] = []

    def decoded_lines() -> Iterator[str]:
        for number, line in enumerate(files.lines(path, tell, encoding), 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                undecodable.append(error.start)
                yield line.decode("utf-8", "replace")

    head: list[str] | None = None
    for row, values in enumerate(csv.reader(decoded_lines(), delimiter=delimiter), 1):
        if undecodable:
            tell(Bad(str(path), row, f"byte {undecodable[0]} of the row is not UTF-8; set `encoding`"))
            undecodable.clear()
        elif head is None:
            head = values
            if twice := next((name for name in head if head.count(name) > 1), None):
                tell(Bad(str(path), None, f"column {twice!r} occurs twice; rename or remove one"))
                return
        elif values and len(values) != len(head):
            tell(Bad(str(path), row, f"{len(values)} fields, the head has {len(head)}"))
        elif values:
            yield row, dict(zip(head, values, strict=True))
