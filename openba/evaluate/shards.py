"""The shards of an evaluation: which items are answered together, and a worker that answers one shard.

Owns the division, which is a function of the items alone: items of like prompts make a batch, batches make a
shard, and a shard's file is the same whoever writes it and however many there are. Where shards are answered
is the mapper's: in this process (`here`), or on a cluster (`tasks/evaluate.py`). Scores are `run.py`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from openba.data.instruct import encode_fitting
from openba.errors import UserError
from openba.evaluate.answering import answer
from openba.model.files import load_model
from openba.model.seq2seq import Seq2Seq
from openba.recipes.evaluate import BenchmarkRecipe, EvaluateStep
from openba.tokenizer.tokenizer import Tokenizer

SHARD = 512
"""Items of a file, at least; an evaluation that was cut off goes on after the last."""
BATCH = 16
"""Items answered together."""

SAMPLES = pa.schema(
    {
        "id": pa.string(),
        "category": pa.string(),
        "input": pa.string(),
        "target": pa.string(),
        "references": pa.list_(pa.string()),
        "choices": pa.list_(pa.string()),
        "output": pa.string(),
        "answer": pa.string(),
        "scores": pa.list_(pa.float32()),
        "attempts": pa.list_(pa.string()),
        "examples_left_out": pa.int32(),
        "cut": pa.bool_(),
        "unfinished": pa.bool_(),
        "verdict": pa.float32(),
    }
)
"""One row an item: `output` as it was written, `answer` as it was scored, `scores` of the choices, `verdict`
(0 to 1) where the first metric is a mean over items. `input` is the whole prompt; `examples_left_out` of its
solved examples, the oldest, did not fit, and `cut` says that its end did not."""
_SHARD = SAMPLES.append(pa.field("row", pa.int32()))
_KEPT = ("id", "category", "input", "target", "references", "choices")


@dataclass(frozen=True)
class Part:
    """One benchmark: its step (that benchmark among others), its records, and where its files go."""

    name: str
    step: EvaluateStep
    task: Path
    out: Path
    size: int = field(default_factory=lambda: SHARD)
    """Items of a shard, at least."""

    @property
    def benchmark(self) -> BenchmarkRecipe:
        """Its declaration."""
        return self.step.benchmarks[self.name]

    def shard(self, number: int) -> Path:
        """The file of a shard."""
        return self.out / f"{self.name}.{number:05d}.shard"


Job = tuple[Part, int]
"""A shard of a benchmark."""
Mapper = Callable[[Path, Sequence[Job]], Iterator[tuple[int, str]]]
"""With the model's folder does each job, in any order; tells its place and what went wrong, if anything."""


class Worker:
    """A model that answers shards; loading it is what takes long."""

    def __init__(self, model: Path) -> None:
        self.model, self.tokenizer = load_model(model)
        if torch.cuda.is_available():
            self.model = self.model.cuda()

    def __call__(self, part: Part, number: int) -> None:
        """Write the shard's file, unless it is there.

        Raises:
            UserError: see `answer`.
        """
        path = part.shard(number)
        if path.exists():
            return
        rows, step = records(part), part.step
        items: list[dict[str, Any]] = []
        for batch in divided(part)[number]:
            chosen = [rows[i] for i in batch]
            answers = answered(
                self.model, self.tokenizer, chosen, part.benchmark, step.prefix, step.encoder_length
            )
            items += [{**item, "row": i} for i, item in zip(batch, answers, strict=True)]
        partial = path.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(items, _SHARD), partial)
        partial.replace(path)


def answered(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    rows: Sequence[dict[str, Any]],
    benchmark: BenchmarkRecipe,
    prefix: str,
    length: int,
) -> list[dict[str, Any]]:
    """The items of one batch with their answers, in its order.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        rows: one of `batches`.
        benchmark: how to answer.
        prefix: R, S or X, the mode token that each prompt begins with.
        length: the most encoder ids; the oldest examples go first.

    Raises:
        UserError: see `answer`.
    """
    fitted = [encode_fitting(tokenizer, row["input"], row["turns"], length) for row in rows]
    sources = [[tokenizer.mode(prefix), *ids[1:]] for ids, _, _ in fitted]
    return [
        {key: row[key] for key in _KEPT}
        | {"output": one.text, "scores": one.scores, "attempts": one.attempts}
        | {"unfinished": one.unfinished, "examples_left_out": left_out, "cut": cut}
        for row, one, (_, left_out, cut) in zip(
            rows, answer(model, tokenizer, sources, rows, benchmark), fitted, strict=True
        )
    ]


def here(model: Path, jobs: Sequence[Job]) -> Iterator[tuple[int, str]]:
    """Mapper: one after the other in this process."""
    worker = Worker(model)
    for place, (part, number) in enumerate(jobs):
        error = ""
        try:
            worker(part, number)
        except UserError as told:
            error = str(told)
        yield place, error


def records(part: Part) -> list[dict[str, Any]]:
    """The items in their order.

    Raises:
        UserError: the task holds no record out.
    """
    rows = _records(part.task / "heldout.parquet", part.benchmark.items)
    if not rows:
        raise UserError("its task has no held-out record; raise task.heldout or add data")
    return rows


def divided(part: Part) -> list[list[list[int]]]:
    """Row numbers by shard and batch; batches do not depend on how large a shard is."""
    shards: list[list[list[int]]] = []
    room = 0
    for batch in batches(records(part), part.benchmark):
        if room <= 0:
            shards.append([])
            room = part.size
        shards[-1].append(batch)
        room -= len(batch)
    return shards


def merged(part: Part) -> list[dict[str, Any]]:
    """All items of the shards' files in their order, without verdicts."""
    files = [part.shard(number) for number in range(len(divided(part)))]
    items = pa.concat_tables([pq.read_table(file) for file in files]).sort_by("row")
    return items.drop_columns("row").to_pylist()


@lru_cache(maxsize=2)  # a worker's shards of one benchmark follow each other
def _records(path: Path, items: int | None) -> list[dict[str, Any]]:
    return pq.read_table(path).slice(0, items).to_pylist()


def batches(rows: Sequence[dict[str, Any]], benchmark: BenchmarkRecipe) -> Iterator[list[int]]:
    """Rows of the same choices, prompts of like lengths together: less padding."""
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        alike[() if benchmark.method == "generate" else tuple(row["choices"])].append(i)
    for positions in alike.values():
        ordered = sorted(positions, key=lambda i: len(rows[i]["input"]))
        yield from (ordered[begin : begin + BATCH] for begin in range(0, len(ordered), BATCH))
