"""Where a step runs under a runtime: as its kind says, but handed out on the cluster if that is asked for.

Owns this one choice; what a place means is `session`'s and `ray_jobs`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from openba.artifacts import Kind, Step
from openba.graph import CORPUS, EVALUATE
from openba.recipes.runtime import PipelineRuntime


class Work(NamedTuple):
    """What a step's function gave back, and when it was at work; seconds since 1970."""

    facts: Any
    process: float
    """When the process began that did it and nothing else; in a shared process, when the function did."""
    began: float
    ended: float


def kind_of(step: Step, runtime: PipelineRuntime) -> Kind:
    """The step's kind with the function and place that this runtime uses; its version is the same."""
    if step.kind is CORPUS and runtime.clean.engine == "ray":
        return replace(step.kind, function="tasks.clean:build", place="job")
    if step.kind is EVALUATE and runtime.evaluate.workers > 1:
        return replace(step.kind, function="tasks.evaluate:build")
    return step.kind
