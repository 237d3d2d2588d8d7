"""Line ends that end no sentence: wrapped text, verses, tables, lists and code.

Owns whether a line goes on in the next one. A page's text has one paragraph a line, but text from books,
mails and PDFs is wrapped, and rows, items and statements belong together. Compiled; positions are those of a
batch's code points.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_NARROWEST, _WIDEST = 24, 200
"""Columns between which text is wrapped; a Han character has two."""
_LONG_LINE = 30
"""Columns from which on a lower-case letter that begins the next line says that the sentence goes on."""
_SLACK = 8
"""Columns that a wrapped line of Chinese may be narrower than others: marks that may not begin a line."""
_VERSES = 4


def _keys(words: str) -> np.ndarray:
    """Return words of at most eight ASCII letters as numbers, as `word_key` gives them."""
    return np.array([int.from_bytes(word.encode(), "big") for word in words.split()], np.int64)


_STATEMENTS = _keys(
    "import from return def class if elif else for while try except finally with raise assert print public "
    "private static final void int float double char const let var func fn package using namespac struct "
    "enum switch case break continue include define async await yield lambda end function local select insert"
)


@njit(cache=True, nogil=True)
def word_key(codes: np.ndarray, start: int, end: int) -> int:
    """Return a word of at most eight ASCII letters as a number, in lower case; 0 for others."""
    if end <= start or end - start > 8:
        return 0
    key = 0
    for at in range(start, end):
        code = codes[at]
        if 65 <= code <= 90:
            code += 32
        if not 97 <= code <= 122:
            return 0
        key = key * 256 + code
    return key


@njit(cache=True, nogil=True)
def is_among(key: int, keys: np.ndarray) -> bool:
    """Whether a number that `word_key` gave is among those of a list."""
    for known in keys:
        if key == known:
            return key != 0
    return False


@njit(cache=True, nogil=True)
def line_end(codes: np.ndarray, at: int, end: int) -> int:
    """Return the position of the next line feed, or the end."""
    while at < end and codes[at] != 10:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _width(code: int) -> int:
    """Return the columns of a character."""
    return 2 if code >= 0x2E80 and not 0xFF61 <= code <= 0xFFDC else 1


@njit(cache=True, nogil=True)
def widest_line(codes: np.ndarray, begin: int, end: int) -> int:
    """Return the columns of the widest line of a text."""
    widest = columns = 0
    for at in range(begin, end):
        columns = 0 if codes[at] == 10 else columns + _width(codes[at])
        widest = max(widest, columns)
    return widest


@njit(cache=True, nogil=True)
def _columns(codes: np.ndarray, start: int, stop: int) -> int:
    columns = 0
    for at in range(start, stop):
        columns += _width(codes[at])
    return columns


@njit(cache=True, nogil=True)
def _is_marked(codes: np.ndarray, at: int, stop: int) -> int:
    """Return the kind of list item that begins at a position: 1 numbered, 2 with a bullet, 0 none."""
    while at < stop and (codes[at] == 32 or codes[at] == 9 or codes[at] == 0x3000):
        at += 1
    if at >= stop:
        return 0
    code = codes[at]
    bracket = code == 40 or code == 0xFF08
    first = at + 1 if bracket else at
    after = first
    while after < stop and after - first < 3 and (48 <= codes[after] <= 57 or _is_numeral(codes[after])):
        after += 1
    if first < after < stop:
        code = codes[after]
        closed = code == 41 or code == 0xFF09
        if closed or (not bracket and (code == 0x3001 or code == 0xFF0E)):  # ) 、 ．
            return 1
        if not bracket and code == 46:  # not 3.5
            return 0 if after + 1 < stop and 48 <= codes[after + 1] <= 57 else 1
        return 0
    bullet = code == 45 or code == 42 or code == 43  # - * +
    if bullet:
        return 2 if at + 1 < stop and codes[at + 1] == 32 else 0
    return 2 if code in (0x2022, 0x00B7, 0x25CF, 0x25A0, 0x25C6, 0x25CB, 0x2013) else 0


@njit(cache=True, nogil=True)
def _is_numeral(code: int) -> bool:
    return code in (0x4E00, 0x4E8C, 0x4E09, 0x56DB, 0x4E94, 0x516D, 0x4E03, 0x516B, 0x4E5D, 0x5341)


@njit(cache=True, nogil=True)
def _cells(codes: np.ndarray, start: int, stop: int) -> int:
    """Return a number that the lines of a table share: of bars, tabs or bare commas; 0 for other lines."""
    bars = tabs = commas = 0
    seen = False
    for at in range(start, stop):
        code = codes[at]
        bars += code == 124 or code == 0xFF5C
        tabs += code == 9 and seen
        commas += code == 44
        if code == 44 and at + 1 < stop and codes[at + 1] == 32:
            commas = -1000
        seen |= code != 9 and code != 32
    if bars > 1:
        return bars
    if tabs > 0:
        return -tabs
    return 1000 + commas if commas > 1 else 0


@njit(cache=True, nogil=True)
def _is_code(codes: np.ndarray, start: int, stop: int, table: np.ndarray) -> int:
    """Return 2 for a line that is code by its marks, 1 for one that may stand beside it, 0 for others."""
    first = start
    while first < stop and (codes[first] == 32 or codes[first] == 9):
        first += 1
    last = stop - 1
    while last > first and table[codes[last]] & 1:
        last -= 1
    if first >= stop:
        return 0
    mark = codes[last]
    word = first
    while word < stop and (65 <= codes[word] <= 90 or 97 <= codes[word] <= 122):
        word += 1
    comment = codes[first] == 35 or (codes[first] == 47 and first + 1 < stop and codes[first + 1] == 47)
    assigns = calls = chinese = False
    for at in range(first, last + 1):
        code = codes[at]
        if table[code] & 4:
            chinese = True
            break
        plain = at > first and (table[codes[at - 1]] & 2 != 0 or codes[at - 1] == 32 or codes[at - 1] == 93)
        assigns |= code == 61 and plain and word_begins(codes, first)
        calls |= code == 40 and at > first and table[codes[at - 1]] & 2 != 0
    if comment:
        return 1
    if mark == 59 or mark == 123 or mark == 125:  # ; { }
        return 2
    if assigns or (calls and (mark == 41 or mark == 58)):
        return 2
    if is_among(word_key(codes, first, word), _STATEMENTS) and not chinese:
        return 2
    indented = first - start >= 2 or (first > start and codes[start] == 9)
    closes = codes[first] in (125, 41, 93)
    return 1 if (indented or closes) and not chinese else 0


@njit(cache=True, nogil=True)
def word_begins(codes: np.ndarray, at: int) -> bool:
    """Whether an ASCII letter or underscore stands at a position."""
    code = codes[at]
    return 65 <= code <= 90 or 97 <= code <= 122 or code == 95


@njit(cache=True, nogil=True)
def _is_fence(codes: np.ndarray, at: int, stop: int) -> bool:
    """Whether a line opens or closes a block of code as Markdown has it."""
    while at < stop and codes[at] == 32:
        at += 1
    return at + 2 < stop and codes[at] == 96 and codes[at + 1] == 96 and codes[at + 2] == 96


@njit(cache=True, nogil=True)
def fence_end(codes: np.ndarray, start: int, stop: int, end: int) -> int:
    """Return the end of the line that closes the block of code which a line opens; else `stop`."""
    if not _is_fence(codes, start, stop):
        return stop
    at = stop
    while at < end:
        following = line_end(codes, at + 1, end)
        if _is_fence(codes, at + 1, following):
            return following
        at = following
    return stop


@njit(cache=True, nogil=True)
def _verse(codes: np.ndarray, start: int, stop: int, table: np.ndarray) -> int:
    """Return the length of a line of five or seven Han characters and nothing else, or 0."""
    length = stop - start
    if length != 5 and length != 7:
        return 0
    for at in range(start, stop):
        if not table[codes[at]] & 4:
            return 0
    return length


@njit(cache=True, nogil=True)
def _is_poem(codes: np.ndarray, begin: int, start: int, stop: int, end: int, table: np.ndarray) -> bool:
    """Whether a line is one of four or more verses of equal length without punctuation."""
    length = _verse(codes, start, stop, table)
    if length == 0:
        return False
    verses = 1
    at = start
    while at - 1 - length >= begin and codes[at - 1] == 10 and verses < _VERSES:
        previous = at - 1 - length
        if (previous > begin and codes[previous - 1] != 10) or _verse(
            codes, previous, at - 1, table
        ) != length:
            break
        verses += 1
        at = previous
    at = stop
    while at < end and verses < _VERSES:
        following = line_end(codes, at + 1, end)
        if _verse(codes, at + 1, following, table) != length:
            break
        verses += 1
        at = following
    return verses >= _VERSES


@njit(cache=True, nogil=True)
def _is_terminal(code: int) -> bool:
    """Whether a sentence or heading ends at the end of a line behind this character."""
    return code in (33, 46, 58, 63, 0x2026, 0x3002, 0xFF01, 0xFF1A, 0xFF1F, 0xFF61)


@njit(cache=True, nogil=True)
def _has_stop(codes: np.ndarray, start: int, stop: int) -> bool:
    for at in range(start, stop):
        if codes[at] != 58 and codes[at] != 0xFF1A and _is_terminal(codes[at]):
            return True
    return False


@njit(cache=True, nogil=True)
def _first_token(codes: np.ndarray, start: int, stop: int, table: np.ndarray) -> int:
    """Return the columns that a wrapped line may lack: those of the word that the next line begins with."""
    at = start
    while at < stop and table[codes[at]] & 6 == 2:
        at += 1
    if at > start:
        return at - start + 1
    return _SLACK


@njit(cache=True, nogil=True)
def goes_on(codes: np.ndarray, begin: int, start: int, at: int, end: int, table: np.ndarray) -> int:
    """Return 1 if the line from `start` to the line feed at `at` goes on in the next line, 0 if it does not.

    -1: by its width, see `is_wrapped`.

    Args:
        codes: uint32 `[characters]` of the batch.
        begin: where the text begins.
        start: where the line begins.
        at: its line feed.
        end: where the text ends.
        table: classes of code points, `columns.classes`.
    """
    last = at - 1
    while last >= start and table[codes[last]] & 1:
        last -= 1
    first = at + 1
    while first < end and codes[first] != 10 and table[codes[first]] & 1:
        first += 1
    if last < start or first >= end or codes[first] == 10:
        return 0
    code = codes[last]
    if code == 0x3002 and table[codes[first]] & 4 and not _is_numeral(codes[first]):
        return 0  # the end of a Chinese paragraph and the beginning of another
    following = line_end(codes, at + 1, end)
    cells = _cells(codes, start, at)
    if cells != 0 and cells == _cells(codes, at + 1, following):
        return 1
    item = _is_marked(codes, at + 1, following)
    if item != 0 and item == _is_marked(codes, start, at):
        return 1
    if code in (0xFF0C, 0x3001, 0xFF1B, 44, 59):  # ， 、 ； , ;
        return 1
    kind = _is_code(codes, start, at, table)
    if kind > 0:
        other = _is_code(codes, at + 1, following, table)
        if other > 0 and (kind == 2 or other == 2):
            return 1
    introduces = code == 58 or code == 0xFF1A
    if introduces and (
        item != 0 or _is_fence(codes, at + 1, following) or _is_code(codes, at + 1, following, table) == 2
    ):
        return 1
    if item != 0:
        return 0
    letter = table[code] & 6 == 2 or code == 45
    if letter and 97 <= codes[first] <= 122 and _columns(codes, start, at) >= _LONG_LINE:
        return 1
    while last > start and table[codes[last]] & 8:
        last -= 1
    if _is_terminal(codes[last]) or first > at + 1:
        return 0
    if _is_poem(codes, begin, start, at, end, table) and _is_poem(
        codes, begin, at + 1, following, end, table
    ):
        return 1
    return -1


@njit(cache=True, nogil=True)
def is_wrapped(codes: np.ndarray, start: int, at: int, end: int, widest: int, table: np.ndarray) -> int:
    """Return 1 if the next line's first word did not fit into a line of the text's width, else 0.

    The next line must hold a stop or be as wide, or the longest of several headings would go on in the next.
    """
    columns = _columns(codes, start, at)
    following = line_end(codes, at + 1, end)
    fits = columns + _first_token(codes, at + 1, following, table) <= widest
    if fits or not _NARROWEST <= widest <= _WIDEST:
        return 0
    return 1 if _has_stop(codes, at + 1, following) or _columns(codes, at + 1, following) + 4 >= widest else 0
