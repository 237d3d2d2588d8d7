"""A replica of `openba serve --cluster`: the same application, inside a Ray Serve deployment.

Owns what runs on the cluster: loading, following the alias, health. `tasks/serve_cluster.py` asks for it.
The key comes from the environment of Ray's nodes, since what a deployment is given is shown on the dashboard.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import torch
from pydantic import BaseModel
from ray import serve
from starlette.applications import Starlette

from openba.errors import UserError
from openba.home import Home
from openba.json_types import JsonObject
from openba.redact import protect_output
from openba.serve.app import Application
from openba.serve.limits import Limits
from openba.serve.model_host import ModelHost
from openba.serve.server_metrics import ServerMetrics
from tasks.serve import LOOPBACK, Source, begin, names, watch


class Settings(BaseModel):
    """Settings of a deployment."""

    asked: str
    """A model's folder that all nodes see, or `models:/NAME@ALIAS`."""
    home: Path
    registry: str | None
    """MLflow's address; None: that of the node's environment."""
    limits: Limits
    host: str
    device: str
    threads: int
    poll: float
    replicas: int


@serve.ingress()
class Replica:
    """One engine and its HTTP application."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        """Load the model; Serve sends requests when this has ended.

        Raises:
            UserError: no such model.
        """
        protect_output()
        torch.set_num_threads(settings.threads)
        if settings.registry is not None:
            os.environ["MLFLOW_TRACKING_URI"] = settings.registry
        self.settings = settings
        self.models = ModelHost(settings.limits, ServerMetrics(), settings.device)
        source = Source(settings.asked, Home(settings.home))
        await begin(source, self.models)
        following = watch(source, self.models, settings.poll)
        self.following = asyncio.create_task(following) if source.alias else None

    def __serve_build_asgi_app__(self) -> Starlette:
        """Return the ASGI application; Serve asks for it after the constructor."""
        return Application(self.models, key()).asgi(names(self.settings.host))

    def check_health(self) -> None:
        """Raise if the engine has ended or stalled; Serve then replaces the replica."""
        if (state := self.models.state()) != "ok":
            raise RuntimeError(f"the engine is {state}")

    def __del__(self) -> None:
        if self.following:
            self.following.cancel()
        self.models.close()


def key() -> str | None:
    """Return the API key of this node's environment."""
    return os.environ.get("OPENBA_API_KEY") or None


def application(settings_json: JsonObject) -> serve.Application:
    """Return the deployment; Serve calls it on the cluster with `Settings` as JSON.

    Raises:
        UserError: it would listen beyond loopback without a key.
    """
    settings = Settings.model_validate(settings_json)
    if settings.host not in LOOPBACK and key() is None:
        raise UserError(
            f"--host {settings.host}: start Ray's nodes with OPENBA_API_KEY set to a secret, or whoever "
            "reaches them may ask"
        )
    limits = settings.limits
    deployment = serve.deployment(
        num_replicas=settings.replicas,
        ray_actor_options={
            "num_cpus": settings.threads,
            "num_gpus": int(settings.device.startswith("cuda")),
        },
        # The application refuses for itself; requests such as /health come on top.
        max_ongoing_requests=limits.max_rows + limits.max_queued + 64,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=limits.answer_timeout,
    )
    return deployment(Replica).bind(settings)
