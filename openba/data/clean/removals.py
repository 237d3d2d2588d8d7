"""Look up what a cleaning removed from one document."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import pyarrow.compute as pc
import pyarrow.parquet as pq

from openba.data.schema import DOCUMENTS
from openba.errors import UserError


class Removal(TypedDict):
    """Row of removed.parquet (`batch.REMOVED_SCHEMA`)."""

    source: str
    id: str
    stage: str
    rule: str
    start: int
    end: int
    survivor: str | None


def removals(folder: Path, document: str) -> list[Removal]:
    """Return all removals of a document, in the order of the stages.

    Args:
        folder: output of the step `clean`.
        document: an id, or `source/id`.

    Raises:
        UserError: nothing was removed of any such document.
    """
    rows: list[Removal] = []
    for batch in pq.ParquetFile(folder / "removed.parquet").iter_batches():
        full_names = pc.binary_join_element_wise(batch["source"], batch["id"], "/")
        is_document = pc.or_(pc.equal(batch["id"], document), pc.equal(full_names, document))
        rows += batch.filter(is_document).to_pylist()
    if not rows:
        raise UserError(f"{document}: nothing was removed of a document with this id; is it spelled right?")
    return rows


def original(folder: Path, identifier: str) -> str | None:
    """Return the text of a document as its source gave it, None if the source has no such document.

    Args:
        folder: output of the step `source-NAME`.
        identifier: id of the document.
    """
    table = pq.read_table(folder / DOCUMENTS, columns=["text"], filters=[("id", "=", identifier)])
    return table["text"][0].as_py() if table.num_rows else None
