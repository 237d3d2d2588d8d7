"""Filter of repeated characters and short sequences (paper section 3.1.1, character dedup)."""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
from numba import njit

from openba.data.clean.edit_matrix import COLUMNS, append
from openba.data.clean.filter import Filter
from openba.data.clean.text_arrays import DIGIT, LETTER, Texts, character_classes
from openba.recipes.clean import CleanRecipe

_LONGEST_UNIT = 8
_BLOCK = 256  # characters that are first tested for any repetition at all

# Bits of a character in a repetition.
_DIGIT = 1
_LETTER = 2
_SIGN = 4  # its number may carry meaning: stars, brackets, plus signs
_CELL = 8  # separates the cells of a table
_ROMAN = 16
_UNLIMITED = -1


class Repeats(Filter):
    """Shorten runs of a repeated unit of 1 to 8 characters to a number of instances.

    Digits stay at any length, as do indentation, table cells and Roman numerals. An ellipsis keeps six full
    stops or two ellipsis characters, a dash two.
    """

    name = "character_dedup"
    rules = ("repeat",)

    def __init__(self, instances: int, signs: int) -> None:
        """Set how much of a run stays.

        Args:
            instances: how many neighbours stay; 1 is the paper's wording.
            signs: how many stay of signs (★★★★★, ++++, ))))), emoji and words of one letter (AAAA, yyyy).
        """
        self.instances = instances
        self.signs = max(signs, instances)

    @classmethod
    def from_recipe(cls, recipe: CleanRecipe) -> Repeats:
        """Return the filter that the recipe describes."""
        return cls(instances=recipe.kept_repeats, signs=recipe.kept_signs)

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        return _find_repeats(
            texts.code_points, texts.offsets, _repetition_table(), self.instances, self.signs
        )


_RULE = 1  # `Repeats.rules[0]` in an edit matrix


@cache
def _repetition_table() -> np.ndarray:
    """Return the bits of every code point, uint8 `[0x110000]`."""
    classes_of = character_classes()
    repetition_table = np.zeros(0x110000, np.uint8)
    repetition_table[(classes_of & DIGIT) > 0] |= _DIGIT
    repetition_table[[ord(c) for c in "〇零"]] |= _DIGIT
    repetition_table[(classes_of & LETTER) > 0] |= _LETTER
    repetition_table[[ord(c) for c in "IVXLCDM"]] |= _ROMAN
    repetition_table[[ord(c) for c in "|｜\t\u3000"]] |= _CELL
    symbols = [
        c for c in range(0x20000) if unicodedata.category(chr(c)) in ("So", "Sm", "Sc", "Sk", "Me", "Mn")
    ]
    repetition_table[symbols] |= _SIGN
    repetition_table[[ord(c) for c in "#$%&'()*+,-/:;<=>@[\\]^_`{|}\"\u200d"]] |= _SIGN
    repetition_table[[ord(c) for c in "~～〜"]] = 0
    return repetition_table


@njit(cache=True, nogil=True)
def _as_ascii(code_point: int) -> int:
    """Return the ASCII form of a full-width letter or digit, other characters as they are."""
    return code_point - 0xFEE0 if 0xFF10 <= code_point <= 0xFF5A else code_point


@njit(cache=True, nogil=True)
def _is_ascii_word(code_point: int) -> bool:
    code_point = _as_ascii(code_point)
    return 48 <= code_point <= 57 or 65 <= code_point <= 90 or 97 <= code_point <= 122 or code_point == 95


@njit(cache=True, nogil=True)
def _limit_of_letter(
    code_points: np.ndarray,
    text_start: int,
    start: int,
    stop: int,
    text_end: int,
    repetition_table: np.ndarray,
    instances: int,
    signs: int,
) -> int:
    """Return how many instances of one Latin letter may stay.

    There is no limit in a word with digits and in Roman numerals. The limit of signs holds where the letter
    is the entire word, as in AAAA, yyyy or XXXX.
    """
    word_start = start
    word_end = stop
    while word_start > text_start and start - word_start < 64 and _is_ascii_word(code_points[word_start - 1]):
        word_start -= 1
    while word_end < text_end and word_end - stop < 64 and _is_ascii_word(code_points[word_end]):
        word_end += 1
    common_bits = np.uint8(255)
    any_bits = np.uint8(0)
    for position in range(word_start, word_end):
        kind = repetition_table[_as_ascii(code_points[position])]
        common_bits &= kind
        any_bits |= kind
    if any_bits & _DIGIT or common_bits & _ROMAN:
        return _UNLIMITED
    return signs if word_start == start and word_end == stop else instances


@njit(cache=True, nogil=True)
def _separates_cells(
    code_points: np.ndarray, start: int, unit_length: int, repetition_table: np.ndarray
) -> bool:
    """Return whether a unit holds a cell separator: bar, tab, two spaces, comma without a following space."""
    for position in range(start, start + unit_length):
        code_point = code_points[position]
        next_code_point = code_points[position + 1]
        if repetition_table[code_point] & _CELL or (
            code_point == 32 and next_code_point == 32 and unit_length > 1
        ):
            return True
        if (
            (code_point == 44 or code_point == 59)
            and next_code_point != 32
            and next_code_point < 128
            and (unit_length > 1 or code_point == 44)
        ):
            return True
    return False


