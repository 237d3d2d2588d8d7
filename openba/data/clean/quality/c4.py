"""Rules of C4: lines that are sentences, and pages that have some.

Source: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer",
2020, section 2.2. The English form removes the lines and documents that datatrove's filter removes with its
defaults. In the Chinese form, which is ours, a line ends with a Chinese or an English mark, and five Han
characters stand for the three words that a line has at least.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from openba.data.clean.edit_matrix import COLUMNS, append
from openba.data.clean.filter import Filter
from openba.data.clean.quality import words as word_table
from openba.data.clean.quality.lines import ends_in_ellipsis, next_line, strip
from openba.data.clean.quality.words import BLANK, ENDS_SENTENCE, PUNCTUATION
from openba.data.clean.text_arrays import HAN, SPACE, Texts, character_classes

_ENGLISH_ENDS = ".?!\"'"
_CHINESE_ENDS = _ENGLISH_ENDS + "。！？；…”’」』》）"
_MIN_WORDS = 3
_MIN_HAN = 5
_MAX_WORD_LENGTH = 1000
_MIN_SENTENCES = 5
_POLICIES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
    "使用条款", "服务条款", "隐私政策", "隐私条款", "使用cookie",
)  # fmt: skip
_CITATIONS = ("[edit]", "[citation needed]")
# Numbers of `C4Lines.rules`; 0 keeps a line.
_CITATION = 1
_LONG_WORD = 2
_NO_END = 3
_FEW_WORDS = 4
_JAVASCRIPT = 5
_POLICY = 6
_LOREM_IPSUM = 7
_CURLY_BRACKET = 8
_FEW_SENTENCES = 9


class C4Lines(Filter):
    """Remove lines that are no sentences, and documents with few sentences, placeholders or code."""

    name = "c4"
    rules = (
        "citation", "long_word", "no_end_mark", "few_words", "javascript", "policy", "lorem_ipsum",
        "curly_bracket", "few_sentences",
    )  # fmt: skip

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        is_chinese = word_table.find_chinese(texts)
        class_table = character_classes()
        lines, citations, buffer, left_offsets = _read_lines(
            texts.code_points, texts.offsets, is_chinese, class_table,
            _encode((_ENGLISH_ENDS,))[0], _encode((_CHINESE_ENDS,))[0], *_encode(_POLICIES),
            *_encode(("javascript",)), *_encode(("lorem ipsum",)), *_encode(_CITATIONS),
        )  # fmt: skip
        line_rows = lines[lines[:, RULE] == 0, ROW]
        words = word_table.words(Texts(buffer, left_offsets), is_chinese[line_rows])
        sentences = _count_sentences(words.kinds, words.offsets)
        sentences_of_row = np.bincount(line_rows, sentences, len(is_chinese)).astype(np.int64)
        return _edits(texts.offsets, lines, citations, sentences_of_row)


ROW, START, END, STRIPPED_START, STRIPPED_END, FOLLOWING, RULE = range(7)
"""Columns of a line: row of the batch, span, span without white space, start of the next line, and rule."""


def _encode(phrases: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return phrases as code points, uint32, and their offsets, int64."""
    row_offsets = np.cumsum([0, *map(len, phrases)])
    return np.frombuffer("".join(phrases).encode("utf-32-le"), np.uint32), row_offsets


