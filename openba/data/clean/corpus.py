"""Step `clean`: all sources through the filters together, with a record of every removal and its reason.

Sources that are not filtered (the paper's English and code) are copied unchanged, and nothing is compared
with them. The filters are in the modules beside this one, the passes over shards in `passes`.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from openba.artifacts import Build
from openba.data.clean import passes, shards
from openba.data.clean.batch import REMOVED_SCHEMA, StageCounts
from openba.data.clean.examples import Example, add_examples
from openba.data.clean.passes import Mapper
from openba.data.clean.shards import Plan, Shard
from openba.data.clean.stages import INPUT, UNFILTERED, order_of_stages, stage_names
from openba.data.schema import DOCUMENTS
from openba.errors import UserError
from openba.recipes.clean import CleanRecipe
from openba.recipes.data import CorpusRecipe

REMOVED = "removed"
SHARD_BYTES = 32 * 2**20
"""Uncompressed bytes of row groups in a shard; more if there would be over `_MAX_SHARDS` shards."""
PARTITION_BYTES = 64 * 2**20
"""Bytes of text whose keys are searched at a time: 1.6 million keys of sentences, 0.1 GB with their table."""
_MAX_SHARDS = 4096
_MAX_PARTITIONS = 1024
# Form of the files between the passes; a run does not continue with files of another form.
_PLAN_FORMAT = "2"


class FunnelRow(TypedDict):
    """Documents and UTF-8 bytes of a source before and after a stage."""

    source: str
    stage: str
    documents_in: int
    documents_out: int
    bytes_in: int
    bytes_out: int


class Facts(TypedDict):
    """Facts that the step records in its manifest."""

    funnel: list[FunnelRow]
    removed: dict[str, int]
    """Removed spans per stage."""
    examples: dict[str, list[Example]]
    """Up to two texts before and after per stage and rule; private values are shown as [phone], [email] and
    [link]."""
    unreadable: dict[str, list[str]]
    """Source -> row groups that could not be read."""


def build(build: Build, mapper: Mapper | None = None) -> Facts:
    """Clean all sources; inputs are source directories by name, taken in the order of their names.

    Writes `NAME.parquet` per source, or `NAME.part-00000.parquet` and so on if it has several shards
    (`openba.data.schema.SCHEMA`; `extra` of filtered sources is emptied, since no filter has cleaned it) and
    removed.parquet (`batch.REMOVED_SCHEMA`), which holds spans and never text. Files between the passes lie
    in `out/shards` until the step ends.

    Args:
        build: recipe, inputs and output folder.
        mapper: runs the tasks; none: in this process, or in one per core if there is enough to do.

    Raises:
        UserError: nothing is left of a source, a source cannot be read, or has the name `removed`.
    """
    recipe: CorpusRecipe = build.recipe
    if REMOVED in recipe.sources:
        raise UserError(f"sources.{REMOVED}: that name is taken by the list of removals; choose another")
    filtered = {name: clean for name, clean in sorted(recipe.sources.items()) if clean and stage_names(clean)}
    plan = make_plan(build, filtered)
    plan.folder.mkdir(parents=True, exist_ok=True)
    workers = min(passes.cpu_count(), plan.bytes // (2 * SHARD_BYTES))
    starts_pool = mapper is None and workers > 1
    chosen = passes.Processes(workers) if starts_pool else nullcontext(mapper or passes.in_this_process)
    with chosen as run_tasks:
        passes.run(plan, run_tasks)
    report = _Report(build.out / f"{REMOVED}.parquet", plan)
    for source in sorted(recipe.sources):
        if source in filtered:
            report.add_cleaned(source)
            if not _move_output(plan, source, build.out):
                cause = report.main_cause(source)
                raise UserError(f"source {source}: nothing is left after cleaning; {cause}")
        else:
            target_path = build.out / f"{source}.parquet"
            shutil.copyfile(build.inputs[source] / DOCUMENTS, target_path)
            report.add_unfiltered(source, target_path)
    facts = report.close(order_of_stages(filtered.values()))
    shutil.rmtree(build.out / "shards", ignore_errors=True)
    return facts


def _move_output(plan: Plan, source: str, out: Path) -> int:
    """Move a source's Parquet files with documents to the output folder; return their number."""
    shard_numbers = [shard.number for shard in plan.shards if shard.source == source]
    nonempty_shards = [
        shard_number
        for shard_number in shard_numbers
        if (plan.record("finish", shard_number) or {})["documents"]
    ]
    for part, shard_number in enumerate(nonempty_shards):
        name = f"{source}.parquet" if len(shard_numbers) == 1 else f"{source}.part-{part:05d}.parquet"
        file_path = plan.file("finish", shard_number, "parquet")
        if file_path.exists():  # else an earlier run has moved it
            file_path.replace(out / name)
    return len(nonempty_shards)


