"""Deployed flows on real servers: a trigger, a server that is away, a cancelled training, doctor's look.

One site (tests/harness/site.py) with Prefect, MLflow, Ray and a worker, from `deploy --all` on an empty
server to a cancelled Stage I that an event began; the tests look at what it left behind. The whole chain to a
champion takes minutes and is a benchmark (`python -m benchmarks operations`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from benchmarks.operations.chain import flow_runs_of
from openba.train.log import METRICS, read_rows
from tasks.doctor import AUTOMATIONS, Check, prefect_server
from tests.harness.site import JOB_ENDED, PIPELINE, Site, site, until

pytestmark = pytest.mark.timeout(900)

FOUR, LONG = (f"budget: {n} steps, evaluate_every: {n} steps" for n in (4, 100_000))


@dataclass
class Left:
    """What was seen and what is left."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    statuses: dict[str, str] = field(default_factory=dict)
    pending: str = ""
    """Flow run of a worker that died before it started the flow."""
    trained_without_mlflow: int = 0
    shipped: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    seen = Left()
    with site(tmp_path_factory.mktemp("o") / "s") as running:
        long = running.pipeline.with_name("long.yaml")
        long.write_text(PIPELINE.replace(FOUR, LONG, 1))
        seen.checks += prefect_server()
        running.deploy()
        seen.checks += prefect_server()
        running.create_automations(seconds=10)  # the least that Prefect allows
        seen.pending = running.pending("openba-data/data")
        until(lambda: _state(running, seen.pending) == "CRASHED", 60, "CRASHED, though no worker ever ran")
        running.delete_automations()
        running.start_worker()
        running.emit("openba.corpus.arrived", "openba.corpus.news", pipeline=str(long))
        _train_and_cancel(running, seen)
        yield seen


def _train_and_cancel(running: Site, seen: Left) -> None:
    def rows() -> list[Any]:
        return next((read_rows(path) for path in running.home.work.glob(f"stage1/*/{METRICS}")), [])

    until(lambda: len(rows()) >= 20, 300, "a training that an event began")
    running.services["mlflow"].stop()
    before = len(rows())
    time.sleep(3)
    seen.trained_without_mlflow = len(rows()) - before
    running.start_mlflow()
    running.services["mlflow"].wait()
    stage1 = next(run for run in running.runs() if run["parameters"].get("step") == "stage1")
    running.prefect("flow-run", "cancel", stage1["id"])
    until(lambda: _state(running, stage1["id"]) == "CANCELLED", 120, "CANCELLED")
    until(lambda: set(running.jobs()) <= JOB_ENDED, 60, "the job's end")
    seen.jobs = running.jobs()
    client = running.client()
    for run in flow_runs_of(running, stage1["id"]):
        seen.statuses[run.data.tags["openba.step"]] = run.info.status
        if run.data.tags["openba.step"] == "stage1":
            seen.shipped = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
    seen.trained = [row["step"] for row in rows()]
    time.sleep(5)  # a trigger's flow would be there
    seen.runs = [run for run in running.runs() if run["id"] != seen.pending]


def _state(running: Site, flow_run: str) -> str:
    return next(run["state_type"] for run in running.runs() if run["id"] == flow_run)


def test_an_event_starts_data_and_data_starts_stage1(left: Left) -> None:
    assert [run["state_type"] for run in left.runs] == ["COMPLETED", "CANCELLED"]
    assert [run["created_by"]["type"] for run in left.runs] == ["AUTOMATION", "AUTOMATION"]


def test_a_cancelled_training_stops_its_job_and_starts_nothing(left: Left) -> None:
    assert len(left.jobs) == 1
    assert left.statuses == {"stage1": "KILLED"}
    assert len(left.runs) == 2


def test_an_mlflow_server_that_was_away_has_every_metric(left: Left) -> None:
    assert left.trained_without_mlflow > 0
    # What was done after the last look of the flow that was cancelled is in the stage's files only.
    assert sorted(left.shipped) == list(range(1, len(left.shipped) + 1))
    assert len(left.shipped) > 20
    assert left.trained[: len(left.shipped)] == sorted(left.shipped)


def test_a_pending_run_of_a_dead_worker_gives_its_place_back(left: Left) -> None:
    """Its deployment runs one flow at a time, and ran the next one."""
    assert left.pending
    assert left.runs[0]["state_type"] == "COMPLETED"


def test_doctor_sees_the_automations_against_dead_workers(left: Left) -> None:
    before, _, after, _ = left.checks
    assert (before.ok, after.ok) == (None, True)
    assert all(name in before.observed for name in AUTOMATIONS)
    assert before.remedy == "infra/prefect/deploy.sh"


def test_doctor_sees_that_places_outlive_the_server(left: Left) -> None:
    _, before, _, after = left.checks
    assert (before.ok, after.ok) == (True, True)
    assert "filesystem" in after.observed
