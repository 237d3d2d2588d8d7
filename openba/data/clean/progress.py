"""How far a cleaning is, read from the files that its tasks leave.

Owns one small file a run and the estimate made from it. The tasks themselves report nothing: a task is done
when its JSON file is there, whichever machine has written it.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the console imports this module, and the filters take seconds to load
    from openba.data.clean.shards import Plan

_BEGUN = "begun.run"
_WEIGHTS = {"scan": 0.06, "first": 0.34, "second": 0.52, "join": 0.08}
"""Shares of the processor time: medians of four runs over the text of `benchmarks.corpora`. The searches
between the passes took 2 % together and count as nothing."""


class Progress(NamedTuple):
    """Of one run of the step; of what a run before did only `done` and `total` speak."""

    stage: str
    """The pass that is going on."""
    done: int
    """Tasks on shards, over all passes."""
    total: int
    bytes_per_second: float
    """Text through all passes; 0 before anything is done."""
    seconds_left: float | None


def begin(plan: Plan, passes: dict[str, tuple[int, int]]) -> None:
    """Say what a run has before it: tasks in all and tasks to do, by pass in order."""
    told = {"passes": passes, "bytes": plan.bytes, "begun": time.time()}
    path = plan.folder / _BEGUN
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(told))
    partial.replace(path)


def read(out: Path) -> Progress | None:
    """The progress of the step that writes to `out`; None if it is not at work on shards."""
    for path in out.glob(f"shards/*/{_BEGUN}"):
        try:
            told = json.loads(path.read_text())
            done = Counter(
                name.rsplit("-", 1)[0] for name in os.listdir(path.parent) if name.endswith(".json")
            )
        except FileNotFoundError:  # the step has just ended
            continue
        return _estimate(told, done, time.time() - told["begun"])
    return None


def _estimate(told: dict[str, Any], done: Counter[str], seconds: float) -> Progress:
    passes: dict[str, tuple[int, int]] = told["passes"]
    of_shards = {name: numbers for name, numbers in passes.items() if name in _WEIGHTS}
    worked = to_do = 0.0
    for name, (total, left) in of_shards.items():
        if total:
            worked += _WEIGHTS[name] * (done[name] - (total - left)) / total
            to_do += _WEIGHTS[name] * (total - done[name]) / total
    whole = sum(_WEIGHTS[name] for name, (total, _) in of_shards.items() if total) or 1.0
    going = next((name for name, (total, _) in passes.items() if done[name] < total), "report")
    return Progress(
        going,
        sum(done[name] for name in of_shards),
        sum(total for total, _ in of_shards.values()),
        told["bytes"] * worked / whole / seconds if seconds > 0 else 0.0,
        seconds * to_do / worked if worked > 0 else None,
    )
