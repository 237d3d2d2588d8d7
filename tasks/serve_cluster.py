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
    model_reference: str,
    home: Home,
    limits: Limits,
    *,
    replicas: int,
    host: str,
    port: int,
    device: str,
    threads: int,
    poll_seconds: float,
) -> None:
    """Replace the running replicas by so many new ones and wait until they answer; 0 ends them.

    Args: as `tasks.serve.serve`.

    Raises:
        UserError: no cluster, no such model, Serve listens elsewhere, or a replica does not come up.
    """
    client, serve_details = _cluster()
    if replicas == 0:
        client.deploy_applications(_config(serve_details, None))
        print(f"{NAME} is no longer served on {client.get_address()}")
        return
    _check_address(serve_details, host, port)
    source = Source(model_reference, home)  # a mistake in it is reported here
    registry_uri = home.tracking_uri
    deployment_settings: JsonObject = {
        "asked": str(source.folder.resolve()) if source.folder else model_reference,
        "home": str(home.root),
        "registry": None if has_credentials(registry_uri) else registry_uri,
        "limits": asdict(limits),
        "host": host,
        "device": device,
        "threads": threads,
        "poll": poll_seconds,
        "replicas": replicas,
    }
    proxy_location = "HeadOnly" if host in LOOPBACK else "EveryNode"
    http_options = {"host": host, "port": port}
    client.deploy_applications(
        _config(serve_details, deployment_settings)
        | {"http_options": http_options, "proxy_location": proxy_location}
    )
    _wait(client, serve_details)
    cluster_address = client.get_address()
    print(
        f"{model_reference} on http://{host}:{port} of the cluster {cluster_address}, {replicas} replica(s)"
    )


def _cluster() -> tuple[ServeSubmissionClient, JsonObject]:
    """Return the cluster, and what Serve does there."""
    ray_address = os.environ.get("RAY_ADDRESS")
    if not ray_address:
        raise UserError("--cluster: set RAY_ADDRESS to the dashboard of a Ray cluster, as http://head:8265")
    try:
        client = ServeSubmissionClient(ray_address)
        return client, client.get_serve_details()
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"RAY_ADDRESS={ray_address}: {one_line(error)}") from None


def _config(serve_details: JsonObject, deployment_settings: JsonObject | None) -> JsonObject:
    """All applications of the cluster, ours with these settings or not at all."""
    # Deploying replaces all applications of a cluster, so those of others are handed in again as they are.
    other_applications = [
        application_details["deployed_app_config"]
        for application_name, application_details in serve_details["applications"].items()
        if application_name != NAME and application_details.get("deployed_app_config")
    ]
    if deployment_settings is None:
        return {"applications": other_applications}
    our_application = {
        "name": NAME,
        "route_prefix": "/",
        "import_path": "tasks.serve_replica:application",
        "args": deployment_settings,
    }
    return {"applications": [*other_applications, our_application]}


def _check_address(serve_details: JsonObject, host: str, port: int) -> None:
    http_options = serve_details.get("http_options") or {}
    present = http_options.get("host"), http_options.get("port")
    if serve_details["applications"] and present != (host, port):
        raise UserError(
            f"Ray Serve listens on {present[0]}:{present[1]} already; pass that as --host and --port, or end "
            "it with `serve shutdown`"
        )


def _wait(client: ServeSubmissionClient, previous_details: JsonObject) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while True:
        application_details = client.get_serve_details()["applications"].get(NAME, {})
        if application_details.get("status") == "RUNNING":
            return
        if application_details.get("status") in ("DEPLOY_FAILED", "UNHEALTHY") or time.monotonic() > deadline:
            client.deploy_applications(_config(previous_details, None))
            raise UserError(f"{NAME} did not come up: {_reason(application_details)}")
        time.sleep(_POLL_SECONDS)


def _reason(application_details: JsonObject) -> str:
    """Return the line of a user's mistake in Serve's message, else its first line."""
    deployments = application_details.get("deployments") or {}
    messages = [
        application_details.get("message") or "",
        *(deployment.get("message") or "" for deployment in deployments.values()),
    ]
    for text in messages:
        if error_match := re.search(r"UserError: (.*)", text):
            return error_match[1]
    return next((text.strip().splitlines()[-1] for text in messages if text.strip()), "no reason given")
