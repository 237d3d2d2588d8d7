"""Filter of languages (paper section 3.1.1): keep text that is confidently Chinese or English.

The detector is CLD2, which polyglot, the paper's tool, calls (polyglot itself is GPL). It is called once per
document, and not at all for text that only Chinese is written like.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import numpy as np
import pycld2
from numba import njit

from openba.data.clean.edit_matrix import remove_rows
from openba.data.clean.filter import Filter
from openba.data.clean.text_arrays import LETTER, Texts, character_classes, iterate_utf8
from openba.recipes.clean import CleanRecipe

# Share of Han characters in common use below which CLD2's "Chinese" is not believed. CLD2 calls a quarter of
# random Han text Chinese; that has 0.42 on average, while 99.9 % of real reviews have 0.98 and more.
_MIN_COMMON_SHARE = 0.6

# Where CLD2 is unreliable, these limits decide by script: Chinese with numbers, Latin names or a formula.
# What that gains is in docs/data.md.
_CLEARLY_COMMON_SHARE = 0.9
_MIN_HAN = 10

# Chinese beyond doubt: Han characters per word of another script, and the share of them in forms of China
# alone (in GB 2312 and not in JIS X 0208; simplified text has a quarter to a half).
_MIN_HAN_PER_WORD = 8
_MIN_SIMPLIFIED_SHARE = 0.05
# Kana and Hangul per Han character in such text, for an article that opens with a sentence of Japanese.
_MAX_FOREIGN_SHARE = 1 / 3

# Japanese without kana: number and share of Han characters in forms that are not written together in
# Chinese, provided that none is in a form of China alone.
_MIN_JAPANESE = 2
_MIN_JAPANESE_SHARE = 0.05

# Bytes of a document that CLD2 is given. It counts 100 times the bytes in 32 bits: above 21.5 MB no answer is
# reliable (measured: real news are Chinese at 20 MB and "unknown" at 40 MB).
_MAX_BYTES = 16_000_000

# CLD2 raises on these; \t, \n, \f and \r pass.
_REFUSED_RANGES = (
    (0x00, 0x08), (0x0B, 0x0B), (0x0E, 0x1F), (0x7F, 0x9F), (0xFDD0, 0xFDEF),
    *((plane + 0xFFFE, plane + 0xFFFF) for plane in range(0, 0x110000, 0x10000)),
)  # fmt: skip
# Bits of a code point.
_IS_HAN = 1
_COMMON = 2
_SIMPLIFIED = 4
_FOREIGN = 8
_LETTER = 16
_REFUSED = 32
_NOT_MAINLAND = 64  # a Japanese form that is not in GB 2312
_NOT_TAIWAN = 128  # a Japanese form that is not in Big5
# Verdicts by script.
_UNDECIDED = 0
_CHINESE = 1
_BEYOND_DOUBT = 2
_JAPANESE = -1
_KANA_AND_HANGUL = ((0x3041, 0x30FA), (0x30FD, 0x30FF), (0x31F0, 0x31FF), (0xAC00, 0xD7A3), (0xFF66, 0xFF9F))


class Languages(Filter):
    """Remove texts that are not confidently in one of the languages.

    polyglot calls CLD2 again with bestEffort if the first call is unreliable; that only names a language it
    marks as unreliable too, so one call is enough here. CLD2 is not called for Chinese beyond doubt: of
    88,603 such texts and sentences it was confident of another language for 43, all of them Chinese that it
    takes for Japanese.
    """

    name = "languages"
    rules = ("unsure_language", "other_language", "rare_han")

    def __init__(self, languages: Collection[str]) -> None:
        """Set the languages that stay: "zh" or "en" or both."""
        self.languages = languages

    @classmethod
    def from_recipe(cls, recipe: CleanRecipe) -> Languages:
        """Return the filter that the recipe describes."""
        return cls(recipe.languages)

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        common_shares, verdicts, detector_input = examine(texts)
        if "zh" not in self.languages:
            verdicts[verdicts > _UNDECIDED] = _UNDECIDED
        is_unclear = verdicts != _BEYOND_DOUBT
        # As lists: indexing arrays document by document is several times slower.
        shares = common_shares.tolist()
        verdict_of_row = verdicts.tolist()
        rule_of_row: dict[int, int] = {}
        unclear_texts = iterate_utf8(Texts(detector_input, texts.offsets).take(is_unclear))
        for row, text in zip(np.flatnonzero(is_unclear).tolist(), unclear_texts, strict=True):
            if verdict_of_row[row] == _JAPANESE:
                rule = "other_language"
            else:
                rule = self._rule(text, shares[row], verdict_of_row[row] > _UNDECIDED)
            if rule:
                rule_of_row[row] = self.rules.index(rule) + 1
        rows = np.array([*rule_of_row], np.int64)
        return remove_rows(texts, rows, np.array([*rule_of_row.values()], np.int64))

    def _rule(self, text: bytes, common_share: float, is_chinese_by_script: bool) -> str:
        """Return the rule by which a text goes, empty if it stays."""
        sample = text if len(text) <= _MAX_BYTES else text[:_MAX_BYTES].decode("utf-8", "ignore")
        is_reliable, _, ((_, code, _, _), *_) = pycld2.detect(sample)
        if not is_reliable:
            return "" if is_chinese_by_script else "unsure_language"
        language = code[:2] if code[:3] == "zh-" else code  # zh-Hant, traditional characters, is Chinese too
        if language not in self.languages:
            return "other_language"
        return "rare_han" if language == "zh" and common_share < _MIN_COMMON_SHARE else ""


def examine(texts: Texts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examine the script of each text.

    Returns:
        Share of Han characters in common use, i.e. in GB 2312 or level 1 of Big5, float64 `[texts]`; 1 for
        texts without Han.
        Verdict by script, int64 `[texts]`. Chinese (1): Han characters, each a word, are half of the words
        and clearly common, and there is no kana or Hangul. Chinese beyond doubt (2): also with some of these.
        Japanese (-1): no kana, no form of China alone, but forms in use neither on the mainland nor in
        Taiwan (発, 駅), or forms that one of the two lacks together with forms that the other lacks (東 with
        区). Else 0.
        Code points, with spaces in place of characters that CLD2 refuses.
    """
    return _examine(texts.code_points, texts.offsets, _bit_table())