def make_plan(build: Build, filtered: dict[str, CleanRecipe]) -> Plan:
    """Divide the filtered sources into shards.

    The plan's folder is named by a hash of recipes and inputs, so a run never continues another plan.
    """
    files = {name: _open(name, build.inputs[name] / DOCUMENTS) for name in filtered}
    group_sizes = {
        name: [
            parquet_file.metadata.row_group(group).total_byte_size
            for group in range(parquet_file.num_row_groups)
        ]
        for name, parquet_file in files.items()
    }
    total_bytes = sum(map(sum, group_sizes.values()))
    limit = max(SHARD_BYTES, total_bytes // _MAX_SHARDS)
    parts = [
        (name, build.inputs[name] / DOCUMENTS, row_groups)
        for name in filtered
        for row_groups in divide_row_groups(group_sizes[name], limit)
    ]
    planned = tuple(Shard(shard_number, *part) for shard_number, part in enumerate(parts))
    # Metadata of the row groups stand for the inputs: reading the texts would take as long as a pass.
    state = xxhash.xxh3_64(_PLAN_FORMAT.encode())
    state.update(repr([(shard.number, shard.source, shard.row_groups) for shard in planned]).encode())
    for name, clean in filtered.items():
        state.update(f"{name} {clean.model_dump_json()}".encode())
        for group in range(files[name].num_row_groups):  # one by one: together they take megabytes
            state.update(str(files[name].metadata.row_group(group).to_dict()).encode())
    partitions = min(_MAX_PARTITIONS, 1 + total_bytes // PARTITION_BYTES)
    return Plan(build.out / "shards" / state.hexdigest(), planned, filtered, partitions, total_bytes)


def _open(source: str, documents_path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(documents_path)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"source {source}: {documents_path} cannot be read ({reason}); delete it and run again"
        ) from None


def divide_row_groups(group_sizes: list[int], limit: int) -> Iterator[tuple[int, ...]]:
    """Yield runs of row groups with at most `limit` bytes each, or a single larger one."""
    row_groups: list[int] = []
    shard_bytes = 0
    for group, size in enumerate(group_sizes):
        if row_groups and shard_bytes + size > limit:
            yield tuple(row_groups)
            row_groups = []
            shard_bytes = 0
        row_groups.append(group)
        shard_bytes += size
    if row_groups:
        yield tuple(row_groups)


class _Report:
    """Counts, removals and examples of all tasks."""

    def __init__(self, removed_path: Path, plan: Plan) -> None:
        self._writer = pq.ParquetWriter(removed_path, REMOVED_SCHEMA, compression="zstd")
        self._plan = plan
        self._funnel: dict[tuple[str, str], StageCounts] = {}
        self._removed: Counter[str] = Counter()
        self._examples: dict[str, list[Example]] = {}
        self._unreadable: dict[str, list[str]] = {}

    def add_cleaned(self, source: str) -> None:
        """Add the records of a source's tasks, shard by shard, stages in order."""
        for shard_number in (shard.number for shard in self._plan.shards if shard.source == source):
            for task in ("filter_characters", "filter_sentences", "finish"):
                if (record := self._plan.record(task, shard_number)) is None:
                    continue  # a source that is only deduplicated has no such pass
                for stage, shard_numbers in record["counts"].items():
                    self._add_counts(source, stage, shard_numbers)
                for stage, examples in record["examples"].items():
                    add_examples(self._examples.setdefault(stage, []), examples)
                self._add_unreadable(source, record.get("unreadable", []))
                reader = shards.read_arrow(self._plan.file(task, shard_number, "removed.arrow"))
                self._write([reader.get_batch(index) for index in range(reader.num_record_batches)])

    def add_unfiltered(self, source: str, file_path: Path) -> None:
        """Add an unfiltered source as one row, the same in and out."""
        parquet_file = pq.ParquetFile(file_path)
        text_size = 0
        for batch in parquet_file.iter_batches(columns=["text"]):
            text_size += pa.compute.sum(pa.compute.binary_length(batch["text"])).as_py() or 0
        row_count = parquet_file.metadata.num_rows
        self._add_counts(source, UNFILTERED, [row_count, row_count, text_size, text_size])

    def main_cause(self, source: str) -> str:
        """Return which stage removed most documents of a source, for a message."""
        lost = {stage: row[0] - row[1] for (name, stage), row in self._funnel.items() if name == source}
        if not lost:
            return f"it could not be read: {'; '.join(self._unreadable.get(source, ['no documents']))[:300]}"
        stage = max(lost, key=lambda name: lost[name])
        return f"{stage} removed {lost[stage]}; switch it off in `clean` or set clean: false for the source"

    def close(self, stages: Sequence[str]) -> Facts:
        """Close the file of removals and return the step's facts, stages in the given order."""
        self._writer.close()
        return Facts(
            funnel=[
                FunnelRow(
                    source=source,
                    stage=stage,
                    documents_in=counts[0],
                    documents_out=counts[1],
                    bytes_in=counts[2],
                    bytes_out=counts[3],
                )
                for (source, stage), counts in self._funnel.items()
            ],
            removed={stage: self._removed[stage] for stage in stages},
            examples={stage: self._examples.get(stage, []) for stage in stages},
            unreadable=self._unreadable,
        )

    def _add_counts(self, source: str, stage: str, counts: StageCounts) -> None:
        totals = self._funnel.get((source, stage), [0, 0, 0, 0])
        self._funnel[source, stage] = [first + second for first, second in zip(totals, counts, strict=True)]

    def _write(self, batches: list[pa.RecordBatch]) -> None:
        if not batches:
            return
        table = pa.Table.from_batches(batches)
        self._writer.write_table(table)
        for entry in table["stage"].value_counts().to_pylist():
            self._removed[entry["values"]] += entry["counts"]

    def _add_unreadable(self, source: str, messages: list[str]) -> None:
        if not messages:
            return
        self._unreadable.setdefault(source, []).extend(messages)
        rows = [
            {
                "source": source,
                "id": text.partition(":")[0],
                "stage": INPUT,
                "rule": "unreadable",
                "start": 0,
                "end": 0,
                "survivor": None,
            }
            for text in messages
        ]
        self._write([pa.RecordBatch.from_pylist(rows, REMOVED_SCHEMA)])
