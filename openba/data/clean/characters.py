"""Page markup, unusual characters and repeats (paper section 3.1.1: Internet cleaning, character dedup).

Owns these three filters on the characters of one text. Words and sentences are not its business.
"""

from __future__ import annotations

import html
import html.entities
import re
from collections.abc import Iterator

from openba.data.clean.edits import Edit

# HTML

HTML_CANDIDATE = r"<[A-Za-z/!?]|&[#A-Za-z]"
"""RE2: a text without a match has no tag and no entity."""

_ELEMENTS = frozenset(
    """
    a abbr acronym address applet area article aside audio b base basefont bdi bdo bgsound big blink
    blockquote body br button canvas caption center cite code col colgroup data datalist dd del
    details dfn dialog dir div dl dt em embed fieldset figcaption figure font footer form frame
    frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i iframe img input ins kbd label legend li
    link main map mark marquee menu meta meter nav nobr noframes noscript object ol optgroup option
    output p param picture pre progress q rp rt ruby s samp script section select slot small source
    span strike strong style sub summary sup svg table tbody td template textarea tfoot th thead
    time title tr track tt u ul var video wbr xmp
    """.split()  # noqa: SIM905 - readable as words
)
_BLOCKS = frozenset(
    """
    address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset
    figcaption figure footer form frame h1 h2 h3 h4 h5 h6 head header hr html legend li main menu
    nav ol option p pre section select summary table tbody td tfoot th thead title tr ul
    """.split()  # noqa: SIM905 - readable as words
)
_BARE_ATTRIBUTES = frozenset(
    """
    allowfullscreen async autofocus autoplay checked compact controls default defer disabled hidden
    ismap itemscope loop multiple muted nomodule noresize noshade novalidate nowrap open readonly
    required reversed selected
    """.split()  # noqa: SIM905 - readable as words
)
_VALUED = re.compile(r"""[\w:.@-]++\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'<>`=]++)?+""")
_CLOSED = re.compile(r"</([A-Za-z][A-Za-z0-9:-]*)")
_MARKUP = re.compile(
    rf"""(?P<comment><!--|<!\[CDATA\[)|<[!?][A-Za-z][^<>]*+>
    |<(?P<close>/?)(?P<name>[A-Za-z][A-Za-z0-9:-]*+)
        (?P<attributes>(?:\s++(?:{_VALUED.pattern}|[\w:.@-]++))*+)\s*+(?P<self>/?)>
    |(?P<entity>&(?:\#[0-9]{{1,7}}|\#[xX][0-9A-Fa-f]{{1,6}}|[A-Za-z][A-Za-z0-9]{{1,31}});)""",
    re.VERBOSE,
)


def find_html(text: str) -> list[Edit]:
    """Tags, comments, scripts and style sheets; entities are decoded once.

    A tag is a known element, or any name with a value, a colon, a hyphen or a closing tag; so "a < b",
    "a<b and c>d" and "List<String>" stay. A tag that begins or ends a block leaves a line break.
    """
    edits: list[Edit] = []
    closed = {name.lower() for name in _CLOSED.findall(text)}
    unclosed: set[str] = set()  # each missing end is looked for once, or many beginnings cost quadratic time
    at = 0
    while match := _MARKUP.search(text, at):
        edit = _entity(match) if match["entity"] else _markup(text, match, closed, unclosed)
        at = edit.end if edit else match.end()
        edits += [edit] if edit else []
    return edits


def _entity(match: re.Match[str]) -> Edit | None:
    known = match["entity"][1] == "#" or match["entity"][1:] in html.entities.html5
    decoded = html.unescape(match["entity"]).replace("\xa0", " ")
    return Edit(*match.span(), "", decoded) if known else None


def _markup(text: str, match: re.Match[str], closed: set[str], unclosed: set[str]) -> Edit | None:
    if match["comment"]:
        return _through("-->" if match["comment"] == "<!--" else "]]>", "comment", text, match, unclosed)
    name = (match["name"] or "").lower()
    if name in ("script", "style") and not match["close"] and not match["self"]:
        return _through(f"</{name}", name, text, match, unclosed) or Edit(*match.span(), "tag")
    if name and not _is_tag(name, match, closed):
        return None
    return Edit(*match.span(), "tag", "\n" if name in _BLOCKS else "")


def _through(end: str, rule: str, text: str, match: re.Match[str], unclosed: set[str]) -> Edit | None:
    """From the match to the end of what it opens; None if that never comes."""
    if end in unclosed:
        return None
    pattern = re.compile(rf"{end}\s*>" if end[0] == "<" else re.escape(end), re.IGNORECASE)
    closing = pattern.search(text, match.end())
    if closing is None:
        unclosed.add(end)
        return None
    return Edit(match.start(), closing.end(), rule)


def _is_tag(name: str, match: re.Match[str], closed: set[str]) -> bool:
    attributes = match["attributes"]
    if name not in _ELEMENTS:
        return bool(name in closed or "=" in attributes or match["self"] or ":" in name or "-" in name)
    bare = _VALUED.sub(" ", attributes).split()
    return all(word.lower() in _BARE_ATTRIBUTES for word in bare)


# Unusual characters

_UNUSUAL_RANGES = (
    (0x00, 0x08), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F),  # control
    (0xAD, 0xAD), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xFEFF, 0xFEFF),  # invisible
    (0xFFF9, 0xFFFD),  # annotation, object and replacement character
    (0xE000, 0xF8FF), (0xF0000, 0x10FFFF),  # private use
    (0xFDD0, 0xFDEF), *((plane + 0xFFFE, plane + 0xFFFF) for plane in range(0, 0xF0000, 0x10000)),  # none
    (0xE0000, 0xE0FFF),  # tags
)  # fmt: skip
_BREAKS = "\r\x0b\x0c\x85\u2028\u2029"
_UNUSUAL_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in _UNUSUAL_RANGES)
_UNUSUAL = re.compile(f"(?P<unusual>(?:锟斤拷|[{_UNUSUAL_CLASS}])+)|\r\n|[{_BREAKS}]")

UNUSUAL_CANDIDATE = f"锟斤拷|[{_UNUSUAL_CLASS}{_BREAKS}]"
"""RE2: a text without a match has only usual characters."""


def find_unusual(text: str) -> list[Edit]:
    """Control, invisible, private-use and replacement characters, and 锟斤拷, what GBK makes of the latter.

    Every kind of line end becomes a line feed. Tabs, ideographic spaces and emoji stay.
    """
    return [
        Edit(*match.span(), "unusual_character") if match["unusual"] else Edit(*match.span(), "", "\n")
        for match in _UNUSUAL.finditer(text)
    ]


# Repeats

_REPEAT = re.compile(r"(.{1,8}?)\1{3,}", re.DOTALL)
_ONE_INSTANCE = {".": "......", "…": "……", "—": "——"}  # an ellipsis and a dash are repetitions themselves


def find_repeats(text: str) -> list[Edit]:
    """All but the first of 4 or more equal neighbours of 1 to 8 characters each.

    The paper gives no minimum. Three stay, so that 1000, 哈哈, 天天, "......" and —— do; what holds a
    digit and no letter is a number or a table and stays at any length.
    """
    return [edit for match in _REPEAT.finditer(text) for edit in _shortened(match)]


def _shortened(match: re.Match[str]) -> Iterator[Edit]:
    unit = match[1]
    if any(c.isdigit() for c in unit) and not any(c.isalpha() for c in unit):
        return
    kept = match.start() + len(_ONE_INSTANCE.get(unit, unit))
    if kept < match.end():
        yield Edit(kept, match.end(), "repeat")
