"""Find the local files of a source, identify their state, and read their records one by one.

Files and rows that cannot be read are passed to a handler and skipped. Compression and encodings are handled
in `openba.data.opening`; which field of a record is the text is decided in `openba.data.sources`.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from openba.config import CONFIGS
from openba.data import opening
from openba.data.quarantine import Unreadable, UnreadableHandler
from openba.errors import UserError

BATCH_ROWS = 1000
_EMPTY = "the file is empty; remove it or write it again"

# Size up to which a file is identified by its contents.
_MAX_HASHED_BYTES = 2**20
# Adapter -> endings of its files' names, in any case, possibly followed by one of `opening.SUFFIXES`.
_SUFFIXES = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "text": (".txt",),
    "bio": (".txt", ".bio", ".conll"),
    "exam": (".csv", ".jsonl", ".jsonl.gz"),
    "csv": (".csv", ".tsv"),
    "warc": (".warc", ".wet"),
}
_TAG = re.compile(r"O|[BI]-\S+")

Fields = dict[str, Any]  # Any: values of whatever JSON or Parquet
"""Record: name -> value."""


def find(path: str, adapter: str) -> list[tuple[str, Path]]:
    """Return the files of a path, sorted by name.

    Args:
        path: file, folder or glob, relative to the working directory; `configs/` also finds shipped files.
        adapter: decides which files of a folder count.

    Returns:
        (name relative to the folder or to the glob's fixed part, file) each.

    Raises:
        UserError: there is no such file.
    """
    root = _root(path)
    suffixes = _suffixes(adapter)
    if root.is_dir():
        files = [(name, file) for name, file in below(root) if file.is_file() and _is_named(file, suffixes)]
    elif root.is_file():
        files = [(root.name, root)]
    elif glob.has_magic(str(root)):
        base = next(parent for parent in root.parents if not glob.has_magic(str(parent)))
        matches = [Path(match) for match in glob.glob(str(root), recursive=True)]
        files = sorted((match.relative_to(base).as_posix(), match) for match in matches if match.is_file())
    else:
        raise UserError(f"path: {path}: no such file or folder")
    if not files:
        wanted_suffixes = " or ".join(f"*{suffix}" for suffix in _SUFFIXES[adapter])
        raise UserError(
            f"path: {path}: no file there, wanted {wanted_suffixes}; put it there or give another path"
        )
    return files


def unread(path: str, adapter: str) -> list[Unreadable]:
    """Return the files of a folder that `find` skips, each with the reason; none for a file or a glob."""
    root = _root(path)
    suffixes = _suffixes(adapter)
    if not root.is_dir():
        return []
    wanted_suffixes = ", ".join(_SUFFIXES[adapter])
    reason = f"not read, since its name ends in none of {wanted_suffixes}; give its name in `path` to read it"
    return [
        Unreadable(str(file), None, reason if file.exists() else "a link that leads nowhere")
        for _, file in below(root)
        if not (file.exists() and _is_named(file, suffixes))
    ]


def _root(path: str) -> Path:
    root = Path(path).expanduser()
    if path.startswith("configs/") and not root.exists():  # a shipped file, in any working directory
        return CONFIGS.parent / path
    return root


def _suffixes(adapter: str) -> tuple[str, ...]:
    if adapter == "parquet":
        return _SUFFIXES[adapter]
    return tuple(
        suffix + compressed for suffix in _SUFFIXES[adapter] for compressed in ("", *opening.SUFFIXES)
    )


def _is_named(file: Path, suffixes: tuple[str, ...]) -> bool:
    return file.name.lower().endswith(suffixes)


def below(folder: Path) -> list[tuple[str, Path]]:
    """Return (relative name, file) of all files below a folder, following links, without hidden ones."""
    files: list[tuple[str, Path]] = []
    visited: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        # Links are followed, so a folder may be reached twice or contain itself.
        real_path = Path(parent).resolve()
        if real_path in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(real_path)
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent) / name for name in names if not name.startswith(".")]
        files += [(path.relative_to(folder).as_posix(), path) for path in paths]
    return sorted(files)


def digest(files: list[tuple[str, Path]]) -> dict[str, Any]:
    """Return the number of files and a digest of their names and states, as JSON values.

    The state of a small file is its contents, so that a copy elsewhere is the same source. That of a large
    one is its size and time of change, because terabytes of text cannot be read to plan a run.
    """
    state = hashlib.sha256()
    for name, path in files:
        if not path.exists():  # a dangling link
            continue
        status = path.stat()
        is_hashed = status.st_size <= _MAX_HASHED_BYTES
        stamp = hashlib.sha256(path.read_bytes()).hexdigest() if is_hashed else str(status.st_mtime_ns)
        state.update(f"{name}\0{status.st_size}\0{stamp}\n".encode())
    return {"files": len(files), "digest": state.hexdigest()[:16]}


def text(path: Path, on_unreadable: UnreadableHandler, encoding: str = "utf-8") -> str | None:
    """Return the text of a file without byte order mark, None if it cannot be read."""
    try:
        with opening.Utf8Stream(path, encoding) as stream:
            content = stream.readall()
    except EOFError:
        on_unreadable(
            Unreadable(
                str(path), None, f"broken {opening.compression(path)}, cut off; download or write it again"
            )
        )
        return None
    except opening.UnknownEncodingError as error:
        on_unreadable(Unreadable(str(path), None, str(error)))
        return None
    except opening.BROKEN as error:
        on_unreadable(
            Unreadable(str(path), None, f"cannot be read ({one_line(error)}); download or write it again")
        )
        return None
    _report_replaced(path, stream, on_unreadable)
    try:
        if content:
            return content.decode("utf-8").removeprefix("\ufeff")
        reason = _EMPTY
    except UnicodeDecodeError as error:
        reason = _undecodable(error.start)
    on_unreadable(Unreadable(str(path), None, reason))
    return None


def _report_replaced(path: Path, stream: opening.Utf8Stream, on_unreadable: UnreadableHandler) -> None:
    if stream.replaced:
        on_unreadable(
            Unreadable(
                str(path), None, f"{stream.replaced} places are not {stream.encoding}: U+FFFD stands there"
            )
        )


def json_lines(
    path: Path, on_unreadable: UnreadableHandler, encoding: str = "utf-8"
) -> Iterator[tuple[int, Fields]]:
    """Yield (row, record) of a file of JSON lines, compressed or not; rows from 1, blank lines are skipped.

    Unreadable are empty and corrupt files, and lines that are not UTF-8 or no JSON object.
    """
    byte_offset = 0
    for row_number, line_bytes in enumerate(lines(path, on_unreadable, encoding), 1):
        if line_bytes.strip():
            record_fields = _parse(line_bytes, byte_offset)
            if isinstance(record_fields, str):
                on_unreadable(Unreadable(str(path), row_number, record_fields))
            else:
                yield row_number, record_fields
        byte_offset += len(line_bytes)


def tagged_sentences(
    path: Path, on_unreadable: UnreadableHandler, encoding: str = "utf-8"
) -> Iterator[tuple[int, Fields]]:
    """Yield (row, `{"tokens": [...], "tags": [...]}`) of a file with a token and its BIO tag per line.

    Either may be first. A sentence ends at a blank line; its row is that of its first line. Unreadable are
    empty files, and sentences with any other line or one that is not UTF-8.
    """
    numbered = enumerate(lines(path, on_unreadable, encoding), 1)
    for is_blank, group in groupby(numbered, key=lambda item: not item[1].strip()):
        if not is_blank:
            rows = list(group)
            sentence = _sentence([line_bytes for _, line_bytes in rows])
            if isinstance(sentence, str):
                on_unreadable(Unreadable(str(path), rows[0][0], sentence))
            else:
                yield rows[0][0], sentence


def _sentence(lines: list[bytes]) -> Fields | str:
    """Return the record of a sentence's lines, or what is wrong with them."""
    try:
        cells_of_lines = [line.decode("utf-8-sig").split() for line in lines]
    except UnicodeDecodeError:
        return "a line is not UTF-8; convert the file to UTF-8"
    if all(len(cells) == 2 for cells in cells_of_lines):
        first, second = ([cells[column] for cells in cells_of_lines] for column in (0, 1))
        for tokens, tags in ((first, second), (second, first)):
            if all(map(_TAG.fullmatch, tags)):
                return {"tokens": tokens, "tags": tags}
    return "a token and its tag a line are expected, such as `Paris B-city`"


def parquet_rows(
    path: Path, on_unreadable: UnreadableHandler, columns: Callable[[pa.Schema], str | None]
) -> Iterator[tuple[int, Fields]]:
    """Yield (row, record) of a Parquet file, rows from 1.

    Unreadable are files without a readable footer or with a fault in the schema, row groups that cannot be
    read (recorded with the first missing row), and rows with a string that is not UTF-8.

    Args:
        path: the file.
        on_unreadable: handler.
        columns: returns the fault of a schema, None if it has none.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        is_empty = path.stat().st_size == 0
        reason = _EMPTY if is_empty else f"no readable Parquet ({one_line(error)}); write it again"
        return on_unreadable(Unreadable(str(path), None, reason))
    if fault := columns(file.schema_arrow):
        return on_unreadable(Unreadable(str(path), None, fault))
    row_number = 0
    for group in range(file.num_row_groups):
        end = row_number + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(BATCH_ROWS, [group]):
                yield from table_rows([batch], str(path), on_unreadable, row_number)
                row_number += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            reason = f"row group {group} cannot be read to its end, row {end} ({one_line(error)})"
            on_unreadable(Unreadable(str(path), row_number + 1, f"{reason}; write it again"))
        row_number = end


def table_rows(
    tables: Iterable[pa.Table | pa.RecordBatch],
    where: str,
    on_unreadable: UnreadableHandler,
    row_number: int = 0,
) -> Iterator[tuple[int, Fields]]:
    """Yield (row, record) of consecutive Arrow tables; rows with a string that is not UTF-8 are unreadable.

    Args:
        tables: in order.
        where: name for messages.
        on_unreadable: handler.
        row_number: number of rows before the first table.
    """
    for table in tables:
        for index in range(table.num_rows):
            row_number += 1
            try:
                yield row_number, table.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                on_unreadable(Unreadable(where, row_number, _undecodable(error.start)))


def one_line(error: Exception) -> str:
    """Return a library's message as a line for a UserError."""
    return " ".join(str(error).split())[:200]


def lines(path: Path, on_unreadable: UnreadableHandler, encoding: str = "utf-8") -> Iterator[bytes]:
    """Yield lines as UTF-8 bytes: text mode would also split at separators inside strings."""
    if path.stat().st_size == 0:
        return on_unreadable(Unreadable(str(path), None, _EMPTY))
    if archive := opening.archive(path):
        forms = ", ".join(opening.SUFFIXES)
        return on_unreadable(
            Unreadable(str(path), None, f"a {archive} archive; unpack it, or write it as one of {forms}")
        )
    compression_kind = opening.compression(path)
    if compression_kind is None and (named := opening.compression_by_name(path)):
        return on_unreadable(
            Unreadable(str(path), None, f"broken {named} (it does not begin like one); write it again")
        )
    if compression_kind and (damage := opening.damage(path)):
        return on_unreadable(
            Unreadable(str(path), None, f"broken {compression_kind} ({damage}); download or write it again")
        )
    row_number = 0
    try:
        stream = opening.Utf8Stream(path, encoding)
    except opening.UnknownEncodingError as error:
        return on_unreadable(Unreadable(str(path), None, str(error)))
    with io.BufferedReader(stream) as file:
        try:
            for row_number, line_bytes in enumerate(file, 1):  # noqa: B007 - the message has the last row
                yield line_bytes
        except EOFError:
            on_unreadable(
                Unreadable(
                    str(path),
                    None,
                    f"broken {compression_kind}, cut off after row {row_number}; download or write it again",
                )
            )
    _report_replaced(path, stream, on_unreadable)


def _parse(line_bytes: bytes, byte_offset: int) -> Fields | str:
    """Return the record of the line at byte `byte_offset` of its file, or what is wrong with the line."""
    try:
        record_fields = orjson.loads(
            line_bytes.removeprefix(codecs.BOM_UTF8) if byte_offset == 0 else line_bytes
        )
    except orjson.JSONDecodeError as error:
        try:
            line_bytes.decode("utf-8")
        except UnicodeDecodeError as undecodable:
            return _undecodable(byte_offset + undecodable.start)
        return f"no valid JSON ({error}); one object a line is expected"
    if not isinstance(record_fields, dict):
        return f"a {type(record_fields).__name__}; one JSON object a line is expected"
    return record_fields


def _undecodable(byte_offset: int) -> str:
    return f"byte {byte_offset} is not UTF-8; convert it to UTF-8"
