"""The one form every source takes on disk: an Arrow schema and its Parquet writer.

Owns column names, types and how the file is written and read. It knows nothing of where documents
come from or of what is done to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

DOCUMENTS = "documents.parquet"
"""The file a source step writes."""

GROUP_BYTES = 4 * 2**20
"""Text of a row group, at least. Small ones cost: writer and every reader hold 5 to 9 KiB for each, and in
half megabytes reading takes a quarter longer."""

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
    """Write batches of `SCHEMA`, as many a row group as have so many bytes of text.

    The same texts give the same bytes if a batch holds the same of them.

    Returns:
        Number of documents and of UTF-8 bytes of text.
    """
    documents = size = 0
    # Statistics and dictionaries of text only cost space: no reader looks a text up by value.
    with pq.ParquetWriter(
        path,
        SCHEMA,
        compression="zstd",
        write_statistics=False,
        use_dictionary=["language", "source"],
        write_page_checksum=True,  # a flipped bit is an error, not another text
    ) as writer:
        for batch in _gathered(batches, group_bytes):
            writer.write_batch(batch)
            documents += batch.num_rows
            size += text_bytes(batch)
    return documents, size


def _gathered(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    held: list[pa.RecordBatch] = []
    total = 0
    for batch in batches:
        if batch.num_rows:
            held.append(batch)
            total += text_bytes(batch)
        if held and total >= size:
            yield pa.concat_batches(held)
            held, total = [], 0
    if held:
        yield pa.concat_batches(held)


def read_batches(path: Path, rows: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of at most so many rows, of all columns if none are named, row group by row group.

    A reader over all row groups of a file keeps memory for each: 208 MiB after 250 MB of text, 40 this way.
    """
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        yield from file.iter_batches(rows, [group], columns=columns)


def text_bytes(batch: pa.RecordBatch) -> int:
    """UTF-8 bytes of the batch's texts."""
    return pc.sum(pc.binary_length(batch["text"])).as_py() or 0
