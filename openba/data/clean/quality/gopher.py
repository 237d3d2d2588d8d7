"""Rules of MassiveText: quality of a document and repetition within it.

Source: Rae et al., "Scaling language models: methods, analysis and insights from training Gopher", 2021,
appendix A.1.

The English form gives datatrove's verdicts (its two Gopher filters with their defaults). In the Chinese form,
which is ours, a word is one Han character; an English word stands for about 1.7 of them, so limits that count
words are multiplied by that, and rules about the length of words are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from openba.data.clean.edit_matrix import remove_rows
from openba.data.clean.filter import Filter
from openba.data.clean.quality import words as word_table
from openba.data.clean.quality.lines import count_marks, count_repeats, find_slot, scratch_table, strip
from openba.data.clean.quality.words import ALPHABETIC, NO_SYMBOL, Words
from openba.data.clean.text_arrays import Texts, character_classes

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class _Limits(NamedTuple):
    """Limits of `GopherQuality` for a language."""

    min_words: int
    max_words: int
    min_word_length: float
    max_word_length: float
    marks_per_word: float
    min_alphabetic: float
    stop_words: tuple[str, ...]


_ENGLISH = _Limits(50, 100_000, 3, 10, 0.1, 0.8, ("the", "be", "to", "of", "and", "that", "have", "with"))
_CHINESE = _Limits(85, 170_000, 0, np.inf, 0.06, 0.7, tuple("的了是在和有不这"))
_MAX_BULLET_LINES = 0.9
_MAX_ELLIPSIS_LINES = 0.3
_MIN_STOP_WORDS = 2


class GopherQuality(Filter):
    """Remove documents that are too short or too long, of odd words, symbols or lists, without stop words."""

    name = "gopher"
    rules = (
        "few_words", "many_words", "short_words", "long_words", "hashes", "ellipses", "bullet_lines",
        "ellipsis_lines", "few_letters", "few_stop_words",
    )  # fmt: skip

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        is_chinese = word_table.find_chinese(texts)
        text_words = word_table.words(texts, is_chinese).without_blanks()
        marks = count_marks(texts.code_points, texts.offsets, character_classes())
        rules = np.zeros(len(is_chinese), np.int64)
        for limits, is_chosen in ((_ENGLISH, ~is_chinese), (_CHINESE, is_chinese)):
            rules = np.where(is_chosen, self._rules(limits, text_words, marks), rules)
        rows = np.flatnonzero(rules)
        return remove_rows(texts, rows, rules[rows])

    def _rules(self, limits: _Limits, text_words: Words, marks: np.ndarray) -> np.ndarray:
        """Return the number of the first rule that each text breaks, 0 if none, int64 `[texts]`."""
        stop_words = word_table.hashes_of(limits.stop_words)
        count, without_symbols, characters, alphabetic, distinct_stop_words = _count_words(
            text_words.hashes, text_words.lengths, text_words.kinds, text_words.offsets, stop_words
        ).T
        lines, bullet_lines, ellipsis_lines, hashes, ellipses = marks.T
        with np.errstate(divide="ignore", invalid="ignore"):  # texts without words break the first rule
            mean_length = characters / without_symbols
            broken = [
                without_symbols < limits.min_words,
                without_symbols > limits.max_words,
                mean_length < limits.min_word_length,
                mean_length > limits.max_word_length,
                hashes / count > limits.marks_per_word,
                ellipses / count > limits.marks_per_word,
                bullet_lines / lines > _MAX_BULLET_LINES,
                ellipsis_lines / lines > _MAX_ELLIPSIS_LINES,
                alphabetic / count < limits.min_alphabetic,
                distinct_stop_words < _MIN_STOP_WORDS,
            ]
        return np.select(broken, range(1, len(broken) + 1), 0)


class GopherRepetition(Filter):
    """Remove documents with too many repeated paragraphs, lines and runs of words (Table A1)."""

    name = "gopher_repetition"
    rules = (
        "paragraphs", "paragraph_characters", "lines", "line_characters",
        "top_2_words", "top_3_words", "top_4_words",
        "repeated_5_words", "repeated_6_words", "repeated_7_words",
        "repeated_8_words", "repeated_9_words", "repeated_10_words",
    )  # fmt: skip

    _PIECES = (0.3, 0.2, 0.3, 0.2)
    """Largest shares of repeated paragraphs and of their characters, then of lines."""
    _TOP = (0.2, 0.18, 0.16)
    _REPEATED = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    _ENGLISH_UNITS = (2, 3, 4, 5, 6, 7, 8, 9, 10)
    _CHINESE_UNITS = (3, 5, 7, 9, 10, 12, 14, 15, 17)

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        is_chinese = word_table.find_chinese(texts)
        text_words = word_table.words(texts, is_chinese).without_blanks()
        units = np.where(is_chinese[:, None], self._CHINESE_UNITS, self._ENGLISH_UNITS).astype(np.int64)
        limits = np.array([*self._PIECES, *self._TOP, *self._REPEATED])
        rules = _find_repetition(
            texts.code_points, texts.offsets, text_words.hashes, text_words.lengths, text_words.offsets,
            units, limits, len(self._TOP), character_classes(),
        )  # fmt: skip
        rows = np.flatnonzero(rules)
        return remove_rows(texts, rows, rules[rows])


@njit(cache=True, nogil=True)
def _count_words(
    hashes: np.ndarray,
    lengths: np.ndarray,
    kinds: np.ndarray,
    row_offsets: np.ndarray,
    stop_words: np.ndarray,
) -> np.ndarray:
    """Return per text: words, those that are no symbols and their characters, with letters, stop words."""
    counts = np.zeros((len(row_offsets) - 1, 5), np.int64)
    for row in range(len(row_offsets) - 1):
        seen = 0
        for index in range(row_offsets[row], row_offsets[row + 1]):
            counts[row, 0] += 1
            if kinds[index] & NO_SYMBOL:
                counts[row, 1] += 1
                counts[row, 2] += lengths[index]
            counts[row, 3] += kinds[index] & ALPHABETIC != 0
            for number in range(len(stop_words)):
                if hashes[index] == stop_words[number] and not seen >> number & 1:
                    seen |= 1 << number
                    counts[row, 4] += 1
    return counts


@njit(cache=True, nogil=True)
def _find_repetition(
    code_points: np.ndarray,
    text_offsets: np.ndarray,
    hashes: np.ndarray,
    lengths: np.ndarray,
    row_offsets: np.ndarray,
    units: np.ndarray,
    limits: np.ndarray,
    top_count: int,
    class_table: np.ndarray,
) -> np.ndarray:
    """Return the number of the first rule that each text breaks, 0 if none, int64 `[texts]`."""
    longest = max(1, np.diff(text_offsets).max()) if len(text_offsets) > 1 else 1
    slot_keys, slot_stamps = scratch_table(longest)
    counts = np.zeros(len(slot_keys), np.int64)
    run_slots = np.empty(longest + 1, np.int64)
    current_stamp = 0
    rules = np.zeros(len(text_offsets) - 1, np.int64)
    for row in range(len(text_offsets) - 1):
        start = text_offsets[row]
        end = text_offsets[row + 1]
        size = end - start
        if size == 0:
            continue
        stripped_start, stripped_end = strip(code_points, start, end, class_table)
        pieces, repeats, characters = count_repeats(
            code_points,
            stripped_start,
            stripped_end,
            2,
            False,
            class_table,
            slot_keys,
            slot_stamps,
            current_stamp + 1,
        )
        lines, line_repeats, line_characters = count_repeats(
            code_points, start, end, 1, False, class_table, slot_keys, slot_stamps, current_stamp + 2
        )
        current_stamp += 2
        shares = (repeats / pieces, characters / size, line_repeats / lines, line_characters / size)
        rule = 0
        for index in range(4):
            if rule == 0 and shares[index] > limits[index]:
                rule = index + 1
        first = row_offsets[row]
        last = row_offsets[row + 1]
        for index in range(units.shape[1]):
            length = units[row, index]
            if rule or last - first < length:
                continue
            current_stamp += 1
            if index < top_count:
                characters = _top_characters(
                    hashes,
                    lengths,
                    first,
                    last,
                    length,
                    slot_keys,
                    slot_stamps,
                    counts,
                    run_slots,
                    current_stamp,
                )
            else:
                characters = _repeated_characters(
                    hashes, lengths, first, last, length, slot_keys, slot_stamps, current_stamp
                )
            if characters / size > limits[4 + index]:
                rule = 5 + index
        rules[row] = rule
    return rules


@njit(cache=True, nogil=True)
def _top_characters(
    hashes: np.ndarray,
    lengths: np.ndarray,
    first: int,
    last: int,
    length: int,
    slot_keys: np.ndarray,
    slot_stamps: np.ndarray,
    counts: np.ndarray,
    run_slots: np.ndarray,
    current_stamp: int,
) -> int:
    """Return the characters of all occurrences of the most frequent run of so many words, blanks included."""
    for index in range(first, last - length + 1):
        key = _run_key(hashes, index, length)
        slot = find_slot(slot_keys, slot_stamps, key, current_stamp)
        if slot_stamps[slot] != current_stamp:
            slot_stamps[slot] = current_stamp
            slot_keys[slot] = key
            counts[slot] = 0
        counts[slot] += 1
        run_slots[index - first] = slot
    most = 0
    top = first
    for index in range(first, last - length + 1):  # of equally frequent runs the first one counts
        if counts[run_slots[index - first]] > most:
            most = counts[run_slots[index - first]]
            top = index
    return most * (lengths[top : top + length].sum() + length - 1)


@njit(cache=True, nogil=True)
def _repeated_characters(
    hashes: np.ndarray,
    lengths: np.ndarray,
    first: int,
    last: int,
    length: int,
    slot_keys: np.ndarray,
    slot_stamps: np.ndarray,
    current_stamp: int,
) -> int:
    """Return the characters of runs that occurred before; after one the search goes on behind it."""
    characters = 0
    index = first
    while index <= last - length:
        key = _run_key(hashes, index, length)
        slot = find_slot(slot_keys, slot_stamps, key, current_stamp)
        if slot_stamps[slot] == current_stamp:
            for position in range(index, index + length):
                characters += lengths[position]
            index += length
        else:
            slot_stamps[slot] = current_stamp
            slot_keys[slot] = key
            index += 1
    return characters


@njit(cache=True, nogil=True)
def _run_key(hashes: np.ndarray, start: int, length: int) -> np.uint64:
    mixed = np.uint64(length)
    for index in range(start, start + length):
        mixed = (mixed ^ hashes[index]) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(32)
    return mixed
