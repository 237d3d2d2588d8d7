"""Filter of further private values, none of them in the paper: cards, passports, accounts, plates, addresses.

Each kind is switched on by name. A number counts only with its own evidence: a valid date and check digit
(identity cards, GB 11643), the Luhn sum and an issuer's first digits (bank cards), a word such as 护照 or QQ
before it (passports, accounts), a province and a valid form (plates), octets below 256 (IP addresses).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from datetime import date
from typing import NamedTuple

import numpy as np
from numba import njit

from openba.data.clean.edit_matrix import from_edits
from openba.data.clean.edits import Edit
from openba.data.clean.filter import Filter
from openba.data.clean.text_arrays import Texts

# Full-width forms of printable ASCII, one character for one, so that positions stay; but for the colon, which
# stands before values in Chinese text and within addresses of IPv6 in half width.
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if code != ord("：")} | {0x3000: 0x20}
_REGION = re.compile("1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3]|91")
"""Provinces by the first two digits, GB/T 2260."""
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECK_DIGITS = "10X98765432"
_PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
_PROVINCE_CODES = np.array(sorted(map(ord, _PROVINCES)), np.uint32)
_PLATE_LETTERS = "A-HJ-NP-Z"
_NO_WORD_BEFORE = r"(?<![0-9A-Za-z_])"
_NO_WORD_AFTER = r"(?![0-9A-Za-z_])"
# What stands between the name of a number and the number: 号, 是, a colon, brackets and blanks.
_BETWEEN = r"\s?(?:号码|号|群|[Nn]o\.?|[Nn]umber|账号|帐号|ID|id)?\s?(?:是|为|is)?\s?[:：]?\s?[(（【「]?\s?"


def _is_identity_card(match: re.Match[str]) -> bool:
    digits = match[0].upper()
    if not _REGION.match(digits):
        return False
    try:
        date(int(digits[6:10]), int(digits[10:12]), int(digits[12:14]))
    except ValueError:
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, digits[:17], strict=True))
    return digits[17] == _CHECK_DIGITS[total % 11]


def _is_bank_card(match: re.Match[str]) -> bool:
    digits = re.sub(r"[ -]", "", match[0])
    total = 0
    for position, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (1 + position % 2)
        total += doubled - 9 * (doubled > 9)
    return total % 10 == 0 and len(set(digits)) > 1 and _ISSUER.fullmatch(digits) is not None


_ISSUER = re.compile(
    r"62\d{14,17}|4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|35\d{14}|6(?:011|5\d\d)\d{12}"
)
"""UnionPay, Visa, Mastercard (two ranges), American Express, JCB, Discover."""


def _is_plate(match: re.Match[str]) -> bool:
    return any(character.isdigit() for character in match[0])


def _is_address(match: re.Match[str]) -> bool:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    # 127.0.0.1, ::1 and 0.0.0.0 are of nobody.
    return not (address.is_loopback or address.is_unspecified)


def _always(_: re.Match[str]) -> bool:
    return True


class _Kind(NamedTuple):
    """A kind of value: its form, in a group if something stands before it, and what else must hold."""

    pattern: re.Pattern[str]
    is_valid: Callable[[re.Match[str]], bool]


_KINDS = {
    "id_card": _Kind(
        re.compile(_NO_WORD_BEFORE + r"[1-9]\d{5}(?:19|20)\d{9}[\dXx]" + _NO_WORD_AFTER), _is_identity_card
    ),
    "bank_card": _Kind(
        re.compile(_NO_WORD_BEFORE + r"(?<!\d[-.])[2-6]\d{3}(?:[ -]?\d{4}){2}(?:[ -]?\d{1,4}){1,2}(?![-.]?\d)"
                   r"|" + _NO_WORD_BEFORE + r"3[47]\d\d[ -]?\d{6}[ -]?\d{5}(?![-.]?\d)"),
        _is_bank_card,
    ),
    "passport": _Kind(
        re.compile(r"(?i:护照|護照|passport)" + _BETWEEN
                   + r"([EeGg]\d{8}|[Ee][A-HJ-NP-Za-hj-np-z]\d{7}|[DSPdsp][Ee]?\d{7})" + _NO_WORD_AFTER),
        _always,
    ),
    "qq": _Kind(
        re.compile(r"(?<![A-Za-z])(?i:qq|扣扣|企鹅号)" + _BETWEEN + r"([1-9]\d{4,10})" + _NO_WORD_AFTER),
        _always,
    ),
    "wechat": _Kind(
        re.compile(r"(?i:微信|微 信|(?<![A-Za-z])(?:wechat|weixin|vx|v信))" + _BETWEEN
                   + r"([A-Za-z][-_A-Za-z0-9]{5,19}|1[3-9]\d{9})" + _NO_WORD_AFTER),
        lambda match: any(character.isdigit() or character in "-_" for character in match[1]),
    ),
    "ip": _Kind(
        re.compile(
            r"(?<![\w.-])(?<![vV]ersion )(?<!版本)(?<!版本号)(?<!ersion:)"
            r"(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)(?![\w:])"
            r"|(?<![\w.:])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:])"
        ),
        _is_address,
    ),
    "plate": _Kind(
        re.compile(
            rf"[{_PROVINCES}][{_PLATE_LETTERS}][·•. ]?(?:[DF][{_PLATE_LETTERS}0-9]\d{{4}}|\d{{5}}[DF]"
            rf"|[{_PLATE_LETTERS}0-9]{{4}}[{_PLATE_LETTERS}0-9挂学警港澳])" + _NO_WORD_AFTER
        ),
        _is_plate,
    ),
}  # fmt: skip


class PrivateNumbers(Filter):
    """Remove identity cards, bank cards, passports, QQ and WeChat accounts, IP addresses and plates."""

    name = "private_numbers"
    rules = tuple(_KINDS)

    def __init__(self, kinds: Iterable[str] = rules) -> None:
        """Take the kinds to remove, names of `rules`."""
        self._kinds = [(kind, *_KINDS[kind]) for kind in self.rules if kind in kinds]

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        rows = np.flatnonzero(_may_hold_any(texts.code_points, texts.offsets, _PROVINCE_CODES))
        edits_of_rows = ((row, self.find_in_text(texts.text(row))) for row in rows.tolist())
        return from_edits(texts, edits_of_rows, self.rules)

    def find_in_text(self, text: str) -> list[Edit]:
        """Return the edits of one text; of values that overlap the first in the order of `rules` counts."""
        text = text.translate(_HALF_WIDTH)
        edits: list[Edit] = []
        for kind, pattern, is_valid in self._kinds:
            for match in pattern.finditer(text):
                start, end = match.span(match.lastindex or 0)
                is_free = all(edit.end <= start or end <= edit.start for edit in edits)
                if is_free and is_valid(match):
                    edits.append(Edit(start, end, kind))
        return sorted(edits)


@njit(cache=True, nogil=True)
def _may_hold_any(code_points: np.ndarray, offsets: np.ndarray, provinces: np.ndarray) -> np.ndarray:
    """Return which texts have what every value of some kind has; the patterns decide on these alone.

    Five digits in a row (cards, passports, QQ); thirteen with single blanks or hyphens between them (bank
    cards); three full stops between digits, or three colons between hexadecimal digits (addresses); a
    province before a letter (plates); the name of an account (WeChat). Of the texts of `benchmarks.corpora`
    2 % have.
    """
    is_candidate = np.zeros(len(offsets) - 1, np.bool_)
    for row in range(len(offsets) - 1):
        run = 0  # digits in a row
        digits = 0  # digits with single separators between them
        stops = 0
        colons = 0
        before = np.uint32(0)
        before_that = np.uint32(0)
        for position in range(offsets[row], offsets[row + 1]):
            letter = _folded(code_points[position])
            is_digit = 48 <= letter <= 57
            was_digit = 48 <= before <= 57
            if is_digit:
                run += 1
                digits += 1
            else:
                run = 0
                if not (was_digit and (letter == 32 or letter == 45)):
                    digits = 0
                if letter == 46 and was_digit:
                    stops += 1
                elif letter != 46 or not was_digit:
                    stops = 0
            if letter == 58:
                colons += 1
            elif not (is_digit or 97 <= letter <= 102):
                colons = 0
            is_number = run >= 5 or digits >= 13 or stops >= 3 or colons >= 3
            is_plate = 97 <= letter <= 122 and _is_one_of(before, provinces)
            if is_number or is_plate or _ends_account(letter, before, before_that):
                is_candidate[row] = True
                break
            before_that = before
            before = letter
    return is_candidate


@njit(cache=True, nogil=True, inline="always")
def _folded(code_point: np.uint32) -> np.uint32:
    """Return the half-width form in lower case; the colon of Chinese text stays, as in `_HALF_WIDTH`."""
    if 0xFF01 <= code_point < 0xFF5F and code_point != 0xFF1A:
        code_point = np.uint32(code_point - 0xFEE0)
    if 65 <= code_point <= 90:
        return np.uint32(code_point + 32)
    return np.uint32(32) if code_point == 0x3000 else np.uint32(code_point)


@njit(cache=True, nogil=True)
def _is_one_of(code_point: np.uint32, sorted_code_points: np.ndarray) -> bool:
    if code_point < sorted_code_points[0]:
        return False
    place = np.searchsorted(sorted_code_points, code_point)
    return bool(place < len(sorted_code_points) and sorted_code_points[place] == code_point)


@njit(cache=True, nogil=True, inline="always")
def _ends_account(letter: np.uint32, before: np.uint32, before_that: np.uint32) -> bool:
    """Return whether three characters are, or are in, a name of WeChat: 微信, 微 信, v信, vx, wec, wei."""
    if letter == 0x4FE1:
        return bool(before == 0x5FAE or before == 118 or (before == 32 and before_that == 0x5FAE))
    if before == 118:
        return bool(letter == 120)
    # Re's i is İ and ı, too.
    ends_word = letter == 99 or letter == 105 or letter == 0x130 or letter == 0x131
    return bool(ends_word and before == 101 and before_that == 119)
