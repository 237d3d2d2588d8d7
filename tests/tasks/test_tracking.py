"""MLflow as a mirror: what it has not got is shipped later, and a run has few metric names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from openba.train.log import HELDOUT, METRICS, RATES
from tasks.tracking import StepRun


def row(step: int) -> dict[str, float]:
    figures = dict.fromkeys(("loss", "loss_R", "loss_S", "loss_X", "lr", "gradient_norm", *RATES), 1.0)
    return {"step": step, "time": 1e9 + step, **figures}


def leave(folder: Path, steps: range) -> None:
    languages = [
        f"{key}_{language}" for key in ("loss", "accuracy", "R", "R_accuracy") for language in ("zh", "en")
    ]
    measured = dict.fromkeys(
        ["loss", "accuracy", *"RSX", "R_accuracy", "S_accuracy", "X_accuracy", *languages], 2.0
    )
    (folder / METRICS).write_text("".join(json.dumps(row(step)) + "\n" for step in steps))
    (folder / HELDOUT).write_text(json.dumps({"step": 0, "tokens": 0, **measured}) + "\n")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StepRun:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=f"file://{tmp_path}/mlruns")
    experiment = client.create_experiment("test", str(tmp_path / "artifacts"))
    return StepRun(client, client.create_run(experiment).info.run_id)


def test_fault_31_a_server_that_is_away_gets_everything_later(
    run: StepRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(tmp_path, range(1, 4))
    there, run.client = run.client, MlflowClient(tracking_uri="http://127.0.0.1:9")
    run.watch(tmp_path)  # nobody listens there: no error
    assert "MLflow does not answer" in caplog.text
    leave(tmp_path, range(1, 6))
    run.client = there
    run.watch(tmp_path)  # too early to ask again
    assert there.get_metric_history(run.run_id, "loss") == []
    run._next = 0.0
    run.watch(tmp_path)
    assert [metric.step for metric in there.get_metric_history(run.run_id, "loss")] == [1, 2, 3, 4, 5]
    names = there.get_run(run.run_id).data.metrics
    assert {"loss_R", "mfu_useful", "heldout/R", "heldout/accuracy", "heldout/loss_zh"} < names.keys()
    assert "heldout/R_accuracy_zh" not in names
    assert len(names) <= 40  # and 20 facts
