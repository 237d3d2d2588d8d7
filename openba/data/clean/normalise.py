"""Optional first filters that write text in one form: mojibake, compatibility forms, traditional script.

None is in the paper. They rewrite and remove nothing, so `removed.parquet` has no rows of them; the funnel
has the bytes before and after. Full NFKC is not offered: it turns x² into x2, ① into 1, ½ into 1⁄2 and
Chinese punctuation into English.
"""

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher
from functools import cache

import numpy as np
import opencc
from numba import njit

from openba.data.clean.edit_matrix import COLUMNS, append, from_edits
from openba.data.clean.edits import Edit
from openba.data.clean.filter import Filter
from openba.data.clean.text_arrays import HAN, Texts, character_classes
from openba.errors import UserError

_RANGES = (
    (0x2126, 0x212B),  # Ω K Å of units
    (0x2E80, 0x2FD5),  # radicals, as PDF files have them in place of characters
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0xFB00, 0xFB06),  # ligatures such as ﬁ
    (0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A),  # full-width digits and letters
    (0xFF61, 0xFF9F),  # half-width katakana and its punctuation
    (0x2F800, 0x2FA1F),
)  # fmt: skip
_WIDE_SYMBOLS = "＂＃＄％＆＇＊＋－／＜＝＞＠＼＾＿｀｜￠￡￥￦"
"""Full-width symbols that Chinese text does not use as punctuation."""
_COMPOSED = re.compile("[^\u0300-\u036f][\u0300-\u036f]+")
_MAX_INSERTED = 2
"""Characters that an edit can insert."""


class Mojibake(Filter):
    """Repair text that was decoded with a wrong encoding, such as â€™ for ’, by ftfy."""

    name = "normalise_encoding"
    rules = ()

    def __init__(self) -> None:
        try:
            from ftfy import fix_encoding
        except ImportError:
            raise UserError(
                "clean.normalise: encoding needs ftfy; install it: pip install 'openba[quality]'"
            ) from None
        self._fix_encoding = fix_encoding

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        # ftfy does 2 MB/s, and mojibake has two characters beyond ASCII in a row that are not of East Asia.
        candidate_rows = np.flatnonzero(_may_be_mojibake(texts.code_points, texts.offsets))
        return from_edits(
            texts, ((row, self.find_in_text(texts.text(row))) for row in candidate_rows.tolist()), self.rules
        )

    def find_in_text(self, text: str) -> list[Edit]:
        """Return the edits of one text."""
        return rewriting(text, self._fix_encoding(text))


class CompatibilityForms(Filter):
    """Write full-width letters and digits, ligatures, radicals and compatibility ideographs as usual.

    Letters with accents behind them become one character (NFC).
    """

    name = "normalise_forms"
    rules = ()

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        first, second = _usual_forms()
        edits = _find_forms(texts.code_points, texts.offsets, first, second)
        candidate_rows = np.flatnonzero(_has_accents(texts.code_points, texts.offsets))
        accents = from_edits(
            texts, ((row, _compose(texts.text(row))) for row in candidate_rows.tolist()), self.rules
        )
        # An accent belongs to the letter before it, so the two sorts of edits never touch the same character
        # unless that letter is a compatibility form; the accent's edit then stands for both.
        covered = np.isin(edits[:, 1], accents[:, 1])
        edits = np.concatenate([edits[~covered], accents])
        return edits[np.lexsort((edits[:, 1], edits[:, 0]))]


class SimplifiedScript(Filter):
    """Write traditional Chinese in simplified characters, by OpenCC's dictionary of phrases."""

    name = "normalise_script"
    rules = ()

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        candidate_rows = np.flatnonzero(_holds_any(texts.code_points, texts.offsets, _traditional()))
        return from_edits(
            texts, ((row, self.find_in_text(texts.text(row))) for row in candidate_rows.tolist()), self.rules
        )

    def find_in_text(self, text: str) -> list[Edit]:
        """Return the edits of one text."""
        return rewriting(text, _converter().convert(text))


FILTERS = {"encoding": Mojibake, "forms": CompatibilityForms, "script": SimplifiedScript}
"""Name in a recipe -> its filter, in the order in which they run."""


