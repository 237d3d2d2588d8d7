"""Page markup (paper section 3.1.1: "remove unusual characters and HTML tags").

Only texts with a candidate are matched against the patterns, as markup is rare in extracted text. Entire
pages pass at some 5 MB/s; extract their text before.
"""

from __future__ import annotations

import html
import html.entities
import re

import numpy as np
from numba import njit

from openba.data.clean.edit_matrix import from_edits
from openba.data.clean.edits import Edit
from openba.data.clean.filter import Filter
from openba.data.clean.text_arrays import Texts

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
# Signs of a program or style sheet, which a sentence between such tags lacks.
_IS_SCRIPT = re.compile(r"[{};=]|\w\(|//|/\*")
_CDATA_START = "<![CDATA["
_CDATA_END = "]]>"
_MARKUP = re.compile(
    rf"""(?P<comment><!--)|<!\[CDATA\[|\]\]>|<[!?][A-Za-z][^<>]*+>
    |<(?P<close>/?)(?P<name>[A-Za-z][A-Za-z0-9:-]*+)
        (?P<attributes>(?:\s++(?:{_VALUED.pattern}|[\w:.@-]++))*+)\s*+(?P<self>/?)>
    |(?P<entity>&(?:\#[0-9]{{1,7}}|\#[xX][0-9A-Fa-f]{{1,6}}|[A-Za-z][A-Za-z0-9]{{1,31}});)""",
    re.VERBOSE,
)


class Markup(Filter):
    """Remove tags, comments, scripts and style sheets; decode entities once.

    The text of a CDATA section stays, and is searched like other text. What stands between `<script>` and
    `</script>` without attributes or any sign of a program is a text about them and stays, tags included.
    A tag is a known element, or any name with a value, a colon, a hyphen or a closing tag; so "a < b",
    "a<b and c>d" and "List<String>" stay. A tag that begins or ends a block leaves a line break.
    """

    name = "html"
    rules = ("comment", "script", "style", "tag")

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        rows = np.flatnonzero(_has_candidate(texts.code_points, texts.offsets)).tolist()
        return from_edits(texts, ((row, self.find_in_text(texts.text(row))) for row in rows), self.rules)

    def find_in_text(self, text: str) -> list[Edit]:
        """Return the edits of one text."""
        edits: list[Edit] = []
        closed_names = {name.lower() for name in _CLOSED.findall(text)}
        missing_ends: set[str] = (
            set()
        )  # each missing end is searched once, or many openings cost quadratic time
        position = 0
        in_cdata = False
        last_cdata_end = text.rfind(_CDATA_END)
        while match := _MARKUP.search(text, position):
            edit: Edit | None
            if match[0] == _CDATA_END:
                edit = Edit(*match.span(), "tag") if in_cdata else None  # else code, as in x[y[0]]>1
                in_cdata = False
            elif match[0] == _CDATA_START:
                in_cdata = match.end() <= last_cdata_end
                edit = Edit(*match.span(), "tag") if in_cdata else None
            else:
                edit = _entity(match) if match["entity"] else _markup(text, match, closed_names, missing_ends)
            position = edit.end if edit else match.end()
            edits += [edit] if edit and edit.start < edit.end else []
        return edits


@njit(cache=True, nogil=True)
def _has_candidate(code_points: np.ndarray, text_offsets: np.ndarray) -> np.ndarray:
    """Return a boolean array of the texts with something that begins like a tag or an entity."""
    has_candidate = np.zeros(len(text_offsets) - 1, np.bool_)
    for row in range(len(has_candidate)):
        # Counting without a branch first: most texts have neither "<" nor "&".
        hit_count = np.uint32(0)
        for code_point in code_points[text_offsets[row] : text_offsets[row + 1]]:
            hit_count += np.uint32((code_point == 60) | (code_point == 38))
        if hit_count == 0:
            continue
        for position in range(text_offsets[row], text_offsets[row + 1] - 1):
            code_point = code_points[position]
            if code_point != 60 and code_point != 38:
                continue
            next_code_point = code_points[position + 1]
            is_letter = 65 <= next_code_point <= 90 or 97 <= next_code_point <= 122
            if code_point == 38:
                is_sign = next_code_point == 35  # &#
            else:
                is_sign = next_code_point == 47 or next_code_point == 33 or next_code_point == 63  # </ <! <?
            if is_letter or is_sign:
                has_candidate[row] = True
                break
    return has_candidate


def _entity(match: re.Match[str]) -> Edit | None:
    is_defined = match["entity"][1] == "#" or match["entity"][1:] in html.entities.html5
    decoded = html.unescape(match["entity"]).replace("\xa0", " ")
    return Edit(*match.span(), "", decoded) if is_defined else None


def _markup(text: str, match: re.Match[str], closed_names: set[str], missing_ends: set[str]) -> Edit | None:
    if match["comment"]:
        return _through("-->", "comment", text, match, missing_ends)
    name = (match["name"] or "").lower()
    if name in ("script", "style") and not match["close"] and not match["self"]:
        element = _through(f"</{name}", name, text, match, missing_ends)
        if element is None:
            return Edit(*match.span(), "tag")
        inside = text[match.end() : text.rindex("<", match.end(), element.end)]
        is_mention = inside.strip() and not match["attributes"] and not _IS_SCRIPT.search(inside)
        # The empty edit of a mention makes the search continue behind it.
        return Edit(element.end, element.end, "") if is_mention else element
    if name and not _is_tag(name, match, closed_names):
        return None
    return Edit(*match.span(), "tag", "\n" if name in _BLOCKS else "")


def _through(
    closing_text: str, rule: str, text: str, match: re.Match[str], missing_ends: set[str]
) -> Edit | None:
    """Return the edit from the match to the end of the element it opens; None if that is never closed."""
    if closing_text in missing_ends:
        return None
    pattern = re.compile(
        rf"{closing_text}\s*>" if closing_text[0] == "<" else re.escape(closing_text), re.IGNORECASE
    )
    closing = pattern.search(text, match.end())
    if closing is None:
        missing_ends.add(closing_text)
        return None
    return Edit(match.start(), closing.end(), rule)


def _is_tag(name: str, match: re.Match[str], closed_names: set[str]) -> bool:
    attributes = match["attributes"]
    if name not in _ELEMENTS:
        return bool(name in closed_names or "=" in attributes or match["self"] or ":" in name or "-" in name)
    bare = _VALUED.sub(" ", attributes).split()
    return all(word.lower() in _BARE_ATTRIBUTES for word in bare)
