"""Passes over the shards of a corpus, and how their tasks run on this machine.

    hash_documents     keys of the raw documents
    filter_characters  remove copies, filter characters; keys of sentence runs
    filter_sentences   remove repeated runs, short sentences and other languages; keys of what remains
    near_*             find near duplicates (`near_passes`)
    finish             remove the last copies and near duplicates, and write Parquet

Between two passes the keys are searched by partition. Each task is a function of the plan and a number, so
any machine that sees the folder can do it, in any order, once or twice.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pyarrow as pa

from openba.data.clean import dedup, edit_matrix, progress, shards
from openba.data.clean.batch import Batch
from openba.data.clean.near_passes import RULE as NEAR_RULE
from openba.data.clean.near_passes import (
    Signatures,
    near_candidates,
    near_confirm,
    near_decide,
    near_duplicates_of_shard,
)
from openba.data.clean.shards import DocumentNames, Plan, TaskOutput, TaskRecord
from openba.data.clean.stages import (
    DOCUMENT_DEDUP,
    DOCUMENT_DEDUP_AGAIN,
    NEAR_DEDUP,
    PARAGRAPH_DEDUP,
    stage_names,
    stages_after_paragraph_dedup,
    stages_before_paragraph_dedup,
)
from openba.data.schema import SCHEMA, write_documents
from openba.durable import replace_file
from openba.errors import UserError
from openba.recipes.clean import CleanRecipe

Task = Callable[[Plan, int], None]
Mapper = Callable[[Task, Plan, Sequence[int]], None]
"""Runs a task for each number: in this process, in several, or on a cluster."""
ATTEMPTS = 3
"""How often a task is started whose process is killed."""
SHARD_PASSES = ("hash_documents", "filter_characters", "filter_sentences", "near_confirm", "finish")


def run(plan: Plan, mapper: Mapper) -> None:
    """Run all passes; tasks that are done are skipped."""
    deduplicated = [shard.number for shard in plan.shards if plan.recipes[shard.source].document_dedup]
    filtered = [shard.number for shard in plan.shards if not _only_deduplicates(plan.recipes[shard.source])]
    compared = [shard.number for shard in plan.shards if plan.recipes[shard.source].near_dedup]
    partitions = range(plan.partitions)
    order: list[tuple[str, Task, Sequence[int]]] = [
        ("hash_documents", hash_documents, deduplicated),
        ("copies-hash_documents", search_hash_documents, partitions),
        ("filter_characters", filter_characters, filtered),
        ("copies-filter_characters", search_filter_characters, partitions),
        ("filter_sentences", filter_sentences, filtered),
        ("copies-filter_sentences", search_filter_sentences, partitions),
        ("near_candidates", near_candidates, partitions if compared else ()),
        ("near_confirm", near_confirm, compared),
        ("near_decide", near_decide, range(1) if compared else ()),
        ("finish", finish, [shard.number for shard in plan.shards]),
    ]
    remaining = {
        name: [task_number for task_number in task_numbers if plan.record(name, task_number) is None]
        for name, _, task_numbers in order
    }
    progress.begin(plan, {name: (len(task_numbers), len(remaining[name])) for name, _, task_numbers in order})
    for name, task, _ in order:
        if remaining[name]:
            mapper(task, plan, remaining[name])


def _only_deduplicates(clean_recipe: CleanRecipe) -> bool:
    """Return whether documents are only compared as they are; then `finish` does all after the search."""
    return stage_names(clean_recipe) == [DOCUMENT_DEDUP]


def hash_documents(plan: Plan, shard_number: int) -> None:
    """Write the keys of a shard's raw documents."""
    shard = plan.shards[shard_number]
    task_output = TaskOutput(plan, "hash_documents", shard)
    all_valid = True
    for clean_batch in _raw_batches(plan, shard_number, task_output):
        all_valid &= not clean_batch.removed
        _add_document_keys(task_output, clean_batch.columns)
    task_output.write(TaskRecord(all_valid=all_valid))


