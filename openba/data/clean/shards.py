"""Files of the cleaning's tasks: the plan of shards, what a task writes, and the record that it is done.

A task's files are written under a temporary name, synced and renamed; its JSON file comes last and marks the
task as done. A killed process therefore leaves nothing that counts as complete, and a run that continues does
only what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openba.data.clean import dedup
from openba.data.clean.batch import REMOVED_SCHEMA, Batch, StageCounts, add_counts, split_batch
from openba.data.clean.examples import Example, add_examples
from openba.data.schema import SCHEMA
from openba.durable import replace_file
from openba.recipes.clean import CleanRecipe

PIECE_BYTES = 2**21
"""Text that passes the stages at a time, small enough for the processor's cache."""
# A position is shard << 32 | number within the shard.
SHARD_BITS = 32
IN_SHARD = 2**SHARD_BITS - 1
_ROWS = 1024
_LARGEST_READ_AT_ONCE = 64 * 2**20  # bytes of a row group
# Columns that every pass reads. A broken column that only one pass reads would shift the positions.
_READ_SCHEMA = pa.schema([field for field in SCHEMA if field.name != "extra"])


class Shard(NamedTuple):
    """Consecutive row groups of a source; shards are numbered in the order of all documents."""

    number: int
    source: str
    path: Path
    row_groups: tuple[int, ...]


class TaskRecord(TypedDict, total=False):
    """JSON file of a finished task; which fields it has depends on the task."""

    counts: dict[str, StageCounts]
    examples: dict[str, list[Example]]
    unreadable: list[str]
    """Row groups that could not be read, with the reason."""
    bounds: list[int]
    """Bounds of the partitions within the shard's keys."""
    all_valid: bool
    """Every text is UTF-8 and none is blank."""
    documents: int


class Plan(NamedTuple):
    """Plan that all tasks of a cleaning share."""

    folder: Path
    shards: tuple[Shard, ...]
    recipes: dict[str, CleanRecipe]
    partitions: int
    bytes: int = 0
    """Uncompressed size of all shards."""

    def file(self, task_name: str, task_number: int, suffix: str) -> Path:
        """Return the path of a task's file."""
        return self.folder / f"{task_name}-{task_number:05d}.{suffix}"

    def record(self, task_name: str, task_number: int) -> TaskRecord | None:
        """Return the record of a finished task, None if it is not done."""
        try:
            return json.loads(self.file(task_name, task_number, "json").read_text())
        except (FileNotFoundError, ValueError):
            return None


class TaskOutput:
    """Collects what a task's batches give and writes it."""

    def __init__(self, plan: Plan, task_name: str, shard: Shard) -> None:
        self.plan = plan
        self.task = task_name
        self.shard = shard
        self.counts: dict[str, StageCounts] = {}
        self.examples: dict[str, list[Example]] = {}
        self.removed: list[pa.RecordBatch] = []
        self.unreadable: list[str] = []
        self._keys: list[np.ndarray] = []
        self._ids: list[pa.Array] = []
        self._first_positions: list[np.ndarray] = []
        self._position_count = 0
        self._key_count = 0

    def add(self, batch: Batch) -> None:
        """Take over a batch's counts, removals and examples."""
        add_counts(self.counts, batch.counts)
        for stage, examples in batch.examples.items():
            add_examples(self.examples.setdefault(stage, []), examples)
        self.removed += batch.removed

    def add_keys(
        self,
        hashes: np.ndarray,
        positions: np.ndarray,
        ids: pa.Array,
        first_positions: np.ndarray,
        position_count: int,
    ) -> None:
        """Add the keys of a batch.

        Args:
            hashes: uint64 `[keys, 2]`.
            positions: of each key within the batch, int64 `[keys]`.
            ids: document ids, Arrow strings `[documents]`.
            first_positions: of each document within the batch, int64 `[documents]`.
            position_count: positions in the batch.
        """
        keys = np.empty(len(hashes), dedup.KEY)
        shard_start = self.shard.number << SHARD_BITS
        first_key = shard_start + self._key_count
        keys["high"] = hashes[:, 0]
        keys["low"] = hashes[:, 1]
        keys["position"] = positions + (shard_start + self._position_count)
        keys["record"] = np.arange(first_key, first_key + len(keys), dtype=np.uint64)
        self._keys.append(keys)
        self._ids.append(ids)
        self._first_positions.append(first_positions + self._position_count)
        self._position_count += position_count
        self._key_count += len(keys)

    def write(self, record: TaskRecord) -> None:
        """Write keys, ids and removals, and last the record with its counts and examples filled in."""

        def path_of(suffix: str) -> Path:
            return self.plan.file(self.task, self.shard.number, suffix)

        if self._ids:
            keys, bounds = dedup.partition(np.concatenate(self._keys), self.plan.partitions)
            replace_file(path_of("keys.npy"), lambda path: save_array(path, keys))
            ids = pa.chunked_array(self._ids, pa.string())
            table = pa.table({"id": ids, "first": np.concatenate(self._first_positions)})
            replace_file(
                path_of("ids.arrow"), lambda path: write_arrow(path, table.schema, table.to_batches())
            )
            record["bounds"] = bounds.tolist()
        # The JSON file comes last: it marks the task as done.
        replace_file(path_of("removed.arrow"), lambda path: write_arrow(path, REMOVED_SCHEMA, self.removed))
        record["counts"] = self.counts
        record["examples"] = self.examples
        text = json.dumps(record, ensure_ascii=False)
        replace_file(path_of("json"), lambda path: path.write_text(text))


