"""A text as tokenizers read it: compatibility forms as plain ones, white space as single spaces.

Owns this view and the way back from its characters to the text's. SentencePiece's rule `nmt_nfkc`, mT5's
normalisation, turns full-width, mathematical and circled digits and letters into ASCII, and every kind of
white space, line ends included, into a space. What the view does not show, no tokenizer makes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from sentencepiece import SentencePieceNormalizer

PUNCTUATION = "，；！？：（）"
"""Full-width punctuation that the view leaves as it is, so that it still ends a link."""
_LAST_FOLDED = 0x20000
"""Above are ideographs and symbols that fold to nothing in ASCII (the whole of Unicode was tried)."""
_SEPARATOR = "\U000f0000"
_JOINER = "\u200d"
"""A space to the normalisation in mT5's file; stays with the same rule of later versions."""
_PRIVATE_USE = {character: chr(0xF0001 + number) for number, character in enumerate(PUNCTUATION)}
_BEFORE = _PRIVATE_USE | {_JOINER: " "}
_AFTER = {private: character for character, private in _PRIVATE_USE.items()}


class View(NamedTuple):
    """A folded text and, for each of its characters, where in the text it comes from."""

    text: str
    starts: list[int] | None
    """Position in the original text per character, and its length as last entry; None: the same positions."""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the original characters that the folded ones from `start` to `end` come from."""
        if self.starts is None:
            return start, end
        first = self.starts[start]
        last = end
        while last < len(self.text) and self.starts[last] == self.starts[end - 1]:
            last += 1  # one character that folds to several, of which the span ends in the middle
        return first, self.starts[last]

    def position(self, original: int) -> int:
        """Return the first folded character that comes from the original position or a later one."""
        return original if self.starts is None else bisect_left(self.starts, original)


def fold(text: str) -> View:
    """Fold a text; plain ASCII without line ends and double spaces is returned as it is."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return View(text, None)
    folded, starts = _normalizer().normalize(_replace(text, _BEFORE), with_offsets=True)
    return View(_replace(folded, _AFTER), starts)


def _replace(text: str, characters: Mapping[str, str]) -> str:
    """Replace characters one for one; faster than `str.translate` where few occur."""
    for character in characters.keys() & set(text):
        text = text.replace(character, characters[character])
    return text


@cache
def _normalizer(remove_extra_whitespaces: bool = True) -> SentencePieceNormalizer:
    return SentencePieceNormalizer(
        rule_name="nmt_nfkc",
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=remove_extra_whitespaces,
    )


@cache
def folded_characters() -> dict[int, str]:
    """Return what each code point folds to that does not stay as it is; empty: it vanishes."""
    codes = [code for code in range(1, _LAST_FOLDED) if not 0xD800 <= code < 0xF900 or code == 0xFEFF]
    joined = _SEPARATOR.join(map(chr, codes))
    normalizer = _normalizer(remove_extra_whitespaces=False)
    parts = normalizer.normalize(joined).split(_SEPARATOR)
    if len(parts) != len(codes):
        raise AssertionError("a character folds to the separator")
    known = {code: part for code, part in zip(codes, parts, strict=True) if part != chr(code)}
    return known | {ord(_JOINER): " "} | {ord(character): character for character in PUNCTUATION}


def table_of(bits: Mapping[str, int]) -> np.ndarray:
    """Return a table over all code points (uint8) with the bits of the characters that each folds to.

    Args:
        bits: plain character -> bits. What vanishes has the bits under the empty string.
    """
    table = np.zeros(0x110000, np.uint8)
    for character, value in bits.items():
        if character:
            table[ord(character)] |= value
    for code, folded in folded_characters().items():
        table[code] = bits.get("", 0) if not folded else 0
        for character in folded:
            table[code] |= bits.get(character, 0)
    return table


def plain_codes(several: int) -> np.ndarray:
    """Return per code point the ASCII character it folds to, in lower case; 0 for others (uint8).

    Args:
        several: the entry of what vanishes or folds to several characters with ASCII among them.
    """
    table = np.zeros(0x110000, np.uint8)
    for code in range(1, 0x80):
        table[code] = ord(chr(code).lower())
    for code, folded in folded_characters().items():
        if len(folded) == 1 and folded.isascii():
            table[code] = ord(folded.lower())
        elif not folded or any(character.isascii() for character in folded):
            table[code] = several
        else:
            table[code] = 0
    return table
