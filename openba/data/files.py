"""Local files that a source names: which they are, their state, and their records one by one.

Owns paths, folders, globs and the messages about broken files and rows, which it tells to whoever reads and
passes over. How a file is compressed and encoded is `openba.data.opening`'s; which field of a record is the
text is `openba.data.sources`'s.
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
from openba.data.quarantine import Bad, Tell
from openba.errors import UserError

BATCH_ROWS = 1000
_EMPTY = "the file is empty; remove it or write it again"

_SMALL = 2**20
"""Bytes up to which a file is identified by its contents."""
_SUFFIXES = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "text": (".txt",),
    "bio": (".txt", ".bio", ".conll"),
    "exam": (".csv", ".jsonl", ".jsonl.gz"),
    "csv": (".csv", ".tsv"),
    "warc": (".warc", ".wet"),
}
"""Names of an adapter's files end in one of these in any case, and maybe in one of `opening.SUFFIXES`."""
_TAG = re.compile(r"O|[BI]-\S+")

Fields = dict[str, Any]
"""A record: name -> value."""


def find(path: str, adapter: str) -> list[tuple[str, Path]]:
    """(name relative to the folder or the glob's fixed part, file), sorted by name.

    A relative path starts at the working directory; one into `configs/` also finds shipped files.

    Raises:
        UserError: nothing is there.
    """
    root, suffixes = _root(path), _suffixes(adapter)
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
        wanted = " or ".join(f"*{suffix}" for suffix in _SUFFIXES[adapter])
        raise UserError(f"path: {path}: no file there, wanted {wanted}; put it there or give another path")
    return files


def unread(path: str, adapter: str) -> list[Bad]:
    """Return what `find` passes over in a folder, each with the reason; nothing for a file or a glob."""
    root, suffixes = _root(path), _suffixes(adapter)
    if not root.is_dir():
        return []
    wanted = ", ".join(_SUFFIXES[adapter])
    reason = f"not read, since its name ends in none of {wanted}; name it in `path` to read it all the same"
    return [
        Bad(str(file), None, reason if file.exists() else "a link that leads nowhere")
        for _, file in below(root)
        if not (file.exists() and _is_named(file, suffixes))
    ]


def _root(path: str) -> Path:
    root = Path(path).expanduser()
    if path.startswith("configs/") and not root.exists():  # a shipped file, from wherever the command is run
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
    """(relative name, file) of the files below a folder and the folders it links to, without hidden ones."""
    files: list[tuple[str, Path]] = []
    walked: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in walked:  # a link to a folder above
            folders.clear()
            continue
        walked.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(place) / name for name in names if not name.startswith(".")]
        files += [(path.relative_to(folder).as_posix(), path) for path in paths]
    return sorted(files)


def digest(files: list[tuple[str, Path]]) -> dict[str, Any]:
    """Number of files and a digest of names and contents, of sizes and times of change for large files.

    Contents, so that a checkout elsewhere is the same source; not of large ones, as terabytes of
    text are not read to plan a run.
    """
    state = hashlib.sha256()
    for name, path in files:
        if not path.exists():  # a link that leads nowhere
            continue
        status = path.stat()
        small = status.st_size <= _SMALL
        stamp = hashlib.sha256(path.read_bytes()).hexdigest() if small else str(status.st_mtime_ns)
        state.update(f"{name}\0{status.st_size}\0{stamp}\n".encode())
    return {"files": len(files), "digest": state.hexdigest()[:16]}


def text(path: Path, tell: Tell, encoding: str = "utf-8") -> str | None:
    """Return a file's whole text without its byte order mark; None if it cannot be read, which is told."""
    try:
        with opening.Utf8Stream(path, encoding) as stream:
            content = stream.readall()
    except EOFError:
        tell(Bad(str(path), None, f"broken {opening.compression(path)}, cut off; download or write it again"))
        return None
    except opening.UnknownEncodingError as error:
        tell(Bad(str(path), None, str(error)))
        return None
    except opening.BROKEN as error:
        tell(Bad(str(path), None, f"cannot be read ({one_line(error)}); download or write it again"))
        return None
    _tell_replaced(path, stream, tell)
    try:
        if content:
            return content.decode("utf-8").removeprefix("\ufeff")
        reason = _EMPTY
    except UnicodeDecodeError as error:
        reason = _undecodable(error.start)
    tell(Bad(str(path), None, reason))
    return None


def _tell_replaced(path: Path, stream: opening.Utf8Stream, tell: Tell) -> None:
    if stream.replaced:
        tell(Bad(str(path), None, f"{stream.replaced} places are not {stream.encoding}: U+FFFD stands there"))


def json_lines(path: Path, tell: Tell, encoding: str = "utf-8") -> Iterator[tuple[int, Fields]]:
    """(row, record) of a file of JSON lines, compressed or not; rows from 1, blank lines are passed over.

    Told: an empty file, one that is broken, a line that is not UTF-8 or no JSON object.
    """
    offset = 0
    for row, line in enumerate(lines(path, tell, encoding), 1):
        if line.strip():
            fields = _parse(line, offset)
            if isinstance(fields, str):
                tell(Bad(str(path), row, fields))
            else:
                yield row, fields
        offset += len(line)


def tagged_sentences(path: Path, tell: Tell, encoding: str = "utf-8") -> Iterator[tuple[int, Fields]]:
    """(row, `{"tokens": [...], "tags": [...]}`) of a file with a token and its BIO tag a line.

    Either may be first. A sentence ends at a blank line; its row is that of its first line. Told: an empty
    file, a sentence with a line that is something else or not UTF-8.
    """
    numbered = enumerate(lines(path, tell, encoding), 1)
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


def lines(path: Path, tell: Tell, encoding: str = "utf-8") -> Iterator[bytes]:
    """Yield lines as UTF-8 bytes: text mode would also break at separators inside strings."""
    if path.stat().st_size == 0:
        return tell(Bad(str(path), None, _EMPTY))
    if archive := opening.archive(path):
        forms = ", ".join(opening.SUFFIXES)
        return tell(Bad(str(path), None, f"a {archive} archive; unpack it, or write it as one of {forms}"))
    kind = opening.compression(path)
    if kind is None and (named := opening.compression_by_name(path)):
        return tell(Bad(str(path), None, f"broken {named} (it does not begin like one); write it again"))
    if kind and (damage := opening.damage(path)):
        return tell(Bad(str(path), None, f"broken {kind} ({damage}); download or write it again"))
    row = 0
    try:
        stream = opening.Utf8Stream(path, encoding)
    except opening.UnknownEncodingError as error:
        return tell(Bad(str(path), None, str(error)))
    with io.BufferedReader(stream) as file:
        try:
            for row, line in enumerate(file, 1):  # noqa: B007 - the last row is told
                yield line
        except EOFError:
            tell(Bad(str(path), None, f"broken {kind}, cut off after row {row}; download or write it again"))
    _tell_replaced(path, stream, tell)


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
