"""Shared by the tests of filters: one text, or many, through a function that takes a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from openba.data.clean.columns import Texts, decode
from openba.data.clean.edits import Edit
from openba.data.clean.stages import as_edits

Find = Callable[[Texts], np.ndarray]


def texts_of(texts: Sequence[str]) -> Texts:
    """A batch of these texts."""
    found, bad = decode(pa.array(texts, pa.large_string()))
    assert not bad.any()
    return found


def edits_of(find: Find, text: str) -> list[Edit]:
    """What a filter finds in one text that stands between others."""
    texts = texts_of(["前", text, "后"])
    edits = find(texts)
    return as_edits(texts, edits[edits[:, 0] == 1])
