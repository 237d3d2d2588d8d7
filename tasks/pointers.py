"""Registered models: which version an address stands for, and where the store has its output.

Owns reading of `models:/` addresses and of a version's `pointer.json`. Versions are made by `registry.py`.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path

from openba.errors import UserError, one_line
from openba.json_types import JsonObject
from openba.model.origin import REGISTERED

ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow says where there is no such model, version or alias."""


def limit_waiting() -> None:
    """Let MLflow's client give up after three tries of 10 s each, unless the environment has other limits."""
    # MLflow's own are 7 tries of 120 s: a command that waits so long looks as if it hung.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def read_pointer(tracking_uri: str, name: str, number: str) -> JsonObject:
    """Return the pointer of a version, see `openba.model.pointer`.

    Raises:
        UserError: the registry does not know the version, or does not answer.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    limit_waiting()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for 300 bytes
    mlflow.set_tracking_uri(tracking_uri)
    address = f"models:/{name}/{number}"
    with tempfile.TemporaryDirectory() as scratch_folder:
        try:
            artifact_folder = mlflow.artifacts.download_artifacts(
                artifact_uri=address, dst_path=scratch_folder
            )
            pointer_file = Path(artifact_folder) / "artifacts" / "pointer.json"
            pointer: JsonObject = json.loads(pointer_file.read_text(encoding="utf-8"))
            if not {"uri", "files"} <= pointer.keys():
                raise ValueError("it has no uri or no files")
            return pointer
        except (MlflowException, OSError, ValueError, AttributeError) as error:
            raise UserError(f"{address}: no readable pointer.json: {one_line(error)}") from None


def version_of(tracking_uri: str, address: str) -> tuple[str, str]:
    """Return name and version number that a `models:/` address stands for now.

    Raises:
        UserError: it is no such address, the registry does not know it, or does not answer.
    """
    address_match = REGISTERED.fullmatch(address)
    if address_match is None:
        raise UserError(f"{address}: write models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = address_match.groups()
    if number is not None:
        return name, number
    limit_waiting()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # MLflow sets its loggers up when it is imported; they would tell of the tables that a new registry gets.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        client = MlflowClient(tracking_uri, tracking_uri)
        return name, str(client.get_model_version_by_alias(name, alias).version)
    except (MlflowException, OSError) as error:  # requests' errors are OSErrors
        if isinstance(error, MlflowException) and error.error_code in ABSENT:
            raise UserError(
                f"{address}: no such model or alias in the registry {tracking_uri}; `openba run` registers "
                "models"
            ) from None
        raise UserError(f"{address}: {one_line(error)} (registry {tracking_uri})") from None
