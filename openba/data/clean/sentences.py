"""Split Chinese and English text into sentences.

A sentence ends after Chinese full stops; after ! and ? before a Han character, the end, or white space that
no lower-case letter follows; after a full stop between Han characters in text that has no Chinese ones, or
behind a Han character; after an English full stop if a capital, a digit or Han follows, but not after
abbreviations, initials and the number of a list item; and at a line feed, unless the line continues
(`lines`). It does not end within quotation marks and brackets of one line, nor behind them where the text
continues: `“对。”他说。` is one sentence. White space belongs to the sentence before it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from openba.data.clean.lines import (
    continues,
    fence_end,
    is_among,
    is_wrapped,
    widest_line,
    word_key,
    word_keys,
)
from openba.data.clean.text_arrays import (
    CLOSED_BY,
    CLOSING,
    HAN,
    OPENING,
    SPACE,
    STOP,
    WORD,
    Texts,
    character_classes,
)

# Characters between two marks of a pair; marks farther apart count as unpaired.
_LONGEST_ENCLOSED = 200
_OPENING = np.array([ord(mark) for mark in CLOSED_BY], np.uint32)
_CLOSING = np.array([ord(mark) for mark in CLOSED_BY.values()], np.uint32)


# Abbreviations if written with a capital.
_TITLES = word_keys("mr mrs ms dr prof st mt gen col lt sgt capt maj rev hon gov sen rep pres messrs jr sr")
_ABBREVIATIONS = word_keys(
    "vs cf viz al etc approx dept univ inc ltd corp co bros assn ave blvd esp incl resp fig figs eq eqs sec "
    "secs vol vols ref refs nos pp ed eds trans thm lem prop def"
)
_BEFORE_NUMBERS = word_keys(
    "no p v c n ch art tab app ex ver jan feb mar apr jun jul aug sep sept oct nov dec step par"
)


def split(texts: Texts, literal: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Split all texts of a batch.

    Args:
        texts: the batch.
        literal: end a sentence at every stop and every line feed.

    Returns:
        End of each sentence, a position in the batch, int64 `[sentences]`; the last one of a text is its end.
        Number of the first sentence of each text, int64 `[texts + 1]`; the last entry counts all sentences.
    """
    return _split(texts.code_points, texts.offsets, character_classes(), literal)


@njit(cache=True, nogil=True, inline="always")
def _is_full_stop(code_point: int) -> bool:
    """Return whether it is one of 。！？｡."""
    return code_point == 0x3002 or code_point == 0xFF01 or code_point == 0xFF1F or code_point == 0xFF61


@njit(cache=True, nogil=True)
def _skip_spaces(code_points: np.ndarray, position: int, text_end: int, class_table: np.ndarray) -> int:
    while position < text_end and class_table[code_points[position]] & SPACE:
        position += 1
    return position


@njit(cache=True, nogil=True)
def _is_latin(code_point: int) -> bool:
    return 48 <= code_point <= 57 or 65 <= code_point <= 90 or 97 <= code_point <= 122


@njit(cache=True, nogil=True)
def _begins_sentence(code_points: np.ndarray, position: int, text_end: int, class_table: np.ndarray) -> bool:
    """Return whether a capital, a digit or Han stands here, possibly behind an opening mark."""
    if position < text_end and class_table[code_points[position]] & OPENING:
        position += 1
    return position < text_end and (
        65 <= code_points[position] <= 90
        or 48 <= code_points[position] <= 57
        or class_table[code_points[position]] & HAN != 0
    )


@njit(cache=True, nogil=True)
def _is_abbreviation(
    code_points: np.ndarray, text_start: int, position: int, after: int, text_end: int
) -> bool:
    """Return whether the full stop at `position` belongs to the word before it or to a list item's number.

    Args:
        code_points: code points of the batch.
        text_start: where the text begins.
        position: the full stop.
        after: first position behind it and the white space.
        text_end: where the text ends.
    """
    word_start = position
    while word_start > text_start and position - word_start < 10 and _is_latin(code_points[word_start - 1]):
        word_start -= 1
    if word_start == position:
        return False
    # Initials (J. Smith) and letters with stops between them (U.S., e.g.).
    before_number = after < text_end and (48 <= code_points[after] <= 57 or code_points[after] == 40)
    is_capital = 65 <= code_points[word_start] <= 90
    if position - word_start == 1 and not 48 <= code_points[word_start] <= 57:
        follows_stop = word_start > text_start and code_points[word_start - 1] == 46  # U.S., e.g.
        if is_capital or follows_stop:
            return True
    word_number = word_key(code_points, word_start, position)
    if is_among(word_number, _ABBREVIATIONS) or (is_capital and is_among(word_number, _TITLES)):
        return True
    if before_number and is_among(word_number, _BEFORE_NUMBERS):
        return True
    # A number of up to three digits at the start of a line: "1. Open the settings".
    if position - word_start > 3:
        return False
    for digit_position in range(word_start, position):
        if not 48 <= code_points[digit_position] <= 57:
            return False
    while (
        word_start > text_start
        and code_points[word_start - 1] != 10
        and (code_points[word_start - 1] == 32 or code_points[word_start - 1] == 0x3000)
    ):
        word_start -= 1
    return word_start == text_start or code_points[word_start - 1] == 10


