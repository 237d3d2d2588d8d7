"""Words of a batch of texts as arrays: hash, length and kind of each, for the quality rules.

English text has the words of spaCy's rules for English, which datatrove's filters count by as well. spaCy
does 0.6 MB/s (measured), so it is asked only about what is no plain word: words of ASCII letters, numbers and
words with a hyphen or 's, with usual punctuation around, are divided here in the same way, and its answer
about anything else is kept for the next time (`_Memo`). A text in which Han characters outnumber other words
is Chinese: each of its Han characters is a word, and each run of other letters.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from openba.data.clean.text_arrays import HAN, LETTER, SPACE, WORD, Texts, character_classes
from openba.errors import UserError

if TYPE_CHECKING:
    from spacy.language import Language

# Bits of a word's kind.
NO_SYMBOL = 1
"""Has a character that is none of `_SYMBOLS`."""
ALPHABETIC = 2
"""Has a letter."""
ENDS_SENTENCE = 4
PUNCTUATION = 8
BLANK = 16
"""White space that spaCy makes a token of; no word, but a sentence may begin with it."""
# What a word of symbols consists of, beside ASCII and control characters: those that FineWeb-2's filters name
# (datatrove 0.10.1, `utils/text.py`).
_SYMBOLS = "—”％１〈、━【「」，】；“《„’∶´．（–？！：～«〉》）。…►»"
_SEED = np.uint64(0x51ED270B9F1A2C3D)
_MULTIPLIER = np.uint64(0xC2B2AE3D27D4EB4F)
_MEMO_CHUNKS = 2**20
"""Chunks that are remembered at most, some 100 MB; then the memo begins anew."""


class Words(NamedTuple):
    """Words of each text of a batch."""

    hashes: np.ndarray
    """uint64 `[words]`."""
    lengths: np.ndarray
    """int32 `[words]`, characters."""
    kinds: np.ndarray
    """uint8 `[words]`, the bits above."""
    offsets: np.ndarray
    """int64 `[texts + 1]`."""

    def without_blanks(self) -> Words:
        """Return the words without the tokens of white space."""
        is_word = self.kinds & BLANK == 0
        if is_word.all():
            return self
        before = np.concatenate([[0], np.cumsum(is_word)])
        return Words(self.hashes[is_word], self.lengths[is_word], self.kinds[is_word], before[self.offsets])


def find_chinese(texts: Texts) -> np.ndarray:
    """Return whether Han characters outnumber other words in a text, bool `[texts]`."""
    return _find_chinese(texts.code_points, texts.offsets, character_classes())


def words(texts: Texts, is_chinese: np.ndarray) -> Words:
    """Return the words of a batch.

    Args:
        texts: the batch.
        is_chinese: bool `[texts]`, how each text is divided.

    Raises:
        UserError: spaCy is not installed.
    """
    memo = _memo()
    while True:
        hashes, lengths, kinds, offsets, unknown = _words(
            texts.code_points, texts.offsets, is_chinese, character_classes(), word_kinds(), *memo.arrays
        )
        if not len(unknown):
            return Words(hashes, lengths, kinds, offsets)
        chunks = {texts.code_points[start:end].tobytes().decode("utf-32-le") for start, end in unknown}
        memo.add(sorted(chunks))


def hashes_of(listed: tuple[str, ...]) -> np.ndarray:
    """Return the hash of each word of a list, uint64 `[words]`."""
    return np.array([_hash(_code_points(word), 0, len(word)) for word in listed], np.uint64)


def forget() -> None:
    """Forget all answers of spaCy; for measurements that begin without them."""
    _memo.cache_clear()


class _Memo:
    """Answers of spaCy: the tokens of each chunk of text between white space that it was asked about."""

    def __init__(self) -> None:
        self._language = _load_language()
        self.special = sorted(rule for rule in self._language.tokenizer.rules if not rule.isspace())  # type: ignore[union-attr]
        self._reset()

    def _reset(self) -> None:
        self._known: set[int] = set()
        self._table_keys = np.zeros(2**14, np.uint64)
        self._table_values = np.full(2**14, -1, np.int64)
        self._starts = np.zeros(1, np.int64)
        self._tokens: list[np.ndarray] = [
            np.empty(0, np.uint64),
            np.empty(0, np.int32),
            np.empty(0, np.uint8),
        ]
        self._special_count = 0
        self.add(self.special)
        self._special_count = len(self.special)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
        """Table, first token of each chunk, hashes, lengths and kinds of the tokens, chunks with a rule."""
        hashes, lengths, kinds = self._tokens
        return (
            self._table_keys, self._table_values, self._starts, hashes, lengths, kinds, self._special_count
        )  # fmt: skip

    def add(self, chunks: list[str]) -> None:
        """Ask spaCy about chunks."""
        if len(self._starts) + len(chunks) > _MEMO_CHUNKS:
            self._reset()
        tokens = [[token.text for token in self._language.tokenizer(chunk)] for chunk in chunks]
        flat = [token for chunk_tokens in tokens for token in chunk_tokens]
        starts = self._starts[-1] + np.cumsum([len(chunk_tokens) for chunk_tokens in tokens], dtype=np.int64)
        first_chunk = len(self._starts) - 1
        self._starts = np.concatenate([self._starts, starts])
        described = [_describe(_code_points(token), 0, len(token), word_kinds()) for token in flat]
        new = [
            np.array(column, like) for column, like in zip(zip(*described, strict=True), _TYPES, strict=True)
        ]
        if flat:
            self._tokens = [np.concatenate(pair) for pair in zip(self._tokens, new, strict=True)]
        slot_keys = np.array([_hash(_code_points(chunk), 0, len(chunk)) for chunk in chunks], np.uint64)
        while 2 * len(self._starts) > len(self._table_keys):
            self._table_keys, self._table_values = _grow(self._table_keys, self._table_values)
        _insert(self._table_keys, self._table_values, slot_keys, first_chunk)


_TYPES = (np.uint64, np.int32, np.uint8)


@cache
def _memo() -> _Memo:
    return _Memo()


def _load_language() -> Language:
    try:
        import spacy
    except ImportError:
        raise UserError(
            "clean.quality: the rules count words as spaCy does; install it: pip install 'openba[quality]'"
        ) from None
    language = spacy.blank("en")
    language.add_pipe("sentencizer")
    return language


@cache
def word_kinds() -> np.ndarray:
    """Return the kind of a word of each single character, uint8 `[0x110000]`."""
    kinds = np.zeros(0x110000, np.uint8)
    class_table = character_classes()
    kinds[class_table & LETTER != 0] |= ALPHABETIC
    symbols = {*map(ord, _SYMBOLS), *range(0x20), *range(0x7F, 0xA0)} - {10, 9}
    symbols |= {code for code in range(0x21, 0x7F) if not chr(code).isalnum()}
    ends = set(_load_language().get_pipe("sentencizer").punct_chars)  # type: ignore[attr-defined]
    symbols |= set(map(ord, ends))
    is_no_symbol = np.ones(len(kinds), bool)
    is_no_symbol[list(symbols)] = False
    kinds[is_no_symbol] |= NO_SYMBOL
    kinds[list(map(ord, ends))] |= ENDS_SENTENCE
    is_punctuation = [unicodedata.category(chr(code))[0] == "P" for code in range(len(kinds))]
    kinds[is_punctuation] |= PUNCTUATION
    return kinds


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


@njit(cache=True, nogil=True)
def _find_chinese(code_points: np.ndarray, offsets: np.ndarray, class_table: np.ndarray) -> np.ndarray:
    is_chinese = np.zeros(len(offsets) - 1, np.bool_)
    for row in range(len(offsets) - 1):
        balance = 0
        is_in_word = False
        for position in range(offsets[row], offsets[row + 1]):
            bits = class_table[code_points[position]]
            if bits & HAN:
                balance += 1
            elif bits & WORD and not is_in_word:
                balance -= 1
            is_in_word = bits & WORD != 0 and bits & HAN == 0
        is_chinese[row] = balance > 0
    return is_chinese


@njit(cache=True, nogil=True)
def _hash(text: np.ndarray, start: int, end: int) -> np.uint64:
    mixed = _SEED
    for position in range(start, end):
        mixed = (mixed ^ np.uint64(text[position])) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return mixed


@njit(cache=True, nogil=True)
def _describe(text: np.ndarray, start: int, end: int, kinds: np.ndarray) -> tuple[np.uint64, int, np.uint8]:
    """Return hash, length and kind of the word between two positions.

    Positions, not slices: making a view of an array took more time than the word.
    """
    any_bits = np.uint8(0)
    all_bits = np.uint8(0xFF)
    for position in range(start, end):
        any_bits |= kinds[text[position]]
        all_bits &= kinds[text[position]]
    kind = (any_bits & np.uint8(NO_SYMBOL | ALPHABETIC)) | (all_bits & np.uint8(PUNCTUATION))
    if end - start == 1:
        kind |= any_bits & np.uint8(ENDS_SENTENCE)
    return _hash(text, start, end), end - start, kind


@njit(cache=True, nogil=True)
def _insert(slot_keys: np.ndarray, values: np.ndarray, new_keys: np.ndarray, first_value: int) -> None:
    mask = np.uint64(len(slot_keys) - 1)
    for index in range(len(new_keys)):
        slot = np.int64(new_keys[index] & mask)
        while values[slot] >= 0 and slot_keys[slot] != new_keys[index]:
            slot = (slot + 1) & (len(slot_keys) - 1)
        slot_keys[slot] = new_keys[index]
        values[slot] = first_value + index


@njit(cache=True, nogil=True)
def _grow(slot_keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    grown_keys = np.zeros(2 * len(slot_keys), np.uint64)
    grown_values = np.full(2 * len(slot_keys), -1, np.int64)
    for slot in range(len(slot_keys)):
        if values[slot] >= 0:
            _insert(grown_keys, grown_values, slot_keys[slot : slot + 1], values[slot])
    return grown_keys, grown_values


@njit(cache=True, nogil=True)
def _look_up(slot_keys: np.ndarray, values: np.ndarray, text: np.ndarray, start: int, end: int) -> int:
    """Return the number of a chunk that spaCy was asked about, -1 if it was not."""
    key = _hash(text, start, end)
    slot = np.int64(key & np.uint64(len(slot_keys) - 1))
    while values[slot] >= 0:
        if slot_keys[slot] == key:
            return values[slot]
        slot = (slot + 1) & (len(slot_keys) - 1)
    return -1


@njit(cache=True, nogil=True)
def _words(
    code_points: np.ndarray,
    text_offsets: np.ndarray,
    is_chinese: np.ndarray,
    class_table: np.ndarray,
    character_kinds: np.ndarray,
    table_keys: np.ndarray,
    table_values: np.ndarray,
    starts: np.ndarray,
    token_hashes: np.ndarray,
    token_lengths: np.ndarray,
    token_kinds: np.ndarray,
    special_count: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return hashes, lengths, kinds and offsets of the words, and spans that spaCy has to be asked about."""
    hashes = np.empty(len(code_points), np.uint64)
    lengths = np.empty(len(code_points), np.int32)
    kinds = np.empty(len(code_points), np.uint8)
    offsets = np.zeros(len(text_offsets), np.int64)
    unknown = np.empty((64, 2), np.int64)
    unknown_count = 0
    cuts = np.empty(32, np.int64)
    count = 0
    for row in range(len(text_offsets) - 1):
        position = text_offsets[row]
        row_end = text_offsets[row + 1]
        while position < row_end:
            start = position
            is_space = class_table[code_points[start]] & SPACE != 0
            while position < row_end and (class_table[code_points[position]] & SPACE != 0) == is_space:
                position += 1
            if is_space:
                # spaCy counts one blank to the word before it; the rest is a token.
                is_after_word = start > text_offsets[row] and code_points[start] == 32
                if position - start > is_after_word:
                    hashes[count] = np.uint64(0)
                    lengths[count] = 0
                    kinds[count] = BLANK
                    count += 1
                continue
            if is_chinese[row]:
                cut_start = start
                while cut_start < position:
                    cut_end = _end_of_unit(code_points, cut_start, position, class_table)
                    hashes[count], lengths[count], kinds[count] = _describe(
                        code_points, cut_start, cut_end, character_kinds
                    )
                    count += 1
                    cut_start = cut_end
                continue
            number = _look_up(table_keys, table_values, code_points, start, position)
            if number >= 0:
                tokens = slice(starts[number], starts[number + 1])
                after = count + starts[number + 1] - starts[number]
                hashes[count:after] = token_hashes[tokens]
                lengths[count:after] = token_lengths[tokens]
                kinds[count:after] = token_kinds[tokens]
                count = after
                continue
            cut_count = _divide(code_points, start, position, table_keys, table_values, special_count, cuts)
            if cut_count == 0:
                unknown = _with_room(unknown, unknown_count)
                unknown[unknown_count] = (start, position)
                unknown_count += 1
                continue
            cut_start = start
            for index in range(cut_count):
                hashes[count], lengths[count], kinds[count] = _describe(
                    code_points, cut_start, cuts[index], character_kinds
                )
                count += 1
                cut_start = cuts[index]
        offsets[row + 1] = count
    return (
        hashes[:count].copy(),
        lengths[:count].copy(),
        kinds[:count].copy(),
        offsets,
        unknown[:unknown_count],
    )


