"""Questions with lettered options, as MMLU, CMMLU and C-Eval publish them, or as JSON lines.

Owns the three forms of CSV: MMLU's without a head, CMMLU's and C-Eval's with one; and where subject and split
stand, which is in the names: `dev/anatomy_dev.csv` (MMLU, C-Eval), `dev/anatomy.csv` (CMMLU).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from openba.data import files
from openba.data.quarantine import Bad, Tell

_COLUMNS = ("question", "A", "B", "C", "D", "answer")
"""Of a file without a head."""
_NUMBERS = ("", "id")
"""Heads of the columns that number the rows."""
_SPLITS = ("dev", "val", "test", "train")


def questions(path: Path, tell: Tell, encoding: str = "utf-8") -> Iterator[tuple[int, files.Fields]]:
    """(row, record) of a file.

    A record of a CSV file has `subject`, `split`, `question`, `A` to `D` and `answer`, but for a test split
    whose answers are not public; `exam` is the subject by the file's name, in either form. Told: a file that
    is not UTF-8, a row with another number of fields, and what `files.json_lines` tells of JSON lines.
    """
    subject, split = _subject_and_split(path)
    if not path.name.endswith(".csv"):
        for number, fields in files.json_lines(path, tell, encoding):
            yield number, {"exam": subject, **fields}
        return
    text = files.text(path, tell, encoding)
    if text is None:
        return
    columns: tuple[str, ...] = _COLUMNS
    for number, row in enumerate(csv.reader(StringIO(text, newline="")), 1):
        if number == 1 and (heads := _heads(row)) is not None:
            columns = heads
        elif len(row) != len(columns):
            expected = f"{len(columns)} are expected: {', '.join(columns)}"
            tell(Bad(str(path), number, f"{len(row)} fields, {expected}"))
        else:
            fields = {name: value for name, value in zip(columns, row, strict=True) if name not in _NUMBERS}
            yield number, {"exam": subject, "subject": subject, "split": split, **fields}


def _heads(row: list[str]) -> tuple[str, ...] | None:
    """The columns' names, question and answer in lower case, if the row is a head."""
    names = tuple(name.strip().lower() if len(name.strip()) != 1 else name.strip() for name in row)
    return names if "question" in names and {"A", "B", "C", "D"} <= set(names) else None


def _subject_and_split(path: Path) -> tuple[str, str]:
    stem = path.name.partition(".")[0]
    name, _, ending = stem.rpartition("_")
    if name and ending in _SPLITS:
        return name, ending
    return stem, path.parent.name
