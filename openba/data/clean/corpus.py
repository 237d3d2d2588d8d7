"""The step `corpus`: all sources through the filters together, with a record of what went and why.

Owns the plan of shards, the files and the facts of the step; the filters are in the modules beside it,
the passes in `passes`. Sources that are not filtered (the paper's English and code) are copied as they are,
and nothing is compared with them.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from openba.artifacts import Build
from openba.data.clean import passes, shards, stages
from openba.data.clean.passes import Mapper
from openba.data.clean.shards import Plan, Shard
from openba.data.schema import DOCUMENTS
from openba.errors import UserError
from openba.recipes.data import CleanRecipe, CorpusRecipe

REMOVED = "removed"
SHARD_BYTES = 32 * 2**20
"""Uncompressed bytes of row groups that make a shard. More when there are many: at most some 4,096 shards."""
PARTITION_BYTES = 64 * 2**20
"""Bytes of text whose keys are searched at a time: 1.6 million keys of sentences, 0.1 GB with their table."""
_MOST_SHARDS, _MOST_PARTITIONS = 4096, 1024


def build(build: Build, mapper: Mapper | None = None) -> dict[str, Any]:
    """Step `corpus`: inputs are source directories by name; sources go in the order of their names.

    Writes `NAME.parquet` per source, of more than one shard `NAME.part-00000.parquet` and on
    (`openba.data.schema.SCHEMA`; of filtered sources `extra` is
    emptied, since no filter has looked at it) and removed.parquet (`stages.REMOVED_SCHEMA`), which holds
    spans and never text. What is between lies in `out/shards` until the step ends.

    Args: `mapper` runs the tasks; none: in this process, or in one per core if there is much to do.

    Returns:
        Facts: `funnel`, a row per source and stage (documents and UTF-8 bytes in and out);
        `removed`, spans per stage; `examples`, up to two before and after per stage and rule, private values
        shown as [phone], [email] and [link]; `unreadable`, row groups that could not be read, by source.

    Raises:
        UserError: nothing is left of a source, a source cannot be read, or has the name `removed`.
    """
    recipe: CorpusRecipe = build.recipe
    if REMOVED in recipe.sources:
        raise UserError(f"sources.{REMOVED}: that name is taken by the list of removals; choose another")
    filtered = {
        name: clean for name, clean in sorted(recipe.sources.items()) if clean and stages.names(clean)
    }
    plan, size = make_plan(build, filtered)
    plan.folder.mkdir(parents=True, exist_ok=True)
    workers = min(passes.cores(), size // (2 * SHARD_BYTES))
    own = mapper is None and workers > 1
    with passes.Processes(workers) if own else nullcontext(mapper or passes.here) as chosen:
        passes.run(plan, chosen)
    report = _Report(build.out / f"{REMOVED}.parquet", plan)
    for source in sorted(recipe.sources):
        if source in filtered:
            report.cleaned(source)
            if not _place(plan, source, build.out):
                raise UserError(f"source {source}: nothing is left after cleaning; {report.worst(source)}")
        else:
            target = build.out / f"{source}.parquet"
            shutil.copyfile(build.inputs[source] / DOCUMENTS, target)
            report.passed(source, target)
    facts = report.facts([name for name in _ORDER if any(name in stages.names(c) for c in filtered.values())])
    shutil.rmtree(build.out / "shards", ignore_errors=True)
    return facts


_ORDER = stages.names(CleanRecipe())


def _place(plan: Plan, source: str, out: Path) -> int:
    """Move a source's files to where they stay, those without documents left out; how many there are."""
    mine = [shard.number for shard in plan.shards if shard.source == source]
    full = [number for number in mine if (plan.done("join", number) or {})["documents"]]
    for part, number in enumerate(full):
        name = f"{source}.parquet" if len(mine) == 1 else f"{source}.part-{part:05d}.parquet"
        path = plan.file("join", number, "parquet")
        if path.exists():  # or a run before has moved it
            path.replace(out / name)
    return len(full)


