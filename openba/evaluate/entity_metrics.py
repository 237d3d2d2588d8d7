"""Strict entity F1 of answers in the paper's notation, by nervaluate's counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from nervaluate.entities import Entity as Span
from nervaluate.strategies import StrictEvaluation

from openba.data.entities import Entity, complete_entities, parse_entities
from openba.evaluate.answers import Answers, CorpusScore
from openba.evaluate.text_metrics import plain


def entity_f1(answers: Answers) -> CorpusScore:
    """Micro-averaged strict F1: an entity is right if text and type are (paper section 6.5, Table 15).

    The notation has no positions, so equal entities are told apart by their count: the second
    `[Rome](city)` of a sentence needs a second one in the answer. Width and case of characters:
    width is normalised (mT5's tokenizer writes no full-width forms), case is not. An answer that
    is no entity list counts as an empty one; `entity_f1_complete`, beside it, counts the complete entities
    that such an answer begins with, since an answer cut off at `max_new_tokens` has some.
    """
    strict = [_strict(text) for text in answers.predictions]
    begun = [complete_entities(text) for text in answers.predictions]
    counted = _counts([entities or [] for entities in strict], answers.first)
    complete = _counts(begun, answers.first)
    return CorpusScore(
        lambda rows: _f1(counted[rows].sum(0)),
        beside={
            "entity_f1_unreadable": 100 * sum(entities is None for entities in strict) / len(strict),
            "entity_f1_complete": _f1(complete.sum(0)),
        },
    )


def _counts(given: Sequence[Sequence[Entity]], references: Sequence[str]) -> np.ndarray:
    """Correct, possible and actual entities of each item, `[items, 3]`."""
    evaluation = StrictEvaluation()
    counts = []
    for entities, reference in zip(given, references, strict=True):
        places: dict[tuple[str, str, int], int] = {}
        right = _spans(parse_entities(reference), places)
        result, _ = evaluation.evaluate(right, _spans(entities, places), [])
        counts.append((result.correct, result.possible, result.actual))
    return np.array(counts, dtype=np.float64)


def _strict(text: str) -> list[Entity] | None:
    try:
        return parse_entities(text)
    except ValueError:
        return None


def _spans(entities: Sequence[Entity], places: dict[tuple[str, str, int], int]) -> list[Span]:
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
