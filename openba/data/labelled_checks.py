"""Check all pairs of labelled data: inputs that are all equal, empty fields, control text in targets.

These make a data set useless although each of its pairs is well-formed.
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

# Different records of a template below which inputs are not checked: a few records may be alike.
_MIN_RECORDS = 20
# Distinct inputs of a template per distinct record, up to which the data is refused, and below which there is
# a warning.
_REFUSED_SHARE = 0.01
_WARNED_SHARE = 0.9
CONTROL = re.compile(r"<\|\w+\|>|</s>\s*$|<extra_id_\d+>|<(?:pad|unk|eo[a-z])>")
"""Control text of tokenizers and chat formats, which a model would learn to write."""


class LabelledChecks:
    """Collector of what the checks need while pairs are rendered: 17 bytes per pair."""

    def __init__(self, recipe: TaskRecipe, where: str) -> None:
        self.recipe = recipe
        self.where = where
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
        """Register a record before its pairs: its content, and which fields of the templates are filled."""
        self._records += 1
        fields = {name: value for name, value in record.fields.items() if name != "id"}
        # Without the id, which differs in otherwise equal records.
        self._content = xxhash.xxh3_64_intdigest(orjson.dumps(fields, default=str))
        if self._empty:
            self._empty -= {name for name in self._empty if str(record.fields.get(name, "")).strip()}

    def add_pair(self, template: int, asks: int, source: str, target: str) -> None:
        """Register a pair.

        Args:
            template: its number.
            asks: digest of the question; of a conversation's history, which is then the content to compare.
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
        """Return one line for each probable mistake.

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
            is_of_template = templates == template
            record_count = len(np.unique(contents[is_of_template]))
            input_count = len(np.unique(inputs[is_of_template]))
            if record_count < _MIN_RECORDS or input_count >= _WARNED_SHARE * record_count:
                continue
            line = (
                f"{self.where}: template {self.recipe.templates[template].input!r:.80} makes {input_count:,} "
                f"different inputs of {record_count:,} different records, "
                f"such as {self._example[template]!r:.80}"
            )
            if input_count <= max(1, _REFUSED_SHARE * record_count):
                raise UserError(f"{line}; name the field that differs from record to record")
            lines.append(line)
        return lines
