"""Sentences of Chinese and English text, and the filter that removes the short ones.

Owns where a sentence ends and what counts as a word. It knows nothing of duplicates.

A sentence ends after Chinese full stops; after ! and ? before a Han character, the end, or white space that
no lower-case letter follows; after a full stop between Han characters in text that has no Chinese ones, or
behind a Han character; after an English full stop if a capital, a digit or Han follows, but not after
abbreviations, initials and the number of a list item; and at a line feed, unless the line goes on (`lines`).
It does not end within quotation marks and brackets of one line, nor behind them where the text goes on: in
`“对。”他说。` there is one sentence. White space belongs to the sentence before it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from openba.data.clean.columns import CLOSED_BY, RULE_CODE, Texts, classes, grown, put
from openba.data.clean.lines import fence_end, goes_on, is_among, is_wrapped, widest_line, word_key

_SHORT = RULE_CODE["short_sentence"]
_LONGEST_ENCLOSED = 200
"""Characters between marks that belong together; marks farther apart are looked at as if they stood alone."""
_OPENING = np.array([ord(mark) for mark in CLOSED_BY], np.uint32)
_CLOSING = np.array([ord(mark) for mark in CLOSED_BY.values()], np.uint32)


def _keys(words: str) -> np.ndarray:
    return np.array([int.from_bytes(word.encode(), "big") for word in words.split()], np.int64)


_TITLES = _keys("mr mrs ms dr prof st mt gen col lt sgt capt maj rev hon gov sen rep pres messrs jr sr")
"""With a capital; no sentence ends behind them."""
_ABBREVIATIONS = _keys(
    "vs cf viz al etc approx dept univ inc ltd corp co bros assn ave blvd esp incl resp fig figs eq eqs sec "
    "secs vol vols ref refs nos pp ed eds trans thm lem prop def"
)
_BEFORE_NUMBERS = _keys(
    "no p v c n ch art tab app ex ver jan feb mar apr jun jul aug sep sept oct nov dec step par"
)


def split(texts: Texts, literal: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return (ends, first): absolute ends of all sentences, and per text the number of its first one.

    `first` has a last entry, the number of all sentences. The last end of a text is the text's.

    Args:
        texts: the batch.
        literal: end a sentence at every stop and every line feed.
    """
    return _split(texts.codes, texts.offsets, classes(), literal)


def words(texts: Texts) -> np.ndarray:
    """Return the words per text: a Han character is one; so is a run of other letters or digits."""
    bounds = zip(texts.offsets[:-1], texts.offsets[1:], strict=True)
    enough = len(texts.codes)
    return np.array([_words(texts.codes, start, end, enough, classes()) for start, end in bounds], np.int64)


def find_short(texts: Texts, minimum: int, literal: bool = False) -> np.ndarray:
    """Return edits: sentences with fewer words than the minimum; neighbours are one edit.

    Args: see `split`.
    """
    ends, first = split(texts, literal)
    return _find_short(texts.codes, texts.offsets, ends, first, minimum, classes())


@njit(cache=True, nogil=True, inline="always")
def _full_stop(code: int) -> bool:
    return code == 0x3002 or code == 0xFF01 or code == 0xFF1F or code == 0xFF61


@njit(cache=True, nogil=True)
def _spaces(codes: np.ndarray, at: int, end: int, table: np.ndarray) -> int:
    while at < end and table[codes[at]] & 1:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _is_latin(code: int) -> bool:
    return 48 <= code <= 57 or 65 <= code <= 90 or 97 <= code <= 122


@njit(cache=True, nogil=True)
def _begins_sentence(codes: np.ndarray, at: int, end: int, table: np.ndarray) -> bool:
    """Whether a capital, a digit or Han stands at a position, if need be behind an opening mark."""
    if at < end and table[codes[at]] & 64:
        at += 1
    return at < end and (65 <= codes[at] <= 90 or 48 <= codes[at] <= 57 or table[codes[at]] & 4 != 0)


