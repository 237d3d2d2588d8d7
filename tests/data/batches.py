"""Shared by the tests of filters: one text, or many, through a function that takes a batch."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from openba.data.clean.edit_matrix import as_edits
from openba.data.clean.edits import Edit
from openba.data.clean.filter import Filter
from openba.data.clean.text_arrays import Texts, decode


def texts_of(texts: Sequence[str]) -> Texts:
    """A batch of these texts."""
    found, bad = decode(pa.array(texts, pa.large_string()))
    assert not bad.any()
    return found


def edits_of(chosen: Filter, text: str) -> list[Edit]:
    """Return what a filter finds in one text that stands between others."""
    texts = texts_of(["前", text, "后"])
    edits = chosen.find(texts)
    return as_edits(texts, edits[edits[:, 0] == 1], chosen.rules)
