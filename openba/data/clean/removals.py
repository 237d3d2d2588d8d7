"""Why something is gone: the rows of a cleaning's removed.parquet for one document.

Owns the look-up. Who writes the rows is `corpus`; their columns are `stages.REMOVED_SCHEMA`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from openba.data.schema import DOCUMENTS
from openba.errors import UserError


def removals(folder: Path, document: str) -> list[dict[str, Any]]:
    """All removals of a document, in the order of the stages.

    Args: `folder` is the output of the step `clean`, `document` an id or `source/id`.

    Raises:
        UserError: nothing was removed of any such document.
    """
    found: list[dict[str, Any]] = []
    for batch in pq.ParquetFile(folder / "removed.parquet").iter_batches():
        full = pc.binary_join_element_wise(batch["source"], batch["id"], "/")
        mine = pc.or_(pc.equal(batch["id"], document), pc.equal(full, document))
        found += batch.filter(mine).to_pylist()
    if not found:
        raise UserError(f"{document}: nothing was removed of a document with this id; is it spelled right?")
    return found


def original(folder: Path, identifier: str) -> str | None:
    """The text of a document as its source gave it; None if the source has no such document.

    Args: `folder` is the output of the step `source-NAME`.
    """
    table = pq.read_table(folder / DOCUMENTS, columns=["text"], filters=[("id", "=", identifier)])
    return table["text"][0].as_py() if table.num_rows else None
