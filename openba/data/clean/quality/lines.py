"""Lines of texts for the quality rules: their borders as Python's `str.splitlines` finds them, and counts."""

from __future__ import annotations

import numpy as np
from numba import njit

from openba.data.clean.quality.words import ENDS_SENTENCE
from openba.data.clean.text_arrays import SPACE

_SEED = np.uint64(0x8CB92BA72F3D8DD7)
_MULTIPLIER = np.uint64(0xC2B2AE3D27D4EB4F)
_ELLIPSIS = 0x2026


@njit(cache=True, nogil=True, inline="always")
def is_line_end(code_point: int) -> bool:
    """Return whether `str.splitlines` ends a line at this character."""
    return (
        10 <= code_point <= 13
        or 0x1C <= code_point <= 0x1E
        or code_point == 0x85
        or code_point == 0x2028
        or code_point == 0x2029
    )


@njit(cache=True, nogil=True)
def next_line(code_points: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """Return where the line that begins at `start` ends, and where the next one begins."""
    position = start
    while position < end and not is_line_end(code_points[position]):
        position += 1
    following = min(position + 1, end)
    is_pair = following < end and code_points[position] == 13 and code_points[following] == 10
    return position, following + is_pair


@njit(cache=True, nogil=True)
def strip(code_points: np.ndarray, start: int, end: int, class_table: np.ndarray) -> tuple[int, int]:
    """Return the span without the white space around it."""
    while start < end and class_table[code_points[start]] & SPACE:
        start += 1
    while end > start and class_table[code_points[end - 1]] & SPACE:
        end -= 1
    return start, end


@njit(cache=True, nogil=True)
def ends_in_ellipsis(code_points: np.ndarray, start: int, end: int) -> bool:
    """Return whether a span ends with three full stops."""
    if end - start < 3:
        return False
    return code_points[end - 1] == 46 and code_points[end - 2] == 46 and code_points[end - 3] == 46


@njit(cache=True, nogil=True)
def count_marks(code_points: np.ndarray, text_offsets: np.ndarray, class_table: np.ndarray) -> np.ndarray:
    """Return per text: lines, lines with a bullet, lines that end in an ellipsis, #, and ellipses.

    int64 `[texts, 5]`.
    """
    counts = np.zeros((len(text_offsets) - 1, 5), np.int64)
    for row in range(len(text_offsets) - 1):
        line_start = text_offsets[row]
        row_end = text_offsets[row + 1]
        while line_start < row_end:
            line_end, following = next_line(code_points, line_start, row_end)
            start, end = strip(code_points, line_start, line_end, class_table)
            counts[row, 0] += 1
            if start < end:
                counts[row, 1] += code_points[start] == 0x2022 or code_points[start] == 45  # • -
                counts[row, 2] += code_points[end - 1] == _ELLIPSIS or ends_in_ellipsis(
                    code_points, start, end
                )
            line_start = following
        dots = 0
        for position in range(text_offsets[row], row_end):
            code_point = code_points[position]
            counts[row, 3] += code_point == 35
            dots = dots + 1 if code_point == 46 else 0
            if dots == 3 or code_point == _ELLIPSIS:
                counts[row, 4] += 1
                dots = 0
    return counts


@njit(cache=True, nogil=True)
def scratch_table(entries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and stamps of an empty hash table that is at most half full with so many entries.

    A new stamp empties the table, so that one serves all texts.
    """
    size = 16
    while size < 2 * entries + 2:
        size *= 2
    return np.empty(size, np.uint64), np.zeros(size, np.int64)


@njit(cache=True, nogil=True)
def find_slot(slot_keys: np.ndarray, slot_stamps: np.ndarray, key: np.uint64, current_stamp: int) -> np.int64:
    """Return the slot of a key, or the free one that it would get."""
    mask = len(slot_keys) - 1
    slot = np.int64(key & np.uint64(mask))
    while slot_stamps[slot] == current_stamp and slot_keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, nogil=True)
def count_repeats(
    code_points: np.ndarray,
    start: int,
    end: int,
    newlines: int,
    skips_blank: bool,
    class_table: np.ndarray,
    slot_keys: np.ndarray,
    slot_stamps: np.ndarray,
    current_stamp: int,
) -> tuple[int, int, int]:
    """Return how many pieces a text has, how many repeat an earlier one, and the characters of these.

    Args:
        code_points: of the batch.
        start: of the text.
        end: of the text.
        newlines: so many or more line feeds divide two pieces.
        skips_blank: leave out pieces of white space, and divide at each single line feed.
        class_table: `character_classes()`.
        slot_keys: of `scratch_table` for at least as many entries as there are pieces.
        slot_stamps: the same.
        current_stamp: number that `slot_stamps` does not hold yet.
    """
    pieces = 0
    repeats = 0
    repeated_characters = 0
    piece_start = start
    while True:
        piece_end = piece_start
        following = piece_start
        while piece_end < end:
            following = piece_end
            while following < end and code_points[following] == 10:
                following += 1
                if skips_blank:
                    break
            if following - piece_end >= newlines:
                break
            piece_end = max(following, piece_end + 1)
        is_last = piece_end >= end
        piece_end = min(piece_end, end)
        stripped_start, stripped_end = strip(code_points, piece_start, piece_end, class_table)
        if not (skips_blank and stripped_start == stripped_end):
            pieces += 1
            mixed = _SEED
            for position in range(piece_start, piece_end):
                mixed = (mixed ^ np.uint64(code_points[position])) * _MULTIPLIER
                mixed ^= mixed >> np.uint64(29)
            slot = find_slot(slot_keys, slot_stamps, mixed, current_stamp)
            if slot_stamps[slot] == current_stamp:
                repeats += 1
                repeated_characters += piece_end - piece_start
            slot_stamps[slot] = current_stamp
            slot_keys[slot] = mixed
        if is_last:
            return pieces, repeats, repeated_characters
        piece_start = following


@njit(cache=True, nogil=True)
def count_line_ends(
    code_points: np.ndarray,
    text_offsets: np.ndarray,
    class_table: np.ndarray,
    kinds: np.ndarray,
    short: np.ndarray,
) -> np.ndarray:
    """Return per text: lines that are not blank, those that end a sentence, short ones, and line feeds.

    Args:
        code_points: of the batch.
        text_offsets: of the texts.
        class_table: `character_classes()`.
        kinds: `word_kinds()`.
        short: per text, characters of a line up to which it is short, int64 `[texts]`.

    Returns:
        int64 `[texts, 4]`.
    """
    counts = np.zeros((len(text_offsets) - 1, 4), np.int64)
    for row in range(len(text_offsets) - 1):
        line_start = text_offsets[row]
        row_end = text_offsets[row + 1]
        while line_start <= row_end:
            line_end = line_start
            while line_end < row_end and code_points[line_end] != 10:
                line_end += 1
            start, end = strip(code_points, line_start, line_end, class_table)
            if start < end:
                counts[row, 0] += 1
                counts[row, 1] += kinds[code_points[line_end - 1]] & ENDS_SENTENCE != 0
                counts[row, 2] += line_end - line_start <= short[row]
            counts[row, 3] += line_end < row_end
            line_start = line_end + 1
    return counts
