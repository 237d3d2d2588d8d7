"""Detect line ends that do not end a sentence: wrapped text, verses, tables, lists and code.

Text of web pages has one paragraph a line, but text from books, mails and PDFs is wrapped, and table rows,
list items and statements belong together. All functions are compiled; positions are those of a batch's code
points.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from openba.data.clean.text_arrays import CLOSING, HAN, SPACE, WORD

# Columns of a text's widest line for which it can be wrapped text; a Han character takes two columns.
_MIN_WRAP_COLUMNS = 24
_MAX_WRAP_COLUMNS = 200
# Columns above which a lower-case letter at the start of the next line continues the sentence.
_LONG_LINE_COLUMNS = 30
# Columns by which a wrapped line of Chinese may be narrower than others, for marks that may not begin a line.
_SLACK_COLUMNS = 8
_MIN_VERSES = 4


def word_keys(words: str) -> np.ndarray:
    """Return words of at most eight ASCII letters as the numbers that `word_key` gives them, int64."""
    return np.array([int.from_bytes(word.encode(), "big") for word in words.split()], np.int64)


_STATEMENTS = word_keys(
    "import from return def class if elif else for while try except finally with raise assert print public "
    "private static final void int float double char const let var func fn package using namespac struct "
    "enum switch case break continue include define async await yield lambda end function local select insert"
)


@njit(cache=True, nogil=True)
def word_key(code_points: np.ndarray, line_start: int, text_end: int) -> int:
    """Return a word of at most eight ASCII letters as a number, in lower case; 0 for others."""
    if text_end <= line_start or text_end - line_start > 8:
        return 0
    key = 0
    for position in range(line_start, text_end):
        code_point = code_points[position]
        if 65 <= code_point <= 90:
            code_point += 32
        if not 97 <= code_point <= 122:
            return 0
        key = key * 256 + code_point
    return key


@njit(cache=True, nogil=True)
def is_among(key: int, keys: np.ndarray) -> bool:
    """Return whether a number from `word_key` is in a list."""
    for candidate in keys:
        if key == candidate:
            return key != 0
    return False


@njit(cache=True, nogil=True)
def line_end(code_points: np.ndarray, position: int, text_end: int) -> int:
    """Return the position of the next line feed, or the end."""
    while position < text_end and code_points[position] != 10:
        position += 1
    return position


@njit(cache=True, nogil=True)
def _width(code_point: int) -> int:
    """Return the columns of a character."""
    return 2 if code_point >= 0x2E80 and not 0xFF61 <= code_point <= 0xFFDC else 1


@njit(cache=True, nogil=True)
def widest_line(code_points: np.ndarray, text_start: int, text_end: int) -> int:
    """Return the columns of the widest line of a text."""
    widest_columns = line_columns = 0
    for position in range(text_start, text_end):
        line_columns = 0 if code_points[position] == 10 else line_columns + _width(code_points[position])
        widest_columns = max(widest_columns, line_columns)
    return widest_columns


@njit(cache=True, nogil=True)
def _columns(code_points: np.ndarray, line_start: int, line_stop: int) -> int:
    column_count = 0
    for position in range(line_start, line_stop):
        column_count += _width(code_points[position])
    return column_count


@njit(cache=True, nogil=True)
def _list_item_kind(code_points: np.ndarray, position: int, line_stop: int) -> int:
    """Return the kind of list item that begins at a position: 1 numbered, 2 with a bullet, 0 none."""
    while position < line_stop and (
        code_points[position] == 32 or code_points[position] == 9 or code_points[position] == 0x3000
    ):
        position += 1
    if position >= line_stop:
        return 0
    code_point = code_points[position]
    has_bracket = code_point == 40 or code_point == 0xFF08
    number_start = position + 1 if has_bracket else position
    # At most three digits or numerals.
    number_end = number_start
    while (
        number_end < line_stop
        and number_end - number_start < 3
        and (48 <= code_points[number_end] <= 57 or _is_numeral(code_points[number_end]))
    ):
        number_end += 1
    if number_start < number_end < line_stop:
        code_point = code_points[number_end]
        is_closed = code_point == 41 or code_point == 0xFF09  # ) and ）
        if is_closed or (not has_bracket and (code_point == 0x3001 or code_point == 0xFF0E)):  # ) 、 ．
            return 1
        if not has_bracket and code_point == 46:  # not 3.5
            return 0 if number_end + 1 < line_stop and 48 <= code_points[number_end + 1] <= 57 else 1
        return 0
    is_bullet = code_point == 45 or code_point == 42 or code_point == 43  # - * +
    if is_bullet:
        return 2 if position + 1 < line_stop and code_points[position + 1] == 32 else 0
    return 2 if code_point in (0x2022, 0x00B7, 0x25CF, 0x25A0, 0x25C6, 0x25CB, 0x2013) else 0


@njit(cache=True, nogil=True)
def _is_numeral(code_point: int) -> bool:
    """Return whether it is a Chinese numeral from 一 to 十."""
    return code_point in (0x4E00, 0x4E8C, 0x4E09, 0x56DB, 0x4E94, 0x516D, 0x4E03, 0x516B, 0x4E5D, 0x5341)


@njit(cache=True, nogil=True)
def _cell_signature(code_points: np.ndarray, line_start: int, line_stop: int) -> int:
    """Return a number of bars, tabs or bare commas that is equal for all lines of a table; 0 for others."""
    bar_count = tab_count = comma_count = 0
    has_text = False
    for position in range(line_start, line_stop):
        code_point = code_points[position]
        bar_count += code_point == 124 or code_point == 0xFF5C
        tab_count += code_point == 9 and has_text
        comma_count += code_point == 44
        if (
            code_point == 44 and position + 1 < line_stop and code_points[position + 1] == 32
        ):  # prose, not a row of values
            comma_count = -1000
        has_text |= code_point != 9 and code_point != 32
    if bar_count > 1:
        return bar_count
    if tab_count > 0:
        return -tab_count
    return 1000 + comma_count if comma_count > 1 else 0


@njit(cache=True, nogil=True)
def _code_likelihood(
    code_points: np.ndarray, line_start: int, line_stop: int, class_table: np.ndarray
) -> int:
    """Return 2 for a line that must be code, 1 for one that can stand beside such a line, 0 for others."""
    first_visible = line_start
    while first_visible < line_stop and (code_points[first_visible] == 32 or code_points[first_visible] == 9):
        first_visible += 1
    last_visible = line_stop - 1
    while last_visible > first_visible and class_table[code_points[last_visible]] & SPACE:
        last_visible -= 1
    if first_visible >= line_stop:
        return 0
    last_mark = code_points[last_visible]
    word_end = first_visible
    while word_end < line_stop and (65 <= code_points[word_end] <= 90 or 97 <= code_points[word_end] <= 122):
        word_end += 1
    # "#" and "//": not enough by themselves, as headings of Markdown begin like that.
    is_comment = code_points[first_visible] == 35 or (
        code_points[first_visible] == 47
        and first_visible + 1 < line_stop
        and code_points[first_visible + 1] == 47
    )
    # Chinese text has brackets and equals signs too, so a line with Han characters needs stronger signs.
    has_assignment = has_call = has_chinese = False
    for position in range(first_visible, last_visible + 1):
        code_point = code_points[position]
        if class_table[code_point] & HAN:
            has_chinese = True
            break
        # `=` and `(` count only behind a name, a space or `]`.
        follows_name = position > first_visible and (
            class_table[code_points[position - 1]] & WORD != 0
            or code_points[position - 1] == 32
            or code_points[position - 1] == 93
        )
        has_assignment |= code_point == 61 and follows_name and _begins_identifier(code_points, first_visible)
        has_call |= (
            code_point == 40
            and position > first_visible
            and class_table[code_points[position - 1]] & WORD != 0
        )
    if is_comment:
        return 1
    if last_mark == 59 or last_mark == 123 or last_mark == 125:  # ; { }
        return 2
    if has_assignment or (has_call and (last_mark == 41 or last_mark == 58)):
        return 2
    if is_among(word_key(code_points, first_visible, word_end), _STATEMENTS) and not has_chinese:
        return 2
    is_indented = first_visible - line_start >= 2 or (
        first_visible > line_start and code_points[line_start] == 9
    )
    is_closing = code_points[first_visible] in (125, 41, 93)
    return 1 if (is_indented or is_closing) and not has_chinese else 0


@njit(cache=True, nogil=True)
def _begins_identifier(code_points: np.ndarray, position: int) -> bool:
    """Return whether an ASCII letter or underscore stands at a position."""
    code_point = code_points[position]
    return 65 <= code_point <= 90 or 97 <= code_point <= 122 or code_point == 95


@njit(cache=True, nogil=True)
def _is_fence(code_points: np.ndarray, position: int, line_stop: int) -> bool:
    """Return whether a line opens or closes a Markdown code block."""
    while position < line_stop and code_points[position] == 32:
        position += 1
    return (
        position + 2 < line_stop
        and code_points[position] == 96
        and code_points[position + 1] == 96
        and code_points[position + 2] == 96
    )


@njit(cache=True, nogil=True)
def fence_end(code_points: np.ndarray, line_start: int, line_stop: int, text_end: int) -> int:
    """Return the end of the line that closes the code block which this line opens, else `line_stop`."""
    if not _is_fence(code_points, line_start, line_stop):
        return line_stop
    position = line_stop
    while position < text_end:
        next_line_end = line_end(code_points, position + 1, text_end)
        if _is_fence(code_points, position + 1, next_line_end):
            return next_line_end
        position = next_line_end
    return line_stop


@njit(cache=True, nogil=True)
def _verse_length(code_points: np.ndarray, line_start: int, line_stop: int, class_table: np.ndarray) -> int:
    """Return the length of a line of exactly five or seven Han characters, else 0."""
    length = line_stop - line_start
    if length != 5 and length != 7:
        return 0
    for position in range(line_start, line_stop):
        if not class_table[code_points[position]] & HAN:
            return 0
    return length


@njit(cache=True, nogil=True)
def _is_poem(
    code_points: np.ndarray,
    text_start: int,
    line_start: int,
    line_stop: int,
    text_end: int,
    class_table: np.ndarray,
) -> bool:
    """Return whether a line is one of four or more verses of equal length without punctuation."""
    verse_length = _verse_length(code_points, line_start, line_stop, class_table)
    if verse_length == 0:
        return False
    verse_count = 1
    position = line_start
    while (
        position - 1 - verse_length >= text_start
        and code_points[position - 1] == 10
        and verse_count < _MIN_VERSES
    ):
        previous_start = position - 1 - verse_length
        if previous_start > text_start and code_points[previous_start - 1] != 10:
            break
        if _verse_length(code_points, previous_start, position - 1, class_table) != verse_length:
            break
        verse_count += 1
        position = previous_start
    position = line_stop
    while position < text_end and verse_count < _MIN_VERSES:
        next_line_end = line_end(code_points, position + 1, text_end)
        if _verse_length(code_points, position + 1, next_line_end, class_table) != verse_length:
            break
        verse_count += 1
        position = next_line_end
    return verse_count >= _MIN_VERSES


@njit(cache=True, nogil=True)
def _is_terminal(code_point: int) -> bool:
    """Return whether a line that ends with this character ends a sentence or heading."""
    return code_point in (33, 46, 58, 63, 0x2026, 0x3002, 0xFF01, 0xFF1A, 0xFF1F, 0xFF61)


@njit(cache=True, nogil=True)
def _has_stop(code_points: np.ndarray, line_start: int, line_stop: int) -> bool:
    for position in range(line_start, line_stop):
        if (
            code_points[position] != 58
            and code_points[position] != 0xFF1A
            and _is_terminal(code_points[position])
        ):
            return True
    return False


@njit(cache=True, nogil=True)
def _first_word_columns(
    code_points: np.ndarray, line_start: int, line_stop: int, class_table: np.ndarray
) -> int:
    """Return the columns that a line's first word would have taken in the line before."""
    position = line_start
    while position < line_stop and class_table[code_points[position]] & (WORD | HAN) == WORD:
        position += 1
    if position > line_start:
        return position - line_start + 1
    return _SLACK_COLUMNS