def filter_characters(plan: Plan, shard_number: int) -> None:
    """Remove copies, run the filters before the paragraph deduplication, and write keys of sentence runs."""
    shard = plan.shards[shard_number]
    clean_recipe = plan.recipes[shard.source]
    task_output = TaskOutput(plan, "filter_characters", shard)
    stages = stages_before_paragraph_dedup(clean_recipe)
    shard_copies = _Copies(plan, "hash_documents", shard_number) if clean_recipe.document_dedup else None
    cleaned = []
    for batch in _raw_batches(plan, shard_number, task_output, is_valid=_all_valid(plan, shard_number)):
        if shard_copies:
            shard_copies.remove_documents(batch, DOCUMENT_DEDUP)
        batch.run(stages)
        if clean_recipe.paragraph_dedup:
            windows = _windows(batch, clean_recipe)
            task_output.add_keys(
                hashes=windows.keys(),
                positions=windows.spans[:, 0],
                ids=batch.columns["id"],
                first_positions=windows.first_sentences[:-1],
                position_count=len(windows.sentence_ends),
            )
        task_output.add(batch)
        cleaned.append(batch.documents())
    _write_documents(task_output, cleaned, TaskRecord(unreadable=task_output.unreadable))


def filter_sentences(plan: Plan, shard_number: int) -> None:
    """Remove repeated runs, run the filters after the paragraph deduplication, and write document keys."""
    shard = plan.shards[shard_number]
    clean_recipe = plan.recipes[shard.source]
    task_output = TaskOutput(plan, "filter_sentences", shard)
    stages = stages_after_paragraph_dedup(clean_recipe)
    needs_names = clean_recipe.near_dedup or DOCUMENT_DEDUP_AGAIN in stage_names(clean_recipe)
    signatures = Signatures(plan, shard_number, clean_recipe.near_units) if clean_recipe.near_dedup else None
    shard_copies = _Copies(plan, "filter_characters", shard_number) if clean_recipe.paragraph_dedup else None
    cleaned = []
    for documents in shards.read_pieces(plan.file("filter_characters", shard_number, "arrow")):
        batch = Batch(shard.source, documents, task_output.examples, is_valid_utf8=True)
        if shard_copies:
            shard_copies.remove_sentences(batch, _windows(batch, clean_recipe))
        batch.run(stages)
        task_output.add(batch)
        cleaned.append(batch.documents())
        if needs_names:
            _add_document_keys(task_output, cleaned[-1])
        if signatures:
            signatures.add(batch.texts)
    if signatures:
        signatures.write()
    _write_documents(task_output, cleaned, TaskRecord())


def finish(plan: Plan, shard_number: int) -> None:
    """Remove the last copies and write the shard's documents as Parquet."""
    task_output = TaskOutput(plan, "finish", plan.shards[shard_number])
    document_count = 0

    def write(path: Path) -> None:
        nonlocal document_count
        document_count, _ = write_documents(path, _final_batches(plan, shard_number, task_output))

    replace_file(plan.file("finish", shard_number, "parquet"), write)
    task_output.write(TaskRecord(unreadable=task_output.unreadable, documents=document_count))


def _final_batches(plan: Plan, shard_number: int, task_output: TaskOutput) -> Iterator[pa.RecordBatch]:
    source = plan.shards[shard_number].source
    clean_recipe = plan.recipes[source]
    shard_copies = None
    stage = DOCUMENT_DEDUP_AGAIN
    batches: Iterator[Batch]
    if _only_deduplicates(clean_recipe):
        stage = DOCUMENT_DEDUP
        shard_copies = _Copies(plan, "hash_documents", shard_number)
        batches = _raw_batches(plan, shard_number, task_output, is_valid=_all_valid(plan, shard_number))
    else:
        if DOCUMENT_DEDUP_AGAIN in stage_names(clean_recipe):
            shard_copies = _Copies(plan, "filter_sentences", shard_number)
        pieces = shards.read_pieces(plan.file("filter_sentences", shard_number, "arrow"))
        batches = (Batch(source, piece, task_output.examples, is_valid_utf8=True) for piece in pieces)
    near_copies = _NearCopies(plan, shard_number) if clean_recipe.near_dedup else None
    for batch in batches:
        document_count = batch.row_count
        copied_rows = shard_copies.remove_documents(batch, stage) if shard_copies else np.empty(0, np.int64)
        if near_copies:
            near_copies.remove_documents(batch, document_count, copied_rows)
        if shard_copies or near_copies:
            task_output.add(batch)
        yield batch.documents()


