"""Files that are written so that a crash or a power cut leaves the old content or the new one, never half.

Owns atomic replacement, flushing to disk, digests, the JSON that is written, and the translation of storage
errors into a line for the user.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from openba.errors import UserError
from openba.json_types import Json, JsonObject

_SAMPLED_BLOCKS = 16
_BLOCK_BYTES = 2**16
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
# safetensors reports a failed write as its own exception with the operating system's number in the text.
_NUMBER_IN_TEXT = re.compile(r"\(os error (\d+)\)")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the same folder, flush it to disk and rename it.

    The temporary name is unique over all machines: a task that was believed dead may still be writing.

    Args:
        path: of the finished file; an existing one is replaced.
        write: gets the temporary path and writes it.
    """
    _replace(path, path.with_name(f".{path.name}.{uuid4().hex}"), write)


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically and flush it and its name to disk."""
    # One fixed temporary name: what a killed process leaves is overwritten by the next one.
    partial = path.with_name(f"{path.name}.tmp")
    _replace(path, partial, lambda partial: partial.write_text(text, encoding="utf-8"))
    sync(path.parent)


def _replace(path: Path, partial: Path, write: Callable[[Path], object]) -> None:
    try:
        write(partial)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Json) -> None:
    """Write a value as JSON, with `null` for numbers that are not finite; see `write_text`."""
    write_text(path, dumps(value))


def dumps(value: Json) -> str:
    """Return standard JSON: NaN and infinity, which JSON does not have, become `null`."""
    return json.dumps(without_non_finite(value), allow_nan=False)


def without_non_finite(value: Json) -> Json:
    """Return the JSON-like value with None in place of NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_non_finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [without_non_finite(child) for child in value]
    return value


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_digest(path: Path) -> str:
    """Return a digest of the size and of sixteen blocks over a file: for terabytes, in seconds."""
    file_size = path.stat().st_size
    digest = hashlib.sha256(str(file_size).encode())
    with path.open("rb") as file:
        for number in range(_SAMPLED_BLOCKS):
            file.seek(max(0, file_size - _BLOCK_BYTES) * number // (_SAMPLED_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
            if file_size <= _BLOCK_BYTES:
                break
    return digest.hexdigest()[:16]


def signed(record: JsonObject) -> JsonObject:
    """Return a JSON record with the digest of all its other fields under `sha256`."""
    return {**record, "sha256": _digest_of_record(record)}


def is_intact(record: Json) -> bool:
    """Return whether a record read back is what `signed` returned."""
    return isinstance(record, dict) and record.get("sha256") == _digest_of_record(record)


def write_record(path: Path, record: dict[str, Json]) -> None:
    """Write a record as JSON with a digest of itself, see `write_json` and `read_record`."""
    write_json(path, signed(json.loads(dumps(record))))


def read_record(path: Path) -> dict[str, Json] | None:
    """Return a record that `write_record` wrote, without its digest; None if it is missing or damaged."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not is_intact(record):
        return None
    return {key: value for key, value in record.items() if key != "sha256"}


def storage_error(error: BaseException, folder: Path) -> UserError | None:
    """Return the line for a user if storage refused to read or write, else None.

    Args:
        error: of a write or read below `folder`.
        folder: named where the error names no file.
    """
    error_code = error_number(error)
    error_path = getattr(error, "filename", None) or folder
    if error_code in _NO_SPACE:
        return UserError(f"{folder}: no space left while writing; free some or move OPENBA_HOME")
    if error_code in _NOT_WRITABLE:
        return UserError(
            f"{error_path}: {os.strerror(error_code)}; make it writable for this user, or move OPENBA_HOME"
        )
    if error_code == errno.EIO:
        return UserError(f"{error_path}: {os.strerror(error_code)}; check the disk, then run again")
    return None


def error_number(error: BaseException) -> int | None:
    """Return the operating system's error number, also where safetensors has it in its text only."""
    if isinstance(error, OSError):
        return error.errno
    match = _NUMBER_IN_TEXT.search(str(error))
    return int(match[1]) if match else None


def _digest_of_record(record: JsonObject) -> str:
    body = {key: value for key, value in record.items() if key != "sha256"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