@njit(cache=True, nogil=True)
def _examine(
    code_points: np.ndarray, text_offsets: np.ndarray, bit_table: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    common_shares = np.ones(len(text_offsets) - 1, np.float64)
    verdicts = np.zeros(len(text_offsets) - 1, np.int64)
    refused_bits = np.uint8(0)
    for row in range(len(common_shares)):
        han_count = 0
        common_count = 0
        simplified_count = 0
        word_count = 0
        foreign_count = 0
        neither_count = 0
        not_mainland_count = 0
        not_taiwan_count = 0
        all_bits = previous_bits = np.uint8(0)
        # Shifts instead of branches, as every character passes here.
        for code_point in code_points[text_offsets[row] : text_offsets[row + 1]]:
            bits = bit_table[code_point]
            han_count += bits & 1
            common_count += (bits >> 1) & 1
            simplified_count += (bits >> 2) & 1
            word_count += (bits & ~previous_bits & 16) >> 4
            foreign_count += (bits >> 3) & 1
            neither_count += bits >> 6 == 3
            not_mainland_count += bits >> 6 == 1
            not_taiwan_count += bits >> 6 == 2
            all_bits |= bits
            previous_bits = bits
        refused_bits |= all_bits & _REFUSED
        if han_count == 0:
            continue
        common_shares[row] = common_count / han_count
        japanese_count = neither_count + min(not_mainland_count, not_taiwan_count)
        if foreign_count + simplified_count == 0 and japanese_count >= max(
            _MIN_JAPANESE, _MIN_JAPANESE_SHARE * han_count
        ):
            verdicts[row] = _JAPANESE
        elif han_count >= max(_MIN_HAN, word_count) and common_shares[row] >= _CLEARLY_COMMON_SHARE:
            is_clear = (
                han_count >= _MIN_HAN_PER_WORD * word_count
                and simplified_count >= _MIN_SIMPLIFIED_SHARE * han_count
            )
            if is_clear and foreign_count <= _MAX_FOREIGN_SHARE * han_count:
                verdicts[row] = _BEYOND_DOUBT
            elif foreign_count == 0:
                verdicts[row] = _CHINESE
    if refused_bits == 0:  # always so after the filter of unusual characters: no copy
        return common_shares, verdicts, code_points
    detector_input = code_points.copy()
    for position in range(len(detector_input)):
        if bit_table[detector_input[position]] & _REFUSED:
            detector_input[position] = 32
    return common_shares, verdicts, detector_input


def _two_byte_characters(codec: str, lead_bytes: range, trail_bytes: Collection[int]) -> str:
    """Return all characters that a double-byte encoding has in a range."""
    pairs = [bytes((lead, trail)) for lead in lead_bytes for trail in trail_bytes]
    return b"".join(pairs).decode(codec, errors="ignore")


@cache
def _bit_table() -> np.ndarray:
    table = np.zeros(0x110000, np.uint8)
    table[(character_classes() & LETTER) > 0] = _LETTER
    table[0x3400:0xA000] = table[0x20000:] = _IS_HAN
    gb2312 = _two_byte_characters("gb2312", range(0xB0, 0xF8), range(0xA1, 0xFF))
    big5 = _two_byte_characters("big5", range(0xA4, 0xC7), [*range(0x40, 0x7F), *range(0xA1, 0xFF)])
    japanese = _two_byte_characters("euc_jp", range(0xB0, 0xF5), range(0xA1, 0xFF))
    table[[ord(c) for c in gb2312 + big5]] |= _COMMON
    table[[ord(c) for c in {*gb2312} - {*japanese}]] |= _SIMPLIFIED
    all_big5 = _two_byte_characters("big5", range(0xA4, 0xFA), [*range(0x40, 0x7F), *range(0xA1, 0xFF)])
    table[[ord(c) for c in {*japanese} - {*gb2312}]] |= _NOT_MAINLAND
    table[[ord(c) for c in {*japanese} - {*all_big5}]] |= _NOT_TAIWAN
    for bit, ranges in ((_FOREIGN, _KANA_AND_HANGUL), (_REFUSED, _REFUSED_RANGES)):
        for first, last in ranges:
            table[first : last + 1] = table[first : last + 1] & ~np.uint8(_LETTER) | bit
    return table
