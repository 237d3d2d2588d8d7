"""Rows of an evaluation: held-out records of a benchmark's task, and items with their answers."""

from __future__ import annotations

from typing import NotRequired, TypedDict

import pyarrow as pa


class HeldOutRecord(TypedDict):
    """Row of a task's `heldout.parquet`; see `openba.data.pairs.SCHEMA`."""

    id: str
    category: str
    input: str
    turns: list[int]
    target: str
    choices: list[str]
    references: list[str]


class AnsweredItem(TypedDict):
    """Record with a model's answer: a row of `BENCHMARK.parquet`."""

    id: str
    category: str
    input: str
    """The whole prompt."""
    target: str
    references: list[str]
    choices: list[str]
    output: str
    """Text as the model wrote it."""
    scores: list[float]
    """Score of each choice; method `likelihood`: loss in nats and number of tokens of the right answer."""
    attempts: list[str]
    unfinished: bool
    """The output was cut off at `max_new_tokens`."""
    examples_left_out: int
    """Solved examples, the oldest, that did not fit into the prompt."""
    cut: bool
    """The end of the prompt did not fit either."""
    answer: NotRequired[str]
    """The output as it was scored."""
    verdict: NotRequired[float | None]
    """0 to 1 by the first metric if that is a mean over items; else None."""


ITEM_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "category": pa.string(),
        "input": pa.string(),
        "target": pa.string(),
        "references": pa.list_(pa.string()),
        "choices": pa.list_(pa.string()),
        "output": pa.string(),
        "answer": pa.string(),
        # fp32 is enough to compare choices, and half the size.
        "scores": pa.list_(pa.float32()),
        "attempts": pa.list_(pa.string()),
        "examples_left_out": pa.int32(),
        "cut": pa.bool_(),
        "unfinished": pa.bool_(),
        "verdict": pa.float32(),
    }
)
"""Columns of `BENCHMARK.parquet`, one row per `AnsweredItem`."""
