"""Sample answers beside the right ones: conversations as turns, entities one by one, code and text.

Owns the parsing of a benchmark's samples for the page, and which are shown. It formats nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from openba.data.entities import Entity, complete_entities
from openba.report.schema import Sample
from openba.report.skills import Skill

SHOWN_SAMPLES = 2
"""Samples per benchmark here; the section "generations" of the page has all that an evaluation keeps."""
Form = Literal["conversation", "entities", "code", "text"]
_TURN = re.compile(r"(Human|Assistant): ")


class Mark(NamedTuple):
    """An entity of one side, target or output, and whether the other side has it as well."""

    text: str
    kind: str
    is_shared: bool


class ShownSample(NamedTuple):
    """One sample, parsed for the page."""

    turns: Sequence[tuple[str, str]]
    """Speaker and text of a conversation's turns; empty for other forms."""
    prompt: str
    target: str
    output: str
    targets: Sequence[Mark]
    """Entities of the right answer, where the benchmark asks for entities."""
    outputs: Sequence[Mark]
    is_right: bool


class ExampleGroup(NamedTuple):
    """Shown samples of one benchmark."""

    skill: Skill
    form: Form
    samples: Sequence[ShownSample]


def example_groups(skills: Sequence[Skill]) -> list[ExampleGroup]:
    """Return the first samples of every benchmark that has some, in the order of the skills."""
    groups = []
    for skill in skills:
        samples = skill.evaluation.get("samples") or []
        if skill.evaluation["method"] != "likelihood" and samples:
            form = _sample_form(skill.evaluation["scores"], samples[0]["input"])
            shown_samples = [_parse_sample(sample, form) for sample in samples[:SHOWN_SAMPLES]]
            groups.append(ExampleGroup(skill, form, shown_samples))
    return groups


def _sample_form(scores: Mapping[str, float], prompt: str) -> Form:
    if "entity_f1" in scores:
        return "entities"
    if "python_syntax" in scores:
        return "code"
    return "conversation" if _TURN.match(prompt) and prompt.endswith("Assistant:") else "text"


def _parse_sample(sample: Sample, form: Form) -> ShownSample:
    prompt = sample["input"]
    turns: list[tuple[str, str]] = []
    if form == "conversation":
        pieces = _TURN.split(prompt.removesuffix("Assistant:"))[1:]
        turns = [(speaker, text.strip()) for speaker, text in zip(pieces[::2], pieces[1::2], strict=True)]
    target_entities: Sequence[Entity] = []
    output_entities: Sequence[Entity] = []
    if form == "entities":
        target_entities = complete_entities(sample["target"])
        output_entities = complete_entities(sample["output"])
    return ShownSample(
        turns=turns,
        prompt=prompt,
        target=sample["target"],
        output=sample["output"],
        targets=_mark_entities(target_entities, output_entities),
        outputs=_mark_entities(output_entities, target_entities),
        is_right=sample["target"].strip() == sample["output"].strip(),
    )


def _mark_entities(entities: Sequence[Entity], other_entities: Sequence[Entity]) -> list[Mark]:
    """Mark each entity as shared, at most as often as the other side has it."""
    # Counted, as an entity may be named twice by one side and once by the other.
    unmatched = Counter(other_entities)
    marks = []
    for entity in entities:
        marks.append(Mark(*entity, unmatched[entity] > 0))
        unmatched[entity] -= 1
    return marks
