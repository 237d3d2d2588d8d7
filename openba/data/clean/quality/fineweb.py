"""Rules of FineWeb (Penedo et al., "The FineWeb datasets", 2024, section 3.5): lines that are lists.

The English form gives the verdicts of datatrove's filter with its defaults. In the Chinese form, which is
ours, lengths in characters are halved, since Chinese needs about half as many, and a word is a Han character.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from openba.data.clean.edit_matrix import remove_rows
from openba.data.clean.filter import Filter
from openba.data.clean.quality import words as word_table
from openba.data.clean.quality.lines import count_line_ends, count_repeats, scratch_table
from openba.data.clean.text_arrays import Texts, character_classes

_MIN_ENDED_LINES = 0.12
_MAX_SHORT_LINES = 0.67
_SHORT = 30
_SHORT_CHINESE = 15
_MAX_REPEATED = 0.01
_LINES_PER_WORD = 0.3
_LINES_PER_HAN = 0.18


class FineWebQuality(Filter):
    """Remove documents whose lines end no sentences, are short, repeat each other, or are many."""

    name = "fineweb"
    rules = ("few_ended_lines", "short_lines", "repeated_lines", "list")

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        is_chinese = word_table.find_chinese(texts)
        text_words = word_table.words(texts, is_chinese).without_blanks()
        word_counts = np.diff(text_words.offsets)
        short = np.where(is_chinese, _SHORT_CHINESE, _SHORT)
        lines, ended, short_lines, line_feeds = count_line_ends(
            texts.code_points, texts.offsets, character_classes(), word_table.word_kinds(), short
        ).T
        repeated = _count_repeated(texts.code_points, texts.offsets, character_classes())
        with np.errstate(divide="ignore", invalid="ignore"):  # no lines or words: no rule is broken
            broken = [
                ended / lines < _MIN_ENDED_LINES,
                short_lines / lines > _MAX_SHORT_LINES,
                repeated / (np.diff(texts.offsets) - line_feeds) > _MAX_REPEATED,
                line_feeds / word_counts > np.where(is_chinese, _LINES_PER_HAN, _LINES_PER_WORD),
            ]
        rules = np.select(broken, range(1, len(broken) + 1), 0)
        rows = np.flatnonzero(rules)
        return remove_rows(texts, rows, rules[rows])


@njit(cache=True, nogil=True)
def _count_repeated(code_points: np.ndarray, text_offsets: np.ndarray, class_table: np.ndarray) -> np.ndarray:
    """Return the characters of each text's lines that repeat an earlier one, int64 `[texts]`."""
    longest = max(1, np.diff(text_offsets).max()) if len(text_offsets) > 1 else 1
    slot_keys, slot_stamps = scratch_table(longest)
    repeated = np.zeros(len(text_offsets) - 1, np.int64)
    for row in range(len(text_offsets) - 1):
        _, _, repeated[row] = count_repeats(
            code_points,
            text_offsets[row],
            text_offsets[row + 1],
            1,
            True,
            class_table,
            slot_keys,
            slot_stamps,
            row + 1,
        )
    return repeated
