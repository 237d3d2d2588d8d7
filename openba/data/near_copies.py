"""Near copies in a cleaned corpus, for a mixture: documents that have to stand in one part of it.

Two documents are near copies if the Jaccard similarity of their shingles is at least `SIMILARITY`, whatever
their sources and filters. Near copies of near copies belong together, since each of two parts would else hold
a near copy of the other's text. Only hashes move between the processes (`openba.data.clean.near_passes`).
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numba import njit

from openba.data.catalogue import corpus_files
from openba.data.clean import passes
from openba.data.clean.corpus import PARTITION_BYTES, SHARD_BYTES, divide_row_groups
from openba.data.clean.near_passes import Signatures, confirmed_pairs, near_candidates, near_confirm
from openba.data.clean.passes import Mapper
from openba.data.clean.shards import IN_SHARD, SHARD_BITS, Plan, Shard
from openba.data.clean.text_arrays import decode
from openba.data.schema import read_batches
from openba.recipes.clean import CleanRecipe

SIMILARITY = 0.8
_RECIPE = CleanRecipe(near_dedup=True, near_similarity=SIMILARITY)
_BATCH = 1000
_MAX_PARTITIONS = 1024


def find(corpus: Path, folder: Path, mapper: Mapper | None = None) -> np.ndarray:
    """Return pairs of near copies among all documents of a corpus.

    Args:
        corpus: output folder of the step `clean`.
        folder: for files between the tasks; the caller deletes it.
        mapper: runs the tasks; none: in this process, or in one per core if there is enough to do.

    Returns:
        int64 `[pairs, 2]`, numbers of the documents in the order of files and rows, the smaller one first.
        Every two near copies are linked by a chain of pairs, but not every two are a pair.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = _plan(corpus, folder)
    workers = min(passes.cpu_count(), plan.bytes // (2 * SHARD_BYTES))
    starts_pool = mapper is None and workers > 1
    shard_numbers = range(len(plan.shards))
    with passes.Processes(workers) if starts_pool else nullcontext(mapper or passes.in_this_process) as run:
        run(sign, plan, shard_numbers)
        run(near_candidates, plan, range(plan.partitions))
        run(near_confirm, plan, shard_numbers)
    first_documents = np.cumsum([0, *(_documents(shard) for shard in plan.shards)])
    pairs = confirmed_pairs(plan)
    return first_documents[pairs >> SHARD_BITS] + (pairs & IN_SHARD)


def sign(plan: Plan, shard_number: int) -> None:
    """Task: write the shingles and keys of a shard's documents."""
    shard = plan.shards[shard_number]
    signatures = Signatures(plan, shard_number, _RECIPE.near_units)
    for batch in read_batches(shard.path, _BATCH, ["text"], shard.row_groups):
        signatures.add(decode(batch["text"])[0])
    signatures.write()


def cluster_keys(texts: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return a key per document, uint64 `[documents]`, equal for documents that are linked.

    A cluster's key depends on its texts alone, and says nothing about its size: it is pseudo-random, as the
    digest of a single text is.

    Args:
        texts: uint64 `[documents]`, digests, equal for equal texts; these are linked as well.
        pairs: int64 `[pairs, 2]`, linked documents.
    """
    text_digests, text_numbers = np.unique(texts, return_inverse=True)
    # Digests are sorted, so the smallest number in a cluster is that of its smallest digest.
    cluster_roots = _join(len(text_digests), text_numbers[pairs])
    cluster_sizes = np.bincount(cluster_roots, minlength=len(text_digests))
    # The smallest of many digests would be first in the order of keys: the digest of the digest is not.
    mixed_digests = (text_digests ^ (text_digests >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    mixed_digests ^= mixed_digests >> np.uint64(29)
    return np.where(cluster_sizes > 1, mixed_digests, text_digests)[cluster_roots][text_numbers]


def _plan(corpus: Path, folder: Path) -> Plan:
    """Divide the corpus into shards of row groups."""
    corpus_shards: list[Shard] = []
    total_bytes = 0
    for path in corpus_files(corpus):
        metadata = pq.ParquetFile(path).metadata
        group_sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        total_bytes += sum(group_sizes)
        for row_groups in divide_row_groups(group_sizes, SHARD_BYTES):
            corpus_shards.append(Shard(len(corpus_shards), path.stem, path, row_groups))
    partitions = min(_MAX_PARTITIONS, 1 + total_bytes // PARTITION_BYTES)
    recipes = dict.fromkeys((shard.source for shard in corpus_shards), _RECIPE)
    return Plan(folder, tuple(corpus_shards), recipes, partitions, total_bytes)


def _documents(shard: Shard) -> int:
    metadata = pq.ParquetFile(shard.path).metadata
    return sum(metadata.row_group(group).num_rows for group in shard.row_groups)


@njit(cache=True, nogil=True)
def _join(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return for each of so many elements the smallest one that it is linked to, int64 `[count]`."""
    parents = np.arange(count)
    for index in range(len(pairs)):
        first = pairs[index, 0]
        second = pairs[index, 1]
        while parents[first] != first:
            parents[first] = parents[parents[first]]
            first = parents[first]
        while parents[second] != second:
            parents[second] = parents[parents[second]]
            second = parents[second]
        parents[max(first, second)] = min(first, second)
    for element in range(count):
        # The parent has a smaller number, so it points at its root already.
        parents[element] = parents[parents[element]]
    return parents
