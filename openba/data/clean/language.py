"""Keep confident Chinese or English (paper section 3.1.1, language filtering): CLD2 and the script.

Owns the verdict on each text of a batch. CLD2 is what polyglot, the paper's tool, calls; polyglot is GPL.
It is called once a document, but for Chinese that no other language is written like.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import numpy as np
import pycld2
from numba import njit

from openba.data.clean.columns import LETTER, RULE_CODE, Texts, classes, utf8, whole

MIN_COMMON = 0.6
"""Share of Han characters that are in common use. CLD2 calls a quarter of random Han text Chinese;
that has 0.42 of them on average, while 99.9 % of real reviews have 0.98 and more."""

_CLEARLY_COMMON = 0.9
_LEAST_HAN = 10
"""Where CLD2 is sure of nothing, the script decides for Chinese: text with numbers, names in Latin letters or
a formula. What it brings is in docs/data.md."""
_HAN_PER_WORD = 8
_LEAST_SIMPLIFIED = 0.05
"""Chinese beyond doubt: so many Han characters to a word of another script, and that share of them written as
in China alone (GB 2312 has them and JIS X 0208 has not; simplified text has a quarter to a half)."""

_MOST_FOREIGN = 1 / 3
"""Kana and Hangul to a Han character in such text: an article that opens with a sentence of Japanese."""
_LEAST_JAPANESE, _LEAST_JAPANESE_SHARE = 2, 0.05
"""Japanese without kana: so many Han characters, and that share, in forms that no Chinese writes together,
and none in a form of China's."""

_MOST_BYTES = 16_000_000
"""Of a document that CLD2 is given. It counts 100 times the bytes in 32 bits: from 21.5 MB on it is sure of
nothing (measured: real news are Chinese at 20 MB and "unknown" at 40 MB)."""

# CLD2 raises on these; \t, \n, \f and \r pass.
_REFUSED_RANGES = (
    (0x00, 0x08), (0x0B, 0x0B), (0x0E, 0x1F), (0x7F, 0x9F), (0xFDD0, 0xFDEF),
    *((plane + 0xFFFE, plane + 0xFFFF) for plane in range(0, 0x110000, 0x10000)),
)  # fmt: skip
_IS_HAN, _COMMON, _SIMPLIFIED, _FOREIGN, _LETTER, _REFUSED, _NOT_MAINLAND, _NOT_TAIWAN = (
    1, 2, 4, 8, 16, 32, 64, 128,
)  # fmt: skip
"""Bits of a code point. The last two: written so in Japan, but not in GB 2312 or not in Big5."""
_BEYOND_DOUBT = 2
_JAPANESE = -1
_KANA_AND_HANGUL = ((0x3041, 0x30FA), (0x30FD, 0x30FF), (0x31F0, 0x31FF), (0xAC00, 0xD7A3), (0xFF66, 0xFF9F))


def find(texts: Texts, languages: Collection[str]) -> np.ndarray:
    """Edits that remove whole the texts that are not surely in one of the languages ("zh", "en").

    Rules: `unsure_language`, `other_language`, `rare_han`. polyglot's second call, with bestEffort,
    only names a language it then marks as not reliable, so the first decides alone. It is not asked about
    Chinese beyond doubt: of 88,603 such texts and sentences CLD2 was sure of another language for 43, all of
    which are Chinese that it takes for Japanese.
    """
    shares, chinese, spaced = _examine(texts.codes, texts.offsets, _table())
    if "zh" not in languages:
        chinese[chinese > 0] = 0
    unclear = chinese != _BEYOND_DOUBT
    common, by_script = shares.tolist(), chinese.tolist()
    rules: dict[int, int] = {}
    asked = utf8(Texts(spaced, texts.offsets).take(unclear))
    for row, text in zip(np.flatnonzero(unclear).tolist(), asked, strict=True):
        if by_script[row] == _JAPANESE:
            rules[row] = RULE_CODE["other_language"]
        elif rule := _verdict(text, common[row], by_script[row] > 0, languages):
            rules[row] = RULE_CODE[rule]
    return whole(texts, np.array([*rules], np.int64), np.array([*rules.values()], np.int64))


