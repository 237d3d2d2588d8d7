"""Measure on labelled real text what cleaning keeps: languages, private values, articles, repeated runs.

No speed is measured here. Text is the shared data; a figure whose data or peer is absent is left out, and
that is said. Repeated runs are compared with a search over all runs of sentences: quadratic and exact.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa

from benchmarks.data.peer import VARIABLE
from benchmarks.data.planted import FORMS, OTHERS
from benchmarks.figure import ROOT, Figure
from openba.data.articles import article
from openba.data.clean import dedup, text_arrays
from openba.data.clean.edit_matrix import END, ROW, RULE, START
from openba.data.clean.edits import apply
from openba.data.clean.language import Languages
from openba.data.clean.markup import Markup
from openba.data.clean.privacy import Privacy
from openba.data.clean.text_arrays import Texts

DATA = ROOT.parent / "shared" / "data"
_ZH = (
    "appdesc",
    "classical",
    "hant_wiki",
    "legal",
    "long_tech",
    "news_titles",
    "reviews",
    "science_abstracts",
    "wiki_qa",
)
_EN = ("c4", "speeches", "webtext", "wiki", "wikitext2")
_FIELDS = ("text", "context", "abstract", "lines", "paragraphs")
_MOST_SENTENCES = 4000
_EACH = 200
"""Values made of every form."""
_AROUND = (
    ("联系人是", "，随时欢迎"), ("请记下", "不要忘了"), ("（", "）"), ("方式：", "。"), ("号码是", "的那位"),
    ("Contact us: ", " today"), ("see ", " for more"),
)  # fmt: skip


def figures() -> Iterator[Figure]:
    """All figures, those without data last."""
    yield from _planted()
    yield _runs()
    if not DATA.exists():
        print("benchmarks: data: no ../shared/data; languages and article text are left out", file=sys.stderr)
        return
    yield from _languages()
    yield from _articles()


def texts_of(texts: list[str]) -> Texts:
    """Text arrays of the documents, in the form that the stages get."""
    return text_arrays.decode(pa.array(texts, pa.large_string()))[0]


def _kept(texts: list[str]) -> int:
    return len(texts) - len(Languages(("zh", "en")).find(texts_of(texts)))


def _rows(name: str) -> Iterator[dict]:
    for path in sorted((DATA / name).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def _languages() -> Iterator[Figure]:
    by_language: dict[str, list[str]] = {}
    for row in _rows("langid_udhr"):
        by_language.setdefault(row["lang"], []).append(row["text"])
    wanted = [text for name, texts in by_language.items() if name[:2] in ("zh", "en") for text in texts]
    others = [text for name, texts in by_language.items() if name[:2] not in ("zh", "en") for text in texts]
    yield Figure("data/language_kept_udhr", 100 * _kept(wanted) / len(wanted), "%", 96, "higher")
    dropped = 100 - 100 * _kept(others) / len(others)
    yield Figure("data/language_dropped_udhr", dropped, "%", 98, "higher")
    shares = {}
    for name in [f"raw_zh_{name}" for name in _ZH] + [f"raw_en_{name}" for name in _EN]:
        sentences = _sentences(name)
        shares[name] = (100 * _kept(sentences) / len(sentences), len(sentences))
    share_text = ", ".join(
        f"{name} {share:.1f} of {count}" for name, (share, count) in sorted(shares.items())
    )
    print(f"benchmarks: data: sentences kept, %: {share_text}", file=sys.stderr)
    overall_share = sum(share * count for share, count in shares.values()) / sum(
        n for _, n in shares.values()
    )
    yield Figure("data/language_kept_raw_sentences", overall_share, "%", 96, "higher")
    worst = min(shares, key=lambda name: shares[name][0])
    yield Figure("data/language_kept_raw_worst_set", shares[worst][0], "%", 96, "higher", worst)


def _sentences(name: str) -> list[str]:
    """Sentences of a raw set: 25 to 300 characters, in Chinese sets 10 of them Han, in English five words.

    So that lines of code, of which the textbook is full, and tables are not counted as sentences.
    """
    count = "[\u3400-\u9fff]" if name.startswith("raw_zh") else "[A-Za-z]{2,}"
    least_units = 10 if name.startswith("raw_zh") else 5
    sentences = []
    for row in _rows(name):
        field_value = next(row[field] for field in _FIELDS if field in row)
        parts = field_value if isinstance(field_value, list) else [field_value]
        text = "\n".join(part if isinstance(part, str) else str(part.get("context", "")) for part in parts)
        for sentence in re.split(r"(?<=[。！？!?])|(?<=[.])\s|\n", text):
            if 25 <= len(sentence.strip()) <= 300 and len(re.findall(count, sentence)) >= least_units:
                sentences.append(sentence.strip())
    return sentences[:_MOST_SENTENCES]


def _planted() -> Iterator[Figure]:
    draw = random.Random(1)
    found_by_form = {name: sum(_is_found(name, draw, turn) for turn in range(_EACH)) for name in FORMS}
    recall = 100 * sum(found_by_form.values()) / (_EACH * len(FORMS))
    if short := {name: count for name, count in found_by_form.items() if count < 0.99 * _EACH}:
        print(f"benchmarks: data: found of {_EACH}: {short}", file=sys.stderr)
    yield Figure("data/private_forms", len(FORMS), "", 30, "higher")
    yield Figure("data/private_recall", recall, "%", 99, "higher")
    texts = [_between(make(draw), turn)[0] for make in OTHERS.values() for turn in range(_EACH)]
    touched = len(np.unique(Privacy().find(texts_of(texts))[:, ROW]))
    yield Figure("data/private_numbers_touched", 100 * touched / len(texts), "%", 0.1)


def _between(value: str, turn: int) -> tuple[str, int]:
    before, after = _AROUND[turn % len(_AROUND)]
    return f"{before}{value}{after}", len(before)


def _is_found(name: str, draw: random.Random, turn: int) -> bool:
    """Whether all letters and digits of a planted value go by its rule; of `电话：62345678` the digits."""
    rule, make = FORMS[name]
    value = make(draw)
    text, begin = _between(value, turn)
    edits = Privacy().find(texts_of([text]))
    removed_positions = {position for edit in edits for position in range(edit[START], edit[END])}
    matters = str.isdigit if rule == "phone" else str.isalnum
    covered = all(
        begin + position in removed_positions for position, letter in enumerate(value) if matters(letter)
    )
    return covered and rule in {Privacy.rules[number - 1] for number in edits[:, RULE]}


def _articles() -> Iterator[Figure]:
    """Words of the page text against those of the article that people marked; means over the pages."""
    pages = list(_rows("raw_en_web_html"))
    without_tags = [apply(page["html"], Markup().find_in_text(page["html"])) for page in pages]
    tags_f1, recall = _overlap(without_tags, pages)
    yield Figure("data/html_words_of_article_kept", 100 * recall, "%", 99, "higher")
    yield Figure("data/html_tags_removed_f1", tags_f1, "", peer="the paper's rule: tags go, nothing else")
    f1, _ = _overlap([article(page["html"]) or "" for page in pages], pages)
    interpreter = os.environ.get(VARIABLE)
    script = Path(__file__).with_name("peer_trafilatura.py")
    path = DATA / "raw_en_web_html" / "pages.jsonl"
    done = interpreter and subprocess.run(
        [interpreter, str(script), str(path)], capture_output=True, text=True, check=False
    )
    if not done or done.returncode:
        print(f"benchmarks: data: trafilatura: absent ({VARIABLE}: {interpreter})", file=sys.stderr)
        yield Figure("data/html_article_f1", f1, "")
        return
    theirs, _ = _overlap(json.loads(done.stdout), pages)
    name = f"trafilatura, fast mode: {theirs:.3f}"
    yield Figure("data/html_article_f1", f1, "", round(theirs, 3), "higher", name, f1 / theirs)


def _overlap(texts: list[str], pages: list[dict]) -> tuple[float, float]:
    f1 = []
    recall = []
    for text, page in zip(texts, pages, strict=True):
        text_words, article_words = (
            Counter(re.findall(r"\w+", side.lower())) for side in (text, page["article_body"])
        )
        shared_words = (text_words & article_words).total()
        f1.append(2 * shared_words / (text_words.total() + article_words.total()))
        recall.append(shared_words / article_words.total())
    return fmean(f1), fmean(recall)


def _runs() -> Figure:
    """Characters that the search for repeated runs marks otherwise than a search over all runs does."""
    generator = random.Random(2)
    wrong = 0
    cases = 0
    for _case in range(2000):
        alphabet = generator.choice([2, 3, 5, 40])
        size = generator.choice([1, 6, 12])
        documents = [
            "".join(
                chr(0x4E00 + generator.randrange(alphabet)) * generator.randint(1, size) + "。"
                for _ in range(generator.randint(1, 12))
            )
            for _ in range(generator.randint(1, 5))
        ]
        max_sentences = generator.choice([1, 3, 99])
        min_characters = generator.choice([1, 4, 20])
        wrong += _marked(documents, max_sentences, min_characters) != _marked_by_force(
            documents, max_sentences, min_characters
        )
        cases += 1
    return Figure("data/run_dedup_differs_from_brute_force", wrong, "", 0, peer=f"{cases} adversarial cases")


def _marked(documents: list[str], most: int, least: int) -> set[tuple[int, int]]:
    """(document, character) that go."""
    texts = texts_of(documents)
    windows = dedup.Windows(texts, most, least)
    keys = np.empty(len(windows.spans), dedup.KEY)
    hashes = windows.keys()
    keys["high"] = hashes[:, 0]
    keys["low"] = hashes[:, 1]
    keys["position"] = windows.spans[:, 0]
    keys["record"] = np.arange(len(keys))
    copies = dedup.find_copies(keys)
    copies = copies[np.argsort(copies["record"])]
    record_numbers = copies["record"].astype(np.int64)
    firsts = copies["first"].astype(np.int64)
    edits = windows.edits(
        record_numbers, firsts, np.searchsorted(windows.first_sentences, firsts, side="right") - 1
    )
    return {
        (int(e[ROW]), position - int(texts.offsets[e[ROW]]))
        for e in edits
        for position in range(int(e[START]), int(e[END]))
    }


def _marked_by_force(documents: list[str], most: int, least: int) -> set[tuple[int, int]]:
    seen: set[str] = set()
    removed_positions = set()
    for number, document in enumerate(documents):
        sentences = re.findall("[^。]*。", document)
        begins = np.cumsum([0, *map(len, sentences)])
        for end in range(1, len(sentences) + 1):
            runs = ["".join(sentences[begin:end]) for begin in range(max(0, end - most), end)]
            for run in runs:
                if len(run) >= least and run in seen:
                    removed_positions |= {
                        (number, position) for position in range(begins[end] - len(run), begins[end])
                    }
            seen |= {run for run in runs if len(run) >= least}
    return removed_positions