@njit(cache=True, nogil=True)
def _is_abbreviation(codes: np.ndarray, begin: int, at: int, after: int, end: int) -> bool:
    """Whether the full stop at a position belongs to the word before it, or to the number of a list item.

    Args: `after` is the first position behind it and the white space.
    """
    first = at
    while first > begin and at - first < 10 and _is_latin(codes[first - 1]):
        first -= 1
    if first == at:
        return False
    number = after < end and (48 <= codes[after] <= 57 or codes[after] == 40)
    capital = 65 <= codes[first] <= 90
    if at - first == 1 and not 48 <= codes[first] <= 57:
        behind_stop = first > begin and codes[first - 1] == 46  # U.S., e.g.
        if capital or behind_stop:
            return True
    key = word_key(codes, first, at)
    if is_among(key, _ABBREVIATIONS) or (capital and is_among(key, _TITLES)):
        return True
    if number and is_among(key, _BEFORE_NUMBERS):
        return True
    if at - first > 3:
        return False
    for place in range(first, at):
        if not 48 <= codes[place] <= 57:
            return False
    while first > begin and codes[first - 1] != 10 and (codes[first - 1] == 32 or codes[first - 1] == 0x3000):
        first -= 1
    return first == begin or codes[first - 1] == 10


@njit(cache=True, nogil=True)
def _uses_ascii_stops(codes: np.ndarray, begin: int, end: int, table: np.ndarray) -> bool:
    """Whether Chinese sentences of a text end with ".", which else stands within names: 乔治.布什."""
    stops = between = 0
    for at in range(begin, end):
        if codes[at] == 0x3002:
            return False
        if codes[at] == 46 and at > begin and table[codes[at - 1]] & 4:
            stops += at + 1 == end or table[codes[at + 1]] & 1 != 0
            between += at + 1 < end and table[codes[at + 1]] & 4 != 0
    return stops > 0 or between > 1


