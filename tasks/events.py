"""Events between flows: one for every step that is finished and passed its gate.

Owns the events' names and what stands in them; who starts on them is said in `prefect.yaml`.
Emitting is the last act of a flow: work that failed or was refused emits nothing, so it starts nothing.
"""

from __future__ import annotations

from typing import Any

from prefect.events import emit_event

PASSED = "openba.step.passed"
PROMOTED = "openba.model.promoted"


def passed(step: str, pipeline: str, overrides: list[str] | None, fingerprint: str, then: list[str]) -> None:
    """`step` is complete and sound; `prefect.resource.id` is `openba.step.NAME`.

    What may begin now, `then`, is related to it in the role `next`: triggers match that, so the
    pipeline alone says who follows whom. Followers get the same pipeline and overrides.
    """
    related = [
        {"prefect.resource.id": f"openba.step.{name}", "prefect.resource.role": "next"} for name in then
    ]
    _emit(
        PASSED,
        f"openba.step.{step}",
        related,
        step=step,
        pipeline=pipeline,
        overrides=overrides,
        fingerprint=fingerprint,
    )


def promoted(model: str, pipeline: str, version: str) -> None:
    """Emit that a version became champion; `prefect.resource.id` is `openba.model.NAME`."""
    _emit(PROMOTED, f"openba.model.{model}", [], model=model, pipeline=pipeline, version=version)


def _emit(event: str, resource: str, related: list[dict[str, str]], **payload: Any) -> None:
    emit_event(event, {"prefect.resource.id": resource}, related=related, payload=dict(payload))
