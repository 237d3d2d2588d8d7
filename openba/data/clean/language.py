"""Keep confident Chinese or English (paper section 3.1.1, language filtering): CLD2 and a check of Han.

Owns the verdict on each text of a batch. CLD2 is what polyglot, the paper's tool, calls; polyglot is GPL.
It is called once a document, the one thing of this package that is, and takes half of the time.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache

import numpy as np
import pycld2
from numba import njit

from openba.data.clean.columns import RULE_CODE, Texts, utf8, whole

MIN_COMMON = 0.6
"""Share of Han characters that are in common use. CLD2 calls a quarter of random Han text Chinese;
that has 0.42 of them on average, while 99.9 % of real reviews have 0.98 and more."""

_CLEARLY_COMMON = 0.9
_LEAST_HAN = 10
_BEGINNING = 100_000  # bytes
"""Where CLD2 is sure of nothing, the script decides for Chinese: text with numbers, names in Latin letters or
a formula. What it brings is in docs/data.md."""
_HAN = re.compile("[\u3400-\u9fff]")
_OTHER_WORD = re.compile("[^\\W\\d_\u3400-\u9fff]+")
_KANA_OR_HANGUL = re.compile("[\u3041-\u30fa\u30fd-\u30ff\u31f0-\u31ff\uac00-\ud7a3\uff66-\uff9f]")

_MOST_BYTES = 16_000_000
"""Of a document that CLD2 is given. It counts 100 times the bytes in 32 bits: from 21.5 MB on it is sure of
nothing (measured: real news are Chinese at 20 MB and "unknown" at 40 MB)."""

# CLD2 raises on these; \t, \n, \f and \r pass.
_REFUSED_RANGES = (
    (0x00, 0x08), (0x0B, 0x0B), (0x0E, 0x1F), (0x7F, 0x9F), (0xFDD0, 0xFDEF),
    *((plane + 0xFFFE, plane + 0xFFFF) for plane in range(0, 0x110000, 0x10000)),
)  # fmt: skip
_IS_HAN, _COMMON, _REFUSED = 1, 2, 4


def find(texts: Texts, languages: Collection[str]) -> np.ndarray:
    """Edits that remove whole the texts that are not surely in one of the languages ("zh", "en").

    Rules: `unsure_language`, `other_language`, `rare_han`. polyglot's second call, with bestEffort,
    only names a language it then marks as not reliable, so the first decides alone.
    """
    shares, spaced = _examine(texts.codes, texts.offsets, _table())
    common, rules = shares.tolist(), {}
    for row, text in enumerate(utf8(Texts(spaced, texts.offsets))):
        if rule := _verdict(text, common[row], languages):
            rules[row] = RULE_CODE[rule]
    return whole(texts, np.array([*rules], np.int64), np.array([*rules.values()], np.int64))


def _verdict(text: bytes, common: float, languages: Collection[str]) -> str:
    looked_at = text if len(text) <= _MOST_BYTES else text[:_MOST_BYTES].decode("utf-8", "ignore")
    reliable, _, ((_, code, _, _), *_) = pycld2.detect(looked_at)
    if not reliable:
        by_script = "zh" in languages and common >= _CLEARLY_COMMON and _is_chinese(text)
        return "" if by_script else "unsure_language"
    language = code[:2] if code[:3] == "zh-" else code  # zh-Hant, traditional characters, is Chinese too
    if language not in languages:
        return "other_language"
    return "rare_han" if language == "zh" and common < MIN_COMMON else ""


def _is_chinese(text: bytes) -> bool:
    """Whether the script says so: Han characters, each a word, are half the words; no kana, no Hangul."""
    beginning = text[:_BEGINNING].decode("utf-8", "ignore")
    if _KANA_OR_HANGUL.search(beginning):
        return False
    return len(_HAN.findall(beginning)) >= max(_LEAST_HAN, len(_OTHER_WORD.findall(beginning)))


@njit(cache=True, nogil=True)
def _count(codes: np.ndarray, table: np.ndarray, bit: int) -> int:
    """Characters with this bit: one sum a loop, or the compiler gives up on taking several at a time."""
    count = 0
    for code in codes:
        count += (table[code] & bit) != 0
    return count


@njit(cache=True, nogil=True)
def _examine(codes: np.ndarray, offsets: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of each text's Han that is common, and the code points with spaces for what CLD2 refuses.

    Common is what GB 2312 or level 1 of Big5 has; a text without Han has share 1.
    """
    shares = np.ones(len(offsets) - 1, np.float64)
    refused = 0
    for row in range(len(shares)):
        text = codes[offsets[row] : offsets[row + 1]]
        han = _count(text, table, _IS_HAN)
        common = _count(text, table, _COMMON) if han else 0
        refused += _count(text, table, _REFUSED)
        if han:
            shares[row] = common / han
    if refused == 0:  # as after the filter of unusual characters: nothing is copied
        return shares, codes
    spaced = codes.copy()
    for at in range(len(spaced)):
        if table[spaced[at]] & _REFUSED:
            spaced[at] = 32
    return shares, spaced


def _two_bytes(codec: str, first: range, second: Collection[int]) -> str:
    return b"".join(bytes((high, low)) for high in first for low in second).decode(codec, errors="ignore")


@cache
def _table() -> np.ndarray:
    table = np.zeros(0x110000, np.uint8)
    table[0x3400:0xA000] = table[0x20000:] = _IS_HAN
    gb2312 = _two_bytes("gb2312", range(0xB0, 0xF8), range(0xA1, 0xFF))
    big5 = _two_bytes("big5", range(0xA4, 0xC7), [*range(0x40, 0x7F), *range(0xA1, 0xFF)])
    table[[ord(c) for c in gb2312 + big5]] |= _COMMON
    for first, last in _REFUSED_RANGES:
        table[first : last + 1] |= _REFUSED
    return table
