"""Log files of a training: JSON lines that survive a crash of everything else.

`metrics.jsonl` one row per optimiser step, `heldout.jsonl` one per measurement, `attempts.jsonl`
one per start of the worker group, `events.jsonl` what was unusual: skipped steps, roll-backs, alarms.
These files are the truth; MLflow is fed from them. Numbers that are not finite are `null`.

Rank 0 holds the lines in memory as well: a row that a full disk refused is written later, and a file that
does not hold what was written to it is written anew at the next checkpoint and at the end. A checkpoint keeps
a copy of the lines under its digests, from which a resumed stage takes them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from openba import durable
from openba.json_types import JsonObject

METRICS = "metrics.jsonl"
HELDOUT = "heldout.jsonl"
ATTEMPTS = "attempts.jsonl"
EVENTS = "events.jsonl"
_KEY = {METRICS: "step", HELDOUT: "step", EVENTS: "step", ATTEMPTS: "from"}
"""A key that each row of a file has; a line without it is not one of ours."""

_ROW_BYTES = 2048
"""More than most rows have."""

RATES = (
    "tokens_per_second", "padded_tokens_per_second", "tflops", "mfu_useful", "mfu_padded", "data_wait",
    "checkpoint_stall", "failed_saves", "memory_gb",
)  # fmt: skip
"""Figures of speed and memory in a row of `metrics.jsonl`, see `meter.py`."""


class StageLog:
    """The logs of one stage; only rank 0 writes, `enabled` says whether this is it."""

    def __init__(self, folder: Path, enabled: bool) -> None:
        self.folder, self.enabled = folder, enabled
        self._lines: dict[str, list[str]] = {name: [] for name in _KEY}
        """Every line that each file has to hold, in order."""
        self._unwritten: dict[str, int] = dict.fromkeys(_KEY, 0)
        """How many lines at the end of each list the disk refused."""
        self._began = time.monotonic()
        if enabled:
            for name in _KEY:
                self._lines[name] = _read(folder / name)[0]

    def begin(self, step: int, saved_lines: Mapping[str, list[str]] | None = None) -> None:
        """Begin a worker group after `step`: cut what is run again, note the attempt.

        The time of a group that died is known up to its last logged step; it is kept, because
        its device hours were spent. Broken lines, as a power cut leaves them, are dropped and reported.

        Args:
            step: steps that are done.
            saved_lines: the lines as the checkpoint of that step has them.
        """
        if not self.enabled:
            return
        broken_counts = self._read_files(step, saved_lines or {})
        self._close_dead_attempts()
        # Rows of the checkpoint are the truth up to its step; files may have lost or damaged some.
        if saved_lines:
            for name in (METRICS, HELDOUT):
                self._lines[name] = list(saved_lines[name])
        self._began = time.monotonic()
        self._lines[ATTEMPTS].append(durable.dumps({"from": step, "time": time.time()}))
        self.cut(step)
        self._rewrite(ATTEMPTS)
        for name, count in broken_counts.items():
            plural = "s" if count > 1 else ""
            print(f"{self.folder / name}: {count} broken line{plural} dropped", file=sys.stderr)
            self.event("log repaired", step, file=name, dropped=count)

    def cut(self, step: int) -> None:
        """Forget what came after `step`, since it is run again; roll-backs stay."""
        if not self.enabled:
            return
        for name in (METRICS, HELDOUT):
            # At step 0 nothing is kept: the measurement before the first step is made again too.
            self._keep(name, [row["step"] <= step and step > 0 for row in self.rows(name)])
        event_rows = self.rows(EVENTS)
        is_settled = [row["event"] == "rolled back" and row["step"] <= step for row in event_rows]
        settled_count = (
            len(event_rows) - is_settled[::-1].index(True) if any(is_settled) else 0
        )  # also what led to it
        self._keep(EVENTS, [n < settled_count or row["step"] <= step for n, row in enumerate(event_rows)])

    def end(self, joules: dict[str, float | None], estimated: dict[str, float | None]) -> None:
        """Write the end of the worker group's last step, with the energy measured and estimated."""
        if self.enabled:
            row = json.loads(self._lines[ATTEMPTS][-1])
            row |= {"seconds": self.seconds, "joules": joules, "estimated": estimated}
            self._lines[ATTEMPTS][-1] = durable.dumps(row)
            self._rewrite(ATTEMPTS)

    @property
    def seconds(self) -> float:
        """Seconds since this worker group began, by a clock that never jumps."""
        return time.monotonic() - self._began

    @property
    def attempt(self) -> int:
        """Number of this worker group, from 0."""
        return max(0, len(self._lines[ATTEMPTS]) - 1)

    def write(self, file_name: str, row: JsonObject) -> None:
        """Append one row, and those before it that the disk refused."""
        if not self.enabled:
            return
        lines = self._lines[file_name]
        # In memory first: a row that the disk refuses is written with the next.
        lines.append(durable.dumps(row))
        self._unwritten[file_name] += 1
        if _append(self.folder / file_name, _text(lines[-self._unwritten[file_name] :])):
            self._unwritten[file_name] = 0

    def event(self, event: str, step: int, **facts: Any) -> None:
        """Note what was unusual at `step`, for people and for a resumed run."""
        self.write(EVENTS, {"event": event, "step": step, **facts, "time": time.time()})

    def rows(self, file_name: str) -> list[JsonObject]:
        """All rows that were written; on other ranks than 0, those that have reached the file."""
        if not self.enabled:
            return read_rows(self.folder / file_name)
        return [json.loads(line) for line in self._lines[file_name]]

    def verify(self, step: int) -> None:
        """Write each file anew that does not hold what was written to it, and note that as an event."""
        if not self.enabled:
            return
        for name in _KEY:
            if self._unwritten[name] == 0 and not _holds(self.folder / name, _text(self._lines[name])):
                self._rewrite(name)
                print(f"{self.folder / name}: damaged; written anew", file=sys.stderr)
                self.event("log repaired", step, file=name)

    def snapshot(self) -> dict[str, list[str]]:
        """Return the lines of every file, for a checkpoint; empty on other ranks than 0."""
        return {name: list(lines) for name, lines in self._lines.items()} if self.enabled else {}

    def _read_files(self, step: int, saved_lines: Mapping[str, list[str]]) -> dict[str, int]:
        """Take the lines from the files, completed from the checkpoint's; return broken lines by file."""
        broken_counts = {}
        for name in _KEY:
            self._lines[name], count = _read(self.folder / name)
            if count:
                broken_counts[name] = count
        self._lines[EVENTS] = _merged(saved_lines.get(EVENTS, []), self._lines[EVENTS])
        # An attempt's row is replaced when the attempt ends: it is known by the moment that it began.
        begun = [json.loads(line)["time"] for line in self._lines[ATTEMPTS]]
        lost = [line for line in saved_lines.get(ATTEMPTS, []) if json.loads(line)["time"] not in begun]
        self._lines[ATTEMPTS] = lost + self._lines[ATTEMPTS]
        return broken_counts

    def _close_dead_attempts(self) -> None:
        """Give each attempt that has no end the seconds up to its last logged step."""
        reached_seconds: dict[int, float] = {}
        for row in self.rows(METRICS):
            if "attempt" in row:
                reached_seconds[row["attempt"]] = row["attempt_seconds"]
        for number, row in enumerate(self.rows(ATTEMPTS)):
            if "seconds" not in row:
                self._lines[ATTEMPTS][number] = durable.dumps(
                    {**row, "seconds": reached_seconds.get(number, 0.0)}
                )

    def _keep(self, file_name: str, is_chosen: list[bool]) -> None:
        self._lines[file_name] = [
            line for line, keep in zip(self._lines[file_name], is_chosen, strict=True) if keep
        ]
        if self._lines[file_name] or (self.folder / file_name).exists():
            self._rewrite(file_name)

    def _rewrite(self, file_name: str) -> None:
        """Replace the file; if the disk refuses, all of it waits in memory."""
        try:
            durable.write_text(self.folder / file_name, _text(self._lines[file_name]))
            self._unwritten[file_name] = 0
        except OSError as error:
            print(f"{self.folder / file_name}: {error}; it is written later", file=sys.stderr)