@njit(cache=True, nogil=True)
def continues(
    code_points: np.ndarray,
    text_start: int,
    line_start: int,
    position: int,
    text_end: int,
    class_table: np.ndarray,
) -> int:
    """Return 1 if the line from `line_start` to its line feed at `position` continues in the next, else 0.

    A result of -1 says that the line's width decides, see `is_wrapped`.

    Args:
        code_points: uint32 `[characters]` of the batch.
        text_start: where the text begins.
        line_start: where the line begins.
        position: its line feed.
        text_end: where the text ends.
        class_table: `text_arrays.character_classes`.
    """
    last_visible = position - 1
    while last_visible >= line_start and class_table[code_points[last_visible]] & SPACE:
        last_visible -= 1
    next_visible = position + 1
    while (
        next_visible < text_end
        and code_points[next_visible] != 10
        and class_table[code_points[next_visible]] & SPACE
    ):
        next_visible += 1
    if last_visible < line_start or next_visible >= text_end or code_points[next_visible] == 10:
        return 0
    code_point = code_points[last_visible]
    if (
        code_point == 0x3002
        and class_table[code_points[next_visible]] & HAN
        and not _is_numeral(code_points[next_visible])
    ):
        return 0  # the end of a Chinese paragraph and the beginning of another
    next_line_end = line_end(code_points, position + 1, text_end)
    # Rows of one table.
    cell_signature = _cell_signature(code_points, line_start, position)
    if cell_signature != 0 and cell_signature == _cell_signature(code_points, position + 1, next_line_end):
        return 1
    # Items of one list.
    item_kind = _list_item_kind(code_points, position + 1, next_line_end)
    if item_kind != 0 and item_kind == _list_item_kind(code_points, line_start, position):
        return 1
    if code_point in (0xFF0C, 0x3001, 0xFF1B, 44, 59):  # ， 、 ； , ;
        return 1
    # Lines of code, of which at least one must be certain: indented prose alone is none.
    likelihood = _code_likelihood(code_points, line_start, position, class_table)
    if likelihood > 0:
        next_likelihood = _code_likelihood(code_points, position + 1, next_line_end, class_table)
        if next_likelihood > 0 and (likelihood == 2 or next_likelihood == 2):
            return 1
    if code_point == 58 or code_point == 0xFF1A:  # a colon before a list or code
        if item_kind != 0 or _is_fence(code_points, position + 1, next_line_end):
            return 1
        if _code_likelihood(code_points, position + 1, next_line_end, class_table) == 2:
            return 1
    if item_kind != 0:  # the first item after other text
        return 0
    # A lower-case letter at the start of the next line: wrapped English, but short lines may be headings.
    ends_in_letter = class_table[code_point] & (WORD | HAN) == WORD or code_point == 45
    if (
        ends_in_letter
        and 97 <= code_points[next_visible] <= 122
        and _columns(code_points, line_start, position) >= _LONG_LINE_COLUMNS
    ):
        return 1
    # A stop may be followed by closing marks. An indented next line begins a paragraph.
    while last_visible > line_start and class_table[code_points[last_visible]] & CLOSING:
        last_visible -= 1
    if _is_terminal(code_points[last_visible]) or next_visible > position + 1:
        return 0
    in_poem = _is_poem(code_points, text_start, line_start, position, text_end, class_table)
    if in_poem and _is_poem(code_points, text_start, position + 1, next_line_end, text_end, class_table):
        return 1
    return -1


@njit(cache=True, nogil=True)
def is_wrapped(
    code_points: np.ndarray,
    line_start: int,
    position: int,
    text_end: int,
    widest_columns: int,
    class_table: np.ndarray,
) -> int:
    """Return 1 if the next line's first word did not fit into a line of the text's width, else 0.

    The next line must hold a stop or be as wide; otherwise the longest of several headings would continue.
    """
    line_columns = _columns(code_points, line_start, position)
    next_line_end = line_end(code_points, position + 1, text_end)
    fits = (
        line_columns + _first_word_columns(code_points, position + 1, next_line_end, class_table)
        <= widest_columns
    )
    if fits or not _MIN_WRAP_COLUMNS <= widest_columns <= _MAX_WRAP_COLUMNS:
        return 0
    return (
        1
        if _has_stop(code_points, position + 1, next_line_end)
        or _columns(code_points, position + 1, next_line_end) + 4 >= widest_columns
        else 0
    )
