"""Place of execution of a step: its kind's, or sharded over the cluster if the runtime says so.

Owns this choice and the protocol of runners; `session` maps places to runners.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from openba.artifacts import Build, Kind, Step
from openba.graph import CORPUS, EVALUATE
from openba.recipes.runtime import PipelineRuntime


class Work(NamedTuple):
    """Return value of a step's function, and when it worked, in seconds since 1970."""

    facts: Any
    process: float
    """When the process began that did it and nothing else; in a shared process, when the function did."""
    began: float
    ended: float


class Runner(Protocol):
    """Runs functions of steps: in processes here (`tasks.local`) or as Ray jobs (`tasks.ray_jobs`)."""

    def run(self, step: Step, build: Build, watch: Callable[[], None]) -> Work:
        """Run the step's function; call `watch` while it runs, whose exception ends the wait.

        Raises:
            UserError: it failed; the message is its own line.
        """

    def stop(self) -> None:
        """End everything that was started and is still running."""


def kind_of(step: Step, runtime: PipelineRuntime) -> Kind:
    """Return the step's kind with the function and place that this runtime uses; its version is the same."""
    # Other functions, but the same version: they compute the same, so either reuses the other's output.
    if step.kind is CORPUS and runtime.clean.engine == "ray":
        return replace(step.kind, function="tasks.clean:build", place="job")
    if step.kind is EVALUATE and runtime.evaluate.workers > 1:
        return replace(step.kind, function="tasks.evaluate:build")
    return step.kind
