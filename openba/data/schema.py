"""Schema of documents on disk, the same for all sources, with its Parquet writer and reader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

DOCUMENTS = "documents.parquet"
"""The file a source step writes."""

GROUP_BYTES = 4 * 2**20
"""Minimum text of a row group. Writer and readers need 5 to 9 KiB of memory per row group, and with row
groups of half a megabyte reading took a quarter longer."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # unique within the source, stable
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),  # zh, en or code: the mixture's share
        pa.field("source", pa.string(), nullable=False),
        pa.field("extra", pa.string(), nullable=False),  # a JSON object with the record's other fields
    ]
)


def write_documents(
    path: Path, batches: Iterable[pa.RecordBatch], group_bytes: int = GROUP_BYTES
) -> tuple[int, int]:
    """Write batches of documents.

    The file's bytes depend on the texts and on their division into batches, nothing else.

    Args:
        path: of the file.
        batches: columns of `SCHEMA`.
        group_bytes: minimum text of a row group.

    Returns:
        Number of documents, and of UTF-8 bytes of text.
    """
    documents = 0
    size = 0
    # Statistics and dictionaries of text only cost space: no reader searches for a text by value.
    with pq.ParquetWriter(
        path,
        SCHEMA,
        compression="zstd",
        write_statistics=False,
        use_dictionary=["language", "source"],
        write_page_checksum=True,  # a flipped bit is an error, not another text
    ) as writer:
        for batch in _gather(batches, group_bytes):
            writer.write_batch(batch)
            documents += batch.num_rows
            size += text_bytes(batch)
    return documents, size


def _gather(batches: Iterable[pa.RecordBatch], group_bytes: int) -> Iterator[pa.RecordBatch]:
    """Concatenate batches until each has the minimum text of a row group."""
    pending: list[pa.RecordBatch] = []
    total = 0
    for batch in batches:
        if batch.num_rows:
            pending.append(batch)
            total += text_bytes(batch)
        if pending and total >= group_bytes:
            yield pa.concat_batches(pending)
            pending = []
            total = 0
    if pending:
        yield pa.concat_batches(pending)


def read_batches(
    path: Path, rows: int, columns: list[str] | None = None, row_groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield batches of at most so many rows, row group by row group.

    Args:
        path: Parquet file.
        rows: maximum per batch.
        columns: names; none: all.
        row_groups: numbers; none: all.
    """
    file = pq.ParquetFile(path)
    # One reader over all row groups keeps memory for each: 208 MiB after 250 MB of text, 40 this way.
    for group in range(file.num_row_groups) if row_groups is None else row_groups:
        yield from file.iter_batches(rows, [group], columns=columns)


def text_bytes(batch: pa.RecordBatch) -> int:
    """Return the UTF-8 bytes of the batch's texts."""
    return pc.sum(pc.binary_length(batch["text"])).as_py() or 0
