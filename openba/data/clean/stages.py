"""The order of the filters and how one is run over a batch of documents.

Owns `Stage`, the list that a recipe switches on, and what each removal is recorded as. A stage sees
documents in order and batch by batch, so memory holds one batch and the digests of the duplicates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openba.data.clean import characters, language, privacy, sentences
from openba.data.clean.dedup import DocumentDedup, ParagraphDedup
from openba.data.clean.edits import Edit, apply, whole
from openba.recipes.data import CleanRecipe


class Stage(NamedTuple):
    """One filter in its place."""

    name: str
    find: Callable[[str, str], list[Edit]]
    """(text, `source/id`) -> edits."""
    candidates: str = ""
    """RE2 pattern: only texts that match are looked at; empty: all."""


class Change(NamedTuple):
    """One document that a stage changed."""

    id: str
    before: str
    edits: list[Edit]


def stages(recipe: CleanRecipe) -> list[Stage]:
    """The recipe's filters in the order of its fields, each with fresh state.

    Two differ from that order. Documents are deduplicated first, on the raw text, as the paper does
    and to save the work on copies; and again last, because cleaning makes equal what differed in a
    link or a space. Privacy is looked for again once markup and odd characters are gone, because
    those hide it: `a&#64;b.com`, a number with invisible characters in it.
    """
    hidden = recipe.privacy and (recipe.html or recipe.unusual_characters)
    alone = _alone(privacy.find)
    order = [
        (recipe.document_dedup, Stage("document_dedup", DocumentDedup().find)),
        (recipe.privacy, Stage("privacy", alone, privacy.CANDIDATE)),
        (recipe.html, Stage("html", _alone(characters.find_html), characters.HTML_CANDIDATE)),
        (
            recipe.unusual_characters,
            Stage("unusual_characters", _alone(characters.find_unusual), characters.UNUSUAL_CANDIDATE),
        ),
        (hidden, Stage("privacy_again", alone, privacy.CANDIDATE)),
        (recipe.character_dedup, Stage("character_dedup", _alone(characters.find_repeats))),
        (
            recipe.paragraph_dedup,
            Stage("paragraph_dedup", ParagraphDedup(recipe.max_sentences, recipe.min_repeat_characters).find),
        ),
        (
            recipe.min_words > 0,
            Stage("min_words", lambda text, _: sentences.find_short(text, recipe.min_words)),
        ),
        (
            bool(recipe.languages),
            Stage("languages", lambda text, _: language.find(text, recipe.languages)),
        ),
        (recipe.document_dedup, Stage("document_dedup_again", DocumentDedup().find)),
    ]
    return [stage for wanted, stage in order if wanted]


def run(stage: Stage, batch: pa.RecordBatch, source: str) -> tuple[pa.RecordBatch, list[Change]]:
    """Apply a stage to a batch of documents.

    Returns:
        The batch without the documents that have no text left, and the changes in order. A document
        that came without text is a change with rule `empty`.
    """
    texts = batch["text"]
    rows = pa.array(_looked_at(stage, texts))
    new: dict[int, str] = {}
    changes: list[Change] = []
    columns = (rows.to_pylist(), texts.take(rows).to_pylist(), batch["id"].take(rows).to_pylist())
    for row, text, identifier in zip(*columns, strict=True):
        edits = stage.find(text, f"{source}/{identifier}") if text.strip() else whole(text, "empty")
        if edits:
            new[row] = apply(text, edits)
            changes.append(Change(identifier, text, edits))
    if new:
        rewritten = [new.get(row, text) for row, text in enumerate(texts.to_pylist())]
        batch = batch.set_column(1, batch.schema.field("text"), pa.array(rewritten, pa.large_string()))
    return batch.filter(pc.not_equal(batch["text"], "")), changes


def _looked_at(stage: Stage, texts: pa.Array) -> np.ndarray:
    """Rows that match the stage's pattern or are blank; all if it has none."""
    if not stage.candidates:
        return np.arange(len(texts))
    blank = pc.equal(pc.utf8_trim_whitespace(texts), "")
    return np.flatnonzero(pc.or_(pc.match_substring_regex(texts, stage.candidates), blank))


def _alone(find: Callable[[str], list[Edit]]) -> Callable[[str, str], list[Edit]]:
    return lambda text, _: find(text)