def make_plan(build: Build, filtered: dict[str, CleanRecipe]) -> tuple[Plan, int]:
    """The shards of the filtered sources, and their uncompressed bytes.

    The plan's folder is named by a hash of recipes and inputs: other shards or inputs are another plan.
    """
    files = {name: _open(name, build.inputs[name] / DOCUMENTS) for name in filtered}
    sizes = {
        name: [file.metadata.row_group(g).total_byte_size for g in range(file.num_row_groups)]
        for name, file in files.items()
    }
    total = sum(map(sum, sizes.values()))
    limit = max(SHARD_BYTES, total // _MOST_SHARDS)
    cut = [
        (name, build.inputs[name] / DOCUMENTS, groups)
        for name in filtered
        for groups in _cut(sizes[name], limit)
    ]
    planned = tuple(Shard(number, *shard) for number, shard in enumerate(cut))
    state = xxhash.xxh3_64(repr([(s.number, s.source, s.groups) for s in planned]).encode())
    for name, clean in filtered.items():
        state.update(f"{name} {clean.model_dump_json()}".encode())
        for group in range(files[name].num_row_groups):  # one by one: all at once are megabytes
            state.update(str(files[name].metadata.row_group(group).to_dict()).encode())
    partitions = min(_MOST_PARTITIONS, 1 + total // PARTITION_BYTES)
    return Plan(build.out / "shards" / state.hexdigest(), planned, filtered, partitions, total), total


def _open(source: str, path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"source {source}: {path} cannot be read ({told}); delete it and run again") from None


def _cut(sizes: list[int], limit: int) -> Iterator[tuple[int, ...]]:
    groups: list[int] = []
    held = 0
    for group, size in enumerate(sizes):
        if groups and held + size > limit:
            yield tuple(groups)
            groups, held = [], 0
        groups.append(group)
        held += size
    if groups:
        yield tuple(groups)


class _Report:
    """Counts, removals and examples, gathered from what the tasks left."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self._writer = pq.ParquetWriter(path, stages.REMOVED_SCHEMA, compression="zstd")
        self._plan = plan
        self._funnel: dict[tuple[str, str], list[int]] = {}
        self._removed: Counter[str] = Counter()
        self._examples: dict[str, list[dict[str, str]]] = {}
        self._unreadable: dict[str, list[str]] = {}

    def cleaned(self, source: str) -> None:
        """Take over what the tasks of a source left, shard by shard, stages in order."""
        for number in (shard.number for shard in self._plan.shards if shard.source == source):
            for task in ("first", "second", "join"):
                if (left := self._plan.done(task, number)) is None:
                    continue  # a source of which only copies go has no such pass
                self._add(source, left["counts"], left["examples"])
                self._tell_unreadable(source, left.get("unreadable", []))
                reader = shards.read_arrow(self._plan.file(task, number, "removed.arrow"))
                self._write([reader.get_batch(i) for i in range(reader.num_record_batches)])

    def passed(self, source: str, path: Path) -> None:
        """An unfiltered source: one row, the same in and out."""
        file, size = pq.ParquetFile(path), 0
        for batch in file.iter_batches(columns=["text"]):
            size += pa.compute.sum(pa.compute.binary_length(batch["text"])).as_py() or 0
        rows = file.metadata.num_rows
        self._funnel[source, "unfiltered"] = [rows, rows, size, size]

    def worst(self, source: str) -> str:
        """The stage that removed most documents of a source, for a message."""
        lost = {stage: row[0] - row[1] for (name, stage), row in self._funnel.items() if name == source}
        if not lost:
            return f"it could not be read: {'; '.join(self._unreadable.get(source, ['no documents']))[:300]}"
        stage = max(lost, key=lambda name: lost[name])
        return f"{stage} removed {lost[stage]}; switch it off in `clean` or set clean: false for the source"

    def facts(self, order: list[str]) -> dict[str, Any]:
        """Close the file; what the step returns."""
        self._writer.close()
        return {
            "funnel": stages.counted(self._funnel),
            "removed": {stage: self._removed[stage] for stage in order},
            "examples": {stage: self._examples.get(stage, []) for stage in order},
            "unreadable": self._unreadable,
        }

    def _add(
        self, source: str, counts: dict[str, list[int]], examples: dict[str, list[dict[str, str]]]
    ) -> None:
        for stage, numbers in counts.items():
            known = self._funnel.get((source, stage), [0, 0, 0, 0])
            self._funnel[source, stage] = [a + b for a, b in zip(known, numbers, strict=True)]
        for stage, found in examples.items():
            stages.add_examples(self._examples.setdefault(stage, []), found)

    def _write(self, batches: list[pa.RecordBatch]) -> None:
        if not batches:
            return
        table = pa.Table.from_batches(batches)
        self._writer.write_table(table)
        for entry in table["stage"].value_counts().to_pylist():
            self._removed[entry["values"]] += entry["counts"]

    def _tell_unreadable(self, source: str, told: list[str]) -> None:
        if not told:
            return
        self._unreadable.setdefault(source, []).extend(told)
        rows = [
            {"source": source, "id": text.partition(":")[0], "stage": "input", "rule": "unreadable"}
            | {"start": 0, "end": 0, "survivor": None}
            for text in told
        ]
        self._write([pa.RecordBatch.from_pylist(rows, stages.REMOVED_SCHEMA)])
