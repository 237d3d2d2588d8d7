"""Tasks of the search for near duplicates: hashes go from shard to shard, text never does.

    filter_sentences  (in `passes`, for a mixture `near_copies.sign`) writes shingles and keys: `Signatures`
    near_candidates   per partition of keys: pairs of documents with a common key
    near_confirm      per shard: pairs whose later document lies in it and which really are similar
    near_decide       once: which documents go, and their survivors, written per shard

The files are named and written as those of `shards`.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np

from openba.data.clean import dedup
from openba.data.clean.near_duplicates import (
    Shingles,
    are_similar,
    band_keys,
    candidate_pairs,
    choose_survivors,
    distinct_pairs,
    shingles,
)
from openba.data.clean.shards import IN_SHARD, SHARD_BITS, Plan, save_array
from openba.data.clean.text_arrays import Texts
from openba.durable import replace_file

RULE = "near_duplicate"
KEY = np.dtype([("high", "<u8"), ("position", "<u8")])
"""Key of a document and the document's position, shard << 32 | number in the shard."""
_SIGNATURES = "near_signatures"
_CANDIDATES = "near_candidates"
_CONFIRMED = "near_confirm"
_REMOVED = "near_removed"


class Signatures:
    """Shingles and keys of a shard's documents, collected batch by batch."""

    def __init__(self, plan: Plan, shard: int, units: int) -> None:
        self._plan = plan
        self._shard = shard
        self._units = units
        self._batches: list[Shingles] = []

    def add(self, texts: Texts) -> None:
        """Add the documents of a batch."""
        self._batches.append(shingles(texts, self._units))

    def write(self) -> None:
        """Write hashes, offsets, keys by partition, and the bounds of the partitions."""
        sizes = [np.diff(batch.offsets) for batch in self._batches]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([[], *sizes]))]).astype(np.int64)
        hashes = np.concatenate([np.empty(0, np.uint32), *(batch.hashes for batch in self._batches)])
        hashed, rows = band_keys(Shingles(hashes, offsets))
        keys = np.empty(len(hashed), KEY)
        keys["high"] = hashed
        keys["position"] = rows + (self._shard << SHARD_BITS)
        keys, bounds = dedup.partition(keys, self._plan.partitions)
        for name, array in (("hashes", hashes), ("offsets", offsets), ("keys", keys)):
            _save(self._plan, f"{_SIGNATURES}-{name}", self._shard, array)
        path = self._plan.file(_SIGNATURES, self._shard, "json")
        replace_file(path, lambda partial: partial.write_text(json.dumps({"bounds": bounds.tolist()})))


def near_candidates(plan: Plan, partition: int) -> None:
    """Write the pairs of documents that have a key of the partition in common."""
    parts = [np.empty(0, KEY)]
    for shard in _shards(plan):
        start, end = json.loads(plan.file(_SIGNATURES, shard, "json").read_text())["bounds"][partition:][:2]
        parts.append(_load(plan, f"{_SIGNATURES}-keys", shard)[start:end])
    keys = np.concatenate(parts)
    pairs = candidate_pairs(np.ascontiguousarray(keys["high"]), keys["position"].astype(np.int64))
    _finish(plan, _CANDIDATES, partition, pairs)


def near_confirm(plan: Plan, shard: int) -> None:
    """Write the candidates whose later document lies in the shard and that really are similar."""
    threshold = plan.recipes[plan.shards[shard].source].near_similarity
    candidates = [_of_shard(plan, _CANDIDATES, part, shard) for part in range(plan.partitions)]
    pairs = distinct_pairs(np.concatenate(candidates))
    in_shard = pairs & IN_SHARD
    later_rows, later = np.unique(in_shard[:, 1], return_inverse=True)
    later_sets = _shingles(plan, shard).sets(later_rows)
    confirmed = [np.empty((0, 2), np.int64)]
    for earlier_shard in np.unique(pairs[:, 0] >> SHARD_BITS).tolist():
        chosen = np.flatnonzero(pairs[:, 0] >> SHARD_BITS == earlier_shard)
        earlier_rows, earlier = np.unique(in_shard[chosen, 0], return_inverse=True)
        earlier_sets = _shingles(plan, earlier_shard).sets(earlier_rows)
        rows = np.stack([earlier, later[chosen]], axis=1)
        confirmed.append(pairs[chosen][are_similar(earlier_sets, later_sets, rows, threshold)])
    _finish(plan, _CONFIRMED, shard, np.concatenate(confirmed))


def confirmed_pairs(plan: Plan) -> np.ndarray:
    """Return all pairs of similar documents, int64 `[pairs, 2]`, by position, the earlier one first."""
    none = np.empty((0, 2), np.int64)
    return np.concatenate([none, *(_load(plan, _CONFIRMED, shard) for shard in _shards(plan))])


def near_decide(plan: Plan, number: int) -> None:
    """Decide for all shards which documents go, and write removed documents and survivors per shard."""
    removed = choose_survivors(confirmed_pairs(plan))
    for shard in _shards(plan):
        _save(plan, _REMOVED, shard, removed[removed[:, 0] >> SHARD_BITS == shard])
    path = plan.file("near_decide", number, "json")
    replace_file(path, lambda partial: partial.write_text("{}"))


class NearDuplicates(NamedTuple):
    """A shard's documents that are near duplicates of others."""

    documents: np.ndarray
    """int64 `[removed]`, numbers of the documents within the shard, ascending."""
    survivors: np.ndarray
    """int64 `[removed]`, positions of the documents that stay."""


def near_duplicates_of_shard(plan: Plan, shard: int) -> NearDuplicates:
    """Return the decisions on a shard's documents."""
    removed = _load(plan, _REMOVED, shard)
    return NearDuplicates(removed[:, 0] & IN_SHARD, np.array(removed[:, 1]))


def _shards(plan: Plan) -> list[int]:
    return [shard.number for shard in plan.shards if plan.recipes[shard.source].near_dedup]


def _shingles(plan: Plan, shard: int) -> Shingles:
    hashes, offsets = (_load(plan, f"{_SIGNATURES}-{name}", shard) for name in ("hashes", "offsets"))
    # Plain arrays: numba does not accept numpy.memmap.
    return Shingles(np.asarray(hashes), np.asarray(offsets))


def _of_shard(plan: Plan, task: str, partition: int, shard: int) -> np.ndarray:
    """Return a partition's pairs whose later document lies in the shard."""
    pairs = _load(plan, task, partition)
    start, end = np.searchsorted(pairs[:, 1], [shard << SHARD_BITS, (shard + 1) << SHARD_BITS])
    return np.array(pairs[start:end])


def _finish(plan: Plan, task: str, number: int, pairs: np.ndarray) -> None:
    """Write a task's pairs, and last the record that it is done."""
    _save(plan, task, number, pairs)
    replace_file(plan.file(task, number, "json"), lambda path: path.write_text("{}"))


def _save(plan: Plan, name: str, number: int, array: np.ndarray) -> None:
    replace_file(plan.file(name, number, "npy"), lambda path: save_array(path, array))


def _load(plan: Plan, name: str, number: int) -> np.ndarray:
    return np.load(plan.file(name, number, "npy"), mmap_mode="r")
