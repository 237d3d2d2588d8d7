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

    def __init__(self, total_steps: int) -> None:
        self.console = Console(highlight=False)
        self.total = total_steps
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
        # In a log file each redrawing would be a line of control characters.
        if self.console.is_terminal:
            self._live.start()

    def close(self) -> None:
        """Stop drawing."""
        self._live.stop()

    def start(self, step_name: str, steps: int | None) -> None:
        """Show that a step begins; `steps` optimiser steps if it trains."""
        with self._lock:
            self._rows[step_name] = self._live.add_task(step_name, total=steps, note="starting")
            self._totals[step_name] = steps or 0
            self._printed[step_name] = (time.monotonic(), 0)

    def advance(self, step_name: str, step_folder: Path) -> None:
        """Show how far a step is that trains or cleans; of others nothing is known before their end."""
        moved = (
            _training(step_folder, self._totals[step_name])
            if self._totals[step_name]
            else _cleaning(step_folder)
        )
        if moved is None:
            return
        with self._lock:
            self._live.update(self._rows[step_name], completed=moved.done, total=moved.total, note=moved.note)
            printed_at, printed_count = self._printed[step_name]
            is_due = time.monotonic() - printed_at > _SECONDS_BETWEEN_LINES
            # Only what moves: a last row would be repeated until the job has shut down.
            if not self.console.is_terminal and printed_count < moved.done < moved.total and is_due:
                self._printed[step_name] = (time.monotonic(), moved.done)
                self.console.print(f"      {step_name} {moved.done}/{moved.total}  {moved.note}")

    def finish(self, step_name: str, state: str, manifest: JsonObject | None = None) -> None:
        """Show that a step is `built`, `cached`, `failed` or `stopped`."""
        with self._lock:
            if step_name in self._rows:
                self._live.remove_task(self._rows.pop(step_name))
            self.done += 1
            duration_text = f"  {manifest['seconds']:.1f} s" if manifest and state == "built" else ""
            heldout_loss = (manifest or {}).get("facts", {}).get("heldout_loss")
            loss_text = f"  held-out loss {heldout_loss:.3f}" if heldout_loss is not None else ""
            self.console.print(
                f"[{self.done:>2}/{self.total}] {state:<7} {step_name}{duration_text}{loss_text}",
                markup=False,
            )
            for alarm in (manifest or {}).get("facts", {}).get("source_alarms", []):
                self.console.print(f"        {alarm}", markup=False, soft_wrap=True)
            for line in filter(None, [_set_aside(manifest), *_warnings(manifest)]):
                self.console.print(f"        {line}", markup=False, soft_wrap=True)


def _warnings(record: JsonObject | None) -> list[str]:
    """Return what a step found that is probably a mistake, such as a task that asks every record the same."""
    return (record or {}).get("facts", {}).get("warnings", [])


def _set_aside(manifest: JsonObject | None) -> str:
    """Print what could not be read of a source, also when the source is reused."""
    quarantined = (manifest or {}).get("facts", {}).get("quarantined")
    if not quarantined or not quarantined["first"]:
        return ""
    count_texts = [
        f"{quarantined[unit]} {unit.removesuffix('s') if quarantined[unit] == 1 else unit}"
        for unit in ("files", "rows")
    ]
    return f"{count_texts[0]} and {count_texts[1]} set aside; first: {quarantined['first'][0]}"


class _Moved(NamedTuple):
    done: int
    total: int
    note: str


def _training(stage_folder: Path, total_steps: int) -> _Moved | None:
    """Optimiser steps, from a training's newest metrics; None before its first logged step."""
    recent_rows = last_rows(stage_folder / METRICS, _RECENT)
    if not recent_rows:
        return None
    last_row = recent_rows[-1]
    loss_text = "not finite" if last_row["loss"] is None else f"{last_row['loss']:.3f}"
    # Rows of steps without a usable sample have no rate.
    timed_rows = [row for row in recent_rows if row["tokens_per_second"]]
    timed_seconds = sum(row["tokens"] / row["tokens_per_second"] for row in timed_rows)
    if not timed_seconds:
        return _Moved(last_row["step"], total_steps, f"loss {loss_text}")
    tokens_per_second = sum(row["tokens"] for row in timed_rows) / timed_seconds
    seconds_left = (total_steps - last_row["step"]) * timed_seconds / len(timed_rows)
    return _Moved(
        last_row["step"],
        total_steps,
        f"loss {loss_text}  {human(tokens_per_second)} tokens/s  ETA {human_time(seconds_left)}",
    )


def _cleaning(step_folder: Path) -> _Moved | None:
    """Shards, each counted once a pass over it."""
    cleaning_state = cleaning.read(step_folder)
    if cleaning_state is None:
        return None
    time_left = (
        "" if cleaning_state.seconds_left is None else f"  ETA {human_time(cleaning_state.seconds_left)}"
    )
    progress_note = (
        f"shards ({cleaning_state.stage})  {cleaning_state.bytes_per_second / 1e6:.1f} MB/s{time_left}"
    )
    return _Moved(cleaning_state.done, cleaning_state.total, progress_note)
