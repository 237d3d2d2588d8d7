"""Edits of a batch of texts as one matrix: spans to remove, the rule, and what stands there afterwards.

Compiled filters write these rows; Python filters return `edits.Edit`s, which `from_edits` converts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numba import njit

from openba.data.clean.edits import Edit
from openba.data.clean.text_arrays import SPACE, Texts, character_classes

ROW, START, END, RULE, FIRST, SECOND, SURVIVOR = range(7)
"""Columns of an edit matrix, int64 `[edits, 7]`: row of the batch, span in the batch's code points, rule, up
to two code points to insert (0: none), and for duplicates the position of the first copy (-1: none).

The rule is a number of the filter that wrote the row: 0 for a rewriting that loses nothing, such as a decoded
entity, and k for the filter's `rules[k - 1]`. Rewritings are applied and not recorded."""
COLUMNS = 7


def apply(texts: Texts, edits: np.ndarray) -> Texts:
    """Return the texts after edits in order; an edited text loses the white space around it."""
    if not len(edits):
        return texts
    return Texts(*_apply(texts.code_points, texts.offsets, edits, character_classes()))


def remove_rows(texts: Texts, rows: np.ndarray, rules: np.ndarray | int) -> np.ndarray:
    """Return edits that remove texts entirely.

    Args:
        texts: the batch.
        rows: int64 `[removed texts]`.
        rules: one number for all, or one per row.
    """
    edits = np.zeros((len(rows), COLUMNS), np.int64)
    edits[:, ROW] = rows
    edits[:, START] = texts.offsets[rows]
    edits[:, END] = texts.offsets[rows + 1]
    edits[:, RULE] = rules
    edits[:, SURVIVOR] = -1
    return edits


def from_edits(
    texts: Texts, edits_of_rows: Iterable[tuple[int, Sequence[Edit]]], rules: Sequence[str]
) -> np.ndarray:
    """Return the matrix of edits given per row, rows in ascending order.

    Args:
        texts: the batch.
        edits_of_rows: (row, edits of its text in order and without overlap). A replacement has at most two
            characters.
        rules: the filter's rules.

    Raises:
        ValueError: an edit names a rule that is not the filter's, or inserts more than two characters.
    """
    matrix: list[tuple[int, ...]] = []
    for row, edits in edits_of_rows:
        text_start = int(texts.offsets[row])
        for edit in edits:
            if len(edit.replacement) > 2:
                raise ValueError(f"replacement {edit.replacement!r}: at most two characters can be inserted")
            if edit.rule and edit.rule not in rules:
                raise ValueError(f"rule {edit.rule!r} is not among the filter's rules {tuple(rules)}")
            rule = rules.index(edit.rule) + 1 if edit.rule else 0
            first, second = [*map(ord, edit.replacement), 0, 0][:2]
            matrix.append((row, text_start + edit.start, text_start + edit.end, rule, first, second, -1))
    return np.array(matrix, np.int64).reshape(-1, COLUMNS)


def as_edits(texts: Texts, edits: np.ndarray, rules: Sequence[str]) -> list[Edit]:
    """Return rows of an edit matrix that concern one text as edits of that text.

    Args:
        texts: the batch.
        edits: rows of one text.
        rules: the filter's rules.
    """
    names = ("", *rules)
    spans: list[Edit] = []
    for row, start, end, rule, first, second, _ in edits.tolist():
        text_start = int(texts.offsets[row])
        replacement = "".join(chr(code_point) for code_point in (first, second) if code_point)
        spans.append(Edit(start - text_start, end - text_start, names[rule], replacement))
    return spans


@njit(cache=True, nogil=True)
def _apply(
    code_points: np.ndarray, text_offsets: np.ndarray, edits: np.ndarray, class_table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    out = np.empty(len(code_points) + 2 * len(edits), np.uint32)
    edited_offsets = np.zeros(len(text_offsets), np.int64)
    out_count = 0
    edit = 0
    position = 0
    for row in range(len(text_offsets) - 1):
        if edit == len(edits) or edits[edit, ROW] != row:  # unedited neighbours are copied in one slice
            edited_offsets[row + 1] = out_count + text_offsets[row + 1] - position
            continue
        length = text_offsets[row] - position
        out[out_count : out_count + length] = code_points[position : text_offsets[row]]
        out_count += length
        out_start = out_count
        position = text_offsets[row]
        text_end = text_offsets[row + 1]
        while edit < len(edits) and edits[edit, ROW] == row:
            length = edits[edit, START] - position
            out[out_count : out_count + length] = code_points[position : edits[edit, START]]
            out_count += length
            for replacement in (edits[edit, FIRST], edits[edit, SECOND]):
                if replacement > 0:
                    out[out_count] = replacement
                    out_count += 1
            position = edits[edit, END]
            edit += 1
        out[out_count : out_count + text_end - position] = code_points[position:text_end]
        out_count += text_end - position
        position = text_end
        first_visible = out_start
        while first_visible < out_count and class_table[out[first_visible]] & SPACE:
            first_visible += 1
        while out_count > first_visible and class_table[out[out_count - 1]] & SPACE:
            out_count -= 1
        if first_visible > out_start:
            for index in range(first_visible, out_count):
                out[out_start + index - first_visible] = out[index]
            out_count -= first_visible - out_start
        edited_offsets[row + 1] = out_count
    length = len(code_points) - position
    out[out_count : out_count + length] = code_points[position:]
    return out[: out_count + length], edited_offsets


@njit(cache=True, nogil=True)
def grow(matrix: np.ndarray, count: int) -> np.ndarray:
    """Return the matrix, or a copy of twice its length if it has no row number `count`."""
    if count < len(matrix):
        return matrix
    # Doubling: the cost of copying stays proportional to the number of rows.
    larger = np.empty((2 * len(matrix) + 64, matrix.shape[1]), np.int64)
    larger[:count] = matrix[:count]
    return larger


@njit(cache=True, nogil=True)
def append(
    edits: np.ndarray,
    edit_count: int,
    row: int,
    start: int,
    end: int,
    rule: int,
    first: int = 0,
    second: int = 0,
    survivor: int = -1,
) -> tuple[np.ndarray, int]:
    """Add a row to a matrix of which `edit_count` rows are used; return the matrix and the new count."""
    edits = grow(edits, edit_count)
    edits[edit_count, ROW] = row
    edits[edit_count, START] = start
    edits[edit_count, END] = end
    edits[edit_count, RULE] = rule
    edits[edit_count, FIRST] = first
    edits[edit_count, SECOND] = second
    edits[edit_count, SURVIVOR] = survivor
    return edits, edit_count + 1
