"""Store of token ids: memory-mapped shards of one token stream, with a table of its documents.

tokens-00000.npy, ...   int32, all shards of one size but the last; documents may span two of them
offsets.npy             int64 [documents + 1], where each document begins; </s> ends each
documents.parquet       one row per document: source, id, language, tokens, epoch
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy

from openba.errors import UserError

DOCUMENTS = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("id", pa.string()),
        pa.field("language", pa.string()),
        pa.field("tokens", pa.int64()),  # </s> included
        pa.field("epoch", pa.int32()),  # 0 for a document's first occurrence in the store
    ]
)
_SHARD_TOKENS = 2**28  # 1 GiB per file


class TokenStore:
    """Token shards of a folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        """Open a store.

        Raises:
            UserError: a file is missing, truncated, or not of this form.
        """
        try:
            self.offsets = _memory_map(folder / "offsets.npy")
            self.shards = [_memory_map(path) for path in sorted(folder.glob("tokens-*.npy"))]
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: not a readable token store ({error}); build it again") from None
        self.folder = folder
        self.shard_tokens = len(self.shards[0]) if self.shards else 1
        token_count = sum(len(shard) for shard in self.shards)
        has_odd_shard = any(len(shard) != self.shard_tokens for shard in self.shards[:-1])
        if token_count != len(self) or has_odd_shard:
            raise UserError(
                f"{folder}: {token_count:,} tokens in its shards, {len(self):,} in offsets.npy; "
                "build it again"
            )

    def __len__(self) -> int:
        """Return the number of tokens of all documents."""
        return int(self.offsets[-1])

    @cached_property
    def documents(self) -> pa.Table:
        """Table of the documents in order, columns of `DOCUMENTS`."""
        return pq.read_table(self.folder / "documents.parquet")

    def tokens(self, begin: int, end: int) -> np.ndarray:
        """Return tokens begin..end-1 of the stream, int32; a view if they lie in one shard, else a copy."""
        size = self.shard_tokens
        first_shard = begin // size
        last_shard = min(max(begin, end - 1) // size, len(self.shards) - 1)
        parts = [
            self.shards[shard][max(0, begin - shard * size) : end - shard * size]
            for shard in range(first_shard, last_shard + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int32), *parts])

    def document(self, number: int) -> np.ndarray:
        """Return the ids of a document, int32 `[tokens]`, </s> last."""
        return self.tokens(int(self.offsets[number]), int(self.offsets[number + 1]))

    def count(self, length: int) -> int:
        """Return the number of windows of `length` tokens in the store."""
        return len(self) // length

    def windows(self, numbers: np.ndarray, length: int) -> np.ndarray:
        """Return consecutive, non-overlapping windows of the stream by number.

        Windows ignore the borders of documents, as in the released model's data.

        Args:
            numbers: int64 `[windows]`.
            length: tokens per window.

        Returns:
            int32 `[windows, length]`.
        """
        return self.rows(numbers * length, length)

    def rows(self, begins: np.ndarray, length: int) -> np.ndarray:
        """Return the `length` tokens from each of these positions on, int32 `[positions, length]`."""
        token_rows = np.empty((len(begins), length), np.int32)
        for row, begin in enumerate(begins.tolist()):
            token_rows[row] = self.tokens(begin, begin + length)
        return token_rows


class TokenWriter:
    """Writer of a store. Memory does not grow with it; the store is complete once closed without error."""

    def __init__(self, folder: Path, shard_tokens: int = _SHARD_TOKENS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.shard_tokens = shard_tokens
        self.token_count = 0
        self._shard: _GrowingArray | None = None
        self._offsets = _GrowingArray(folder / "offsets.npy", np.dtype(np.int64))
        self._offsets.append(np.zeros(1, np.int64))  # start of the first document
        self._documents = pq.ParquetWriter(folder / "documents.parquet", DOCUMENTS, compression="zstd")

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._shard, self._offsets, self._documents):
            if file is not None:
                file.close()

    def append(self, ids: np.ndarray, documents: pa.RecordBatch) -> None:
        """Add documents.

        Args:
            ids: int32 `[tokens]`, the documents one after the other, </s> at the end of each.
            documents: rows of `DOCUMENTS`; `tokens` gives the length of each document.

        Raises:
            ValueError: the lengths do not add up to the number of ids.
        """
        document_tokens = documents["tokens"].to_numpy()
        if document_tokens.sum() != len(ids):
            raise ValueError(f"{len(ids)} ids for documents of {document_tokens.sum()} tokens")
        document_ends = self.token_count + np.cumsum(document_tokens)
        self._offsets.append(document_ends.astype(np.int64))
        self._documents.write_batch(documents)
        while len(ids):
            shard_number, shard_size = divmod(self.token_count, self.shard_tokens)
            if shard_size == 0:
                self._open_shard(shard_number)
            assert self._shard is not None
            part = ids[: self.shard_tokens - shard_size]
            self._shard.append(part.astype(np.int32, copy=False))
            self.token_count += len(part)
            ids = ids[len(part) :]

    def _open_shard(self, number: int) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard = _GrowingArray(self.folder / f"tokens-{number:05}.npy", np.dtype(np.int32))


class _GrowingArray:
    """One-dimensional .npy file that grows; its header is written again with the final length."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.file = path.open("wb")
        self.dtype = dtype
        self.length = 0
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def _write_header(self) -> None:
        # NumPy pads a header so that the first dimension can grow to 21 digits in place.
        shape = {"shape": (self.length,), "fortran_order": False, "descr": npy.dtype_to_descr(self.dtype)}
        npy.write_array_header_1_0(self.file, shape)


def _memory_map(path: Path) -> np.ndarray:
    # A plain array: numba and Arrow do not accept numpy.memmap.
    return np.asarray(np.load(path, mmap_mode="r"))
