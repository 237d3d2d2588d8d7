"""Sentences of Chinese and English text, and the filter that removes the short ones.

Owns where a sentence ends and what counts as a word. It knows nothing of duplicates.
"""

from __future__ import annotations

import re

from openba.data.clean.edits import Edit

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_CLOSING = "[”’』」）)】》\"']"
_END = re.compile(
    rf"""(?:
        [。！？｡]+{_CLOSING}*                      # Chinese full stops end a sentence wherever they stand
      | [!?]+{_CLOSING}*(?=\s|[{_HAN}]|$)
      | (?<=[{_HAN}])\.{_CLOSING}*(?![\w.])        # a full stop typed as ASCII after Chinese
      | (?<=[{_HAN}])\.(?=[{_HAN}])
      | (?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\b[A-Z])
        \.(?!(?<=\bNo\.)\s*[0-9]){_CLOSING}*(?=\s+["'“(]?[A-Z0-9{_HAN}]|\s*$)
      | \n
    )\s*""",
    re.VERBOSE,
)
_WORD = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+(?:[.,'’-][^\W_{_HAN}]+)*")


def split(text: str) -> list[int]:
    """Ends of the sentences, in characters; the last is the text's. White space belongs to the one before."""
    ends = [match.end() for match in _END.finditer(text)]
    return ends if ends and ends[-1] == len(text) else [*ends, len(text)]


def words(text: str) -> int:
    """A Han character is a word; so is a run of other letters or digits."""
    return len(_WORD.findall(text))


def find_short(text: str, minimum: int) -> list[Edit]:
    """Sentences with fewer words than the minimum; neighbours are one edit."""
    edits: list[Edit] = []
    start = 0
    for end in split(text):
        if words(text[start:end]) < minimum:
            joined = edits.pop().start if edits and edits[-1].end == start else start
            edits.append(removal(text, joined, end, "short_sentence"))
        start = end
    return edits


def removal(text: str, start: int, end: int, rule: str, survivor: str = "") -> Edit:
    """Take whole sentences out; a line end among them stays if it now parts two lines."""
    parts = "\n" in text[start:end] and start > 0 and text[start - 1] != "\n"
    return Edit(start, end, rule, "\n" if parts else "", survivor)
