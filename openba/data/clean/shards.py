"""Cleaning in shards: each task reads its shard, writes its files whole or not at all, and is done once.

Owns the files between the passes: their names, how they are written, keys and copies by partition, and the
way from a place (shard << 32 | position) back to a document. The filters are `stages`'s, the order of the
passes is `corpus`'s.

A task's files are written beside their place, synced and renamed; its JSON file comes last and says that it
is done. So a killed process leaves nothing that is taken for whole, and a run that goes on does what is
missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openba.data.clean import dedup, stages
from openba.data.clean.stages import REMOVED_SCHEMA, Batch
from openba.data.schema import SCHEMA
from openba.recipes.data import CleanRecipe

PIECE = 2**21  # bytes of text that go through the stages at a time: what they touch stays in the cache
_ROWS = 1024
_READ = pa.schema([field for field in SCHEMA if field.name != "extra"])
"""What passes read of a source, each the same: a column that only one reads could be broken for it alone, and
places would shift."""


class Shard(NamedTuple):
    """Consecutive row groups of a source; its number is its place in the order of all documents."""

    number: int
    source: str
    path: Path
    groups: tuple[int, ...]


class Plan(NamedTuple):
    """What all tasks of a cleaning share."""

    folder: Path
    shards: tuple[Shard, ...]
    recipes: dict[str, CleanRecipe]
    partitions: int
    bytes: int = 0
    """Uncompressed, of all shards."""

    def file(self, task: str, number: int, suffix: str) -> Path:
        """Where a task's file lies."""
        return self.folder / f"{task}-{number:05d}.{suffix}"

    def done(self, task: str, number: int) -> dict[str, Any] | None:
        """What a task left, None if it is not done."""
        try:
            return json.loads(self.file(task, number, "json").read_text())
        except (FileNotFoundError, ValueError):
            return None


class Outcome:
    """Gathers what a task's batches did and writes it."""

    def __init__(self, plan: Plan, task: str, shard: Shard) -> None:
        self.plan, self.task, self.shard = plan, task, shard
        self.counts: dict[str, list[int]] = {}
        self.examples: dict[str, list[dict[str, str]]] = {}
        self.removed: list[pa.RecordBatch] = []
        self.unreadable: list[str] = []
        """Row groups that could not be read, and why."""
        self._keys: list[np.ndarray] = []
        self._ids: list[pa.Array] = []
        self._firsts: list[np.ndarray] = []
        self._places = self._records = 0

    def add(self, work: Batch) -> None:
        """Take over a batch's counts, removals and examples."""
        for stage, numbers in work.counts.items():
            known = self.counts.get(stage, [0, 0, 0, 0])
            self.counts[stage] = [a + b for a, b in zip(known, numbers, strict=True)]
        for stage, found in work.examples.items():
            stages.add_examples(self.examples.setdefault(stage, []), found)
        self.removed += work.removed

    def add_keys(
        self, hashes: np.ndarray, spoken_for: np.ndarray, ids: pa.Array, firsts: np.ndarray, n: int
    ) -> None:
        """Keys of a batch.

        Args: `spoken_for` position in the batch per key; `firsts` first position of each document; `n`
        positions in all.
        """
        keys = np.empty(len(hashes), dedup.KEY)
        keys["high"], keys["low"] = hashes[:, 0], hashes[:, 1]
        above = self.shard.number << 32
        keys["place"] = spoken_for + (above + self._places)
        keys["record"] = np.arange(above + self._records, above + self._records + len(keys), dtype=np.uint64)
        self._keys.append(keys)
        self._ids.append(ids)
        self._firsts.append(firsts + self._places)
        self._places += n
        self._records += len(keys)

    def write(self, **more: Any) -> None:
        """Write keys, names and removals, and last the file that says the task is done."""

        def name(suffix: str) -> Path:
            return self.plan.file(self.task, self.shard.number, suffix)

        if self._ids:
            keys, bounds = dedup.partition(np.concatenate(self._keys), self.plan.partitions)
            whole(name("keys.npy"), lambda path: _save(path, keys))
            table = pa.table(
                {"id": pa.chunked_array(self._ids, pa.string()), "first": np.concatenate(self._firsts)}
            )
            whole(name("ids.arrow"), lambda path: write_arrow(path, table.schema, table.to_batches()))
            more["bounds"] = bounds.tolist()
        whole(name("removed.arrow"), lambda path: write_arrow(path, REMOVED_SCHEMA, self.removed))
        left = {"counts": self.counts, "examples": self.examples, **more}
        whole(name("json"), lambda path: path.write_text(json.dumps(left, ensure_ascii=False)))