@njit(cache=True, nogil=True)
def _with_room(spans: np.ndarray, count: int) -> np.ndarray:
    """Return spans, int64 `[spans, 2]`, of which one more than `count` can be used."""
    if count < len(spans):
        return spans
    grown = np.empty((2 * len(spans), 2), np.int64)
    grown[:count] = spans
    return grown


@njit(cache=True, nogil=True)
def _end_of_unit(code_points: np.ndarray, start: int, end: int, class_table: np.ndarray) -> int:
    """Return where a Han character, a mark, or a run of other letters ends that begins at `start`."""
    position = start + 1
    if class_table[code_points[start]] & (WORD | HAN) == WORD:
        while position < end and class_table[code_points[position]] & (WORD | HAN) == WORD:
            position += 1
    return position


@njit(cache=True, nogil=True)
def _divide(
    text: np.ndarray,
    chunk_start: int,
    end: int,
    slot_keys: np.ndarray,
    values: np.ndarray,
    special_count: int,
    cuts: np.ndarray,
) -> int:
    """Write where the words of a plain chunk end; return their number, 0 if it is not plain."""
    if end - chunk_start > 30:
        return 0
    first = text[chunk_start]
    start = chunk_start
    count = 0
    if first == 34 or first == 40 or first == 91 or first == 0x201C:  # " ( [ “
        start += 1
        cuts[0] = start
        count = 1
    core_end, count = _divide_core(text, start, end, cuts, count)
    if core_end == start:
        return 0
    is_number = text[start] < 58
    position = core_end
    # A possessive 's.
    if position + 1 < end and (text[position] == 39 or text[position] == 0x2019):
        if is_number or (text[position + 1] != 115 and text[position + 1] != 83):
            return 0
        position += 2
        cuts[count] = position
        count += 1
    if end - position > 2 or not _are_usual_marks(text, position, end):
        return 0
    if position < end and text[position] == 46 and not _ends_word(text, start, position):
        return 0
    while position < end:
        position += 1
        cuts[count] = position
        count += 1
    # spaCy looks for its special cases at each step, with and without what precedes and follows.
    for from_here in range(chunk_start, start + 1):
        for to_here in range(core_end, end + 1):
            number = _look_up(slot_keys, values, text, from_here, to_here)
            if 0 <= number < special_count:
                return 0
    return count


