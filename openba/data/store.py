"""Token ids on disk: memory-mapped shards of one endless stream, with the documents that it is made of.

Owns the stored form, its streaming writer, numbered windows, and Parquet in and out. It does not
choose documents (`openba.data.mixture`) and corrupts nothing (`openba.data.denoise`).

    tokens-00000.npy, ...   int32, all shards of one size but the last; the stream runs on across them
    offsets.npy             int64 [documents + 1], where each document begins; </s> ends each
    documents.parquet       a row a document: source, id, language, tokens, epoch
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy

from openba.data.schema import read_batches
from openba.errors import UserError

DOCUMENTS = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("id", pa.string()),
        pa.field("language", pa.string()),
        pa.field("tokens", pa.int64()),  # </s> included
        pa.field("epoch", pa.int32()),  # 0 the first time a document stands in the store
    ]
)
IDS = "input_ids"
"""Column of the ids in Parquet; the name that `datasets` and trainers know."""
_PARQUET = DOCUMENTS.append(pa.field(IDS, pa.large_list(pa.int32())))
_SHARD_TOKENS = 2**28  # 1 GiB a file
_BATCH_TOKENS = 2**20  # what an export holds in memory at a time


class TokenStore:
    """A folder of token shards, read in place."""

    def __init__(self, folder: Path) -> None:
        """Raises: UserError: a file is missing, cut short, or not of this form."""
        try:
            self.offsets = _view(folder / "offsets.npy")
            self.shards = [_view(path) for path in sorted(folder.glob("tokens-*.npy"))]
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: not a readable token store ({error}); build it again") from None
        self.folder = folder
        self.size = len(self.shards[0]) if self.shards else 1
        found = sum(len(shard) for shard in self.shards)
        if found != len(self) or any(len(shard) != self.size for shard in self.shards[:-1]):
            raise UserError(
                f"{folder}: {found:,} tokens in its shards, {len(self):,} in offsets.npy; build it again"
            )

    def __len__(self) -> int:
        """Tokens of all documents."""
        return int(self.offsets[-1])

    @cached_property
    def documents(self) -> pa.Table:
        """The documents in order, as `DOCUMENTS`."""
        return pq.read_table(self.folder / "documents.parquet")

    def tokens(self, begin: int, end: int) -> np.ndarray:
        """Tokens begin..end-1 of the stream, int32: a view where they lie in one shard."""
        first, last = begin // self.size, max(begin, end - 1) // self.size
        parts = [
            self.shards[k][max(0, begin - k * self.size) : end - k * self.size]
            for k in range(first, min(last + 1, len(self.shards)))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int32), *parts])

    def document(self, number: int) -> np.ndarray:
        """Ids of a document, int32, </s> last."""
        return self.tokens(int(self.offsets[number]), int(self.offsets[number + 1]))

    def count(self, length: int) -> int:
        """How many windows of `length` tokens the store holds."""
        return len(self) // length

    def windows(self, numbers: np.ndarray, length: int) -> np.ndarray:
        """Windows by number, int32 `[n, length]`: documents run on across their borders, as released."""
        found = np.empty((len(numbers), length), np.int32)
        for row, number in enumerate(numbers.tolist()):
            found[row] = self.tokens(number * length, (number + 1) * length)
        return found

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The documents with their ids, about a million tokens a batch."""
        begin = 0
        while begin < len(self.offsets) - 1:
            limit = self.offsets[begin] + _BATCH_TOKENS
            end = max(begin + 1, int(np.searchsorted(self.offsets, limit, "right")) - 1)
            offsets = self.offsets[begin : end + 1]
            ids = pa.LargeListArray.from_arrays(
                pa.array(offsets - offsets[0]), pa.array(self.tokens(int(offsets[0]), int(offsets[-1])))
            )
            rows = self.documents.slice(begin, end - begin).combine_chunks().to_batches()[0]
            yield pa.RecordBatch.from_arrays([*rows.columns, ids], schema=_PARQUET)
            begin = end


