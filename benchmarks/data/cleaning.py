"""Cleaning and deduplication: MB of UTF-8 input over process CPU seconds, against datatrove on the same file.

Our side is the step `corpus` itself where Parquet is read and written. One process; the file is real text
(`benchmarks.corpora`), every second document of it: 13 MB.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import corpora
from benchmarks.data import peer
from benchmarks.figure import Figure
from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data.clean import corpus, dedup, edit_matrix, passes, privacy, shards, text_arrays
from openba.data.clean.batch import split_batch
from openba.data.clean.text_arrays import Texts
from openba.data.schema import DOCUMENTS
from openba.recipes.clean import CleanRecipe
from openba.recipes.data import CorpusRecipe

_MB = 1e6
_ROUNDS = 5
NOTHING = CleanRecipe(
    privacy=False, html=False, unusual_characters=False, document_dedup=False, character_dedup=False,
    paragraph_dedup=False, min_words=0, languages=(),
)  # fmt: skip


def paper() -> CleanRecipe:
    """Return the paper's filters, as shipped."""
    return load(CONFIGS / "clean" / "paper.yaml", CleanRecipe)


def clean(
    source: Path, recipe: CleanRecipe, out: Path, mapper: passes.Mapper | None = passes.in_this_process
) -> None:
    """Run the step over one source."""
    out.mkdir()
    corpus.build(Build(out, CorpusRecipe(sources={"text": recipe}), {"text": source}), mapper)


def figures() -> Iterator[Figure]:
    """Measure the chain and both duplicate filters beside datatrove, privacy beside `re`, and whole pages."""
    with tempfile.TemporaryDirectory(prefix="openba-cleaning-") as folder:
        root = Path(folder)
        path = root / "text" / DOCUMENTS
        size = corpora.write(path, corpora.prose()[::2]) / _MB
        all_texts = Against(path, size, lambda out: clean(path.parent, paper(), out))
        yield from all_texts.figures("cleaning", "chain", 12, 5)
        held = [p for b in pq.ParquetFile(path).iter_batches() for p in split_batch(b, shards.PIECE_BYTES)]
        runs = Against(path, size, lambda _: dedup_runs(held))
        yield from runs.figures("run_dedup", "runs", 100, None)
        exact = NOTHING.model_copy(update={"document_dedup": True})
        documents = Against(path, size, lambda out: clean(path.parent, exact, out))
        yield from documents.figures("document_dedup", "documents", 100, 10)
        yield from _privacy(path, "text", 10)
        if corpora.pages():
            pages = root / "pages" / DOCUMENTS
            size = corpora.write(pages, corpora.pages()) / _MB
            yield Figure(
                "data/cleaning_pages", size / _seconds(lambda out: clean(pages.parent, paper(), out)), "MB/s"
            )
            yield from _privacy(pages, "pages", 10)


class Against:
    """A case of ours and one of the peer's on the same file."""

    def __init__(self, path: Path, size: float, ours: Callable[[Path], object]) -> None:
        self.path, self.size, self.ours = path, size, ours

    def figures(self, name: str, case: str, least: float | None, times: float | None) -> Iterator[Figure]:
        """MB/s, and the ratio where one is asked for."""
        other = peer.seconds(case, self.path)
        speed = self.size / _seconds(self.ours)
        peer_text = peer.ABSENT if other is None else f"datatrove, {case}: {self.size / other:.2f} MB/s"
        speed_ratio = None if other is None else speed * other / self.size
        yield Figure(f"data/{name}", speed, "MB/s", least, "higher", peer_text, speed_ratio)
        if speed_ratio is not None:
            yield Figure(
                f"data/{name}_against_datatrove", speed_ratio, "x", times, "higher", peer_text, speed_ratio
            )


def _seconds(work: Callable[[Path], object]) -> float:
    """Median CPU seconds; a first run, which loads compiled loops and tables, does not count."""
    round_seconds = []
    for round_number in range(_ROUNDS + 1):
        with tempfile.TemporaryDirectory(prefix="openba-cleaning-") as folder:
            started = time.process_time()
            work(Path(folder) / str(round_number))
            round_seconds.append(time.process_time() - started)
    return statistics.median(round_seconds[1:])


def dedup_runs(pieces: list[pa.RecordBatch]) -> list[pa.Array]:
    """Repeated runs out of texts that are in memory, Arrow to Arrow; the functions are the step's."""
    recipe = paper()
    windows = []
    keys = []
    for number, piece in enumerate(pieces):
        texts, _ = text_arrays.decode(piece["text"])
        text_windows = dedup.Windows(texts, recipe.max_sentences, recipe.min_repeat_characters)
        hashes = text_windows.keys()
        piece_keys = np.empty(len(hashes), dedup.KEY)
        piece_keys["high"] = hashes[:, 0]
        piece_keys["low"] = hashes[:, 1]
        piece_keys["position"] = text_windows.spans[:, 0] + (number << 32)
        piece_keys["record"] = np.arange(len(hashes)) + (number << 32)
        windows.append(text_windows)
        keys.append(piece_keys)
    copies = dedup.find_copies(np.concatenate(keys))
    bounds = np.searchsorted(copies["record"], np.arange(len(pieces) + 1, dtype=np.uint64) << np.uint64(32))
    cleaned_texts = []
    for number, text_windows in enumerate(windows):
        piece_keys = copies[bounds[number] : bounds[number + 1]]
        firsts = piece_keys["first"].astype(np.int64)
        edits = text_windows.edits(
            (piece_keys["record"] & np.uint64(2**32 - 1)).astype(np.int64), firsts, firsts >> 32
        )
        cleaned_texts.append(text_arrays.encode(edit_matrix.apply(text_windows.texts, edits)))
    return cleaned_texts


def _privacy(path: Path, name: str, least: float) -> Iterator[Figure]:
    texts, _ = text_arrays.decode(pq.read_table(path)["text"].combine_chunks())
    size = text_arrays.utf8_size(texts) / _MB
    our_seconds: list[float] = []
    re_seconds: list[float] = []
    find = privacy.Privacy().find
    find(texts)  # loads the compiled loops
    for _ in range(3):
        found_spans: list[np.ndarray] = []
        for seconds, work in ((re_seconds, _spans_of_re), (our_seconds, find)):
            started = time.process_time()
            found_spans.append(work(texts)[:, : edit_matrix.RULE + 1])
            seconds.append(time.process_time() - started)
        if not np.array_equal(found_spans[0], found_spans[1]):
            raise AssertionError("Privacy.find and the pattern over whole texts differ")
    ratio = statistics.median(a / b for a, b in zip(re_seconds, our_seconds, strict=True))
    peer_text = f"re, the same pattern and spans: {size / statistics.median(re_seconds):.2f} MB/s"
    yield Figure(
        f"data/privacy_{name}",
        size / statistics.median(our_seconds),
        "MB/s",
        None,
        "higher",
        peer_text,
        ratio,
    )
    yield Figure(f"data/privacy_{name}_against_re", ratio, "x", least, "higher", peer_text, ratio)


def _spans_of_re(texts: Texts) -> np.ndarray:
    rows = [
        (
            row,
            int(texts.offsets[row]) + start,
            int(texts.offsets[row]) + end,
            privacy.Privacy.rules.index(rule) + 1,
        )
        for row in range(len(texts.offsets) - 1)
        for start, end, rule in privacy.match_once(texts.text(row))
    ]
    return np.array(rows, np.int64).reshape(-1, 4)
