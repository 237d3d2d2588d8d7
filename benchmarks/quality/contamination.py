"""Contamination as a detector: planted evaluation records that are found, unrelated documents that are not.

A document is some unrelated text with one record planted in it, in one of seven forms. What is planted is
made of the data sets' own fields, not of our templates. The shared data are needed.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import opencc
import pyarrow as pa

from benchmarks.figure import Figure
from benchmarks.quality import shipped
from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import tasks
from openba.data.contamination import Holder, Items
from openba.data.files import json_lines
from openba.data.quarantine import refuse
from openba.data.questions import apart
from openba.recipes.data import NGRAM, TaskStep
from openba.recipes.evaluate import BenchmarkRecipe

BENCHMARKS = (
    "mmlu",
    "mmlu-5shot",
    "cmmlu",
    "cmmlu-5shot",
    "ceval",
    "ceval-5shot",
    "belebele-en",
    "bbh",
    "bbh-cot",
)
_TRADITIONAL = opencc.OpenCC("s2t")
_UNRELATED = (
    "raw_en_c4", "raw_en_speeches", "raw_en_webtext", "raw_en_wiki", "raw_en_wikitext2", "raw_zh_appdesc",
    "raw_zh_classical", "raw_zh_hant_wiki", "raw_zh_legal", "raw_zh_long_tech", "raw_zh_news_titles",
    "raw_zh_reviews", "raw_zh_science_abstracts", "raw_zh_wiki_qa",
)  # fmt: skip
_FIELDS = ("text", "context", "abstract", "title", "paragraphs", "lines", "content")


@dataclass(frozen=True)
class Planted:
    """A record as its data set has it."""

    passage: str
    question: str
    options: list[str]
    answer: str

    def published(
        self, letters: Callable[[int], str] = lambda place: f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[place]}. "
    ) -> str:
        """The record with its options, each behind what `letters` gives for its position."""
        options = [f"{letters(place)}{text}" for place, text in enumerate(self.options)]
        return "\n".join([self.passage, self.question, *options, f"Answer: {self.answer}"]).strip()

    def answered(self) -> str:
        """The question and the answer's text, without passage and options."""
        return f"{self.question}\n{self.answer}"


FORMS: dict[str, Callable[[Planted], str]] = {
    "as published": Planted.published,
    "other lettering (1)": lambda record: record.published(lambda place: f"({place + 1}) "),
    "other lettering a、": lambda record: record.published(
        lambda place: f"{'abcdefghijklmnopqrstuvwxyz'[place]}、"
    ),
    "question and answer": Planted.answered,
    "re-wrapped": lambda record: _rewrapped(record.published()),
    "full width": lambda record: _full_width(record.published()),
    "traditional": lambda record: _TRADITIONAL.convert(record.published()),
}


def _rewrapped(text: str) -> str:
    """Break lines elsewhere: English at spaces, Chinese anywhere."""
    joined = " ".join(text.split())
    return re.sub(r"(.{25,35}?)(?: |(?<=[\u3400-\u9fff])(?=[\u3400-\u9fff]))", r"\1\n    ", joined)


def _full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else "\u3000" if c == " " else c for c in text)


def _records(name: str, recipe: BenchmarkRecipe) -> list[Planted]:
    """The held-out records of a benchmark in the order of its asked.parquet."""
    task = shipped.rendered(f"benchmark/paper/{name}", Path())
    raw = task.raw_records()
    return [_planted(raw[identity]) for identity in task.rendered.heldout["id"].to_pylist()]


def _planted(fields: dict[str, str]) -> Planted:
    if "mc_answer1" in fields:
        options = [fields[f"mc_answer{place}"] for place in range(1, 5)]
        right = options[int(fields["correct_answer_num"]) - 1]
        return Planted(fields["flores_passage"], fields["question"], options, right)
    if "question" in fields:
        options = [fields[letter] for letter in "ABCD"]
        return Planted("", fields["question"], options, options["ABCD".index(fields["answer"])])
    question, lettered = apart(fields["input"])
    answer = lettered.get(fields["target"].strip("()"), fields["target"])
    return Planted("", question, list(lettered.values()), answer)


def unrelated() -> list[str]:
    """Documents of the raw sets, which have nothing to do with the benchmarks."""
    texts = []
    for folder in _UNRELATED:
        for path in sorted((shipped.DATA / folder).glob("*.jsonl")):
            for _, row in json_lines(path, refuse):
                value = next((row[field] for field in _FIELDS if row.get(field)), "")
                texts.append("\n".join(map(str, value)) if isinstance(value, list) else str(value))
    return [text for text in texts if text.strip()]


def recall(name: str, folder: Path, around: list[str]) -> Iterator[tuple[str, float, int]]:
    """Yield each form with the share of its records that are found, and how many there are."""
    recipe = load(
        CONFIGS / f"benchmark/paper/{name}.yaml",
        BenchmarkRecipe,
        shipped.overrides(f"benchmark/paper/{name}"),
    )
    folder.mkdir()
    tasks.build(Build(folder, TaskStep(name=name, task=recipe.task), {}))
    records = _records(name, recipe)
    holder = Holder(Items.read({name: folder}, NGRAM))
    for form, plant in FORMS.items():
        if form == "traditional" and recipe.language == "en":
            continue
        texts = [
            f"{around[2 * n % len(around)]}\n\n{plant(record)}\n\n{around[(2 * n + 1) % len(around)]}"
            for n, record in enumerate(records)
        ]
        rows, found = holder.found(pa.array(texts, pa.large_string()))
        yield form, float(np.isin(np.arange(len(records)), rows[rows == found]).mean()), len(records)


def figures() -> Iterator[Figure]:
    """Yield recall for each benchmark and form, and the false positives of all benchmarks together."""
    if not shipped.DATA.exists():
        print("benchmarks: quality: no ../shared/data; contamination is left out", file=sys.stderr)
        return
    documents = unrelated()
    around = [text[:300] for text in random.Random(0).sample(documents, 2000)]
    with TemporaryDirectory() as place:
        for name in BENCHMARKS:
            for form, share, count in recall(name, Path(place) / name, around):
                yield Figure(f"found of {count} in {name}, {form}", 100 * share, "%", 95, "higher")
        items = Items.read({name: Path(place) / name for name in BENCHMARKS}, NGRAM)
        rows, _ = Holder(items).found(pa.array(documents, pa.large_string()))
        yield Figure(
            f"false positives, {len(documents)} unrelated documents",
            100 * len(set(rows.tolist())) / len(documents),
            "%",
            0.5,
        )
