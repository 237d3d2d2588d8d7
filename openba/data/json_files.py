"""Records of a JSON file in any of the three published layouts: lines, a list, or one object of records.

Owns the choice between the layouts. Lines are read one by one (openba.data.files); the other two, such as
ShareGPT's list and DialogStudio's object of dialogues, only as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from openba.data import files
from openba.data.quarantine import Bad, Tell


def records(path: Path, tell: Tell) -> Iterator[tuple[int, files.Fields]]:
    """Yield (row, record) of a file, rows from 1; `tell` is told of what cannot be read.

    An object of objects gives one record for each, with its key under `key` if it has no such field.
    """
    if path.suffix.lower() != ".json" or _is_of_lines(path):
        yield from files.json_lines(path, tell)
        return
    try:
        content = orjson.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
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


def _is_of_lines(path: Path) -> bool:
    """Whether the first line is an object by itself and another follows."""
    with path.open("rb") as file:
        first = file.readline().removeprefix(b"\xef\xbb\xbf").strip()
        rest = file.readline().strip()
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
