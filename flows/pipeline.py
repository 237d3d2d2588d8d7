"""The whole story as one Prefect flow: data, three stages, experts, evaluations, registry, report.

Truth is in the store's manifests: a flow that is run again reuses what is complete, so Prefect's
own cache is off (docs/architecture.md says why) and a run's state can never be wrong for long.
"""

from __future__ import annotations

from typing import Any, cast

from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.graphs import read_pipeline
from openba.artifacts import Step
from openba.errors import error_boundary
from openba.home import Home
from tasks.registry import Registration, Registry
from tasks.report import write_report
from tasks.session import Session, open_session

# A step that waits for its inputs holds a thread, so there are more threads than steps.
RUNNER = cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=64))


@flow(name="openba", task_runner=RUNNER, validate_parameters=False)
@error_boundary()
def openba_pipeline(
    pipeline: str = "tiny", overrides: list[str] | None = None, until: str | None = None
) -> str:
    """Run a pipeline, or the part of it that one step needs; returns the report's path."""
    graph = read_pipeline(pipeline, overrides)
    wanted = graph.wanted(until)
    with open_session(graph, Home.from_environment(), wanted, str(runtime.flow_run.id)) as session:
        phases = (graph.data, graph.pretraining, graph.fine_tuning, graph.evaluations)
        build_steps(session, [step for phase in phases for step in phase if step in wanted])
        is_complete = until is None and not graph.comparison
        registered = register() if is_complete and graph.config.runtime.tracker == "mlflow" else []
        return write_report(session, registered)


def build_steps(session: Session, steps: list[Step]) -> None:
    """Start each step as soon as its inputs are built, and wait for all; raises what made one fail first."""
    built: dict[str, PrefectFuture[Any]] = {}
    for step in steps:
        inputs = [built[parent.key] for parent in step.inputs.values()]
        named = build_step.with_options(task_run_name=step.key)
        built[step.key] = named.submit(key=step.key, return_state=False, wait_for=inputs)
    wait(list(built.values()))
    session.raise_first_error()


@task(cache_policy=NO_CACHE, persist_result=False)
@error_boundary()
def build_step(key: str) -> str:
    """Reuse or build one step of the session; only its key crosses task borders."""
    session = Session.current()
    session.build(session.step(key))
    return key


@task(cache_policy=NO_CACHE, persist_result=False)
@error_boundary()
def register() -> list[Registration]:
    """Register every model as `candidate`, and as `champion` if the gate allows it."""
    session = Session.current()
    registry = Registry(session.tracking, session.store, session.home.promotions, session.pipeline)
    gate = session.pipeline.config.registry.gate
    return [registry.register(model, gate) for model in session.pipeline.models if model.register_as]
