"""Read records of a JSON file in any of the three published layouts: lines, a list, or one object of records.

Lines are read one by one (`openba.data.files`); the other two, such as ShareGPT's list and DialogStudio's
object of dialogues, are read into memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from openba.data import files, opening
from openba.data.quarantine import Unreadable, UnreadableHandler


def records(
    path: Path, on_unreadable: UnreadableHandler, encoding: str = "utf-8"
) -> Iterator[tuple[int, files.Fields]]:
    """Yield (row, record) of a file, rows from 1.

    An object of objects gives one record for each, with its key under `key` if it has no such field.

    Args:
        path: the file.
        on_unreadable: called with what cannot be read.
        encoding: see `openba.data.opening.Utf8Stream`.
    """
    is_compressed = path.suffix.lower() in opening.SUFFIXES
    suffix = Path(path.stem).suffix if is_compressed else path.suffix
    if suffix.lower() != ".json" or _has_json_lines(path, encoding):
        yield from files.json_lines(path, on_unreadable, encoding)
        return
    text = files.text(path, on_unreadable, encoding)
    if text is None:
        return
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        on_unreadable(
            Unreadable(
                str(path),
                None,
                f"no valid JSON ({error}); one object a line, or a list of objects, is expected",
            )
        )
        return
    for row, record in enumerate(_records_of(content), 1):
        if isinstance(record, dict):
            yield row, record
        else:
            on_unreadable(Unreadable(str(path), row, f"a {type(record).__name__}; a JSON object is expected"))


def _has_json_lines(path: Path, encoding: str) -> bool:
    """Return whether the first line is a complete object and another line follows."""
    try:
        with io.BufferedReader(opening.Utf8Stream(path, encoding)) as file:
            first_line = file.readline().removeprefix(b"\xef\xbb\xbf").strip()
            second_line = file.readline().strip()
    except (opening.UnknownEncodingError, EOFError, *opening.BROKEN):
        return True  # reading its lines reports what is wrong with the file
    if not first_line.startswith(b"{") or not second_line:
        return False
    try:
        orjson.loads(first_line)
    except orjson.JSONDecodeError:
        return False
    return True


def _records_of(content: Any) -> list[Any]:  # Any: values of whatever JSON
    if isinstance(content, list):
        return content
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        return [{"key": key, **value} for key, value in content.items()]
    return [content]
