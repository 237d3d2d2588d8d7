"""Protocols of experiment trackers: what a session says of its steps, whoever keeps it.

`tasks.tracking` has MLflow's; `JsonLinesTracker` here writes a file. `runtime.tracker` chooses. A tracker
mirrors the manifests and log files of steps and may be lost: nothing is read back to build a step. The
model registry is MLflow's own and needs `tracker: mlflow`.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from openba.artifacts import Step, Store
from openba.json_types import JsonObject
from openba.redact import redact
from openba.train.log import read_rows


class TrackedRun(Protocol):
    """The record of one step while it is being built."""

    def watch(self, folder: Path) -> None:
        """Take over what is new in the step's log files; called often, so it decides itself when."""

    def link(self, label: str, url: str) -> None:
        """Note the address of a page about this run."""


class Tracker(Protocol):
    """Keeps runs of the steps of one pipeline, one run per fingerprint."""

    def begin(self, step: Step) -> TrackedRun:
        """Open the step's run; a step that is retried or resumed goes on in its own."""

    def finish(self, run: Any, step: Step, record: JsonObject, store: Store) -> None:
        """Note a complete step, with its manifest; `run` is what `begin` returned."""

    def end(self, run: Any, status: str, folder: Path) -> None:
        """Note a step that was not completed: FAILED or KILLED. Raises nothing."""

    def mirror(self, step: Step, record: JsonObject, store: Store) -> None:
        """Make sure that a step that was complete already has a finished run."""

    def links(self) -> dict[str, str]:
        """Return label and address of each page that shows the runs."""


class JsonLinesRun:
    """One step's rows in the file of a `JsonLinesTracker`."""

    def __init__(self, tracker: JsonLinesTracker, step: Step) -> None:
        self._tracker = tracker
        self._step = step
        self._links: set[str] = set()

    def write(self, event: str, **values: Any) -> None:
        """Append a row."""
        self._tracker.append(
            {"step": self._step.name, "fingerprint": self._step.fingerprint, "event": event, **values}
        )

    def watch(self, folder: Path) -> None:
        """Do nothing: the step's metrics are in `folder`, whose address the last row has."""

    def link(self, label: str, url: str) -> None:
        """Append the address, once."""
        if url not in self._links:
            self._links.add(url)
            self.write("link", label=label, url=redact(url))


class JsonLinesTracker:
    """Appends a row for each begin and end of a step to `OPENBA_HOME/runs.jsonl`: no server, no database."""

    def __init__(self, runs_file: Path, pipeline: str, flow_run: str) -> None:
        self.path = runs_file
        self._constants = {"pipeline": pipeline, "flow_run": flow_run}
        self._lock = threading.Lock()
        # Fingerprints that an earlier run has written: a cached step is noted once only.
        rows = read_rows(runs_file) if runs_file.exists() else []
        self._finished = {row["fingerprint"] for row in rows if row["event"] == "finished"}

    def append(self, row: JsonObject) -> None:
        """Write a row with the time and this run's pipeline and flow run."""
        json_line = json.dumps({"time": time.time(), **self._constants, **row}, ensure_ascii=False)
        # Steps end in several threads; a line must not be cut by another.
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(f"{json_line}\n")

    def begin(self, step: Step) -> JsonLinesRun:
        """Append that the step is being built."""
        run = JsonLinesRun(self, step)
        run.write("begun", inputs={key: parent.key for key, parent in step.inputs.items()})
        return run

    def finish(self, run: JsonLinesRun, step: Step, record: JsonObject, store: Store) -> None:
        """Append the facts and the output's address."""
        run.write("finished", facts=record["facts"], seconds=record["seconds"], uri=redact(store.uri(step)))
        self._finished.add(step.fingerprint)

    def end(self, run: JsonLinesRun, status: str, folder: Path) -> None:
        """Append the status and the folder of the unfinished output."""
        run.write("ended", status=status, folder=str(folder))

    def mirror(self, step: Step, record: JsonObject, store: Store) -> None:
        """Append a finished run, unless the file has one of this fingerprint."""
        if step.fingerprint not in self._finished:
            self.finish(JsonLinesRun(self, step), step, record, store)

    def links(self) -> dict[str, str]:
        """Return the address of the file."""
        return {"Runs": str(self.path)}
