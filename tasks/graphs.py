"""Pipelines as commands and flows read them, with the registry that `models:/` addresses are looked up in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from openba.artifacts import Step
from openba.errors import UserError
from openba.graph import Pipeline, find_pipeline
from openba.home import Home
from openba.json_types import Json


def read_pipeline(pipeline: str, overrides: list[str] | None = None, strict: bool = False) -> Pipeline:
    """Return the steps of a pipeline by name or file; `strict` as in `Pipeline`.

    Raises:
        UserError: the pipeline is not valid.
    """
    return Pipeline(find_pipeline(pipeline), overrides, strict, registered=_registered)


def steps_of_evaluation(graph: Pipeline, evaluation: Step) -> list[Step]:
    """Return the steps of an evaluation, of the classical models beside its scores, and of contamination."""
    compared = [
        candidate.baselines
        for candidate in graph.models
        if candidate.evaluation == evaluation and candidate.baselines is not None
    ]
    outputs = [evaluation, *compared, graph.step("contamination")]
    return [step for output in outputs for step in output.walk()]


def worker_home() -> Home:
    """Return the home of the worker's environment.

    Raises:
        UserError: it is not set to an absolute path; a worker runs each flow in a temporary folder.
    """
    from prefect import runtime  # takes seconds to import, which commands that only plan do not need

    home_setting = os.environ.get("OPENBA_HOME", "")
    if runtime.deployment.id is not None and not Path(home_setting).expanduser().is_absolute():
        raise UserError(
            f"OPENBA_HOME={home_setting}: set it to an absolute path in the environment of the Prefect "
            "worker, which runs each flow in a temporary folder"
        )
    return Home.from_environment()


def _registered(address: str) -> tuple[str, Mapping[str, Json]]:
    """Return where the output of a registered model is, and its files with their digests."""
    from tasks.pointers import read_pointer, version_of  # MLflow takes seconds to import

    home = Home.from_environment()
    pointer = read_pointer(home.tracking_uri, *version_of(home.tracking_uri, address))
    return pointer["uri"], pointer["files"]
