"""Tasks of the search for near duplicates: hashes go from shard to shard, text never does.

    filter_sentences  (in `passes`) writes each document's shingles and keys: `Signatures`
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
    ShingleSets,
    are_similar,
    band_keys,
    candidate_pairs,
    choose_survivors,
    shingle_sets,
)
from openba.data.clean.shards import IN_SHARD, SHARD_BITS, Plan, save_array
from openba.data.clean.text_arrays import Texts
from openba.durable import replace_file

RULE = "near_duplicate"
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
        self._sets: list[ShingleSets] = []

    def add(self, texts: Texts) -> None:
        """Add the documents of a batch."""
        self._sets.append(shingle_sets(texts, self._units))

    def write(self) -> None:
        """Write hashes, offsets, keys by partition, and the bounds of the partitions."""
        sizes = [np.diff(sets.offsets) for sets in self._sets]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([[], *sizes]))]).astype(np.int64)
        hashes = np.concatenate([np.empty(0, np.uint32), *(sets.hashes for sets in self._sets)])
        hashed, rows = band_keys(ShingleSets(hashes, offsets))
        keys = np.zeros(len(hashed), dedup.KEY)
        keys["high"] = hashed[:, 0]
        keys["low"] = hashed[:, 1]
        keys["position"] = rows + (self._shard << SHARD_BITS)
        keys, bounds = dedup.partition(keys, self._plan.partitions)
        for name, array in (("hashes", hashes), ("offsets", offsets), ("keys", keys)):
            _save(self._plan, f"{_SIGNATURES}-{name}", self._shard, array)
        path = self._plan.file(_SIGNATURES, self._shard, "json")
        replace_file(path, lambda partial: partial.write_text(json.dumps({"bounds": bounds.tolist()})))


def near_candidates(plan: Plan, partition: int) -> None:
    """Write the pairs of documents that have a key of the partition in common."""
    parts = [np.empty(0, dedup.KEY)]
    for shard in _shards(plan):
        start, end = json.loads(plan.file(_SIGNATURES, shard, "json").read_text())["bounds"][partition:][:2]
        parts.append(_load(plan, f"{_SIGNATURES}-keys", shard)[start:end])
    keys = np.concatenate(parts)
    hashed = np.stack([keys["high"], keys["low"]], axis=1)
    _finish(plan, _CANDIDATES, partition, candidate_pairs(hashed, keys["position"].astype(np.int64)))


def near_confirm(plan: Plan, shard: int) -> None:
    """Write the candidates whose later document lies in the shard and that really are similar."""
    threshold = plan.recipes[plan.shards[shard].source].near_similarity
    pairs = np.concatenate([_of_shard(plan, _CANDIDATES, part, shard) for part in range(plan.partitions)])
    pairs = np.unique(pairs, axis=0).reshape(-1, 2)
    later_sets = _sets(plan, shard)
    confirmed = [np.empty((0, 2), np.int64)]
    for earlier_shard in np.unique(pairs[:, 0] >> SHARD_BITS).tolist():
        chosen = pairs[pairs[:, 0] >> SHARD_BITS == earlier_shard]
        earlier_sets = later_sets if earlier_shard == shard else _sets(plan, earlier_shard)
        confirmed.append(chosen[are_similar(earlier_sets, later_sets, chosen & IN_SHARD, threshold)])
    _finish(plan, _CONFIRMED, shard, np.concatenate(confirmed))


def near_decide(plan: Plan, number: int) -> None:
    """Decide for all shards which documents go, and write removed documents and survivors per shard."""
    pairs = np.concatenate([_load(plan, _CONFIRMED, shard) for shard in _shards(plan)])
    removed = choose_survivors(pairs)
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


def _sets(plan: Plan, shard: int) -> ShingleSets:
    return ShingleSets(
        _load(plan, f"{_SIGNATURES}-hashes", shard), np.array(_load(plan, f"{_SIGNATURES}-offsets", shard))
    )


def _of_shard(plan: Plan, task: str, partition: int, shard: int) -> np.ndarray:
    """Return a partition's pairs whose later document lies in the shard."""
    pairs = _load(plan, task, partition)
    return np.array(pairs[pairs[:, 1] >> SHARD_BITS == shard])


def _finish(plan: Plan, task: str, number: int, pairs: np.ndarray) -> None:
    """Write a task's pairs, and last the record that it is done."""
    _save(plan, task, number, pairs)
    replace_file(plan.file(task, number, "json"), lambda path: path.write_text("{}"))


def _save(plan: Plan, name: str, number: int, array: np.ndarray) -> None:
    replace_file(plan.file(name, number, "npy"), lambda path: save_array(path, array))


def _load(plan: Plan, name: str, number: int) -> np.ndarray:
    return np.load(plan.file(name, number, "npy"), mmap_mode="r")