class _Copies:
    """Copies among a shard's keys, applied to its batches in order."""

    def __init__(self, plan: Plan, task: str, shard_number: int) -> None:
        self._keys, self._first_positions = shards.copies_of_shard(plan, task, shard_number)
        self._document_names = DocumentNames(plan, task)
        self._documents = self._document_names.documents(self._first_positions)
        self._names = self._document_names.names(self._documents)
        self._key_count = 0

    def _next(self, key_count: int) -> tuple[np.ndarray, slice]:
        """Return which of the next batch's keys are copies, and the slice of this shard's copies."""
        start, end = np.searchsorted(self._keys, [self._key_count, self._key_count + key_count])
        keys_in_batch = self._keys[start:end] - self._key_count
        self._key_count += key_count
        return keys_in_batch, slice(start, end)

    def remove_documents(self, batch: Batch, stage: str) -> np.ndarray:
        """Remove copies; return the rows that they had, int64 `[removed]`."""
        rows, shard_copies = self._next(batch.row_count)
        batch.remove_documents(stage, rows, dedup.DOCUMENT_RULE, self._names[shard_copies])
        return rows

    def remove_sentences(self, batch: Batch, windows: dedup.Windows) -> None:
        window_numbers, shard_copies = self._next(len(windows.spans))
        edits = windows.edits(
            window_numbers, self._first_positions[shard_copies], self._documents[shard_copies]
        )
        survivors = self._document_names.names(edits[:, edit_matrix.SURVIVOR])
        batch.apply(PARAGRAPH_DEDUP, edits, dedup.SENTENCE_RULES, survivors)


class _NearCopies:
    """Near duplicates among a shard's documents, removed from its batches in order."""

    def __init__(self, plan: Plan, shard_number: int) -> None:
        self._documents, survivors = near_duplicates_of_shard(plan, shard_number)
        self._names = DocumentNames(plan, "filter_sentences").names(survivors)
        self._document_count = 0

    def remove_documents(self, batch: Batch, document_count: int, copied_rows: np.ndarray) -> None:
        """Remove near duplicates.

        Args:
            batch: documents from which exact copies are removed already.
            document_count: documents of the batch before that.
            copied_rows: rows that the copies had.
        """
        limits = [self._document_count, self._document_count + document_count]
        start, end = np.searchsorted(self._documents, limits)
        rows = self._documents[start:end] - self._document_count
        self._document_count += document_count
        is_present = ~np.isin(rows, copied_rows)
        remaining_rows = np.delete(np.arange(document_count), copied_rows)
        present_rows = np.searchsorted(remaining_rows, rows[is_present])
        names = self._names.slice(start, end - start).filter(pa.array(is_present))
        batch.remove_documents(NEAR_DEDUP, present_rows, NEAR_RULE, names)


def _raw_batches(
    plan: Plan, shard_number: int, task_output: TaskOutput, is_valid: bool = False
) -> Iterator[Batch]:
    """Yield a shard's documents as the source gave them, without blank ones and texts that are not UTF-8."""
    shard = plan.shards[shard_number]
    first_stage = stage_names(plan.recipes[shard.source])[0]
    for documents in shards.read_shard(shard, task_output.unreadable.append):
        batch = Batch(shard.source, documents, task_output.examples, is_valid)
        if not is_valid:
            batch.remove_blank(first_stage)
        yield batch


