"""Open local files of text: find how they are compressed and encoded, and read them as UTF-8.

Compression is recognised by a file's first bytes, whatever its name says. Text in another encoding than
UTF-8 is decoded with U+FFFD in place of what the encoding does not have, and that is counted.
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
"""What reading a damaged file raises, beside EOFError for one that is cut off."""
_CHUNK = 2**20
_SAMPLE = 2**18
_CANDIDATES = ["gb18030", "big5hkscs", "big5"]
"""Encodings that `auto` tells apart once a file is neither UTF-8 nor marked as UTF-16."""
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class UnknownEncodingError(ValueError):
    """No encoding that `auto` knows fits a file."""


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
    """Open a file for reading what it holds, decompressed."""
    kind = compression(path)
    if kind == "gzip":
        return cast(io.BufferedReader, gzip.open(path))
    if kind == "bzip2":
        return cast(io.BufferedReader, bz2.open(path))
    if kind == "xz":
        return cast(io.BufferedReader, lzma.open(path))
    if kind in ("zstd", "lz4"):
        return io.BufferedReader(_ArrowStream(path, kind))
    return path.open("rb")


def damage(path: Path) -> str | None:
    """Return what is wrong with a compressed file beside its being cut off, which spares what comes before.

    Of a file that fails its check sum no line can be trusted, and the sum stands at the end: hence a pass of
    its own over the file, at some 300 MB/s of gzip, before the first line is used.
    """
    try:
        with decompressed(path) as file:
            while file.read(_CHUNK):
                pass
    except EOFError:
        return None
    except BROKEN as error:
        return " ".join(str(error).split())[:200]
    return None


class Utf8Stream(io.RawIOBase):
    """A file's text as UTF-8 bytes, decompressed and decoded."""

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
        """Places so far where bytes were not of the encoding and U+FFFD stands instead."""
        self._file = decompressed(path)
        is_utf8 = self.encoding == "utf-8"  # handed on as it is: its readers name the row of a bad byte
        self._decoder = None if is_utf8 else codecs.getincrementaldecoder(self.encoding)(errors="replace")
        self._ready = b""
        self._is_at_end = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with UTF-8; 0 at the end."""
        while not self._ready and not self._is_at_end:
            # read1, since read discards what precedes the end of a file that is cut off.
            chunk = self._file.read1(_CHUNK)
            self._is_at_end = not chunk
            self._ready = chunk if self._decoder is None else self._decoded(chunk)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _decoded(self, chunk: bytes) -> bytes:
        assert self._decoder is not None
        text = self._decoder.decode(chunk, final=not chunk)
        self.replaced += text.count("\ufffd")
        return text.encode("utf-8", "replace")


def detect_encoding(path: Path) -> str:
    """Return the encoding of a file: by its byte order mark, else UTF-8 if all of it is, else by its bytes.

    Raises:
        UnknownEncodingError: none of UTF-8, UTF-16, GB18030 and Big5 fits.
    """
    with decompressed(path) as file:
        sample = file.read(_SAMPLE)
        for mark, encoding in _MARKS.items():
            if sample.startswith(mark):
                return encoding
        decoder = codecs.getincrementaldecoder("utf-8")()
        chunk = sample
        try:
            while chunk:
                decoder.decode(chunk)
                chunk = file.read(_CHUNK)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            guess = charset_normalizer.from_bytes(chunk[:_SAMPLE], cp_isolation=_CANDIDATES).best()
            if guess is None:
                raise UnknownEncodingError(
                    "its encoding is none of UTF-8, UTF-16, GB18030 and Big5; convert it to UTF-8"
                ) from None
            return guess.encoding
    return "utf-8"


class _ArrowStream(io.RawIOBase):
    """A zstd or lz4 file, decompressed by Arrow, which reads one that is cut off as if it had ended there."""

    def __init__(self, path: Path, kind: str) -> None:
        self._stream = pa.input_stream(str(path), compression=kind)

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
    with path.open("rb") as file:
        head = file.read(6)
    return next((kind for magic, kind in kinds.items() if head.startswith(magic)), None)