@njit(cache=True, nogil=True)
def _ends_word(text: np.ndarray, start: int, stop: int) -> bool:
    """Return whether a full stop at `stop` is a word of its own, as after d, 1 and CD but not after D."""
    last = text[stop - 1]
    if 48 <= last <= 57:
        return True
    if stop - start < 2:
        return False
    before = text[stop - 2]
    is_letter_before = 65 <= before <= 90 or 97 <= before <= 122
    return (97 <= last <= 122 and is_letter_before) or (65 <= last <= 90 and 65 <= before <= 90)


@njit(cache=True, nogil=True)
def _divide_core(text: np.ndarray, start: int, end: int, cuts: np.ndarray, count: int) -> tuple[int, int]:
    """Write the cuts of letters with hyphens, or of a number, from `start`; return the end and the cuts."""
    position = start
    if position < end and 48 <= text[position] <= 57:
        while position < end and (
            48 <= text[position] <= 57
            or (
                (text[position] == 44 or text[position] == 46)
                and position + 1 < end
                and 48 <= text[position + 1] <= 57
            )
        ):
            position += 1
        cuts[count] = position
        return position, count + 1
    while True:
        part_start = position
        while position < end and (65 <= text[position] <= 90 or 97 <= text[position] <= 122):
            position += 1
        if position == part_start:
            return start, count
        cuts[count] = position
        count += 1
        is_hyphenated = (
            position + 1 < end
            and text[position] == 45
            and (65 <= text[position + 1] <= 90 or 97 <= text[position + 1] <= 122)
        )
        if not is_hyphenated:
            return position, count
        position += 1
        cuts[count] = position
        count += 1


@njit(cache=True, nogil=True)
def _are_usual_marks(text: np.ndarray, start: int, end: int) -> bool:
    """Return whether no mark, one, or a usual pair of them stands between two positions."""
    if start == end:
        return True
    first = text[start]
    is_closing = first == 34 or first == 41 or first == 93 or first == 0x201D  # " ) ] ”
    is_stop = first == 33 or first == 44 or first == 46 or first == 63  # ! , . ?
    is_colon = first == 58 or first == 59
    if start + 1 == end:
        return is_closing or is_stop or is_colon
    second = text[start + 1]
    if is_stop:
        return second == 34 or second == 0x201D
    return first == 41 and (second == 44 or second == 46)  # "):" is an emoticon
