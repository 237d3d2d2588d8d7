"""A node's figures: measured, written, and shipped as MLflow's system metrics within the limit of names."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from openba.train.log import HELDOUT, METRICS, RATES, read_rows
from tasks.nodes import FOLDER, NAMES, NodeMeter, measure
from tasks.tracking import StepRun


def test_a_meter_writes_at_once_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    for group in (1, 2):
        with NodeMeter(tmp_path, "10.0.0.11"):
            end = time.monotonic() + 20
            while len(read_rows(tmp_path / FOLDER / "10.0.0.11.jsonl")) < group and time.monotonic() < end:
                time.sleep(0.05)
    rows = read_rows(tmp_path / FOLDER / "10.0.0.11.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0 <= row[name] <= 100 for row in rows for name in NAMES[:2])


def test_a_node_has_the_figures_that_it_can_tell() -> None:
    assert tuple(measure()) in (NAMES, NAMES[:2])  # with devices, and without


def test_six_nodes_of_eight_devices_leave_room_for_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    figures = dict.fromkeys(("loss", "loss_R", "loss_S", "loss_X", "lr", "gradient_norm", *RATES), 1.0)
    (tmp_path / METRICS).write_text(json.dumps({"step": 1, "time": 1e9, **figures}) + "\n")
    (tmp_path / HELDOUT).write_text("")
    (tmp_path / FOLDER).mkdir()
    for number in range(6):
        rows = [{"step": step, "time": 1e9 + step, **dict.fromkeys(NAMES, 50.0)} for step in (1, 2, 3)]
        path = tmp_path / FOLDER / f"10.0.0.1{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    client = MlflowClient(tracking_uri=f"file://{tmp_path}/mlruns")
    run = client.create_run(client.create_experiment("test")).info.run_id
    StepRun(client, run).ship(tmp_path)
    StepRun(client, run).ship(tmp_path)  # a flow that is started again ships nothing twice
    names = client.get_run(run).data.metrics.keys()
    assert {f"system/10.0.0.10/{name}" for name in NAMES} <= names
    assert len(names) <= 40
    history = client.get_metric_history(run, f"system/10.0.0.13/{NAMES[0]}")
    assert [point.step for point in history] == [1, 2, 3]
