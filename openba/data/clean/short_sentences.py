"""Filter of sentences with few words (paper section 3.1.1), and what counts as a word."""

from __future__ import annotations

import numpy as np
from numba import njit

from openba.data.clean.edit_matrix import COLUMNS, append
from openba.data.clean.filter import Filter
from openba.data.clean.sentences import line_break, split
from openba.data.clean.text_arrays import HAN, WORD, Texts, character_classes
from openba.recipes.clean import CleanRecipe


class ShortSentences(Filter):
    """Remove sentences with fewer words than a minimum; neighbouring ones become one edit."""

    name = "min_words"
    rules = ("short_sentence",)

    def __init__(self, minimum: int, literal: bool = False) -> None:
        """Set the minimum.

        Args:
            minimum: words; a Han character is one, and so is a run of other letters or digits.
            literal: end a sentence at every stop and line feed, see `sentences.split`.
        """
        self.minimum = minimum
        self.literal = literal

    @classmethod
    def from_recipe(cls, recipe: CleanRecipe) -> ShortSentences:
        """Return the filter that the recipe describes."""
        return cls(minimum=recipe.min_words, literal=recipe.literal_sentences)

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        sentence_ends, first_sentences = split(texts, self.literal)
        return _find_short(
            texts.code_points,
            texts.offsets,
            sentence_ends,
            first_sentences,
            self.minimum,
            character_classes(),
        )


_RULE = 1  # `ShortSentences.rules[0]` in an edit matrix


@njit(cache=True, nogil=True)
def _count_words(
    code_points: np.ndarray, start: int, end: int, max_count: int, class_table: np.ndarray
) -> int:
    """Return the number of words from start to end; counting stops at `max_count`."""
    count = 0
    position = start
    while position < end and count < max_count:
        classes = class_table[code_points[position]]
        code_point = code_points[position]
        if classes & HAN:
            count += 1
            position += 1
        elif classes & WORD and code_point != 95:
            count += 1
            position += 1
            while position < end:
                code_point = code_points[position]
                is_joining = (
                    code_point == 46
                    or code_point == 44
                    or code_point == 39
                    or code_point == 0x2019
                    or code_point == 45
                )  # . , ' ’ -
                if (
                    is_joining
                    and position + 1 < end
                    and class_table[code_points[position + 1]] & (WORD | HAN) == WORD
                    and code_points[position + 1] != 95
                ):
                    position += 2
                elif class_table[code_point] & (WORD | HAN) == WORD and code_point != 95:
                    position += 1
                else:
                    break
        else:
            position += 1
    return count


@njit(cache=True, nogil=True)
def _find_short(
    code_points: np.ndarray,
    text_offsets: np.ndarray,
    sentence_ends: np.ndarray,
    first_sentences: np.ndarray,
    minimum: int,
    class_table: np.ndarray,
) -> np.ndarray:
    edits = np.empty((64, COLUMNS), np.int64)
    edit_count = 0
    for row in range(len(text_offsets) - 1):
        sentence_start = text_offsets[row]
        removal_start = -1
        for sentence in range(first_sentences[row], first_sentences[row + 1] + 1):
            is_past_last = sentence == first_sentences[row + 1]
            is_short = (
                not is_past_last
                and _count_words(code_points, sentence_start, sentence_ends[sentence], minimum, class_table)
                < minimum
            )
            if is_short and removal_start < 0:
                removal_start = sentence_start
            if not is_short and removal_start >= 0:
                replacement = line_break(code_points, text_offsets[row], removal_start, sentence_start)
                edits, edit_count = append(
                    edits, edit_count, row, removal_start, sentence_start, _RULE, replacement
                )
                removal_start = -1
            if not is_past_last:
                sentence_start = sentence_ends[sentence]
    return edits[:edit_count]
