"""Events between flows: one for every step that is finished and passed its gate.

Owns the events' names and what stands in them; who starts on them is said in `prefect.yaml`.
Emitting is the last act of a flow: work that failed or was refused emits nothing, so it starts nothing.
"""

from __future__ import annotations

from typing import Any

from prefect.events import emit_event

PASSED = "openba.step.passed"
PROMOTED = "openba.model.promoted"


def passed(
    step_name: str, pipeline: str, overrides: list[str] | None, fingerprint: str, next_steps: list[str]
) -> None:
    """`step_name` is complete and sound; `prefect.resource.id` is `openba.step.NAME`.

    What may begin now, `next_steps`, is related to it in the role `next`: triggers match that, so the
    pipeline alone says who follows whom. Followers get the same pipeline and overrides.
    """
    related = [
        {"prefect.resource.id": f"openba.step.{next_name}", "prefect.resource.role": "next"}
        for next_name in next_steps
    ]
    _emit(
        PASSED,
        f"openba.step.{step_name}",
        related,
        step=step_name,
        pipeline=pipeline,
        overrides=overrides,
        fingerprint=fingerprint,
    )


def promoted(model_name: str, pipeline: str, version: str) -> None:
    """Emit that a version became champion; `prefect.resource.id` is `openba.model.NAME`."""
    _emit(PROMOTED, f"openba.model.{model_name}", [], model=model_name, pipeline=pipeline, version=version)


def _emit(event_name: str, resource_id: str, related: list[dict[str, str]], **payload: Any) -> None:
    emit_event(event_name, {"prefect.resource.id": resource_id}, related=related, payload=dict(payload))
