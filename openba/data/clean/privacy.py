"""Phone numbers, e-mail addresses and web links (paper section 3.1.1, privacy filtering).

Owns what counts as one. Phones: Chinese mobile, landline and service numbers with or without +86,
North American and international forms, and bare local numbers after a word such as 电话; digits and
signs may be full-width. Dates, amounts, identity cards and ISBNs are none, nor are 110 and 95588.
"""

from __future__ import annotations

import re

from openba.data.clean.edits import Edit

RULES = ("link", "email", "phone")

CANDIDATE = (
    r"[@＠]|(?i:https?[:：/]|ftps?[:：/]|www\.)|\.(?i:com|cn|org|edu|gov|net|info|cc|tv|hk|tw)"
    r"|[0-9０-９](?:[^0-9０-９A-Za-z,，。]{0,3}[0-9０-９]){6}"
)
"""RE2: a text without a match holds nothing private, so most texts never meet the long pattern."""

# ASCII only, so that a link glued to Chinese text ends where the Chinese begins. A closing bracket
# belongs to the link only with its opening one, a final stop or comma to the sentence.
_URL = r"(?:[!#-&*-;=?-Z\[\]_a-z~]|\([!#-&*-;=?-Z\[\]_a-z~]*\))*(?<=[A-Za-z0-9/#=&_~%+$)-])"
_LINK = rf"""
    (?:https?|ftps?)[:：]?//{_URL}
  | (?<![A-Za-z0-9])www\.{_URL}
  | (?<![A-Za-z0-9@._-])(?!(?:asp|ado|vb)\.net)(?:[A-Za-z0-9-]+\.)+
    (?:com|cn|org|edu|gov|net|info|cc|tv|hk|tw)(?![A-Za-z0-9-])(?::[0-9]{{2,5}})?(?:[/?]{_URL})?
"""
_EMAIL = r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]+[@＠](?:[A-Za-z0-9-]+[.．])+[A-Za-z]{2,}"

_D = "[0-9０-９]"
_BEFORE = f"(?<!{_D})(?<![¥￥$])"
_AFTER = f"(?!{_D})(?![.．]{_D}{{1,2}}(?!{_D}))(?![ ]?[元万亿%％])"  # an amount is no phone number
_GAP = "[ \u00a0]?[-－‐–—]?[ \u00a0]?"
_REQUIRED_GAP = "(?:[ \u00a0]|[ \u00a0]?[-－‐–—][ \u00a0]?|[)）][ \u00a0]?)"
_CHINA = "[(（]?(?:[+＋]|[0０]{2})?[8８][6６][)）]?" + _GAP
_AREA3 = f"(?:[1１][0０]|[2２]{_D})"  # 010, 02x: eight digits follow, formerly seven
_AREA4 = f"[3-9３-９]{_D}{{2}}"
_LOCAL7, _LOCAL8 = f"{_D}{{3}}{_GAP}{_D}{{4}}", f"{_D}{{4}}{_GAP}{_D}{{4}}"
_EXTENSION = (
    f"(?:(?:[-－‐–—]|[ ]?(?:转|分机|ext[.]?|[#])[ ]?[:：]?){_D}{{1,6}})?"
    f"(?:[ ]?[/／、][ ]?{_D}{{7,8}}(?!{_D}))*"  # 010-62345678/62345679
)
_PHONE = rf"""
    {_BEFORE}(?:{_CHINA})?[1１][3-9３-９]{_D}(?:{_GAP}{_D}{{4}}{_GAP}{_D}{{4}}|[.]{_D}{{4}}[.]{_D}{{4}}
        |{_D}{_REQUIRED_GAP}{_D}{{3}}{_REQUIRED_GAP}{_D}{{4}}){_AFTER}
    # Without a separator ten digits could be an ISBN, so seven digits need one after 010 and 02x.
  | {_BEFORE}(?<!{_D}[.．])(?:{_CHINA})?[(（]?[0０]
        (?:{_AREA3}(?:[)）]?{_GAP}{_LOCAL8}|{_REQUIRED_GAP}{_LOCAL7})
        |{_AREA4}[)）]?{_GAP}(?:{_LOCAL8}|{_LOCAL7})){_EXTENSION}{_AFTER}
  | (?<![0-9０-９A-Za-z])[(（]?(?:[+＋]|[0０]{{2}})[8８][6６][)）]?{_GAP}
        [(（]?(?:{_AREA3}|{_AREA4})[)）]?{_GAP}(?:{_LOCAL8}|{_LOCAL7}){_EXTENSION}{_AFTER}
  | {_BEFORE}[48４８][0０]{{2}}
        (?:{_REQUIRED_GAP}(?:{_D}{{3}}{_GAP}{_D}{{4}}|{_D}{{4}}{_GAP}{_D}{{3}})|{_D}{_REQUIRED_GAP}{_D}{{3}}{_GAP}{_D}{{3}}){_EXTENSION}{_AFTER}
  | (?<![0-9０-９A-Za-z)）+])[+＋](?=(?:[^0-9０-９A-Za-z]{{0,3}}{_D}){{10}}){_D}{{1,3}}
        (?:{_GAP}[(（]?{_D}{{1,12}}[)）]?){{1,6}}{_AFTER}
  | (?<![0-9A-Za-z./-])(?:1[-. ])?
        (?:\([2-9][0-9]{{2}}\)[ ]?|[2-9][0-9]{{2}}[-.])[0-9]{{3}}[-.][0-9]{{4}}{_AFTER}
"""
# A bare local number is a phone number only where a word says so.
_SAID_TO_BE = rf"""
    (?:电话|热线|传真|座机|致电|(?<![A-Za-z])(?:telephone|tel|fax|phone))(?:号码|号)?[\s:：.是为]{{0,3}}
    (?![0０])(?P<local>(?:{_LOCAL8}|{_LOCAL7}|[48]00{_D}{{7}})(?:[ ]?[/／、,，][ ]?{_D}{{7,8}}(?!{_D}))*)
    {_AFTER}(?!年|{_GAP}{_D})
"""
_PRIVATE = re.compile(
    f"(?P<link>{_LINK})|(?P<email>{_EMAIL})|(?P<phone>{_PHONE})|{_SAID_TO_BE}", re.VERBOSE | re.IGNORECASE
)


def find(text: str) -> list[Edit]:
    """What has to go, in order; each edit's rule is one of `RULES`."""
    edits = []
    for match in _PRIVATE.finditer(text):
        rule = match.lastgroup or ""  # exactly one of the four groups takes part in a match
        edits.append(Edit(*match.span(rule), "phone" if rule == "local" else rule))
    return edits
