"""Local files that a source names: which they are, their state, and their records one by one.

Owns paths, folders, globs, compression and the messages about broken files and rows, which it tells to
whoever reads and passes over. It does not know which field of a record is the text: that is
`openba.data.sources`.
"""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import hashlib
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

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
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "text": (".txt",),
    "bio": (".txt", ".bio", ".conll"),
    "exam": (".csv", ".jsonl", ".jsonl.gz"),
}
"""Names of an adapter's files end in one of these, in capitals or not, and maybe in one of `_COMPRESSED`."""
_COMPRESSED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of the forms of compression that are read, whatever a file is called."""
_ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar", b"\x04\x22\x4d\x18": "lz4"}
_BROKEN = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, pa.ArrowException, OSError)
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
    return tuple(suffix + compressed for suffix in _SUFFIXES[adapter] for compressed in ("", *_COMPRESSED))


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


def text(path: Path, tell: Tell) -> str | None:
    """A whole UTF-8 file, without its byte order mark; None if it cannot be read, which is told."""
    try:
        with _opened(path) as file:
            content = file.read()
    except EOFError:
        tell(Bad(str(path), None, f"broken {_compression(path)}, cut off; download or write it again"))
        return None
    except _BROKEN as error:
        tell(Bad(str(path), None, f"cannot be read ({one_line(error)}); download or write it again"))
        return None
    try:
        if content:
            return content.decode("utf-8").removeprefix("\ufeff")
        told = _EMPTY
    except UnicodeDecodeError as error:
        told = _undecodable(error.start)
    tell(Bad(str(path), None, told))
    return None


def json_lines(path: Path, tell: Tell) -> Iterator[tuple[int, Fields]]:
    """(row, record) of a file of JSON lines, compressed or not; rows from 1, blank lines are passed over.

    Told: an empty file, one that is broken, a line that is not UTF-8 or no JSON object.
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
    if archive := _archive(path):
        return tell(
            Bad(str(path), None, f"a {archive} archive; unpack it, or write it as .gz, .bz2, .xz or .zst")
        )
    kind = _compression(path)
    if kind is None and (named := _named_compression(path)):
        return tell(Bad(str(path), None, f"broken {named} (it does not begin like one); write it again"))
    if kind and (damage := _damage(path)):
        return tell(Bad(str(path), None, f"broken {kind} ({damage}); download or write it again"))
    row = 0
    with _opened(path) as file:
        try:
            for row, line in enumerate(file, 1):  # noqa: B007 - the last row is told
                yield line
        except EOFError:
            tell(Bad(str(path), None, f"broken {kind}, cut off after row {row}; download or write it again"))


def _compression(path: Path) -> str | None:
    """How a file is compressed, by its first bytes; None if it is not."""
    return _kind_of(path, _MAGIC)


def _named_compression(path: Path) -> str | None:
    """How a file is compressed by its name."""
    return _COMPRESSED.get(path.suffix.lower())


def _archive(path: Path) -> str | None:
    return _kind_of(path, _ARCHIVES)


def _kind_of(path: Path, kinds: dict[bytes, str]) -> str | None:
    with path.open("rb") as file:
        head = file.read(6)
    return next((kind for magic, kind in kinds.items() if head.startswith(magic)), None)


def _opened(path: Path) -> BinaryIO:
    """Open a file for reading what it holds, decompressed."""
    kind = _compression(path)
    if kind == "gzip":
        return cast(BinaryIO, gzip.open(path))
    if kind == "bzip2":
        return cast(BinaryIO, bz2.open(path))
    if kind == "xz":
        return cast(BinaryIO, lzma.open(path))
    return io.BufferedReader(_Zstd(path)) if kind == "zstd" else path.open("rb")


class _Zstd(io.RawIOBase):
    """A zstd file, decompressed by Arrow. Arrow reads a file that is cut off as if it had ended there."""

    def __init__(self, path: Path) -> None:
        self._stream = pa.input_stream(str(path), compression="zstd")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer."""
        try:
            content = self._stream.read(len(buffer))
        except OSError as error:
            if "runcated" in str(error):
                raise EOFError from None
            raise
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()


def _damage(path: Path) -> str | None:
    """What is wrong with a compressed file beside its being cut off, which leaves what comes before intact.

    Of a file that fails its check sum no line can be trusted, and the sum stands at the end: hence a pass of
    its own over the file, at some 300 MB/s of gzip, before the first line is used.
    """
    try:
        with _opened(path) as file:
            while file.read(_CHUNK):
                pass
    except EOFError:
        return None
    except _BROKEN as error:
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
