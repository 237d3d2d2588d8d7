"""Where a step runs under a runtime: as its kind says, but handed out on the cluster if that is asked for.

Owns this one choice; what a place means is `session`'s and `ray_jobs`'s.
"""

from __future__ import annotations

from dataclasses import replace

from openba.artifacts import Kind, Step
from openba.graph import CORPUS, EVALUATE
from openba.recipes.runtime import PipelineRuntime


def kind_of(step: Step, runtime: PipelineRuntime) -> Kind:
    """The step's kind with the function and place that this runtime uses; its version is the same."""
    if step.kind is CORPUS and runtime.clean.engine == "ray":
        return replace(step.kind, function="tasks.clean:build", place="job")
    if step.kind is EVALUATE and runtime.evaluate.workers > 1:
        return replace(step.kind, function="tasks.evaluate:build")
    return step.kind
