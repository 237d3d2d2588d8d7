"""A pipeline as one Prefect flow: data, stages, experts, evaluations, registry, report.

The manifests in the store say what is complete, and a flow that is run again reuses it. Prefect's own cache
is off; docs/architecture.md gives the reasons.
"""

from __future__ import annotations

from typing import Any, cast

from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from openba.artifacts import Step
from openba.errors import error_boundary
from openba.home import Home
from tasks.graphs import read_pipeline
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
    """Run a pipeline, or the part of it that one step needs; return the report's path."""
    graph = read_pipeline(pipeline, overrides)
    wanted_steps = graph.wanted(until)
    with open_session(graph, Home.from_environment(), wanted_steps, str(runtime.flow_run.id)) as session:
        phases = (graph.data, graph.pretraining, graph.fine_tuning, graph.evaluations)
        build_steps(session, [step for phase in phases for step in phase if step in wanted_steps])
        # A part of a pipeline, or a comparison, has no model that should become champion.
        is_complete = until is None and not graph.comparison
        registrations = register() if is_complete and graph.config.runtime.tracker == "mlflow" else []
        return write_report(session, registrations)


def build_steps(session: Session, steps: list[Step]) -> None:
    """Start each step as soon as its inputs are built and wait for all; raise the first error."""
    futures: dict[str, PrefectFuture[Any]] = {}
    for step in steps:
        input_futures = [futures[parent.key] for parent in step.inputs.values()]
        named_task = build_step.with_options(task_run_name=step.key)
        futures[step.key] = named_task.submit(key=step.key, return_state=False, wait_for=input_futures)
    wait(list(futures.values()))
    session.raise_first_error()


@task(cache_policy=NO_CACHE, persist_result=False)
@error_boundary()
def build_step(key: str) -> str:
    """Reuse or build one step of the session. Prefect would serialise a `Step`, so tasks get its key."""
    session = Session.current()
    session.build(session.step(key))
    return key


@task(cache_policy=NO_CACHE, persist_result=False)
@error_boundary()
def register() -> list[Registration]:
    """Register every model as `candidate`, and as `champion` if the gate allows it."""
    session = Session.current()
    model_registry = Registry(session.tracking, session.store, session.home.promotions, session.pipeline)
    gate = session.pipeline.config.registry.gate
    return [model_registry.register(model, gate) for model in session.pipeline.models if model.register_as]
