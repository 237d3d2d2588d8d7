"""What a record asks and answers in its own words: the texts that contamination is looked for by.

Prompt words, option letters, solved examples and label words are the task's, not the record's, and
never part of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from string import Formatter
from typing import Any

from openba.data.fields import Record
from openba.recipes.data import TaskRecipe, Turn

_MADE = {"examples", "labels", "letter", "option", "options", "history", "answer"}
"""Names of fields that hold other words than those of the question."""
_OPTION = re.compile(r"^\s*[(（]?([A-Za-z])[)）.．、:：]\s*(.*)$")
_HEADING = re.compile(r"^\s*(?:options|choices|选项|可选答案)\s*[:：]?\s*$", re.IGNORECASE)
_LETTER = re.compile(r"^\s*[(（]?([A-Za-z])[)）.．、]?\s*$")


def apart(text: str) -> tuple[str, dict[str, str]]:
    """Split a question whose last lines are its lettered options: the question, and letter -> option."""
    lines = text.rstrip().split("\n")
    options: dict[str, str] = {}
    while lines and (match := _OPTION.match(lines[-1])):
        options[match[1].upper()] = match[2]
        lines.pop()
    if len(options) < 2 or not lines:
        return text, {}
    if _HEADING.match(lines[-1]):
        lines.pop()
    return "\n".join(lines), dict(reversed(options.items()))


def question_of(recipe: TaskRecipe, turn: Turn, record: Record) -> list[str]:
    """Return the texts of the fields that a template's input names, in its order.

    Options, worded labels and texts of files beside the data are left out. Of a conversation
    these are the messages before the answer.
    """
    left_out = _MADE | recipe.wording.keys() | recipe.beside.keys() | set(_option_fields(recipe))
    texts = []
    for name, field, spec in _fields(turn.input):
        if name == "history":
            texts += _messages(record)
        elif name in recipe.marked:  # asterisks are the task's
            texts.append(str(record.fields[recipe.marked[name].text]))
        elif name not in left_out:
            texts.append(apart(f"{{{field}:{spec}}}".format_map(record.fields))[0])
    return [text for text in texts if text.strip()]


def answers_of(recipe: TaskRecipe, turn: Turn, record: Record) -> list[str]:
    """Return the right answer's text and then the texts of all options; none where the target is a label."""
    if recipe.options is not None:
        return [str(text) for text in (record.fields["option"], *record.fields["options"])]
    if recipe.choices:
        return []
    target = " ".join(_filled(turn.target, record))
    options: dict[str, str] = {}
    for text in _filled(turn.input, record):
        options |= apart(text)[1]
    if options and (letter := _LETTER.match(target)) and letter[1].upper() in options:
        return [options[letter[1].upper()], *options.values()]
    return [text for text in (target, *options.values()) if text.strip()]


def _option_fields(recipe: TaskRecipe) -> tuple[str, ...]:
    return recipe.options.of if recipe.options else ()


def _filled(template: str, record: Record) -> list[str]:
    fields = [(field, spec) for name, field, spec in _fields(template) if name != "examples"]
    return [f"{{{field}:{spec}}}".format_map(record.fields) for field, spec in fields]


def _fields(template: str) -> Iterable[tuple[str, str, str]]:
    """Yield (name, name with attributes and indices, format specification) of each field of a template."""
    for _, field, spec, _ in Formatter().parse(template):
        if field:
            yield field.split(".")[0].split("[")[0], field, spec or ""


def _messages(record: Record) -> list[str]:
    history: Any = record.fields["history"]
    contents = [message["content"] for message in record.fields["messages"]]
    return [content for content in contents if content and content in history]
