"""Local files that a source names: which they are, their state, and their records one by one.

Owns paths, folders, globs, compression and the messages about broken files. It does not know
which field of a record is the text: that is `openba.data.sources`.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from openba.config import CONFIGS
from openba.errors import UserError

BATCH_ROWS = 1000

_SMALL = 2**20
"""Bytes up to which a file is identified by its contents."""
_SUFFIXES = {"parquet": (".parquet",), "jsonl": (".jsonl", ".jsonl.gz"), "text": (".txt",)}

Fields = dict[str, Any]
"""A record: name -> value."""


def find(path: str, adapter: str) -> list[tuple[str, Path]]:
    """(name relative to the folder or the glob's fixed part, file), sorted by name.

    A relative path starts at the working directory; one into `configs/` also finds shipped files.

    Raises:
        UserError: nothing is there, or a file is empty.
    """
    root, suffixes = Path(path).expanduser(), _SUFFIXES[adapter]
    if path.startswith("configs/") and not root.exists():  # a shipped file, from wherever the command is run
        root = CONFIGS.parent / path
    if root.is_dir():
        found = below(root, suffixes)
    elif root.is_file():
        found = [(root.name, root)]
    elif glob.has_magic(str(root)):
        base = next(parent for parent in root.parents if not glob.has_magic(str(parent)))
        matches = [Path(match) for match in glob.glob(str(root), recursive=True)]
        found = sorted((match.relative_to(base).as_posix(), match) for match in matches if match.is_file())
    else:
        raise UserError(f"path: {path}: no such file or folder")
    if not found:
        wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
        raise UserError(f"path: {path}: no file there, wanted {wanted}; put it there or give another path")
    for _, file in found:
        if file.stat().st_size == 0:
            raise UserError(f"{file}: the file is empty; remove it or write it again")
    return found


def below(folder: Path, suffixes: tuple[str, ...] = ("",)) -> list[tuple[str, Path]]:
    """(relative name, file) of the files below a folder, hidden ones left out, sorted by name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name.endswith(suffixes))
    named = ((path.relative_to(folder), path) for path in files)
    return sorted((name.as_posix(), path) for name, path in named if not any(p[0] == "." for p in name.parts))


def digest(files: list[tuple[str, Path]]) -> dict[str, Any]:
    """Number of files and a digest of names and contents, of sizes and times of change for large files.

    Contents, so that a checkout elsewhere is the same source; not of large ones, as terabytes of
    text are not read to plan a run.
    """
    state = hashlib.sha256()
    for name, path in files:
        status = path.stat()
        small = status.st_size <= _SMALL
        stamp = hashlib.sha256(path.read_bytes()).hexdigest() if small else str(status.st_mtime_ns)
        state.update(f"{name}\0{status.st_size}\0{stamp}\n".encode())
    return {"files": len(files), "digest": state.hexdigest()[:16]}


def text(path: Path) -> str:
    """A whole UTF-8 file, without its byte order mark.

    Raises:
        UserError: a byte is not UTF-8; the message gives its offset.
    """
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _undecodable(str(path), error.start) from None


def json_lines(path: Path) -> Iterator[tuple[int, Fields]]:
    """(row, record) of a `.jsonl` or `.jsonl.gz` file; rows count from 1, blank lines are passed over.

    Raises:
        UserError: broken gzip, a byte that is not UTF-8, or a line that is no JSON object.
    """
    offset = 0
    for row, line in enumerate(_lines(path), 1):
        if line.strip():
            yield row, _parse(line, f"{path}: row {row}", offset)
        offset += len(line)


def parquet_rows(path: Path) -> Iterator[tuple[int, Fields]]:
    """(row, record) of a Parquet file, rows from 1.

    Raises:
        UserError: the file is no readable Parquet, or a string in it is not UTF-8.
    """
    return table_rows(_row_groups(path), str(path))


def table_rows(tables: Iterable[pa.Table | pa.RecordBatch], where: str) -> Iterator[tuple[int, Fields]]:
    """(row, record) of consecutive Arrow tables, rows from 1; raises UserError as `parquet_rows`."""
    row = 0
    for table in tables:
        for at in range(table.num_rows):
            row += 1
            try:
                yield row, table.slice(at, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                raise _undecodable(f"{where}: row {row}", error.start) from None


def one_line(error: Exception) -> str:
    """A library's message, for a UserError."""
    return " ".join(str(error).split())[:200]


def _lines(path: Path) -> Iterator[bytes]:
    # Bytes end at line feeds only; text mode would also break at separators inside strings.
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            yield from file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}: broken gzip ({error}); download or write it again") from None


def _parse(line: bytes, where: str, offset: int) -> Fields:
    try:
        fields = orjson.loads(line.removeprefix(codecs.BOM_UTF8) if offset == 0 else line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as undecodable:
            raise _undecodable(where, offset + undecodable.start) from None
        raise UserError(f"{where}: no valid JSON ({error}); one object a line is expected") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where}: a {type(fields).__name__}; one JSON object a line is expected")
    return fields


def _row_groups(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        yield from pq.ParquetFile(path).iter_batches(BATCH_ROWS)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: no readable Parquet ({one_line(error)}); write it again") from None


def _undecodable(where: str, offset: int) -> UserError:
    return UserError(f"{where}: byte {offset} is not UTF-8; convert it to UTF-8")
