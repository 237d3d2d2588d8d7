"""Strict entity F1 of answers in the paper's notation, by nervaluate's counts."""

from __future__ import annotations

from collections import Counter

import numpy as np
from nervaluate.entities import Entity as Span
from nervaluate.strategies import StrictEvaluation

from openba.data.entities import parse_entities
from openba.evaluate.answers import Answers, Scores, resampled
from openba.evaluate.text_metrics import plain


def entity_f1(answers: Answers) -> Scores:
    """Micro-averaged strict F1: an entity is right if text and type are (paper section 6.5, Table 15).

    The notation has no positions, so equal entities are told apart by their count: the second
    `[Rome](city)` of a sentence needs a second one in the answer. Width and case of characters:
    width is normalised (mT5's tokenizer writes no full-width forms), case is not. An answer that
    is no entity list counts as an empty one.
    """
    read = [_read(text) for text in answers.predictions]
    strict = StrictEvaluation()
    counts = []
    for found, reference in zip(read, answers.first, strict=True):
        places: dict[tuple[str, str, int], int] = {}
        result, _ = strict.evaluate(
            _spans(parse_entities(reference), places), _spans(found or [], places), []
        )
        counts.append((result.correct, result.possible, result.actual))
    table = np.array(counts, dtype=np.float64)
    return {
        "entity_f1": _f1(table.sum(0)),
        "entity_f1_stderr": resampled(lambda rows: _f1(table[rows].sum(0)), len(table)),
        "entity_f1_unreadable": 100 * sum(found is None for found in read) / len(read),
    }


def _read(text: str) -> list[tuple[str, str]] | None:
    try:
        return parse_entities(text)
    except ValueError:
        return None


def _spans(entities: list[tuple[str, str]], places: dict[tuple[str, str, int], int]) -> list[Span]:
    """Each different entity, and each further mention of it, at a place of its own."""
    seen: Counter[tuple[str, str]] = Counter()
    spans = []
    for text, kind in ((plain(text), plain(kind)) for text, kind in entities):
        place = places.setdefault((text, kind, seen[text, kind]), len(places))
        seen[text, kind] += 1
        spans.append(Span(kind, place, place))
    return spans


def _f1(counts: np.ndarray) -> float:
    """Of correct, possible, actual; nothing to find and nothing found is 100."""
    correct, possible, actual = counts
    return 100.0 if possible + actual == 0 else float(200 * correct / (possible + actual))
