"""The passes over the shards of a corpus, and how their tasks are run on this machine.

Owns what one task does to its shard and the order of the passes: `scan` gives keys of raw documents; `first`
takes copies out, filters characters and gives keys of sentence runs; `second` takes repeated runs out, drops
short sentences and other languages, and gives keys of what is left; `join` takes the last copies out and
writes Parquet. Between two passes the keys are searched by partition. Each task is a function of the
plan and a number, so any machine that sees the folder can do it, in any order, once or twice.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from openba.data.clean import columns, dedup, progress, shards, stages
from openba.data.clean.shards import Outcome, Places, Plan
from openba.data.clean.stages import DOCUMENT_DEDUP, DOCUMENT_DEDUP_AGAIN, PARAGRAPH_DEDUP, Batch
from openba.data.schema import SCHEMA, write_documents
from openba.errors import UserError
from openba.recipes.data import CleanRecipe

Task = Callable[[Plan, int], None]
Mapper = Callable[[Task, Plan, Sequence[int]], None]
"""Does a task for each number: in this process, in several, or on a cluster."""
ATTEMPTS = 3
"""How often a task is begun whose process dies."""


def run(plan: Plan, mapper: Mapper) -> None:
    """All passes; what is done already is not done again."""
    raw = [s.number for s in plan.shards if plan.recipes[s.source].document_dedup]
    looked_into = [s.number for s in plan.shards if not _copies_only(plan.recipes[s.source])]
    partitions = range(plan.partitions)
    order: list[tuple[str, Task, Sequence[int]]] = [
        ("scan", scan, raw),
        ("copies-scan", search_scan, partitions),
        ("first", first, looked_into),
        ("copies-first", search_first, partitions),
        ("second", second, looked_into),
        ("copies-second", search_second, partitions),
        ("join", join, [shard.number for shard in plan.shards]),
    ]
    left = [[n for n in numbers if plan.done(name, n) is None] for name, _, numbers in order]
    told = zip(order, left, strict=True)
    progress.begin(plan, {name: (len(numbers), len(to_do)) for (name, _, numbers), to_do in told})
    for (_, task, _), numbers in zip(order, left, strict=True):
        if numbers:
            mapper(task, plan, numbers)


def _copies_only(recipe: CleanRecipe) -> bool:
    """Whether nothing looks into a document: then `join` does all that is left after the search."""
    return stages.names(recipe) == [DOCUMENT_DEDUP]


def scan(plan: Plan, number: int) -> None:
    """Task: keys of a shard's documents as they came."""
    shard = plan.shards[number]
    recipe = plan.recipes[shard.source]
    out = Outcome(plan, "scan", shard)
    sound = True
    for work in _documents(plan, number, recipe, out):
        sound &= not work.removed
        _add_documents(out, work.rest)
    out.write(sound=sound)


def first(plan: Plan, number: int) -> None:
    """Task: copies out, the filters on characters, keys of sentence runs."""
    shard = plan.shards[number]
    recipe = plan.recipes[shard.source]
    out, batches = Outcome(plan, "first", shard), []
    found = _Copies(plan, "scan", number) if recipe.document_dedup else None
    for work in _documents(plan, number, recipe, out, checked=_is_sound(plan, number)):
        if found:
            found.remove_documents(work, DOCUMENT_DEDUP)
        work.run(stages.on_characters(recipe))
        if recipe.paragraph_dedup:
            windows = _windows(work, recipe)
            out.add_keys(
                windows.keys(), windows.spans[:, 0], work.rest["id"], windows.first[:-1], len(windows.ends)
            )
        out.add(work)
        batches.append(work.batch())
    _write(out, batches, unreadable=out.unreadable)


def second(plan: Plan, number: int) -> None:
    """Task: repeated runs out, short sentences and other languages out, keys of what is left."""
    shard = plan.shards[number]
    recipe = plan.recipes[shard.source]
    out, batches = Outcome(plan, "second", shard), []
    found = _Copies(plan, "first", number) if recipe.paragraph_dedup else None
    for batch in shards.read(plan.file("first", number, "arrow")):
        work = Batch(shard.source, batch, out.examples, checked=True)
        if found:
            found.remove_sentences(work, _windows(work, recipe))
        work.run(stages.on_documents(recipe))
        out.add(work)
        batches.append(work.batch())
        if DOCUMENT_DEDUP_AGAIN in stages.names(recipe):
            _add_documents(out, batches[-1])
    _write(out, batches)


def join(plan: Plan, number: int) -> None:
    """Task: the last copies out, the shard's documents as Parquet."""
    out = Outcome(plan, "join", plan.shards[number])
    documents = 0

    def write(path: Path) -> None:
        nonlocal documents
        documents, _ = write_documents(path, _last(plan, number, out))

    shards.whole(plan.file("join", number, "parquet"), write)
    out.write(unreadable=out.unreadable, documents=documents)


def _last(plan: Plan, number: int, out: Outcome) -> Iterator[pa.RecordBatch]:
    source = plan.shards[number].source
    recipe = plan.recipes[source]
    direct, again = _copies_only(recipe), DOCUMENT_DEDUP_AGAIN in stages.names(recipe)
    found = _Copies(plan, "scan" if direct else "second", number) if direct or again else None
    if direct:
        works = _documents(plan, number, recipe, out, checked=_is_sound(plan, number))
    else:
        batches = shards.read(plan.file("second", number, "arrow"))
        works = (Batch(source, batch, out.examples, checked=True) for batch in batches)
    for work in works:
        if found:
            found.remove_documents(work, DOCUMENT_DEDUP if direct else DOCUMENT_DEDUP_AGAIN)
            out.add(work)
        yield work.batch()


