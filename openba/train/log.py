"""What a stage writes while it trains: JSON lines that survive a crash of everything else.

`metrics.jsonl` one row per optimiser step, `heldout.jsonl` one per measurement, `attempts.jsonl`
one per start of the worker group. These files are the truth; MLflow is fed from them.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

METRICS, HELDOUT, ATTEMPTS = "metrics.jsonl", "heldout.jsonl", "attempts.jsonl"


class StageLog:
    """The logs of one stage; only rank 0 writes, `enabled` says whether this is it."""

    def __init__(self, folder: Path, enabled: bool) -> None:
        self.folder, self.enabled = folder, enabled

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
        for name in (METRICS, HELDOUT):
            # At step 0 nothing is kept: the measurement before the first step is made again too.
            self._rewrite(name, [row for row in self.rows(name) if row["step"] <= step and step > 0])
        self._rewrite(ATTEMPTS, [*attempts, {"from": step, "time": time.time()}])

    def end(self, joules: dict[str, float | None]) -> None:
        """The worker group has done its last step."""
        if self.enabled:
            attempts = self.rows(ATTEMPTS)
            attempts[-1] |= {"seconds": time.time() - attempts[-1]["time"], "joules": joules}
            self._rewrite(ATTEMPTS, attempts)

    def write(self, name: str, row: dict[str, Any]) -> None:
        """Append one row."""
        if self.enabled:
            with (self.folder / name).open("a") as file:
                file.write(json.dumps(row) + "\n")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All whole rows."""
        return read_rows(self.folder / name)

    def _rewrite(self, name: str, rows: list[dict[str, Any]]) -> None:
        partial = self.folder / f"{name}.tmp"
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(self.folder / name)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Whole rows of a JSON-lines file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
