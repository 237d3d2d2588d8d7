"""MLflow as a mirror: what it has not got is shipped later, and a run has few metric names."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from openba.errors import UserError
from openba.home import Home
from openba.train.log import HELDOUT, METRICS, RATES, StageLog
from tasks.tracking import FINGERPRINT, StepRun, Tracking


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


def history(run: StepRun, metric: str) -> list[tuple[int, int, float]]:
    return [(m.step, m.timestamp, m.value) for m in run.client.get_metric_history(run.run_id, metric)]


def test_a_roll_back_leaves_no_withdrawn_row(run: StepRun, tmp_path: Path) -> None:
    """Steps 4 to 6 are withdrawn and made again with other losses: MLflow has what the file has."""
    log = StageLog(tmp_path, enabled=True)
    log.begin(0)
    log.write(HELDOUT, {"step": 0, "tokens": 0, "loss": 9.0})
    for step in range(1, 7):
        log.write(METRICS, row(step) | {"loss": 8.0})
    run.ship(tmp_path)
    first = run.run_id
    run.client.set_tag(first, "openba.fingerprint", "f" * 12)
    log.cut(3)
    for step in range(4, 6):
        log.write(METRICS, row(step) | {"loss": 7.0, "time": 2e9 + step})
    run.ship(tmp_path)
    log.write(METRICS, row(6) | {"loss": 7.0, "time": 2e9 + 6})
    run.ship(tmp_path)
    run.ship(tmp_path)
    expected = [(r["step"], int(r["time"] * 1000), r["loss"]) for r in log.rows(METRICS)]
    assert history(run, "loss") == expected
    assert [(step, value) for step, _, value in history(run, "heldout/loss")] == [(0, 9.0)]
    assert run.run_id != first
    assert run.client.get_run(first).info.lifecycle_stage == "deleted"
    assert run.client.get_run(run.run_id).data.tags["openba.fingerprint"] == "f" * 12


def test_a_resumed_run_is_mirrored_by_another_process(run: StepRun, tmp_path: Path) -> None:
    """The flow that shipped six steps died; the next one meets a training that went on from step 3."""
    leave(tmp_path, range(1, 7))
    run.ship(tmp_path)
    leave(tmp_path, range(1, 4))
    with (tmp_path / METRICS).open("a") as file:
        file.write(json.dumps(row(4) | {"time": 2e9}) + "\n")
    again = StepRun(run.client, run.run_id)
    again.ship(tmp_path)
    assert [step for step, _, _ in history(again, "loss")] == [1, 2, 3, 4]
    assert history(again, "loss")[-1][1] == int(2e9) * 1000


def test_rows_that_mlflow_has_are_not_shipped_again(run: StepRun, tmp_path: Path) -> None:
    leave(tmp_path, range(1, 4))
    run.ship(tmp_path)
    again = StepRun(run.client, run.run_id)
    again.ship(tmp_path)
    assert again.run_id == run.run_id
    assert [step for step, _, _ in history(again, "loss")] == [1, 2, 3]
    assert len(history(again, "heldout/R")) == 1


def test_a_loss_that_is_not_finite_reaches_mlflow_as_no_point(run: StepRun, tmp_path: Path) -> None:
    log = StageLog(tmp_path, enabled=True)
    log.begin(0)
    log.write(METRICS, row(1))
    log.write(METRICS, row(2) | {"loss": float("nan"), "gradient_norm": None})
    log.write(METRICS, row(3))
    run.ship(tmp_path)
    assert [step for step, _, _ in history(run, "loss")] == [1, 3]
    assert [step for step, _, _ in history(run, "lr")] == [1, 2, 3]


def test_the_newer_of_two_runs_of_a_step_stays(mlflow_home: Home) -> None:
    """A process that replaced a run was killed before it deleted the old one."""
    tracking = Tracking(mlflow_home, "test", "flow")
    runs = [
        tracking.client.create_run(tracking.experiment, start_time=time, tags={FINGERPRINT: "a" * 12})
        for time in (1000, 2000)
    ]
    again = Tracking(mlflow_home, "test", "flow")
    assert again._runs["a" * 12].info.run_id == runs[1].info.run_id
    assert tracking.client.get_run(runs[0].info.run_id).info.lifecycle_stage == "deleted"


@pytest.fixture
def away(mlflow_home: Home, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    """The tracking of a flow whose server has gone: nobody listens at its address."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracking = Tracking(mlflow_home, "test", "flow")
    tracking.client = MlflowClient(tracking_uri="http://127.0.0.1:9")
    return tracking


def test_a_server_is_waited_for_and_then_told_of(away: Tracking, mlflow_home: Home) -> None:
    there = MlflowClient(tracking_uri=mlflow_home.tracking_uri)
    threading.Timer(0.6, setattr, (away, "client", there)).start()
    assert away.patiently(lambda: away.client.get_experiment(away.experiment)).name == "openba-test"
    away.client = MlflowClient(tracking_uri="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"does not answer .* no metric is lost"):
        away.patiently(away.client.search_experiments, seconds=0.6)


def test_a_link_waits_for_a_server_that_is_away(run: StepRun) -> None:
    there, run.client = run.client, MlflowClient(tracking_uri="http://127.0.0.1:9")
    run.link("ray.job", "http://127.0.0.1:8265/#/jobs/1")  # no error: a training goes on meanwhile
    run.client, run._next_link = there, 0.0
    run.link("ray.job", "http://127.0.0.1:8265/#/jobs/1")
    assert there.get_run(run.run_id).data.tags["ray.job"] == "http://127.0.0.1:8265/#/jobs/1"


def test_a_run_that_was_ended_has_what_was_done(away: Tracking, run: StepRun, tmp_path: Path) -> None:
    """Also where the first call of the last try is not heard: nothing counts as shipped before it is."""
    leave(tmp_path, range(1, 4))
    there, run.client = run.client, MlflowClient(tracking_uri="http://127.0.0.1:9")
    with pytest.raises(MlflowException):
        run.ship(tmp_path)
    run.client = there
    away.end(run, "KILLED", tmp_path)
    assert [metric.step for metric in there.get_metric_history(run.run_id, "loss")] == [1, 2, 3]
    assert there.get_run(run.run_id).info.status == "KILLED"


def test_what_a_server_refuses_is_not_asked_again(away: Tracking, mlflow_home: Home) -> None:
    away.client = MlflowClient(tracking_uri=mlflow_home.tracking_uri)
    with pytest.raises(MlflowException, match="nowhere"):
        away.patiently(lambda: away.client.get_run("nowhere"))


def test_a_flow_that_is_stopped_waits_no_longer(away: Tracking) -> None:
    threading.Timer(0.6, away._stopping.set).start()
    began = time.monotonic()
    with pytest.raises(UserError):
        away.patiently(away.client.search_experiments)
    assert time.monotonic() - began < 60
