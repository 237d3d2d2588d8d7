"""Pipelines as commands and flows read them: with the registry that `models:/` addresses are looked up in."""

from __future__ import annotations

from collections.abc import Mapping

from openba.graph import Pipeline, find_pipeline
from openba.home import Home
from openba.json_types import Json


def read_pipeline(pipeline: str, overrides: list[str] | None = None, strict: bool = False) -> Pipeline:
    """Return the steps of a pipeline by name or file; `strict` as in `Pipeline`.

    Raises:
        UserError: the pipeline is not valid.
    """
    return Pipeline(find_pipeline(pipeline), overrides, strict, registered=_registered)


def _registered(address: str) -> tuple[str, Mapping[str, Json]]:
    """Return where the output of a registered model is, and its files with their digests."""
    from tasks.pointers import read_pointer, version_of  # MLflow takes seconds to import

    home = Home.from_environment()
    pointer = read_pointer(home.tracking_uri, *version_of(home.tracking_uri, address))
    return pointer["uri"], pointer["files"]
