"""Flows of `prefect.yaml`: each runs one part of a pipeline and emits an event when it is done.

Owns what a deployment runs and its form; Prefect takes the form's texts from the docstrings. `prefect.yaml`
says which event starts which flow. A flow that fails, or whose output does not pass its gate, emits no event,
so no other flow follows it.
"""

from __future__ import annotations

from typing import Annotated

from prefect import flow, runtime
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.pipeline import RUNNER, build_steps
from openba.artifacts import Step
from openba.errors import UserError, error_boundary
from openba.gate import evaluation_refusals, stage_refusals
from openba.graph import Pipeline
from openba.json_types import JsonObject
from tasks import events
from tasks.cancel import end_flow_run
from tasks.graphs import read_pipeline, steps_of_evaluation, worker_home
from tasks.registry import Registry
from tasks.session import open_session

Overrides = list[str] | None
Limit = Annotated[float | None, Field(gt=0)]
APPROVAL_SECONDS = 7 * 86400
# Each flow enters the error boundary inside: as a decorator it hides the module's names from Prefect, which
# then cannot resolve the types of the parameters.
HOOKS: JsonObject = {"on_cancellation": [end_flow_run], "on_crashed": [end_flow_run]}


class Approval(RunInput):
    """Answer of a person who decides whether a model becomes champion."""

    approve: bool = False
    by: str = ""
    """Who answers; goes to the promotion log."""


@flow(name="openba-data", task_runner=RUNNER, **HOOKS)
def build_data(pipeline: str = "tiny", overrides: Overrides = None) -> None:
    """Read, clean, tokenize and mix all data of a pipeline.

    Args:
        pipeline: a name in configs/pipeline, or a YAML file.
        overrides: such as stages.stage2.optim.lr=1e-3.
    """
    with error_boundary():
        graph = _graph(pipeline, overrides)
        _build(graph, graph.data)
        made = graph.steps.get("mixture") or graph.data[-1]
        events.passed("data", pipeline, overrides, made.fingerprint, graph.after("data"))


@flow(name="openba-train", task_runner=RUNNER, **HOOKS)
def train_step(
    step: str, pipeline: str = "tiny", overrides: Overrides = None, max_heldout_loss: Limit = None
) -> None:
    """Train one stage or one expert.

    Args:
        step: its name, such as stage1 or chat.
        pipeline: a name in configs/pipeline, or a YAML file.
        overrides: such as stages.stage2.optim.lr=1e-3.
        max_heldout_loss: nats per token above which nothing follows.
    """
    with error_boundary():
        graph = _graph(pipeline, overrides)
        training = graph.step(step)
        facts = _build(graph, list(training.walk()))[step]
        if refusal_reasons := stage_refusals(facts, max_heldout_loss):
            raise UserError(f"{step}: the gate refuses it: {'; '.join(refusal_reasons)}")
        events.passed(step, pipeline, overrides, training.fingerprint, graph.after(step))


@flow(name="openba-evaluate", task_runner=RUNNER, **HOOKS)
def evaluate_model(
    model: str,
    pipeline: str = "tiny",
    overrides: Overrides = None,
) -> None:
    """Evaluate a model on its benchmarks.

    Args:
        model: a trained step, such as stage3 or chat.
        pipeline: a name in configs/pipeline, or a YAML file.
        overrides: such as stages.stage2.optim.lr=1e-3.
    """
    with error_boundary():
        graph = _graph(pipeline, overrides)
        evaluation = graph.step(f"evaluate-{model}")
        # The gate of promotion asks for contamination too, and no other flow builds it.
        facts = _build(graph, steps_of_evaluation(graph, evaluation))[evaluation.name]
        if refusal_reasons := evaluation_refusals(tuple(evaluation.recipe.benchmarks), facts["benchmarks"]):  # type: ignore[attr-defined]
            raise UserError(f"{evaluation.name}: the gate refuses it: {'; '.join(refusal_reasons)}")
        events.passed(
            evaluation.name, pipeline, overrides, evaluation.fingerprint, graph.after(evaluation.name)
        )


@flow(name="openba-promote", **HOOKS)
def promote_model(model: str, pipeline: str = "tiny", overrides: Overrides = None) -> str:
    """Register a model as candidate, and make it champion if the gate lets it.

    Args:
        model: a trained step, such as stage3 or chat.
        pipeline: a name in configs/pipeline, or a YAML file.
        overrides: such as registry.gate.approval=true, then a person is asked.
    """
    with error_boundary():
        graph = _graph(pipeline, overrides)
        chosen_model = next(
            (candidate for candidate in graph.models if model in (candidate.name, candidate.register_as)),
            None,
        )
        if chosen_model is None or chosen_model.register_as is None:
            raise UserError(f"{model}: no model that {pipeline} registers; see registry.models")
        home = worker_home()
        with open_session(graph, home, [], str(runtime.flow_run.id)) as session:
            registry = Registry(session.tracking, session.store, home.promotions, graph)
            registration = registry.register(chosen_model, graph.config.registry.gate)
            model_version = f"{registration.name} version {registration.version}"
            if registration.decision == "waiting":
                # The process ends here. When a person answers, Prefect runs the flow again from its start.
                approval = suspend_flow_run(wait_for_input=Approval, timeout=APPROVAL_SECONDS)
                if not approval.approve:
                    registry.reject(registration, approval.by)
                    raise UserError(f"{model_version}: not approved; the champion stays")
                registration = registry.approve(chosen_model, graph.config.registry.gate, approval.by)
        if registration.decision in ("refused", "withheld"):
            raise UserError(f"{model_version}: {registration.decision}: {registration.reason}")
        if registration.decision == "promoted":
            events.promoted(registration.name, pipeline, registration.version)
        return f"{model_version}: {registration.decision}: {registration.reason}"


def _graph(pipeline: str, overrides: list[str] | None) -> Pipeline:
    return read_pipeline(pipeline, overrides, strict=True)


def _build(graph: Pipeline, steps: list[Step]) -> dict[str, JsonObject]:
    """Build or reuse steps, inputs first; return their facts by name."""
    steps = list({step.name: step for step in steps}.values())
    with open_session(graph, worker_home(), steps, str(runtime.flow_run.id)) as session:
        build_steps(session, steps)
        records = {step.name: session.store.manifest(step) for step in steps}
    return {name: record["facts"] for name, record in records.items() if record}