@njit(cache=True, nogil=True)
def _joins(code: int) -> bool:
    """Whether a character cannot begin a sentence, so that a stop before it is none: 3！=6, Yahoo！、谷歌."""
    return (
        code == 0x3D or code == 0xFF1D or code == 0x3001 or code == 0xFF0C or code == 0x2C
        or code == 0xFF1B or code == 0x3B or code == 0xFF1A or code == 0xD7 or code == 0xF7
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _quotes(code: int) -> bool:
    """Whether a character is a quotation mark, opening or closing."""
    return code == 34 or 0x2018 <= code <= 0x201D or 0x300C <= code <= 0x300F


@njit(cache=True, nogil=True)
def _goes_on_behind(codes: np.ndarray, stop: int, mark: int, end: int, table: np.ndarray) -> bool:
    """Whether a sentence goes on behind a closing mark with a stop before it, as in `“对。”他说。`."""
    if stop >= end or codes[stop] == 10:
        return False
    after = _spaces(codes, stop, end, table)
    if after == end or codes[after - 1] == 10 or (_quotes(codes[stop - 1]) and _quotes(codes[after])):
        return False
    return not (mark == 46 and after > stop and _begins_sentence(codes, after, end, table))


@njit(cache=True, nogil=True)
def _closing(codes: np.ndarray, at: int, end: int) -> int:
    """Return where the mark is closed that opens at a position, in the same line; -1 if it is not."""
    opening = codes[at]
    closing = opening
    for number in range(len(_OPENING)):
        if _OPENING[number] == opening:
            closing = _CLOSING[number]
    depth = 0
    for place in range(at + 1, min(end, at + _LONGEST_ENCLOSED)):
        code = codes[place]
        if code == 10:
            return -1
        if code == closing:
            if depth == 0:
                return place
            depth -= 1
        elif code == opening:
            depth += 1
    return -1


@njit(cache=True, nogil=True)
def _closed(codes: np.ndarray, at: int, end: int, table: np.ndarray) -> int:
    """Return the position behind closing marks; a straight quotation mark may open something instead."""
    while at < end and table[codes[at]] & 8:
        if codes[at] == 34 and _closing(codes, at, end) > 0:
            break
        at += 1
    return at


@njit(cache=True, nogil=True)
def _stop(
    codes: np.ndarray, begin: int, at: int, end: int, ascii_stops: bool, table: np.ndarray, literal: bool
) -> int:
    """Return the end of the sentence that ends with the stop at a position, without the white space; else -1.

    Line feeds are not looked at here. With a negative result the search goes on behind the stop.
    """
    code = codes[at]
    last = at
    if _full_stop(code):
        while last + 1 < end and _full_stop(codes[last + 1]):
            last += 1
        stop = _closed(codes, last + 1, end, table)
        if not literal and stop == last + 1 and stop < end and _joins(codes[stop]):
            return -1
        behind = stop > last + 1 and not literal
        return -1 if behind and _goes_on_behind(codes, stop, codes[last], end, table) else stop
    if code == 33 or code == 63:
        while last + 1 < end and (codes[last + 1] == 33 or codes[last + 1] == 63):
            last += 1
        stop = _closed(codes, last + 1, end, table)
        if stop == end:
            return stop
        if not table[codes[stop]] & 5:
            return -1
        if literal:
            return stop
        if stop > last + 1:
            return -1 if _goes_on_behind(codes, stop, code, end, table) else stop
        after = _spaces(codes, stop, end, table)
        name = after == stop and stop < end and at > begin and _is_latin(codes[at - 1])  # Yahoo!奇摩
        if after + 1 < end and table[codes[after]] & 64:
            after += 1
        lower = after < end and 97 <= codes[after] <= 122
        return -1 if name or lower else stop
    if at > begin and table[codes[at - 1]] & 4:
        stop = _closed(codes, at + 1, end, table)
        if stop > at + 1 and not literal:
            return -1 if _goes_on_behind(codes, stop, 0x3002, end, table) else stop
        if stop == end or not (table[codes[stop]] & 2 or codes[stop] == 46):
            return stop
        if stop > at + 1:
            return stop - 1
        if table[codes[stop]] & 4:
            return stop if ascii_stops or literal else -1
    stop = _closed(codes, at + 1, end, table)
    after = _spaces(codes, stop, end, table)
    if after == end:
        return stop
    if after == stop or not _begins_sentence(codes, after, end, table):
        return -1
    return -1 if _is_abbreviation(codes, begin, at, after, end) and stop == at + 1 else stop


@njit(cache=True, nogil=True)
def _to_mark(codes: np.ndarray, table: np.ndarray) -> int:
    """Return how many characters stand before the first that may end a sentence or opens something."""
    count = 0
    for code in codes:
        if table[code] & 192:
            break
        count += 1
    return count


@njit(cache=True, nogil=True)
def _behind_enclosed(codes: np.ndarray, closing: int, end: int, table: np.ndarray) -> int:
    """Return the end of the sentence whose stop is the last character between two marks, -1 if it goes on."""
    mark = codes[closing - 1]
    if not table[mark] & 128:
        return -1
    stop = _closed(codes, closing + 1, end, table)
    return -1 if _goes_on_behind(codes, stop, mark, end, table) else stop


@njit(cache=True, nogil=True)
def _split(
    codes: np.ndarray, offsets: np.ndarray, table: np.ndarray, literal: bool
) -> tuple[np.ndarray, np.ndarray]:
    ends = np.empty(len(codes) // 16 + 64, np.int64)
    first = np.zeros(len(offsets), np.int64)
    n = 0
    for row in range(len(offsets) - 1):
        begin, end = offsets[row], offsets[row + 1]
        at, last, line, fenced = begin, -1, begin, -1
        widest = ascii_stops = -1  # not known yet
        while True:
            at += _to_mark(codes[at:end], table)
            if at >= end:
                break
            stop = -1
            code = codes[at]
            if code == 10:
                if literal:
                    stop = at + 1
                else:
                    if fenced < at:
                        fenced = fence_end(codes, line, at, end)
                    joined = 1 if fenced > at else goes_on(codes, begin, line, at, end, table)
                    if joined < 0:
                        if widest < 0:
                            widest = widest_line(codes, begin, end)
                        joined = is_wrapped(codes, line, at, end, widest, table)
                    if joined == 0:
                        stop = at + 1
                line = at + 1
            elif table[code] & 64:
                closing = -1 if literal else _closing(codes, at, end)
                if closing > at:
                    at = closing
                    stop = _behind_enclosed(codes, closing, end, table)
            else:
                if code == 46 and ascii_stops < 0 and at > begin and table[codes[at - 1]] & 4:
                    ascii_stops = 1 if _uses_ascii_stops(codes, begin, end, table) else 0
                stop = _stop(codes, begin, at, end, ascii_stops == 1, table, literal)
            if stop > at and code != 10 and not literal:  # at the end of a line the line decides
                following = stop  # the line feed that may stand there
                while following < end and codes[following] != 10 and table[codes[following]] & 1:
                    following += 1
                if following < end and codes[following] == 10:
                    at = following
                    continue
            if stop < 0:
                at += 1
                continue
            at = last = _spaces(codes, stop, end, table)
            for place in range(at, stop, -1):
                if codes[place - 1] == 10:
                    line = place
                    break
            if n + 1 >= len(ends):
                ends = np.concatenate((ends, np.empty(len(ends), np.int64)))
            ends[n] = at
            n += 1
        if last != end:
            if n + 1 >= len(ends):
                ends = np.concatenate((ends, np.empty(len(ends), np.int64)))
            ends[n] = end
            n += 1
        first[row + 1] = n
    return ends[:n].copy(), first


@njit(cache=True, nogil=True)
def _words(codes: np.ndarray, start: int, end: int, enough: int, table: np.ndarray) -> int:
    """Words from start to end, counted as far as `enough`."""
    count, at = 0, start
    while at < end and count < enough:
        kind = table[codes[at]]
        code = codes[at]
        if kind & 4:
            count += 1
            at += 1
        elif kind & 2 and code != 95:
            count += 1
            at += 1
            while at < end:
                code = codes[at]
                joins = code == 46 or code == 44 or code == 39 or code == 0x2019 or code == 45
                if joins and at + 1 < end and table[codes[at + 1]] & 6 == 2 and codes[at + 1] != 95:
                    at += 2
                elif table[code] & 6 == 2 and code != 95:
                    at += 1
                else:
                    break
        else:
            at += 1
    return count


@njit(cache=True, nogil=True)
def line_break(codes: np.ndarray, begin: int, start: int, end: int) -> int:
    """A line feed to put in the place of whole sentences if they part two lines, else 0."""
    if start == begin or codes[start - 1] == 10:
        return 0
    for at in range(start, end):
        if codes[at] == 10:
            return 10
    return 0


@njit(cache=True, nogil=True)
def _find_short(
    codes: np.ndarray,
    offsets: np.ndarray,
    ends: np.ndarray,
    first: np.ndarray,
    minimum: int,
    table: np.ndarray,
) -> np.ndarray:
    edits = np.empty((64, 7), np.int64)
    n = 0
    for row in range(len(offsets) - 1):
        start, joined = offsets[row], -1
        for sentence in range(first[row], first[row + 1] + 1):
            last = sentence == first[row + 1]
            short = not last and _words(codes, start, ends[sentence], minimum, table) < minimum
            if short and joined < 0:
                joined = start
            if not short and joined >= 0:
                edits = grown(edits, n)
                mark = line_break(codes, offsets[row], joined, start)
                put(edits, n, row, joined, start, _SHORT, mark, 0, -1)
                n += 1
                joined = -1
            if not last:
                start = ends[sentence]
    return edits[:n]