def _verdict(text: bytes, common: float, by_script: bool, languages: Collection[str]) -> str:
    looked_at = text if len(text) <= _MOST_BYTES else text[:_MOST_BYTES].decode("utf-8", "ignore")
    reliable, _, ((_, code, _, _), *_) = pycld2.detect(looked_at)
    if not reliable:
        return "" if by_script else "unsure_language"
    language = code[:2] if code[:3] == "zh-" else code  # zh-Hant, traditional characters, is Chinese too
    if language not in languages:
        return "other_language"
    return "rare_han" if language == "zh" and common < MIN_COMMON else ""


@njit(cache=True, nogil=True)
def _examine(
    codes: np.ndarray, offsets: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return shares of common Han, what the script says, and the code points without what CLD2 refuses.

    Common is what GB 2312 or level 1 of Big5 has; a text without Han has share 1. The script says Chinese (1)
    if Han characters, each a word, are half the words and clearly common and there is no kana and no Hangul;
    beyond doubt is 2, with a few of them allowed. It says Japanese (-1) if there is neither kana nor a
    character that only China writes, but some that neither mainland nor Taiwan writes (発, 駅), or some of
    both kinds that one of them does not write (東 with 区). Spaces stand for what CLD2 refuses.
    """
    shares, chinese = np.ones(len(offsets) - 1, np.float64), np.zeros(len(offsets) - 1, np.int64)
    refused = np.uint8(0)
    for row in range(len(shares)):
        han, common, simplified, words, foreign = 0, 0, 0, 0, 0
        neither, not_mainland, not_taiwan = 0, 0, 0
        every = before = np.uint8(0)
        for code in codes[offsets[row] : offsets[row + 1]]:
            kind = table[code]
            han += kind & 1
            common += (kind >> 1) & 1
            simplified += (kind >> 2) & 1
            words += (kind & ~before & 16) >> 4
            foreign += (kind >> 3) & 1
            neither += kind >> 6 == 3
            not_mainland += kind >> 6 == 1
            not_taiwan += kind >> 6 == 2
            every |= kind
            before = kind
        refused |= every & 32
        if han == 0:
            continue
        shares[row] = common / han
        japanese = neither + min(not_mainland, not_taiwan)
        if foreign + simplified == 0 and japanese >= max(_LEAST_JAPANESE, _LEAST_JAPANESE_SHARE * han):
            chinese[row] = _JAPANESE
        elif han >= max(_LEAST_HAN, words) and shares[row] >= _CLEARLY_COMMON:
            plain = han >= _HAN_PER_WORD * words and simplified >= _LEAST_SIMPLIFIED * han
            if plain and foreign <= _MOST_FOREIGN * han:
                chinese[row] = _BEYOND_DOUBT
            elif foreign == 0:
                chinese[row] = 1
    if refused == 0:  # as after the filter of unusual characters: nothing is copied
        return shares, chinese, codes
    spaced = codes.copy()
    for at in range(len(spaced)):
        if table[spaced[at]] & 32:
            spaced[at] = 32
    return shares, chinese, spaced


def _two_bytes(codec: str, first: range, second: Collection[int]) -> str:
    return b"".join(bytes((high, low)) for high in first for low in second).decode(codec, errors="ignore")


@cache
def _table() -> np.ndarray:
    table = np.zeros(0x110000, np.uint8)
    table[(classes() & LETTER) > 0] = _LETTER
    table[0x3400:0xA000] = table[0x20000:] = _IS_HAN
    gb2312 = _two_bytes("gb2312", range(0xB0, 0xF8), range(0xA1, 0xFF))
    big5 = _two_bytes("big5", range(0xA4, 0xC7), [*range(0x40, 0x7F), *range(0xA1, 0xFF)])
    japanese = _two_bytes("euc_jp", range(0xB0, 0xF5), range(0xA1, 0xFF))
    table[[ord(c) for c in gb2312 + big5]] |= _COMMON
    table[[ord(c) for c in {*gb2312} - {*japanese}]] |= _SIMPLIFIED
    all_big5 = _two_bytes("big5", range(0xA4, 0xFA), [*range(0x40, 0x7F), *range(0xA1, 0xFF)])
    table[[ord(c) for c in {*japanese} - {*gb2312}]] |= _NOT_MAINLAND
    table[[ord(c) for c in {*japanese} - {*all_big5}]] |= _NOT_TAIWAN
    for bit, ranges in ((_FOREIGN, _KANA_AND_HANGUL), (_REFUSED, _REFUSED_RANGES)):
        for first, last in ranges:
            table[first : last + 1] = table[first : last + 1] & ~np.uint8(_LETTER) | bit
    return table
