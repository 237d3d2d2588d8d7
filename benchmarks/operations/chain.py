"""Operations on real servers: the chain of triggers, refused, cancelled and killed flows, restarts.

Everything goes through Prefect's own command and API on a site of its own (`tests/harness/site.py`).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psutil
from mlflow.entities import Run

from benchmarks.figure import Figure
from openba.graph import Pipeline
from openba.train.log import METRICS, read_rows
from tests.harness.site import JOB_ENDED, Site, site, until

FLOWS = 10
"""Of the small pipeline: data, three stages, one expert, two evaluations, three promotions."""
LONG = '["stages.stage3.budget=100000 steps","stages.stage3.evaluate_every=100000 steps"]'
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def figures() -> Iterator[Figure]:
    """One site for all rows, in the order in which a cluster's life would meet them."""
    with tempfile.TemporaryDirectory(prefix="openba-") as folder, site(Path(folder) / "site") as running:
        yield from _chain(running)
        yield from _refused(running)
        yield from _approved(running)
        yield from _cancelled(running)
        yield from _restarts(running)
        yield from _dead(running)


def _chain(running: Site) -> Iterator[Figure]:
    """`deploy --all` on an empty server, one event, and the last promotion."""
    began = time.monotonic()
    running.deploy()
    running.start_worker()
    yield Figure("operations/deploy_all", time.monotonic() - began, "s")
    began = time.monotonic()
    running.emit("openba.corpus.arrived", "openba.corpus.news", pipeline=str(running.pipeline))
    until(lambda: _ended(running) >= FLOWS, 1200, "the chain")
    yield Figure("operations/chain_by_triggers_alone", (time.monotonic() - began) / 60, "min")
    runs = running.runs()
    by_hand = [run for run in runs if not any(tag.startswith("auto-") for tag in _causes(run))]
    yield Figure("operations/chain_flows_not_started_by_a_trigger", len(by_hand), "", 0)
    failed = [run for run in runs if run["state_type"] != "COMPLETED"]
    yield Figure("operations/chain_flows_failed", len(failed), "", 0)
    champions = {row["model"] for row in read_rows(running.home.promotions)}
    yield Figure("operations/chain_champions", len(champions), "", 3, "higher")


def _refused(running: Site) -> Iterator[Figure]:
    """Stage III once more, from the store, with a limit that it does not keep, then with one that it does."""
    for name, limit, expected in (("refused", 0.001, 0), ("passed", 1000.0, 2)):
        before = {run["id"] for run in running.runs()}
        own_run = _start(running, "openba-train/stage3", f"max_heldout_loss={limit}", "step=stage3")
        until(lambda own_run=own_run: _state(running, own_run) in ENDED, 180, "stage3")  # type: ignore[misc]
        time.sleep(20)  # what a trigger starts is there in 3
        followed = [run for run in running.runs() if run["id"] not in before | {own_run}]
        side: Literal["lower", "higher"] = "higher" if expected else "lower"
        yield Figure(f"operations/flows_after_a_{name}_stage", len(followed), "", expected, side)
    until(lambda: _idle(running), 300, "the end of what followed")


def _approved(running: Site) -> Iterator[Figure]:
    """Send a better Stage III through the chain and ask a person: no leaves the champion, yes moves it."""
    steps = '"stages.stage3.budget=40 steps","stages.stage3.evaluate_every=40 steps"'
    better = f'overrides=[{steps},"registry.gate.approval=true"]'
    _start(running, "openba-train/stage3", better, "step=stage3")
    before = running.champion("openba-flan")
    for answer in (False, True):
        if answer:
            _start(running, "openba-promote/promote", better, "model=stage3")
        asked = until(lambda: _suspended(running), 400, "a flow that waits for a person")
        yield Figure(
            f"operations/champion_moved_before_{_word(answer)}",
            running.champion("openba-flan") != before,
            "",
            0,
        )
        running.resume(asked, {"approve": answer, "by": "a person"})
        until(lambda asked=asked: _state(running, asked) in ENDED, 240, "the answer's end")  # type: ignore[misc]
        moved = running.champion("openba-flan") != before
        yield Figure(
            f"operations/champion_moved_after_{_word(answer)}",
            moved,
            "",
            float(answer),
            "higher" if answer else "lower",
        )
    until(lambda: _idle(running), 400, "what follows")


def _suspended(running: Site) -> str | None:
    """Return the flow run that waits for an answer on Stage III, if one does."""
    waiting = (run for run in running.runs() if run["state_type"] == "PAUSED")
    return next((run["id"] for run in waiting if run["parameters"]["model"] == "stage3"), None)


def _word(answer: bool) -> str:
    return "yes" if answer else "no"


def _cancelled(running: Site) -> Iterator[Figure]:
    """`prefect flow-run cancel` in the middle of a training; the next in the queue waits for its place."""
    flow_run, _ = _train(running, LONG)
    waiting = _start(running, "openba-train/stage2", "step=stage2")
    began = time.monotonic()
    running.prefect("flow-run", "cancel", flow_run)
    until(lambda: set(running.jobs()) <= JOB_ENDED, 120, "the job's end")
    yield Figure("operations/cancel_job_stopped", time.monotonic() - began, "s", 60)
    until(lambda: _runs_of(running, flow_run) == {"KILLED"}, 120, "KILLED")
    yield Figure("operations/cancel_mlflow_run_killed", time.monotonic() - began, "s", 60)
    until(lambda: _state(running, waiting) in ("RUNNING", "COMPLETED"), 120, "the place in the queue")
    yield Figure("operations/cancel_place_in_queue_taken", time.monotonic() - began, "s", 60)
    until(lambda: _state(running, flow_run) == "CANCELLED", 60, "CANCELLED")
    until(lambda: _idle(running), 300, "the end of the waiting flow")