class TokenWriter:
    """Writes a store front to back; memory does not grow with it. Complete when closed without error."""

    def __init__(self, folder: Path, shard_tokens: int = _SHARD_TOKENS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shard_tokens = folder, shard_tokens
        self.written = 0
        self._shard: _GrowingArray | None = None
        self._offsets = _GrowingArray(folder / "offsets.npy", np.dtype(np.int64))
        self._offsets.append(np.zeros(1, np.int64))
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
            ids: int32, all of them in a row, </s> after each.
            documents: their rows; `tokens` says where one ends.

        Raises:
            ValueError: the rows' tokens do not add up to the ids.
        """
        ends = self.written + np.cumsum(documents["tokens"].to_numpy())
        if (ends[-1] if len(ends) else self.written) != self.written + len(ids):
            raise ValueError(f"{len(ids)} ids for documents of {documents['tokens'].to_numpy().sum()} tokens")
        self._offsets.append(ends.astype(np.int64))
        self._documents.write_batch(documents)
        while len(ids):
            number, used = divmod(self.written, self.shard_tokens)
            if used == 0:
                self._next_shard(number)
            assert self._shard is not None
            head = ids[: self.shard_tokens - used]
            self._shard.append(head.astype(np.int32, copy=False))
            self.written, ids = self.written + len(head), ids[len(head) :]

    def _next_shard(self, number: int) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard = _GrowingArray(self.folder / f"tokens-{number:05}.npy", np.dtype(np.int32))


def write_parquet(store: TokenStore, path: Path) -> None:
    """Export a store: a row a document, its ids as a list in column `input_ids`."""
    with pq.ParquetWriter(path, _PARQUET, compression="zstd") as writer:
        for batch in store.batches():
            writer.write_batch(batch)


def read_parquet(path: Path, writer: TokenWriter) -> None:
    """Add the documents of an exported file, or of any with a list of int32 in column `input_ids`.

    Columns of `DOCUMENTS` that the file lacks are filled: the id with the row's number, the source
    with the file's name.

    Raises:
        UserError: the column is not there, or a list or an id in it is null.
    """
    names = pq.read_schema(path).names
    if IDS not in names:
        raise UserError(f"{path}: no column {IDS!r}; there are {', '.join(names)}")
    row = 0
    for batch in read_batches(path, 10_000):
        lists = batch[IDS].cast(pa.large_list(pa.int32()))
        if lists.null_count or lists.flatten().null_count:
            raise UserError(f"{path}: rows {row:,} to {row + len(batch):,}: a list or an id is null")
        sizes, known = lists.value_lengths(), set(batch.schema.names)
        filled = {
            "source": pa.array([path.stem] * len(batch)),
            "id": pa.array([str(row + i) for i in range(len(batch))]),
            "language": pa.array([""] * len(batch)),
            "epoch": pa.array(np.zeros(len(batch), np.int32)),
        }
        columns = {name: batch[name] if name in known else column for name, column in filled.items()}
        columns["tokens"] = sizes
        rows = [columns[field.name].cast(field.type) for field in DOCUMENTS]
        writer.append(lists.flatten().to_numpy(), pa.RecordBatch.from_arrays(rows, schema=DOCUMENTS))
        row += len(batch)


class _GrowingArray:
    """A one-dimensional .npy file that is appended to; its header is written again at the end."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.file, self.dtype, self.length = path.open("wb"), dtype, 0
        self._header()

    def append(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._header()
        self.file.close()

    def _header(self) -> None:
        # NumPy pads a header so that the first dimension can grow to 21 digits in place.
        shape = {"shape": (self.length,), "fortran_order": False, "descr": npy.dtype_to_descr(self.dtype)}
        npy.write_array_header_1_0(self.file, shape)


def _view(path: Path) -> np.ndarray:
    # A plain array over the map: numba and Arrow take no subclass.
    return np.asarray(np.load(path, mmap_mode="r"))
