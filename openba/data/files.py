"""Local files that a source names: which they are, their state, and their records one by one.

Owns paths, folders, globs, compression and the messages about broken files and rows, which it tells to
whoever reads and passes over. It does not know which field of a record is the text: that is
`openba.data.sources`.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from openba.config import CONFIGS
from openba.data.quarantine import Bad, Tell
from openba.errors import UserError

BATCH_ROWS = 1000
_CHUNK = 2**20
_EMPTY = "the file is empty; remove it or write it again"

_SMALL = 2**20
"""Bytes up to which a file is identified by its contents."""
_SUFFIXES = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".jsonl.gz"),
    "text": (".txt",),
    "bio": (".txt", ".bio", ".conll"),
    "exam": (".csv", ".jsonl", ".jsonl.gz"),
}
_TAG = re.compile(r"O|[BI]-\S+")

Fields = dict[str, Any]
"""A record: name -> value."""


def find(path: str, adapter: str) -> list[tuple[str, Path]]:
    """(name relative to the folder or the glob's fixed part, file), sorted by name.

    A relative path starts at the working directory; one into `configs/` also finds shipped files.

    Raises:
        UserError: nothing is there.
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


def text(path: Path, tell: Tell) -> str | None:
    """A whole UTF-8 file, without its byte order mark; None if a byte is not UTF-8, told with its offset."""
    content = path.read_bytes()
    try:
        if content:
            return content.decode("utf-8").removeprefix("\ufeff")
        told = _EMPTY
    except UnicodeDecodeError as error:
        told = _undecodable(error.start)
    tell(Bad(str(path), None, told))
    return None


def json_lines(path: Path, tell: Tell) -> Iterator[tuple[int, Fields]]:
    """(row, record) of a `.jsonl` or `.jsonl.gz` file; rows count from 1, blank lines are passed over.

    Told: an empty file, broken gzip, a line that is not UTF-8 or no JSON object.
    """
    offset = 0
    for row, line in enumerate(_lines(path, tell), 1):
        if line.strip():
            fields = _parse(line, offset)
            if isinstance(fields, str):
                tell(Bad(str(path), row, fields))
            else:
                yield row, fields
        offset += len(line)


def tagged_sentences(path: Path, tell: Tell) -> Iterator[tuple[int, Fields]]:
    """(row, `{"tokens": [...], "tags": [...]}`) of a file with a token and its BIO tag a line.

    Either may be first. A sentence ends at a blank line; its row is that of its first line. Told: an empty
    file, a sentence with a line that is something else or not UTF-8.
    """
    numbered = enumerate(_lines(path, tell), 1)
    for blank, group in groupby(numbered, key=lambda item: not item[1].strip()):
        if not blank:
            rows = list(group)
            sentence = _sentence([line for _, line in rows])
            if isinstance(sentence, str):
                tell(Bad(str(path), rows[0][0], sentence))
            else:
                yield rows[0][0], sentence


def _sentence(lines: list[bytes]) -> Fields | str:
    """The record of a sentence's lines, or what is wrong with them."""
    try:
        cells = [line.decode("utf-8-sig").split() for line in lines]
    except UnicodeDecodeError:
        return "a line is not UTF-8; convert the file to UTF-8"
    if all(len(line) == 2 for line in cells):
        first, second = ([line[column] for line in cells] for column in (0, 1))
        for tokens, tags in ((first, second), (second, first)):
            if all(map(_TAG.fullmatch, tags)):
                return {"tokens": tokens, "tags": tags}
    return "a token and its tag a line are expected, such as `Paris B-city`"


def parquet_rows(
    path: Path, tell: Tell, columns: Callable[[pa.Schema], str | None]
) -> Iterator[tuple[int, Fields]]:
    """(row, record) of a Parquet file, rows from 1.

    Told: a file without a readable end, one in whose schema `columns` finds a fault, row groups that cannot
    be read (their row is the first that is missing) and rows with a string that is not UTF-8.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        empty = path.stat().st_size == 0
        told = _EMPTY if empty else f"no readable Parquet ({one_line(error)}); write it again"
        return tell(Bad(str(path), None, told))
    if fault := columns(file.schema_arrow):
        return tell(Bad(str(path), None, fault))
    row = 0
    for group in range(file.num_row_groups):
        end = row + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(BATCH_ROWS, [group]):
                yield from table_rows([batch], str(path), tell, row)
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            told = (
                f"row group {group} cannot be read to its end, row {end} ({one_line(error)}); write it again"
            )
            tell(Bad(str(path), row + 1, told))
        row = end


def table_rows(
    tables: Iterable[pa.Table | pa.RecordBatch], where: str, tell: Tell, row: int = 0
) -> Iterator[tuple[int, Fields]]:
    """(row, record) of consecutive Arrow tables after so many rows; a string that is not UTF-8 is told."""
    for table in tables:
        for at in range(table.num_rows):
            row += 1
            try:
                yield row, table.slice(at, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                tell(Bad(where, row, _undecodable(error.start)))


def one_line(error: Exception) -> str:
    """A library's message, for a UserError."""
    return " ".join(str(error).split())[:200]


def _lines(path: Path, tell: Tell) -> Iterator[bytes]:
    """Lines as bytes: text mode would also break at separators inside strings."""
    if path.stat().st_size == 0:
        return tell(Bad(str(path), None, _EMPTY))
    zipped = path.suffix == ".gz"
    if zipped and (damage := _damage(path)):
        return tell(Bad(str(path), None, f"broken gzip ({damage}); download or write it again"))
    row = 0
    with gzip.open(path) if zipped else path.open("rb") as file:
        try:
            for row, line in enumerate(file, 1):  # noqa: B007 - the last row is told
                yield line
        except EOFError:
            tell(Bad(str(path), None, f"broken gzip, cut off after row {row}; download or write it again"))


def _damage(path: Path) -> str | None:
    """What is wrong with a gzip file beside its being cut off, which leaves what comes before as it was.

    Of a file that fails its check sum no line can be trusted, and the sum stands at the end: hence a pass of
    its own over the file, at some 300 MB/s, before the first line is used.
    """
    try:
        with gzip.open(path) as file:
            while file.read(_CHUNK):
                pass
    except EOFError:
        return None
    except (gzip.BadGzipFile, zlib.error) as error:
        return one_line(error)
    return None


def _parse(line: bytes, offset: int) -> Fields | str:
    """The record, or what is wrong with the line that begins at `offset` of its file."""
    try:
        fields = orjson.loads(line.removeprefix(codecs.BOM_UTF8) if offset == 0 else line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as undecodable:
            return _undecodable(offset + undecodable.start)
        return f"no valid JSON ({error}); one object a line is expected"
    if not isinstance(fields, dict):
        return f"a {type(fields).__name__}; one JSON object a line is expected"
    return fields


def _undecodable(offset: int) -> str:
    return f"byte {offset} is not UTF-8; convert it to UTF-8"
