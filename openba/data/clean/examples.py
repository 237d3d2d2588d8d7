"""Examples of what each rule did: text before and after a removal, without private values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa

from openba.data.clean import edit_matrix, text_arrays
from openba.data.clean.edit_matrix import ROW, RULE
from openba.data.clean.edits import Edit, apply
from openba.data.clean.markup import Markup
from openba.data.clean.privacy import Privacy
from openba.data.clean.private_numbers import PrivateNumbers
from openba.data.clean.text_arrays import Texts
from openba.data.clean.unusual_characters import UnusualCharacters

EXAMPLES = 2
"""Number of examples per rule of a stage."""
# Documents per batch and rule that are tried; some cannot be shown because of a private value.
_CANDIDATES = 50
# Characters of an example's text.
_SNIPPET = 120


class Example(TypedDict):
    """Text around a rule's first edit of a document, before and after the stage."""

    source: str
    id: str
    rule: str
    before: str
    after: str


ExamplesByStage = Mapping[str, list[Example]]


def collect_examples(
    source_name: str,
    ids: pa.Array,
    texts: Texts,
    text_edits: np.ndarray,
    rules: Sequence[str],
    existing: Sequence[Example],
) -> list[Example]:
    """Return examples for rules that have fewer than `EXAMPLES`; rewritings without a rule have none.

    Args:
        source_name: name of the source.
        ids: document ids, Arrow strings `[texts]`.
        texts: the batch before the edits.
        text_edits: edit matrix of a stage.
        rules: rules of the stage's filter.
        existing: examples of the stage so far.
    """
    examples: list[Example] = []
    counts = Counter(example["rule"] for example in existing)
    for number, rule in enumerate(rules, 1):
        if counts[rule] >= EXAMPLES:  # so for nearly all batches: no search through their edits
            continue
        rows_of_rule = text_edits[text_edits[:, RULE] == number][:_CANDIDATES, ROW]
        for row in dict.fromkeys(rows_of_rule.tolist()):
            if counts[rule] >= EXAMPLES:
                break
            edits_of_text = edit_matrix.as_edits(texts, text_edits[text_edits[:, ROW] == row], rules)
            snippets = _snippets(texts.text(row), edits_of_text, rule)
            if snippets:
                counts[rule] += 1
                text_before, text_after = snippets
                identifier = ids[row].as_py()
                examples.append(
                    Example(
                        source=source_name, id=identifier, rule=rule, before=text_before, after=text_after
                    )
                )
    return examples


def add_examples(examples: list[Example], more: list[Example]) -> None:
    """Append examples of rules that have fewer than `EXAMPLES`."""
    for example in more:
        if sum(other["rule"] == example["rule"] for other in examples) < EXAMPLES:
            examples.append(example)


def holds_private_value(text: str) -> bool:
    """Return whether a private value can be read, also behind entities or invisible characters."""
    texts, _ = text_arrays.decode(pa.array([text], pa.large_string()))
    # Entities and invisible characters can hide a value that a reader or a later stage would see.
    for revealing in (Markup(), UnusualCharacters()):
        texts = edit_matrix.apply(texts, revealing.find(texts))
    return len(Privacy().find(texts)) + len(PrivateNumbers().find(texts)) > 0


def _snippets(text: str, text_edits: list[Edit], rule: str) -> tuple[str, str] | None:
    """Return the text around the rule's first edit before and after, None if a private value would show."""
    private_rules = (*Privacy.rules, *PrivateNumbers.rules)
    masks = [edit._replace(replacement=f"[{edit.rule}]") for edit in text_edits if edit.rule in private_rules]
    text_before = apply(text, masks) if masks else text
    text_after = apply(text, text_edits)
    if holds_private_value(text_before) or holds_private_value(text_after):
        return None
    position = next(edit.start for edit in text_edits if edit.rule == rule)
    return _snippet(text_before, masks, position), _snippet(text_after, text_edits, position)


def _snippet(edited: str, text_edits: list[Edit], position: int) -> str:
    """Return the edited text around a position of the text before the edits."""
    shift = sum(
        len(edit.replacement) - (edit.end - edit.start) for edit in text_edits if edit.end <= position
    )
    start = max(0, position + shift - _SNIPPET // 3)
    return edited[start : start + _SNIPPET]
