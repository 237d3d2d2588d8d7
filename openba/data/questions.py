"""Extract question and answers of a record in its own words, to search for contamination.

Prompt words, option letters, solved examples and label words come from the templates and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from string import Formatter

from openba.data.fields import Record
from openba.recipes.data import TaskRecipe, Turn

# Fields that do not have words of the question.
_OTHER_FIELDS = {"examples", "labels", "letter", "option", "options", "history", "answer"}
_OPTION = re.compile(r"^\s*[(（]?([A-Za-z])[)）.．、:：]\s*(.*)$")
_HEADING = re.compile(r"^\s*(?:options|choices|选项|可选答案)\s*[:：]?\s*$", re.IGNORECASE)
_LETTER = re.compile(r"^\s*[(（]?([A-Za-z])[)）.．、]?\s*$")


def apart(text: str) -> tuple[str, dict[str, str]]:
    """Split a question from lettered options in its last lines; return it, and letter -> option."""
    lines = text.rstrip().split("\n")
    options: dict[str, str] = {}
    while lines and (match := _OPTION.match(lines[-1])):
        options[match[1].upper()] = match[2]
        lines.pop()
    if len(options) < 2 or not lines:
        return text, {}
    # A line such as "Options:" above them.
    if _HEADING.match(lines[-1]):
        lines.pop()
    return "\n".join(lines), dict(reversed(options.items()))


def question_of(recipe: TaskRecipe, turn: Turn, record: Record) -> list[str]:
    """Return the texts of the fields that a template's input names, in its order.

    Options, worded labels and texts of files beside the data are left out. Of a conversation
    these are the messages before the answer.
    """
    option_fields = recipe.options.of if recipe.options else ()
    skipped_fields = _OTHER_FIELDS | recipe.wording.keys() | recipe.beside.keys() | set(option_fields)
    texts = []
    for name, field, spec in _fields(turn.input):
        if name == "history":
            texts += _messages(record)
        elif name in recipe.marked:  # asterisks are the task's
            texts.append(str(record.fields[recipe.marked[name].text]))
        elif name not in skipped_fields:
            texts.append(apart(f"{{{field}:{spec}}}".format_map(record.fields))[0])
    return [text for text in texts if text.strip()]


def answers_of(recipe: TaskRecipe, turn: Turn, record: Record) -> list[str]:
    """Return the right answer's text and then the texts of all options; none if the target is a label."""
    if recipe.options is not None:
        return [str(text) for text in (record.fields["option"], *record.fields["options"])]
    if recipe.choices:
        return []
    target = " ".join(_fill_fields(turn.target, record))
    options: dict[str, str] = {}
    for text in _fill_fields(turn.input, record):
        options |= apart(text)[1]
    if options and (letter := _LETTER.match(target)) and letter[1].upper() in options:
        return [options[letter[1].upper()], *options.values()]
    return [text for text in (target, *options.values()) if text.strip()]


def _fill_fields(template: str, record: Record) -> list[str]:
    """Return the texts of the fields that a template names, without the text between them."""
    fields = [(field, spec) for name, field, spec in _fields(template) if name != "examples"]
    return [f"{{{field}:{spec}}}".format_map(record.fields) for field, spec in fields]


def _fields(template: str) -> Iterable[tuple[str, str, str]]:
    """Yield (name, name with attributes and indices, format specification) of each field of a template."""
    for _, field, spec, _ in Formatter().parse(template):
        if field:
            yield field.split(".")[0].split("[")[0], field, spec or ""


def _messages(record: Record) -> list[str]:
    history: str = record.fields["history"]
    contents = [message["content"] for message in record.fields["messages"]]
    return [content for content in contents if content and content in history]
