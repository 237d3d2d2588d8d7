"""Read questions with lettered options, as MMLU, CMMLU and C-Eval publish them, or as JSON lines.

MMLU's CSV files have no header, those of CMMLU and C-Eval have one. Subject and split are in the names:
`dev/anatomy_dev.csv` (MMLU, C-Eval), `dev/anatomy.csv` (CMMLU).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from openba.data import files
from openba.data.quarantine import Unreadable, UnreadableHandler

_COLUMNS = ("question", "A", "B", "C", "D", "answer")
"""Columns of a file without a header."""
_ROW_NUMBER_COLUMNS = ("", "id")
_SPLITS = ("dev", "val", "test", "train")


def questions(
    path: Path, on_unreadable: UnreadableHandler, encoding: str = "utf-8"
) -> Iterator[tuple[int, files.Fields]]:
    """Yield (row, record) of a file, rows from 1.

    A record of a CSV file has `subject`, `split`, `question`, `A` to `D` and, unless the answers of a test
    split are not public, `answer`; `exam` is the subject by the file's name, in either form.

    Args:
        path: CSV or JSON lines.
        on_unreadable: called with a file that is not UTF-8, a row with another number of fields, and what
            `files.json_lines` cannot read.
        encoding: see `openba.data.opening.Utf8Stream`.
    """
    subject, split = _subject_and_split(path)
    if not path.name.endswith(".csv"):
        for number, fields in files.json_lines(path, on_unreadable, encoding):
            yield number, {"exam": subject, **fields}
        return
    # In one piece: a quoted field may contain line feeds.
    text = files.text(path, on_unreadable, encoding)
    if text is None:
        return
    columns: tuple[str, ...] = _COLUMNS
    for number, row in enumerate(csv.reader(StringIO(text, newline="")), 1):
        if number == 1 and (header := _header(row)) is not None:
            columns = header
        elif len(row) != len(columns):
            expected = f"{len(columns)} are expected: {', '.join(columns)}"
            on_unreadable(Unreadable(str(path), number, f"{len(row)} fields, {expected}"))
        else:
            named = zip(columns, row, strict=True)
            fields = {name: value for name, value in named if name not in _ROW_NUMBER_COLUMNS}
            yield number, {"exam": subject, "subject": subject, "split": split, **fields}


def _header(row: list[str]) -> tuple[str, ...] | None:
    """Return the columns' names, question and answer in lower case, if the row is a header."""
    names = tuple(name.strip().lower() if len(name.strip()) != 1 else name.strip() for name in row)
    return names if "question" in names and {"A", "B", "C", "D"} <= set(names) else None


def _subject_and_split(path: Path) -> tuple[str, str]:
    stem = path.name.partition(".")[0]
    name, _, ending = stem.rpartition("_")
    if name and ending in _SPLITS:
        return name, ending
    return stem, path.parent.name
