"""The promotion log: what happened to each registered version, one JSON row an event, only ever appended to.

MLflow keeps no history of aliases, and its database can be lost; this file is what decides whether a version
was taken back. It is also the lock under which one process at a time judges and moves a champion.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from openba.errors import UserError
from openba.json_types import JsonObject

Event = Literal["promoted", "restored", "superseded", "refused", "rejected", "rolled back"]
"""`promoted`: became champion by the gate or by a person. `restored`: became champion again by a rollback.
`superseded`: another version was promoted over it. `refused`: by the gate, which judges it anew in every run.
`rejected`: a person said no. `rolled back`: was champion and was withdrawn by a person.
"""
MADE_CHAMPION = ("promoted", "restored")
TAKEN_BACK = ("rejected", "rolled back")
"""No run promotes such a version again; a person does, with `openba promote`."""
_SECONDS_FOR_LOCK = 120.0
"""The check of an export, 10 s a model, is made under the lock."""


class PromotionLog:
    """`promotions.jsonl` of one home."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the log alone, so that concurrent runs judge and promote one after the other.

        Raises:
            UserError: another process has held it for two minutes.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _SECONDS_FOR_LOCK
        # Not the log itself: an editor that a person corrects it with replaces the file, and its lock.
        with self.file.with_name(f"{self.file.name}.lock").open("a") as lock_file:
            while True:
                try:
                    fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UserError(
                            f"{self.file}: another process has held its lock for {_SECONDS_FOR_LOCK:.0f} s; "
                            "wait for that promotion or end it, then run again"
                        ) from None
                    time.sleep(0.1)
            yield

    def rows(self, model_name: str) -> list[JsonObject]:
        """Return the model's rows, oldest first.

        Raises:
            UserError: a row is damaged. It is not skipped, since it may have withdrawn a version.
        """
        if not self.file.exists():
            return []
        rows = []
        for line_number, line in enumerate(
            self.file.read_text(encoding="utf-8", errors="replace").splitlines(), 1
        ):
            try:
                row = json.loads(line)
                if row["model"] == model_name:
                    rows.append(row | {"event": row.get("event") or _event_of_older_row(row)})
            except (ValueError, TypeError, KeyError):
                raise UserError(
                    f"{self.file}: line {line_number} is damaged; correct or delete it, and check with "
                    "`openba promote` or `openba rollback` that the champions are right"
                ) from None
        return rows

    def note(self, model_name: str, version: str, fingerprint: str, event: Event, reason: str) -> None:
        """Append a row, on disk when this returns."""
        log_row = {
            "time": time.time(), "model": model_name, "version": version, "fingerprint": fingerprint,
            "event": event, "reason": reason,
        }  # fmt: skip
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(log_row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def last(self, model_name: str, version: str, fingerprint: str) -> JsonObject | None:
        """Return the newest row of a version.

        Rows are matched by fingerprint: version numbers start again at 1 after MLflow's database was lost.
        """
        version_rows = [
            row
            for row in self.rows(model_name)
            if row.get("fingerprint", fingerprint) == fingerprint
            and ("fingerprint" in row or str(row["version"]) == version)
        ]
        return version_rows[-1] if version_rows else None


def champions_before(rows: list[JsonObject], present_version: str) -> list[str]:
    """Versions that were champion before the present one, the newest first, without those taken back since.

    Promotions and rollbacks are replayed as a stack.
    """
    stack: list[str] = []
    for row in rows:
        version = str(row["version"])
        if row["event"] in MADE_CHAMPION:
            if version in stack:
                del stack[stack.index(version) + 1 :]
            else:
                stack.append(version)
        # A champion that was rolled back stays until the next row, `restored`, cuts it off.
        elif row["event"] in TAKEN_BACK and version in stack[:-1]:
            stack.remove(version)
    return stack[stack.index(present_version) - 1 :: -1] if present_version in stack[1:] else []


def _event_of_older_row(row: JsonObject) -> Event:
    """Version 0.1 wrote only what became champion."""
    return "restored" if str(row["reason"]).startswith("rollback from") else "promoted"
