"""Console output of a run: a live table on a terminal, plain lines elsewhere.

Owns the console only. Numbers come from the files that a step writes while it works.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from openba.data.clean import progress as cleaning
from openba.json_types import JsonObject
from openba.train.log import METRICS, last_rows
from openba.units import human, human_time

_SECONDS_BETWEEN_LINES = 5.0
_RECENT = 20
"""Rows that the rate is a mean of."""


class ProgressView:
    """Steps of a pipeline as they start, advance and end. Safe to call from several threads."""

    def __init__(self, total: int) -> None:
        self.console = Console(highlight=False)
        self.total = total
        self.done = 0
        self._lock = threading.Lock()
        self._rows: dict[str, TaskID] = {}
        self._totals: dict[str, int] = {}
        self._printed: dict[str, tuple[float, int]] = {}
        self._live = Progress(
            TextColumn("  {task.description:<24}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        if self.console.is_terminal:
            self._live.start()

    def close(self) -> None:
        """Stop drawing."""
        self._live.stop()

    def start(self, name: str, steps: int | None) -> None:
        """Show that a step begins; `steps` optimiser steps if it trains."""
        with self._lock:
            self._rows[name] = self._live.add_task(name, total=steps, note="starting")
            self._totals[name] = steps or 0
            self._printed[name] = (time.monotonic(), 0)

    def advance(self, name: str, folder: Path) -> None:
        """Show how far a step is that trains or cleans; of others nothing is known before their end."""
        moved = _training(folder, self._totals[name]) if self._totals[name] else _cleaning(folder)
        if moved is None:
            return
        with self._lock:
            self._live.update(self._rows[name], completed=moved.done, total=moved.total, note=moved.note)
            printed_at, done = self._printed[name]
            waited = time.monotonic() - printed_at > _SECONDS_BETWEEN_LINES
            # Only what moves: a last row would be repeated until the job has shut down.
            if not self.console.is_terminal and done < moved.done < moved.total and waited:
                self._printed[name] = (time.monotonic(), moved.done)
                self.console.print(f"      {name} {moved.done}/{moved.total}  {moved.note}")

    def finish(self, name: str, state: str, record: JsonObject | None = None) -> None:
        """Show that a step is `built`, `cached`, `failed` or `stopped`."""
        with self._lock:
            if name in self._rows:
                self._live.remove_task(self._rows.pop(name))
            self.done += 1
            took = f"  {record['seconds']:.1f} s" if record and state == "built" else ""
            loss = (record or {}).get("facts", {}).get("heldout_loss")
            measured = f"  held-out loss {loss:.3f}" if loss is not None else ""
            self.console.print(
                f"[{self.done:>2}/{self.total}] {state:<7} {name}{took}{measured}", markup=False
            )
            for alarm in (record or {}).get("facts", {}).get("source_alarms", []):
                self.console.print(f"        {alarm}", markup=False, soft_wrap=True)
            for line in filter(None, [_set_aside(record), *_warnings(record)]):
                self.console.print(f"        {line}", markup=False, soft_wrap=True)


def _warnings(record: JsonObject | None) -> list[str]:
    """Return what a step found that is probably a mistake, such as a task that asks every record the same."""
    return (record or {}).get("facts", {}).get("warnings", [])


def _set_aside(record: JsonObject | None) -> str:
    """Print what could not be read of a source, also when the source is reused."""
    aside = (record or {}).get("facts", {}).get("quarantined")
    if not aside or not aside["first"]:
        return ""
    counts = [
        f"{aside[kind]} {kind.removesuffix('s') if aside[kind] == 1 else kind}" for kind in ("files", "rows")
    ]
    return f"{counts[0]} and {counts[1]} set aside; first: {aside['first'][0]}"


class _Moved(NamedTuple):
    done: int
    total: int
    note: str


def _training(folder: Path, total: int) -> _Moved | None:
    """Optimiser steps, from a training's newest metrics; None before its first logged step."""
    recent = last_rows(folder / METRICS, _RECENT)
    if not recent:
        return None
    last = recent[-1]
    loss = "not finite" if last["loss"] is None else f"{last['loss']:.3f}"
    # Rows of steps without a usable sample have no rate.
    timed = [row for row in recent if row["tokens_per_second"]]
    seconds = sum(row["tokens"] / row["tokens_per_second"] for row in timed)
    if not seconds:
        return _Moved(last["step"], total, f"loss {loss}")
    rate = sum(row["tokens"] for row in timed) / seconds
    seconds_left = (total - last["step"]) * seconds / len(timed)
    return _Moved(last["step"], total, f"loss {loss}  {human(rate)} tokens/s  ETA {human_time(seconds_left)}")


def _cleaning(folder: Path) -> _Moved | None:
    """Shards, each counted once a pass over it."""
    cleaning_state = cleaning.read(folder)
    if cleaning_state is None:
        return None
    time_left = (
        "" if cleaning_state.seconds_left is None else f"  ETA {human_time(cleaning_state.seconds_left)}"
    )
    note = f"shards ({cleaning_state.stage})  {cleaning_state.bytes_per_second / 1e6:.1f} MB/s{time_left}"
    return _Moved(cleaning_state.done, cleaning_state.total, note)
