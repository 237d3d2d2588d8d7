"""The sample sources as a corpus that was not cleaned: their own near copies are in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from openba.data.samples import READERS
from openba.data.schema import GROUP_BYTES, SCHEMA, write_documents


def write_raw_corpus(
    folder: Path,
    sources: Mapping[str, tuple[str, str, str, int | None]],
    rows_per_batch: int = 1000,
    group_bytes: int = GROUP_BYTES,
) -> dict[tuple[str, str], str]:
    """Write one Parquet file for each source.

    Args:
        folder: where the files go.
        sources: name -> package, reader, language, and the number of documents; none: all.
        rows_per_batch: rows of a batch.
        group_bytes: text bytes of a row group.

    Returns:
        (source, id) -> text.
    """
    text_by_key: dict[tuple[str, str], str] = {}
    for name, (package, reader, language, limit) in sources.items():
        records = list(READERS[package][reader]())[:limit]
        text_by_key |= {(name, identifier): text for identifier, text, _ in records}
        columns = {
            "id": [identifier for identifier, _, _ in records],
            "text": [text for _, text, _ in records],
            "language": [language] * len(records),
            "source": [name] * len(records),
            "extra": ["{}"] * len(records),
        }
        batches = pa.Table.from_pydict(columns, SCHEMA).to_batches(max_chunksize=rows_per_batch)
        write_documents(folder / f"{name}.parquet", batches, group_bytes)
    return text_by_key
