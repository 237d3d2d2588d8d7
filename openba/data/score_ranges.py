"""Records of a source whose score lies in a range: a number that they have, or the score of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol, TypeVar

import pyarrow as pa

from openba.data.clean.text_arrays import decode
from openba.data.quality_model import load_scorer
from openba.data.quarantine import Unreadable, UnreadableHandler
from openba.recipes.data import ScoreRange

_SCORED_AT_ONCE = 1000


class _Scored(Protocol):
    """Part of a document that a score needs."""

    @property
    def file(self) -> str: ...
    @property
    def row(self) -> int | None: ...
    @property
    def text(self) -> str: ...


Document = TypeVar("Document", bound=_Scored)


def within(
    documents: Iterator[Document],
    score: ScoreRange,
    value_of: Callable[[Document, str], object],
    on_unreadable: UnreadableHandler,
    left_out: Counter[str],
) -> Iterator[Document]:
    """Yield the documents whose score lies in the range; one without a score is unreadable.

    Args:
        documents: of a source, in order.
        score: the range, and the field or the model that gives the score.
        value_of: returns a field of a document.
        on_unreadable: called with a document whose field is no number.
        left_out: counts under `score` the documents outside the range.
    """
    for document, number in _scored(documents, score, value_of):
        if number is None:
            reason = f"score: {score.field!r} is no number; remove the row or name another field"
            on_unreadable(Unreadable(document.file, document.row, reason))
            continue
        is_low = score.min is not None and number < score.min
        is_high = score.below is not None and number >= score.below
        if is_low or is_high or number != number:  # NaN is in no range
            left_out["score"] += 1
        else:
            yield document


def _scored(
    documents: Iterator[Document], score: ScoreRange, value_of: Callable[[Document, str], object]
) -> Iterator[tuple[Document, float | None]]:
    if score.field is not None:
        yield from ((document, _number(value_of(document, score.field))) for document in documents)
        return
    assert score.model is not None  # `ScoreRange` has one of the two
    scores_of = load_scorer(score.model)
    while batch := list(islice(documents, _SCORED_AT_ONCE)):
        texts, _ = decode(pa.array([document.text for document in batch], pa.large_string()))
        yield from zip(batch, scores_of(texts).tolist(), strict=True)


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]  # what is no number is what this asks
    except (TypeError, ValueError):
        return None
