"""Open local files of text: detect compression and encoding, and read them as UTF-8.

Compression is recognised by a file's first bytes, not by its name. Text in another encoding than UTF-8 is
decoded with U+FFFD for invalid bytes, and these are counted.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any, cast

import charset_normalizer
import pyarrow as pa

SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".lz4": "lz4"}
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar"}
BROKEN = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, pa.ArrowException, OSError)
"""Errors that reading a corrupt file raises; a truncated one raises EOFError."""
_CHUNK = 2**20
_SAMPLE = 2**18
# Encodings among which `auto` decides if a file is neither UTF-8 nor marked as UTF-16.
_CANDIDATES = ["gb18030", "big5hkscs", "big5"]
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class UnknownEncodingError(ValueError):
    """Raised if no encoding that `auto` tries fits a file."""


def compression(path: Path) -> str | None:
    """Return how a file is compressed, by its first bytes; None if it is not."""
    return _kind_of(path, _MAGIC)


def compression_by_name(path: Path) -> str | None:
    """Return how a file is compressed by its name."""
    return SUFFIXES.get(path.suffix.lower())


def archive(path: Path) -> str | None:
    """Return the kind of archive that a file is, which is not read; None if it is none."""
    return _kind_of(path, _ARCHIVES)


def decompressed(path: Path) -> io.BufferedReader:
    """Open a file for reading, decompressed."""
    compression_kind = compression(path)
    if compression_kind == "gzip":
        return cast(io.BufferedReader, gzip.open(path))
    if compression_kind == "bzip2":
        return cast(io.BufferedReader, bz2.open(path))
    if compression_kind == "xz":
        return cast(io.BufferedReader, lzma.open(path))
    if compression_kind in ("zstd", "lz4"):
        return io.BufferedReader(_ArrowStream(path, compression_kind))
    return path.open("rb")


def damage(path: Path) -> str | None:
    """Return the error of a corrupt compressed file; None if it is intact or merely truncated.

    The lines of a truncated file are usable up to its end.
    """
    # No line can be trusted if the check sum is wrong, and the sum is at the end: hence a pass over the file,
    # at some 300 MB/s of gzip, before the first line is used.
    try:
        with decompressed(path) as opened_file:
            while opened_file.read(_CHUNK):
                pass
    except EOFError:
        return None
    except BROKEN as error:
        return " ".join(str(error).split())[:200]
    return None


class Utf8Stream(io.RawIOBase):
    """Text of a file as UTF-8 bytes, decompressed and decoded."""

    def __init__(self, path: Path, encoding: str) -> None:
        """Open a file.

        Args:
            path: the file.
            encoding: of `openba.recipes.data.Encoding`; `auto` looks at the file.

        Raises:
            UnknownEncodingError: `auto` finds none.
        """
        self.encoding = detect_encoding(path) if encoding == "auto" else encoding
        self.replaced = 0
        """Number of U+FFFD so far, in place of bytes that are invalid in the encoding."""
        self._file = decompressed(path)
        is_utf8 = self.encoding == "utf-8"  # passed on unchanged: readers report the row of an invalid byte
        self._decoder = None if is_utf8 else codecs.getincrementaldecoder(self.encoding)(errors="replace")
        self._ready = b""
        self._is_at_end = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with UTF-8; 0 at the end."""
        while not self._ready and not self._is_at_end:
            # read1, because read discards the bytes before the end of a truncated file.
            chunk_bytes = self._file.read1(_CHUNK)
            self._is_at_end = not chunk_bytes
            self._ready = chunk_bytes if self._decoder is None else self._decoded(chunk_bytes)
        byte_count = min(len(buffer), len(self._ready))
        buffer[:byte_count] = self._ready[:byte_count]
        self._ready = self._ready[byte_count:]
        return byte_count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _decoded(self, chunk_bytes: bytes) -> bytes:
        assert self._decoder is not None
        text = self._decoder.decode(chunk_bytes, final=not chunk_bytes)
        self.replaced += text.count("\ufffd")
        return text.encode("utf-8", "replace")


def detect_encoding(path: Path) -> str:
    """Return the encoding of a file: by its byte order mark, else UTF-8 if all of it is, else by its bytes.

    Raises:
        UnknownEncodingError: none of UTF-8, UTF-16, GB18030 and Big5 fits.
    """
    with decompressed(path) as opened_file:
        sample = opened_file.read(_SAMPLE)
        for mark, encoding in _MARKS.items():
            if sample.startswith(mark):
                return encoding
        decoder = codecs.getincrementaldecoder("utf-8")()
        chunk_bytes = sample
        try:
            while chunk_bytes:
                decoder.decode(chunk_bytes)
                chunk_bytes = opened_file.read(_CHUNK)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            guess = charset_normalizer.from_bytes(chunk_bytes[:_SAMPLE], cp_isolation=_CANDIDATES).best()
            if guess is None:
                raise UnknownEncodingError(
                    "its encoding is none of UTF-8, UTF-16, GB18030 and Big5; convert it to UTF-8"
                ) from None
            return guess.encoding
    return "utf-8"


class _ArrowStream(io.RawIOBase):
    """Zstd or lz4 file, decompressed by Arrow; a truncated one raises EOFError, as other formats do."""

    def __init__(self, path: Path, compression_kind: str) -> None:
        self._stream = pa.input_stream(str(path), compression=compression_kind)

    def readable(self) -> bool:
        """Return True."""
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


def _kind_of(path: Path, kinds: dict[bytes, str]) -> str | None:
    with path.open("rb") as opened_file:
        first_bytes = opened_file.read(6)
    return next(
        (compression_kind for magic, compression_kind in kinds.items() if first_bytes.startswith(magic)), None
    )
