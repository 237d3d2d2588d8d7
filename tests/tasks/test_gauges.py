"""What a stage's files say, as metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openba.config import CONFIGS, load
from openba.recipes.runtime import PipelineRuntime
from openba.train.log import ATTEMPTS, EVENTS, HELDOUT, METRICS, RATES
from tasks.gauges import _LABELS, METRICS_TOLD, Figure, figures

RUNTIME = load(CONFIGS / "runtime" / "paper.yaml", PipelineRuntime)


def leave(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(step: int, **more: Any) -> dict[str, Any]:
    figures = dict.fromkeys(("loss", "lr", "gradient_norm", *RATES), 0.5)
    clock = {"time": 1000.0 + step, "attempt": 0, "attempt_seconds": float(step)}
    return {"step": step, "totals": {"tokens": 100 * step}, **clock, **figures, **more}


def told(folder: Path) -> dict[tuple[str, str], float]:
    return {(figure.metric, figure.label): figure.value for figure in figures(folder, RUNTIME)}


def test_nothing_before_the_first_step(tmp_path: Path) -> None:
    assert told(tmp_path) == {}


def test_the_newest_row_is_told(tmp_path: Path) -> None:
    leave(tmp_path, METRICS, row(1, loss=9.0), row(2, loss=8.0, loss_R=7.0, loss_X=6.0, gradient_norm=None))
    leave(tmp_path, HELDOUT, {"step": 0, "loss": 9.0}, {"step": 2, "loss": 5.0, "S": 4.0, "S_accuracy": 0.5})
    found = told(tmp_path)
    assert found["openba_step", ""] == 2
    assert found["openba_tokens", ""] == 200
    losses = {label: value for (metric, label), value in found.items() if metric == "openba_loss"}
    assert losses == {"all": 8.0, "R": 7.0, "X": 6.0}
    heldout = {label: value for (metric, label), value in found.items() if metric == "openba_heldout_loss"}
    assert heldout == {"all": 5.0, "S": 4.0}
    assert ("openba_gradient_norm", "") not in found


def test_energy_is_of_all_attempts_and_measured_where_it_was(tmp_path: Path) -> None:
    """32 devices at 400 W and PUE 1.1 for an hour: 14.08 kWh; equation 2 of the paper gives the carbon."""
    leave(tmp_path, METRICS, row(5, time=0.0, attempt=1, attempt_seconds=1800.0))
    leave(
        tmp_path,
        ATTEMPTS,
        {"from": 0, "time": 0.0, "seconds": 1800.0, "joules": {"gpu": 7.2e6, "cpu": None}},
        {"from": 0, "time": 5000.0},
    )
    found = told(tmp_path)
    assert found["openba_device_hours", ""] == pytest.approx(32)
    assert found["openba_energy_kwh", "paper"] == pytest.approx(32 * 0.4 * 1.1)
    assert found["openba_tco2eq", "paper"] == pytest.approx(32 * 0.4 * 1.1 * 0.385 / 1000)
    assert found["openba_energy_kwh", "measured"] == pytest.approx(2 * 1.1)


def test_events_and_attempts_are_counted_from_zero(tmp_path: Path) -> None:
    """An alert compares with an earlier value, so that there has to be one."""
    leave(tmp_path, METRICS, row(1))
    found = told(tmp_path)
    assert [found["openba_events", event] for event in ("skipped", "rolled back", "save failed")] == [0, 0, 0]
    assert found["openba_attempts", ""] == 0
    leave(tmp_path, EVENTS, {"event": "skipped", "step": 1}, {"event": "skipped", "step": 2})
    leave(tmp_path, ATTEMPTS, {"from": 0, "time": 0.0, "seconds": 1.0}, {"from": 0, "time": 5.0})
    found = told(tmp_path)
    assert (found["openba_events", "skipped"], found["openba_attempts", ""]) == (2, 2)


def test_every_figure_has_a_declared_metric_and_label(tmp_path: Path) -> None:
    leave(tmp_path, METRICS, row(1, loss_S=1.0))
    leave(tmp_path, HELDOUT, {"step": 1, "loss": 1.0})
    leave(tmp_path, ATTEMPTS, {"time": 0.0, "seconds": 1.0, "joules": {"cpu": 1.0}})
    found: list[Figure] = list(figures(tmp_path, RUNTIME))
    assert {figure.metric for figure in found} == METRICS_TOLD.keys()
    assert all(bool(figure.label) == (figure.metric in _LABELS) for figure in found)