class Places:
    """From places to documents, by the names that a pass of key-giving tasks wrote."""

    def __init__(self, plan: Plan, task: str) -> None:
        self._plan, self._task = plan, task
        self._known: dict[int, tuple[pa.ChunkedArray, np.ndarray]] = {}

    @cached_property
    def _sources(self) -> dict[int, str]:
        return {shard.number: shard.source for shard in self._plan.shards}

    def documents(self, places: np.ndarray) -> np.ndarray:
        """Places of sentences -> places of their documents."""
        found = np.empty(len(places), np.int64)
        for shard in np.unique(places >> 32).tolist():
            mine = places >> 32 == shard
            firsts = self._names(shard)[1]
            row = np.searchsorted(firsts, places[mine] & 0xFFFFFFFF, side="right") - 1
            found[mine] = (shard << 32) + row
        return found

    def names(self, documents: np.ndarray) -> pa.Array:
        """Places of documents -> `source/id`."""
        found = np.empty(len(documents), object)
        for shard in np.unique(documents >> 32).tolist():
            mine = documents >> 32 == shard
            ids = self._names(shard)[0].take(pa.array(documents[mine] & 0xFFFFFFFF)).to_pylist()
            found[mine] = [f"{self._sources[shard]}/{identifier}" for identifier in ids]
        return pa.array(found, pa.string())

    def _names(self, shard: int) -> tuple[pa.ChunkedArray, np.ndarray]:
        if shard not in self._known:
            table = read_arrow(self._plan.file(self._task, shard, "ids.arrow")).read_all()
            self._known = {shard: (table["id"], table["first"].to_numpy())}  # one at a time: memory
        return self._known[shard]


def find_copies(plan: Plan, task: str, number: int) -> None:
    """Task: search one partition of the keys that the tasks of a pass gave."""
    parts = []
    for shard in plan.shards:
        left = plan.done(task, shard.number)
        if left and "bounds" in left:
            start, end = left["bounds"][number : number + 2]
            parts.append(np.load(plan.file(task, shard.number, "keys.npy"), mmap_mode="r")[start:end])
    copies = dedup.find_copies(np.concatenate(parts)) if parts else np.empty(0, dedup.COPY)
    whole(plan.file(f"copies-{task}", number, "npy"), lambda path: _save(path, copies))
    whole(plan.file(f"copies-{task}", number, "json"), lambda path: path.write_text("{}"))


def copies_of(plan: Plan, task: str, shard: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions among the shard's keys, places of the first) of its copies, in order."""
    found = []
    for number in range(plan.partitions):
        copies = np.load(plan.file(f"copies-{task}", number, "npy"), mmap_mode="r")
        limits = np.array([shard << 32, (shard + 1) << 32], np.uint64)
        start, end = np.searchsorted(copies["record"], limits)
        found.append(np.array(copies[start:end]))
    mine = np.concatenate(found)
    mine = mine[np.argsort(mine["record"])]
    return (mine["record"] & np.uint64(0xFFFFFFFF)).astype(np.int64), mine["first"].astype(np.int64)


def whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place, sync it and rename it.

    The name beside it is no other process's, on any machine: a task that was thought lost may still write.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_arrow(path: Path, schema: pa.Schema, batches: Any) -> None:
    """Write an Arrow IPC file."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_arrow(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Open an Arrow IPC file in place."""
    return pa.ipc.open_file(pa.memory_map(str(path)))


def read(path: Path) -> Iterator[pa.RecordBatch]:
    """Batches of an Arrow IPC file, in pieces."""
    reader = read_arrow(path)
    for number in range(reader.num_record_batches):
        yield from stages.pieces(reader.get_batch(number), PIECE)


def read_shard(shard: Shard, unreadable: Callable[[str], None]) -> Iterator[pa.RecordBatch]:
    """Documents of a shard in pieces, without `extra`.

    A row group that cannot be read is told and passed over. Small ones come in one piece: in batches of 1,024
    short texts document dedup took a tenth longer. One thread: a process per core does the rest, and
    handing columns to threads costs a fifth of the reading.
    """
    file = pq.ParquetFile(shard.path, page_checksum_verification=True)
    for group in shard.groups:
        try:
            small = _small(file, group)
            rows = file.metadata.row_group(group).num_rows if small else _ROWS
            read = file.iter_batches(max(1, rows), [group], columns=_READ.names, use_threads=False)
            for batch in list(read) if small else read:
                yield from stages.pieces(batch.select(_READ.names).cast(_READ), PIECE)
        except (OSError, pa.ArrowException, KeyError) as error:
            unreadable(f"row group {group}: {' '.join(str(error).split())[:120]}")


def _small(file: pq.ParquetFile, group: int) -> bool:
    """Whether a row group is read whole before use, so that a broken one gives nothing."""
    return file.metadata.row_group(group).total_byte_size <= 64 * 2**20


def _save(path: Path, array: np.ndarray) -> None:
    """As `np.save`, which does not say why it wrote less than asked when the disk is full."""
    with path.open("wb") as file:
        form = np.lib.format
        form.write_array_header_1_0(file, form.header_data_from_array_1_0(array))
        if array.size:
            file.write(np.ascontiguousarray(array).data)
