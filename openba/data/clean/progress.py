"""Progress of a cleaning, read from the files that its tasks write.

A task is done when its JSON file exists, whichever machine has written it; tasks report nothing themselves.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from openba.durable import write_text

if TYPE_CHECKING:  # the console imports this module, and the filters take seconds to load
    from openba.data.clean.shards import Plan

_BEGUN_FILE = "begun.run"
# Shares of the processor time: medians of four runs over the text of `benchmarks.corpora`. The searches
# between the passes took 2 % together and have no weight.
_WEIGHTS = {
    "hash_documents": 0.06,
    "filter_characters": 0.34,
    "filter_sentences": 0.52,
    "near_confirm": 0.02,
    "finish": 0.08,
}


class Progress(NamedTuple):
    """Progress of the current run. Work done by earlier runs counts only in `done` and `total`."""

    stage: str
    """Current pass."""
    done: int
    """Finished tasks on shards, over all passes."""
    total: int
    bytes_per_second: float
    """Text through all passes; 0 before any task is finished."""
    seconds_left: float | None


class _Begun(TypedDict):
    """Content of the file that a run writes at its start."""

    passes: dict[str, tuple[int, int]]
    """Number of tasks, and of those to do in this run, by pass in order."""
    bytes: int
    begun: float


def begin(plan: Plan, passes: dict[str, tuple[int, int]]) -> None:
    """Record the start of a run.

    Args:
        plan: of the cleaning.
        passes: pass -> number of tasks, and of those to do in this run; in order.
    """
    begun = _Begun(passes=passes, bytes=plan.bytes, begun=time.time())
    write_text(plan.folder / _BEGUN_FILE, json.dumps(begun))


def read(out: Path) -> Progress | None:
    """Return the progress of the step that writes to `out`, None if it is not working on shards."""
    for path in out.glob(f"shards/*/{_BEGUN_FILE}"):
        try:
            begun: _Begun = json.loads(path.read_text())
            done_names = [name for name in os.listdir(path.parent) if name.endswith(".json")]
        except FileNotFoundError:  # the step has just ended
            continue
        done = Counter(name.rsplit("-", 1)[0] for name in done_names)
        return _estimate(begun, done, time.time() - begun["begun"])
    return None


def _estimate(begun: _Begun, done: Counter[str], seconds: float) -> Progress:
    passes = begun["passes"]
    shard_passes = {name: counts for name, counts in passes.items() if name in _WEIGHTS}
    done_weight = 0.0
    remaining_weight = 0.0
    for name, (total, to_do) in shard_passes.items():
        if total:
            done_weight += _WEIGHTS[name] * (done[name] - (total - to_do)) / total
            remaining_weight += _WEIGHTS[name] * (total - done[name]) / total
    total_weight = sum(_WEIGHTS[name] for name, (total, _) in shard_passes.items() if total) or 1.0
    done_share = done_weight / total_weight
    return Progress(
        stage=next((name for name, (total, _) in passes.items() if done[name] < total), "report"),
        done=sum(done[name] for name in shard_passes),
        total=sum(total for total, _ in shard_passes.values()),
        bytes_per_second=begun["bytes"] * done_share / seconds if seconds > 0 else 0.0,
        seconds_left=seconds * remaining_weight / done_weight if done_weight > 0 else None,
    )
