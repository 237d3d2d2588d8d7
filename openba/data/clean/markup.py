"""Page markup (paper section 3.1.1: "remove unusual characters and HTML tags").

Owns what a tag, a comment and an entity are. Only texts with a candidate meet these patterns: markup that is
left in extracted text is rare. Whole pages go at some 5 MB/s; extract those before.
"""

from __future__ import annotations

import html
import html.entities
import re

import numpy as np
from numba import njit

from openba.data.clean.columns import RULE_CODE, Texts
from openba.data.clean.edits import Edit

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
_IS_SCRIPT = re.compile(r"[{};=]|\w\(|//|/\*")
"""What scripts and style sheets are made of, and a sentence between their tags is not."""
_CDATA_START, _CDATA_END = "<![CDATA[", "]]>"
_MARKUP = re.compile(
    rf"""(?P<comment><!--)|<!\[CDATA\[|\]\]>|<[!?][A-Za-z][^<>]*+>
    |<(?P<close>/?)(?P<name>[A-Za-z][A-Za-z0-9:-]*+)
        (?P<attributes>(?:\s++(?:{_VALUED.pattern}|[\w:.@-]++))*+)\s*+(?P<self>/?)>
    |(?P<entity>&(?:\#[0-9]{{1,7}}|\#[xX][0-9A-Fa-f]{{1,6}}|[A-Za-z][A-Za-z0-9]{{1,31}});)""",
    re.VERBOSE,
)


def find(texts: Texts) -> np.ndarray:
    """Edits of a batch, see `find_html`."""
    rows = []
    for row in np.flatnonzero(_candidates(texts.codes, texts.offsets)).tolist():
        start = int(texts.offsets[row])
        for edit in find_html(texts.text(row)):
            first, second = [*map(ord, edit.replacement), 0, 0][:2]
            span = (row, start + edit.start, start + edit.end)
            rows.append((*span, RULE_CODE[edit.rule], first, second, -1))
    return np.array(rows, np.int64).reshape(-1, 7)


@njit(cache=True, nogil=True)
def _candidates(codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Which texts have something that begins like a tag or an entity."""
    found = np.zeros(len(offsets) - 1, np.bool_)
    for row in range(len(found)):
        hits = np.uint32(0)
        for code in codes[offsets[row] : offsets[row + 1]]:
            hits += np.uint32((code == 60) | (code == 38))
        if hits == 0:
            continue
        for at in range(offsets[row], offsets[row + 1] - 1):
            code = codes[at]
            if code != 60 and code != 38:
                continue
            after = codes[at + 1]
            letter = 65 <= after <= 90 or 97 <= after <= 122
            sign = after == 35 if code == 38 else after == 47 or after == 33 or after == 63
            if letter or sign:
                found[row] = True
                break
    return found


def find_html(text: str) -> list[Edit]:
    """Return edits of tags, comments, scripts and style sheets; entities are decoded once.

    The text of a CDATA section stays, and is looked at like other text. What stands between `<script>` and
    `</script>` without attributes or any sign of a program is a text about them and stays, tags included.
    A tag is a known element, or any name with a value, a colon, a hyphen or a closing tag; so "a < b",
    "a<b and c>d" and "List<String>" stay. A tag that begins or ends a block leaves a line break.
    """
    edits: list[Edit] = []
    closed = {name.lower() for name in _CLOSED.findall(text)}
    unclosed: set[str] = set()  # each missing end is looked for once, or many beginnings cost quadratic time
    at = 0
    in_cdata = False
    last_cdata_end = text.rfind(_CDATA_END)
    while match := _MARKUP.search(text, at):
        edit: Edit | None
        if match[0] == _CDATA_END:
            edit = Edit(*match.span(), "tag") if in_cdata else None  # else code, as in x[y[0]]>1
            in_cdata = False
        elif match[0] == _CDATA_START:
            in_cdata = match.end() <= last_cdata_end
            edit = Edit(*match.span(), "tag") if in_cdata else None
        else:
            edit = _entity(match) if match["entity"] else _markup(text, match, closed, unclosed)
        at = edit.end if edit else match.end()
        edits += [edit] if edit and edit.start < edit.end else []
    return edits


def _entity(match: re.Match[str]) -> Edit | None:
    known = match["entity"][1] == "#" or match["entity"][1:] in html.entities.html5
    decoded = html.unescape(match["entity"]).replace("\xa0", " ")
    return Edit(*match.span(), "", decoded) if known else None


def _markup(text: str, match: re.Match[str], closed: set[str], unclosed: set[str]) -> Edit | None:
    if match["comment"]:
        return _through("-->", "comment", text, match, unclosed)
    name = (match["name"] or "").lower()
    if name in ("script", "style") and not match["close"] and not match["self"]:
        element = _through(f"</{name}", name, text, match, unclosed)
        if element is None:
            return Edit(*match.span(), "tag")
        inside = text[match.end() : text.rindex("<", match.end(), element.end)]
        is_mention = inside.strip() and not match["attributes"] and not _IS_SCRIPT.search(inside)
        return (
            Edit(element.end, element.end, "") if is_mention else element
        )  # empty: the search goes on there
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
