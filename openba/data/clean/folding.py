"""Normalise a text as tokenizers do, with a map back to the original characters.

SentencePiece's rule `nmt_nfkc`, mT5's normalisation, turns full-width, mathematical and circled digits and
letters into ASCII, and every kind of white space, line ends included, into single spaces. A private value
that does not appear in the folded text cannot appear in a tokenizer's output either.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from sentencepiece import SentencePieceNormalizer

PUNCTUATION = "，；！？：（）"
"""Full-width punctuation that is not folded, so that it still ends a link."""
# No code point above this one folds to ASCII (all of Unicode was tried).
_LAST_FOLDED = 0x20000
_SEPARATOR = "\U000f0000"
# A space in the normalisation of mT5's file; later versions of the same rule leave it as it is.
_JOINER = "\u200d"
_PRIVATE_USE = {character: chr(0xF0001 + number) for number, character in enumerate(PUNCTUATION)}
_REPLACED_BEFORE = _PRIVATE_USE | {_JOINER: " "}
_REPLACED_AFTER = {private: character for character, private in _PRIVATE_USE.items()}


class FoldedText(NamedTuple):
    """A folded text and the position in the original of each of its characters."""

    text: str
    starts: list[int] | None
    """Original position per folded character, the original's length as last entry; None: equal positions."""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return start and end in the original of a span of the folded text."""
        if self.starts is None:
            return start, end
        first = self.starts[start]
        last = end
        while last < len(self.text) and self.starts[last] == self.starts[end - 1]:
            last += 1  # the span ends amid the characters that one original character folds to
        return first, self.starts[last]

    def position(self, original: int) -> int:
        """Return the first folded position that comes from the original position or a later one."""
        return original if self.starts is None else bisect_left(self.starts, original)


def fold(text: str) -> FoldedText:
    """Fold a text; plain ASCII without line ends and double spaces is returned as it is."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return FoldedText(text, None)
    folded, starts = _normalizer().normalize(_replace(text, _REPLACED_BEFORE), with_offsets=True)
    return FoldedText(_replace(folded, _REPLACED_AFTER), starts)


def _replace(text: str, replacements: Mapping[str, str]) -> str:
    """Replace characters one for one; faster than `str.translate` where few occur."""
    for character in replacements.keys() & set(text):
        text = text.replace(character, replacements[character])
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
    """Return code point -> folded string for all that change; an empty string if the character vanishes."""
    code_points = [
        code_point
        for code_point in range(1, _LAST_FOLDED)
        if not 0xD800 <= code_point < 0xF900 or code_point == 0xFEFF
    ]
    # One call for all: a call per character takes seconds.
    joined = _SEPARATOR.join(map(chr, code_points))
    normalizer = _normalizer(remove_extra_whitespaces=False)
    parts = normalizer.normalize(joined).split(_SEPARATOR)
    if len(parts) != len(code_points):
        raise AssertionError("a character folds to the separator")
    changed = {
        code_point: part
        for code_point, part in zip(code_points, parts, strict=True)
        if part != chr(code_point)
    }
    return changed | {ord(_JOINER): " "} | {ord(character): character for character in PUNCTUATION}


def bits_of_folded(bits: Mapping[str, int]) -> np.ndarray:
    """Return the bits of every code point, uint8 `[0x110000]`: those of the characters it folds to.

    Args:
        bits: plain character -> bits; empty string -> bits of characters that vanish.
    """
    table = np.zeros(0x110000, np.uint8)
    for character, value in bits.items():
        if character:
            table[ord(character)] |= value
    for code_point, folded in folded_characters().items():
        table[code_point] = bits.get("", 0) if not folded else 0
        for character in folded:
            table[code_point] |= bits.get(character, 0)
    return table


def folded_ascii(several: int) -> np.ndarray:
    """Return the lower-case ASCII character that each code point folds to, uint8 `[0x110000]`; else 0.

    Args:
        several: entry of characters that vanish, fold to several with ASCII among them, or are accents that
            become one character with the ASCII character before them.
    """
    table = np.zeros(0x110000, np.uint8)
    for code_point in range(1, 0x80):
        table[code_point] = ord(chr(code_point).lower())
    for code_point, folded in folded_characters().items():
        if len(folded) == 1 and folded.isascii():
            table[code_point] = ord(folded.lower())
        elif not folded or any(character.isascii() for character in folded):
            table[code_point] = several
        else:
            table[code_point] = 0
    table[_accents()] = several
    return table


def _accents() -> list[int]:
    """Return combining marks that form one character with the ASCII character before them."""
    ascii_characters = [chr(code_point) for code_point in range(0x21, 0x7F)]
    marks = [code_point for code_point in range(0x80, 0x3100) if unicodedata.combining(chr(code_point))]
    return [
        mark
        for mark in marks
        if any(len(unicodedata.normalize("NFC", before + chr(mark))) == 1 for before in ascii_characters)
    ]
