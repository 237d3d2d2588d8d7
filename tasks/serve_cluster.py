"""`openba serve --cluster`: replicas of the server on the Ray cluster that RAY_ADDRESS names.

Owns the talk with Ray Serve's REST API; this process is no Ray driver, and the deployment goes on without it.
Other applications of that cluster stay as they are.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import asdict

from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from openba.errors import UserError, one_line
from openba.home import Home
from openba.json_types import JsonObject
from openba.redact import has_credentials
from openba.serve.limits import Limits
from tasks.serve import LOOPBACK, Source

NAME = "openba"
_POLL_SECONDS = 0.5
_SECONDS_TO_START = 600.0


def deploy(
    asked: str,
    home: Home,
    limits: Limits,
    *,
    replicas: int,
    host: str,
    port: int,
    device: str,
    threads: int,
    poll: float,
) -> None:
    """Replace the running replicas by so many new ones and wait until they answer; 0 ends them.

    Args: as `tasks.serve.serve`.

    Raises:
        UserError: no cluster, no such model, Serve listens elsewhere, or a replica does not come up.
    """
    client, present = _cluster()
    if replicas == 0:
        client.deploy_applications(_config(present, None))
        print(f"{NAME} is no longer served on {client.get_address()}")
        return
    _check_address(present, host, port)
    source = Source(asked, home)  # a mistake in it is told here
    registry = home.tracking_uri
    settings: JsonObject = {
        "asked": str(source.folder.resolve()) if source.folder else asked,
        "home": str(home.root),
        "registry": None if has_credentials(registry) else registry,
        "limits": asdict(limits),
        "host": host,
        "device": device,
        "threads": threads,
        "poll": poll,
        "replicas": replicas,
    }
    proxy_location = "HeadOnly" if host in LOOPBACK else "EveryNode"
    http = {"host": host, "port": port}
    client.deploy_applications(
        _config(present, settings) | {"http_options": http, "proxy_location": proxy_location}
    )
    _wait(client, present)
    print(f"{asked} on http://{host}:{port} of {client.get_address()}'s cluster, {replicas} replica(s)")


def _cluster() -> tuple[ServeSubmissionClient, JsonObject]:
    """Return the cluster, and what Serve does there."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        raise UserError("--cluster: set RAY_ADDRESS to the dashboard of a Ray cluster, as http://head:8265")
    try:
        client = ServeSubmissionClient(address)
        return client, client.get_serve_details()
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"RAY_ADDRESS={address}: {one_line(error)}") from None


def _config(present: JsonObject, settings: JsonObject | None) -> JsonObject:
    """All applications of the cluster, ours with these settings or not at all."""
    others = [
        application_details["deployed_app_config"]
        for name, application_details in present["applications"].items()
        if name != NAME and application_details.get("deployed_app_config")
    ]
    if settings is None:
        return {"applications": others}
    ours = {
        "name": NAME,
        "route_prefix": "/",
        "import_path": "tasks.serve_replica:application",
        "args": settings,
    }
    return {"applications": [*others, ours]}


def _check_address(present: JsonObject, host: str, port: int) -> None:
    running = present.get("http_options") or {}
    there = running.get("host"), running.get("port")
    if present["applications"] and there != (host, port):
        raise UserError(
            f"Ray Serve listens on {there[0]}:{there[1]} already; ask for that with --host and --port, or "
            "end it with `serve shutdown`"
        )


def _wait(client: ServeSubmissionClient, before: JsonObject) -> None:
    end = time.monotonic() + _SECONDS_TO_START
    while True:
        application_details = client.get_serve_details()["applications"].get(NAME, {})
        if application_details.get("status") == "RUNNING":
            return
        if application_details.get("status") in ("DEPLOY_FAILED", "UNHEALTHY") or time.monotonic() > end:
            client.deploy_applications(_config(before, None))
            raise UserError(f"{NAME} did not come up: {_reason(application_details)}")
        time.sleep(_POLL_SECONDS)


def _reason(application: JsonObject) -> str:
    """Return the line of a user's mistake in what Serve tells, else its first line."""
    deployments = application.get("deployments") or {}
    messages = [
        application.get("message") or "",
        *(each.get("message") or "" for each in deployments.values()),
    ]
    for text in messages:
        if application_details := re.search(r"UserError: (.*)", text):
            return application_details[1]
    return next((text.strip().splitlines()[-1] for text in messages if text.strip()), "no reason given")