def _restarts(running: Site) -> Iterator[Figure]:
    """Both servers away in the middle of a training, one after the other."""
    steps = 6000
    short = f'["stages.stage3.budget={steps} steps","stages.stage3.evaluate_every={steps} steps"]'
    flow_run, folder = _train(running, short)
    for name, away in (("prefect", 20), ("mlflow", 40)):
        running.services[name].stop()
        before = len(read_rows(folder / METRICS))
        time.sleep(away)
        went_on = len(read_rows(folder / METRICS)) - before
        yield Figure(f"operations/steps_trained_without_{name}", went_on, "steps", 1, "higher")
        getattr(running, f"start_{name}")()
        running.services[name].wait()
    until(lambda: _state(running, flow_run) in ENDED, 600, "the training's end")
    yield Figure(
        "operations/restart_flow_completed", _state(running, flow_run) == "COMPLETED", "", 1, "higher"
    )
    client = running.client()
    run = flow_runs_of(running, flow_run)[0]
    shipped = {metric.step for metric in client.get_metric_history(run.info.run_id, "loss")}
    yield Figure("operations/restart_metrics_lost", len(set(range(1, steps + 1)) - shipped), "steps", 0)
    until(lambda: _idle(running), 300, "what follows")


def _dead(running: Site) -> Iterator[Figure]:
    """Kill a flow's process, then a flow's process and its worker, and measure what remains of them."""
    flow_run, _ = _train(running, LONG)
    _flow_process(running).kill()
    began = time.monotonic()
    until(lambda: _state(running, flow_run) == "CRASHED", 120, "CRASHED")
    until(lambda: _runs_of(running, flow_run) == {"KILLED"}, 120, "KILLED")
    until(lambda: set(running.jobs()) <= JOB_ENDED, 120, "the job's end")
    yield Figure("operations/killed_flow_cleared", time.monotonic() - began, "s", 60)
    running.create_automations(seconds=60)  # heartbeats come every 30 s here
    flow_run, _ = _train(running, LONG)
    process = _flow_process(running)
    running.services["worker"].process.kill()
    process.kill()
    began = time.monotonic()
    until(lambda: _state(running, flow_run) == "CRASHED", 300, "CRASHED by the automation")
    yield Figure("operations/dead_worker_run_marked_crashed", time.monotonic() - began, "s", 180)
    jobs = len(running.jobs())
    running.start_worker()
    again = _start(running, "openba-train/stage3", f"overrides={LONG}", "step=stage3")
    until(lambda: again in _running_flows(running), 180, "a flow that goes on with the job")
    yield Figure("operations/dead_worker_job_started_twice", len(running.jobs()) - jobs, "", 0)
    running.prefect("flow-run", "cancel", again)
    until(lambda: set(running.jobs()) <= JOB_ENDED, 120, "the job's end")


def _running_flows(running: Site) -> set[str]:
    """Flow runs that MLflow has a running run of."""
    client = running.client()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    mlflow_runs = client.search_runs(experiments, "attributes.status = 'RUNNING'")
    return {run.data.tags["prefect.flow_run_id"] for run in mlflow_runs}


def _start(running: Site, deployment: str, *parameters: str) -> str:
    """Start a run of a deployment of the site's pipeline by hand; return its id."""
    command = [word for text in (f"pipeline={running.pipeline}", *parameters) for word in ("--param", text)]
    name = f"by-hand-{uuid4()}"  # a trigger may start other runs meanwhile
    running.prefect("deployment", "run", deployment, "--flow-run-name", name, *command)
    return next(run["id"] for run in running.runs() if run["name"] == name)


def _train(running: Site, overrides: str) -> tuple[str, Path]:
    """Begin Stage III by hand and wait until it has done 20 steps; the flow run and the stage's folder."""
    step = Pipeline(running.pipeline, json.loads(overrides)).step("stage3")
    folder = running.home.work / step.key
    began = time.time()
    flow_run = _start(running, "openba-train/stage3", f"overrides={overrides}", "step=stage3")

    def steps() -> int:
        return sum(row["time"] > began for row in read_rows(folder / METRICS))

    until(lambda: steps() >= 20, 300, "20 steps of Stage III")
    return flow_run, folder


def _flow_process(running: Site) -> psutil.Process:
    worker = psutil.Process(running.services["worker"].process.pid)
    return next(child for child in worker.children(recursive=True) if "prefect" in " ".join(child.cmdline()))


def _state(running: Site, flow_run: str) -> str:
    return next(run["state_type"] for run in running.runs() if run["id"] == flow_run)


def _ended(running: Site) -> int:
    return sum(run["state_type"] in ENDED for run in running.runs())


def _idle(running: Site) -> bool:
    time.sleep(6)  # a trigger may be on its way
    open_states = ("SCHEDULED", "PENDING", "RUNNING", "CANCELLING")
    return not any(run["state_type"] in open_states for run in running.runs())


def _causes(run: dict[str, Any]) -> list[str]:
    return [run["created_by"]["type"].lower().replace("automation", "auto-")] if run["created_by"] else []


def flow_runs_of(running: Site, flow_run: str) -> list[Run]:
    """MLflow's runs of a flow run."""
    client = running.client()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(experiments, f"tags.`prefect.flow_run_id` = '{flow_run}'")


def _runs_of(running: Site, flow_run: str) -> set[str]:
    return {run.info.status for run in flow_runs_of(running, flow_run) if run.info.status != "FINISHED"}
