"""Shards of an evaluation: division of items into batches and shards, and a worker that answers one shard.

Owns the division, which depends on the items alone: items with similar prompts form a batch, batches form a
shard, and a shard's file is the same whichever worker writes it and however many workers there are. A
`ShardMapper` decides where shards are answered: in this process (`map_in_process`), or on a cluster
(`tasks/evaluate.py`). Scores are computed in `run.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from openba import durable
from openba.data.instruct import encode_fitting
from openba.errors import UserError
from openba.evaluate.answering import answer_batch
from openba.evaluate.items import ITEM_SCHEMA, AnsweredItem, HeldOutRecord
from openba.model.loading import load_model
from openba.model.seq2seq import Seq2Seq
from openba.recipes.evaluate import BenchmarkRecipe, EvaluateStep
from openba.tokenizer.tokenizer import Tokenizer

SHARD_SIZE = 512
"""Items of a shard, at least; an interrupted evaluation continues after the last complete shard."""
BATCH_SIZE = 16
"""Items answered together."""
_SHARD_SCHEMA = ITEM_SCHEMA.append(pa.field("row", pa.int32()))
"""`row`: position of the item among the benchmark's records."""


@dataclass(frozen=True)
class BenchmarkEvaluation:
    """Evaluation of one benchmark: its declaration, its records, and the folder of its files."""

    name: str
    step: EvaluateStep
    """Step with this benchmark, among others."""
    task_folder: Path
    """Folder with `heldout.parquet`."""
    out: Path
    shard_size: int = field(default_factory=lambda: SHARD_SIZE)
    """Items of a shard, at least."""

    @property
    def benchmark(self) -> BenchmarkRecipe:
        """The benchmark's declaration."""
        return self.step.benchmarks[self.name]

    def shard_file(self, shard_number: int) -> Path:
        """Return the path of a shard's file."""
        return self.out / f"{self.name}.{shard_number:05d}.shard"


Shard = tuple[BenchmarkEvaluation, int]
"""One shard of a benchmark, by its number."""
ShardMapper = Callable[[Path, Sequence[Shard]], Iterator[tuple[int, str]]]
"""Function that answers each shard with the model in a folder, in any order, and yields the shard's index in
the sequence with an error's text, which is empty on success."""


class ShardWorker:
    """A model that answers shards; loaded once, since loading takes long."""

    def __init__(self, model_folder: Path) -> None:
        self.model, self.tokenizer = load_model(model_folder)
        if torch.cuda.is_available():
            self.model = self.model.cuda()

    def __call__(self, evaluation: BenchmarkEvaluation, shard_number: int) -> None:
        """Write the shard's file, unless it exists.

        Raises:
            UserError: see `answer_batch`.
        """
        path = evaluation.shard_file(shard_number)
        if path.exists():
            return
        records = read_records(evaluation)
        rows = []
        for batch in divide_into_shards(evaluation)[shard_number]:
            items = answer_records(
                self.model,
                self.tokenizer,
                [records[row] for row in batch],
                evaluation.benchmark,
                evaluation.step.prefix,
                evaluation.step.encoder_length,
            )
            rows += [{**item, "row": row} for row, item in zip(batch, items, strict=True)]
        # Atomic, since a shard's file counts as complete whenever it exists.
        shard_table = pa.Table.from_pylist(rows, _SHARD_SCHEMA)
        durable.replace_file(path, lambda partial: pq.write_table(shard_table, partial))


def answer_records(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    records: Sequence[HeldOutRecord],
    benchmark: BenchmarkRecipe,
    mode: str,
    max_length: int,
) -> list[AnsweredItem]:
    """Return the items of one batch with their answers, in its order.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        records: one of `make_batches`.
        benchmark: method and its settings.
        mode: R, S or X, the mode token that each prompt begins with.
        max_length: most encoder ids of a prompt; the oldest examples are dropped first.

    Raises:
        UserError: see `answer_batch`.
    """
    fitted = [encode_fitting(tokenizer, record["input"], record["turns"], max_length) for record in records]
    # `encode_fitting` puts the mode token S first; others are compared in Figure 6(d).
    sources = [[tokenizer.mode(mode), *ids[1:]] for ids, _, _ in fitted]
    answers = answer_batch(model, tokenizer, sources, records, benchmark)
    return [
        {
            "id": record["id"],
            "category": record["category"],
            "input": record["input"],
            "target": record["target"],
            "references": record["references"],
            "choices": record["choices"],
            "output": answer.text,
            "scores": answer.scores,
            "attempts": answer.attempts,
            "unfinished": answer.is_unfinished,
            "examples_left_out": examples_left_out,
            "cut": is_cut,
        }
        for record, answer, (_, examples_left_out, is_cut) in zip(records, answers, fitted, strict=True)
    ]


def map_in_process(model_folder: Path, shards: Sequence[Shard]) -> Iterator[tuple[int, str]]:
    """Answer shards one after the other in this process; a `ShardMapper`."""
    worker = ShardWorker(model_folder)
    for index, (evaluation, shard_number) in enumerate(shards):
        # An error of one benchmark must not stop the others, so it is returned and not raised.
        error_text = ""
        try:
            worker(evaluation, shard_number)
        except UserError as error:
            error_text = str(error)
        yield index, error_text


def read_records(evaluation: BenchmarkEvaluation) -> list[HeldOutRecord]:
    """Return the benchmark's records in their order.

    Raises:
        UserError: the task holds out no record.
    """
    records = _read_held_out(evaluation.task_folder / "heldout.parquet", evaluation.benchmark.items)
    if not records:
        raise UserError("its task has no held-out record; raise task.heldout or add data")
    return records


def divide_into_shards(evaluation: BenchmarkEvaluation) -> list[list[list[int]]]:
    """Return row numbers by shard and batch; batches do not depend on the size of a shard."""
    shards: list[list[list[int]]] = []
    free_items = 0
    for batch in make_batches(read_records(evaluation), evaluation.benchmark):
        if free_items <= 0:
            shards.append([])
            free_items = evaluation.shard_size
        shards[-1].append(batch)
        free_items -= len(batch)
    return shards


def read_shards(evaluation: BenchmarkEvaluation) -> list[AnsweredItem]:
    """Return all items of the shards' files in their order, without verdicts."""
    shard_numbers = range(len(divide_into_shards(evaluation)))
    tables = [pq.read_table(evaluation.shard_file(number)) for number in shard_numbers]
    return pa.concat_tables(tables).sort_by("row").drop_columns("row").to_pylist()


# A worker's shards of one benchmark follow each other, and `ShardWorker` reads the records for each.
@lru_cache(maxsize=2)
def _read_held_out(path: Path, item_limit: int | None) -> list[HeldOutRecord]:
    return pq.read_table(path).slice(0, item_limit).to_pylist()


def make_batches(records: Sequence[HeldOutRecord], benchmark: BenchmarkRecipe) -> Iterator[list[int]]:
    """Yield row numbers of batches with the same choices and prompts of similar length, for less padding."""
    rows_by_choices: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        rows_by_choices[() if benchmark.method == "generate" else tuple(record["choices"])].append(row)
    for rows in rows_by_choices.values():
        # Characters rather than tokens: the records are not encoded yet.
        sorted_rows = sorted(rows, key=lambda row: len(records[row]["input"]))
        yield from (
            sorted_rows[batch_start : batch_start + BATCH_SIZE]
            for batch_start in range(0, len(sorted_rows), BATCH_SIZE)
        )
