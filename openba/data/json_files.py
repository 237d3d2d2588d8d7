"""Records of a JSON file in any of the three published layouts: lines, a list, or one object of records.

Owns the choice between the layouts. Lines are read one by one (openba.data.files); the other two, such as
ShareGPT's list and DialogStudio's object of dialogues, only as a whole.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from openba.data import files, opening
from openba.data.quarantine import Bad, Tell


def records(path: Path, tell: Tell, encoding: str = "utf-8") -> Iterator[tuple[int, files.Fields]]:
    """Yield (row, record) of a file, rows from 1; `tell` is told of what cannot be read.

    An object of objects gives one record for each, with its key under `key` if it has no such field.
    """
    is_compressed = path.suffix.lower() in opening.SUFFIXES
    suffix = Path(path.stem).suffix if is_compressed else path.suffix
    if suffix.lower() != ".json" or _is_of_lines(path, encoding):
        yield from files.json_lines(path, tell, encoding)
        return
    text = files.text(path, tell, encoding)
    if text is None:
        return
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        tell(
            Bad(
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
            tell(Bad(str(path), row, f"a {type(record).__name__}; a JSON object is expected"))


def _is_of_lines(path: Path, encoding: str) -> bool:
    """Return whether the first line is an object by itself and another follows."""
    try:
        with io.BufferedReader(opening.Utf8Stream(path, encoding)) as file:
            first = file.readline().removeprefix(b"\xef\xbb\xbf").strip()
            rest = file.readline().strip()
    except (opening.UnknownEncodingError, EOFError, *opening.BROKEN):
        return True  # its lines are read, which says what is wrong with the file
    if not first.startswith(b"{") or not rest:
        return False
    try:
        orjson.loads(first)
    except orjson.JSONDecodeError:
        return False
    return True


def _records_of(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        return [{"key": key, **value} for key, value in content.items()]
    return [content]
