"""Contamination as a detector: planted evaluation records that are found, unrelated documents that are not.

A document is some unrelated text with one record planted in it, in one of seven forms. What is planted is
made of the data sets' own fields, not of our templates. The shared data are needed.
"""

from __future__ import annotations

import json
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
from openba.data import labelled
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
    "belebele-en few-shot",
    "belebele-zh-hans",
    "belebele-zh-hans few-shot",
    "belebele-zh-hant",
    "belebele-zh-hant few-shot",
    "bbh",
    "bbh-cot",
)
"""Files of `configs/benchmark/paper`; BELEBELE, which the paper asks 0-shot, gets its examples here."""
_FEW_SHOT = " few-shot"
_TRADITIONAL = opencc.OpenCC("s2t")
_SIMPLIFIED = opencc.OpenCC("t2s")
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
        self, letters: Callable[[int], str] = lambda index: f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[index]}. "
    ) -> str:
        """Return the record with its options, each behind what `letters` gives for its position."""
        options = [f"{letters(index)}{text}" for index, text in enumerate(self.options)]
        return "\n".join([self.passage, self.question, *options, f"Answer: {self.answer}"]).strip()

    def answered(self) -> str:
        """Return the question and the answer's text, without passage and options."""
        return f"{self.question}\n{self.answer}"


FORMS: dict[str, Callable[[Planted], str]] = {
    "as published": Planted.published,
    "other lettering (1)": lambda record: record.published(lambda index: f"({index + 1}) "),
    "other lettering a、": lambda record: record.published(
        lambda index: f"{'abcdefghijklmnopqrstuvwxyz'[index]}、"
    ),
    "question and answer": Planted.answered,
    "re-wrapped": lambda record: _rewrapped(record.published()),
    "full width": lambda record: _full_width(record.published()),
    "other script": lambda record: _other_script(record.published()),
}


def _rewrapped(text: str) -> str:
    """Break lines elsewhere: English at spaces, Chinese anywhere."""
    joined = " ".join(text.split())
    return re.sub(r"(.{25,35}?)(?: |(?<=[\u3400-\u9fff])(?=[\u3400-\u9fff]))", r"\1\n    ", joined)


def _other_script(text: str) -> str:
    """Traditional for simplified Chinese and the other way round."""
    traditional = _TRADITIONAL.convert(text)
    return traditional if traditional != text else _SIMPLIFIED.convert(text)


def _full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else "\u3000" if c == " " else c for c in text)


def benchmark(name: str, folder: Path) -> BenchmarkRecipe:
    """Return a benchmark on its data set; Chinese BELEBELE on records of its form, written into `folder`."""
    file = f"benchmark/paper/{name.removesuffix(_FEW_SHOT)}"
    changed = shipped.overrides(file)
    if "belebele-zh" in name:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(_belebele_of_cmrc(name.startswith("belebele-zh-hant"))), encoding="utf-8")
        changed = [f"task.source.path={path}"]
    recipe = load(CONFIGS / f"{file}.yaml", BenchmarkRecipe, changed)
    if not name.endswith(_FEW_SHOT):
        return recipe
    turn = recipe.task.templates[0]
    few = {"input": f"{{examples}}{turn.input}", "target": turn.target, "shots": 3,
           "example": f"{turn.input} {turn.target}\n\n"}  # fmt: skip
    return BenchmarkRecipe.model_validate(
        {**recipe.model_dump(), "task": {**recipe.task.model_dump(), "templates": [few], "heldout": 0.9}}
    )


def _belebele_of_cmrc(traditional: bool) -> Iterator[str]:
    """Yield JSON lines in BELEBELE's form from CMRC, with answers to other questions as options."""
    path = shipped.DATA / "raw_zh_wiki_qa" / "docs.jsonl"
    asked = [
        (row["context"][:300], qa["question"], qa["answers"][0])
        for _, row in json_lines(path, refuse)
        for qa in row["qas"]
    ]
    draw = random.Random(1)
    for passage, question, answer in asked:
        options = [answer, *(other for *_, other in draw.sample(asked, 3))]
        draw.shuffle(options)
        fields = {"flores_passage": passage, "question": question}
        fields |= {f"mc_answer{index}": text for index, text in enumerate(options, 1)}
        fields["correct_answer_num"] = str(options.index(answer) + 1)
        line = json.dumps(fields, ensure_ascii=False)
        yield (_TRADITIONAL.convert(line) if traditional else line) + "\n"


def _records(name: str, recipe: BenchmarkRecipe) -> list[Planted]:
    """Return the held-out records of a benchmark in the order of its asked.parquet."""
    task = shipped.without_examples(name, recipe.task)
    raw = task.raw_records()
    return [_planted(raw[identity]) for identity in task.rendered.heldout["id"].to_pylist()]


def _planted(fields: dict[str, str]) -> Planted:
    if "mc_answer1" in fields:
        options = [fields[f"mc_answer{index}"] for index in range(1, 5)]
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
    recipe = benchmark(name, folder.parent)
    folder.mkdir()
    labelled.build(Build(folder, TaskStep(name=name, task=recipe.task), {}))
    records = _records(name, recipe)
    holder = Holder(Items.read({name: folder}, NGRAM))
    for form, plant in FORMS.items():
        if form == "other script" and recipe.language == "en":
            continue
        texts = [
            f"{around[2 * n % len(around)]}\n\n{plant(record)}\n\n{around[(2 * n + 1) % len(around)]}"
            for n, record in enumerate(records)
        ]
        rows, found_rows = holder.found(pa.array(texts, pa.large_string()))
        yield form, float(np.isin(np.arange(len(records)), rows[rows == found_rows]).mean()), len(records)


def figures() -> Iterator[Figure]:
    """Yield recall for each benchmark and form, and the false positives of all benchmarks together."""
    if not shipped.DATA.exists():
        print("benchmarks: quality: no ../shared/data; contamination is left out", file=sys.stderr)
        return
    documents = unrelated()
    around = [text[:300] for text in random.Random(0).sample(documents, 2000)]
    with TemporaryDirectory() as index:
        for name in BENCHMARKS:
            for form, share, count in recall(name, Path(index) / name, around):
                yield Figure(f"found of {count} in {name}, {form}", 100 * share, "%", 95, "higher")
        # Chinese BELEBELE is made of CMRC here, which is among these documents.
        names = [name for name in BENCHMARKS if "belebele-zh" not in name]
        items = Items.read({name: Path(index) / name for name in names}, NGRAM)
        rows, _ = Holder(items).found(pa.array(documents, pa.large_string()))
        yield Figure(
            f"false positives, {len(documents)} unrelated documents",
            100 * len(set(rows.tolist())) / len(documents),
            "%",
            0.5,
        )