class _Copies:
    """A shard's copies, handed out batch by batch."""

    def __init__(self, plan: Plan, task: str, number: int) -> None:
        self._records, self._firsts = shards.copies_of(plan, task, number)
        self._places = Places(plan, task)
        self._documents = self._places.documents(self._firsts)
        self._names = self._places.names(self._documents)
        self._at = 0

    def _next(self, count: int) -> tuple[np.ndarray, slice]:
        """Positions in the batch of the copies among the next `count` keys."""
        start, end = np.searchsorted(self._records, [self._at, self._at + count])
        positions = self._records[start:end] - self._at
        self._at += count
        return positions, slice(start, end)

    def remove_documents(self, work: Batch, stage: str) -> None:
        rows, mine = self._next(work.rows)
        work.remove(stage, rows, "duplicate_document", self._names[mine])

    def remove_sentences(self, work: Batch, windows: dedup.Windows) -> None:
        numbers, mine = self._next(len(windows.spans))
        edits = windows.edits(numbers, self._firsts[mine], self._documents[mine])
        survivors = edits[:, columns.SURVIVOR]
        work.apply(PARAGRAPH_DEDUP, edits, self._places.names(survivors))


def _documents(
    plan: Plan, number: int, recipe: CleanRecipe, out: Outcome, checked: bool = False
) -> Iterator[Batch]:
    shard = plan.shards[number]
    order = stages.names(recipe)
    for batch in shards.read_shard(shard, out.unreadable.append):
        work = Batch(shard.source, batch, out.examples, checked)
        if not checked:
            work.drop_blank(order[0])
        yield work


def _is_sound(plan: Plan, number: int) -> bool:
    """Whether the scan found every text UTF-8 and none blank: looking again would cost a tenth of a pass."""
    return bool((plan.done("scan", number) or {}).get("sound"))


def _add_documents(out: Outcome, batch: pa.RecordBatch) -> None:
    rows = np.arange(len(batch))
    out.add_keys(dedup.document_keys(batch["text"]), rows, batch["id"], rows, len(batch))


def _windows(work: Batch, recipe: CleanRecipe) -> dedup.Windows:
    return dedup.Windows(
        work.texts, recipe.max_sentences, recipe.min_repeat_characters, recipe.literal_sentences
    )


def _write(out: Outcome, batches: list[pa.RecordBatch], **more: Any) -> None:
    path = out.plan.file(out.task, out.shard.number, "arrow")
    shards.whole(path, lambda partial: shards.write_arrow(partial, SCHEMA, batches))
    out.write(**more)


def search_scan(plan: Plan, number: int) -> None:
    """Task: copies among raw documents, by partition of keys."""
    shards.find_copies(plan, "scan", number)


def search_first(plan: Plan, number: int) -> None:
    """Task: repeated sentence runs, by partition of keys."""
    shards.find_copies(plan, "first", number)


def search_second(plan: Plan, number: int) -> None:
    """Task: copies among cleaned documents, by partition of keys."""
    shards.find_copies(plan, "second", number)


def here(task: Task, plan: Plan, numbers: Sequence[int]) -> None:
    """Mapper: one after the other in this process."""
    for number in numbers:
        task(plan, number)


class Processes:
    """Mapper: in so many processes, which live through all passes, as starting them takes seconds.

    A killed one costs what was being done, which is tried again.
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

    def __call__(self, task: Task, plan: Plan, numbers: Sequence[int]) -> None:
        """Raises: UserError: a process was killed at every attempt; otherwise what a task raised."""
        left = list(numbers)
        for _ in range(ATTEMPTS):
            context = multiprocessing.get_context("spawn")
            self._pool = self._pool or ProcessPoolExecutor(self._workers, context)
            futures = {number: self._pool.submit(task, plan, number) for number in left}
            wait(futures.values(), return_when=FIRST_EXCEPTION)
            if any(future.exception() for future in futures.values() if future.done()):
                self.__exit__()  # ends what is not begun, waits for what is
            left = [number for number, future in futures.items() if not _finished(future)]
            if not left:
                return
        raise UserError(killed(plan, task, left))


def _finished(future: Future[None]) -> bool:
    """False if its process died or it was not begun; raises what the task raised."""
    try:
        future.result()
    except (BrokenProcessPool, CancelledError):
        return False
    return True


def killed(plan: Plan, task: Task, numbers: Sequence[int]) -> str:
    """The line for a user whose workers die at this task; names what is not done yet."""
    name = getattr(task, "__name__", "").replace("search_", "copies-")
    left = [number for number in numbers if plan.done(name, number) is None]
    of_shards = name in ("scan", "first", "second", "join")
    told = ", ".join(f"{plan.shards[n].source} ({n})" if of_shards else str(n) for n in left[:3])
    part = "shard" if of_shards else "partition"
    return f"cleaning: a process was killed {ATTEMPTS} times at {part} {told}; is there enough memory?"


def cores() -> int:
    """Cores of this machine."""
    return os.cpu_count() or 1