@njit(cache=True, nogil=True)
def _read_lines(
    code_points: np.ndarray,
    text_offsets: np.ndarray,
    is_chinese: np.ndarray,
    class_table: np.ndarray,
    english_ends: np.ndarray,
    chinese_ends: np.ndarray,
    policies: np.ndarray,
    policy_offsets: np.ndarray,
    javascript: np.ndarray,
    javascript_offsets: np.ndarray,
    placeholder: np.ndarray,
    placeholder_offsets: np.ndarray,
    citation_words: np.ndarray,
    citation_offsets: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return all lines, spans of citations, and code points and offsets of what stays without them."""
    lines = np.empty((64, 7), np.int64)
    line_count = 0
    citations = np.empty((64, 2), np.int64)
    citation_count = 0
    buffer = np.empty(len(code_points), np.uint32)
    left_offsets = np.zeros(len(code_points) + 1, np.int64)
    left_count = 0
    size = 0
    for row in range(len(text_offsets) - 1):
        line_start = text_offsets[row]
        row_end = text_offsets[row + 1]
        ends = chinese_ends if is_chinese[row] else english_ends
        while line_start < row_end:
            line_end, following = next_line(code_points, line_start, row_end)
            start, end = strip(code_points, line_start, line_end, class_table)
            count, longest = _count_line_words(code_points, start, end, class_table, is_chinese[row])
            # The line without citations goes to the end of `buffer`, where it stays if the line does.
            length, citations, citation_count = _copy_without_citations(
                code_points,
                start,
                end,
                buffer,
                size,
                citations,
                citation_count,
                citation_words,
                citation_offsets,
            )
            minimum = _MIN_HAN if is_chinese[row] else _MIN_WORDS
            rule = 0
            if longest > _MAX_WORD_LENGTH:
                rule = _LONG_WORD
            elif not _has_end(buffer, size, size + length, ends):
                rule = _NO_END
            elif count < minimum:
                rule = _FEW_WORDS
            elif _holds_any(buffer, size, size + length, placeholder, placeholder_offsets):
                rule = _LOREM_IPSUM
            elif _holds_any(buffer, size, size + length, javascript, javascript_offsets):
                rule = _JAVASCRIPT
            elif (buffer[size : size + length] == 123).any():  # {
                rule = _CURLY_BRACKET
            elif _holds_any(buffer, size, size + length, policies, policy_offsets):
                rule = _POLICY
            else:
                size += length
                left_count += 1
                left_offsets[left_count] = size
            if line_count == len(lines):
                grown_lines = np.empty((2 * len(lines), 7), np.int64)
                grown_lines[:line_count] = lines
                lines = grown_lines
            lines[line_count] = (row, line_start, line_end, start, end, following, rule)
            line_count += 1
            line_start = following
    return lines[:line_count], citations[:citation_count], buffer[:size], left_offsets[: left_count + 1]


@njit(cache=True, nogil=True)
def _copy_without_citations(
    code_points: np.ndarray,
    start: int,
    end: int,
    out: np.ndarray,
    out_start: int,
    citations: np.ndarray,
    citation_count: int,
    phrases: np.ndarray,
    phrase_offsets: np.ndarray,
) -> tuple[int, np.ndarray, int]:
    """Copy a line without its citations, and note their spans; return its length, the spans, their number."""
    length = 0
    position = start
    while position < end:
        cited = 0
        if code_points[position] == 91:  # [
            cited = _citation_length(code_points, position, end, phrases, phrase_offsets)
        if cited == 0:
            out[out_start + length] = code_points[position]
            length += 1
            position += 1
            continue
        if citation_count == len(citations):
            grown = np.empty((2 * len(citations), 2), np.int64)
            grown[:citation_count] = citations
            citations = grown
        citations[citation_count, 0] = position
        citations[citation_count, 1] = position + cited
        citation_count += 1
        position += cited
    return length, citations, citation_count


@njit(cache=True, nogil=True)
def _count_line_words(
    code_points: np.ndarray, start: int, end: int, class_table: np.ndarray, is_chinese: bool
) -> tuple[int, int]:
    """Return the words between white space, or Han characters, and the longest word's length."""
    words = 0
    han = 0
    longest = 0
    length = 0
    for position in range(start, end):
        bits = class_table[code_points[position]]
        han += bits & HAN != 0
        if bits & SPACE:
            length = 0
        else:
            words += length == 0
            length += 1
            longest = max(longest, length)
    # Chinese has no blanks: a word longer than any is one of other letters, which this rule is not about.
    return (max(words, han), 0) if is_chinese else (words, longest)


@njit(cache=True, nogil=True)
def _citation_length(
    code_points: np.ndarray, start: int, end: int, phrases: np.ndarray, phrase_offsets: np.ndarray
) -> int:
    """Return the length of `[12]`, `[]`, `[edit]` or `[citation needed]` at `start`, 0 if there is none."""
    position = start + 1
    while position < end and 48 <= code_points[position] <= 57:
        position += 1
    if position < end and code_points[position] == 93:
        return position + 1 - start
    for number in range(len(phrase_offsets) - 1):
        length = phrase_offsets[number + 1] - phrase_offsets[number]
        if end - start >= length:
            is_equal = True
            for index in range(length):
                if code_points[start + index] != phrases[phrase_offsets[number] + index]:
                    is_equal = False
                    break
            if is_equal:
                return length
    return 0


@njit(cache=True, nogil=True)
def _has_end(text: np.ndarray, start: int, end: int, ends: np.ndarray) -> bool:
    if start == end or ends_in_ellipsis(text, start, end):
        return False
    return bool((ends == text[end - 1]).any())


@njit(cache=True, nogil=True)
def _holds_any(text: np.ndarray, start: int, end: int, phrases: np.ndarray, row_offsets: np.ndarray) -> bool:
    """Return whether a span holds one of some phrases in lower case, whatever its own case."""
    for position in range(start, end):
        first = text[position]
        first += 32 if 65 <= first <= 90 else 0
        for number in range(len(row_offsets) - 1):
            if first != phrases[row_offsets[number]]:
                continue
            length = row_offsets[number + 1] - row_offsets[number]
            if position + length > end:
                continue
            is_equal = True
            for index in range(1, length):
                code_point = text[position + index]
                code_point += 32 if 65 <= code_point <= 90 else 0
                if code_point != phrases[row_offsets[number] + index]:
                    is_equal = False
                    break
            if is_equal:
                return True
    return False


@njit(cache=True, nogil=True)
def _count_sentences(kinds: np.ndarray, row_offsets: np.ndarray) -> np.ndarray:
    """Return the sentences of each line, int64 `[lines]`: a new one begins with the first word after a stop.

    As spaCy's sentencizer: punctuation behind a stop belongs to the sentence before it.
    """
    sentences = np.zeros(len(row_offsets) - 1, np.int64)
    for line in range(len(row_offsets) - 1):
        is_after_stop = False
        sentences[line] = row_offsets[line + 1] > row_offsets[line]
        for index in range(row_offsets[line], row_offsets[line + 1]):
            kind = kinds[index]
            if kind & ENDS_SENTENCE:
                is_after_stop = True
            elif is_after_stop and (kind & BLANK or not kind & PUNCTUATION):
                sentences[line] += 1
                is_after_stop = False
    return sentences


@njit(cache=True, nogil=True)
def _edits(
    text_offsets: np.ndarray, lines: np.ndarray, citations: np.ndarray, sentences: np.ndarray
) -> np.ndarray:
    edits = np.empty((64, COLUMNS), np.int64)
    edit_count = 0
    line = 0
    citation = 0
    for row in range(len(text_offsets) - 1):
        first = line
        rule_of_document = 0
        while line < len(lines) and lines[line, ROW] == row:
            if rule_of_document == 0 and lines[line, RULE] >= _LOREM_IPSUM:
                rule_of_document = lines[line, RULE]
            line += 1
        if rule_of_document == 0 and sentences[row] < _MIN_SENTENCES:
            rule_of_document = _FEW_SENTENCES
        if rule_of_document and text_offsets[row] < text_offsets[row + 1]:
            edits, edit_count = append(
                edits, edit_count, row, text_offsets[row], text_offsets[row + 1], rule_of_document
            )
            continue
        for number in range(first, line):
            start = lines[number, START]
            end = lines[number, END]
            rule = lines[number, RULE]
            if rule:
                edits, edit_count = append(edits, edit_count, row, start, lines[number, FOLLOWING], rule)
                continue
            if start < lines[number, STRIPPED_START]:
                edits, edit_count = append(edits, edit_count, row, start, lines[number, STRIPPED_START], 0)
            while citation < len(citations) and citations[citation, 0] < start:
                citation += 1
            while citation < len(citations) and citations[citation, 0] < end:
                edits, edit_count = append(
                    edits, edit_count, row, citations[citation, 0], citations[citation, 1], _CITATION
                )
                citation += 1
            if lines[number, STRIPPED_END] < end:
                edits, edit_count = append(edits, edit_count, row, lines[number, STRIPPED_END], end, 0)
    return edits[:edit_count]
