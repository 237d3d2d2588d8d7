"""Checks over all pairs of a task: inputs that are all the same, empty fields, control text in targets.

Owns what makes a task degenerate although each of its pairs is well-formed. It renders nothing and
discards nothing (`openba.data.tasks`).
"""

from __future__ import annotations

import re
from array import array
from collections import Counter

import numpy as np
import orjson
import xxhash

from openba.data.fields import Record, names_in
from openba.errors import UserError
from openba.recipes.data import TaskRecipe

_FEWEST_RECORDS = 20
"""Different records of a template below which nothing is said: a handful may well be alike."""
_REFUSED = 0.01
"""Different inputs of a template, as a share of its different records, up to which a task is refused."""
_WARNED = 0.9
"""The same share below which a warning is given."""
CONTROL = re.compile(r"<\|\w+\|>|</s>\s*$|<extra_id_\d+>|<(?:pad|unk|eo[a-z])>")
"""Control text of tokenizers and chat formats, which a model would learn to write out."""


class TaskChecks:
    """Collects what the checks need while a task is rendered: 17 bytes a pair."""

    def __init__(self, recipe: TaskRecipe, where: str) -> None:
        self.recipe, self.where = recipe, where
        self._inputs = array("Q")
        self._contents = array("Q")
        self._templates = array("B")
        self._content = 0
        self._example: dict[int, str] = {}
        self._control: Counter[str] = Counter()
        self._records = 0
        self._empty = {
            name
            for turn in recipe.templates
            for name in names_in((turn.input, turn.target))
            if name not in ("examples", "history", "answer")
        }

    def add_record(self, record: Record) -> None:
        """Note what a record holds and which fields of the templates are filled in; its pairs follow."""
        self._records += 1
        fields = {name: value for name, value in record.fields.items() if name != "id"}
        self._content = xxhash.xxh3_64_intdigest(orjson.dumps(fields, default=str))
        if self._empty:
            self._empty -= {name for name in self._empty if str(record.fields.get(name, "")).strip()}

    def add_pair(self, template: int, asks: int, source: str, target: str) -> None:
        """Note one pair.

        Args:
            template: its number.
            asks: digest of what is asked, in a conversation of its history: it stands for the content there.
            source: the input without solved examples.
            target: the target.
        """
        self._contents.append(asks if self.recipe.conversation else self._content)
        self._inputs.append(xxhash.xxh3_64_intdigest(source.encode()))
        self._templates.append(template)
        self._example.setdefault(template, source)
        if "<" in target and (control := CONTROL.search(target)):
            self._control[control[0].strip()] += 1

    def warnings(self) -> list[str]:
        """Return one line for each thing that is probably a mistake.

        Raises:
            UserError: a template gives nearly all records the same input.
        """
        lines = list(self._repeated_inputs())
        lines += [
            f"{self.where}: field {name!r} is empty in all {self._records:,} records, and a template names it"
            for name in sorted(self._empty)
            if self._records
        ]
        lines += [
            f"{self.where}: {count:,} targets hold the control text {text!r}; take it out: "
            f"replace: {{{text!r}: ''}}"
            for text, count in self._control.most_common(3)
        ]
        return lines

    def _repeated_inputs(self) -> list[str]:
        inputs = np.array(self._inputs, np.uint64)
        contents = np.array(self._contents, np.uint64)
        templates = np.array(self._templates, np.uint8)
        lines = []
        for template in np.unique(templates).tolist():
            drawn = templates == template
            records, distinct = len(np.unique(contents[drawn])), len(np.unique(inputs[drawn]))
            if records < _FEWEST_RECORDS or distinct >= _WARNED * records:
                continue
            line = (
                f"{self.where}: template {self.recipe.templates[template].input!r:.80} makes {distinct:,} "
                f"different inputs of {records:,} different records, such as {self._example[template]!r:.80}"
            )
            if distinct <= max(1, _REFUSED * records):
                raise UserError(f"{line}; name the field that differs from record to record")
            lines.append(line)
        return lines