def rewriting(before: str, after: str) -> list[Edit]:
    """Return edits that turn one text into another, each inserting at most two characters.

    Where a passage becomes longer than that allows, it stays as it is.
    """
    if len(before) == len(after):
        return [
            Edit(position, position + 1, "", new)
            for position, (old, new) in enumerate(zip(before, after, strict=True))
            if old != new
        ]
    edits: list[Edit] = []
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for operation, start, end, new_start, new_end in matcher.get_opcodes():
        new = after[new_start:new_end]
        if operation == "equal" or len(new) > _MAX_INSERTED * (end - start):
            continue
        for position in range(start, end):
            remaining = end - position
            taken = max(1, len(new) - _MAX_INSERTED * (remaining - 1)) if new else 0
            edits.append(Edit(position, position + 1, "", new[:taken]))
            new = new[taken:]
    return edits


def _compose(text: str) -> list[Edit]:
    edits: list[Edit] = []
    for match in _COMPOSED.finditer(text):
        composed = unicodedata.normalize("NFC", match[0])
        if composed != match[0] and len(composed) <= _MAX_INSERTED:
            edits.append(Edit(*match.span(), "", composed))
    return edits


@cache
def _converter() -> opencc.OpenCC:
    return opencc.OpenCC("t2s")


@cache
def _traditional() -> np.ndarray:
    """Return which code points are not simplified, bool `[0x110000]`."""
    is_traditional = np.zeros(0x110000, bool)
    codes = np.flatnonzero(character_classes() & HAN)
    characters = "".join(map(chr, codes.tolist()))
    converted = "".join(_converter().convert(character) for character in characters)
    is_traditional[codes] = [old != new for old, new in zip(characters, converted, strict=True)]
    return is_traditional


@cache
def _usual_forms() -> tuple[np.ndarray, np.ndarray]:
    """Return the one or two characters that each code point becomes, uint32 `[0x110000]`; 0: it stays."""
    first = np.zeros(0x110000, np.uint32)
    second = np.zeros(0x110000, np.uint32)
    codes = [code for start, end in _RANGES for code in range(start, end + 1)]
    for code in (*codes, *map(ord, _WIDE_SYMBOLS)):
        usual = unicodedata.normalize("NFKC", chr(code))
        if usual != chr(code) and len(usual) <= _MAX_INSERTED:
            first[code] = ord(usual[0])
            second[code] = ord(usual[1]) if len(usual) > 1 else 0
    return first, second


@njit(cache=True, nogil=True)
def _find_forms(
    code_points: np.ndarray, offsets: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    edits = np.empty((64, COLUMNS), np.int64)
    count = 0
    for row in range(len(offsets) - 1):
        for position in range(offsets[row], offsets[row + 1]):
            code_point = code_points[position]
            if first[code_point]:
                edits, count = append(
                    edits, count, row, position, position + 1, 0, first[code_point], second[code_point]
                )
    return edits[:count]


@njit(cache=True, nogil=True)
def _may_be_mojibake(code_points: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    is_candidate = np.zeros(len(offsets) - 1, np.bool_)
    for row in range(len(offsets) - 1):
        for position in range(offsets[row] + 1, offsets[row + 1]):
            # Up to U+2600: what the 8-bit encodings that ftfy knows decode bytes to.
            is_beyond = 0x80 <= code_points[position] < 0x2600
            if is_beyond and 0x80 <= code_points[position - 1] < 0x2600:
                is_candidate[row] = True
                break
    return is_candidate


@njit(cache=True, nogil=True)
def _has_accents(code_points: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    has_accents = np.zeros(len(offsets) - 1, np.bool_)
    for row in range(len(offsets) - 1):
        for position in range(offsets[row], offsets[row + 1]):
            if 0x300 <= code_points[position] < 0x370:
                has_accents[row] = True
                break
    return has_accents


@njit(cache=True, nogil=True)
def _holds_any(code_points: np.ndarray, offsets: np.ndarray, is_member: np.ndarray) -> np.ndarray:
    holds = np.zeros(len(offsets) - 1, np.bool_)
    for row in range(len(offsets) - 1):
        for position in range(offsets[row], offsets[row + 1]):
            if is_member[code_points[position]]:
                holds[row] = True
                break
    return holds
