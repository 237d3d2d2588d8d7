"""What a stage writes while it trains: JSON lines that survive a crash of everything else.

`metrics.jsonl` one row per optimiser step, `heldout.jsonl` one per measurement, `attempts.jsonl`
one per start of the worker group, `events.jsonl` what was unusual: skipped steps, roll-backs, alarms.
These files are the truth; MLflow is fed from them. A full disk loses no row and stops no training: rows
wait in memory until there is room.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

METRICS, HELDOUT, ATTEMPTS, EVENTS = "metrics.jsonl", "heldout.jsonl", "attempts.jsonl", "events.jsonl"


RATES = (
    "tokens_per_second", "padded_tokens_per_second", "tflops", "mfu_useful", "mfu_padded", "data_wait",
    "checkpoint_stall", "failed_saves", "memory_gb",
)  # fmt: skip
"""Figures of speed and memory in a row of `metrics.jsonl`, see `meter.py`."""


class StageLog:
    """The logs of one stage; only rank 0 writes, `enabled` says whether this is it."""

    def __init__(self, folder: Path, enabled: bool) -> None:
        self.folder, self.enabled = folder, enabled
        self._waiting: dict[str, list[str]] = {}
        self._began = time.monotonic()

    def begin(self, step: int) -> None:
        """A worker group starts after `step`: cut what is run again, note the attempt.

        The time of a group that died is known up to its last logged step; it is kept, because
        its device hours were spent.
        """
        if not self.enabled:
            return
        attempts, steps = self.rows(ATTEMPTS), self.rows(METRICS)
        if attempts and "seconds" not in attempts[-1]:
            last = max((row["time"] for row in steps), default=attempts[-1]["time"])
            attempts[-1]["seconds"] = max(0.0, last - attempts[-1]["time"])
        self.cut(step)
        self._began = time.monotonic()
        self._rewrite(ATTEMPTS, [*attempts, {"from": step, "time": time.time()}])

    def cut(self, step: int) -> None:
        """Forget what came after `step`, since it is run again; roll-backs stay."""
        if not self.enabled:
            return
        for name in (METRICS, HELDOUT):
            # At step 0 nothing is kept: the measurement before the first step is made again too.
            self._rewrite(name, [row for row in self.rows(name) if row["step"] <= step and step > 0])
        if events := self.rows(EVENTS):
            holds = [row["event"] == "rolled back" and row["step"] <= step for row in events]
            kept = len(events) - holds[::-1].index(True) if any(holds) else 0  # also what led to it
            self._rewrite(EVENTS, events[:kept] + [row for row in events[kept:] if row["step"] <= step])

    def end(self, joules: dict[str, float | None], estimated: dict[str, float | None]) -> None:
        """The worker group has done its last step, with the energy measured and estimated."""
        if self.enabled:
            attempts = self.rows(ATTEMPTS)
            attempts[-1] |= {"seconds": time.monotonic() - self._began}
            attempts[-1] |= {"joules": joules, "estimated": estimated}
            self._rewrite(ATTEMPTS, attempts)

    def write(self, name: str, row: dict[str, Any]) -> None:
        """Append one row, and those before it that found no room."""
        if self.enabled:
            rows = self._waiting.setdefault(name, [])
            rows.append(json.dumps(row) + "\n")
            if _append(self.folder / name, "".join(rows)):
                rows.clear()

    def event(self, event: str, step: int, **facts: Any) -> None:
        """Note what was unusual at `step`, for people and for a resumed run."""
        self.write(EVENTS, {"event": event, "step": step, **facts, "time": time.time()})

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All whole rows."""
        return read_rows(self.folder / name)

    def _rewrite(self, name: str, rows: list[dict[str, Any]]) -> None:
        partial = self.folder / f"{name}.tmp"
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(self.folder / name)


def _append(path: Path, text: str) -> bool:
    """Add all of the text or nothing of it."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(text)
        return True
    except OSError as error:
        print(f"{path}: {error}; its rows wait in memory", file=sys.stderr)
        with suppress(OSError):
            os.truncate(path, size)
        return False


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Whole rows of a JSON-lines file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