def _all_valid(plan: Plan, shard_number: int) -> bool:
    """Return whether `hash_documents` found all texts valid; validating again costs a tenth of a pass."""
    return bool((plan.record("hash_documents", shard_number) or {}).get("all_valid"))


def _add_document_keys(task_output: TaskOutput, documents: pa.RecordBatch) -> None:
    rows = np.arange(len(documents))
    hashes = dedup.document_keys(documents["text"])
    task_output.add_keys(hashes, rows, documents["id"], rows, len(documents))


def _windows(batch: Batch, clean_recipe: CleanRecipe) -> dedup.Windows:
    return dedup.Windows(
        batch.texts,
        clean_recipe.max_sentences,
        clean_recipe.min_repeat_characters,
        clean_recipe.literal_sentences,
    )


def _write_documents(task_output: TaskOutput, batches: list[pa.RecordBatch], record: TaskRecord) -> None:
    path = task_output.plan.file(task_output.task, task_output.shard.number, "arrow")
    replace_file(path, lambda partial: shards.write_arrow(partial, SCHEMA, batches))
    task_output.write(record)


def search_hash_documents(plan: Plan, partition: int) -> None:
    """Find copies among the raw documents of a partition."""
    shards.find_copies(plan, "hash_documents", partition)


def search_filter_characters(plan: Plan, partition: int) -> None:
    """Find repeated sentence runs of a partition."""
    shards.find_copies(plan, "filter_characters", partition)


def search_filter_sentences(plan: Plan, partition: int) -> None:
    """Find copies among the cleaned documents of a partition."""
    shards.find_copies(plan, "filter_sentences", partition)


def in_this_process(task: Task, plan: Plan, task_numbers: Sequence[int]) -> None:
    """Mapper: run one after the other in this process."""
    for task_number in task_numbers:
        task(plan, task_number)


class Processes:
    """Mapper: run in several processes, which live through all passes, as starting them takes seconds.

    Tasks whose process is killed are tried again.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __call__(self, task: Task, plan: Plan, task_numbers: Sequence[int]) -> None:
        """Run a task for each number.

        Raises:
            UserError: a process was killed at every attempt. Otherwise what a task raised.
        """
        remaining = list(task_numbers)
        for _ in range(ATTEMPTS):
            # Spawned, not forked: Arrow and numba have threads that a fork would leave in an undefined state.
            context = multiprocessing.get_context("spawn")
            self._pool = self._pool or ProcessPoolExecutor(self._workers, context)
            futures = {task_number: self._pool.submit(task, plan, task_number) for task_number in remaining}
            wait(futures.values(), return_when=FIRST_EXCEPTION)
            if any(future.exception() for future in futures.values() if future.done()):
                self.__exit__()  # cancels tasks that have not started, waits for the others
            remaining = [task_number for task_number, future in futures.items() if not _is_finished(future)]
            if not remaining:
                return
        raise UserError(killed(plan, task, remaining))


def _is_finished(future: Future[None]) -> bool:
    """Return False if the process died or the task was not started; raise what the task raised."""
    try:
        future.result()
    except (BrokenProcessPool, CancelledError):
        return False
    return True


def killed(plan: Plan, task: Task, task_numbers: Sequence[int]) -> str:
    """Return the line for a user whose worker processes are killed, with the first tasks not done."""
    name = getattr(task, "__name__", "").replace("search_", "copies-")
    remaining = [task_number for task_number in task_numbers if plan.record(name, task_number) is None]
    if name in SHARD_PASSES:
        part = "shard"
        shown = ", ".join(
            f"{plan.shards[task_number].source} ({task_number})" for task_number in remaining[:3]
        )
    else:
        part = "partition"
        shown = ", ".join(map(str, remaining[:3]))
    return f"cleaning: a process was killed {ATTEMPTS} times at {part} {shown}; is there enough memory?"


def cpu_count() -> int:
    """Return the number of this machine's CPU cores."""
    return os.cpu_count() or 1