class DocumentNames:
    """Maps positions to documents, from the ids that the tasks of a pass wrote with their keys."""

    def __init__(self, plan: Plan, task_name: str) -> None:
        self._plan = plan
        self._task = task_name
        self._ids_of_shard: dict[int, tuple[pa.ChunkedArray, np.ndarray]] = {}

    @cached_property
    def _sources(self) -> dict[int, str]:
        return {shard.number: shard.source for shard in self._plan.shards}

    def documents(self, positions: np.ndarray) -> np.ndarray:
        """Return the positions of the documents in which positions of sentences lie, int64."""
        documents = np.empty(len(positions), np.int64)
        for shard in np.unique(positions >> SHARD_BITS).tolist():
            in_shard = positions >> SHARD_BITS == shard
            first_positions = self._ids(shard)[1]
            following = np.searchsorted(first_positions, positions[in_shard] & IN_SHARD, side="right")
            documents[in_shard] = (shard << SHARD_BITS) + following - 1
        return documents

    def names(self, documents: np.ndarray) -> pa.Array:
        """Return `source/id` of documents given by position."""
        names = np.empty(len(documents), object)
        for shard in np.unique(documents >> SHARD_BITS).tolist():
            in_shard = documents >> SHARD_BITS == shard
            ids = self._ids(shard)[0].take(pa.array(documents[in_shard] & IN_SHARD)).to_pylist()
            names[in_shard] = [f"{self._sources[shard]}/{identifier}" for identifier in ids]
        return pa.array(names, pa.string())

    def _ids(self, shard: int) -> tuple[pa.ChunkedArray, np.ndarray]:
        """Return ids and first positions of a shard's documents."""
        if shard not in self._ids_of_shard:
            table = read_arrow(self._plan.file(self._task, shard, "ids.arrow")).read_all()
            # Only the last shard is kept, to bound memory.
            self._ids_of_shard = {shard: (table["id"], table["first"].to_numpy())}
        return self._ids_of_shard[shard]


def find_copies(plan: Plan, task_name: str, partition: int) -> None:
    """Search one partition of the keys of a pass for copies, and write them."""
    parts = []
    for shard in plan.shards:
        record = plan.record(task_name, shard.number)
        if record and "bounds" in record:
            start, end = record["bounds"][partition : partition + 2]
            keys = np.load(plan.file(task_name, shard.number, "keys.npy"), mmap_mode="r")
            parts.append(keys[start:end])
    copies = dedup.find_copies(np.concatenate(parts)) if parts else np.empty(0, dedup.COPY)
    replace_file(plan.file(f"copies-{task_name}", partition, "npy"), lambda path: save_array(path, copies))
    replace_file(plan.file(f"copies-{task_name}", partition, "json"), lambda path: path.write_text("{}"))


def copies_of_shard(plan: Plan, task_name: str, shard: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of a shard's keys are copies, and the position of the first occurrence of each.

    Returns:
        Numbers of the keys within the shard, ascending, and positions, both int64 `[copies]`.
    """
    parts = []
    limits = np.array([shard << SHARD_BITS, (shard + 1) << SHARD_BITS], np.uint64)
    for partition in range(plan.partitions):
        copies = np.load(plan.file(f"copies-{task_name}", partition, "npy"), mmap_mode="r")
        start, end = np.searchsorted(copies["record"], limits)
        parts.append(np.array(copies[start:end]))
    copies = np.concatenate(parts)
    copies = copies[np.argsort(copies["record"])]
    return (copies["record"] & np.uint64(IN_SHARD)).astype(np.int64), copies["first"].astype(np.int64)


def write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write an Arrow IPC file."""
    with pa.OSFile(str(path), "wb") as arrow_file, pa.ipc.new_file(arrow_file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_arrow(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Open an Arrow IPC file by memory mapping."""
    return pa.ipc.open_file(pa.memory_map(str(path)))


def read_pieces(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the documents of an Arrow IPC file in pieces of some `PIECE_BYTES`."""
    reader = read_arrow(path)
    for batch_number in range(reader.num_record_batches):
        yield from split_batch(reader.get_batch(batch_number), PIECE_BYTES)


def read_shard(shard: Shard, report_unreadable: Callable[[str], None]) -> Iterator[pa.RecordBatch]:
    """Yield the documents of a shard in pieces, without `extra`.

    Row groups that cannot be read are reported and skipped.
    """
    parquet_file = pq.ParquetFile(shard.path, page_checksum_verification=True)
    for group in shard.row_groups:
        try:
            # Small row groups are read in one piece: in batches of 1,024 short texts document deduplication
            # took a tenth longer. It also keeps a broken one from giving some of its documents.
            is_small = parquet_file.metadata.row_group(group).total_byte_size <= _LARGEST_READ_AT_ONCE
            rows = parquet_file.metadata.row_group(group).num_rows if is_small else _ROWS
            # One thread: there is a process per core, and handing columns to threads costs a fifth of the
            # reading.
            batches = parquet_file.iter_batches(
                max(1, rows), [group], columns=_READ_SCHEMA.names, use_threads=False
            )
            for batch in list(batches) if is_small else batches:
                documents = batch.select(_READ_SCHEMA.names).cast(_READ_SCHEMA)
                yield from split_batch(documents, PIECE_BYTES)
        except (OSError, pa.ArrowException, KeyError) as error:
            report_unreadable(f"row group {group}: {' '.join(str(error).split())[:120]}")


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as `np.save` does, but with the system's error if the disk is full."""
    with path.open("wb") as array_file:
        array_format = np.lib.format
        array_format.write_array_header_1_0(array_file, array_format.header_data_from_array_1_0(array))
        if array.size:
            array_file.write(np.ascontiguousarray(array).data)
