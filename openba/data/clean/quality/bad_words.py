"""Filter of documents that hold a word of a list of the user's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from openba.data.clean import text_arrays
from openba.data.clean.edit_matrix import remove_rows
from openba.data.clean.filter import Filter
from openba.data.clean.text_arrays import HAN, Texts, character_classes
from openba.recipes.clean import BadWordsRecipe, require_same_contents

_NO_WORD = r"[^\pL\pN_]"


class BadWords(Filter):
    """Remove documents with a listed word, in any case.

    A word with Han characters counts wherever it stands, another one only between characters that are no
    letters, digits or _ (as C4 does).
    """

    name = "bad_words"
    rules = ("bad_word",)

    def __init__(self, listed: Iterable[str]) -> None:
        """Take the words; an empty list removes nothing."""
        entries = sorted({word.strip().lower() for word in listed} - {""})
        within = [re.escape(word) for word in entries if _has_han(word)]
        alone = [re.escape(word) for word in entries if not _has_han(word)]
        patterns = ["|".join(within)] if within else []
        if alone:
            patterns.append(f"(?:^|{_NO_WORD})(?:{'|'.join(alone)})(?:$|{_NO_WORD})")
        self._patterns = patterns

    @classmethod
    def from_recipe(cls, recipe: BadWordsRecipe) -> BadWords:
        """Read the files that the recipe names.

        Raises:
            UserError: a file cannot be read, or is another one than where the pipeline was started.
        """
        require_same_contents(recipe, f"clean.bad_words: {', '.join(recipe.files)}")
        contents = [Path(file).read_text(encoding="utf-8") for file in recipe.files]
        return cls(line for content in contents for line in content.splitlines())

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        column = text_arrays.encode(texts)
        is_bad = np.zeros(len(column), bool)
        for pattern in self._patterns:
            is_bad |= pc.match_substring_regex(column, pattern, ignore_case=True).to_numpy(False)
        return remove_rows(texts, np.flatnonzero(is_bad), 1)


def _has_han(word: str) -> bool:
    return bool((character_classes()[np.frombuffer(word.encode("utf-32-le"), np.uint32)] & HAN).any())
