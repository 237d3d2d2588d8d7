"""Strict entity F1 of answers in the paper's notation, from nervaluate's counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from nervaluate.entities import Entity as Span
from nervaluate.strategies import StrictEvaluation

from openba.data.entities import Entity, complete_entities, parse_entities
from openba.evaluate.answers import Answers, CorpusScore
from openba.evaluate.text_metrics import normalise_width


def entity_f1(answers: Answers) -> CorpusScore:
    """Micro-averaged strict F1: an entity is right if text and type are (paper section 6.5, Table 15).

    The notation has no positions, so equal entities are distinguished by their count: the second
    `[Rome](city)` of a sentence needs a second one in the answer. Width is normalised (mT5's tokenizer writes
    no full-width forms), case is not. An answer that is no entity list counts as an empty one;
    `entity_f1_complete`, beside it, counts the complete entities at the beginning of such an answer, since an
    answer cut off at `max_new_tokens` has some.
    """
    strict_lists = [_parse_or_none(text) for text in answers.predictions]
    complete_lists = [complete_entities(text) for text in answers.predictions]
    strict_counts = _count_entities([entities or [] for entities in strict_lists], answers.first_references)
    complete_counts = _count_entities(complete_lists, answers.first_references)
    unreadable_count = sum(entities is None for entities in strict_lists)
    return CorpusScore(
        lambda rows: _f1(strict_counts[rows].sum(0)),
        extra_scores={
            "entity_f1_unreadable": 100 * unreadable_count / len(strict_lists),
            "entity_f1_complete": _f1(complete_counts.sum(0)),
        },
    )


def _count_entities(predicted: Sequence[Sequence[Entity]], references: Sequence[str]) -> np.ndarray:
    """Return correct, possible and actual entities of each item, `[items, 3]`."""
    evaluation = StrictEvaluation()
    item_counts = []
    for entities, reference in zip(predicted, references, strict=True):
        span_positions: dict[tuple[str, str, int], int] = {}
        true_spans = _spans(parse_entities(reference), span_positions)
        result, _ = evaluation.evaluate(true_spans, _spans(entities, span_positions), [])
        item_counts.append((result.correct, result.possible, result.actual))
    return np.array(item_counts, dtype=np.float64)


def _parse_or_none(text: str) -> list[Entity] | None:
    try:
        return parse_entities(text)
    except ValueError:
        return None


def _spans(entities: Sequence[Entity], span_positions: dict[tuple[str, str, int], int]) -> list[Span]:
    """Return one span per mention, at a position that stands for its text, type and count.

    nervaluate compares positions, of which the notation has none. Equal mentions of the two sides get equal
    positions through `span_positions`, which is extended.
    """
    mention_counts: Counter[tuple[str, str]] = Counter()
    spans = []
    for text, entity_type in entities:
        mention = (normalise_width(text), normalise_width(entity_type))
        key = (*mention, mention_counts[mention])
        position = span_positions.setdefault(key, len(span_positions))
        mention_counts[mention] += 1
        # One position is enough: strict evaluation compares begin, end and type only.
        spans.append(Span(mention[1], position, position))
    return spans


def _f1(counts: np.ndarray) -> float:
    """Return F1 in percent from correct, possible and actual entities; 100 if there are none of both."""
    # 2 correct / (possible + actual) equals the harmonic mean of precision and recall.
    correct, possible, actual = counts
    return 100.0 if possible + actual == 0 else float(200 * correct / (possible + actual))
