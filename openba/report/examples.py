"""Answers side by side with the right ones: conversations as turns, entities one by one, code and text.

Owns how one sample of a benchmark is taken apart for the page, and which are shown. It formats nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from openba.data.entities import Entity, complete_entities
from openba.report.skills import Skill

SHOWN = 2
"""Samples of a benchmark; all that were kept stand in the section of generations."""
_TURN = re.compile(r"(Human|Assistant): ")


class Mark(NamedTuple):
    """An entity and whether the other side has it as well."""

    text: str
    kind: str
    is_shared: bool


class Shown(NamedTuple):
    """One sample."""

    turns: Sequence[tuple[str, str]]
    """Speaker and words of a conversation; empty for anything else."""
    prompt: str
    target: str
    output: str
    targets: Sequence[Mark]
    """Entities of the right answer, where the benchmark asks for some."""
    outputs: Sequence[Mark]
    is_right: bool


class Group(NamedTuple):
    """Samples of one benchmark."""

    skill: Skill
    form: Literal["conversation", "entities", "code", "text"]
    samples: Sequence[Shown]


def groups(skills: Sequence[Skill]) -> list[Group]:
    """The first samples of every benchmark that has some, in the order of the skills."""
    found = []
    for skill in skills:
        kept = skill.evaluation.get("samples") or []
        if skill.evaluation["method"] != "likelihood" and kept:
            form = _form(skill.evaluation["scores"], kept[0]["input"])
            samples = [_shown(sample, form) for sample in kept[:SHOWN]]
            found.append(Group(skill, form, samples))
    return found


def _form(scores: Mapping[str, float], prompt: str) -> Literal["conversation", "entities", "code", "text"]:
    if "entity_f1" in scores:
        return "entities"
    if "python_syntax" in scores:
        return "code"
    return "conversation" if _TURN.match(prompt) and prompt.endswith("Assistant:") else "text"


def _shown(sample: Mapping[str, Any], form: str) -> Shown:
    prompt, target, output = sample["input"], sample["target"], sample["output"]
    turns: list[tuple[str, str]] = []
    if form == "conversation":
        pieces = _TURN.split(prompt.removesuffix("Assistant:"))[1:]
        turns = [(who, words.strip()) for who, words in zip(pieces[::2], pieces[1::2], strict=True)]
    right, given = (complete_entities(text) if form == "entities" else [] for text in (target, output))
    return Shown(
        turns=turns,
        prompt=prompt,
        target=target,
        output=output,
        targets=_marks(right, given),
        outputs=_marks(given, right),
        is_right=target.strip() == output.strip(),
    )


def _marks(entities: Sequence[Entity], others: Sequence[Entity]) -> list[Mark]:
    """Each entity, shared as often as the other side has it."""
    left = Counter(others)
    marks = []
    for entity in entities:
        marks.append(Mark(*entity, left[entity] > 0))
        left[entity] -= 1
    return marks