@njit(cache=True, nogil=True)
def _limit(
    code_points: np.ndarray,
    text_start: int,
    start: int,
    stop: int,
    text_end: int,
    unit_length: int,
    repetition_table: np.ndarray,
    instances: int,
    signs: int,
) -> int:
    """Return how many instances of a repeated unit may stay."""
    common_bits = np.uint8(255)
    any_bits = np.uint8(0)
    word_count = 0
    space_count = 0
    for position in range(start, start + unit_length):
        kind = repetition_table[code_points[position]]
        any_bits |= kind
        space_count += code_points[position] == 32
        word_count += _is_ascii_word(code_points[position])
        common_bits &= kind if code_points[position] != 32 else np.uint8(255)
    # Numbers: 1000000 and 10101010 mean something else when shortened.
    if any_bits & _DIGIT and (not any_bits & _LETTER or word_count == unit_length):
        return _UNLIMITED
    if _separates_cells(code_points, start, unit_length, repetition_table):
        return _UNLIMITED
    if space_count == unit_length:  # indentation
        return _UNLIMITED if start == text_start or code_points[start - 1] == 10 else instances
    if unit_length == 1 and word_count == 1 and any_bits & _LETTER:
        return _limit_of_letter(
            code_points, text_start, start, stop, text_end, repetition_table, instances, signs
        )
    if common_bits & _SIGN:
        return signs
    if unit_length == 1 and code_points[start] == 46:  # full stops
        return max(6, instances)
    if unit_length == 1 and (code_points[start] == 0x2026 or code_points[start] == 0x2014):  # … and —
        return 2
    return instances


@njit(cache=True, nogil=True)
def _repeated_unit(code_points: np.ndarray, position: int, text_end: int, min_instances: int) -> int:
    """Return the length of the shortest unit that occurs `min_instances` times in a row from here, else 0."""
    for unit_length in range(1, _LONGEST_UNIT + 1):
        if position + min_instances * unit_length > text_end:
            return 0
        if code_points[position] != code_points[position + unit_length]:
            continue
        required_count = (min_instances - 1) * unit_length
        equal_count = 1
        while (
            equal_count < required_count
            and code_points[position + equal_count] == code_points[position + equal_count + unit_length]
        ):
            equal_count += 1
        if equal_count == required_count:
            return unit_length
    return 0


@njit(cache=True, nogil=True)
def _has_repeats(code_points: np.ndarray, min_instances: int) -> bool:
    """Return whether some unit of 1 to 8 characters occurs `min_instances` times in a row.

    Then (least - 1) * unit neighbouring characters equal those one unit later, and one of them stands at a
    multiple of that number. Testing only multiples takes few comparisons a character for all eight units.
    """
    for unit_length in range(1, _LONGEST_UNIT + 1):
        last = len(code_points) - unit_length
        required_count = (min_instances - 1) * unit_length
        for position in range(0, last, required_count):
            if code_points[position] != code_points[position + unit_length]:
                continue
            first = position
            stop = position + 1
            while first > 0 and code_points[first - 1] == code_points[first - 1 + unit_length]:
                first -= 1
            while stop < last and code_points[stop] == code_points[stop + unit_length]:
                stop += 1
            if stop - first >= required_count:
                return True
    return False


@njit(cache=True, nogil=True)
def _find_repeats(
    code_points: np.ndarray,
    text_offsets: np.ndarray,
    repetition_table: np.ndarray,
    instances: int,
    signs: int,
) -> np.ndarray:
    edits = np.empty((64, COLUMNS), np.int64)
    edit_count = 0
    min_instances = instances + 1
    for row in range(len(text_offsets) - 1):
        text_start = text_offsets[row]
        text_end = text_offsets[row + 1]
        position = block_end = text_start
        while position < text_end:
            if position >= block_end:  # skip blocks in which no repetition begins
                while position < text_end:
                    stop = min(text_end, position + _BLOCK + min_instances * _LONGEST_UNIT)
                    if _has_repeats(code_points[position:stop], min_instances):
                        break
                    position += _BLOCK
                block_end = position + _BLOCK
                if position >= text_end:
                    break
            unit_length = _repeated_unit(code_points, position, text_end, min_instances)
            if unit_length == 0:
                position += 1
                continue
            # The run may be longer than the minimum.
            stop = position + min_instances * unit_length
            while stop + unit_length <= text_end:
                equal_count = 0
                while (
                    equal_count < unit_length
                    and code_points[stop + equal_count] == code_points[position + equal_count]
                ):
                    equal_count += 1
                if equal_count < unit_length:
                    break
                stop += unit_length
            max_instances = _limit(
                code_points,
                text_start,
                position,
                stop,
                text_end,
                unit_length,
                repetition_table,
                instances,
                signs,
            )
            if max_instances != _UNLIMITED and max_instances * unit_length < stop - position:
                edits, edit_count = append(
                    edits, edit_count, row, position + max_instances * unit_length, stop, _RULE
                )
            position = stop
    return edits[:edit_count]