@njit(cache=True, nogil=True)
def _uses_ascii_stops(
    code_points: np.ndarray, text_start: int, text_end: int, class_table: np.ndarray
) -> bool:
    """Return whether Chinese sentences of a text end with ".", which otherwise joins names: 乔治.布什."""
    ending_stops = joining_stops = 0
    for position in range(text_start, text_end):
        if code_points[position] == 0x3002:
            return False
        if (
            code_points[position] == 46
            and position > text_start
            and class_table[code_points[position - 1]] & HAN
        ):
            ending_stops += position + 1 == text_end or class_table[code_points[position + 1]] & SPACE != 0
            joining_stops += position + 1 < text_end and class_table[code_points[position + 1]] & HAN != 0
    return ending_stops > 0 or joining_stops > 1


@njit(cache=True, nogil=True)
def _cannot_begin(code_point: int) -> bool:
    """Return whether it cannot begin a sentence, so a stop before it ends none: 3！=6, Yahoo！、谷歌."""
    return (
        code_point == 0x3D or code_point == 0xFF1D or code_point == 0x3001 or code_point == 0xFF0C
        or code_point == 0x2C or code_point == 0xFF1B or code_point == 0x3B or code_point == 0xFF1A
        or code_point == 0xD7 or code_point == 0xF7
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _is_quotation_mark(code_point: int) -> bool:
    """Return whether it is an opening or closing quotation mark."""
    return code_point == 34 or 0x2018 <= code_point <= 0x201D or 0x300C <= code_point <= 0x300F


@njit(cache=True, nogil=True)
def _continues_behind(
    code_points: np.ndarray, stop: int, mark: int, text_end: int, class_table: np.ndarray
) -> bool:
    """Return whether a sentence continues behind a closing mark with a stop before it: `“对。”他说。`."""
    if stop >= text_end or code_points[stop] == 10:
        return False
    after = _skip_spaces(code_points, stop, text_end, class_table)
    if after == text_end or code_points[after - 1] == 10:
        return False
    if _is_quotation_mark(code_points[stop - 1]) and _is_quotation_mark(code_points[after]):
        return False
    return not (mark == 46 and after > stop and _begins_sentence(code_points, after, text_end, class_table))


@njit(cache=True, nogil=True)
def _closing_position(code_points: np.ndarray, position: int, text_end: int) -> int:
    """Return the position of the mark that closes the one at `position` in the same line, else -1."""
    opening_mark = code_points[position]
    closing_mark = opening_mark
    for pair in range(len(_OPENING)):
        if _OPENING[pair] == opening_mark:
            closing_mark = _CLOSING[pair]
    depth = 0
    for candidate in range(position + 1, min(text_end, position + _LONGEST_ENCLOSED)):
        code_point = code_points[candidate]
        if code_point == 10:
            return -1
        if code_point == closing_mark:
            if depth == 0:
                return candidate
            depth -= 1
        elif code_point == opening_mark:
            depth += 1
    return -1


@njit(cache=True, nogil=True)
def _skip_closing(code_points: np.ndarray, position: int, text_end: int, class_table: np.ndarray) -> int:
    """Return the position behind closing marks; a straight quotation mark that opens a pair is none."""
    while position < text_end and class_table[code_points[position]] & CLOSING:
        if code_points[position] == 34 and _closing_position(code_points, position, text_end) > 0:
            break
        position += 1
    return position


@njit(cache=True, nogil=True)
def _sentence_end(
    code_points: np.ndarray,
    text_start: int,
    position: int,
    text_end: int,
    ascii_stops: bool,
    class_table: np.ndarray,
    literal: bool,
) -> int:
    """Return the end, without white space, of the sentence that the stop at `position` ends, else -1.

    Line feeds are handled by the caller. After -1 the search continues behind the stop.
    """
    code_point = code_points[position]
    last_mark = position
    # Chinese stops end a sentence, unless it continues behind a closing mark.
    if _is_full_stop(code_point):
        while last_mark + 1 < text_end and _is_full_stop(code_points[last_mark + 1]):
            last_mark += 1
        stop = _skip_closing(code_points, last_mark + 1, text_end, class_table)
        if not literal and stop == last_mark + 1 and stop < text_end and _cannot_begin(code_points[stop]):
            return -1
        is_behind_closing = stop > last_mark + 1 and not literal
        return (
            -1
            if is_behind_closing
            and _continues_behind(code_points, stop, code_points[last_mark], text_end, class_table)
            else stop
        )
    # ! and ?
    if code_point == 33 or code_point == 63:
        while last_mark + 1 < text_end and (
            code_points[last_mark + 1] == 33 or code_points[last_mark + 1] == 63
        ):
            last_mark += 1
        stop = _skip_closing(code_points, last_mark + 1, text_end, class_table)
        if stop == text_end:
            return stop
        if not class_table[code_points[stop]] & (SPACE | HAN):
            return -1
        if literal:
            return stop
        if stop > last_mark + 1:
            return -1 if _continues_behind(code_points, stop, code_point, text_end, class_table) else stop
        after = _skip_spaces(code_points, stop, text_end, class_table)
        is_in_name = (
            after == stop
            and stop < text_end
            and position > text_start
            and _is_latin(code_points[position - 1])
        )  # Yahoo!奇摩
        if after + 1 < text_end and class_table[code_points[after]] & OPENING:
            after += 1
        is_lower_case = after < text_end and 97 <= code_points[after] <= 122
        return -1 if is_in_name or is_lower_case else stop
    # An ASCII full stop behind Han: the end of a sentence, or within a name (乔治.布什).
    if position > text_start and class_table[code_points[position - 1]] & HAN:
        stop = _skip_closing(code_points, position + 1, text_end, class_table)
        if stop > position + 1 and not literal:
            return -1 if _continues_behind(code_points, stop, 0x3002, text_end, class_table) else stop
        if stop == text_end or not (class_table[code_points[stop]] & WORD or code_points[stop] == 46):
            return stop
        if stop > position + 1:
            return stop - 1
        if class_table[code_points[stop]] & HAN:
            return stop if ascii_stops or literal else -1
    # An English full stop.
    stop = _skip_closing(code_points, position + 1, text_end, class_table)
    after = _skip_spaces(code_points, stop, text_end, class_table)
    if after == text_end:
        return stop
    if after == stop or not _begins_sentence(code_points, after, text_end, class_table):
        return -1
    return (
        -1
        if _is_abbreviation(code_points, text_start, position, after, text_end) and stop == position + 1
        else stop
    )


@njit(cache=True, nogil=True)
def _distance_to_mark(code_points: np.ndarray, class_table: np.ndarray) -> int:
    """Return the number of characters before the first stop or opening mark."""
    count = 0
    for code_point in code_points:
        if class_table[code_point] & (OPENING | STOP):
            break
        count += 1
    return count


@njit(cache=True, nogil=True)
def _sentence_end_behind_pair(
    code_points: np.ndarray, closing: int, text_end: int, class_table: np.ndarray
) -> int:
    """Return the end of the sentence whose stop is the last character between two marks, else -1."""
    mark = code_points[closing - 1]
    if not class_table[mark] & STOP:
        return -1
    stop = _skip_closing(code_points, closing + 1, text_end, class_table)
    return -1 if _continues_behind(code_points, stop, mark, text_end, class_table) else stop


@njit(cache=True, nogil=True)
def _append_end(sentence_ends: np.ndarray, sentence_count: int, position: int) -> tuple[np.ndarray, int]:
    """Add a sentence's end to an array with `sentence_count` used entries; return it and the new count."""
    if sentence_count + 1 >= len(sentence_ends):
        sentence_ends = np.concatenate((sentence_ends, np.empty(len(sentence_ends), np.int64)))
    sentence_ends[sentence_count] = position
    return sentence_ends, sentence_count + 1


@njit(cache=True, nogil=True)
def _line_start(code_points: np.ndarray, line_start: int, search_start: int, position: int) -> int:
    """Return where the line of `position` begins: behind the last line feed after `search_start`, if any."""
    for candidate in range(position, search_start, -1):
        if code_points[candidate - 1] == 10:
            return candidate
    return line_start


@njit(cache=True, nogil=True)
def _line_continues(
    code_points: np.ndarray,
    text_start: int,
    line_start: int,
    position: int,
    text_end: int,
    widest_columns: int,
    class_table: np.ndarray,
) -> tuple[bool, int]:
    """Return whether the line that ends at `position` continues, and the columns of the widest line.

    The columns are -1 until a decision needs them.
    """
    decision = continues(code_points, text_start, line_start, position, text_end, class_table)
    if decision < 0:
        if widest_columns < 0:
            widest_columns = widest_line(code_points, text_start, text_end)
        decision = is_wrapped(code_points, line_start, position, text_end, widest_columns, class_table)
    return decision == 1, widest_columns


@njit(cache=True, nogil=True)
def _split(
    code_points: np.ndarray, text_offsets: np.ndarray, class_table: np.ndarray, literal: bool
) -> tuple[np.ndarray, np.ndarray]:
    sentence_ends = np.empty(len(code_points) // 16 + 64, np.int64)  # grows if sentences are shorter
    first_sentences = np.zeros(len(text_offsets), np.int64)
    sentence_count = 0
    for row in range(len(text_offsets) - 1):
        text_start = text_offsets[row]
        text_end = text_offsets[row + 1]
        position = text_start
        last_end = -1
        line_start = text_start
        fence_stop = -1
        widest_columns = ascii_stops = -1  # computed when first needed
        while True:
            position += _distance_to_mark(code_points[position:text_end], class_table)
            if position >= text_end:
                break
            sentence_end = -1
            code_point = code_points[position]
            if code_point == 10:
                if literal:
                    sentence_end = position + 1
                else:
                    if fence_stop < position:
                        fence_stop = fence_end(code_points, line_start, position, text_end)
                    is_continued = fence_stop > position
                    if not is_continued:
                        is_continued, widest_columns = _line_continues(
                            code_points,
                            text_start,
                            line_start,
                            position,
                            text_end,
                            widest_columns,
                            class_table,
                        )
                    if not is_continued:
                        sentence_end = position + 1
                line_start = position + 1
            elif class_table[code_point] & OPENING:
                closing_position = -1 if literal else _closing_position(code_points, position, text_end)
                if closing_position > position:
                    position = closing_position
                    sentence_end = _sentence_end_behind_pair(
                        code_points, closing_position, text_end, class_table
                    )
            else:
                if (
                    code_point == 46
                    and ascii_stops < 0
                    and position > text_start
                    and class_table[code_points[position - 1]] & HAN
                ):
                    ascii_stops = int(_uses_ascii_stops(code_points, text_start, text_end, class_table))
                sentence_end = _sentence_end(
                    code_points, text_start, position, text_end, ascii_stops == 1, class_table, literal
                )
            # A stop at the end of a line: the rules of lines decide.
            if sentence_end > position and code_point != 10 and not literal:
                line_end_position = sentence_end
                while (
                    line_end_position < text_end
                    and code_points[line_end_position] != 10
                    and class_table[code_points[line_end_position]] & SPACE
                ):
                    line_end_position += 1
                if line_end_position < text_end and code_points[line_end_position] == 10:
                    position = line_end_position
                    continue
            if sentence_end < 0:
                position += 1
                continue
            position = last_end = _skip_spaces(code_points, sentence_end, text_end, class_table)
            line_start = _line_start(code_points, line_start, sentence_end, position)
            sentence_ends, sentence_count = _append_end(sentence_ends, sentence_count, position)
        if last_end != text_end:
            sentence_ends, sentence_count = _append_end(sentence_ends, sentence_count, text_end)
        first_sentences[row + 1] = sentence_count
    return sentence_ends[:sentence_count].copy(), first_sentences


@njit(cache=True, nogil=True)
def line_break(code_points: np.ndarray, text_start: int, start: int, text_end: int) -> int:
    """Return the line feed that has to replace removed sentences if they separate two lines, else 0."""
    if start == text_start or code_points[start - 1] == 10:
        return 0
    for position in range(start, text_end):
        if code_points[position] == 10:
            return 10
    return 0