class NewRows:
    """Reads the rows that were appended to a JSON-lines file since the last call, and those only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rewritten = False
        """Whether the last call found another file: its rows are all of the file's, from the first."""
        self._inode = -1
        self._offset = 0

    @property
    def is_new(self) -> bool:
        """Whether the file was never read: the next call returns all of its rows."""
        return self._inode == -1

    def read(self) -> list[JsonObject]:
        """Return whole new rows, in order; a line that is being written is left for the next call."""
        self.rewritten = False
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self.rewritten = self._inode != -1
                    self._inode = status.st_ino
                    self._offset = 0
                file.seek(self._offset)
                new_content = file.read()
        except FileNotFoundError:
            return []
        end = new_content.rfind(b"\n") + 1  # of the last complete line
        self._offset += end
        return [json.loads(line) for line in _parse(self.path.name, new_content[:end])[0]]


def read_rows(path: Path) -> list[JsonObject]:
    """Return the whole rows of a JSON-lines file; lines that a crash cut short or broke are left out."""
    return [json.loads(line) for line in _read(path)[0]]


def last_rows(path: Path, count: int) -> list[JsonObject]:
    """Return the last whole rows, at most `count`, without reading the file before them."""
    try:
        with path.open("rb") as file:
            file_size = file.seek(0, os.SEEK_END)
            block_length = min(file_size, count * _ROW_BYTES)
            while True:
                file.seek(file_size - block_length)
                block_content = file.read(block_length)
                if block_length == file_size or block_content.count(b"\n") > count:
                    break
                block_length = min(file_size, 2 * block_length)
    except FileNotFoundError:
        return []
    if block_length < file_size:
        block_content = block_content[
            block_content.find(b"\n") + 1 :
        ]  # the rest of a row that begins before the block
    return [json.loads(line) for line in _parse(path.name, block_content)[0][-count:]]


def _read(path: Path) -> tuple[list[str], int]:
    """Lines that hold a row, and how many do not."""
    return _parse(path.name, path.read_bytes()) if path.exists() else ([], 0)


def _parse(file_name: str, file_content: bytes) -> tuple[list[str], int]:
    lines: list[str] = []
    broken_count = 0
    *complete_lines, tail = file_content.split(b"\n")
    for line in complete_lines:
        with suppress(ValueError):  # not JSON, or not UTF-8
            row = json.loads(line)
            if isinstance(row, dict) and (file_name not in _KEY or _KEY[file_name] in row):
                lines.append(line.decode())
                continue
        broken_count += 1
    return lines, broken_count + bool(tail)


def _merged(saved_log: list[str], current_log: list[str]) -> list[str]:
    """Return the checkpoint's lines, then those that came after it."""
    saved_lines = set(saved_log)
    return [*saved_log, *(line for line in current_log if line not in saved_lines)]


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return not text


def _append(path: Path, text: str) -> bool:
    """Add all of the text or nothing of it."""
    size_before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        return True
    except OSError as error:
        print(f"{path}: {error}; its rows wait in memory", file=sys.stderr)
        with suppress(OSError):
            os.truncate(path, size_before)
        return False
