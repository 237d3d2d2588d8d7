"""A training's figures as Prometheus metrics, exported by Ray's own metrics agent on the driver's node.

Owns their names and labels. Numbers come from the files that a stage writes;
Ray adds the prefix `ray_`, and its list of nodes is what Prometheus scrapes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from openba.accounting.energy import JOULES_PER_KWH, paper_energy
from openba.json_types import JsonObject
from openba.recipes.runtime import PipelineRuntime
from openba.train.log import ATTEMPTS, EVENTS, HELDOUT, METRICS, last_rows, read_rows

_SECONDS_BETWEEN_READS = 2.0

METRICS_TOLD = {
    "openba_step": "optimiser steps done",
    "openba_tokens": "real tokens trained on",
    "openba_loss": "nats per target token; objective: all, R, S, X",
    "openba_heldout_loss": "nats per target token of held-out data; objective: all, R, S, X",
    "openba_learning_rate": "of the last step",
    "openba_gradient_norm": "of the last step",
    "openba_tokens_per_second": "count: useful (real tokens) or padded",
    "openba_mfu": "share of the devices' peak; count: useful or padded",
    "openba_data_wait": "share of a step's time that waits for batches",
    "openba_checkpoint_stall_seconds": "that training waited for checkpoints, since the last logged step",
    "openba_events": "what was unusual so far; event: skipped, rolled back, spike, save failed",
    "openba_attempts": "worker groups that have been started",
    "openba_device_hours": "of all attempts",
    "openba_energy_kwh": "method: paper (hours x watts x PUE) or measured (counters x PUE, after an attempt)",
    "openba_tco2eq": "t CO2eq of that energy; method as there",
}
"""Every metric and what it counts; labels besides are `name` of the step and its `fingerprint`."""


_EVENTS = ("skipped", "rolled back", "spike", "save failed")
"""Those that alert rules look at (infra/prometheus/alerts.yaml)."""
_LABELS = {
    "openba_events": "event",
    "openba_loss": "objective",
    "openba_heldout_loss": "objective",
    "openba_tokens_per_second": "count",
    "openba_mfu": "count",
    "openba_energy_kwh": "method",
    "openba_tco2eq": "method",
}


class Figure(NamedTuple):
    """One value of one metric; `label` is the value of its own label, empty if it has none."""

    metric: str
    value: float
    label: str = ""


def figures(folder: Path, runtime: PipelineRuntime) -> Iterator[Figure]:
    """Read the gauges' values from a stage's folder; nothing before its first logged step."""
    rows = last_rows(folder / METRICS, 1)
    if not rows:
        return
    row = rows[0]
    yield Figure("openba_step", row["step"])
    yield Figure("openba_tokens", row["totals"]["tokens"])
    yield from _losses("openba_loss", row, {"loss": "all", "loss_R": "R", "loss_S": "S", "loss_X": "X"})
    if measured := last_rows(folder / HELDOUT, 1):
        yield from _losses("openba_heldout_loss", measured[0], {"loss": "all", "R": "R", "S": "S", "X": "X"})
    plain = {"lr": "learning_rate", "gradient_norm": "gradient_norm", "data_wait": "data_wait"}
    plain |= {"checkpoint_stall": "checkpoint_stall_seconds"}
    yield from (Figure(f"openba_{name}", row[key]) for key, name in plain.items() if row[key] is not None)
    for count in ("useful", "padded"):
        rate = "tokens_per_second" if count == "useful" else "padded_tokens_per_second"
        yield Figure("openba_tokens_per_second", row[rate], count)
        if f"mfu_{count}" in row:
            yield Figure("openba_mfu", row[f"mfu_{count}"], count)
    counts = Counter(event["event"] for event in read_rows(folder / EVENTS))
    yield from (Figure("openba_events", counts[event], event) for event in _EVENTS)
    attempts = read_rows(folder / ATTEMPTS)
    yield Figure("openba_attempts", len(attempts))
    yield from _energy(attempts, row, runtime)


def _losses(metric: str, row: JsonObject, names: dict[str, str]) -> Iterator[Figure]:
    yield from (
        Figure(metric, row[key], objective) for key, objective in names.items() if row.get(key) is not None
    )


def _energy(attempts: list[JsonObject], last_row: JsonObject, runtime: PipelineRuntime) -> Iterator[Figure]:
    """Sum over all attempts; the running one has the seconds of its last row, by a clock that never jumps."""
    running: dict[int, float] = {last_row["attempt"]: last_row["attempt_seconds"]}
    seconds = sum(row.get("seconds", running.get(number, 0.0)) for number, row in enumerate(attempts))
    hours = seconds * runtime.train.workers / 3600
    paper = paper_energy(hours, runtime.device.watts, runtime.pue, runtime.carbon_intensity)
    yield Figure("openba_device_hours", hours)
    yield Figure("openba_energy_kwh", paper.kwh, "paper")
    yield Figure("openba_tco2eq", paper.tco2eq, "paper")
    joules = [
        energy_joules
        for attempt in attempts
        for energy_joules in attempt.get("joules", {}).values()
        if energy_joules is not None
    ]
    if joules:
        kwh = sum(joules) / JOULES_PER_KWH * runtime.pue
        yield Figure("openba_energy_kwh", kwh, "measured")
        yield Figure("openba_tco2eq", kwh / 1000 * runtime.carbon_intensity, "measured")


class Gauges:
    """Tells the figures of one stage while the `with` block runs. Ray must be connected."""

    def __init__(self, folder: Path, runtime: PipelineRuntime) -> None:
        """Args: `work/NAME/FINGERPRINT`, where the stage writes; the runtime it runs under."""
        from ray.util.metrics import Gauge

        self.folder, self.runtime = folder, runtime
        self._own = {"name": folder.parent.name, "fingerprint": folder.name}
        self._gauges = {
            metric: Gauge(metric, metric_description, (*self._own, *filter(None, [_LABELS.get(metric)])))
            for metric, metric_description in METRICS_TOLD.items()
        }
        self._end = threading.Event()
        self._teller = threading.Thread(target=self._tell_on, name="gauges", daemon=True)

    def __enter__(self) -> Gauges:
        self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        # The thread may have been between two reads: without a last one the final step is missing.
        self._teller.join()
        self._tell()

    def _tell_on(self) -> None:
        while not self._end.wait(_SECONDS_BETWEEN_READS):
            self._tell()

    def _tell(self) -> None:
        for metric, value, label in figures(self.folder, self.runtime):
            labels_of_metric = {_LABELS[metric]: label} if label else {}
            self._gauges[metric].set(value, tags=self._own | labels_of_metric)
