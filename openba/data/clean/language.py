"""Keep confident Chinese or English (paper section 3.1.1, language filtering): CLD2 and a check of Han.

Owns the verdict on one text. CLD2 is what polyglot, the paper's tool, calls; polyglot is GPL.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import pycld2

from openba.data.clean.edits import Edit, whole

MIN_COMMON = 0.6
"""Share of Han characters that are in common use. CLD2 calls a quarter of random Han text Chinese;
that has 0.42 of them on average, while 99.9 % of real reviews have 0.98 and more."""

# CLD2 raises on these; \t, \n, \f and \r pass.
_REFUSED = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)


def find(text: str, languages: Collection[str]) -> list[Edit]:
    """The whole text if it is not surely in one of the languages ("zh", "en"), else nothing.

    Rules: `unsure_language`, `other_language`, `rare_han`. polyglot's second call, with bestEffort,
    only names a language it then marks as not reliable, so the first decides alone.
    """
    reliable, _, ((_, code, _, _), *_) = pycld2.detect(_REFUSED.sub(" ", text))
    if not reliable:
        return whole(text, "unsure_language")
    language = code.partition("-")[0]  # zh-Hant, traditional characters, is Chinese too
    if language not in languages:
        return whole(text, "other_language")
    return whole(text, "rare_han") if language == "zh" and common_share(text) < MIN_COMMON else []


def common_share(text: str) -> float:
    """Share of the text's Han characters that GB 2312 or level 1 of Big5 has; 1 if it has no Han."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    han = codes[((codes >= 0x3400) & (codes <= 0x9FFF)) | (codes >= 0x20000)]
    return float(_COMMON[han].mean()) if len(han) else 1.0


def _two_bytes(codec: str, first: range, second: Collection[int]) -> str:
    return b"".join(bytes((high, low)) for high in first for low in second).decode(codec, errors="ignore")


def _common() -> np.ndarray:
    table = np.zeros(0x110000, dtype=bool)
    gb2312 = _two_bytes("gb2312", range(0xB0, 0xF8), range(0xA1, 0xFF))
    big5 = _two_bytes("big5", range(0xA4, 0xC7), [*range(0x40, 0x7F), *range(0xA1, 0xFF)])
    table[[ord(c) for c in gb2312 + big5]] = True
    return table


_COMMON = _common()
